"""MediaPipe's face mesh: which points are what, the pose of a head, and pictures carried along by triangles."""

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

POINTS = 468
STABLE = (33, 133, 362, 263, 168, 6, 197, 195, 5, 4, 1, 70, 300, 105, 334, 107, 336, 127, 356)
"""Eyes, bridge and tip of the nose, brows, temples: they move with the head, hardly with speech."""
INNER = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308, 324, 318, 402, 317, 14, 87, 178, 88, 95)
"""The inner lips, all round: the upper one from the left corner, then the lower one back."""
OUTER = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146)
"""The outer edge of the lips, in the same order."""
NOSE_BASE, UPPER, LOWER, LEFT, RIGHT, CHIN = 2, 13, 14, 78, 308, 152
CHEEKS = (50, 205, 280, 425)
RING = 1.45
"""Size of a ring of fixed points around the face's oval: up to there the picture outside gives way."""


def opening(mesh: np.ndarray) -> np.ndarray:
    """Distance of the inner lips over the width of the mouth: (..., 468, 3) -> (...)."""
    gap = np.linalg.norm(mesh[..., UPPER, :] - mesh[..., LOWER, :], axis=-1)
    return gap / np.maximum(1e-6, mouth_width(mesh))


def mouth_width(mesh: np.ndarray) -> np.ndarray:
    return np.linalg.norm(mesh[..., LEFT, :] - mesh[..., RIGHT, :], axis=-1)


@dataclass(frozen=True)
class Pose:
    """A similarity in three dimensions: turn (3, 3) with its scale, then shift (3,)."""

    turn: np.ndarray
    shift: np.ndarray

    def apply(self, points: np.ndarray) -> np.ndarray:
        return points @ self.turn.T + self.shift


def pose(source: np.ndarray, target: np.ndarray) -> Pose:
    """What brings the stable points of one mesh to those of another best (Umeyama 1991)."""
    a, b = source[list(STABLE)].astype(np.float64), target[list(STABLE)].astype(np.float64)
    a0, b0 = a - a.mean(0), b - b.mean(0)
    u, sizes, vt = np.linalg.svd(b0.T @ a0)
    flip = np.diag([1, 1, np.sign(np.linalg.det(u @ vt))])
    turn = np.trace(np.diag(sizes) @ flip) / (a0**2).sum() * u @ flip @ vt
    return Pose(turn, b.mean(0) - turn @ a.mean(0))


@cache
def _loop() -> tuple[int, ...]:
    """The face's oval in order."""
    from mediapipe.tasks.python import vision

    after: dict[int, list[int]] = {}
    edges = vision.FaceLandmarksConnections.FACE_LANDMARKS_FACE_OVAL
    for edge in edges:
        after.setdefault(edge.start, []).append(edge.end)
        after.setdefault(edge.end, []).append(edge.start)
    path, before = [edges[0].start], -1
    while True:
        step = next(n for n in after[path[-1]] if n != before)
        if step == path[0]:
            return tuple(path)
        before = path[-1]
        path.append(step)


@cache
def triangles() -> np.ndarray:
    """(T, 3) int: the mesh, which leaves the mouth open, and a ring of triangles around it to the fixed points."""
    from mediapipe.tasks.python import vision

    edges = vision.FaceLandmarksConnections.FACE_LANDMARKS_TESSELATION
    inside = [sorted({end for e in edges[i : i + 3] for end in (e.start, e.end)}) for i in range(0, len(edges), 3)]
    oval, ring = _loop(), []
    for i, (a, b) in enumerate(zip(oval, oval[1:] + oval[:1], strict=True)):
        c, d = POINTS + i, POINTS + (i + 1) % len(oval)
        ring += [[a, b, c], [b, d, c]]
    return np.array(inside + ring)


def _with_ring(points: np.ndarray, still: np.ndarray) -> np.ndarray:
    oval = still[list(_loop())]
    return np.concatenate([points, oval.mean(0) + (oval - oval.mean(0)) * RING])


def warp_maps(
    source: np.ndarray, target: np.ndarray, still: np.ndarray, background: np.ndarray, side: int
) -> np.ndarray:
    """Where each pixel of a (side, side) picture comes from: (2, side, side) float32, x and y in the source picture.

    source: (468, 2) in pixels of the source picture. target: the same points in the new picture; still: where they
    would be there if nothing moved. background: (2, 3) from the new picture's pixels to the source's, for the rest.
    """
    a, b = _with_ring(source, source), _with_ring(target, still)
    unmoved = _with_ring(still, still)
    rows, columns = np.mgrid[0:side, 0:side].astype(np.float32)
    maps = np.stack([m[0] * columns + m[1] * rows + m[2] for m in background.astype(np.float32)])
    mesh = triangles()
    moved = np.abs(unmoved - b).max(1) > 1e-3
    mesh = mesh[moved[mesh].any(1)]
    for new, old in zip(b[mesh], a[mesh], strict=True):
        _fill(maps, new, old, rows, columns)
    return maps


def _fill(maps: np.ndarray, new: np.ndarray, old: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> None:
    """One triangle, by barycentric coordinates."""
    side = maps.shape[-1]
    (x0, y0), (x1, y1) = np.maximum(np.floor(new.min(0)), 0).astype(int), np.ceil(new.max(0)).astype(int) + 1
    (ax, ay), (bx, by), (cx, cy) = new.tolist()
    area = (by - cy) * (ax - cx) + (cx - bx) * (ay - cy)
    if x0 >= min(x1, side) or y0 >= min(y1, side) or abs(area) < 1e-6:
        return
    box = np.s_[y0:y1, x0:x1]
    x, y = columns[box] - cx, rows[box] - cy
    p = ((by - cy) * x + (cx - bx) * y) / area
    q = ((cy - ay) * x + (ax - cx) * y) / area
    inside = (p >= -0.002) & (q >= -0.002) & (p + q <= 1.002)
    for values, i in zip(maps, (0, 1), strict=True):
        u, v, w = old[:, i].tolist()
        values[box][inside] = (p * (u - w) + q * (v - w) + w)[inside]


def movement_weight(mesh: np.ndarray) -> np.ndarray:
    """(468, 1): 0 down to the base of the nose, 1 from a little above the lips on: what speech may move."""
    below = (mesh[:, 1] - mesh[NOSE_BASE, 1]) / (mesh[UPPER, 1] - mesh[NOSE_BASE, 1])
    return np.clip(below * 1.5, 0, 1)[:, None]


def inner_mask(target: np.ndarray, side: int) -> np.ndarray:
    """(side, side, 1) float32: what lies between the lips, with a soft edge. target: (468, 2) pixels."""
    return _filled(side, target[list(INNER)])


def lips_mask(points: np.ndarray, side: int) -> np.ndarray:
    """(side, side, 1) float32: the red of both lips, with a soft edge. points: (468, 2) pixels."""
    return _filled(side, points[list(OUTER)], points[list(INNER)])


def _filled(side: int, *outlines: np.ndarray) -> np.ndarray:
    """What lies in an odd number of the outlines."""
    mask = np.zeros((side, side), np.uint8)
    corners = [np.round(outline * 16).astype(np.int32) for outline in outlines]
    cv2.fillPoly(mask, corners, 255, lineType=cv2.LINE_AA, shift=4)
    return cv2.GaussianBlur(mask, (3, 3), 0)[..., None].astype(np.float32) / 255
