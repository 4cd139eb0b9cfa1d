"""Which device and which number format to use when the user leaves it open."""

import os
import time
from functools import cache

import torch

from ..errors import UserError

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TENSOR_CORES = 7
"""First CUDA capability whose half-precision arithmetic is faster than single precision everywhere (Volta)."""

BF16_GAIN = 1.3
"""How much faster it must be, so that noise does not decide: it is about twice as fast, or about half as fast."""


def pick_device(name: str = "auto") -> str:
    """ "auto": a CUDA card, else Apple's GPU, else the CPU. UserError for a name that is unknown or not there."""
    kind = name.partition(":")[0]
    if kind not in DEVICES:
        raise UserError(f"device is {name!r}; it must be one of {', '.join(DEVICES)}.")
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(kind for kind in ("cuda", "mps", "cpu") if here[kind])
    if not here[kind]:
        raise UserError(f"device is {name!r}, which torch {torch.__version__} does not see here; use auto or cpu.")
    return name


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_cores() -> int:
    """Cores that no other program is using, by the load of the last minute; at least one."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # Windows does not tell
    return max(1, min(cores(), round(cores() - load)))


def pick_dtype(name: str, device: str) -> torch.dtype:
    """ "auto": fp16 on GPUs and bf16 on CPUs that gain by it, else fp32. UserError for an unknown name."""
    if name in DTYPES:
        return DTYPES[name]
    if name != "auto":
        raise UserError(f"dtype is {name!r}; it must be one of auto, {', '.join(DTYPES)}.")
    if device.startswith("cuda"):
        return torch.float16 if torch.cuda.get_device_capability(device)[0] >= TENSOR_CORES else torch.float32
    if device == "mps":
        return torch.float16
    return torch.bfloat16 if _gains_by_bf16() else torch.float32


def autocast(device: str) -> torch.autocast:
    """Mixed precision with bf16; on a CPU that does not gain by it, none."""
    kind = device.partition(":")[0]
    return torch.autocast(kind, torch.bfloat16, enabled=kind != "cpu" or _gains_by_bf16())


@cache
def _gains_by_bf16() -> bool:
    """Tried once, in about 20 ms, since a CPU's name and instructions do not tell: with AMX, on Arm and on AMD's with
    AVX-512 BF16 such numbers take half the time of fp32, on Intel's with AVX-512 BF16 but without AMX, as virtual
    machines often have, twice the time."""
    return _seconds(torch.bfloat16) * BF16_GAIN < _seconds(torch.float32)


def _seconds(dtype: torch.dtype) -> float:
    """The shortest of some runs of a convolution like those that take most of the time."""
    x = torch.ones(1, 64, 64, 64, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.ones(64, 64, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
    taken = []
    with torch.inference_mode():
        for _ in range(6):  # the first one prepares
            start = time.perf_counter()
            torch.nn.functional.conv2d(x, weight, padding=1)
            taken.append(time.perf_counter() - start)
    return min(taken[1:])


def short_name(dtype: torch.dtype) -> str:
    return next(name for name, known in DTYPES.items() if known == dtype)
