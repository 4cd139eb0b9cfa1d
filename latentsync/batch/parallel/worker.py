"""Workers: objects whose methods a pool calls, in this process or another one."""

import os
import platform
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import UserError


@dataclass(frozen=True)
class Call:
    """A worker's method and its arguments. output_path: the file it writes, cleaned up after a worker that died."""

    method: str
    args: tuple[Any, ...] = ()
    output_path: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a call. status: done (has a value), failed (has an error), setup (the worker could not start),
    died (the worker did), lost (waited at a worker that died), cancelled. place: host:pid of the worker. traceback: of
    a programming error."""

    status: str
    value: Any = None
    error: str = ""
    place: str = ""
    traceback: str = ""

    @classmethod
    def of_error(cls, status: str, error: Exception, place: str = "") -> "Outcome":
        """A UserError as its own sentence; any other error with its type and traceback."""
        message = " ".join(str(error).split())
        if isinstance(error, UserError):
            return cls(status, error=message, place=place)
        details = "".join(traceback.format_exception(error))
        return cls(status, error=f"{type(error).__name__}: {message}", place=place, traceback=details)


class SetupError(UserError):
    """A worker could not start: no call can run."""


class Cancelled(BaseException):
    """Raised inside a call that is no longer wanted; caught by BaseWorker.call only."""


@dataclass(frozen=True)
class SharedFile:
    """Stands for a pickled object in the arguments of a call."""

    path: Path


class BaseWorker:
    """Base class for workers. Pools call methods by name; results must be picklable."""

    def __init__(self, spec: Any) -> None:
        self.spec = spec
        self._ticket = self._cancelled = 0
        self._shared: tuple[SharedFile, Any] | None = None

    def setup(self) -> None:
        """Load what every call needs. Comes before each call."""

    def release(self) -> None:
        """Drop what belongs to a shared object."""
        self._shared = None

    def close(self) -> None: ...

    @property
    def place(self) -> str:
        return f"{platform.node()}:{os.getpid()}"

    def cancel(self, ticket: int) -> None:
        """End the calls up to this one at their next check_cancelled(). Comes from another thread."""
        self._cancelled = max(self._cancelled, ticket)

    def call(self, ticket: int, method: str, *args: Any) -> Outcome:
        """Every Exception becomes an outcome."""
        self._ticket, stage = ticket, "setup"
        try:
            self.check_cancelled()
            self.setup()
            stage = "failed"
            return Outcome("done", getattr(self, method)(*map(self._load, args)), place=self.place)
        except Cancelled:
            return Outcome("cancelled", place=self.place)
        except Exception as error:
            return Outcome.of_error(stage, error, self.place)

    def check_cancelled(self, progress: Any = None) -> None:
        """A progress callback for long calls."""
        if self._ticket <= self._cancelled:
            raise Cancelled

    def _load(self, arg: Any) -> Any:
        if not isinstance(arg, SharedFile):
            return arg
        if self._shared is None or self._shared[0] != arg:
            import pickle

            self._shared = arg, pickle.loads(arg.path.read_bytes())
        return self._shared[1]
