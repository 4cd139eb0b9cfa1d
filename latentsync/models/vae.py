"""The autoencoder between pictures and latents: diffusers' AutoencoderKL, of any size. A smaller kind: `tiny_vae`."""

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from .memory import PICTURES

SCALING = 0.18215
"""One over the standard deviation of Stable Diffusion 1.x latents (Rombach et al. 2022); shift is 0 there."""
GROUPS = 32
PICTURE = 256 * 256
"""Pixels of a frame of 256 px. The full-size decoder takes some 200 MB for each (fp32)."""


class VAE(nn.Module):
    """Over an AutoencoderKL. channels: of the latents. factor: pixels per latent cell along each side.

    scaling, shift: latents here are what the network gives, less the shift, times the scaling. pictures_at_once: of 256
    px, that go through together.
    """

    def __init__(self, model: nn.Module, *, scaling: float = SCALING, shift: float = 0.0) -> None:
        super().__init__()
        self.model: Any = model
        self.scaling, self.shift = scaling, shift
        self.pictures_at_once = PICTURES
        self.channels: int = model.config.latent_channels  # type: ignore[union-attr]
        self.factor = 2 ** (len(model.config.block_out_channels) - 1)  # type: ignore[union-attr, arg-type]

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def stored(self) -> tuple[float, float]:
        """Scaling and shift of latents as other programs keep them (ComfyUI's LATENT): ours are (theirs − shift) ·
        scaling."""
        return self.scaling, self.shift

    def encode(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] → (N, C, H / factor, W / factor), the posterior's mean, scaled. Dtype is kept."""
        height, width = pixels.shape[-2:]
        if pixels.ndim != 4 or pixels.shape[1] != 3 or height % self.factor or width % self.factor:
            raise UserError(
                f"The VAE got pictures of shape {tuple(pixels.shape)}; it takes (N, 3, H, W) with H and W multiples of"
                f" {self.factor}."
            )
        parts = [self._mean(part) for part in pixels.split(self._at_once(height * width))]
        return torch.cat(parts).to(pixels.dtype)

    def decode(self, latents: Tensor, top: int = 0) -> Tensor:
        """(N, C, h, w) → (N, 3, h · factor, w · factor), about [-1, 1], not clipped. Dtype is kept.

        top: nobody looks at the rows of pixels above it; a network that can leave them out repeats row `top` there.
        """
        if latents.ndim != 4 or latents.shape[1] != self.channels:
            raise UserError(
                f"The VAE got latents of shape {tuple(latents.shape)}; it takes (N, {self.channels}, h, w)."
            )
        area = latents.shape[-1] * latents.shape[-2] * self.factor**2
        parts = (self._ready(part / self.scaling + self.shift) for part in latents.split(self._at_once(area)))
        return torch.cat([self._pixels(part, top) for part in parts]).to(latents.dtype)

    def _encoded(self, pixels: Tensor) -> Tensor:
        return self.model.encode(pixels).latent_dist.mean

    def _pixels(self, latents: Tensor, top: int) -> Tensor:
        return self.model.decode(latents).sample

    def _mean(self, pixels: Tensor) -> Tensor:
        mean = self._encoded(self._ready(pixels))
        return (mean.to(torch.promote_types(mean.dtype, pixels.dtype)) - self.shift) * self.scaling

    def _ready(self, x: Tensor) -> Tensor:
        return x.to(self.device, self.dtype).contiguous(memory_format=torch.channels_last)

    def _at_once(self, area: int) -> int:
        """Pictures that go through together. On a CPU one, but for training: more are not faster there, and the
        rounding would depend on what is encoded together."""
        alone = self.device.type == "cpu" and not torch.is_grad_enabled()
        return 1 if alone else max(1, self.pictures_at_once * PICTURE // max(1, area))
