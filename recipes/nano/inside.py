"""What shows between the lips: upper teeth that stay with the head, the dark behind them, and a tongue.

All of it follows from the picture and the shape of the lips, so a network can learn to paint it sharply: frames of
other speakers, chosen by the shape of their mouths, show teeth at one moment and the tongue at the next, and their mean
is a gray band.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from . import mesh as geometry
from .data import RESOLUTION, Person, face_to_crop

SMILE = 0.12
"""Opening, over the width of the mouth, from which a still shows its teeth from edge to edge."""
DARK, TONGUE = (0.20, 0.10, 0.10), (0.60, 0.36, 0.36)
"""Colors as shares of the skin's."""
HIDDEN = 12
"""Pixels of teeth and gums that a smile's upper lip is taken to hide."""
UPPER_LIP, LOWER_LIP = geometry.INNER[:11], (*geometry.INNER[10:], geometry.INNER[0])


@dataclass(frozen=True)
class Teeth:
    """Upper teeth in a wide crop: crop (W, W, 3) uint8, mask (W, W, 1) in [0, 1]; frame (3, 2), see closed_frame; skin
    (3,) its mean color."""

    crop: np.ndarray
    mask: np.ndarray
    frame: np.ndarray
    skin: np.ndarray

    def shown(self, to: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
        """The crop and the mask (side, side, …) in the picture of a head whose closed_frame is `to` there."""
        matrix = cv2.getAffineTransform(self.frame.astype(np.float32), to.astype(np.float32))
        turned = (
            cv2.warpAffine(image, matrix, (side, side), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
            for image in (self.crop, self.mask)
        )
        crop, mask = turned
        return crop.astype(np.float32), np.clip(mask, 0, 1)[..., None]


def closed_frame(closed: np.ndarray) -> np.ndarray:
    """(3, 2): where the corners of the closed mouth are, and a point as far below it as it is wide."""
    left, right = closed[geometry.LEFT, :2], closed[geometry.RIGHT, :2]
    down = closed[geometry.CHIN, :2] - closed[geometry.NOSE_BASE, :2]
    middle = (closed[geometry.UPPER, :2] + closed[geometry.LOWER, :2]) / 2
    corners = np.stack([left, right]) + middle - (left + right) / 2  # the lips' line where they meet, not the corners'
    return np.stack([*corners, middle + down * (np.linalg.norm(right - left) / np.linalg.norm(down))])


def teeth_of(person: Person, frame: int, crop: np.ndarray | None = None) -> Teeth | None:
    """Those of a still that smiles, else None. crop: to take in place of the person's own."""
    points = person.mesh[frame]
    if person.speaks or geometry.opening(points) < SMILE:
        return None
    to_wide = face_to_crop(RESOLUTION)
    picture = person.crops[frame] if crop is None else crop
    wide = in_picture(points, to_wide)
    mask = cv2.erode(geometry.inner_mask(wide, len(picture)), np.ones((3, 1), np.uint8))
    frame_wide = in_picture(closed_frame(person.closed(frame)), to_wide)
    return Teeth(*_continued(picture, mask), frame_wide, skin_color(picture, wide))


def _continued(crop: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same with teeth that go on above the edge of the upper lip, which another shape may show."""
    crop, mask = crop.copy(), mask.copy()
    sure = mask > 0.99
    for column in np.flatnonzero(sure.sum(0) > 2):
        top = int(np.argmax(sure[:, column]))
        above = slice(max(0, top - HIDDEN), top)
        crop[above, column], mask[above, column] = crop[top + 2, column], mask[top, column]
    return crop, mask


def in_picture(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return points[:, :2] @ matrix[:, :2].T + matrix[:, 2]


def skin_color(crop: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(3,) mean color of both cheeks."""
    spots = np.round(points[list(geometry.CHEEKS)]).astype(int)
    return np.mean([crop[y - 3 : y + 4, x - 3 : x + 4].reshape(-1, 3).mean(0) for x, y in spots], 0)


def mouth_inside(
    target: np.ndarray, opening: float, skin: np.ndarray, teeth: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    """(side, side, 3) float32: what shows where lips are open. target: (468, 2) pixels; opening over the width of the
    mouth at rest; skin (3,); teeth, mask: the upper teeth there, see Teeth.shown."""
    side = len(teeth)
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    upper, lower = _contour(target, UPPER_LIP, side), _contour(target, LOWER_LIP, side)
    left, right = sorted(target[[geometry.LEFT, geometry.RIGHT], 0])
    width = max(1.0, right - left)
    across = np.clip(np.abs(2 * (columns - left) / width - 1), 0, 1)
    gap = np.maximum(lower - upper, 1)
    depth = (rows - upper) / gap
    tongue = np.clip((depth - 0.45) / 0.4, 0, 1) * np.clip((opening - 0.1) / 0.15, 0, 1) * (1 - across**2)
    dark, red = (np.array(color, np.float32) * skin for color in (DARK, TONGUE))
    picture = dark + (red - dark) * tongue[..., None]
    picture += (teeth - picture) * mask
    shadow = 0.72 + 0.28 * np.clip((rows - upper) / (0.09 * width), 0, 1)
    return picture * (shadow * (1 - 0.35 * across**4))[..., None]


def _contour(target: np.ndarray, points: tuple[int, ...], side: int) -> np.ndarray:
    """(1, side): the height of a lip's edge at each column."""
    x, y = target[list(points)].T
    order = np.argsort(x)
    return np.interp(np.arange(side), x[order], y[order]).astype(np.float32)[None]
