"""Face crops to the U-Net's conditions, and its latents back to pixels. No state between calls."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .face.mask import latent_mask, mouth_mask


class Autoencoder(Protocol):
    """A VAE of the engine, or a host's behind the same calls. Pixels are in [-1, 1], latents are scaled.

    top: nobody looks at the rows of pixels above it.
    """

    channels: int
    factor: int

    def encode(self, pixels: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor, top: int = 0) -> Tensor: ...


def encode_crops(
    encode: Callable[[Tensor], Tensor], pixels: Tensor, keep: Tensor, reference: Tensor | None = None
) -> Tensor:
    """(N, 3, R, R) pixels in [-1, 1] to (N, 2C, h, w): latents without the mouth, then the reference's.

    keep: (R, R), 0 at the mouth. reference: latents (1, C, h, w) that serve all; None: each crop is its own.
    """
    masked = encode(pixels * keep)
    return torch.cat((masked, (encode(pixels) if reference is None else reference).expand_as(masked)), 1)


class ConditionEncoder:
    """Encodes crops of one side (`resolution`) for one VAE. mask: (h, w), 1 = keep, 0 = the mouth."""

    def __init__(
        self,
        vae: Autoencoder,
        resolution: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.vae, self.device, self.dtype = vae, device, dtype
        self.keep = torch.from_numpy(mouth_mask(resolution)).to(device, dtype)
        self.mask = torch.from_numpy(latent_mask(resolution, vae.factor)).to(device, dtype)

    def encode(self, crops: Sequence[np.ndarray] | np.ndarray, reference: Tensor | None = None) -> Tensor:
        """(N, R, R, 3) uint8 crops to (N, 2C, h, w), see encode_crops."""
        return encode_crops(self.vae.encode, self._pixels(crops), self.keep, reference)

    def encode_reference(self, crop: np.ndarray) -> Tensor:
        """(1, C, h, w): latents of one crop, mouth included."""
        return self.vae.encode(self._pixels([crop]))

    def window(self, crops: Sequence[np.ndarray], sources: Sequence[int], reference: Tensor | None = None) -> Tensor:
        """(2C + 1, F, h, w): mask, masked and reference latents of one window; a source frame is encoded once."""
        first = {source: i for i, source in reversed(list(enumerate(sources)))}
        order = sorted(first, key=lambda source: first[source])
        encoded = self.encode([crops[first[source]] for source in order], reference)
        rows = torch.tensor([order.index(source) for source in sources], device=encoded.device)
        latents = encoded[rows].transpose(0, 1)
        return torch.cat((self.mask.expand(1, len(sources), *self.mask.shape), latents))

    def decode(self, latents: Tensor, top: int = 0) -> Tensor:
        """(C, F, h, w) latents to (F, R, R, 3) float32 pixels in 0..255, on the CPU. top: see Autoencoder."""
        pixels = self.vae.decode(latents.transpose(0, 1).to(self.device, self.dtype), top)
        return ((pixels.float().clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).cpu()

    def _pixels(self, crops: Sequence[np.ndarray] | np.ndarray) -> Tensor:
        pixels = torch.from_numpy(np.ascontiguousarray(crops)).to(self.device)
        return (pixels.permute(0, 3, 1, 2).to(self.dtype) / 127.5) - 1
