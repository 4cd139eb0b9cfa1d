"""Losses of pictures: plain differences and fine detail."""

import torch.nn.functional as F
from torch import Tensor

from .critic import fine_detail


def edge_loss(a: Tensor, b: Tensor, scales: int = 3) -> Tensor:
    """Mean absolute difference of the horizontal and vertical gradients over a pyramid, against blur."""
    total = a.new_zeros(())
    for _ in range(scales):
        difference = a - b
        total = total + difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return total


def tone_loss(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference of coarse tiles: colors, which normalized features are slow to learn."""
    return sum((F.l1_loss(F.avg_pool2d(a, size), F.avg_pool2d(b, size)) for size in (4, 16)), a.new_zeros(()))


def texture_loss(a: Tensor, b: Tensor, size: int = 8) -> Tensor:
    """Mean absolute difference of the amount of fine detail, whatever its position. Other losses prefer no detail to
    detail that is a pixel off."""
    return F.l1_loss(_texture(a, size), _texture(b, size))


def _texture(pixels: Tensor, size: int) -> Tensor:
    """Standard deviation of the fine detail in overlapping tiles."""
    return (F.avg_pool2d(fine_detail(pixels).square(), size, size // 2) + 1e-5).sqrt()


def plain_losses(made: Tensor, true: Tensor) -> dict[str, Tensor]:
    """made, true: (N, 3, H, W) in [-1, 1]."""
    return {
        "l1": F.l1_loss(made, true),
        "edges": edge_loss(made, true),
        "tones": tone_loss(made, true),
        "texture": texture_loss(made, true),
    }
