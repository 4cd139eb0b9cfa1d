"""Who computes: the engine in this process, or a ComfyUI that is running. Both make the same of the same wish."""

import asyncio
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import UserError
from ..settings import Settings
from .queue import CancelledError, Job

if TYPE_CHECKING:
    from ..comfy_client.client import ComfyClient
    from ..comfy_client.events import Event
    from ..comfy_client.prompt import Prompt
    from ..settings import Progress
    from ..weights.bundle import Models

PUBLISHED = ("1.5", "1.6")
ASK_EVERY = 0.2
"""Seconds between looks at whether a run on the server is still wanted."""
REMEMBERED = 30.0
"""Seconds for which a server's list of checkpoints is taken as it was."""
PATIENCE = 10.0
"""Seconds in which a server must say what it has."""


@dataclass(frozen=True)
class Wish:
    """What shall be made. voice None: the clip's own sound. still: face is a picture. out: the .mp4 to write."""

    face: Path
    voice: Path | None
    out: Path
    checkpoint: str
    settings: Settings
    still: bool = False


@dataclass(frozen=True)
class Made:
    """A finished run: the video, what was asked for, how long it took, and for comparing what browsers can play.

    name: what the face's owner calls it; the face itself may have been changed since.
    """

    video: Path
    wish: Wish
    seconds: float
    before: Path
    by: str
    name: str


class Backend(Protocol):
    """Someone who computes. title: what a visitor reads. lanes: runs that may be sent to it at once."""

    title: str
    lanes: int

    def checkpoints(self) -> list[str]:
        """What can be chosen. UserError: it cannot be asked."""
        ...

    def make(self, wish: Wish, job: Job[Any]) -> None:
        """Write wish.out, telling the job how far it is."""
        ...

    def close(self) -> None: ...


class LocalEngine:
    """The engine in this process. The models of the checkpoint that was used last stay loaded; one run at a time."""

    title, lanes = "this computer", 1

    def __init__(self, more: tuple[str, ...] = (), device: str = "auto", dtype: str = "auto") -> None:
        self._more, self._device, self._dtype = more, device, dtype
        self._loaded: tuple[str, Models] | None = None
        self._alone = threading.Lock()

    def checkpoints(self) -> list[str]:
        from ..cli.doctor import place

        return ["nano", *(name for name in PUBLISHED if place(name)), *self._more]

    def make(self, wish: Wish, job: Job[Any]) -> None:
        import torch

        from ..pipeline import lipsync_file

        def on_step(step: "Progress") -> None:
            job.tell(step.stage, step.done, step.total)

        with self._alone:
            job.tell("loading")
            models = self._models(wish.checkpoint)
            try:
                lipsync_file(wish.face, wish.voice, wish.out, models=models, settings=wish.settings, on_step=on_step)
            except torch.OutOfMemoryError as error:
                raise UserError("The graphics card ran out of memory; a smaller checkpoint may fit.") from error

    def _models(self, checkpoint: str) -> "Models":
        from ..models.device import pick_device, pick_dtype
        from ..weights.bundle import load_models

        if self._loaded is None or self._loaded[0] != checkpoint:
            self.close()
            device = pick_device(self._device)
            models = load_models(checkpoint, device=device, dtype=pick_dtype(self._dtype, device))
            self._loaded = checkpoint, models
        return self._loaded[1]

    def close(self) -> None:
        if self._loaded is not None:
            self._loaded[1].finder.close()
            self._loaded = None


class ComfyServer:
    """A ComfyUI that is running and has this pack. It has a queue of its own, so that several runs may wait there."""

    lanes = 8

    def __init__(self, server: str, headers: Mapping[str, str] | None = None) -> None:
        self._server, self._headers = server, dict(headers or {})
        self.title = "ComfyUI"
        self._known: tuple[float, list[str]] | None = None

    def _client(self) -> "ComfyClient":
        from ..comfy_client.client import ComfyClient

        return ComfyClient(self._server, headers=self._headers)

    def checkpoints(self) -> list[str]:
        if self._known is None or time.monotonic() - self._known[0] > REMEMBERED:
            self._known = time.monotonic(), asyncio.run(self._asked_in_time())
        return self._known[1]

    async def _asked_in_time(self) -> list[str]:
        try:
            return await asyncio.wait_for(self._ask(), PATIENCE)
        except asyncio.TimeoutError:
            url = self._client().display_url
            raise UserError(f"{url} did not answer within {PATIENCE:g} s; is it running?") from None

    async def _ask(self) -> list[str]:
        from ..comfy_client.prompt import declared

        async with self._client() as client:
            info = await client.describe(["LatentSyncVideo"])
            if "LatentSyncVideo" not in info:
                raise UserError(f"ComfyUI at {client.display_url} lacks the LatentSync nodes; install the pack there.")
            kind, rules = declared(info, "LatentSyncVideo")["checkpoint"]
            return [str(one) for one in (kind if isinstance(kind, list) else rules.get("options", []))]

    def make(self, wish: Wish, job: Job[Any]) -> None:
        asyncio.run(self._make(wish, job))

    async def _make(self, wish: Wish, job: Job[Any]) -> None:
        running = asyncio.create_task(self._run(wish, job))
        try:
            while not (await asyncio.wait({running}, timeout=ASK_EVERY))[0]:
                if job.stopping:
                    raise CancelledError
            await running
        finally:
            running.cancel()  # which withdraws the prompt from the server
            with suppress(asyncio.CancelledError, UserError, CancelledError):
                await running

    async def _run(self, wish: Wish, job: Job[Any]) -> None:
        files = {"Face.image" if wish.still else "Face.file": wish.face}
        if wish.voice is not None:
            files["Voice.audio"] = wish.voice
        async with self._client() as client:
            if wish.settings.watermark != "none":
                await _check_marks(client)
            result = await client.run(prompt_for(wish), inputs=files, on_event=_Listener(job))
            video = next((one for one in result.files if one.title == "Result"), None)
            if video is None:
                raise UserError("ComfyUI ended the run without a video; see its log.")
            job.tell("fetching")
            path = await client.fetch(video, wish.out.parent)
            path.replace(wish.out)

    def close(self) -> None:
        """The server is not ours."""


async def _check_marks(client: "ComfyClient") -> None:
    """A result without the mark that was asked for would be worse than none."""
    from ..comfy_client.prompt import declared

    info = await client.describe(["LatentSyncVideo"])
    if "watermark" not in declared(info, "LatentSyncVideo"):
        raise UserError("The nodes of this ComfyUI cannot mark a video; choose no mark, or let this computer do it.")


def prompt_for(wish: Wish) -> "Prompt":
    """The wish as a workflow in API form; the files are uploaded and set by whoever queues it."""
    how = wish.settings
    face = {"class_type": "LoadImage", "inputs": {"image": ""}}
    if not wish.still:
        face = {"class_type": "LoadVideo", "inputs": {"file": ""}}
    make: dict[str, Any] = {
        "video": ["1", 0],
        "checkpoint": wish.checkpoint,
        "fit": how.fit,
        "face": how.face,
        "seed": how.seed,
        "steps": how.steps,
        "guidance": how.guidance,
        "solver": how.solver,
        "still_fps": how.still_fps,
        "window_batch": how.window_batch,
        "save_to": "temp",
        "filename_prefix": "video/LatentSync",
    }
    if how.watermark != "none":
        make["watermark"] = how.watermark
    save = {"video": ["3", 0], "filename_prefix": "video/LatentSync", "format": "auto", "codec": "auto"}
    prompt: Prompt = {
        "1": face | {"_meta": {"title": "Face"}},
        "3": {"class_type": "LatentSyncVideo", "inputs": make, "_meta": {"title": "Lip sync"}},
        "4": {"class_type": "SaveVideo", "inputs": save, "_meta": {"title": "Result"}},
    }
    if wish.voice is not None:
        make["audio"] = ["2", 0]
        prompt["2"] = {"class_type": "LoadAudio", "inputs": {"audio": ""}, "_meta": {"title": "Voice"}}
    return prompt


class _Listener:
    """Turns what the server tells into a job's progress."""

    def __init__(self, job: Job[Any]) -> None:
        self._job = job

    def __call__(self, event: "Event") -> None:
        if event.kind == "queued":
            self._job.tell("queued")
            self._job.elsewhere = int(event.done)
        elif event.kind == "uploading":
            self._job.tell("sending")
        elif event.kind == "text" and event.text:
            # "finding faces: 3 of 50": the words are the server's, the numbers come by the next progress too
            self._job.tell(*_read(event.text))
        elif event.kind == "progress":
            self._job.tell(self._job.stage, event.done, event.total)
        elif event.kind in ("started", "node") and not self._job.total:
            self._job.tell("started")


def _read(text: str) -> tuple[str, float, float]:
    """The stage and its numbers from a line such as "painting the mouth: 3 of 50"."""
    stage, _, numbers = text.rpartition(": ")
    done, _, total = numbers.partition(" of ")
    if stage and done.isdigit() and total.isdigit():
        return stage, float(done), float(total)
    return text, 0, 0


def new_name(folder: Path) -> Path:
    """For a result: nobody can guess it."""
    return folder / f"{uuid.uuid4().hex}.mp4"
