"""A queue of jobs that run in threads, with progress, cancelling and their place in the queue."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from ..errors import UserError
from .words import count

Value = TypeVar("Value")
ReportFn = Callable[[str, float, float], None]
"""report(stage, done, total); raises CancelledError when the job is no longer wanted."""

WAITING, RUNNING, DONE, FAILED, CANCELLED = "waiting", "running", "done", "failed", "cancelled"

_log = logging.getLogger(__name__)


class CancelledError(Exception):
    """The job was asked to stop."""


class Job(Generic[Value]):
    """state: one of the five above. value: its result; error: a sentence when it failed. stage, done, total: its
    progress. remote_ahead: runs before it in the queue of another machine."""

    def __init__(self, work: Callable[["Job[Value]"], Value]) -> None:
        self._work = work
        self._stop = threading.Event()
        self.state, self.error = WAITING, ""
        self.stage, self.done, self.total, self.remote_ahead = "", 0.0, 0.0, 0
        self._done_before = 0.0
        self.value: Value | None = None
        self._stage_start = self._last_report = self._start = self._end_time = time.monotonic()

    @property
    def over(self) -> bool:
        return self.state in (DONE, FAILED, CANCELLED)

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    @property
    def busy(self) -> bool:
        """It runs or will run; one that is cancelled while it waits never does."""
        return self.state == RUNNING or (self.state == WAITING and not self.stopping)

    @property
    def elapsed_s(self) -> float:
        return (self._end_time if self.over else time.monotonic()) - self._start

    @property
    def remaining_s(self) -> float | None:
        """Of the current stage at its rate up to the last report, less the time since; None while there is no rate, or
        when it takes longer than expected. What was done when the stage began, as of a download that goes on, took no
        time."""
        spent, made = self._last_report - self._stage_start, self.done - self._done_before
        if made <= 0 or spent <= 0 or self.done >= self.total:
            return None
        left = spent * (self.total - self.done) / made - (time.monotonic() - self._last_report)
        return left if left > 0 else None

    def report(self, stage: str, done: float = 0, total: float = 0) -> None:
        if self._stop.is_set():
            raise CancelledError
        now = time.monotonic()
        if stage != self.stage:
            # a stage tells of its first unit when that is done; it began when the one before it had ended
            ended = 0 < self.total <= self.done
            self._stage_start = self._last_report if ended else now
            self._done_before = done if done > 1 else 0.0
        self._last_report = now
        self.stage, self.done, self.total, self.remote_ahead = stage, done, total, 0

    def cancel(self) -> None:
        """It ends at its next report, or at once while it waits."""
        self._stop.set()

    def run(self) -> None:
        """Never raises: the outcome is in state, value and error."""
        self._start = self._stage_start = self._last_report = time.monotonic()
        self.state = RUNNING
        try:
            self.report("")
            self.value = self._work(self)
            self._finish(DONE)
        except CancelledError:
            self._finish(CANCELLED)
        except UserError as error:
            self._finish(FAILED, str(error))
        except Exception:  # whatever it is, the next job must run
            _log.exception("A run failed")
            self._finish(FAILED, "Something went wrong unexpectedly; the app's log has the details.")

    def _finish(self, state: str, error: str = "") -> None:
        self._end_time = time.monotonic()
        self.error = error
        self.state = state


class Queue:
    """First in, first out, `concurrency` jobs at a time. capacity: how many may wait."""

    def __init__(self, concurrency: int = 1, capacity: int = 20) -> None:
        self._concurrency, self._capacity = concurrency, capacity
        self._waiting: deque[Job[Any]] = deque()
        self._running: list[Job[Any]] = []
        self._threads: list[threading.Thread] = []
        self._change = threading.Condition()
        self._closed = False

    def submit(self, work: Callable[[Job[Value]], Value]) -> Job[Value]:
        """UserError when the queue is full."""
        job = Job(work)
        with self._change:
            self._remove_cancelled()
            if self._closed or len(self._waiting) >= self._capacity:
                waiting = (
                    f"{count(len(self._waiting), 'run')} {'is' if len(self._waiting) == 1 else 'are'} already waiting"
                )
                raise UserError(f"{waiting}; try again in a few minutes.")
            self._waiting.append(job)
            if len(self._threads) < self._concurrency:
                self._threads.append(threading.Thread(target=self._serve, name="latentsync run", daemon=True))
                self._threads[-1].start()
            self._change.notify()
        return job

    def ahead(self, job: Job[Any]) -> int:
        """How many jobs come before this one; 0 when it runs or has ended."""
        with self._change:
            self._remove_cancelled()
            return len(self._running) + self._waiting.index(job) if job in self._waiting else 0

    def close(self, timeout: float = 10.0) -> None:
        """Cancel everything, and wait for it to end."""
        with self._change:
            self._closed = True
            for job in (*self._waiting, *self._running):
                job.cancel()
            self._change.notify_all()
        for thread in self._threads:
            thread.join(timeout)

    def _remove_cancelled(self) -> None:
        for job in [job for job in self._waiting if job.stopping]:
            self._waiting.remove(job)
            job.run()  # ends at once

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
