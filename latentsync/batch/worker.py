"""What a worker is: it holds the models, takes calls, and says what became of them."""

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .jobs import Job

if TYPE_CHECKING:
    from ..pipeline import Models, Progress
    from .segments import Piece, Plan, Segment, Segments


@dataclass(frozen=True)
class ModelSpec:
    """What load_models needs, by name: it can be sent to another machine. threads: of torch, None leaves them."""

    checkpoint: str = "nano"
    vae: str | None = None
    whisper: str | None = None
    resolution: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None

    def facts(self) -> dict[str, Any]:
        """What a result hangs on."""
        names = ("checkpoint", "vae", "whisper", "resolution", "dtype")
        return {name: _stamped(getattr(self, name)) for name in names}

    def load(self) -> "Models":
        import torch

        from ..models.device import pick_device, pick_dtype
        from ..pipeline import load_models

        if self.threads:
            torch.set_num_threads(self.threads)  # only ever asked of processes that are ours
        device = pick_device(self.device)
        return load_models(
            self.checkpoint,
            vae=self.vae,
            whisper=self.whisper,
            resolution=self.resolution,
            device=device,
            dtype=pick_dtype(self.dtype, device),
        )


def _stamped(name: Any) -> Any:
    """A file with its size and time of change: another one of the same name is another model."""
    path = Path(name) if isinstance(name, str) else None
    if path is None or not path.is_file():
        return name
    return [str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns]


@dataclass(frozen=True)
class Call:
    """A worker's method and its arguments. leaves: the output whose unfinished file must not survive a dead worker."""

    method: str
    args: tuple[Any, ...] = ()
    leaves: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """status: done (value), failed (error says why), setup (the models could not be loaded), died, stopped."""

    status: str
    value: Any = None
    error: str = ""
    place: str = ""


class SetupError(UserError):
    """The models cannot be loaded: no job can run."""


class Stopped(BaseException):
    """Raised out of a step of a call that is no longer wanted; nothing but Worker.call catches it."""


class Hand:
    """What a pool drives, here or in another process: it takes calls of its methods, which give things to be sent."""

    def __init__(self, spec: Any) -> None:
        self.spec = spec
        self._ticket, self._unwanted = 0, 0

    def ready(self) -> None:
        """Before every call; what is raised here means that no call can run."""

    def forget(self) -> None:
        """The last plan that was shared is done with."""

    def close(self) -> None: ...

    @property
    def place(self) -> str:
        return f"{platform.node()}:{os.getpid()}"

    def stop(self, ticket: int) -> None:
        """Calls up to this one are to end at their next step; comes from another thread."""
        self._unwanted = max(self._unwanted, ticket)

    def call(self, ticket: int, method: str, *args: Any) -> Outcome:
        """Whatever goes wrong becomes an outcome, but for the end of the process and Ctrl-C."""
        self._ticket = ticket
        try:
            self._check()
            self.ready()
        except Stopped:
            return Outcome("stopped", place=self.place)
        except Exception as error:
            return Outcome("setup", error=sentence(error), place=self.place)
        try:
            return Outcome("done", getattr(self, method)(*args), place=self.place)
        except Stopped:
            return Outcome("stopped", place=self.place)
        except Exception as error:
            return Outcome("failed", error=sentence(error), place=self.place)

    def _check(self, step: "Progress | None" = None) -> None:
        if self._ticket <= self._unwanted:
            raise Stopped


class Worker(Hand):
    """Loads the models with its first call and keeps them."""

    spec: ModelSpec

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.load_seconds = 0.0
        self._models: Models | None = None
        self._segments: Segments | None = None

    def ready(self) -> None:
        _ = self.models

    @property
    def models(self) -> "Models":
        if self._models is None:
            start = time.perf_counter()
            self._models = self.spec.load()
            self.load_seconds = time.perf_counter() - start
        return self._models

    def describe(self) -> dict[str, Any]:
        from ..models.device import short_name

        models = self.models
        return {
            "checkpoint": models.name,
            "resolution": models.resolution,
            "first_frame_reference": models.first_frame_reference,
            "default_steps": models.defaults.steps,
            "default_guidance": models.defaults.guidance,
            "device": str(models.device),
            "dtype": short_name(models.dtype),
            "load_seconds": round(self.load_seconds, 3),
        }

    def run(self, job: Job) -> dict[str, Any]:
        """One whole job: its report, with "wall" among the seconds."""
        from ..pipeline import lipsync_file

        start = time.perf_counter()
        report = lipsync_file(
            job.video, job.audio, job.out, models=self.models, settings=job.settings, on_step=self._check
        )
        facts = report.as_dict() | {"wall": time.perf_counter() - start}
        return facts | {name: value for name, value in self.describe().items() if name not in facts}

    def paint(self, plan: "Plan | Path", segment: "Segment") -> "Piece":
        """One segment of a long clip; the plan's own preparations are kept for the next one."""
        from .segments import Segments, load_plan

        plan = load_plan(plan)
        if self._segments is None or self._segments.plan.key != plan.key:
            self.forget()
            self._segments = Segments(plan, self.models, self._check)
        return self._segments.paint(segment)

    def forget(self) -> None:
        if self._segments is not None:
            self._segments.close()
        self._segments = None

    def close(self) -> None:
        self.forget()
        if self._models is not None:
            self._models.finder.close()
        self._models = None


def sentence(error: BaseException) -> str:
    """What a person is told of an error."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if type(error).__name__ == "OutOfMemoryError":
        return "The graphics card ran out of memory; lower window_batch, take fp16, or put fewer workers on a card."
    return " ".join(f"{type(error).__name__}: {error}".split())
