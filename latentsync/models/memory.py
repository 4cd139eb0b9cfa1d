"""How much a network computes at once, and what it does when the memory of the card does not suffice."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .unet_config import UNetConfig

UNET_BYTES = 0.27e9
"""What one branch of one window of 16 frames takes beyond the weights: full-size U-Net, 256 px, 2 bytes a number."""
VAE_BYTES = 0.1e9
"""The same for one picture of the full-size VAE. Both were counted on meta tensors, and grow with the area."""
PICTURES = 4
"""Pictures of 256 px that the VAE takes at once where memory is no question."""


@dataclass(frozen=True)
class MemoryPlan:
    """windows: computed together. together: with and without the speech in one batch. pictures: of 256 px, at once in
    the VAE."""

    windows: int = 1
    together: bool = True
    pictures: int = PICTURES

    def smaller(self) -> "MemoryPlan | None":
        """The next one that takes less; None where there is none."""
        if self.windows > 1:
            return MemoryPlan(self.windows // 2, self.together, self.pictures)
        if self.together:
            return MemoryPlan(1, False, self.pictures)
        return MemoryPlan(1, False, 1) if self.pictures > 1 else None

    def bytes(self, config: UNetConfig, resolution: int, itemsize: int, *, guided: bool) -> float:
        """About what it takes beyond the weights."""
        area = (resolution / 256) ** 2 * itemsize / 2
        branches = 2 if guided and self.together else 1
        unet = UNET_BYTES * config.widths[0] / UNetConfig.widths[0] * self.windows * branches
        # a picture larger than 256 px goes alone
        vae = VAE_BYTES * max(1, self.pictures / (resolution / 256) ** 2)
        return area * max(unet, vae)


def plans(first: MemoryPlan) -> Iterator[MemoryPlan]:
    """It and all smaller ones, from the largest on."""
    plan: MemoryPlan | None = first
    while plan is not None:
        yield plan
        plan = plan.smaller()


def free_bytes(device: torch.device) -> int | None:
    """Memory that a card has left, what PyTorch holds in reserve included; None where it cannot be asked."""
    if device.type != "cuda":
        return None
    reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + reserve


def is_out_of_memory(error: BaseException) -> bool:
    """Apple's GPU raises no error of its own class."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "out of memory" in str(error).lower()
    )


def give_back(device: torch.device) -> None:
    """Free what PyTorch keeps in reserve."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
