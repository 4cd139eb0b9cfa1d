"""Faces in one picture: a coarse search, then landmarks on a square crop around each face.

Heads may be turned: a face's tilt is the angle in degrees by which its picture must be turned counterclockwise to be
upright. The search looks at the picture turned by quarters too, and landmarks are measured on an upright crop.
"""

import os
import zipfile
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
LEFT_EYE, RIGHT_EYE = slice(36, 42), slice(42, 48)
UPPER_LIP, LOWER_LIP, NASION, CHIN = 62, 66, 27, 8

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels of the frame."""

SEARCH_SIDE = 640  # longest side of a picture that is searched: the detector itself looks at 128 x 128
CROP_SIDE = 320
CROP_MARGIN = 1.7  # landmarks are measured on a square of this many face sizes, brought to CROP_SIDE pixels
TILE, MIN_TILE = 0.6, 0.15
"""Side of the largest tiles of a thorough search: share of the picture's shorter side, but at least this of the longer.
Each further level halves it."""
SMALL_TILE = 360  # pixels from which on tiles are not halved further; the detector finds faces of an eighth of its view
TILE_STRIDE, SMALL_STRIDE = 0.6, 0.72
"""Largest way from tile to tile, as a share of a tile: a face of up to 0.4 tiles lies whole in one of the large ones;
of smaller tiles 0.28 is enough, as what is larger was seen in those before."""
MAX_FACES = 6
MIN_IOU = 0.5  # minimum IoU of two successive detections for a face to count
DETECTOR_SIDE = 128  # pixels: what the detector looks at
DETECTED = 1.1  # size of a face's mesh in detected squares: median of 90 faces, 5 % to 95 %: 0.8 to 1.16
SQUARE = 2**0.5  # how much wider a square is from which a turned one is cut
UPRIGHT = 30.0  # tilt in degrees up to which the landmarker measures as well without turning the picture
MAYBE = 0.3  # detector score of what is looked at closer: nine faces of 40 pixels in tiles of 324 had 0.49 to 0.84
AGREE = 0.93  # IoU of two successive detections of a face that the detector alone found; letters: 0.79 to 0.92
LIKELY, SURE = 0.6, 0.8
"""Least detector scores of a face that the detector alone found, about upright and once it is quite upright. 268 faces
of clips, stills and portraits, upright: 1 % below 0.84, least 0.75; nine of 40 to 80 pixels: at least 0.89; letters of
a title, lying: up to 0.77."""


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

    @property
    def tilt(self) -> float:
        """See tilt_of."""
        return tilt_of(self.points68)


def three_points(points68: np.ndarray) -> np.ndarray:
    """Centres of left brow, right brow and nose: (..., 68, 2) -> (..., 3, 2)."""
    return np.stack([points68[..., part, :].mean(-2) for part in (LEFT_BROW, RIGHT_BROW, NOSE)], -2)


def mouth_opening(points68: np.ndarray) -> np.ndarray:
    """Distance of the inner lips over the face's height (nose bridge to chin): (N, 68, 2) -> (N,)."""
    opening = np.linalg.norm(points68[..., UPPER_LIP, :] - points68[..., LOWER_LIP, :], axis=-1)
    return opening / np.linalg.norm(points68[..., NASION, :] - points68[..., CHIN, :], axis=-1)


def tilt_of(points68: np.ndarray) -> float:
    """By how many degrees a face is turned clockwise as seen, -180 to 180: by its eyes and by its nasion and chin."""
    x, y = points68[RIGHT_EYE].mean(0) - points68[LEFT_EYE].mean(0)
    across, down = points68[CHIN] - points68[NASION]
    return float(np.degrees(np.arctan2(y - across, x + down)))


class FaceFinder(AbstractContextManager["FaceFinder"]):
    """MediaPipe's face landmarker over whole pictures and over crops. Threads may share one; close() frees the model.
    model: the file face_landmarker.task. Raises UserError where it is missing or is not that."""

    def __init__(self, model: Path | str) -> None:
        self._landmarker, self._detector = _models(Path(model))
        self._turn = Lock()  # MediaPipe's models serve one thread at a time
        with _quiet():  # what it logs about the first picture
            self.detect(np.zeros((64, 64, 3), np.uint8), thorough=False)

    def close(self) -> None:
        """Best called (or `with` used): MediaPipe complains when it is closed by the end of Python."""
        with _quiet():
            self._landmarker.close()
            self._detector.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def detect(self, frame: np.ndarray, *, known: Iterable[Box] = (), thorough: bool = True) -> list[Face]:
        """Faces of a (H, W, 3) uint8 RGB picture, largest first. known: boxes of faces that are followed already and
        left out. thorough: search overlapping tiles too, for faces that are small in the picture."""
        found: list[Face] = []
        taken = list(known)
        for box, tilt, least in self._candidates(frame, taken, thorough):
            face = self._confirmed(frame, box, tilt, least)
            if face and not _claimed(face.box, taken):
                found.append(face)
                taken.append(face.box)
        return sorted(found, key=lambda face: -face.height)

    def refine(self, frame: np.ndarray, box: Box, tilt: float = 0.0) -> Face | None:
        """The face near this box, by landmarks on a crop around it; None where there is none. tilt: about the face's,
        within 60 degrees."""
        crop, scale, origin, back = _upright_cut(frame, box, tilt)
        shifted = (_shift(face, scale, origin) for face in self._landmarks(crop, back))
        scored = (replace(face, score=overlap(face.box, box)) for face in shifted)
        return max((face for face in scored if face.score > 0.1), key=lambda face: face.score, default=None)

    def mesh(self, frame: np.ndarray, box: Box, tilt: float = 0.0) -> np.ndarray | None:
        """(478, 3) float64: MediaPipe's face mesh near this box, in pixels of the frame; z grows with the distance."""
        crop, scale, origin, back = _upright_cut(frame, box, tilt)
        meshes = [self._to_frame(mesh, scale, origin) for mesh in self._meshes(crop, back)]
        boxes = [(*mesh[:, :2].min(0).tolist(), *mesh[:, :2].max(0).tolist()) for mesh in meshes]
        return max(zip(boxes, meshes, strict=True), key=lambda found: overlap(found[0], box), default=(box, None))[1]

    @staticmethod
    def _to_frame(mesh: np.ndarray, scale: float, origin: tuple[float, float]) -> np.ndarray:
        return np.c_[(mesh[:, :2] + 0.5) / scale - 0.5 + np.array(origin), mesh[:, 2] / scale]

    def _candidates(self, frame: np.ndarray, taken: list[Box], thorough: bool) -> Iterator[tuple[Box, float, float]]:
        """Boxes, tilts and least detector scores of what may be faces, the large ones first. taken: grows meanwhile."""
        whole, scale = _resize(frame, SEARCH_SIDE)
        for face in (_shift(face, scale, (0.0, 0.0)) for face in self._landmarks(whole)):
            if not _claimed(face.box, taken):
                yield face.box, face.tilt, 0.0
        yield from self._detected(whole, (0, 0), taken, turns=(1, 2, 3), shrunk=scale)
        for level, (side, corners) in enumerate(_tiles(frame) if thorough else ()):
            if level and any(box[3] - box[1] > side for box in taken):
                return  # what is this much smaller than another face stays in the background
            for x, y in corners:
                if level and len(taken) >= MAX_FACES:
                    return
                yield from self._detected(frame[y : y + side, x : x + side], (x, y), taken, (0,))

    def _detected(
        self,
        picture: np.ndarray,
        corner: tuple[int, int],
        taken: list[Box],
        turns: Iterable[int],
        shrunk: float = 1.0,
    ) -> Iterator[tuple[Box, float, float]]:
        """What the detector finds in a picture turned by quarters, left out where a face is known. corner: of the
        picture in the frame, shrunk: its scale."""
        small, scale = _resize(picture, DETECTOR_SIDE)
        scale *= shrunk
        middle = _middle(small)
        for turn in turns:
            view = np.rot90(small, turn)
            for _, center, size, eyes in self._detections(view):
                place = ((center - _middle(view)) * 1j**turn + middle + 0.5 + 0.5j) / scale - 0.5 - 0.5j
                x, y, half = corner[0] + place.real, corner[1] + place.imag, DETECTED * size / scale / 2
                box = (x - half, y - half, x + half, y + half)
                if not any(b[0] < x < b[2] and b[1] < y < b[3] for b in taken):
                    yield box, float(np.degrees(np.angle(eyes * 1j**turn))), LIKELY

    def _detections(self, picture: np.ndarray) -> list[tuple[float, complex, float, complex]]:
        """Score, center, side and way from eye to eye of each square that may hold a face, in x + iy pixels."""
        height, width = picture.shape[:2]
        with self._turn:
            found = self._detector.detect(_image(picture)).detections
        squares = []
        for face in found:
            box = face.bounding_box
            left, right = (complex(p.x * width, p.y * height) for p in face.keypoints[:2])
            center = complex(box.origin_x + box.width / 2, box.origin_y + box.height / 2) - 0.5 - 0.5j
            squares.append((face.categories[0].score, center, float(box.width), right - left))
        return squares

    def _confirmed(self, frame: np.ndarray, box: Box, tilt: float, least: float) -> Face | None:
        """The face that landmarks find twice in much the same place. least: detector score that it must have."""
        score, tilt = self._turned(frame, box, tilt)
        if score < least:
            return None
        first = self.refine(frame, box, tilt)
        second = self.refine(frame, first.box, first.tilt) if first else None
        if not second or second.score < MIN_IOU:
            return None
        if least and (second.score < AGREE or self._turned(frame, second.box, second.tilt)[0] < SURE):
            return None
        return second

    def _turned(self, frame: np.ndarray, box: Box, tilt: float) -> tuple[float, float]:
        """The best detector score of this face turned by quarters, and the tilt there. Landmarks are found in an
        upside-down face too, with the mouth on the forehead; the detector's scores tell."""
        square = _cut(frame, box, CROP_MARGIN * SQUARE, round(DETECTOR_SIDE * SQUARE))[0]
        view, _ = _upright(square, tilt, DETECTOR_SIDE)
        middle = _middle(view)
        best = (0.0, tilt)
        for turn in range(4):
            for score, center, size, eyes in self._detections(np.rot90(view, turn)):
                if score > best[0] and abs(center - middle) < 0.4 * size:
                    best = score, float(np.degrees(np.angle(eyes * 1j**turn))) + tilt
        return best[0], (best[1] + 180) % 360 - 180

    def _landmarks(self, picture: np.ndarray, back: np.ndarray | None = None) -> list[Face]:
        return [face_of_mesh(mesh[:, :2]) for mesh in self._meshes(picture, back)]

    def _meshes(self, picture: np.ndarray, back: np.ndarray | None = None) -> list[np.ndarray]:
        """(N, 3) points of each face: x, y in pixels, z in the same unit. back: (2, 3), applied to x and y."""
        height, width = picture.shape[:2]
        with self._turn:
            found = self._landmarker.detect(_image(picture)).face_landmarks
        size, corner = np.array([width, height, width], np.float64), np.array([0.5, 0.5, 0.0])
        meshes = [np.array([(p.x, p.y, p.z) for p in mesh]) * size - corner for mesh in found]
        if back is not None:
            meshes = [np.c_[mesh[:, :2] @ back[:, :2].T + back[:, 2], mesh[:, 2]] for mesh in meshes]
        return meshes


def _image(picture: np.ndarray) -> Any:
    import mediapipe as mp

    # MediaPipe reads rows without their stride: a picture that is not contiguous silently has no face
    return mp.Image(image_format=mp.ImageFormat.SRGB, data=np.ascontiguousarray(picture))


def _models(model: Path) -> tuple[Any, Any]:
    """MediaPipe's landmarker, and the detector that lies in the same file."""
    from mediapipe.tasks.python import vision
    from mediapipe.tasks.python.core.base_options import BaseOptions

    if not model.is_file():
        raise UserError(f"There is no face model at {model}; {files.getting('face-landmarker')}.")
    try:
        with zipfile.ZipFile(model) as parts, _quiet():
            detector = BaseOptions(model_asset_buffer=parts.read("face_detector.tflite"))
            whole = BaseOptions(model_asset_buffer=model.read_bytes())
            mode = vision.RunningMode.IMAGE
            return (
                vision.FaceLandmarker.create_from_options(
                    vision.FaceLandmarkerOptions(base_options=whole, running_mode=mode, num_faces=MAX_FACES)
                ),
                vision.FaceDetector.create_from_options(
                    vision.FaceDetectorOptions(base_options=detector, running_mode=mode, min_detection_confidence=MAYBE)
                ),
            )
    except (RuntimeError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{model} is not MediaPipe's face_landmarker.task; download that file again.") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """MediaPipe's C++ side logs its start and its end to stderr and has no switch for it. The command line hides that;
    in a host's process file descriptor 2 belongs to the host."""
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


def _claimed(face: Box, taken: Iterable[Box]) -> bool:
    return any(overlap(face, box) > 0.3 for box in taken)


def face_of_mesh(mesh: np.ndarray) -> Face:
    """A face by the 478 (or 468) points of MediaPipe's mesh, (N, 2) in pixels."""
    box: Box = tuple(np.concatenate([mesh.min(0), mesh.max(0)]).tolist())
    return Face(mesh[list(MESH_TO_68)].astype(np.float32), box, 1.0)


def _shift(face: Face, scale: float, origin: tuple[float, float]) -> Face:
    """From pixels of a view to pixels of the frame; pixel centers, not corners, are whole numbers."""
    points = ((face.points68 + 0.5) / scale - 0.5 + np.array(origin)).astype(np.float32)
    x0, y0, x1, y1 = ((value + 0.5) / scale - 0.5 for value in face.box)
    return Face(points, (x0 + origin[0], y0 + origin[1], x1 + origin[0], y1 + origin[1]), face.score)


def _tiles(frame: np.ndarray) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Overlapping tiles of a picture, in levels from large to small: their side and their corners (x, y)."""
    height, width = frame.shape[:2]
    side, stride = round(max(TILE * min(height, width), MIN_TILE * max(height, width))), TILE_STRIDE
    while True:
        way = stride * side
        yield side, [(x, y) for y in _starts(height, side, way) for x in _starts(width, side, way)]
        if side <= SMALL_TILE:
            return
        side, stride = side // 2, SMALL_STRIDE


def _starts(length: int, side: int, way: float) -> list[int]:
    """First pixels of equally spaced tiles that cover a length, at most this far apart."""
    rest = max(0, length - side)
    return np.linspace(0, rest, int(np.ceil(rest / way)) + 1).round().astype(int).tolist()


def _resize(picture: np.ndarray, longest: int) -> tuple[np.ndarray, float]:
    """Reduced to at most this many pixels a side, and by how much."""
    scale = longest / max(picture.shape[:2])
    if scale >= 1:
        return picture, 1.0
    return cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), scale


def _cut(
    frame: np.ndarray, box: Box, margin: float = CROP_MARGIN, side: int = CROP_SIDE
) -> tuple[np.ndarray, float, tuple[float, float]]:
    """A square of this many pixels a side around a box, black outside the frame; its scale and its corner in the frame.
    margin: its size in the frame in sizes of the box."""
    x0, y0, x1, y1 = box
    size = max(16, round(margin * max(x1 - x0, y1 - y0)))
    x, y = round((x0 + x1) / 2 - size / 2), round((y0 + y1) / 2 - size / 2)
    height, width = frame.shape[:2]
    inner = frame[max(0, y) : max(0, y + size), max(0, x) : max(0, x + size)]
    pads = (max(0, -y), max(0, y + size - height), max(0, -x), max(0, x + size - width))
    if any(pads):
        inner = cv2.copyMakeBorder(inner, *pads, borderType=cv2.BORDER_CONSTANT, value=(0, 0, 0))
    mode = cv2.INTER_AREA if size > side else cv2.INTER_LINEAR
    return cv2.resize(inner, (side, side), interpolation=mode), side / size, (float(x), float(y))


def _upright_cut(
    frame: np.ndarray, box: Box, tilt: float
) -> tuple[np.ndarray, float, tuple[float, float], np.ndarray | None]:
    """A square of CROP_SIDE pixels around a box, turned where the tilt asks for it; scale and corner of the square that
    is not turned, and the (2, 3) transform from the turned one to that."""
    if abs(tilt) <= UPRIGHT:
        return *_cut(frame, box), None
    square, scale, origin = _cut(frame, box, CROP_MARGIN * SQUARE, round(CROP_SIDE * SQUARE))
    picture, back = _upright(square, tilt, CROP_SIDE)
    return picture, scale, origin, back


def _upright(square: np.ndarray, tilt: float, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The middle of a square picture with a face of this tilt upright, and the (2, 3) transform back."""
    middle = (len(square) - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), tilt, 1)
    matrix[:, 2] += (side - 1) / 2 - middle
    return cv2.warpAffine(square, matrix, (side, side)), cv2.invertAffineTransform(matrix)


def _middle(picture: np.ndarray) -> complex:
    return complex(picture.shape[1] - 1, picture.shape[0] - 1) / 2
