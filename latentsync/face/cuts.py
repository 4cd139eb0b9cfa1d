"""Where a clip's shots begin."""

from collections import deque
from collections.abc import Iterable

import cv2
import numpy as np

THUMB = (32, 18)
CUT_LEVEL, CUT_SHAPE = 12.0, 0.3
"""A cut changes gray by this much on average (of 255) and the picture's shape (1 - correlation) by this much."""
FLASH = 3  # a picture that is back after at most this many frames was interrupted by a flash, not by cuts


def thumbnail(frame: np.ndarray) -> np.ndarray:
    """A tiny gray picture (18, 32) uint8; large frames are thinned first, which is enough for this and fast."""
    thin = frame[:: max(1, frame.shape[0] // 180), :: max(1, frame.shape[1] // 320)]
    return cv2.cvtColor(cv2.resize(thin, THUMB, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)


def _differ(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether two thumbnails show different pictures, not one picture moved a little or lit otherwise."""
    a, b = (thumb.astype(np.float32).ravel() for thumb in (before, after))
    if float(np.abs(a - b).mean()) < CUT_LEVEL:
        return False
    a, b = a - a.mean(), b - b.mean()
    norms = (np.linalg.norm(a) + 20) * (np.linalg.norm(b) + 20)  # 20: plain pictures have no shape to compare
    return 1 - float(a @ b) / float(norms) > CUT_SHAPE


class CutFinder:
    """Frames that start a new shot, from thumbnails in order, of which only the last few are kept."""

    def __init__(self) -> None:
        self._found: list[int] = []
        self._thumbs: deque[np.ndarray] = deque(maxlen=FLASH + 2)
        self._count = 0

    def changed(self, thumb: np.ndarray) -> bool:
        """Take in the next frame; whether it is another picture than the last one. When it is the picture of before a
        flash, the cuts that the flash was taken for are withdrawn."""
        i, self._count = self._count, self._count + 1
        self._thumbs.append(thumb)
        if i == 0 or not _differ(self._thumbs[-2], thumb):
            return False
        flash = next((c for c in self._found if c >= i - FLASH and not _differ(self._thumbs[c - 2 - i], thumb)), None)
        if flash is None:
            self._found.append(i)
        else:
            self._found = [c for c in self._found if c < flash]
        return True

    def withdraw(self, i: int) -> None:
        """Frame i is no cut after all: a face goes on in it."""
        self._found = [c for c in self._found if c != i]

    @property
    def cuts(self) -> tuple[int, ...]:
        return tuple(self._found)


def find_cuts(thumbs: Iterable[np.ndarray]) -> tuple[int, ...]:
    """Frames that start a new shot; a flash of up to FLASH frames between two alike pictures is none."""
    finder = CutFinder()
    for thumb in thumbs:
        finder.changed(thumb)
    return finder.cuts
