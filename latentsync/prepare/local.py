"""The work on this machine: in this process, or in several. A worker that dies loses nothing."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from ..batch.parallel.processes import Here, Processes, spread
from ..batch.worker import Call, Hand
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


class Preparer(Hand):
    worker: Worker | None = None

    def ready(self) -> None:
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
    with closing(Here(start, Preparer) if size <= 1 else Processes(start, size, Preparer)) as pool:
        for handed, outcome in spread([Call("take", (item,)) for item in left], pool, retries=RETRIES):
            failed = Outcome(left[handed.number], error=outcome.error)
            yield outcome.value if outcome.status == "done" else failed
