"""Who a face is: 128 numbers, near to each other for one person whatever the mouth, the light and the size."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch

from .align import resample
from .face_net import LENGTH, SIDE, face_net

USED = [45, 42, 36, 39, 33]
"""Corners of the eyes and the base of the nose, of 68 points."""
TEMPLATE = (
    (0.8595674595992, 0.2134981538014),
    (0.6460604764104, 0.2289674387677),
    (0.1205750620789, 0.2137274526848),
    (0.3340850613712, 0.2290642403242),
    (0.4901123135679, 0.6277975316475),
)
"""Where these lie in a square with PADDING around it, both in shares of it: dlib's image_transforms/interpolation.h."""
PADDING = 0.25
PLAIN = 8
"""A face whose gray values, of 255, range over less than this is no picture of anybody."""
SAME = 0.5
"""Likeness of two faces from which they are one person's. Measured by python -m benchmarks.identity."""


@dataclass
class Looks:
    """What one face looked like over time. total: the sum of its views; count: how many they are."""

    total: np.ndarray
    count: int

    @classmethod
    def none(cls) -> "Looks":
        return cls(np.zeros(LENGTH, np.float32), 0)

    def add(self, view: np.ndarray) -> None:
        """Take in one more view, from embed; zeros say nothing and do not count."""
        if view.any():
            self.total, self.count = self.total + view, self.count + 1

    def joined(self, other: "Looks") -> "Looks":
        return Looks(self.total + other.total, self.count + other.count)

    @property
    def mean(self) -> np.ndarray:
        """(128,) float32, or zeros where there is no view."""
        return self.total / max(1, self.count)


def likeness(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(...) of vectors (..., 128): 1 less their distance. Others mostly have less than 0.4, one person 0.6 to 0.9."""
    return 1 - np.linalg.norm(a - b, axis=-1)


def likenesses(vectors: np.ndarray) -> np.ndarray:
    """(N, N) of vectors (N, 128): each with each."""
    exact = vectors.astype(np.float64)
    squares = (exact**2).sum(1)
    return 1 - np.sqrt(np.maximum(0, squares[:, None] + squares - 2 * exact @ exact.T))


def embed(frame: np.ndarray, points68: np.ndarray) -> np.ndarray:
    """What a face looks like: (128,) float32. Zeros where there is no picture to judge by.

    frame: (H, W, 3) uint8 RGB. points68: (68, 2) pixels of the frame.
    """
    face = resample(frame, _upright(points68), SIDE)
    if np.ptp(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY)) < PLAIN:
        return np.zeros(LENGTH, np.float32)
    with torch.inference_mode():
        return face_net()(torch.from_numpy(face).permute(2, 0, 1)[None].float())[0].numpy()


def _upright(points68: np.ndarray) -> np.ndarray:
    """(2, 3): turns, scales and shifts a frame's pixels so that USED lie at TEMPLATE, by least squares."""
    source = points68[USED].astype(np.float64) @ (1, 1j)
    target = (np.array(TEMPLATE) + PADDING) / (1 + 2 * PADDING) * SIDE @ (1, 1j)
    away, aim = source - source.mean(), target - target.mean()
    turn = (aim * away.conj()).sum() / max((abs(away) ** 2).sum(), 1e-6)
    shift = target.mean() - turn * source.mean()
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def turned(points68: np.ndarray) -> float:
    """How far a head is turned: the nose's way off the middle along the line of the eyes, in widths of the jaw."""
    eyes = points68[42:48].mean(0) - points68[36:42].mean(0)
    along = points68 @ (eyes / (np.linalg.norm(eyes) + 1e-6))
    width = along[16] - along[0]
    return float((along[30] - (along[0] + along[16]) / 2) / (width if abs(width) > 1e-3 else 1e-3))
