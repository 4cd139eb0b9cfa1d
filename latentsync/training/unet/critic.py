"""An adversarial loss of decoded mouths."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ...models.device import autocast

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
        pixels = torch.cat((pixels, DETAIL_GAIN * fine_detail(pixels)), 1)
        for layer in self.layers:
            pixels = F.leaky_relu(layer(pixels), 0.2)
            features.append(pixels)
        return self.head(pixels), features


def fine_detail(pixels: Tensor) -> Tensor:
    """The difference from a 3 × 3 mean."""
    return pixels - F.avg_pool2d(pixels, 3, 1, 1, count_include_pad=False)


def adversarial_weight(total: Tensor, losses: Mapping[str, Tensor], made: Tensor, max_weight: float = 1e3) -> Tensor:
    """The weight that makes the gradient of g_loss in made as large as that of total, all other losses (Esser et al.
    2021). It falls to zero as d_loss rises to 2, that of guessing: an untrained critic does harm.
    """
    norms = [torch.autograd.grad(loss, made, retain_graph=True)[0].norm() for loss in (total, losses["g_loss"])]
    return ((norms[0] / (norms[1] + 1e-8)).clamp(max=max_weight) * (1 - losses["d_loss"] / 2).clamp(min=0)).detach()


class AdversarialLoss:
    """A critic and its optimizer. losses() takes a step of the critic, then returns the losses of the images. With
    several processes every critic takes the mean of their gradients, so that all stay alike."""

    def __init__(self, seed: int | None = None) -> None:
        """seed: of the weights; None: they come from PyTorch's generator."""
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            self.critic = Critic().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.optimizer = torch.optim.AdamW(self.critic.parameters(), lr=4e-4, betas=(0.5, 0.95))

    def losses(self, made: Tensor, true: Tensor) -> dict[str, Tensor]:
        """made, true: (N, 3, H, W). d_loss: the critic's hinge loss; g_loss, features: losses of made."""
        with autocast(made.device.type):
            real, fake = self.critic(true)[0], self.critic(made.detach())[0]
            hinge = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
        self.optimizer.zero_grad(set_to_none=True)
        hinge.backward()
        self._average_gradients()
        self.optimizer.step()
        with autocast(made.device.type):
            logits, features = self.critic(made)
            with torch.no_grad():
                _, targets = self.critic(true)
            matched = torch.stack([F.l1_loss(f, t) for f, t in zip(features, targets, strict=True)]).mean()
        return {"d_loss": hinge.detach(), "g_loss": -logits.float().mean(), "features": matched.float()}

    def to(self, device: torch.device) -> None:
        self.critic.to(device)

    def _average_gradients(self) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            return
        for parameter in self.critic.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()

    def state_dict(self) -> dict[str, Any]:
        return {"critic": self.critic.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.critic.load_state_dict(state["critic"])
        self.optimizer.load_state_dict(state["optimizer"])
