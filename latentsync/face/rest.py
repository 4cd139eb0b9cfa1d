"""A mouth at rest: lips that a network left open, closed in the picture."""

import cv2
import numpy as np

from .align import face_size
from .detect import FaceFinder
from .mask import mouth_mask

CHIN = 8
UPPER, LOWER = (60, 61, 62, 63, 64), (60, 67, 66, 65, 64)
"""Inner lips from left to right corner, as seen."""
PRESS = 0.01  # share of the crop by which lips overlap when they are closed, or a dark line would be left


def close_lips(crop: np.ndarray, points68: np.ndarray, amount: float) -> np.ndarray:
    """The crop with its lips closed by a share of their gap: the lower lip and the skin below move up, and what is
    between the lips shrinks.

    crop: (R, R, 3) uint8 or float32. points68: (68, 2) pixels of the crop. amount: 0 to 1.
    """
    side = len(crop)
    columns, rows = np.meshgrid(np.arange(side, dtype=np.float32), np.arange(side, dtype=np.float32))
    upper, lower = (_line(points68[list(part)], side) for part in (UPPER, LOWER))
    gap = (lower - upper).clip(0)
    moved = amount * (gap + PRESS * side * np.minimum(1, gap / (0.01 * side)))
    shown = (gap - moved).clip(0)  # what is left between the lips
    chin = max(float(points68[CHIN, 1]), float(lower.max()) + 0.1 * side)
    edge = upper + shown
    below = ((rows - edge) / np.maximum(1, chin - edge)).clip(0, 1)
    source = np.where(rows >= edge, rows + moved * (1 - below) ** 2, rows)
    inside = (rows > upper) & (rows < edge)
    source = np.where(inside, upper + (rows - upper) * gap / np.maximum(shown, 1e-3), source)
    return cv2.remap(crop, columns, source.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _line(points: np.ndarray, side: int) -> np.ndarray:
    """(R,) height of a lip's edge in each column, steadied; corners go on level."""
    order = np.argsort(points[:, 0])
    line = np.interp(np.arange(side), points[order, 0], points[order, 1]).astype(np.float32)
    return cv2.GaussianBlur(line[None], (0, 0), 0.01 * side, borderType=cv2.BORDER_REPLICATE)[0]


def rested(crop: np.ndarray, finder: FaceFinder, amount: float, source: np.ndarray | None = None) -> np.ndarray:
    """A repainted crop, (R, R, 3) in 0..255, with its lips closed; as it is where no face is found in it. source: the
    crop it was made of; what it keeps is taken from there to find the face, as it need not be painted."""
    side, seen = len(crop), crop
    if source is not None:
        seen = np.where(mouth_mask(side)[..., None] > 0.5, source, crop)
    width, height = face_size(side)  # the crop is stretched; the finder knows faces as they are
    face = cv2.resize(seen, (width, height), interpolation=cv2.INTER_AREA).clip(0, 255).astype(np.uint8)
    found = finder.refine(face, (0.0, 0.0, float(width), float(height)))
    if found is None or amount <= 0:
        return crop
    return close_lips(crop, (found.points68 + 0.5) * (side / width, side / height) - 0.5, amount)
