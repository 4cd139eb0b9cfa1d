"""What both trainers share: the learning rate schedule, checkpoints, and the loop."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from latentsync.files import atomic_path
from latentsync.training.logging import RunLog

Report = Callable[[dict[str, float]], None]
"""Takes a step and the mean losses since the last report."""


def cosine_schedule(
    optimizer: torch.optim.Optimizer, steps: int, *, warmup: int = 50, floor: float = 0.05, step: int = 0
) -> LambdaLR:
    """Linear warm-up, then a half cosine down to floor times the peak. step: to resume from."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor, last_epoch=step - 1)


class Trainer(Protocol):
    settings: Any
    step: int

    def train_step(self) -> dict[str, Tensor]: ...

    def save(self, path: Path) -> None: ...


def fit(trainer: Trainer, checkpoint: Path, *, save_every: int, on_report: Report | None = None) -> None:
    """Train to the end. The log goes into a folder beside the checkpoint, named like it."""
    settings, log = trainer.settings, RunLog(checkpoint.with_suffix(""), tensorboard=False)
    log.truncate(trainer.step)
    while trainer.step < settings.steps:
        log.add(trainer.train_step())
        last = trainer.step == settings.steps
        if trainer.step % settings.report_every == 0 or last:
            means = {name: round(value, 5) for name, value in log.means().items()}
            log.write(trainer.step, means)
            if on_report:
                on_report({"step": trainer.step, **means})
        if trainer.step % save_every == 0 or last:
            trainer.save(checkpoint)


def save_checkpoint(path: Path, **parts: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as part:
        torch.save(parts, part)
