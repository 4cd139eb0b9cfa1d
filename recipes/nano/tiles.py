"""The part of a picture that is decoded for losses: the lips and what is around them, at varying places."""

import numpy as np
import torch
from torch import Tensor

from latentsync.models.vae import VAE

from .data import RESOLUTION
from .scenes import mouth_box

TILE = (10, 12)
"""Rows and columns, in latent cells."""

Tile = tuple[slice, slice]
"""Rows and columns of latent cells."""


def mouth_tile(random: np.random.Generator) -> Tile:
    """Over the lips, or a little above, or down to the chin."""
    top, left = int(random.integers(10, 14)), int(random.integers(5, 8))
    return slice(top, top + TILE[0]), slice(left, left + TILE[1])


def any_tile(random: np.random.Generator) -> Tile:
    (rows, columns), cells = TILE, RESOLUTION // 8
    top, left = int(random.integers(1, cells - rows)), int(random.integers(1, cells - columns))
    return slice(top, top + rows), slice(left, left + columns)


def decode_tile(vae: VAE, latents: Tensor, tile: Tile, margin: int = 1) -> Tensor:
    """(N, C, h, w) latents to the pixels of a tile; only that and some cells around it are decoded."""
    rows, columns = (slice(part.start - margin, part.stop + margin) for part in tile)
    inner = slice(8 * margin, -8 * margin)
    return vae.decode(latents[:, :, rows, columns])[:, :, inner, inner]


def tile_of(pictures: Tensor, tile: Tile, *, whole: bool = False) -> Tensor:
    """The same part of pictures, (N, 3, h, w) float32 in [-1, 1]. They are (N, 3, H, W) uint8: the mouth_box, or
    whole."""
    starts = [0 if whole else box.start for box in mouth_box(RESOLUTION)]
    rows, columns = (slice(8 * p.start - start, 8 * p.stop - start) for p, start in zip(tile, starts, strict=True))
    pixels = pictures[:, :, rows, columns].float() / 127.5 - 1
    return pixels.contiguous(memory_format=torch.channels_last)
