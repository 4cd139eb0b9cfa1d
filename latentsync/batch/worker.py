"""The worker that holds a checkpoint's models: it runs jobs, and segments of long clips."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .jobs import Job
from .parallel.worker import BaseWorker

if TYPE_CHECKING:
    from ..weights.bundle import Models
    from .segments import Patch, Plan, Segment, SegmentRenderer


@dataclass(frozen=True)
class ModelSpec:
    """What load_models needs, by name: it can be sent to another machine. threads: of torch, None leaves them."""

    checkpoint: str = "nano"
    vae: str | None = None
    whisper: str | None = None
    lora: tuple[str, ...] = ()
    resolution: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None

    def fingerprint(self) -> dict[str, Any]:
        """What results depend on: names, and files with their size and modification time."""
        from ..weights.lora import split_strength

        names = ("checkpoint", "vae", "whisper", "resolution", "dtype")
        stamped = {name: _stamped(getattr(self, name)) for name in names}
        loras = [[_stamped(str(path)), strength] for path, strength in map(split_strength, self.lora)]
        return stamped | ({"lora": loras} if loras else {})

    def load(self) -> "Models":
        import torch

        from ..models.device import pick_device, pick_dtype
        from ..weights.bundle import load_models

        if self.threads:
            torch.set_num_threads(self.threads)  # set only for processes that are ours
        device = pick_device(self.device)
        return load_models(
            self.checkpoint,
            vae=self.vae,
            whisper=self.whisper,
            lora=self.lora,
            resolution=self.resolution,
            device=device,
            dtype=pick_dtype(self.dtype, device),
        )


def _stamped(name: Any) -> Any:
    path = Path(name) if isinstance(name, str) else None
    if path is None or not path.is_file():
        return name
    return [str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns]


class LipSyncWorker(BaseWorker):
    """Loads the models with its first call and keeps them."""

    spec: ModelSpec

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.load_s = 0.0
        self._models: Models | None = None
        self._renderer: SegmentRenderer | None = None

    def setup(self) -> None:
        _ = self.models

    @property
    def models(self) -> "Models":
        if self._models is None:
            start = time.perf_counter()
            with _memory_errors():
                self._models = self.spec.load()
            self.load_s = time.perf_counter() - start
        return self._models

    def describe(self) -> dict[str, Any]:
        from ..models.device import short_name

        models = self.models
        return {
            "checkpoint": models.name,
            "resolution": models.resolution,
            "default_steps": models.defaults.steps,
            "default_guidance": models.defaults.guidance,
            "device": str(models.device),
            "dtype": short_name(models.dtype),
            "load_s": round(self.load_s, 3),
        }

    def run(self, job: Job) -> dict[str, Any]:
        """One job: its report with "elapsed_s", and the models' description."""
        from ..pipeline import lipsync_file

        start = time.perf_counter()
        with _memory_errors():
            report = lipsync_file(
                job.video,
                job.speakers or job.audio,
                job.out,
                models=self.models,
                settings=job.settings,
                resume=True,
                on_step=self.check_cancelled,
            )
        return self.describe() | report.as_dict() | {"elapsed_s": time.perf_counter() - start}

    def render(self, plan: "Plan", segment: "Segment") -> "tuple[list[Patch], dict[str, float]]":
        """One segment of a long clip. The plan's renderer is kept for the next one."""
        from .segments import SegmentRenderer

        if self._renderer is None or self._renderer.plan.key != plan.key:
            self._close_renderer()
            self._renderer = SegmentRenderer(plan, self.models, self.check_cancelled)
        with _memory_errors():
            return self._renderer.render(segment)

    def release(self) -> None:
        super().release()
        self._close_renderer()

    def _close_renderer(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
        self._renderer = None

    def close(self) -> None:
        self.release()
        if self._models is not None:
            self._models.finder.close()
        self._models = None


@contextmanager
def _memory_errors() -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        advice = "lower window_batch, use fp16, or run fewer workers per GPU"
        raise UserError(f"The GPU ran out of memory; {advice}.") from error
