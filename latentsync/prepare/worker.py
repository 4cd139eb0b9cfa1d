"""The worker of one process: items in, outcomes out. Local pools and Ray Data run it."""

import errno
import json
import traceback
from contextlib import suppress

from . import clip_steps, source_steps
from .steps import Outcome, Step, resume_state, run_steps
from .workspace import Item, Kind, Plan, Workspace

DISK_ERRORS = {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EMFILE}


class Worker:
    def __init__(self, plan: Plan, kind: Kind) -> None:
        if plan.threads:
            import cv2
            import torch

            cv2.setNumThreads(plan.threads)
            torch.set_num_threads(plan.threads)
        self.workspace = Workspace(plan)
        self.kind: Kind = kind
        self.workspace.load(kind)

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        """Rows {"json": …} of Ray Data: an item to its outcome."""
        return {"json": self.run(Item(**json.loads(row["json"]))).to_json()}

    def run(self, item: Item) -> Outcome:
        try:
            outcome = run_steps(steps_of(self.kind), self.workspace, item, self.workspace.state(self.kind, item))
            return remove_clip(self.workspace, self.kind, outcome)
        except Exception as error:  # a bug, or a file that vanished: the other items go on, and the run reports it
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                fatal = f"{self.workspace.out} cannot be written ({error.strerror}); make room and run again."
                return Outcome(item, fatal=fatal)
            return Outcome(item, error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())

    def close(self) -> None:
        self.workspace.close()


def steps_of(kind: Kind) -> tuple[Step, ...]:
    return source_steps.STEPS if kind == "source" else clip_steps.STEPS


def finished_outcome(workspace: Workspace, kind: Kind, item: Item) -> Outcome | None:
    """The outcome of an earlier run; None if a step is left to do."""
    with suppress(OSError):
        outcome, remaining = resume_state(steps_of(kind), workspace, item, workspace.state(kind, item))
        return None if remaining else remove_clip(workspace, kind, outcome)
    return None


def remove_clip(workspace: Workspace, kind: Kind, outcome: Outcome) -> Outcome:
    """Remove the files of a clip that was rejected."""
    if outcome.rejected and kind == "clip":
        clip = workspace.clip(outcome.item)
        for path in (clip, clip.with_suffix(".npz")):
            path.unlink(missing_ok=True)
    return outcome
