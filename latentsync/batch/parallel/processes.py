"""Pools of workers on this machine, and the hand-out of calls with retries. ray_batch.py has Ray's pool."""

import pickle
import platform
import shutil
import signal
import sys
import tempfile
from _thread import interrupt_main
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, Protocol

from ..worker import Call, Hand, Outcome, SetupError, Worker

if TYPE_CHECKING:
    from ..segments import Plan

GRACE = 10.0
"""Seconds that a worker gets to clean up after itself before it is killed."""
QUEUED = 2
"""Calls given to a worker at a time when they are short: the second waits while the first is computed."""

Make = Callable[[Any], Hand]
"""Makes a worker of what it is told, in its own process. Workers hold models by the name of ModelSpec."""


class Pool(Protocol):
    """size workers. A call is started on one of them and comes back, by its ticket, from wait()."""

    size: int

    def share(self, thing: "Plan") -> Any:
        """What stands for the thing in the arguments of many calls."""

    def unshare(self, handle: Any) -> None: ...

    def start(self, call: Call, depth: int) -> int | None:
        """A ticket, or None while every worker has `depth` calls."""

    def wait(self) -> list[tuple[int, Outcome]]:
        """At least one outcome; a call that was lost with its worker, though only waiting, comes back as "lost"."""
        ...

    def drop(self) -> None:
        """Give up all calls that were started; returns when none of them runs any more."""

    def close(self) -> None: ...


@dataclass
class Handed:
    """A call on its way; tries counts workers that died of it."""

    number: int
    call: Call
    tries: int = 1


def spread(
    calls: Iterable[Call], pool: Pool, *, retries: int = 2, ordered: bool = False
) -> Iterator[tuple[Handed, Outcome]]:
    """Hand calls to the workers and yield what became of each, as they end or in their order.

    A call whose worker dies is given to another, `retries` times. Ordered: at most QUEUED * size + 1 outcomes are held,
    whatever the number of calls. A worker that cannot load the models ends it all: SetupError. Calls that still run
    when the caller stops listening are given up, and their unfinished files removed.
    """
    return _Spread(calls, pool, retries, ordered).run()


@dataclass
class _Spread:
    calls: Iterable[Call]
    pool: Pool
    retries: int
    ordered: bool
    again: deque[Handed] = field(default_factory=deque)
    running: dict[int, Handed] = field(default_factory=dict)
    ready: dict[int, tuple[Handed, Outcome]] = field(default_factory=dict)
    due: int = 0

    def run(self) -> Iterator[tuple[Handed, Outcome]]:
        fresh = (Handed(number, call) for number, call in enumerate(self.calls))
        try:
            while True:
                self._fill(fresh)
                if not self.running:
                    return
                for ticket, outcome in self.pool.wait():
                    self._sort_in(self.running.pop(ticket), outcome)
                yield from self._told()
        finally:
            if self.running:
                self.pool.drop()
            for handed in self.running.values():
                remove_unfinished(handed.call)

    def _fill(self, fresh: Iterator[Handed]) -> None:
        depth = QUEUED if self.ordered else 1
        while handed := self._next(fresh):
            ticket = self.pool.start(handed.call, depth)
            if ticket is None:
                self.again.appendleft(handed)
                return
            self.running[ticket] = handed

    def _next(self, fresh: Iterator[Handed]) -> Handed | None:
        if self.again:
            return self.again.popleft()
        held = len(self.running) + len(self.ready)
        return None if self.ordered and held > QUEUED * self.pool.size else next(fresh, None)

    def _sort_in(self, handed: Handed, outcome: Outcome) -> None:
        if outcome.status == "setup":
            raise SetupError(f"A worker ({outcome.place}) could not load the models: {outcome.error}")
        if outcome.status in ("died", "lost"):
            remove_unfinished(handed.call)
            if outcome.status == "lost" or handed.tries <= self.retries:
                handed.tries += outcome.status == "died"
                self.again.append(handed)
                return
            said = f"its worker died {handed.tries} times ({outcome.error}); see whether it runs out of memory."
            outcome = Outcome("failed", error=said, place=outcome.place)
        self.ready[handed.number] = (handed, outcome)

    def _told(self) -> Iterator[tuple[Handed, Outcome]]:
        if not self.ordered:
            while self.ready:
                yield self.ready.pop(next(iter(self.ready)))
        while self.due in self.ready:
            self.due += 1
            yield self.ready.pop(self.due - 1)


def remove_unfinished(call: Call) -> None:
    """The hidden file of a worker that could not remove it itself."""
    if call.leaves is not None:
        from ...media.writer import partial_path

        with suppress(OSError):
            partial_path(call.leaves).unlink(missing_ok=True)


class Here:
    """A pool of one: this process. Calls run while they are waited for; Ctrl-C ends them."""

    size = 1

    def __init__(self, spec: Any, make: Make = Worker) -> None:
        self._worker = make(spec)
        self._given: deque[tuple[int, Call]] = deque()
        self._tickets = 0

    def share(self, thing: "Plan") -> "Plan":
        return thing

    def unshare(self, handle: Any) -> None:
        self._worker.forget()

    def start(self, call: Call, depth: int) -> int | None:
        if self._given:
            return None
        self._tickets += 1
        self._given.append((self._tickets, call))
        return self._tickets

    def wait(self) -> list[tuple[int, Outcome]]:
        ticket, call = self._given.popleft()
        return [(ticket, self._worker.call(ticket, call.method, *call.args))]

    def drop(self) -> None:
        self._given.clear()

    def close(self) -> None:
        self._worker.close()


class Processes:
    """A pool of processes on this machine; one that dies is replaced."""

    def __init__(self, spec: Any, size: int, make: Make = Worker) -> None:
        self.size, self._spec, self._make = size, spec, make
        self._children: list[_Child | None] = [None] * size
        self._folder = Path(tempfile.mkdtemp(prefix="latentsync-"))
        self._tickets = 0

    def share(self, thing: "Plan") -> Path:
        path = self._folder / f"{thing.key}.plan"
        path.write_bytes(pickle.dumps(thing, protocol=5))
        return path

    def unshare(self, handle: Path) -> None:
        handle.unlink(missing_ok=True)

    def start(self, call: Call, depth: int) -> int | None:
        number = min(range(self.size), key=lambda i: len(child.calls) if (child := self._children[i]) else 0)
        child = self._children[number]
        if child is not None and len(child.calls) >= depth:
            return None
        if child is None:
            child = self._children[number] = _Child(self._spec, self._make)
        self._tickets += 1
        child.send(self._tickets, call)
        return self._tickets

    def wait(self) -> list[tuple[int, Outcome]]:
        while True:
            heard = wait_for([child.pipe for child in self._children if child and child.calls])
            told = [
                outcome for child in self._children if child and child.pipe in heard for outcome in self._hear(child)
            ]
            if told:
                return told

    def _hear(self, child: "_Child") -> list[tuple[int, Outcome]]:
        try:
            ticket, outcome = child.pipe.recv()
            child.calls.remove(ticket)
            return [(ticket, outcome)]
        except (EOFError, OSError):
            self._children[self._children.index(child)] = None
            child.end()
            said = f"exit code {child.process.exitcode}"
            return [
                (t, Outcome("lost" if i else "died", error=said, place=child.place)) for i, t in enumerate(child.calls)
            ]

    def drop(self) -> None:
        busy = [child for child in self._children if child and child.calls]
        self._children = [None if child in busy else child for child in self._children]
        for child in busy:
            child.process.terminate()
        for child in busy:
            child.end()

    def close(self) -> None:
        for child in filter(None, self._children):
            child.process.terminate()
        for child in filter(None, self._children):
            child.end()
        self._children = [None] * self.size
        shutil.rmtree(self._folder, ignore_errors=True)


class _Child:
    """One process of the pool, and the tickets of the calls that it has, oldest first."""

    def __init__(self, spec: Any, make: Make) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, spec, make), daemon=True)
        self.process.start()
        theirs.close()
        self.calls: list[int] = []

    @property
    def place(self) -> str:
        return f"{platform.node()}:{self.process.pid}"

    def send(self, ticket: int, call: Call) -> None:
        self.calls.append(ticket)
        with suppress(OSError):  # it is dead: wait() will hear of it
            self.pipe.send((ticket, call.method, call.args))

    def end(self) -> None:
        self.process.join(GRACE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()


def _serve(pipe: Any, spec: Any, make: Make) -> None:
    """The life of a process. Ctrl-C reaches the whole group: the parent decides, and terminates, which cleans up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    given: SimpleQueue[Any] = SimpleQueue()
    Thread(target=_receive, args=(pipe, given), daemon=True).start()
    with closing(make(spec)) as worker:
        while (handed := given.get()) is not None:
            ticket, method, args = handed
            with suppress(OSError):  # nobody listens: _receive ends it
                pipe.send((ticket, worker.call(ticket, method, *args)))


def _receive(pipe: Any, given: "SimpleQueue[Any]") -> None:
    """Calls wait here, so that who sends them never does; a parent that is gone, however it died, ends the work."""
    try:
        with suppress(EOFError, OSError):
            while True:
                given.put(pipe.recv())
    finally:
        given.put(None)
        interrupt_main(signal.SIGTERM)
