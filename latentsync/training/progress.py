"""How far a run has come, and when it will be done."""

import time
from collections.abc import Callable
from typing import Any

from .task import Report

EVERY = 10.0
"""Seconds between two lines about work that takes long."""


class Pace:
    """Counts work. what: "step", say, of which there are `total`; done: what an earlier run did of it.

    A report that can draw a bar (see cli.console.LinesAndBar) gets it at each update; with lines, any report also gets
    a line every 10 seconds, so that work of minutes is not silent.
    """

    def __init__(
        self, what: str, total: int, report: Report, *, done: int = 0, lines: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.what, self.total, self.done, self.lines = what, total, done, lines
        self._report, self._clock, self._first = report, clock, done
        self._draw: Any = getattr(report, "draw", None)
        self._begun = self._said = clock()

    def update(self, done: int) -> None:
        self.done = done
        if self._draw is not None:
            self._draw(done / max(1, self.total), str(self))
        if self.lines and (self._clock() - self._said >= EVERY or (done == self.total and self._said > self._begun)):
            self._said = self._clock()
            self._report(str(self))

    def __str__(self) -> str:
        """ "step 40 of 500, 1.6 a second, 4 min 48 s left"."""
        place = f"{self.what} {self.done} of {self.total}"
        seconds, made = self._clock() - self._begun, self.done - self._first
        if made <= 0 or seconds <= 0:
            return place
        rate, left = made / seconds, (self.total - self.done) * seconds / made
        return f"{place}, {rate:.2g} per second" + (f", {duration(left)} left" if self.done < self.total else "")


def duration(seconds: float) -> str:
    """ "48 s", "4 min 48 s", "2 h 5 min" or "3 d 4 h"."""
    whole = round(seconds)
    for large, small, name, part in ((86400, 3600, "d", "h"), (3600, 60, "h", "min"), (60, 1, "min", "s")):
        if whole >= large:
            return f"{whole // large} {name} {whole % large // small} {part}"
    return f"{whole} s"
