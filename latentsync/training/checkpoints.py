"""What keeps a run alive: checkpoints that are whole or absent, and a guard against numbers that are none."""

import json
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ..errors import UserError

Verdict = Literal["step", "skip", "roll back", "give up"]

CHECKPOINTS = "checkpoints"
STATE = "trainer.pt"
BEST = "best.json"
SHARDS = "sharded"
"""Folder in a checkpoint: what each of several processes holds alone."""
MOST_ROLLBACKS = 3
"""To the same checkpoint, one after the other; then the run ends."""


@dataclass
class Guard:
    """Decides about each step from whether its loss and gradients are numbers, the same in every process.

    patience: steps in a row that are skipped before the run goes back to its last checkpoint.
    """

    patience: int
    bad: int = 0
    rollbacks: int = 0
    skipped: int = 0

    def judge(self, finite: bool) -> Verdict:
        if finite:
            self.bad = 0
            return "step"
        self.bad += 1
        self.skipped += 1
        if self.bad < self.patience:
            return "skip"
        self.bad = 0
        self.rollbacks += 1
        return "give up" if self.rollbacks > MOST_ROLLBACKS else "roll back"

    def saved(self) -> None:
        """A new checkpoint: the troubles before it are past."""
        self.rollbacks = 0

    @property
    def calm(self) -> bool:
        """Whether the weights can be trusted now: no checkpoint is made in the middle of trouble."""
        return self.bad == 0


class Checkpoints:
    """The folders step-00001000, … of a run, each complete or not there."""

    def __init__(self, run: Path, keep: int) -> None:
        self.folder, self.keep = run / CHECKPOINTS, keep

    def place(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    @property
    def shards(self) -> Path:
        """Where processes put them before there is a checkpoint to hold them."""
        return self.folder / f".{SHARDS}.part"

    def steps(self) -> list[int]:
        """Ascending."""
        names = (p.name.removeprefix("step-") for p in self.folder.glob("step-*"))
        return sorted(int(name) for name in names if name.isdigit())

    def latest(self) -> int | None:
        steps = self.steps()
        return steps[-1] if steps else None

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """write fills a hidden folder, which gets its name when all is on the disk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / f".{uuid.uuid4().hex}.part"
        target = self.place(step)
        try:
            part.mkdir()
            write(part)
            _sync(part)
            if target.exists():  # after a rollback the same step comes again
                shutil.rmtree(target)
            part.rename(target)
        except OSError as error:
            raise UserError(f"{target} cannot be written ({error.strerror or error}); make room there.") from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return target

    def prune(self) -> None:
        """Keep the newest and the best; also remove what killed runs left half-written."""
        spared = {*self.steps()[-self.keep :], self.best()}
        for step in self.steps():
            if step not in spared:
                shutil.rmtree(self.place(step))
        for part in self.folder.glob(".*.part"):
            shutil.rmtree(part, ignore_errors=True)

    def best(self) -> int | None:
        """The step with the best validation."""
        path = self.folder / BEST
        return int(json.loads(path.read_text())["step"]) if path.is_file() else None

    def set_best(self, step: int, value: float) -> None:
        path = self.folder / BEST
        part = path.with_name(f".{uuid.uuid4().hex}.json")
        part.write_text(json.dumps({"step": step, "validation": value}))
        part.replace(path)

    def drop_after(self, step: int) -> None:
        """Forget what came after: the run goes back to this step."""
        for later in self.steps():
            if later > step:
                shutil.rmtree(self.place(later))


def _sync(folder: Path) -> None:
    """A computer that loses power must not leave a checkpoint with a name and without contents."""
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDWR)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def save_state(folder: Path, **parts: Any) -> None:
    torch.save(parts, folder / STATE)


def load_state(folder: Path) -> dict[str, Any]:
    path = folder / STATE
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError as error:
        raise UserError(f"{folder} has no {STATE}, so a run cannot go on from it; start one with --init.") from error
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UserError(f"{path} is damaged; remove {folder} to go on from the checkpoint before.") from error


@dataclass
class Patience:
    """The stop rule: the run ends after so many validations without a better one; 0 never ends it."""

    validations: int
    best: float = float("inf")
    since: int = 0

    def better(self, value: float) -> bool:
        self.since = 0 if value < self.best else self.since + 1
        improved = value < self.best
        self.best = min(self.best, value)
        return improved

    @property
    def exhausted(self) -> bool:
        return 0 < self.validations <= self.since
