"""Two rounds of training, and the file that is the mean of what they made."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from latentsync.face.occlusion import CoverNet
from latentsync.files import atomic_path
from latentsync.models.device import autocast

HELD_OUT = 256
"""Samples at the beginning that are for the report."""
WARMUP = 100
DICE = 0.3
"""Weight of the overlap beside the cross entropy: thin things count as much as large ones."""


@dataclass(frozen=True)
class Round:
    steps: int
    learning_rate: float


ROUNDS = (Round(2600, 3e-3), Round(700, 1.5e-3))
"""The second goes on from the first. Their mean raised no alarm in 6,259 clean frames, the second alone in 43."""


def loss(logits: Tensor, covered: Tensor) -> Tensor:
    """logits, covered (0 to 1): (N, H, W)."""
    likely = logits.sigmoid()
    dice = 1 - (2 * (likely * covered).sum((1, 2)) + 20) / ((likely + covered).sum((1, 2)) + 20)
    return F.binary_cross_entropy_with_logits(logits, covered) + DICE * dice.mean()


def batch(pixels: Tensor, masks: Tensor, size: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random samples, half of them mirrored, in other light: (N, 3, H, W) in about 0..1, and (N, H, W)."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=random)

    chosen = torch.randint(len(pixels), (size,), generator=random)
    x, m = pixels[chosen].permute(0, 3, 1, 2).float() / 255, masks[chosen].float() / 255
    x = x * (0.7 + 0.6 * uniform(size, 1, 1, 1)) + 0.15 * (uniform(size, 1, 1, 1) - 0.5)
    x = x + 0.06 * (uniform(size, 3, 1, 1) - 0.5)
    half = size // 2
    return torch.cat([x[:half], x[half:].flip(3)]), torch.cat([m[:half], m[half:].flip(2)])


def train(
    net: CoverNet,
    pixels: np.ndarray,
    masks: np.ndarray,
    settings: Round,
    *,
    seed: int,
    size: int = 64,
    report_every: int = 100,
    on_report: Callable[[dict[str, float]], None] | None = None,
) -> CoverNet:
    """The moving average of a network trained on samples: pixels (N, H, W, 3), masks (N, H, W), both uint8. The first
    HELD_OUT of them are not trained on. on_report gets the step, the loss and what `measure` says."""
    random = torch.Generator().manual_seed(seed)
    x, m = torch.from_numpy(pixels), torch.from_numpy(masks)
    optimizer = torch.optim.AdamW(net.parameters(), settings.learning_rate, weight_decay=1e-3)
    average = AveragedModel(net, avg_fn=_averaged, use_buffers=True)
    losses = 0.0
    for step in range(settings.steps):
        rate = min(1, (step + 1) / WARMUP) * (0.5 + 0.5 * cos(pi * step / settings.steps))
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate + 1e-5
        pictures, covered = batch(x[HELD_OUT:], m[HELD_OUT:], size, random)
        with autocast("cpu"):
            logits = net(pictures.contiguous(memory_format=torch.channels_last))
        total = loss(logits.float(), covered)
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 2.0)
        optimizer.step()
        average.update_parameters(net)
        losses += float(total.detach())
        if (step + 1) % report_every == 0 and on_report:
            said = measure(average.module, x[:HELD_OUT], m[:HELD_OUT])
            on_report({"step": step + 1, "loss": round(losses / report_every, 4), **said})
            losses = 0.0
    trained = CoverNet()
    trained.load_state_dict(average.module.state_dict())
    return trained.eval()


def _averaged(average: Tensor, value: Tensor, updates: Tensor | int) -> Tensor:
    if not average.dtype.is_floating_point:
        return value
    return average.lerp(value, 1 - min(0.995, (float(updates) + 1) / (float(updates) + 20)))


@torch.inference_mode()
def measure(net: torch.nn.Module, pixels: Tensor, masks: Tensor) -> dict[str, float]:
    """iou: of marked and covered pixels. alarms: share of faces without a cover of which 2 % are marked."""
    was, _ = net.training, net.eval()
    marked = net(pixels.permute(0, 3, 1, 2).float() / 255) > 0
    net.train(was)
    covered = masks > 127
    free = masks.amax((1, 2)) < 26
    iou = float((marked & covered).sum() / (marked | covered).sum().clamp_min(1))
    alarms = float((marked[free].float().mean((1, 2)) > 0.02).float().mean()) if free.any() else 0.0
    return {"iou": round(iou, 3), "alarms": round(alarms, 3)}


def export(nets: Sequence[CoverNet], path: Path) -> Path:
    """The mean of some networks as one fp16 file, as latentsync.face.occlusion loads it."""
    states = [net.state_dict() for net in nets]
    names = [name for name in states[0] if not name.endswith("num_batches_tracked")]
    mean = {name: torch.stack([state[name].float() for state in states]).mean(0).half() for name in names}
    with atomic_path(path) as unfinished:
        save_file(mean, unfinished)
    return path
