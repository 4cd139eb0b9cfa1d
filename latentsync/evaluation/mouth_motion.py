"""Mouth motion of a generated clip against the true one, by landmarks of the same frames."""

from dataclasses import dataclass

import numpy as np

from ..face.align import align_matrices
from ..face.detect import mouth_opening, three_points
from ..face.track import FaceTrack

LIPS = slice(48, 68)
SIDE = 256
"""Of the upright crop; it cancels out, since distances are divided by the face's height in the crop."""


@dataclass(frozen=True)
class Motion:
    """The generated mouth against the true one, over the frames in which both were found.

    opening_correlation: Pearson's, None if one never moves. opening_error: mean absolute difference of the openings,
    relative to the face's height. lip_distance: LMD, mean distance of the 20 lip landmarks of both upright heads,
    relative to the face's height. per_frame (F,): the same of each frame, NaN if unknown. openings (2, F): generated,
    true.
    """

    opening_correlation: float | None
    opening_error: float
    lip_distance: float
    per_frame: np.ndarray
    openings: np.ndarray


def compare_motion(made: FaceTrack, true: FaceTrack) -> Motion | None:
    """None if the two faces are never in the same frame. Frames past the end of the shorter track do not count."""
    frames = min(made.frames, true.frames)
    both = made.present[:frames] & true.present[:frames]
    if not both.any():
        return None
    openings = np.stack([np.where(both, mouth_opening(t.landmarks[:frames]), np.nan) for t in (made, true)])
    upright_made, upright_true = (upright(t.landmarks[:frames]) for t in (made, true))
    height = np.ptp(upright_true[..., 1], axis=1)
    distance = np.linalg.norm(upright_made[:, LIPS] - upright_true[:, LIPS], axis=-1).mean(1) / height
    return Motion(
        opening_correlation=correlation(openings[0, both], openings[1, both]),
        opening_error=float(np.abs(openings[0] - openings[1])[both].mean()),
        lip_distance=float(distance[both].mean()),
        per_frame=np.where(both, distance, np.nan),
        openings=openings,
    )


def upright(points68: np.ndarray) -> np.ndarray:
    """(F, 68, 2) aligned by each frame's own brows and nose, which removes the head's motion."""
    matrices = align_matrices(three_points(points68), SIDE)
    return np.einsum("fij,fkj->fki", matrices[..., :2], points68) + matrices[:, None, :, 2]


def correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Pearson's; None if one is constant."""
    if len(a) < 3 or np.ptp(a) < 1e-9 or np.ptp(b) < 1e-9:
        return None
    return float(np.corrcoef(a, b)[0, 1])
