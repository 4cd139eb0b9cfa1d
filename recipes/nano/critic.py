"""Image losses of the built-in model: plain differences, fine detail, and an adversarial loss."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DETAIL_GAIN = 8.0


class Critic(nn.Module):
    """A PatchGAN (Isola et al. 2017) on 8-pixel patches; its features also serve as a perceptual loss.

    It gets the fine detail again, amplified: in skin that is a hundredth of the image's range, and without it a critic
    this small takes thousands of steps to notice that detail is missing.
    """

    def __init__(self, widths: Sequence[int] = (32, 64, 128, 128)) -> None:
        super().__init__()
        inputs = (6, *widths[:-1])
        strides = (2,) * (len(widths) - 1) + (1,)
        self.layers = nn.ModuleList(
            nn.Conv2d(i, o, 4 if s == 2 else 3, stride=s, padding=1)
            for i, o, s in zip(inputs, widths, strides, strict=True)
        )
        self.head = nn.Conv2d(widths[-1], 1, 1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = []
        pixels = torch.cat((pixels, DETAIL_GAIN * _fine(pixels)), 1)
        for layer in self.layers:
            pixels = F.leaky_relu(layer(pixels), 0.2)
            features.append(pixels)
        return self.head(pixels), features


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


def adversarial_weight(total: Tensor, losses: Mapping[str, Tensor], made: Tensor, max_weight: float = 1e3) -> Tensor:
    """The weight that makes the gradient of g_loss in made as large as that of total, all other losses (Esser et al.
    2021). It falls to zero as d_loss rises to 2, that of guessing: an untrained critic does harm.
    """
    norms = [torch.autograd.grad(loss, made, retain_graph=True)[0].norm() for loss in (total, losses["g_loss"])]
    return ((norms[0] / (norms[1] + 1e-8)).clamp(max=max_weight) * (1 - losses["d_loss"] / 2).clamp(min=0)).detach()


def _texture(pixels: Tensor, size: int) -> Tensor:
    """Standard deviation of the fine detail in overlapping tiles."""
    return (F.avg_pool2d(_fine(pixels).square(), size, size // 2) + 1e-5).sqrt()


def _fine(pixels: Tensor) -> Tensor:
    """The difference from a 3 × 3 mean."""
    return pixels - F.avg_pool2d(pixels, 3, 1, 1, count_include_pad=False)


class AdversarialLoss:
    """A critic and its optimizer. losses() takes a step of the critic, then returns the losses of the images."""

    def __init__(self) -> None:
        self.critic = Critic().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.optimizer = torch.optim.AdamW(self.critic.parameters(), lr=4e-4, betas=(0.5, 0.95))

    def losses(self, made: Tensor, true: Tensor) -> dict[str, Tensor]:
        """made, true: (N, 3, H, W). d_loss: the critic's hinge loss; g_loss, features: losses of made."""
        with torch.autocast("cpu", torch.bfloat16):
            real, fake = self.critic(true)[0], self.critic(made.detach())[0]
            hinge = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
        self.optimizer.zero_grad(set_to_none=True)
        hinge.backward()
        self.optimizer.step()
        with torch.autocast("cpu", torch.bfloat16):
            logits, features = self.critic(made)
            with torch.no_grad():
                _, targets = self.critic(true)
            matched = torch.stack([F.l1_loss(f, t) for f, t in zip(features, targets, strict=True)]).mean()
        return {"d_loss": hinge.detach(), "g_loss": -logits.float().mean(), "features": matched.float()}


def plain_losses(made: Tensor, true: Tensor) -> dict[str, Tensor]:
    """made, true: (N, 3, H, W) in [-1, 1]."""
    return {
        "l1": F.l1_loss(made, true),
        "edges": edge_loss(made, true),
        "tones": tone_loss(made, true),
        "texture": texture_loss(made, true),
    }
