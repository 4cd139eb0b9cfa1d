"""How strongly a face is repainted, frame by frame."""

from collections.abc import Iterable

import numpy as np

from .track import FaceTrack

NOSE = 1.5
"""How far a nose stands out, in halves of the jaw's width; fits MediaPipe's own angle within 5 degrees up to 45."""
PROFILE = (42.0, 58.0)
"""Degrees of a head's turn between which the new mouth fades out: beyond, networks paint a mouth on the cheek."""


def turned_away(landmarks: np.ndarray) -> np.ndarray:
    """(F, 68, 2) landmarks to (F,) degrees by which the head is turned to a side.

    By the nose's way from the middle between the jaw's ends, in halves of their distance: tan(angle) = way / NOSE.
    """
    right, left, nose = landmarks[:, 0], landmarks[:, 16], landmarks[:, 30]
    half = (left - right).astype(np.float64) / 2
    way = ((nose - (left + right) / 2) * half).sum(-1) / np.maximum((half * half).sum(-1), 1e-6)
    return np.degrees(np.arctan(np.abs(way) / NOSE))


def facing(track: FaceTrack) -> np.ndarray:
    """(F,) how much a face is painted by its turn: 1 up to PROFILE[0] degrees, 0 from PROFILE[1] on."""
    turned = np.empty(track.frames, np.float64)
    for start in range(0, track.frames, 4096):  # in parts: a long clip's landmarks are large
        turned[start : start + 4096] = turned_away(track.landmarks[start : start + 4096])
    weights = ((PROFILE[1] - turned) / (PROFILE[1] - PROFILE[0])).clip(0, 1)
    kernel = np.ones(5) / 5  # landmarks of a profile jump
    for start, stop in track.segments:
        padded = np.pad(weights[start:stop], 2, mode="edge")
        weights[start:stop] = np.convolve(padded, kernel, "valid")
    return weights


def fade(segments: Iterable[tuple[int, int]], frames: int, *, cuts: Iterable[int] = (), length: int = 3) -> np.ndarray:
    """How strongly to repaint each frame, (F,) float32: 0 without the face, 1 with it, a ramp of length frames between.
    At cuts and at the clip's ends there is no ramp, nor where one segment follows another at once."""
    weights = np.zeros(frames, np.float32)
    segments = list(segments)
    hard = {0, frames, *cuts} | ({a for a, _ in segments} & {b for _, b in segments})
    for start, stop in segments:
        since = np.arange(1, stop - start + 1) / (length + 1)
        rise = np.ones_like(since) if start in hard else since
        fall = np.ones_like(since) if stop in hard else since[::-1]
        weights[start:stop] = np.minimum(np.minimum(rise, fall), 1)
    return weights
