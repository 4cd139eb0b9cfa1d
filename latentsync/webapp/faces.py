"""A frame of an upload with the boxes of its faces, for the user to click."""

import re
import threading
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from ..errors import UserError
from ..face.detect import Box, FaceFinder
from ..media.image import read_image
from ..media.probe import probe
from ..media.reader import VideoReader
from ..timeline import fit_timeline
from ..weights.registry import find
from .uploads import Media

SHOWN_SIDE = 960  # longest side of a frame as the browser gets it; coordinates are always pixels of the file
SEARCH_POSITIONS = (0.0, 0.1, 0.25, 0.5, 0.75)  # where a face is searched for, as fractions of a clip's length

_detector_lock = threading.Lock()


@dataclass(frozen=True)
class Shot:
    """A frame (as JPEG) and the boxes of its faces, from left to right, in pixels of the file."""

    frame: int
    jpeg: bytes
    width: int
    height: int
    boxes: tuple[Box, ...]

    @property
    def largest(self) -> int:
        """Index of the largest face; 0 when there is none."""
        sizes = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in self.boxes]
        return sizes.index(max(sizes)) if sizes else 0

    def point(self, face: int, first: int = 0) -> str:
        """The face as Settings.face: "x,y,frame". first: the frame that is counted as 0."""
        x0, y0, x1, y1 = self.boxes[face]
        return f"{round((x0 + x1) / 2)},{round((y0 + y1) / 2)},{self.frame - first}"

    def percentages(self) -> list[list[float]]:
        """The boxes as left, top, width, height in percent of the frame."""
        if not self.boxes:
            return []
        size = np.array([self.width, self.height])
        low, high = np.hsplit(100 * np.clip(self.boxes, 0, [*size, *size]) / [*size, *size], 2)
        return np.hstack([low, high - low]).tolist()


def places(text: str) -> list[tuple[float, float]]:
    """The whole points, three at most, that a text with numbers has so far."""
    numbers = [float(number) for number in re.findall(r"\d+(?:\.\d*)?", text)][:6]
    return list(zip(numbers[::2], numbers[1::2], strict=False))


def look(media: Media, frame: int = 0) -> Shot:
    """A frame of a video, or a picture, with its faces. UserError when the face model is missing."""
    picture = _frame(media, frame)
    with _detector_lock, FaceFinder(find("face_landmarker.task")) as finder:
        faces = sorted(finder.detect(picture), key=lambda face: face.center[0])
    return Shot(frame, jpeg(picture), picture.shape[1], picture.shape[0], tuple(face.box for face in faces))


def first_look(media: Media, frames: int, first: int = 0) -> Shot:
    """The earliest of some of the so many frames from `first` on that shows a face; the first where none does."""
    positions = dict.fromkeys(first + int(share * (frames - 1)) for share in SEARCH_POSITIONS)
    shots = (look(media, i) for i in positions)
    start = next(shots)
    return start if start.boxes else next((shot for shot in shots if shot.boxes), start)


def shown_frames(media: Media, voice_seconds: Fraction | None, fit: str, used: int | None = None) -> int:
    """How many frames of a clip appear in the result; a face must be picked in one of these. used: so many are used."""
    frames = media.frames if used is None else used
    if media.kind == "picture" or voice_seconds is None:
        return frames
    return min(frames, fit_timeline(media.fps, frames, voice_seconds, fit).frames)


def _frame(media: Media, frame: int) -> np.ndarray:
    if media.kind == "picture":
        return read_image(media.path)
    if not 0 <= frame < media.frames:
        raise UserError(f"{media.name} has no frame {frame}; give one from 0 to {media.frames - 1}.")
    with VideoReader(probe(media.path)) as reader:
        return next(reader.read([frame]))


def jpeg(picture: np.ndarray) -> bytes:
    """For the page: (H, W, 3) uint8 RGB, made smaller where it is large."""
    import cv2

    scale = min(1.0, SHOWN_SIDE / max(picture.shape[:2]))
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else picture
    done, data = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
    if not done:
        raise UserError("The picture could not be shown; give another one.")
    return data.tobytes()
