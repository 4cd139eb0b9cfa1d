"""The work on this machine: in this process, or in several. A worker that dies loses nothing."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial

from .chain import Item, Outcome
from .worker import Plan, Worker

AHEAD = 2
"""Items handed out for each worker: one in work, one waiting."""
DIED = "The process that worked on it died (out of memory, or killed)."

INTERRUPTED = 130

_worker: Worker | None = None
_failed = ""
_busy = False


Build = Callable[[Plan, str], Worker]


def run_local(plan: Plan, kind: str, items: Sequence[Item], workers: int, build: Build = Worker) -> Iterator[Outcome]:
    """Outcomes as they come. workers: processes; 1 works in this one. build: makes the worker of each process."""
    if not items:
        return
    if workers <= 1:
        yield from _inline(build(plan, kind), items)
        return
    doubtful: list[Item] = []
    yield from _pooled(partial(_start, build, plan, kind), items, min(workers, len(items)), doubtful)
    for item in doubtful:  # in work when a process died: whose fault it was shows when each is alone
        dead: list[Item] = []
        yield from _pooled(partial(_start, build, plan, kind), [item], 1, dead)
        yield from (Outcome(gone, error=DIED) for gone in dead)


def _inline(worker: Worker, items: Iterable[Item]) -> Iterator[Outcome]:
    try:
        for item in items:
            yield worker.run(item)
    finally:
        worker.close()


def _pooled(start: Callable[[], None], items: Sequence[Item], workers: int, doubtful: list[Item]) -> Iterator[Outcome]:
    """Those that were handed out when a process died are added to doubtful; the rest goes on in a new pool."""
    left = deque(items)
    while left:
        running: dict[Future[Outcome], Item] = {}
        # spawned, not forked: MediaPipe and PyAV have threads of their own
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=start)
        try:
            while left or running:
                while left and len(running) < AHEAD * workers:
                    running[pool.submit(_run, left[0])] = left[0]
                    left.popleft()
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    outcome = future.result()
                    del running[future]
                    yield outcome
        except BrokenProcessPool:
            done = [f for f in running if f.done() and f.exception() is None]
            yield from (f.result() for f in done)
            doubtful += [item for future, item in running.items() if future not in done]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start(build: Build, plan: Plan, kind: str) -> None:
    global _worker, _failed
    signal.signal(signal.SIGINT, _interrupted)
    try:
        _worker = build(plan, kind)
    except Exception as error:  # raised here it would look as if the process had been killed
        _failed = f"A worker process could not start ({type(error).__name__}: {error})."


def _run(item: Item) -> Outcome:
    global _busy
    if _worker is None:
        return Outcome(item, stop=_failed)
    _busy = True
    try:
        return _worker.run(item)
    except KeyboardInterrupt:  # Ctrl-C reaches every process; the first one speaks for all
        os._exit(INTERRUPTED)
    finally:
        _busy = False


def _interrupted(*_: object) -> None:
    """In the middle of an item partial files are to be cleared away first."""
    if _busy:
        raise KeyboardInterrupt
    os._exit(INTERRUPTED)
