"""A mouth at rest: lips that a network left open, closed in the picture."""

import cv2
import numpy as np

from .align import face_size
from .detect import FaceFinder
from .mask import mouth_mask

CHIN = 8
UPPER, LOWER = (60, 61, 62, 63, 64), (60, 67, 66, 65, 64)
"""Inner lips from left to right corner, as seen."""
PRESS = 0.01  # share of the crop that is left out of a closed lip's edge, or a dark line would stay
WIDE = 0.02
"""Gap, as a share of the crop, from which lips are looked for in the picture too: in a mouth that is wide open the
landmarks lie within the gap."""
REACH = 0.2  # how far beyond the landmarks, as a share of the crop
DARKEST = 0.4  # of the way from the gap's gray to the skin's; what is darker belongs to the gap
DARK = 0.65  # of the skin's gray; a lighter gap (teeth, a tongue) tells nothing


def close_lips(crop: np.ndarray, points68: np.ndarray, amount: float) -> np.ndarray:
    """The crop with its lips closed by a share of their gap: the lower lip and the skin below move up, and what is
    between the lips shrinks.

    crop: (R, R, 3) uint8 or float32. points68: (68, 2) pixels of the crop. amount: 0 to 1.
    """
    side = len(crop)
    columns, rows = np.meshgrid(np.arange(side, dtype=np.float32), np.arange(side, dtype=np.float32))
    upper, lower = _seen(crop, points68, *(_line(points68[list(part)], side) for part in (UPPER, LOWER)))
    gap = (lower - upper).clip(0)
    shown = (1 - amount) * gap  # what is left between the lips
    moved = amount * (gap + PRESS * side * np.minimum(1, gap / (0.01 * side)))
    chin = max(float(points68[CHIN, 1]), float(lower.max()) + 0.1 * side)
    edge = upper + shown
    room = np.maximum(1, chin - edge)
    below = ((rows - edge) / room).clip(0, 1)
    bend = (0.9 * room / np.maximum(moved, 1e-3)).clip(1, 2)  # of a wide gap the skin would fold
    source = np.where(rows >= edge, rows + moved * (1 - below) ** bend, rows)
    inside = (rows > upper) & (rows < edge)
    source = np.where(inside, upper + (rows - upper) * gap / np.maximum(shown, 1e-3), source)
    return cv2.remap(crop, columns, source.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _seen(
    crop: np.ndarray, points68: np.ndarray, upper: np.ndarray, lower: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Both edges, moved apart to where the dark between the lips ends."""
    side, gap = len(crop), lower - upper
    wide = gap > WIDE * side
    if not wide.any():
        return upper, lower
    gray, rows = crop.astype(np.float32).mean(-1), np.arange(side)[:, None]
    dark = np.median(gray[(rows > upper + gap / 4) & (rows < lower - gap / 4) & wide])
    skin = np.median(gray[(rows > lower + 0.08 * side) & (rows < lower + 0.16 * side) & wide])
    if not dark < DARK * skin:  # nor where there is no skin to look at
        return upper, lower
    mouth = points68[list(UPPER + LOWER), 0]
    belongs = (gray < dark + DARKEST * (skin - dark)) & (rows[:, 0] >= mouth.min()) & (rows[:, 0] <= mouth.max())
    down = np.logical_and.accumulate(belongs | (rows <= lower), 0) & (rows > lower)
    up = np.logical_and.accumulate((belongs | (rows >= upper))[::-1], 0)[::-1] & (rows < upper)
    more = [np.minimum(way.sum(0), REACH * side).astype(np.float32)[None] for way in (up, down)]
    above, under = (cv2.GaussianBlur(cv2.dilate(way, np.ones((1, 3))), (0, 0), 0.005 * side)[0] for way in more)
    return upper - above, lower + under


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
