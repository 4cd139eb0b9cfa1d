"""What both trainers share: the learning rate schedule, checkpoints, and the loop."""

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


def trapezoid(
    optimizer: torch.optim.Optimizer,
    steps: int,
    *,
    warmup: int = 100,
    decay: float = 0.25,
    floor: float = 0.05,
    step: int = 0,
) -> LambdaLR:
    """Linear warm-up, a plateau, then linearly down to floor in the last part (decay) of the steps. step: to resume."""

    def factor(step: int) -> float:
        left = (steps - step) / max(1, decay * steps)
        return min((step + 1) / warmup, 1.0, max(floor, left))

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
