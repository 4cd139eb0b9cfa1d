"""Faces in one picture: a coarse search, then landmarks on a square crop around each face."""

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import cv2
import numpy as np

from .. import files
from ..errors import UserError

# fmt: off
MESH_TO_68 = (
    162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389,  # jaw, 0-16
    71, 63, 105, 66, 107, 336, 296, 334, 293, 301,                                      # brows, 17-26
    168, 197, 5, 4, 75, 97, 2, 326, 305,                                                # nose, 27-35
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,                          # eyes, 36-47
    61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181,                                # outer lips, 48-59
    78, 82, 13, 312, 308, 317, 14, 87,                                                  # inner lips, 60-67
)
# fmt: on
"""MediaPipe face-mesh indices that stand for the 68-point scheme."""
LEFT_BROW, RIGHT_BROW, NOSE = slice(17, 22), slice(22, 27), slice(27, 36)
UPPER_LIP, LOWER_LIP, NASION, CHIN = 62, 66, 27, 8

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels of the frame."""

SEARCH_SIDE = 640  # longest side of a picture that is searched: the detector itself looks at 128 x 128
CROP_SIDE = 320
CROP_MARGIN = 1.7  # landmarks are measured on a square of this many face sizes, brought to CROP_SIDE pixels
TILE, MIN_TILE = 0.6, 0.15
"""Side of the tiles of a thorough search: share of the picture's shorter side, but at least this of the longer."""
TILE_STRIDE = 0.6
"""Largest way from tile to tile, as a share of a tile: a face of up to 0.4 tiles lies whole in one of them."""
MAX_FACES = 6
MIN_IOU = 0.5  # minimum IoU of two successive detections for a face to count


@dataclass(frozen=True)
class Face:
    """One face in one picture. points68: (68, 2) float32 pixels. box: of the whole face mesh, forehead to chin. score:
    0..1, how well the box agrees with the one that the face was looked for at."""

    points68: np.ndarray
    box: Box
    score: float

    @property
    def center(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def height(self) -> float:
        return self.box[3] - self.box[1]


def three_points(points68: np.ndarray) -> np.ndarray:
    """Centres of left brow, right brow and nose: (..., 68, 2) -> (..., 3, 2)."""
    return np.stack([points68[..., part, :].mean(-2) for part in (LEFT_BROW, RIGHT_BROW, NOSE)], -2)


def mouth_opening(points68: np.ndarray) -> np.ndarray:
    """Distance of the inner lips over the face's height (nose bridge to chin): (N, 68, 2) -> (N,)."""
    opening = np.linalg.norm(points68[..., UPPER_LIP, :] - points68[..., LOWER_LIP, :], axis=-1)
    return opening / np.linalg.norm(points68[..., NASION, :] - points68[..., CHIN, :], axis=-1)


class FaceFinder(AbstractContextManager["FaceFinder"]):
    """MediaPipe's face landmarker over whole pictures and over crops. Threads may share one; close() frees the model.
    model: the file face_landmarker.task. Raises UserError where it is missing or is not that."""

    def __init__(self, model: Path | str) -> None:
        self._landmarker = _landmarker(Path(model))
        self._turn = Lock()  # MediaPipe's landmarker serves one thread at a time

    def close(self) -> None:
        """Best called (or `with` used): MediaPipe complains when it is closed by the end of Python."""
        self._landmarker.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def detect(self, frame: np.ndarray, *, known: Iterable[Box] = (), thorough: bool = True) -> list[Face]:
        """Faces of a (H, W, 3) uint8 RGB picture, largest first. known: boxes of faces that are followed already and
        left out. thorough: search overlapping tiles too, for faces that are small in the picture."""
        found: list[Face] = []
        taken = list(known)
        for picture, scale, origin in _views(frame, thorough):
            for coarse in (_shift(face, scale, origin) for face in self._landmarks(picture)):
                face = None if _claimed(coarse, taken) else self._confirmed(frame, coarse.box)
                if face and not _claimed(face, taken):
                    found.append(face)
                    taken.append(face.box)
        return sorted(found, key=lambda face: -face.height)

    def refine(self, frame: np.ndarray, box: Box) -> Face | None:
        """The face near this box, by landmarks on a crop around it; None where there is none."""
        crop, scale, origin = _cut(frame, box)
        faces = (_shift(face, scale, origin) for face in self._landmarks(crop))
        scored = (replace(face, score=overlap(face.box, box)) for face in faces)
        return max((face for face in scored if face.score > 0.1), key=lambda face: face.score, default=None)

    def mesh(self, frame: np.ndarray, box: Box) -> np.ndarray | None:
        """(478, 3) float64: MediaPipe's face mesh near this box, in pixels of the frame; z grows with the distance."""
        crop, scale, origin = _cut(frame, box)
        meshes = [self._to_frame(mesh, scale, origin) for mesh in self._meshes(crop)]
        boxes = [(*mesh[:, :2].min(0).tolist(), *mesh[:, :2].max(0).tolist()) for mesh in meshes]
        return max(zip(boxes, meshes, strict=True), key=lambda found: overlap(found[0], box), default=(box, None))[1]

    @staticmethod
    def _to_frame(mesh: np.ndarray, scale: float, origin: tuple[float, float]) -> np.ndarray:
        return np.c_[(mesh[:, :2] + 0.5) / scale - 0.5 + np.array(origin), mesh[:, 2] / scale]

    def _confirmed(self, frame: np.ndarray, box: Box) -> Face | None:
        first = self.refine(frame, box)
        second = self.refine(frame, first.box) if first else None
        return second if second and second.score >= MIN_IOU else None

    def _landmarks(self, picture: np.ndarray) -> list[Face]:
        return [face_of_mesh(mesh[:, :2]) for mesh in self._meshes(picture)]

    def _meshes(self, picture: np.ndarray) -> list[np.ndarray]:
        """(N, 3) points of each face: x, y in pixels, z in the same unit."""
        import mediapipe as mp

        # MediaPipe reads rows without their stride: a picture that is not contiguous silently has no face
        image = mp.Image(image_format=mp.ImageFormat.SRGB, data=np.ascontiguousarray(picture))
        height, width = picture.shape[:2]
        with self._turn:
            meshes = self._landmarker.detect(image).face_landmarks
        size, corner = np.array([width, height, width], np.float64), np.array([0.5, 0.5, 0.0])
        return [np.array([(p.x, p.y, p.z) for p in mesh]) * size - corner for mesh in meshes]


def _landmarker(model: Path) -> Any:
    from mediapipe.tasks.python import vision
    from mediapipe.tasks.python.core.base_options import BaseOptions

    if not model.is_file():
        raise UserError(f"There is no face model at {model}; {files.getting('face-landmarker')}.")
    options = vision.FaceLandmarkerOptions(
        base_options=BaseOptions(model_asset_buffer=model.read_bytes()),
        running_mode=vision.RunningMode.IMAGE,
        num_faces=MAX_FACES,
    )
    try:
        with _quiet():
            return vision.FaceLandmarker.create_from_options(options)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{model} is not MediaPipe's face_landmarker.task; download that file again.") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """MediaPipe's C++ side logs its start to stderr and has no switch for it. The command line hides that; in a host's
    process file descriptor 2 belongs to the host."""
    kept = None
    with suppress(OSError):  # no stderr at all
        kept = os.dup(2) if files.in_terminal else None
    if kept is None:
        yield
        return
    try:
        with Path(os.devnull).open("w") as nothing:
            os.dup2(nothing.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def _claimed(face: Face, taken: Iterable[Box]) -> bool:
    return any(overlap(face.box, box) > 0.3 for box in taken)


def face_of_mesh(mesh: np.ndarray) -> Face:
    """A face by the 478 (or 468) points of MediaPipe's mesh, (N, 2) in pixels."""
    box: Box = tuple(np.concatenate([mesh.min(0), mesh.max(0)]).tolist())
    return Face(mesh[list(MESH_TO_68)].astype(np.float32), box, 1.0)


def _shift(face: Face, scale: float, origin: tuple[float, float]) -> Face:
    """From pixels of a view to pixels of the frame; pixel centers, not corners, are whole numbers."""
    points = ((face.points68 + 0.5) / scale - 0.5 + np.array(origin)).astype(np.float32)
    x0, y0, x1, y1 = ((value + 0.5) / scale - 0.5 for value in face.box)
    return Face(points, (x0 + origin[0], y0 + origin[1], x1 + origin[0], y1 + origin[1]), face.score)


def _views(frame: np.ndarray, thorough: bool) -> Iterator[tuple[np.ndarray, float, tuple[float, float]]]:
    """The whole picture, then (thorough) overlapping tiles of it: picture, its scale, its corner in the frame."""
    height, width = frame.shape[:2]
    yield *_resize(frame, SEARCH_SIDE), (0.0, 0.0)
    if not thorough:
        return
    side = round(max(TILE * min(height, width), MIN_TILE * max(height, width)))
    for y in _starts(height, side):
        for x in _starts(width, side):
            yield *_resize(frame[y : y + side, x : x + side], SEARCH_SIDE // 2), (float(x), float(y))


def _starts(length: int, side: int) -> list[int]:
    """First pixels of equally spaced tiles that cover a length."""
    rest = max(0, length - side)
    return np.linspace(0, rest, int(np.ceil(rest / (TILE_STRIDE * side))) + 1).round().astype(int).tolist()


def _resize(picture: np.ndarray, longest: int) -> tuple[np.ndarray, float]:
    """Reduced to at most this many pixels a side, and by how much."""
    scale = longest / max(picture.shape[:2])
    if scale >= 1:
        return picture, 1.0
    return cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), scale


def _cut(frame: np.ndarray, box: Box) -> tuple[np.ndarray, float, tuple[float, float]]:
    """A square of CROP_SIDE pixels around a box, black outside the frame; its scale and its corner in the frame."""
    x0, y0, x1, y1 = box
    size = max(16, round(CROP_MARGIN * max(x1 - x0, y1 - y0)))
    x, y = round((x0 + x1) / 2 - size / 2), round((y0 + y1) / 2 - size / 2)
    height, width = frame.shape[:2]
    inner = frame[max(0, y) : max(0, y + size), max(0, x) : max(0, x + size)]
    pads = (max(0, -y), max(0, y + size - height), max(0, -x), max(0, x + size - width))
    if any(pads):
        inner = cv2.copyMakeBorder(inner, *pads, borderType=cv2.BORDER_CONSTANT, value=(0, 0, 0))
    mode = cv2.INTER_AREA if size > CROP_SIDE else cv2.INTER_LINEAR
    return cv2.resize(inner, (CROP_SIDE, CROP_SIDE), interpolation=mode), CROP_SIDE / size, (float(x), float(y))
