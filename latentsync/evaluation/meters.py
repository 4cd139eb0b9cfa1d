"""What a run takes of the machine: memory of all its processes, memory and idle time of the graphics card."""

import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..models.device import cores
from ..rendering import Timings

EVERY = 0.05
"""Seconds between two looks at the memory."""
PROC = Path("/proc")


class Memory:
    """Samples the resident memory of this process and its children; peak in bytes, None where it is not known."""

    def __init__(self) -> None:
        self.peak: int | None = None
        self._over = threading.Event()

    def __enter__(self) -> "Memory":
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._over.wait(EVERY):
            self._look()

    def _look(self) -> None:
        now = resident()
        if now is not None:
            self.peak = max(now, self.peak or 0)


def resident() -> int | None:
    """Bytes in memory of this process and all below it; elsewhere than on Linux the largest so far of this one."""
    if (PROC / "self" / "statm").exists():
        return sum(_resident(pid) for pid in _tree(os.getpid()))
    with suppress(ImportError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return None


def _tree(pid: int) -> Iterator[int]:
    yield pid
    with suppress(OSError):  # it has just ended
        for task in (PROC / str(pid) / "task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _tree(int(child))


def _resident(pid: int) -> int:
    try:
        return int((PROC / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):  # it has just ended
        return 0


def megabytes(count: int | None) -> int | None:
    return None if count is None else round(count / 1e6)


def vram(device: str) -> dict[str, int] | None:
    """Megabytes of a CUDA card at most since the last reset: what tensors took, and what torch kept for them."""
    if not device.startswith("cuda"):
        return None
    allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return {"allocated": round(allocated / 1e6), "reserved": round(reserved / 1e6)}


def cpu_seconds() -> float:
    """Of this process and of those children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def waiting(device: str) -> Callable[[], None]:
    """What waits until the device has done all that it was given; nothing for a CPU."""
    if device.startswith("cuda"):
        return partial(torch.cuda.synchronize, device)
    return torch.mps.synchronize if device == "mps" else lambda: None


@dataclass
class Stages:
    """begun: when each stage began for the first time, by time.perf_counter. cpu: processor seconds of this process
    while it lasted."""

    begun: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)


@contextmanager
def watched_stages(wait: Callable[[], None] = lambda: None) -> Iterator[Stages]:
    """What a run's stages do meanwhile. wait is called before and after each: so that what a stage has a card do is
    counted as its own, not as that of the stage which fetches the result."""
    measure, seen = Timings.measure, Stages()

    @contextmanager
    def watched(self: Timings, stage: str) -> Iterator[None]:
        wait()
        seen.begun.setdefault(stage, time.perf_counter())
        start = time.process_time()
        with measure(self, stage):
            yield
            wait()
        seen.cpu[stage] = seen.cpu.get(stage, 0.0) + time.process_time() - start

    Timings.measure = watched
    try:
        yield seen
    finally:
        Timings.measure = measure


def kernel_seconds(work: Callable[[], Any]) -> float:
    """Seconds in which at least one kernel or copy ran on the CUDA device during the work."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        work()
        torch.cuda.synchronize()
    events = profiled.events() or ()
    ran = [e for e in events if e.device_type.name == "CUDA" and not getattr(e, "is_user_annotation", False)]
    spans = [(e.time_range.start, e.time_range.end) for e in ran]
    return covered(spans) / 1e6


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """Length of what at least one of the spans covers."""
    total, reached = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    return total


def machine(device: str) -> dict[str, Any]:
    """What a figure must be read with."""
    facts: dict[str, Any] = {
        "latentsync": __version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _processor(),
        "cores": cores(),
        "ram_gb": _ram(),
        "load_average": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "gpu": None,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if device.startswith("cuda"):
        card = torch.cuda.get_device_properties(device)
        facts["gpu"], facts["vram_gb"] = card.name, round(card.total_memory / 1e9, 1)
        facts["cuda"], facts["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
    return facts


def machine_line(facts: dict[str, Any], device: str, dtype: str) -> str:
    card = f"{facts['gpu']} {facts['vram_gb']:g} GB, CUDA {facts['cuda']}; " if facts["gpu"] else ""
    memory = "" if facts["ram_gb"] is None else f", {facts['ram_gb']:g} GB"
    load = "" if facts["load_average"] is None else f", load {facts['load_average']:g} before the start"
    return (
        f"{card}{facts['cpu']}, {facts['cores']} cores{memory}{load}; torch {facts['torch']},"
        f" {facts['threads']} threads; {device}, {dtype}"
    )


def _processor() -> str:
    with suppress(OSError):
        for line in (PROC / "cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _ram() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):  # Windows
        return None
