"""From three facial points to an upright crop and back: similarity transforms and crops.

All constants are those that the published LatentSync weights were trained with. Coordinates are in pixels, (x, y),
with (0, 0) at the center of the first pixel, as OpenCV's warps have it.
"""

import cv2
import numpy as np

from ..errors import UserError

TEMPLATE = np.array([(17.0, 20.0), (58.0, 20.0), (37.5, 40.0)])
"""Left brow, right brow, nose in a face of 75 x 100 units; left and right as seen."""
FACE_UNITS = (75, 100)
UNITS_RESOLUTION = 256 / 2.8  # crop resolution at which one template unit is one pixel
FILL = 127  # grey outside the frame
BIAS_KEEP = 0.2  # the share of the previous frame's bias in the reference's smoothing


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
    warped = _warp(frame, fine, (side * fine_x, side * fine_y), cv2.INTER_CUBIC)  # linear would blur what is averaged
    return cv2.resize(warped, (side, side), interpolation=cv2.INTER_AREA)


def _warp(frame: np.ndarray, matrix: np.ndarray, size: tuple[int, int], flags: int = cv2.INTER_LINEAR) -> np.ndarray:
    return cv2.warpAffine(frame, matrix, size, flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=(FILL,) * 3)
