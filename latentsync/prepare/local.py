"""Preparing on this machine, in this process or in several. A worker that dies loses nothing."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from ..batch.parallel.dispatch import map_calls
from ..batch.parallel.processes import InProcessPool, ProcessPool
from ..batch.parallel.worker import BaseWorker, Call
from .steps import Outcome
from .worker import Worker, finished_outcome
from .workspace import Item, Kind, Plan, Workspace

RETRIES = 1
"""Of an item whose process died; a second death is taken to be the item's fault."""

BuildWorker = Callable[[Plan, Kind], Worker]


@dataclass(frozen=True)
class WorkerSpec:
    """What a process needs to build its worker."""

    plan: Plan
    kind: Kind
    build: BuildWorker = Worker


class PrepareWorker(BaseWorker):
    worker: Worker | None = None

    def setup(self) -> None:
        self.worker = self.worker or self.spec.build(self.spec.plan, self.spec.kind)

    def take(self, item: Item) -> Outcome:
        assert self.worker
        return self.worker.run(item)

    def close(self) -> None:
        if self.worker:
            self.worker.close()


def run_local(
    plan: Plan, kind: Kind, items: Sequence[Item], workers: int, build: BuildWorker = Worker
) -> Iterator[Outcome]:
    """Yields outcomes as they come, first those of earlier runs. workers: processes; 1 works in this one.

    build: makes the worker of each process. UserError: a worker cannot load its models.
    """
    remaining: list[Item] = []
    with closing(Workspace(plan)) as workspace:
        for item in items:
            finished = finished_outcome(workspace, kind, item)
            if finished is None:
                remaining.append(item)
            else:
                yield finished
    spec, size = WorkerSpec(plan, kind, build), min(workers, len(remaining))
    with closing(InProcessPool(spec, PrepareWorker) if size <= 1 else ProcessPool(spec, size, PrepareWorker)) as pool:
        calls = [Call("take", (item,)) for item in remaining]
        for pending, outcome in map_calls(calls, pool, retries=RETRIES):
            failed = Outcome(remaining[pending.index], error=outcome.error, traceback=outcome.traceback or None)
            yield outcome.value if outcome.status == "done" else failed
