"""The work on this machine: in this process, or in several. A worker that dies loses nothing."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from ..batch.parallel.dispatch import map_calls
from ..batch.parallel.processes import InProcessPool, ProcessPool
from ..batch.parallel.worker import BaseWorker, Call
from .steps import Item, Outcome
from .worker import Plan, Shop, Worker, settled

RETRIES = 1
"""Of an item whose process died: the second death is the item's own fault, not the machine's."""


@dataclass(frozen=True)
class Start:
    """What a process is told; build makes its worker."""

    plan: Plan
    kind: str
    build: Callable[[Plan, str], Worker] = Worker


class Preparer(BaseWorker):
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
    plan: Plan, kind: str, items: Sequence[Item], workers: int, build: Callable[[Plan, str], Worker] = Worker
) -> Iterator[Outcome]:
    """Outcomes as they come, first those of earlier runs. workers: processes; 1 works in this one.

    build: makes the worker of each. UserError where a worker cannot load its models.
    """
    left: list[Item] = []
    with closing(Shop(plan)) as shop:
        for item in items:
            before = settled(shop, kind, item)
            if before is None:
                left.append(item)
            else:
                yield before
    start, size = Start(plan, kind, build), min(workers, len(left))
    with closing(InProcessPool(start, Preparer) if size <= 1 else ProcessPool(start, size, Preparer)) as pool:
        for pending, outcome in map_calls([Call("take", (item,)) for item in left], pool, retries=RETRIES):
            failed = Outcome(left[pending.index], error=outcome.error)
            yield outcome.value if outcome.status == "done" else failed
