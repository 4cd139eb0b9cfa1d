"""Work that takes its time: one piece after the other, each with its progress, its place in the queue and an end."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from ..errors import UserError

Value = TypeVar("Value")
Tell = Callable[[str, float, float], None]
"""tell(stage, done, total): says how far the work is; raises CancelledError where nobody wants it any more."""

WAITING, RUNNING, DONE, FAILED, CANCELLED = "waiting", "running", "done", "failed", "cancelled"
ENDED = (DONE, FAILED, CANCELLED)


class CancelledError(Exception):
    """Somebody asked for the work to stop."""


class Job(Generic[Value]):
    """One piece of work. state: one of the five above. value: what it made; error: a sentence when it failed.

    stage, done, total: how far it is. elsewhere: runs that are before it on another machine's queue.
    """

    def __init__(self, work: Callable[["Job[Value]"], Value]) -> None:
        self._work = work
        self._stop = threading.Event()
        self.state, self.error = WAITING, ""
        self.stage, self.done, self.total, self.elsewhere = "", 0.0, 0.0, 0
        self.value: Value | None = None
        self._stage_since = self._began = self._ended = time.monotonic()

    @property
    def over(self) -> bool:
        return self.state in ENDED

    @property
    def stopping(self) -> bool:
        """It was told to stop, and may not have heard it yet."""
        return self._stop.is_set()

    @property
    def busy(self) -> bool:
        """It works or will work; one that waits and was told to stop never begins."""
        return self.state == RUNNING or (self.state == WAITING and not self.stopping)

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return (self._ended if self.over else time.monotonic()) - self._began

    @property
    def left(self) -> float | None:
        """Seconds until the stage ends, if it goes on as it did; None while that cannot be told."""
        spent = time.monotonic() - self._stage_since
        return spent * (self.total - self.done) / self.done if 0 < self.done < self.total else None

    def tell(self, stage: str, done: float = 0, total: float = 0) -> None:
        if self._stop.is_set():
            raise CancelledError
        if stage != self.stage:
            self._stage_since = time.monotonic()
        self.stage, self.done, self.total, self.elsewhere = stage, done, total, 0

    def cancel(self) -> None:
        """Ends at its next word, or at once while it waits."""
        self._stop.set()

    def run(self) -> None:
        """Does the work; whatever happens ends up in state, value and error."""
        self._began = self._stage_since = time.monotonic()
        self.state = RUNNING
        try:
            self.tell("")
            self.value = self._work(self)
            self._end(DONE)
        except CancelledError:
            self._end(CANCELLED)
        except UserError as error:
            self._end(FAILED, str(error))
        except Exception:  # whatever it is, the next visitor's work must go on
            logging.getLogger(__name__).exception("A run failed")
            self._end(FAILED, "Something went wrong that should not; the app's own log says more.")

    def _end(self, state: str, error: str = "") -> None:
        self._ended = time.monotonic()
        self.error = error
        self.state = state


class Queue:
    """Jobs in the order of their coming, `lanes` at a time. room: how many may wait."""

    def __init__(self, lanes: int = 1, room: int = 20) -> None:
        self._lanes, self._room = lanes, room
        self._waiting: deque[Job[Any]] = deque()
        self._running: list[Job[Any]] = []
        self._threads: list[threading.Thread] = []
        self._change = threading.Condition()
        self._closed = False

    def submit(self, work: Callable[[Job[Value]], Value]) -> Job[Value]:
        """UserError when as many wait as may."""
        job = Job(work)
        with self._change:
            self._forget_cancelled()
            if self._closed or len(self._waiting) >= self._room:
                raise UserError(f"{len(self._waiting)} runs are waiting already; try again in some minutes.")
            self._waiting.append(job)
            if len(self._threads) < self._lanes:
                self._threads.append(threading.Thread(target=self._serve, name="latentsync run", daemon=True))
                self._threads[-1].start()
            self._change.notify()
        return job

    def ahead(self, job: Job[Any]) -> int:
        """How many runs come before this one; 0 when it runs or has ended."""
        with self._change:
            self._forget_cancelled()
            if job not in self._waiting:
                return 0
            return len(self._running) + self._waiting.index(job)

    def close(self, patience: float = 10.0) -> None:
        """Stops everything, and waits so many seconds for it."""
        with self._change:
            self._closed = True
            for job in (*self._waiting, *self._running):
                job.cancel()
            self._change.notify_all()
        for thread in self._threads:
            thread.join(patience)

    def _forget_cancelled(self) -> None:
        for job in [job for job in self._waiting if job.stopping]:
            self._waiting.remove(job)
            job.run()  # which ends at once: it was told to stop

    def _serve(self) -> None:
        while (job := self._next()) is not None:
            try:
                job.run()
            finally:
                with self._change:
                    self._running.remove(job)

    def _next(self) -> Job[Any] | None:
        with self._change:
            self._change.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return None
            job = self._waiting.popleft()
            self._running.append(job)
            return job
