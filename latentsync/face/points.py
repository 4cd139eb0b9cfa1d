"""A face that no finder knows, a drawing or an animal: three points given by hand, followed by its picture.

The face's place in the next frame is looked for by optical flow from a key picture of the face, cut out where the face
was last, so that errors do not add up while the key serves.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import cv2
import numpy as np

from ..errors import UserError
from .align import align_matrices, face_size, resample
from .detect import LEFT_BROW, RIGHT_BROW, three_points
from .smooth import smooth
from .track import FaceTrack

# fmt: off
CANONICAL = np.array([
    (-.85, .14), (-.86, .51), (-.84, .70), (-.75, 1.11), (-.67, 1.28), (-.59, 1.39), (-.38, 1.58), (-.16, 1.68),
    (0, 1.70),
    (.16, 1.68), (.38, 1.58), (.59, 1.39), (.67, 1.28), (.75, 1.11), (.84, .70), (.86, .51), (.85, .14),
    (-.76, .03), (-.65, .01), (-.53, -.03), (-.37, -.02), (-.19, 0), (.19, 0), (.37, -.02), (.53, -.03), (.65, .01),
    (.76, .03),
    (0, .23), (0, .42), (0, .58), (0, .68), (-.16, .80), (-.10, .84), (0, .84), (.10, .84), (.16, .80),
    (-.55, .27), (-.48, .21), (-.35, .21), (-.21, .30), (-.33, .31), (-.46, .32),
    (.21, .30), (.35, .21), (.48, .21), (.55, .27), (.46, .32), (.33, .31),
    (-.33, 1.10), (-.19, 1.03), (-.10, 1), (0, 1.02), (.10, 1), (.19, 1.03), (.33, 1.10),
    (.19, 1.23), (.10, 1.26), (0, 1.27), (-.10, 1.26), (-.19, 1.23),
    (-.30, 1.10), (-.08, 1.10), (0, 1.10), (.08, 1.10), (.30, 1.10), (.08, 1.14), (0, 1.15), (-.08, 1.14),
])
# fmt: on
"""(68, 2) the mean face of 38 people (portraits, front view), made symmetric; the brows' centers are at (-0.5, 0) and
(0.5, 0)."""
NOSE_TIP = 30
FACE_SIDE, KEY_SIDE = 128, 192  # of the upright face, as in align.face_size, and of the square around it, in pixels
CORNERS, FEWEST = 150, 8  # points of the key that are followed; fewer than this tell nothing
BACK = 1.0  # pixels of the key that a point followed there and back may be off
FIT = 1.5  # pixels of the key that a point may be off the common motion
LOST, STALE = 0.3, 0.6
"""Share of the key's points that follow the common motion: below the first the face is lost, below the second the last
picture becomes the key."""
BLOCK_BYTES = 1 << 28  # gray frames that are kept while a stretch of the clip is read forward to be followed backward


@dataclass(frozen=True)
class Points:
    """Left brow, right brow and nose tip as seen: ((x, y), (x, y), (x, y)) in pixels, and the frame they are in."""

    places: tuple[tuple[float, float], ...]
    frame: int = 0

    @classmethod
    def parse(cls, text: str) -> "Points":
        """Points from "x1,y1,x2,y2,x3,y3" or "x1,y1,x2,y2,x3,y3,frame"; spaces and semicolons part numbers as well.
        Raises UserError where it is not that."""
        numbers: list[float] = []
        with suppress(ValueError):
            numbers = [float(part) for part in re.split(r"[,;\s]+", text.strip())]
        frame = numbers[6] if len(numbers) == 7 else 0.0
        if len(numbers) not in (6, 7) or not np.isfinite(numbers).all() or frame < 0 or frame != int(frame):
            raise UserError(
                f'The face\'s points are {text!r}; give "x1,y1,x2,y2,x3,y3,frame": left brow, right brow and nose tip '
                "in pixels, as seen, and the number of the frame (0 where it is left out)."
            )
        x1, y1, x2, y2, x3, y3 = numbers[:6]
        return cls(((x1, y1), (x2, y2), (x3, y3)), int(frame))

    def scaled(self, scale: float) -> "Points":
        """In pixels of pictures that were made smaller."""
        return Points(tuple((x * scale, y * scale) for x, y in self.places), self.frame)

    @property
    def landmarks(self) -> np.ndarray:
        """(68, 2) float32: the mean face laid on the points. Raises UserError where they are (almost) one line."""
        left, right, nose = np.array(self.places)
        across, down = right - left, nose - (left + right) / 2
        turn = float(across[0] * down[1] - across[1] * down[0])
        if abs(turn) < 0.1 * max(across @ across, down @ down) or np.linalg.norm(across) < 2:
            raise UserError(f"The points {self.places} make no face; give two brows and the tip of a nose below them.")
        if turn < 0:  # nobody's nose is above the brows: the head is upside down, where left as seen is right
            left, right = right, left
        three = np.stack([*_brows(CANONICAL), CANONICAL[NOSE_TIP]])
        matrix = _similarity(three, np.stack([left, right, nose]))
        return _moved(CANONICAL, matrix).astype(np.float32)


def _brows(face: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return face[LEFT_BROW].mean(0), face[RIGHT_BROW].mean(0)


def _similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(2, 3) least squares similarity without mirroring, (N, 2) each."""
    a, b = (points @ (1, 1j) for points in (source, target))
    turn = np.vdot(a - a.mean(), b - b.mean()) / np.vdot(a - a.mean(), a - a.mean())
    shift = b.mean() - turn * a.mean()
    return np.array([(turn.real, -turn.imag, shift.real), (turn.imag, turn.real, shift.imag)])


def _moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


def _after(second: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The (2, 3) transform that does first, then second."""
    return np.c_[second[:, :2] @ first[:, :2], _moved(first[None, :, 2], second)[0]]


def track_points(
    read: Callable[[range], Iterable[np.ndarray]],
    count: int,
    points: Points,
    *,
    on_step: Callable[[int], None] | None = None,
) -> FaceTrack:
    """Follow a face from where it was pointed out, to both sides until it is lost or the clip ends.

    read: frames (H, W, 3) uint8 RGB of a range of numbers, in order; called once for the frames from points.frame on,
    then in blocks, the last first, for those before. count: frames of the clip. on_step(n) is called after n frames.
    landmarks of the track are the mean face, moved and turned as the picture moves: its lips do not open.
    Raises UserError where the points lie outside the clip or make no face.
    """
    if points.frame >= count:
        raise UserError(f"The points' frame {points.frame} is outside the clip, which has frames 0 to {count - 1}.")
    face = points.landmarks
    onward = iter(read(range(points.frame, count)))
    first = next(onward)
    height, width = first.shape[:2]
    if not all(0 <= x < width and 0 <= y < height for x, y in points.places):
        raise UserError(f"The points {points.places} are outside the picture, which has {width} x {height} pixels.")
    moves = {points.frame: np.eye(2, 3)}  # from points.frame, of each frame with the face
    steps = 1
    ways = (
        (range(points.frame + 1, count), map(_gray, onward)),
        (range(points.frame - 1, -1, -1), _backward(read, points.frame, width * height)),
    )
    for numbers, grays in ways:
        follower = _Follower(_gray(first), face)
        for i, gray in zip(numbers, grays, strict=False):
            matrix = follower.step(gray)
            if matrix is None:
                break
            moves[i] = matrix
            steps += 1
            if on_step:
                on_step(steps)
    start, stop = min(moves), max(moves) + 1
    held = np.clip(np.arange(count), start, stop - 1)
    landmarks = np.stack([_moved(face, moves[i]).astype(np.float32) for i in held.tolist()])
    segments = ((start, stop),)
    present = (np.arange(count) >= start) & (np.arange(count) < stop)
    steadied = smooth(three_points(landmarks), segments)[held]
    return FaceTrack(0, steadied, landmarks, present, segments, (width, height))


def _gray(frame: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)


def _backward(read: Callable[[range], Iterable[np.ndarray]], stop: int, pixels: int) -> Iterator[np.ndarray]:
    """Gray frames stop - 1, stop - 2, ... 0."""
    block = max(1, BLOCK_BYTES // pixels)
    while stop > 0:
        start = max(0, stop - block)
        yield from reversed([_gray(frame) for frame in read(range(start, stop))])
        stop = start


@dataclass
class _Follower:
    """A face's way through gray frames, from the one with this face (68, 2) in it."""

    gray: np.ndarray
    face: np.ndarray
    _cut: np.ndarray = field(init=False)  # frame -> upright square of KEY_SIDE, where the face was last
    _first: np.ndarray = field(init=False)  # the same at the start
    _key: np.ndarray = field(init=False)
    _corners: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        cut = align_matrices(three_points(self.face)[None], FACE_SIDE)[0]
        cut[:, 2] += (np.array([KEY_SIDE, KEY_SIDE]) - face_size(FACE_SIDE)) / 2
        self._cut = self._first = cut
        outline = cv2.convexHull(np.round(_moved(self.face, cut)).astype(np.int32))
        self._area = cv2.fillConvexPoly(np.zeros((KEY_SIDE, KEY_SIDE), np.uint8), outline, 255)
        self._take(resample(self.gray, cut, KEY_SIDE))

    def step(self, gray: np.ndarray) -> np.ndarray | None:
        """Where the face is in the next frame: (2, 3) from the first frame; None where it is lost."""
        cut, share = self._aligned(gray)
        if share < STALE:
            self._take(resample(self.gray, self._cut, KEY_SIDE))
            cut, share = self._aligned(gray)
        if share < LOST:
            return None
        self.gray, self._cut = gray, cut
        return _after(cv2.invertAffineTransform(cut), self._first)

    def _take(self, key: np.ndarray) -> None:
        """Make this the key. Corners all over the face, also where it is almost plain."""
        self._key = key
        found = cv2.goodFeaturesToTrack(key, CORNERS, 0.003, 5, mask=self._area)
        self._corners = np.zeros((0, 1, 2), np.float32) if found is None else found

    def _aligned(self, gray: np.ndarray) -> tuple[np.ndarray, float]:
        """The cut at which this frame shows the key, and the share of the key's points that say so."""
        cut, share = self._cut, 0.0
        for _ in range(2):  # the second time almost nothing moves, and the measure is exact
            motion, share = self._motion(resample(gray, cut, KEY_SIDE))
            if motion is None:
                return self._cut, 0.0
            cut = _after(cv2.invertAffineTransform(motion), cut)
        return cut, share

    def _motion(self, picture: np.ndarray) -> tuple[np.ndarray | None, float]:
        """The similarity that takes the key to a picture of the same size, and the share of points that follow it."""
        corners = self._corners
        if len(corners) < FEWEST:
            return None, 0.0
        there, found, _ = cv2.calcOpticalFlowPyrLK(
            self._key, picture, corners, corners.copy(), winSize=(21, 21), maxLevel=3
        )
        back, returned, _ = cv2.calcOpticalFlowPyrLK(
            picture, self._key, there, there.copy(), winSize=(21, 21), maxLevel=3
        )
        good = found.ravel().astype(bool) & returned.ravel().astype(bool)
        good &= np.linalg.norm(back - corners, axis=-1).ravel() < BACK
        if good.sum() < FEWEST:
            return None, 0.0
        motion, inliers = cv2.estimateAffinePartial2D(corners[good], there[good], ransacReprojThreshold=FIT)
        if motion is None or not 0.5 < np.linalg.norm(motion[:, 0]) < 2:
            return None, 0.0
        return motion, float(inliers.sum()) / len(corners)
