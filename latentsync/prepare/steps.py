"""Running steps one after another over an item; each is written down when it is done, so a later run goes on there."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError
from .io import read_json, write_json
from .workspace import Item, Workspace

VERSION = 2
"""Raise it when a step changes what it does: results of older versions are then made anew."""

StepData = dict[str, Any]
"""What steps have measured, by name."""


class Rejected(Exception):
    """The item ends here. reason: one of report.REASONS. detail: a sentence. data: what was measured before."""

    def __init__(self, reason: str, detail: str, **data: Any) -> None:
        super().__init__(detail)
        self.reason, self.detail, self.data = reason, detail, data


@dataclass(frozen=True)
class Step:
    """run gets the data of the steps before it and returns its own. damaged: the reason if its input cannot be used.

    options: what its result depends on besides those. files: what it writes for later steps. skipped: runs instead of
    `run` where the user skips the step.
    """

    name: str
    run: Callable[[Workspace, Item, StepData], StepData]
    damaged: str
    options: Callable[[Workspace, Item], Any] = lambda workspace, item: None
    files: Callable[[Workspace, Item], tuple[Path, ...]] = lambda workspace, item: ()
    skipped: Callable[[Workspace, Item, StepData], StepData] = lambda workspace, item, data: {}


@dataclass
class Outcome:
    """What became of an item. steps: name, key, data and rejected ([reason, detail] or None) of each finished step.

    timings: seconds of the steps that ran now. error: why a step could not be finished; the next run tries it again.
    traceback: of that error. fatal: why the whole run must end.
    """

    item: Item
    steps: list[dict[str, Any]] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    traceback: str | None = None
    fatal: str | None = None

    @property
    def data(self) -> StepData:
        return {key: value for step in self.steps for key, value in step["data"].items()}

    @property
    def rejected(self) -> tuple[str, str, str] | None:
        """(step, reason, detail)."""
        last = self.steps[-1] if self.steps else None
        return (last["step"], *last["rejected"]) if last and last["rejected"] else None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Outcome":
        fields = json.loads(text)
        return cls(**fields | {"item": Item(**fields["item"])})


def run_steps(steps: Sequence[Step], workspace: Workspace, item: Item, state: Path) -> Outcome:
    """Run the steps that the file `state` does not hold, or holds with another key."""
    outcome, remaining = resume_state(steps, workspace, item, state)
    for step, key in remaining:
        start = time.perf_counter()
        run = step.skipped if step.name in workspace.settings.skip else step.run
        data: StepData = {}
        rejected = None
        try:
            data = run(workspace, item, outcome.data)
        except Rejected as error:
            data, rejected = error.data, [error.reason, error.detail]
        except UserError as error:  # raised by the engine for a damaged file
            rejected = [step.damaged, str(error).replace(str(workspace.path(item)), item.source)]
        outcome.timings[step.name] = time.perf_counter() - start
        outcome.steps.append({"step": step.name, "key": key, "data": data, "rejected": rejected})
        write_json(state, outcome.steps)
        if rejected:
            break
    return outcome


def resume_state(
    steps: Sequence[Step], workspace: Workspace, item: Item, state: Path
) -> tuple[Outcome, Sequence[tuple[Step, str]]]:
    """The outcome so far, from the file `state`, and the remaining steps with their keys.

    A step's key is a hash of its options and of all that came before. A finished step counts if its key is the same
    and, unless the item was rejected, its files are there.
    """
    keys, key = [], item.key
    for step in steps:
        options = "skipped" if step.name in workspace.settings.skip else step.options(workspace, item)
        key = hashlib.sha256(json.dumps([VERSION, key, step.name, options]).encode()).hexdigest()[:16]
        keys.append(key)
    done: list[dict[str, Any]] = []
    stored = read_json(state)
    for finished, step, key in zip(stored if isinstance(stored, list) else [], steps, keys, strict=False):
        if not _is_finished(finished) or (finished["step"], finished["key"]) != (step.name, key):
            break
        done.append(finished)
    if done and done[-1]["rejected"]:
        return Outcome(item, done), ()
    for number, step in enumerate(steps[: len(done)]):
        skipped = step.name in workspace.settings.skip
        if not skipped and not all(path.is_file() for path in step.files(workspace, item)):
            done = done[:number]
            break
    return Outcome(item, done), list(zip(steps, keys, strict=True))[len(done) :]


def _is_finished(content: Any) -> bool:
    """Whether it is a step as run_steps writes it down; others, in a damaged file, run again."""
    if not isinstance(content, dict) or not isinstance(content.get("data"), dict):
        return False
    rejected = content.get("rejected", "")
    is_reason = isinstance(rejected, list) and len(rejected) == 2 and all(isinstance(text, str) for text in rejected)
    return {"step", "key"} <= set(content) and (rejected is None or is_reason)
