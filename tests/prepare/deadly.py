"""Workers that kill their process or have a bug. Few imports: each process does them anew."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace

from latentsync.prepare import clip_steps, source_steps
from latentsync.prepare.local import run_local
from latentsync.prepare.steps import Outcome, StepData
from latentsync.prepare.worker import Worker
from latentsync.prepare.workspace import Item, Kind, Plan, Workspace


class Deadly(Worker):
    """Dies at every clip of a source whose path says so; at others once, where the file `once` lies in the folder."""

    def run(self, item: Item) -> Outcome:
        once = self.workspace.out / "once"
        if item.source.startswith("b/x") or once.exists():
            once.unlink(missing_ok=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(item)


def deadly(workers: int) -> Callable:
    def execute(plan: Plan, kind: Kind, items):
        if kind == "source":
            return run_local(plan, kind, items, 1)
        return run_local(plan, kind, items, workers, build=Deadly)

    return execute


class Buggy(Worker):
    """Has a bug that shows in one step of y.mp4."""

    def run(self, item: Item) -> Outcome:
        def bug(workspace: Workspace, item: Item, data: StepData) -> StepData:
            raise TypeError("wrong")

        module = {"source": source_steps, "clip": clip_steps}[self.kind]
        steps = module.STEPS
        module.STEPS = (replace(steps[0], run=bug), *steps[1:]) if item.source == "y.mp4" else steps
        try:
            return super().run(item)
        finally:
            module.STEPS = steps


def buggy(kind: Kind, workers: int) -> Callable:
    return lambda plan, current, items: run_local(plan, current, items, workers, Buggy if current == kind else Worker)
