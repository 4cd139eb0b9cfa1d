"""Optimizer, and the moving average of weights."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ..errors import UserError
from .recipes import RunSettings


def make_optimizer(settings: RunSettings, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019), or bitsandbytes' with 8-bit moments (Dettmers et al. 2022)."""
    kind: Any = torch.optim.AdamW
    if settings.optimizer == "adamw8bit":
        try:
            from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UserError("adamw8bit needs bitsandbytes: pip install bitsandbytes, or use adamw.") from error
        kind = AdamW8bit
    return kind(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)


def learning_rates(settings: RunSettings, processes: int = 1) -> Callable[[int], float]:
    """The learning rate by the number of steps that are done: so a resumed run needs no state of a scheduler."""
    from diffusers.optimization import get_scheduler

    peak = settings.learning_rate * (processes if settings.scale_lr else 1)
    name = settings.lr_scheduler
    if name == "constant" and settings.warmup_steps:
        name = "constant_with_warmup"
    unused = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=peak)
    scheduler: Any = get_scheduler(
        name, unused, num_warmup_steps=settings.warmup_steps, num_training_steps=settings.steps
    )
    return lambda step: peak * scheduler.lr_lambdas[0](step)


def drop_gradients(optimizer: Any, scaler: Any) -> None:
    """Without a step. A scaler that has unscaled them must be updated before the next step."""
    if scaler is not None:
        scaler.update()
    optimizer.zero_grad()


def all_finite(parameters: Sequence[Tensor]) -> bool:
    """Of FSDP's shards: those of this process."""
    shards = (getattr(p, "to_local", p.detach)() for p in parameters)
    return all(bool(shard.isfinite().all()) for shard in shards)


def averaged_model(module: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average, starting at the module's weights.

    At first the decay is n / (n + 10) for update n = 1, 2, …, so that early averages follow faster.
    """

    def follow(means: Sequence[Tensor], values: Sequence[Tensor], count: Tensor | int) -> None:
        weight = 1 - min(decay, int(count) / (int(count) + 10))
        for mean, value in zip(means, values, strict=True):
            mean.lerp_(value, weight)

    average = AveragedModel(module, multi_avg_fn=follow)
    average.n_averaged.fill_(1)
    return average
