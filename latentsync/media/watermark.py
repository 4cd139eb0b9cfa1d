"""Labels a result as generated: a comment in the file's metadata and, on request, text in the picture."""

import cv2
import numpy as np

COMMENT = "AI-generated lip sync: the mouth in this video was made by a neural network (LatentSync)."
"""The metadata field "comment" of every container that is written; players and `ffprobe` show it."""
TEXT = "AI lip sync"
HEIGHT, MIN_HEIGHT, MAX_WIDTH = 0.03, 9, 0.5
"""Of the letters: height as a share of the picture's shorter side, pixels at least; the line's share of the width."""
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw_watermark(frame: np.ndarray) -> np.ndarray:
    """A copy of a frame (H, W, 3) uint8 with the words in its lower left corner."""
    height, width = frame.shape[:2]
    (long, high), _ = cv2.getTextSize(TEXT, _FONT, 1.0, 1)
    scale = min(max(MIN_HEIGHT, HEIGHT * min(height, width)) / high, MAX_WIDTH * width / long)
    out = frame.copy()
    margin = round(high * scale * 0.8)
    corner = out[height - round(3 * high * scale) :, : 2 * margin + round(1.2 * long * scale)]
    draw_text(corner, TEXT, margin, margin, scale)
    return out


def draw_text(picture: np.ndarray, text: str, left: int, below: int, scale: float) -> None:
    """Text onto (H, W, 3) uint8, white on black edges so that it can be read on anything; left, below: free pixels. The
    edges are not a second, thicker line of cv2.putText: OpenCV 5 draws no thicker letters."""
    letters = np.zeros(picture.shape[:2], np.uint8)
    thick = max(1, round(1.5 * scale))
    cv2.putText(letters, text, (left, len(picture) - below), _FONT, scale, 255, thick, cv2.LINE_AA)
    reach = 2 * max(1, round(2 * scale)) + 1
    edges = cv2.dilate(letters, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach)))
    dark = picture * (1 - edges[..., None] / 255.0)
    picture[:] = np.maximum(dark, letters[..., None]).round().astype(np.uint8)
