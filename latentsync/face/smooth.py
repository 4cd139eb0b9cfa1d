"""Steadies a face's points along time."""

from collections.abc import Iterable

import numpy as np

STEADY, AGILE = 4.0, 1.5  # widths (sigma, frames) of the two low passes: for a still head, for a moving one
NOISE = 0.012  # share of the distance brows - nose by which a still face's points wander: more than that is motion


def smooth(points: np.ndarray, segments: Iterable[tuple[int, int]]) -> np.ndarray:
    """Points (F, 3, 2) steadied along time without lag, each segment on its own; float32. Two zero-phase low passes;
    where they agree within the landmarks' noise the stronger one is taken."""
    out = points.astype(np.float32)
    for start, stop in segments:
        part = points[start:stop].astype(np.float64)
        steady, agile = _low_pass(part, STEADY), _low_pass(part, AGILE)
        size = float(np.median(np.linalg.norm(part[:, :2].mean(1) - part[:, 2], axis=-1))) + 1e-6
        apart = np.linalg.norm((steady - agile).mean(1), axis=-1) / (NOISE * size)
        moving = _gaussian((apart**2 / (1 + apart**2))[:, None], AGILE)[:, :, None]
        out[start:stop] = steady + moving * (agile - steady)
    return out


def low_pass_at(points: np.ndarray, i: int, sigma: float = AGILE) -> np.ndarray:
    """Row i of points (F, N, 2) after a Gaussian along time (sigma: frames), float32."""
    reach = min(int(np.ceil(3 * sigma)), i, len(points) - 1 - i)  # the same on both sides, or a moving face would lag
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    near = points[i - reach : i + reach + 1].astype(np.float64)
    return np.tensordot(weights / weights.sum(), near, 1).astype(np.float32)


def _low_pass(part: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian, then once more on what it missed: slow motion passes unchanged, noise does not."""
    flat = part.reshape(len(part), -1)
    once = _gaussian(flat, sigma)
    return (once + _gaussian(flat - once, sigma)).reshape(part.shape)


def _gaussian(columns: np.ndarray, sigma: float) -> np.ndarray:
    """(n, k) along n; beyond the ends the motion goes on in a straight line (point reflection)."""
    if len(columns) < 2:
        return columns
    reach = int(np.ceil(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    padded = np.pad(columns, ((reach, reach), (0, 0)), mode="reflect", reflect_type="odd")
    return np.stack([np.convolve(c, kernel / kernel.sum(), "valid") for c in padded.T], 1)
