"""The engine's training inside ComfyUI: memory, gradients, progress and Cancel; and where a model of a person goes."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management as memory
import folder_paths
import torch

from ...latentsync.errors import UnfinishedError, UserError
from ...latentsync.weights.files import our_metadata, read_tensors, write_safetensors
from ...latentsync.weights.registry import is_registered, searching
from .files import LONGEST_PREFIX, search_folders
from .loras import FOLDER
from .models import checkpoint_path
from .progress import Stages

WORK = "latentsync"
"""Folder inside output for pages, and for what an unfinished training has; in output/loras ComfyUI would offer that."""
REQUEST = "request"
"""Metadata of a model of a person: what it was made of, so that the same graph does not train it again."""


class TrainingReport:
    """Takes what the engine tells of its training, for one node. Cancel raises at once while the clips are read; from
    the first step on the engine is asked to stop, so that it saves what it has."""

    def __init__(self, stages: Stages) -> None:
        self.stages = stages
        self.training = self.cancelled = False

    def __call__(self, line: str) -> None:
        logging.getLogger("latentsync").info("LatentSync: %s", line)
        self.stages.say(line)

    def draw(self, share: float, text: str) -> None:
        try:
            self.stages.draw(share, text)
        except memory.InterruptProcessingException:
            if not self.training:
                raise
            self.cancelled = True

    def should_stop(self) -> bool:
        self.training = True
        self.cancelled = self.cancelled or memory.processing_interrupted()
        return self.cancelled


@contextmanager
def training(stages: Stages) -> Iterator[TrainingReport]:
    """Around training: nothing of ComfyUI's on the card, gradients, which nodes are run without, and models found where
    ComfyUI keeps them. Global random numbers are as before afterwards."""
    report = TrainingReport(stages)
    memory.unload_all_models()
    memory.soft_empty_cache()
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.random.fork_rng(devices=[]),
            searching(search_folders()),
        ):
            yield report
    except UnfinishedError as error:
        if not report.cancelled:
            raise
        raise memory.InterruptProcessingException from error
    finally:
        memory.soft_empty_cache()


def training_device() -> str:
    """ComfyUI's own."""
    return str(memory.get_torch_device())


def training_checkpoint(name: str) -> tuple[str, Path]:
    """What the engine calls a checkpoint of the list, a known name or a file; and its file."""
    path = checkpoint_path(name)
    return (name if is_registered(name) else str(path)), path


@dataclass(frozen=True)
class PersonalFiles:
    """lora: where ComfyUI's lists find it. work: its name while it is trained, beside the page."""

    lora: Path
    work: Path

    @classmethod
    def of(cls, name: str) -> "PersonalFiles":
        """UserError for a name that is none. Folders are made."""
        plain = name.strip().removesuffix(".safetensors")
        odd = set(plain) & set('/\\:*?"<>|') or plain.startswith(".") or not plain.isprintable()
        if odd or not plain or len(plain.encode(errors="replace")) > LONGEST_PREFIX:
            raise UserError(
                f"name is {name[:40]!r}; give a file name of 1 to {LONGEST_PREFIX} plain characters, without folders."
            )
        output = Path(folder_paths.get_output_directory())
        for folder in (FOLDER, WORK):
            (output / folder).mkdir(parents=True, exist_ok=True)
        return cls(output / FOLDER / f"{plain}.safetensors", output / WORK / f"{plain}.safetensors")

    @property
    def page(self) -> Path:
        return self.work.with_suffix(".html")

    def is_made(self, request: str) -> bool:
        """Whether the LoRA is there and of this very request. UserError where the name is another file's."""
        known = folder_paths.get_full_path(FOLDER, self.lora.name)
        if known is None:
            return False
        if Path(known).resolve() != self.lora.resolve() or our_metadata(self.lora).get(REQUEST) != request:
            raise UserError(
                f"There is a LoRA {known} already, made of something else; give another name, or remove that file."
            )
        return True

    def keep(self, request: str) -> None:
        """The finished LoRA to where it is found."""
        write_safetensors(self.lora, read_tensors(self.work), our_metadata(self.work) | {REQUEST: request})
        self.work.unlink()
