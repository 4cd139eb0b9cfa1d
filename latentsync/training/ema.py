"""What both trainers share: schedule, moving average, checkpoints, a log."""

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def learning_rate(step: int, steps: int, peak: float, *, warmup: int = 50, floor: float = 0.05) -> float:
    """Linear warm-up, then a half cosine from peak down to floor · peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)


class MovingAverage:
    """Exponential moving average of a module's parameters; early on it follows faster (Adam's bias correction)."""

    def __init__(self, module: nn.Module, decay: float = 0.998) -> None:
        self.decay, self.count = decay, 0
        self.state = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.count += 1
        decay = min(self.decay, self.count / (self.count + 10))
        for key, value in module.state_dict().items():
            self.state[key].lerp_(value, 1 - decay)


def save_checkpoint(path: Path, **parts: Any) -> None:
    """Atomic, so that a run killed while it saves keeps the checkpoint before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(parts, part)
    part.replace(path)


class Log:
    """One JSON line per report; means of the losses since the last."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.start = path, time.monotonic()
        self.sums: dict[str, float] = {}
        self.count = 0

    def add(self, **losses: Tensor | float) -> None:
        self.count += 1
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)

    def write(self, step: int) -> str:
        means = {name: round(total / max(1, self.count), 5) for name, total in self.sums.items()}
        line = json.dumps({"step": step, "seconds": round(time.monotonic() - self.start), **means})
        with self.path.open("a") as file:
            file.write(line + "\n")
        self.sums, self.count = {}, 0
        return line
