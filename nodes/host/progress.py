"""What the user sees while a node works, and the way to stop it."""

import logging
from typing import Any

import comfy.model_management
import comfy.utils
from comfy_execution.graph_utils import ExecutionBlocker, GraphBuilder
from PIL import Image
from server import PromptServer

PARTS = 1000
"""Of a bar that is told shares."""


class Stages:
    """Progress of one node: a bar for each stage, its name as a line of text, previews. Raises when cancelled."""

    def __init__(self, node_id: str | None = None) -> None:
        # a node that another one stands for is shown as that one
        self.node_id = node_id and node_id.partition(".")[0]
        self.stage, self.bar = "", comfy.utils.ProgressBar(1)

    def step(self, stage: str, done: int, total: int, preview: Image.Image | None = None) -> None:
        """stage is what the user reads ("finding faces"); done of total units; a preview picture."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        if stage != self.stage:
            self.stage, self.bar = stage, comfy.utils.ProgressBar(total)
        self.say(f"{stage}: {done} of {total}")
        self.bar.update_absolute(done, total, None if preview is None else ("JPEG", preview, 512))

    def draw(self, share: float, text: str) -> None:
        """A bar, 0 to 1, and a line about it, as the engine's training tells them."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.say(text)
        self.bar.update_absolute(round(share * PARTS), PARTS)

    def say(self, text: str) -> None:
        # for the browser that asked for this run; without one named, all of them would show it, on any graph
        if self.node_id is not None and (browser := PromptServer.instance.client_id):
            PromptServer.instance.send_progress_text(text, self.node_id, browser)


def warn(text: str) -> None:
    """For the user's log; the run goes on."""
    logging.getLogger("latentsync").warning("LatentSync: %s", text)


def routes() -> Any:
    """The server's route table (aiohttp), for the few requests of our web extension."""
    return PromptServer.instance.routes


def graph() -> Any:
    """A builder for the nodes that a node stands for."""
    return GraphBuilder()


def blocked_output(why: str) -> Any:
    """An output without a value: what is connected to it does not run, and says why."""
    return ExecutionBlocker(why)
