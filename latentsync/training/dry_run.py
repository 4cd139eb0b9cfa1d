"""What a run would take: memory, time and disk. Nothing stays on the disk."""

import time
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import default_collate

from ..models.device import cores
from .dataset import Sample, to_device
from .disk import Written, written
from .memory import CUDA_ITSELF, StepMemory, step_memory
from .recipes import NONE, RunSettings, count_steps
from .task import Task
from .trainer import Trainer

if TYPE_CHECKING:
    from accelerate import Accelerator

STEPS, SECONDS = 3, 60.0
"""So many steps are timed after a first one, or fewer where they take longer together."""
ROOM = 0.95
"""Share of the free memory that a measured step may take by the estimate."""


@dataclass(frozen=True)
class Speed:
    """seconds: of a step. loading: of a batch, by one process, once its clips' features are in the cache. peak: bytes
    that PyTorch took on the GPU."""

    seconds: float
    loading: float
    peak: int | None


@dataclass(frozen=True)
class DryRun:
    """What a run would take. available, free: bytes of the device. speed: None where a step would not fit."""

    device: str
    precision: str
    memory: StepMemory
    available: int
    free: int
    speed: Speed | None
    steps: int
    workers: int
    disk: Written

    @property
    def steps_an_hour(self) -> float | None:
        """Where loading is slower than computing even in several processes, loading counts."""
        if self.speed is None:
            return None
        return 3600 / max(self.speed.seconds, self.speed.loading / max(1, self.workers))


def dry_run(task: Task, settings: RunSettings, accelerator: "Accelerator", out: Path) -> DryRun:
    """Compute what a step needs, take a few if there is room, and add up what would be written to out."""
    device = accelerator.device
    batch = default_collate([task.data[0]] * settings.batch_size)
    memory = estimate(task, settings, accelerator, batch)
    available, free = device_memory(device)
    if device.type != "cuda":
        free += memory.itself + memory.weights + memory.frozen  # are there already
    speed = None
    if memory.total <= ROOM * free:
        with TemporaryDirectory(prefix="latentsync-") as folder:
            speed = measure(task, settings, accelerator, batch, Path(folder))
    samples = settings.batch_size * settings.gradient_accumulation_steps * accelerator.num_processes
    steps = count_steps(settings, len(task.data), samples).steps
    precision = "fp32" if accelerator.mixed_precision == "no" else str(accelerator.mixed_precision)
    disk = written(task, settings, out)
    return DryRun(str(device), precision, memory, available, free, speed, steps, min(settings.workers, cores()), disk)


def estimate(task: Task, settings: RunSettings, accelerator: "Accelerator", batch: Sample) -> StepMemory:
    """The memory of a step on the accelerator's device, in its precision."""

    def network(*inputs: Any) -> Any:
        with accelerator.autocast():
            return task.network(*inputs)

    return step_memory(
        task.network, task.frozen, partial(task.dry_loss, network), batch, settings, accelerator.device,
        processes=accelerator.num_processes,
        itself=CUDA_ITSELF if accelerator.device.type == "cuda" else _own_memory(task),
    )  # fmt: skip


def measure(task: Task, settings: RunSettings, accelerator: "Accelerator", batch: Sample, folder: Path) -> Speed:
    """Real steps on one batch, and the time to load one. The network is trained by them."""
    start = time.perf_counter()
    default_collate([task.data[0]] * settings.batch_size)
    loading = time.perf_counter() - start
    trainer = Trainer(task, replace(settings, workers=0, trackers=(NONE,)), folder, accelerator)
    trainer.batches = repeat(to_device(batch, accelerator.device))
    cuda = accelerator.device.type == "cuda"
    times: list[float] = []
    while len(times) <= STEPS and sum(times) < SECONDS:
        start = time.perf_counter()
        trainer.compute_gradients()
        trainer.update()
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    trainer.log.close()
    timed = times[1:] or times
    return Speed(sum(timed) / len(timed), loading, torch.cuda.max_memory_reserved() if cuda else None)


def device_memory(device: torch.device) -> tuple[int, int]:
    """Bytes of the GPU, else of the machine: all, and free."""
    if device.type == "cuda":
        free, everything = torch.cuda.mem_get_info(device)
        return everything, free
    import psutil  # pyright: ignore[reportMissingModuleSource]  accelerate brings it

    memory = psutil.virtual_memory()
    return memory.total, memory.available


def _own_memory(task: Task) -> int:
    """Bytes of this process without the task's networks."""
    import psutil  # pyright: ignore[reportMissingModuleSource]

    networks = [task.network, *task.frozen]
    loaded = sum(p.nbytes for network in networks for p in network.parameters())
    return max(0, psutil.Process().memory_info().rss - loaded)
