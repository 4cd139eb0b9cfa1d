"""A mouth at rest: lips that a network left open, closed in the picture."""

import cv2
import numpy as np

from .align import face_size
from .detect import FaceFinder
from .mask import mouth_mask

NOSE, CHIN = 33, 8
UPPER, LOWER = (60, 61, 62, 63, 64), (60, 67, 66, 65, 64)
"""Inner lips from left to right corner, as seen."""
UPPER_EDGE, LOWER_EDGE = (48, 49, 50, 51, 52, 53, 54), (48, 59, 58, 57, 56, 55, 54)
"""Where the skin begins."""
PRESS = 0.008  # share of the crop that each lip hides of the other when they are closed, or a dark line would be left
ARCH = 0.35
"""How far a closed mouth's line keeps the arch of the open upper lip; 0 is straight from corner to corner."""


def close_lips(crop: np.ndarray, points68: np.ndarray, amount: float) -> np.ndarray:
    """The crop with its lips closed by a share of their gap: both lips move as they are to the line where they meet,
    the skin up to nose and chin is stretched, and what is between the lips shrinks.

    crop: (R, R, 3) uint8 or float32. points68: (68, 2) pixels of the crop. amount: 0 to 1.
    """
    side = len(crop)
    columns, rows = np.meshgrid(np.arange(side, dtype=np.float32), np.arange(side, dtype=np.float32))
    upper, lower = (_line(points68[list(part)], side) for part in (UPPER, LOWER))
    lower = np.maximum(upper, lower)
    gap = lower - upper
    corners = _line(points68[[UPPER[0], UPPER[-1]]], side)
    meet = np.clip(corners + ARCH * (upper - corners), upper, lower)
    hidden = amount**2 * PRESS * side * np.minimum(1, gap / (0.01 * side))
    top, bottom = upper + amount * (meet - upper), lower - amount * (lower - meet)
    above, below = (_line(points68[list(part)], side) for part in (UPPER_EDGE, LOWER_EDGE))
    above, below = np.minimum(above, upper), np.maximum(below, lower)
    nose = np.minimum(points68[NOSE, 1], above - 0.02 * side)
    chin = np.maximum(points68[CHIN, 1], below + 0.1 * side)
    down, up = top - upper, lower - bottom + 2 * hidden
    high = np.where(rows < above + down, _stretched(rows, (nose, above + down), (nose, above)), rows - down)
    low = np.where(rows > below - up, _stretched(rows, (below - up, chin), (below, chin)), rows + up)
    between = upper + (rows - top) * gap / np.maximum(bottom - top, 1e-3)
    source = np.where(rows <= top - hidden, high, np.where(rows < bottom - hidden, between, low))
    return cv2.remap(crop, columns, source.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _stretched(rows: np.ndarray, here: tuple[np.ndarray, ...], there: tuple[np.ndarray, ...]) -> np.ndarray:
    """Where stretched skin comes from; at both ends its scale is unchanged (a cubic Hermite spline). What is outside
    goes with the nearer end."""
    length = here[1] - here[0]
    t = ((rows - here[0]) / length).clip(0, 1)
    inner = there[0] + length * (2 * t**3 - 3 * t**2 + t) + (there[1] - there[0]) * (3 * t**2 - 2 * t**3)
    return inner + np.minimum(rows - here[0], 0) + np.maximum(rows - here[1], 0)


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
