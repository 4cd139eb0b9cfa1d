"""Image metrics: PSNR, SSIM, gradient similarity, sharpness, flicker, and Fréchet distances (FID, FVD).

Images are (H, W, 3) uint8 RGB, masks (H, W) bool; every mean over a mask is over its pixels only.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..face.detect import CHIN, NASION
from ..face.mask import mouth_mask

MAX_DB = 100.0
"""PSNR of equal images, so that means stay finite."""
SIGMA, C1, C2 = 1.5, (0.01 * 255) ** 2, (0.03 * 255) ** 2
GRADIENT_C = 170.0
FVD_FRAMES = 16
"""Frames of one sample of the FVD."""
LIPS = slice(48, 60)
"""Outer lips among the 68 points."""


def psnr(a: np.ndarray, b: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Peak signal to noise ratio in dB, 10 · log10(255² / mean squared difference); MAX_DB at most."""
    error = (a.astype(np.float32) - b.astype(np.float32)) ** 2
    mean = float(error.mean() if mask is None else error[mask].mean())
    return min(MAX_DB, 10 * float(np.log10(255**2 / max(mean, 1e-12))))


def ssim_map(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(H, W, 3), -1 … 1: structural similarity around each pixel (Wang et al. 2004, Gaussian window, K 0.01 and 0.03).

    Within five pixels of the border the window exceeds the image.
    """
    x, y = a.astype(np.float32), b.astype(np.float32)
    mx, my = _blur(x), _blur(y)
    vx, vy, cov = _blur(x * x) - mx * mx, _blur(y * y) - my * my, _blur(x * y) - mx * my
    return (2 * mx * my + C1) * (2 * cov + C2) / ((mx * mx + my * my + C1) * (vx + vy + C2))


def _blur(x: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(x, (11, 11), SIGMA, borderType=cv2.BORDER_REFLECT)


def gradient_similarity(a: np.ndarray, b: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Mean of (2gh + c) / (g² + h² + c) over the gradient magnitudes g, h of both gray images.

    Xue et al. 2014, with Prewitt filters and c = 170. 0 … 1, 1 if equal.
    """
    g, h = _gradient(a), _gradient(b)
    table = (2 * g * h + GRADIENT_C) / (g * g + h * h + GRADIENT_C)
    return float((table if mask is None else table[mask]).mean())


def _gradient(picture: np.ndarray) -> np.ndarray:
    gray = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
    edge = np.outer((1, 1, 1), (1, 0, -1)).astype(np.float32) / 3
    return np.hypot(cv2.filter2D(gray, -1, edge), cv2.filter2D(gray, -1, edge.T))


def sharpness(picture: np.ndarray, mask: np.ndarray) -> float:
    """Variance of the Laplacian of the gray levels within the mask: falls with blur, rises with noise."""
    gray = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(gray, cv2.CV_32F)[mask].var())


def flicker(before: np.ndarray, now: np.ndarray, after: np.ndarray, mask: np.ndarray) -> float:
    """Half the mean of |before - 2 · now + after| within the mask, in gray levels.

    A still image and one that steadily brightens or darkens have 0; what alternates from frame to frame by d has d.
    """
    a, b, c = (cv2.cvtColor(p, cv2.COLOR_RGB2GRAY).astype(np.float32) for p in (before, now, after))
    return float(np.abs(a - 2 * b + c)[mask].mean() / 2)


def mouth_region(side: int) -> np.ndarray:
    """(side, side) bool: the part of an aligned crop that LatentSync generates."""
    return mouth_mask(side) < 0.5


def lips_region(points68: np.ndarray, side: int) -> np.ndarray:
    """(side, side) bool: the outer lips and a margin of a twentieth of the face. points68: in pixels of the crop."""
    mask = np.zeros((side, side), np.uint8)
    cv2.fillConvexPoly(mask, cv2.convexHull(np.round(points68[LIPS]).astype(np.int32)), 1)
    margin = max(1, round(0.05 * float(np.linalg.norm(points68[NASION] - points68[CHIN]))))
    return cv2.dilate(mask, np.ones((2 * margin + 1,) * 2, np.uint8)).astype(bool)


@dataclass
class Moments:
    """Running mean and covariance of feature vectors."""

    count: int = 0
    mean: np.ndarray = field(default_factory=lambda: np.zeros(0))
    scatter: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))

    def add(self, features: np.ndarray) -> None:
        """(n, D), merged as by Chan et al. 1979."""
        features = np.asarray(features, np.float64)
        if not self.count:
            width = features.shape[1]
            self.mean, self.scatter = np.zeros(width), np.zeros((width, width))
        n, mean = len(features), features.mean(0)
        centered, apart = features - mean, mean - self.mean
        total = self.count + n
        self.scatter += centered.T @ centered + np.outer(apart, apart) * (self.count * n / total)
        self.mean = self.mean + apart * (n / total)
        self.count = total

    @property
    def covariance(self) -> np.ndarray:
        return self.scatter / max(1, self.count - 1)


def frechet(a: Moments, b: Moments) -> float:
    """Fréchet distance of two Gaussians, |m - n|² + tr(A + B - 2 · (A · B)^½) (Dowson and Landau 1982; Heusel et al.
    2017 on Inception features is the FID, Unterthiner et al. 2018 on I3D features the FVD)."""
    if min(a.count, b.count) < 2:
        raise UserError(
            f"A Fréchet distance needs two or more samples on each side; there are {a.count} and {b.count}."
        )
    root = _root(a.covariance)
    # eigenvalues of A·B are those of A^½·B·A^½, which is symmetric, so they are real
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ b.covariance @ root), 0, None)).sum()
    means = float(((a.mean - b.mean) ** 2).sum())
    return max(0.0, means + float(np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross))


def _root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


class Features(Protocol):
    """Images (N, 3, H, W), or windows of them (N, 3, frames, H, W), in 0 … 255, to features (N, D)."""

    @property
    def name(self) -> str: ...
    def __call__(self, pictures: Tensor, /) -> Tensor: ...


def pixels(pictures: Iterable[np.ndarray]) -> Tensor:
    """(N, 3, H, W) float32 in 0 … 255."""
    return torch.from_numpy(np.stack(list(pictures))).permute(0, 3, 1, 2).float()


class Frechet:
    """Collects features of two sets of images, or of windows of `span` frames."""

    def __init__(self, network: Features, span: int = 1, batch: int = 8) -> None:
        self.network, self.span, self.capacity = network, span, batch * span
        self.sides = (Moments(), Moments())
        self._pending: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])

    def add(self, made: np.ndarray, true: np.ndarray) -> None:
        for side, picture in enumerate((made, true)):
            self._pending[side].append(picture)
            if len(self._pending[side]) == self.capacity:
                self._embed(side)

    def finish(self) -> None:
        """Called at the end of a shot or clip: windows never span two."""
        for side in (0, 1):
            self._embed(side)

    def _embed(self, side: int) -> None:
        pending = self._pending[side]
        usable = len(pending) // self.span * self.span
        if usable:
            x = pixels(pending[:usable])
            if self.span > 1:
                x = x.unflatten(0, (-1, self.span)).transpose(1, 2)
            features = self.network(x)
            if features.ndim < 2 or len(features) != usable // self.span:
                raise UserError(f"{self.network.name} gave {tuple(features.shape)}; it must give features (N, D).")
            self.sides[side].add(features.flatten(1).numpy())
        pending.clear()

    @property
    def samples(self) -> int:
        return min(side.count for side in self.sides)

    def distance(self) -> float:
        return frechet(*self.sides)
