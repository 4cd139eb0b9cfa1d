"""The VAE in training: encoding and decoding in the trainer's precision, and the mask of the mouth."""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ...face.mask import latent_mask, mouth_mask
from ...models.vae import PICTURE, VAE

AT_ONCE = 4
"""Frames of 256 px that are decoded at once, of larger ones fewer; only these have their activations in memory."""


class Codec:
    """keep: (R, R), 0 where the mouth is repainted; mask: the same in latent cells. gradient_checkpointing: recompute
    the decoder's activations in the backward pass."""

    def __init__(
        self, vae: VAE, resolution: int, dtype: torch.dtype = torch.float32, *, gradient_checkpointing: bool = False
    ) -> None:
        self.vae, self.dtype, self.gradient_checkpointing = vae, dtype, gradient_checkpointing
        self.keep = torch.from_numpy(mouth_mask(resolution))
        self.mask = torch.from_numpy(latent_mask(resolution, vae.factor))

    @property
    def device(self) -> torch.device:
        return self.mask.device

    def to(self, device: torch.device) -> None:
        self.vae.to(device)
        self.keep, self.mask = self.keep.to(device), self.mask.to(device)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """(…, 3, R, R) in [-1, 1] to latents (…, C, h, w) float32."""
        with self.autocast():
            return self.vae.encode(pixels.flatten(0, -4)).float().unflatten(0, pixels.shape[:-3])

    def encode_pair(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(…, 3, R, R) in [-1, 1] to the latents of the images and of the masked images."""
        clean, masked = self.encode(torch.stack((pixels, pixels * self.keep)))
        return clean, masked

    def decode(self, latents: Tensor) -> Tensor:
        """(B, F, C, h, w) to images (B, F, 3, R, R), with gradients."""
        parts, area = [], latents.shape[-1] * latents.shape[-2] * self.vae.factor**2
        for part in latents.flatten(0, 1).split(max(1, AT_ONCE * PICTURE // area)):
            recompute = self.gradient_checkpointing and part.requires_grad
            decode: Any = partial(checkpoint, self.vae.decode, use_reentrant=False) if recompute else self.vae.decode
            with self.autocast():
                parts.append(decode(part))
        return torch.cat(parts).float().unflatten(0, latents.shape[:2])


def spread_evenly(count: int, picked: int) -> list[int]:
    """Indices from 0 to count - 1."""
    return np.linspace(0, count - 1, picked).round().astype(int).tolist()
