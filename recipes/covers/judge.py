"""How well covers are found: things put over clips, whose place is known, and clips with nothing over the face.

The things are drawn otherwise than in training. Landmarks are measured again on the covered frames.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from latentsync.face import occlusion
from latentsync.face.align import align_matrices, crop_face, crop_matrix
from latentsync.face.choose import choose
from latentsync.face.detect import Box, FaceFinder, three_points
from latentsync.face.mask import mouth_mask
from latentsync.face.occlusion import SIDE, TOP, CoverMasks, Covers
from latentsync.face.track import find_tracks
from latentsync.media.probe import probe
from latentsync.media.reader import VideoReader

KNOWN = ("latentsync_demo*", "obama_a*", "reagan_*")
"""People who were trained on, beside recipes.nano.data.STRANGERS, who were not."""
FIRST, FRAMES, LOOKED_AT = 40, 48, 360
"""Covers are put over so many frames from FIRST on; clean clips are watched for LOOKED_AT frames."""
COMES, GOES = 10, 42
"""A cover that moves is in the picture from and to here."""
CROP = 256


@contextmanager
def network(path: Path) -> Iterator[None]:
    """Another file in place of the built-in one."""
    before = occlusion.ASSET
    occlusion.ASSET = path
    occlusion.cover_net.cache_clear()
    try:
        yield
    finally:
        occlusion.ASSET = before
        occlusion.cover_net.cache_clear()


# ---- things ----------------------------------------------------------------------------------------------------------

Thing = tuple[np.ndarray, np.ndarray]
"""RGB (CROP, CROP, 3) float32 and alpha (CROP, CROP) float32 in 0..1, in the aligned crop."""
YY, XX = np.mgrid[:CROP, :CROP].astype(np.float32)


def _drawn(*strokes: Callable[[np.ndarray], object]) -> np.ndarray:
    alpha = np.zeros((CROP, CROP), np.uint8)
    for stroke in strokes:
        stroke(alpha)
    return alpha.astype(np.float32) / 255


def _line(start: tuple[int, int], stop: tuple[int, int], width: int) -> Callable[[np.ndarray], object]:
    return lambda alpha: cv2.line(alpha, start, stop, 255, width, cv2.LINE_AA)


def _oval(center: tuple[int, int], axes: tuple[int, int], turn: int = 0) -> Callable[[np.ndarray], object]:
    return lambda alpha: cv2.ellipse(alpha, center, axes, turn, 0, 360, 255, -1, cv2.LINE_AA)


def _filled(color: object) -> np.ndarray:
    return np.full((CROP, CROP, 3), color, np.float32)


def flat_hand(face: np.ndarray) -> Thing:
    """An oval with four fingers in the color of the cheek; hardly more than that."""
    skin = np.median(face[120:150, 60:90].reshape(-1, 3), 0)
    alpha = _drawn(_oval((128, 185), (70, 45), 10), *(_oval((85 + 28 * k, 140), (13, 38), 8) for k in range(4)))
    lines = _drawn(*(_line((99 + 28 * k, 145), (92 + 28 * k, 200), 2) for k in range(3)))
    return _filled(skin) * (0.9 - 0.3 * lines - 0.18 * (XX - 128) / 128)[..., None], alpha


def microphone(face: np.ndarray, radius: int = 32, gray: int = 23, grain: float = 8.0) -> Thing:
    noise = np.random.default_rng(3).normal(0, 1, (CROP, CROP)).astype(np.float32)
    shine = 60 * np.exp(-((XX - 108) ** 2 + (YY - 160) ** 2) / 120)
    rgb = _filled(gray) + (cv2.GaussianBlur(noise, (0, 0), 1.2) * grain + shine)[..., None]
    return rgb, _drawn(_oval((120, 175), (radius, radius)), _line((120, 190), (100, 256), 24))


def foam(face: np.ndarray) -> Thing:
    return microphone(face, 40, 106, 20.0)


def cup(face: np.ndarray) -> Thing:
    corners = np.array([(85, 165), (175, 165), (165, 256), (95, 256)])
    alpha = _drawn(lambda a: cv2.fillPoly(a, [corners], 255, cv2.LINE_AA), _oval((130, 165), (45, 12)))
    shade = (1 - 0.35 * ((XX - 130) / 45) ** 2).clip(0.5, 1) * (1 - 0.35 * _drawn(_oval((130, 165), (41, 9))))
    return _filled((235, 232, 228)) * shade[..., None], alpha


def pen(face: np.ndarray) -> Thing:
    return _filled((30, 50, 140)) + (40 * np.sin((XX + YY) * 0.2))[..., None], _drawn(_line((112, 182), (190, 256), 11))


def fork(face: np.ndarray) -> Thing:
    """With food on it."""
    prongs = (_line((125 + 9 * k, 165), (128 + 9 * k, 200), 4) for k in (-1, 0, 1))
    food = _drawn(_oval((126, 172), (26, 17), 20))
    alpha = _drawn(*prongs, _line((128, 200), (150, 256), 9), _line((118, 200), (138, 200), 6))
    eaten = _filled((150, 95, 40)) + (15 * np.sin(XX * 0.6))[..., None]
    return np.where(food[..., None] > 0, eaten, _filled((170, 172, 176))), np.maximum(alpha, food)


def scarf(face: np.ndarray) -> Thing:
    alpha = ((YY - 168 - 8 * np.sin(XX * 0.05)) * 0.5).clip(0, 1)
    return _filled((120, 30, 45)) + (25 * np.sin(YY * 0.5 + XX * 0.1))[..., None], alpha


THINGS: dict[str, Callable[[np.ndarray], Thing]] = {
    thing.__name__: thing for thing in (flat_hand, microphone, foam, cup, pen, fork, scarf)
}


# ---- covers that are known -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clip:
    """frames: (F, H, W, 3) uint8, the surroundings of a face. points: (F, 68, 2) in them."""

    name: str
    frames: np.ndarray
    points: np.ndarray


def clip_of(path: Path, finder: FaceFinder) -> Clip:
    info = probe(path)
    with VideoReader(info) as reader:
        frames = np.stack([*islice(reader.read(range(min(info.frames, FIRST + FRAMES))), FIRST, None)])
    track = choose(find_tracks(frames, finder), "largest")
    points = track.landmarks
    low, high = points.min((0, 1)), points.max((0, 1))
    room = 0.6 * (high - low).max()
    (left, top), (right, bottom) = np.maximum(0, low - room).astype(int), (high + room).astype(int)
    return Clip(path.stem, frames[:, top:bottom, left:right], points - (left, top))


def covered_frames(clip: Clip, thing: Callable[[np.ndarray], Thing], *, still: bool) -> Iterator[Thing]:
    """Frames (H, W, 3) uint8 with the thing over them, and where it is, (H, W) in 0..1. still: it is there from the
    first to the last frame, shaking a little; else it comes from below and goes again."""
    matrices = align_matrices(three_points(clip.points), CROP)
    for k, frame in enumerate(clip.frames):
        away = 0.0 if still else float(np.clip(max(COMES + 6 - k, k - GOES + 6) / 6, 0, 9))
        if not still and not COMES <= k < GOES:
            yield frame, np.zeros(frame.shape[:2], np.float32)
            continue
        rgb, alpha = thing(crop_face(frame, matrices[k], CROP))
        to_crop = np.vstack([crop_matrix(matrices[k], CROP), (0, 0, 1)])
        shift = np.array([[1, 0, 3 * np.sin(0.5 * k)], [0, 1, 140 * away + 2 * np.cos(0.4 * k)], [0, 0, 1]])
        placed, size = (np.linalg.inv(to_crop) @ shift)[:2], frame.shape[1::-1]
        where = cv2.warpAffine(alpha, placed, size, flags=cv2.INTER_AREA)
        color = cv2.warpAffine(rgb, placed, size, borderMode=cv2.BORDER_REPLICATE)
        mixed = frame + where[..., None] * (color - frame)
        yield mixed.clip(0, 255).astype(np.uint8), where


@dataclass
class Count:
    """Pixels within what is repainted: covered and marked, marked alone, covered alone, neither; and frames with a
    cover, those of them that are hidden as a whole, and frames without a cover in which more than 1 % is marked."""

    both: int = 0
    marked: int = 0
    missed: int = 0
    neither: int = 0
    frames: int = 0
    hidden: int = 0
    alarms: int = 0

    def add(self, other: "Count") -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def row(self) -> dict[str, float]:
        return {
            "iou": round(self.both / max(1, self.both + self.marked + self.missed), 2),
            "kept": round(self.both / max(1, self.both + self.missed), 2),
            "false area": round(self.marked / max(1, self.marked + self.neither), 3),
            "hidden": round(self.hidden / max(1, self.frames), 2),
            "alarms": self.alarms,
        }


def judge_clip(clip: Clip, thing: Callable[[np.ndarray], Thing], finder: FaceFinder, *, still: bool) -> Count:
    covers, truth, points = Covers(), [], clip.points
    for k, (frame, where) in enumerate(covered_frames(clip, thing, still=still)):
        seen = finder.refine(frame, _box(points[k]))
        found = points[k] if seen is None else seen.points68
        covers.watch(k, frame, found)
        to_crop = crop_matrix(align_matrices(three_points(found)[None], SIDE)[0], SIDE)
        truth.append(cv2.warpAffine(where, to_crop, (SIDE, SIDE)) > 0.5)
    return compared(covers.finish(), truth)


def _box(points68: np.ndarray) -> Box:
    """A face with its forehead."""
    (x0, y0), (x1, y1) = points68.min(0).tolist(), points68.max(0).tolist()
    return x0, y0 - 0.3 * (y1 - y0), x1, y1


def compared(masks: CoverMasks, truth: Iterable[np.ndarray]) -> Count:
    """truth: (SIDE, SIDE) bool of every frame. What is marked counts before whole frames are hidden."""
    count, repainted = Count(), mouth_mask(SIDE) == 0
    for i, covered in enumerate(truth):
        marked = np.zeros((SIDE, SIDE), bool)
        if i in masks:
            marked[TOP:] = masks._mask(i) > 0.5
        ours, right = marked[repainted], covered[repainted]
        if right.mean() > 0.03:
            both, alone, missed = ((ours & right).sum(), (ours & ~right).sum(), (~ours & right).sum())
            neither = (~ours & ~right).sum()
            count.add(Count(int(both), int(alone), int(missed), int(neither), 1, int(i in masks.hidden)))
        elif not right.any():
            count.add(Count(alarms=int(ours.mean() > 0.01)))
    return count


def false_alarms(path: Path, finder: FaceFinder) -> tuple[int, int]:
    """Frames of a clean clip in which a cover is said to be, and frames with a face, of all faces."""
    info = probe(path)
    with VideoReader(info) as reader:
        tracks = find_tracks(reader.read(range(min(info.frames, LOOKED_AT))), finder)
    return sum(len(face.covers) for face in tracks.faces), sum(int(face.present.sum()) for face in tracks.faces)
