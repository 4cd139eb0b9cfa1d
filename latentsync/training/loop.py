"""What both trainers share: the learning rate schedule, checkpoints, and the loop."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from ..files import atomic_path
from .logging import RunLog

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


class Trainer(ABC):
    """What a trainer keeps between steps, and how that is saved. settings: a dataclass with steps and report_every."""

    warmup = 100
    settings: Any
    step: int
    random: np.random.Generator
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR

    @abstractmethod
    def train_step(self) -> dict[str, Tensor]: ...

    @abstractmethod
    def parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """All that has a state, by its name in the checkpoint."""

    @abstractmethod
    def averages(self) -> dict[str, AveragedModel]:
        """Moving averages, by the name of their number of updates."""

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "step": self.step,
            "settings": asdict(self.settings),
            "random": self.random.bit_generator.state,
            "torch_random": torch.get_rng_state(),
            **{name: average.n_averaged for name, average in self.averages().items()},
            **{name: part.state_dict() for name, part in self.parts().items()},
        }
        with atomic_path(path) as unfinished:
            torch.save(state, unfinished)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        saved = torch.load(path, weights_only=True)
        self.step = saved["step"]
        for name, part in self.parts().items():
            part.load_state_dict(saved[name])
        for name, average in self.averages().items():
            average.n_averaged.copy_(saved[name])
        self.schedule = trapezoid(self.optimizer, self.settings.steps, warmup=self.warmup, step=self.step)
        self.random.bit_generator.state = saved["random"]
        torch.set_rng_state(saved["torch_random"])


def fit(trainer: Trainer, checkpoint: Path, *, save_every: int, on_report: Report | None = None) -> None:
    """Train to the end. The log goes into a folder beside the checkpoint, named like it."""
    settings, log = trainer.settings, RunLog(checkpoint.with_suffix(""))
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
