"""The mouth mask: which pixels of an aligned crop are repainted, as the published weights were trained."""

from functools import lru_cache

import numpy as np

from ..errors import UserError

MASK_SIZE = 256
CHEEK_ROWS, CHEEKS = range(95, 128), ((9, 78), (178, 247))
MOUTH_ROWS = range(128, 243)
# fmt: off
MOUTH_LEFT = (9,) * 8 + (10,) * 14 + (11,) * 14 + (12,) * 7 + (
    13, 13, 14, 14, 15, 15, 16, 16, 17, 18, 18, 19, 19, 20, 21, 21, 22, 22, 23, 24, 25, 26, 26, 27, 28, 29,
    30, 31, 32, 33, 34, 34, 35, 36, 37, 38, 39, 40, 42, 43, 44, 45, 47, 48, 49, 51, 52, 54, 56, 57, 59, 60,
    62, 64, 66, 68, 70, 72, 74, 76, 78, 80, 82, 85, 87, 90, 93, 95, 99, 104, 108, 131,
)
MOUTH_RIGHT = (248,) * 7 + (247,) * 14 + (246,) * 14 + (245,) * 7 + (
    244, 244, 243, 243, 242, 242, 241, 241, 240, 239, 239, 238, 237, 237, 236, 235, 235, 234, 233, 233, 232,
    231, 231, 230, 229, 229, 228, 227, 226, 225, 224, 224, 223, 222, 221, 220, 219, 218, 217, 216, 215, 214,
    213, 212, 211, 209, 208, 207, 205, 204, 203, 201, 200, 198, 197, 195, 193, 192, 190, 188, 186, 184, 181,
    179, 176, 174, 172, 169, 167, 165, 161, 157, 153,
)
# fmt: on
"""What is repainted of a 256 x 256 crop: two cheek patches, then from left up to (not with) right in each mouth row."""


@lru_cache
def _mask256() -> np.ndarray:
    mask = np.ones((MASK_SIZE, MASK_SIZE), np.float32)
    for left, right in CHEEKS:
        mask[CHEEK_ROWS.start : CHEEK_ROWS.stop, left:right] = 0
    for row, left, right in zip(MOUTH_ROWS, MOUTH_LEFT, MOUTH_RIGHT, strict=True):
        mask[row, left:right] = 0
    return mask


def mouth_mask(resolution: int) -> np.ndarray:
    """What a crop keeps: (R, R) float32, 1 = keep, 0 = repaint; nearest neighbour of the trained 256 x 256 mask."""
    nearest = np.arange(resolution) * MASK_SIZE // resolution
    return _mask256()[np.ix_(nearest, nearest)]


def latent_mask(resolution: int, factor: int) -> np.ndarray:
    """The keep-mask on the grid of a VAE that shrinks by factor: (R / factor, R / factor) float32."""
    if resolution % factor:
        raise UserError(f"Resolution {resolution} is not a multiple of the VAE's factor {factor}; choose one that is.")
    return np.ascontiguousarray(mouth_mask(resolution)[::factor, ::factor])
