"""The autoencoder between pictures and latents: Stable Diffusion's AutoencoderKL, by diffusers, of any size."""

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError

SCALING = 0.18215
"""One over the standard deviation of Stable Diffusion 1.x latents (Rombach et al. 2022); shift is 0 there."""
GROUPS = 32
PIXELS_AT_ONCE = 4 * 256 * 256
"""Pixels that go through together: four frames of 256 px. The full-size decoder takes some 200 MB for each (fp32)."""


class VAE(nn.Module):
    """channels: of the latents. factor: pixels per latent cell along each side."""

    def __init__(self, model: nn.Module, *, scaling: float = SCALING, shift: float = 0.0) -> None:
        super().__init__()
        self.model: Any = model
        self.scaling, self.shift = scaling, shift
        self.channels: int = model.config.latent_channels  # type: ignore[union-attr]
        self.factor = 2 ** (len(model.config.block_out_channels) - 1)  # type: ignore[union-attr, arg-type]

    @property
    def dtype(self) -> torch.dtype:
        return self.model.decoder.conv_in.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.model.decoder.conv_in.weight.device

    def encode(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] → (N, C, H / factor, W / factor), the posterior's mean, scaled. Dtype is kept."""
        height, width = pixels.shape[-2:]
        if pixels.ndim != 4 or pixels.shape[1] != 3 or height % self.factor or width % self.factor:
            raise UserError(
                f"The VAE got pictures of shape {tuple(pixels.shape)}; it takes (N, 3, H, W) with H and W multiples of"
                f" {self.factor}."
            )
        parts = [self._mean(part) for part in pixels.split(_at_once(height * width))]
        return torch.cat(parts).to(pixels.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """(N, C, h, w) → (N, 3, h · factor, w · factor), about [-1, 1], not clipped. Dtype is kept."""
        if latents.ndim != 4 or latents.shape[1] != self.channels:
            raise UserError(
                f"The VAE got latents of shape {tuple(latents.shape)}; it takes (N, {self.channels}, h, w)."
            )
        area = latents.shape[-1] * latents.shape[-2] * self.factor**2
        parts = (self._ready(part / self.scaling + self.shift) for part in latents.split(_at_once(area)))
        return torch.cat([self.model.decode(part).sample for part in parts]).to(latents.dtype)

    def _mean(self, pixels: Tensor) -> Tensor:
        mean = self.model.encode(self._ready(pixels)).latent_dist.mean
        return (mean.to(torch.promote_types(mean.dtype, pixels.dtype)) - self.shift) * self.scaling

    def _ready(self, x: Tensor) -> Tensor:
        return x.to(self.device, self.dtype).contiguous(memory_format=torch.channels_last)


def _at_once(area: int) -> int:
    return max(1, PIXELS_AT_ONCE // max(1, area))
