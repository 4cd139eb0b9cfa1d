"""Atomic checkpoints, and skipping or rolling back non-finite steps."""

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
from ..files import atomic_path
from .task import PUBLIC_SUFFIX

Verdict = Literal["step", "skip", "roll back", "give up"]

STATE = "trainer.pt"
BEST = "best.json"
SHARDS = "sharded"
"""Folder in a checkpoint with the shards of each process."""
MAX_ROLLBACKS = 3
"""To the same checkpoint; after that the run ends."""


@dataclass
class StepGuard:
    """Decides whether to take a step, the same in every process. max_bad_steps: skipped in a row before a rollback."""

    max_bad_steps: int
    bad: int = 0
    rollbacks: int = 0
    skipped: int = 0

    def check(self, finite: bool) -> Verdict:
        if finite:
            self.bad = 0
            return "step"
        self.bad += 1
        self.skipped += 1
        if self.bad < self.max_bad_steps:
            return "skip"
        return self.reject()

    def reject(self) -> Verdict:
        """The weights themselves are spoiled: no step from here would be good."""
        self.rollbacks += 1
        if self.rollbacks > MAX_ROLLBACKS:
            self.bad = max(1, self.bad)
            return "give up"
        self.bad = 0
        return "roll back"

    @property
    def stable(self) -> bool:
        """No checkpoint is made right after a skipped step, nor once the run has given up."""
        return self.bad == 0


@dataclass
class EarlyStopping:
    """Stops after `patience` validations without improvement; 0: never."""

    patience: int
    best: float = float("inf")
    since: int = 0

    def improved(self, value: float) -> bool:
        better = value < self.best
        self.best, self.since = (value, 0) if better else (self.best, self.since + 1)
        return better

    @property
    def exhausted(self) -> bool:
        return 0 < self.patience <= self.since


class Checkpoints:
    """The folders step-00001000, … of a run, each complete or absent."""

    def __init__(self, run: Path, keep: int) -> None:
        self.folder, self.keep = run / "checkpoints", keep
        self.shards = self.folder / f".{SHARDS}.part"  # of all processes, before they move into a checkpoint

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Ascending."""
        return sorted(int(path.name[5:]) for path in self.folder.glob("step-*") if path.name[5:].isdigit())

    def latest(self) -> int | None:
        return max(self.steps(), default=None)

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """write fills a temporary folder, which is renamed once everything is on the disk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        part, target = self.folder / f".{uuid.uuid4().hex}.part", self.path(step)
        try:
            part.mkdir()
            write(part)
            for path in filter(Path.is_file, part.rglob("*")):
                with path.open("rb+") as file:  # a power failure must not leave a name without content
                    os.fsync(file)
            if target.exists():  # written before a rollback
                shutil.rmtree(target)
            part.rename(target)
        except OSError as error:
            raise UserError(f"{target} cannot be written ({error.strerror or error}); make room there.") from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return target

    def prune(self) -> None:
        """Keep the newest and the best; remove what killed runs left half-written."""
        kept = {*self.steps()[-self.keep :], self.best()}
        for step in self.steps():
            if step not in kept:
                shutil.rmtree(self.path(step))
        for part in self.folder.glob(".*.part"):
            shutil.rmtree(part, ignore_errors=True)

    def best(self) -> int | None:
        """The step with the best validation."""
        path = self.folder / BEST
        return int(json.loads(path.read_text())["step"]) if path.is_file() else None

    def set_best(self, step: int, value: float) -> None:
        with atomic_path(self.folder / BEST) as part:
            part.write_text(json.dumps({"step": step, "validation": value}))

    def chosen(self) -> int:
        """The step whose weights are the result: the best by validation, else the last."""
        step = self.latest() if self.best() is None else self.best()
        assert step is not None  # a run's first checkpoint is made before its first step
        return step

    def publish(self, name: str, run: Path) -> None:
        """Copy the weight file of the chosen checkpoint into the run's folder."""
        for file in (Path(name), Path(name).with_suffix(PUBLIC_SUFFIX)):
            source = self.path(self.chosen()) / file
            if file.name == name or source.is_file():
                with atomic_path(run / file) as part:
                    shutil.copyfile(source, part)

    def drop_after(self, step: int) -> None:
        for later in self.steps():
            if later > step:
                shutil.rmtree(self.path(later))


def save_state(folder: Path, **parts: Any) -> None:
    torch.save(parts, folder / STATE)


def load_state(folder: Path) -> dict[str, Any]:
    path = folder / STATE
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError as error:
        raise UserError(f"{folder} has no {STATE}, so a run cannot resume from it; start one with --init.") from error
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UserError(f"{path} is damaged; remove {folder} to resume from the checkpoint before it.") from error
