"""What training a model of a person takes, computed before it begins."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import UserError
from ..dataset import Sample
from ..memory import CUDA_ITSELF, StepMemory, step_memory
from ..recipes import RunSettings
from .trainer import PersonalTrainer

GB = 1e9
ROOM = 0.95


@dataclass(frozen=True)
class Plan:
    """memory: of a step. free: bytes of the device. None where the network is small."""

    steps: int
    frames: int
    memory: StepMemory | None = None
    free: int = 0

    def lines(self, checkpoint: str) -> list[str]:
        out = [f"at most {self.steps} steps on {self.frames} frames of the person"]
        if self.memory is not None:
            parts = ", ".join(f"{name} {value / GB:.1f}" for name, value in vars(self.memory).items() if value)
            out.append(f"{checkpoint} takes {self.memory.total / GB:.1f} GB in training ({parts} GB)")
        return out

    def check(self) -> None:
        """UserError where it would not fit."""
        if self.memory is not None and self.free and self.memory.total > ROOM * self.free:
            raise UserError(
                f"Training takes {self.memory.total / GB:.1f} GB, and {self.free / GB:.1f} GB are free; close other"
                " programs, or choose nano as the checkpoint."
            )


def make_plan(trainer: PersonalTrainer) -> Plan:
    """Takes no step. The memory is computed on tensors without content, for networks that are not small."""
    settings, frames = trainer.settings, len(trainer.examples.crops)
    if settings.decoder:
        return Plan(settings.steps, frames)
    device, fused = trainer.codec.device, trainer.fused

    def loss(batch: Sample) -> Tensor:
        return trainer.losses(trainer.unet, batch)["total"]

    trainer.fused = True  # as on a card, for which this is said on a CPU too
    memory = step_memory(
        trainer.unet, [trainer.codec.vae], loss, trainer.batch(), RunSettings(ema_decay=settings.ema_decay), device,
        itself=CUDA_ITSELF,
    )  # fmt: skip
    trainer.fused = fused
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    return Plan(settings.steps, frames, memory, free)
