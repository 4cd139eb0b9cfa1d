"""Two synthetic clips and settings with which the built-in model's trainers take a second."""

from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from recipes.nano.data import MARGIN, Clip, encode_clips
from recipes.nano.unet import UNetTraining
from recipes.nano.vae import VAETraining

SIDE = 32
VAE = VAETraining(
    resolution=SIDE,
    widths=(16, 16, 16, 16),
    latent_channels=4,
    steps=8,
    batch_size=2,
    tile=32,
    report_every=2,
    learning_rate=3e-3,
)
UNET = UNetTraining(
    resolution=SIDE, widths=(32, 32), cross=(False, True), latent_channels=4, steps=60, batch_size=2, variants=2,
    report_every=5, learning_rate=3e-3,
)  # fmt: skip


def make_clip(name, frames=64, seed=0):
    """A gray face whose mouth is a dark bar that opens with the sound's first number."""
    random = np.random.default_rng(seed)
    side = SIDE + 2 * (SIDE // MARGIN)
    opening = (np.sin(np.arange(frames) / 3 + seed) * 0.5 + 0.5).astype(np.float32)
    crops = np.full((frames, side, side, 3), 150, np.uint8)
    crops[:, ::8] = 120
    for crop, value in zip(crops, opening, strict=True):
        middle, half = round(0.7 * side), round(1 + 4 * value)
        crop[middle - half : middle + half, side // 3 : 2 * side // 3] = 30
    audio = 0.1 * random.standard_normal((frames, 50, 384)).astype(np.float16)
    audio[:, :, :8] = opening[:, None, None]
    return Clip(name, 25.0, crops, audio, opening)


def two_clips():
    return [make_clip("anna_1"), make_clip("ben_1", frames=48, seed=1)]


def encode_variants(clips):
    return encode_clips(clips, encode, resolution=SIDE, variants=UNET.variants, seed=UNET.seed)


def encode(pixels):
    """Any fixed map from pixels to a grid of a factor 8 will do for the U-Net."""
    return torch.nn.functional.avg_pool2d(pixels, 8)[:, [0, 1, 2, 0]]


class Decoder(nn.Module):
    """The way back, blurred, with one number to learn."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, latents):
        return self.gain * F.interpolate(latents[:, :3], scale_factor=8, mode="bilinear")


def tiny_vae():
    """What the U-Net's trainer takes of a VAE: the inverse of encode."""
    decoder = Decoder()
    return SimpleNamespace(model=SimpleNamespace(decoder=decoder), decode=decoder)


def floats(losses):
    return {name: float(value) for name, value in losses.items()}
