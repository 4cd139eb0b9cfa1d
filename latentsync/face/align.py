"""From three facial points to an upright crop and back: similarity transforms, crops and the mouth mask.

All constants are those that the published LatentSync weights were trained with. Coordinates are in pixels, (x, y),
with (0, 0) at the center of the first pixel, as OpenCV's warps have it.
"""

from functools import lru_cache

import cv2
import numpy as np

from ..errors import UserError

TEMPLATE = np.array([(17.0, 20.0), (58.0, 20.0), (37.5, 40.0)])
"""Left brow, right brow, nose in a face of 75 x 100 units; left and right as seen."""
FACE_UNITS = (75, 100)
UNITS_RESOLUTION = 256 / 2.8  # crop resolution at which one template unit is one pixel
FILL = 127  # grey outside the frame
BIAS_KEEP = 0.2  # the share of the previous frame's bias in the reference's smoothing

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


def face_size(resolution: int) -> tuple[int, int]:
    """Width and height of the upright face before it is stretched to a square crop: 210 x 280 at 256."""
    scale = resolution / UNITS_RESOLUTION
    return round(FACE_UNITS[0] * scale), round(FACE_UNITS[1] * scale)


def template(resolution: int) -> np.ndarray:
    """Where left brow, right brow and nose lie in the face of face_size(resolution): (3, 2)."""
    return TEMPLATE * (resolution / UNITS_RESOLUTION)


def align_matrices(points: np.ndarray, resolution: int, *, reference: bool = False) -> np.ndarray:
    """Similarity transforms that take a frame's pixels to the upright face of face_size(resolution).

    points: (F, 3, 2) left brow, right brow, nose in pixels of the frame. Returns (F, 2, 3) float64.
    reference: repeat the public implementation, which rounds the points to whole pixels and shifts by a smoothed bias.
    """
    points = np.asarray(points, np.float64)
    if points.ndim != 3 or points.shape[1:] != (3, 2):
        raise UserError(f"Alignment got points of shape {points.shape}; give (frames, 3, 2): two brows and the nose.")
    source = np.round(points) if reference else points
    target = template(resolution)
    matrices = _similarities(source, target)
    if reference:
        matrices[:, :, 2] += _smoothed_bias(source, target)
    return matrices


def _similarities(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    center, aim = source.mean(1, keepdims=True), target.mean(0)
    left, _, right = np.linalg.svd((source - center).transpose(0, 2, 1) @ (target - aim))
    right[np.linalg.det(left @ right) < 0, -1] *= -1  # a face is never mirrored: flip the weaker axis back
    scale = _spread(target[None]) / _spread(source)
    rotation = (left @ right).transpose(0, 2, 1) * scale[:, None, None]
    shift = aim[:, None] - rotation @ center.transpose(0, 2, 1)
    return np.concatenate([rotation, shift], 2)


def _spread(points: np.ndarray) -> np.ndarray:
    """Standard deviation over all six centered coordinates, unbiased: the reference's measure of size."""
    centered = points - points.mean(1, keepdims=True)
    return centered.reshape(len(points), -1).std(1, ddof=1)


def _smoothed_bias(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    nose = (source[:, 2] - source.mean(1)) / _spread(source)[:, None]
    bias = (target[2] - target.mean(0)) / _spread(target[None]) - nose
    for i in range(1, len(bias)):
        bias[i] = BIAS_KEEP * bias[i - 1] + (1 - BIAS_KEEP) * bias[i]
    return bias


def rescaled(matrix: np.ndarray, x: float, y: float) -> np.ndarray:
    """The transform followed by a resize of its picture by x and y (pixel edges, not centers, stay in place)."""
    scale = np.array([[x], [y]])
    shifted = matrix * scale
    shifted[:, 2:] += (scale - 1) / 2  # the center of pixel 0 lies half a pixel inside its edge
    return shifted


def crop_matrix(matrix: np.ndarray, resolution: int) -> np.ndarray:
    """frame -> face of face_size(resolution) becomes frame -> square R x R crop."""
    width, height = face_size(resolution)
    return rescaled(matrix, resolution / width, resolution / height)


def crop_face(frame: np.ndarray, matrix: np.ndarray, resolution: int, *, reference: bool = False) -> np.ndarray:
    """The aligned face as (R, R, 3) uint8 RGB; gray where the frame ends.

    frame: (H, W, 3) uint8. matrix: (2, 3), from align_matrices at the same resolution.
    reference: two resamplings (bilinear, then Lanczos) as in the public implementation.
    """
    if reference:
        warped = _warp(frame.astype(np.float32), matrix, face_size(resolution))
        upright = warped.astype(np.uint8)  # cut off, not rounded
        return cv2.resize(upright, (resolution, resolution), interpolation=cv2.INTER_LANCZOS4)
    return resample(frame, crop_matrix(matrix, resolution), resolution)


def resample(frame: np.ndarray, matrix: np.ndarray, side: int) -> np.ndarray:
    """One warp to (side, side, 3); where that shrinks, a finer picture is averaged down, so that nothing aliases."""
    # samples per output pixel along an axis: one at up to 1.25 source pixels, then enough to see each of them
    shrinks = 1 / np.linalg.norm(matrix[:, :2], axis=1)
    fine_x, fine_y = (1 if shrink <= 1.25 else int(np.ceil(shrink - 0.25)) for shrink in shrinks.tolist())
    fine = rescaled(matrix, fine_x, fine_y)
    if fine_x == fine_y == 1:
        return _warp(frame, fine, (side, side), cv2.INTER_CUBIC)
    return cv2.resize(_warp(frame, fine, (side * fine_x, side * fine_y)), (side, side), interpolation=cv2.INTER_AREA)


def _warp(frame: np.ndarray, matrix: np.ndarray, size: tuple[int, int], flags: int = cv2.INTER_LINEAR) -> np.ndarray:
    return cv2.warpAffine(frame, matrix, size, flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=(FILL,) * 3)


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
        raise UserError(f"Resolution {resolution} is no multiple of the VAE's factor {factor}; choose one that is.")
    return np.ascontiguousarray(mouth_mask(resolution)[::factor, ::factor])
