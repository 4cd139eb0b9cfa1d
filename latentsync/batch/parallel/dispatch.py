"""Hand calls to the workers of a pool, with retries."""

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from .worker import Call, Outcome, SetupError

QUEUED = 2  # calls per worker in ordered mode: the second waits while the first runs

_log = logging.getLogger(__name__)


class Pool(Protocol):
    """`size` workers. A call is started on one of them; its outcome comes, by its ticket, from wait()."""

    size: int

    def share(self, value: Any) -> Any:
        """A handle for a large object, to be used in the arguments of many calls."""

    def release(self, handle: Any) -> None: ...

    def start(self, call: Call, depth: int) -> int | None:
        """A ticket, or None while every worker has `depth` calls."""

    def wait(self) -> list[tuple[int, Outcome]]:
        """At least one outcome."""
        ...

    def cancel(self) -> None:
        """Cancel all calls; returns when none runs any more."""

    def close(self) -> None: ...


@dataclass
class PendingCall:
    """A call by its index in the input. attempts: 1 + the number of workers that died in it."""

    index: int
    call: Call
    attempts: int = 1


def map_calls(
    calls: Iterable[Call], pool: Pool, *, retries: int = 2, ordered: bool = False
) -> Iterator[tuple[PendingCall, Outcome]]:
    """Run calls on the workers and yield their outcomes as they end, or in the order of the calls. A call whose worker
    dies is run again up to `retries` times. Ordered: at most QUEUED * size + 1 outcomes are held. SetupError when a
    worker cannot start. Closing the generator cancels what still runs."""
    return _Dispatcher(pool, retries, ordered).run(calls)


@dataclass
class _Dispatcher:
    pool: Pool
    retries: int
    ordered: bool
    again: deque[PendingCall] = field(default_factory=deque)
    running: dict[int, PendingCall] = field(default_factory=dict)
    finished: dict[int, tuple[PendingCall, Outcome]] = field(default_factory=dict)
    next_index: int = 0

    def run(self, calls: Iterable[Call]) -> Iterator[tuple[PendingCall, Outcome]]:
        fresh = (PendingCall(index, call) for index, call in enumerate(calls))
        try:
            while True:
                self._start(fresh)
                if not self.running:
                    return
                for ticket, outcome in self.pool.wait():
                    self._finish(self.running.pop(ticket), outcome)
                yield from self._due()
        finally:
            if self.running:
                self.pool.cancel()

    def _start(self, fresh: Iterator[PendingCall]) -> None:
        depth = QUEUED if self.ordered else 1
        while pending := self._next(fresh):
            ticket = self.pool.start(pending.call, depth)
            if ticket is None:
                self.again.appendleft(pending)
                return
            self.running[ticket] = pending

    def _next(self, fresh: Iterator[PendingCall]) -> PendingCall | None:
        if self.again:
            return self.again.popleft()
        held = len(self.running) + len(self.finished)
        return None if self.ordered and held > QUEUED * self.pool.size else next(fresh, None)

    def _finish(self, pending: PendingCall, outcome: Outcome) -> None:
        if outcome.traceback:
            _log.error("%s failed on %s\n%s", pending.call.method, outcome.place, outcome.traceback)
        if outcome.status == "setup":
            raise SetupError(f"A worker ({outcome.place}) could not load the models: {outcome.error}")
        if outcome.status == "lost" or (outcome.status == "died" and pending.attempts <= self.retries):
            pending.attempts += outcome.status == "died"
            self.again.append(pending)
            return
        if outcome.status == "died":
            error = f"its worker died {pending.attempts} times ({outcome.error}); does it run out of memory?"
            outcome = Outcome("failed", error=error, place=outcome.place)
        self.finished[pending.index] = (pending, outcome)

    def _due(self) -> Iterator[tuple[PendingCall, Outcome]]:
        if not self.ordered:
            while self.finished:
                yield self.finished.pop(next(iter(self.finished)))
        while self.next_index in self.finished:
            self.next_index += 1
            yield self.finished.pop(self.next_index - 1)
