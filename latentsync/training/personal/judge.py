"""How a model of a person does on the seconds of them that it was not trained on."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...evaluation.image_metrics import lips_region, sharpness, ssim_map
from ...evaluation.mouth_motion import correlation
from ...face.detect import FaceFinder, mouth_opening
from ...models.unet import UNet
from ...sampling import denoise, shared_noise
from ...settings import WINDOW
from ..dataset import to_signed
from ..unet.codec import Codec
from .examples import Examples

MOST_WINDOWS = 4
EVERY = 3
"""Frames between two whose pictures are compared."""


@dataclass(frozen=True)
class Figures:
    """opening: correlation of made and true mouth opening; 0 where there is none. similarity: SSIM at the lips.
    sharpness: variance of the Laplacian there, made over true."""

    opening: float
    similarity: float
    sharpness: float

    @property
    def score(self) -> float:
        """What the best weights have most of. Likeness weighs most: the longer a short clip is trained on, the more
        detail is made up. More of it than the true mouth has is no gain."""
        return 2 * self.similarity + self.opening / 2 + min(self.sharpness, 1.0) / 4


@dataclass(frozen=True)
class Judge:
    """Makes held-out moments, with the person's own frames as references, as in use, and compares them."""

    examples: Examples
    codec: Codec
    finder: FaceFinder
    seed: int

    @property
    def moments(self) -> np.ndarray:
        """The first whole windows of the held-out runs; or what there is."""
        runs = self.examples.held_out
        starts = [(s, s + WINDOW) for a, b in runs for s in range(a, b - WINDOW + 1, WINDOW)]
        return np.concatenate([np.arange(a, b) for a, b in starts[:MOST_WINDOWS] or runs[:1]])

    def make(self, unet: UNet) -> np.ndarray:
        """(F, R, R, 3) uint8: the held-out moments with a new mouth."""
        moments, codec, examples = self.moments, self.codec, self.examples
        parts = [self._window(unet, moments[i : i + WINDOW]) for i in range(0, len(moments), WINDOW)]
        made, true = torch.cat(parts), to_signed(examples.pixels(moments))
        whole = torch.where(codec.keep.cpu() > 0.5, true, made.cpu())
        return ((whole + 1) * 127.5).round().clamp(0, 255).byte().movedim(1, -1).numpy()

    def _window(self, unet: UNet, moments: np.ndarray) -> Tensor:
        codec, examples, config = self.codec, self.examples, unet.config
        device, dtype = codec.device, codec.dtype
        clean, masked = (part[moments].float().transpose(0, 1)[None] for part in (examples.clean, examples.masked))
        if config.reference_mode == "first_frame":
            clean = clean[:, :, :1].expand_as(masked)
        noise = shared_noise(self.seed, clean.shape[1], *clean.shape[-2:]).expand_as(masked)
        mask = codec.mask.expand(1, 1, len(moments), -1, -1)
        audio = examples.audio[moments].float()[None]
        unet.eval()
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            latents = denoise(
                unet, noise.to(device), mask, masked.to(device), clean.to(device), audio.to(device),
                steps=config.default_steps, guidance=config.default_guidance,
            )  # fmt: skip
            made = torch.cat([codec.decode(part.transpose(1, 2)) for part in latents.split(4, dim=2)], 1)[0]
        unet.train()
        return made.clamp(-1, 1)

    def figures(self, made: np.ndarray) -> Figures:
        moments, examples, side = self.moments, self.examples, self.examples.crops.shape[1]
        similar, fine = [], []
        for i in range(0, len(made), EVERY):
            true = examples.crops[moments[i]]
            lips = lips_region(examples.landmarks[moments[i]], side)
            similar.append(ssim_map(made[i], true)[lips].mean())
            fine.append((sharpness(made[i], lips), sharpness(true, lips)))
        sums = np.sum(fine, 0)
        return Figures(self._opening(made), float(np.mean(similar)), float(sums[0] / max(sums[1], 1e-6)))

    def _opening(self, made: np.ndarray) -> float:
        """The mouth is looked for where it was filmed."""
        found = []
        for picture, points in zip(made, self.examples.landmarks[self.moments], strict=True):
            (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
            face = self.finder.refine(picture, (left, top, right, bottom))
            if face is not None:
                found.append((face.points68, points))
        if not found:
            return 0.0
        pairs = np.stack(found, 1)
        return correlation(*(mouth_opening(points) for points in pairs)) or 0.0
