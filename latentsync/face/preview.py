"""One frame with the faces found in it, numbered, so that a person can say which one is meant."""

from collections.abc import Mapping

import cv2
import numpy as np

from .detect import Box
from .track import FaceTrack, Tracks

CHOSEN, OTHER, INK = (60, 220, 110), (245, 245, 245), (15, 15, 15)
LABEL = 0.45  # height of the numbers for each pixel of line width, as OpenCV counts it
FOREHEAD, CHEEK = 0.35, 0.06
"""How far a head goes beyond its landmarks, brows to chin: shares of their height and width."""
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def boxes_at(tracks: Tracks, i: int) -> dict[int, Box]:
    """Number and box of every face that is there in frame i, within the frame."""
    return {track.index: _box(track, i) for track in tracks.faces if track.present[i]}


def _box(track: FaceTrack, i: int) -> Box:
    (left, top), (right, bottom) = track.landmarks[i].min(0), track.landmarks[i].max(0)
    beside, above = CHEEK * (right - left), FOREHEAD * (bottom - top)
    width, height = track.size
    x = np.clip((left - beside, right + beside), 0, width)
    y = np.clip((top - above, bottom + beside), 0, height)
    return float(x[0]), float(y[0]), float(x[1]), float(y[1])


def numbered(frame: np.ndarray, boxes: Mapping[int, Box], chosen: int | None = None) -> np.ndarray:
    """A copy of the frame, (H, W, 3) uint8 RGB, with a box and a number for each face; the chosen one in green."""
    picture = frame.copy()
    line = max(2, round(max(frame.shape[:2]) / 400))
    for index, box in sorted(boxes.items(), key=lambda item: item[0] == chosen):  # the chosen one on top
        color = CHOSEN if index == chosen else OTHER
        x0, y0, x1, y1 = (round(value) for value in box)
        cv2.rectangle(picture, (x0, y0), (x1, y1), INK, 3 * line)
        cv2.rectangle(picture, (x0, y0), (x1, y1), color, line)
        _label(picture, str(index), (x0, y0), color, line)
    return picture


def _label(picture: np.ndarray, text: str, corner: tuple[int, int], color: tuple[int, int, int], line: int) -> None:
    """The number on black, on the box's upper left corner; inside the box where there is no room above it."""
    (width, height), _ = cv2.getTextSize(text, _FONT, LABEL * line, line)
    wide, high = width + 6 * line, height + 6 * line
    above = corner[1] - high if corner[1] >= high else corner[1]
    x, y = max(0, min(corner[0], picture.shape[1] - wide)), max(0, min(above, picture.shape[0] - high))
    cv2.rectangle(picture, (x, y), (x + wide, y + high), INK, cv2.FILLED)
    place = (x + 3 * line, y + 3 * line + height)
    cv2.putText(picture, text, place, _FONT, LABEL * line, color, line, cv2.LINE_AA)
