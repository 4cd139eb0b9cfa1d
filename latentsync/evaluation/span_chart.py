"""A picture of what became of every frame of a run."""

from collections.abc import Sequence
from fractions import Fraction

import cv2
import numpy as np

from ..face.spans import BRIDGED, COVERED, FADED, PASSED, SYNCED, Span
from .canvas import GRAY, INK, PAPER

COLORS = {
    SYNCED: (74, 160, 96),
    BRIDGED: (150, 190, 80),
    FADED: (230, 190, 70),
    COVERED: (90, 140, 210),
    PASSED: (200, 202, 206),
}
WIDTH, LEFT, RIGHT, ROW, GAP, TOP = 960, 70, 30, 34, 16, 46
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def span_chart(spans: Sequence[Span], frames: int, fps: Fraction) -> np.ndarray:
    """A bar for each face over the clip's time, (H, 960, 3) uint8 RGB. spans: Report.spans."""
    bars = _bars(spans)
    picture = np.full((TOP + len(bars) * (ROW + GAP) + 40, WIDTH, 3), PAPER, np.uint8)
    scale, x = (WIDTH - LEFT - RIGHT) / max(1, frames), LEFT
    for state in dict.fromkeys(span.state for span in spans):
        cv2.rectangle(picture, (x, 14), (x + 14, 28), COLORS[state], cv2.FILLED)
        cv2.putText(picture, state, (x + 20, 27), _FONT, 0.45, INK, 1, cv2.LINE_AA)
        x += 44 + cv2.getTextSize(state, _FONT, 0.45, 1)[0][0]
    for n, bar in enumerate(bars):
        top = TOP + n * (ROW + GAP)
        number = next((span.face for span in bar if span.face is not None), None)
        name = "no face" if number is None else f"face {number}"
        cv2.putText(picture, name, (8, top + 22), _FONT, 0.45, INK, 1, cv2.LINE_AA)
        for span in bar:
            ends = (round(LEFT + frame * scale) for frame in (span.start, span.stop))
            start, stop = ends
            cv2.rectangle(picture, (start, top), (max(start, stop - 1), top + ROW), COLORS[span.state], cv2.FILLED)
    for share in (0, 0.25, 0.5, 0.75, 1):
        text = f"{float(share * frames / fps):.1f} s"
        wide = cv2.getTextSize(text, _FONT, 0.42, 1)[0][0]
        at = round(LEFT + share * frames * scale - share * wide), len(picture) - 16
        cv2.putText(picture, text, at, _FONT, 0.42, GRAY, 1, cv2.LINE_AA)
    return picture


def _bars(spans: Sequence[Span]) -> list[list[Span]]:
    """Each face's spans cover the clip once: a new one begins at frame 0."""
    bars: list[list[Span]] = []
    for span in spans:
        if span.start == 0 or not bars:
            bars.append([])
        bars[-1].append(span)
    return bars
