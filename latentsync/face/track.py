"""Faces over time: who is who, where the gaps and cuts are, and a steady position in every frame.

Frames are read once. An unbroken run of one face (tracklet) ends at a cut or a gap; afterwards tracklets of the same
appearance are merged into one track.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from typing import Protocol

import cv2
import numpy as np

from ..errors import UserError
from .align import align_matrices, crop_face
from .detect import Box, Face, overlap, three_points
from .smooth import smooth

SEARCH_EVERY = 12  # frames between full searches while every known face is being followed
BRIDGE = 5  # gaps of up to this many frames without a cut are interpolated
MIN_IOU = 0.35  # box overlap from frame to frame below which a face counts as lost
NEAR = 0.6  # a lost face found again within BRIDGE frames lies at most this many face heights away
MIN_FRAMES = 5  # faces seen in fewer frames than this are dropped, unless there are no others
APPEARANCE_SIDE, APPEARANCES = 16, 16
SAME_FACE, SAME_FACE_IN_SHOT = 0.75, 0.55
"""Similarity (correlation) of aligned thumbnails from which two tracklets are one person: across cuts, in one shot."""
THUMB = (32, 18)
CUT_LEVEL, CUT_SHAPE = 12.0, 0.3
"""A cut changes gray by this much on average (of 255) and the picture's shape (1 - correlation) by this much."""
FLASH = 3  # a picture that is back after at most this many frames was interrupted by a flash, not by cuts
JUMP = 0.12
"""Face heights in one frame, against a calm neighbourhood, that betray a cut which leaves the background alike."""


@dataclass(frozen=True)
class FaceTrack:
    """One person's face through a clip of F frames.

    points: (F, 3, 2) float32 left brow, right brow, nose in pixels of the source, steadied; held where absent.
    landmarks: (F, 68, 2) float32, as measured (interpolated in bridged gaps, held where absent).
    present: (F,) bool. segments: half-open runs (start, stop) with the face, ended by gaps and by cuts.
    size: width, height of the frames. cuts: frames that start a new shot.
    """

    index: int
    points: np.ndarray
    landmarks: np.ndarray
    present: np.ndarray
    segments: tuple[tuple[int, int], ...]
    size: tuple[int, int]
    cuts: tuple[int, ...] = ()

    @property
    def frames(self) -> int:
        return len(self.present)

    @property
    def height(self) -> float:
        """Median height in pixels, brows to chin, where present."""
        return float(np.median(np.ptp(self.landmarks[self.present][..., 1], axis=1)))

    @property
    def center(self) -> tuple[float, float]:
        """Median place in pixels where present."""
        x, y = np.median(self.landmarks[self.present].mean(1), axis=0)
        return float(x), float(y)


@dataclass(frozen=True)
class Tracks:
    """All faces of a clip, in order of appearance, then from left to right. cuts: frames that start a new shot."""

    faces: tuple[FaceTrack, ...]
    frames: int
    size: tuple[int, int]
    cuts: tuple[int, ...] = ()


@dataclass
class Tracklet:
    """One unbroken following of a face: frame -> landmarks, and a few thumbnails of it. end: last frame seen."""

    seen: dict[int, np.ndarray] = field(default_factory=dict)
    last: Face | None = None
    appearance: list[np.ndarray] = field(default_factory=list)
    end: int = -1

    @property
    def start(self) -> int:
        return min(self.seen)


class Finder(Protocol):
    """What finds faces in a frame: the engine's FaceFinder, or faces that somebody else found."""

    def detect(self, frame: np.ndarray, *, known: Iterable[Box] = (), thorough: bool = True) -> list[Face]: ...

    def refine(self, frame: np.ndarray, box: Box, tilt: float = 0.0) -> Face | None: ...


def find_tracks(
    frames: Iterable[np.ndarray], finder: Finder, *, on_step: Callable[[int], None] | None = None
) -> Tracks:
    """Follow every face through the frames ((H, W, 3) uint8 RGB), which are read once and not kept. on_step(n) is
    called after frame n - 1. Raises UserError where there is no face in any frame."""
    follower, thumbs, size = _Follower(finder), [], (0, 0)
    for i, frame in enumerate(frames):
        size = (frame.shape[1], frame.shape[0])
        thumbs.append(_thumbnail(frame))
        follower.step(i, frame, fresh=i == 0 or _differ(thumbs[i - 1], thumbs[i]))
        if on_step:
            on_step(i + 1)
    if not thumbs:
        raise UserError("The video has no frames; give one that can be played.")
    if not follower.tracklets:
        wanted = "give a picture or video with a face in it"
        raise UserError(f"No face was found in any of the {len(thumbs)} frames; {wanted}.")
    cuts = find_cuts(thumbs)
    merged = _merge_tracklets(follower.tracklets, cuts)
    people = [tracklet for tracklet in merged if len(tracklet.seen) >= MIN_FRAMES] or merged
    people.sort(key=lambda tracklet: (tracklet.start, tracklet.seen[tracklet.start][:, 0].mean()))
    tracks = tuple(_track(n, tracklet, len(thumbs), cuts, size) for n, tracklet in enumerate(people))
    return Tracks(tracks, len(thumbs), size, cuts)


class _Follower:
    """The pass over the frames: grows tracklets, and searches where a face may be new or lost."""

    def __init__(self, finder: Finder) -> None:
        self.finder = finder
        self.tracklets: list[Tracklet] = []
        self._recent: list[Tracklet] = []  # of this shot, seen within the last BRIDGE frames

    def step(self, i: int, frame: np.ndarray, fresh: bool) -> None:
        self._recent = [] if fresh else [t for t in self._recent if i - t.end <= BRIDGE + 1]
        followed = self._follow(i, frame)
        due = i % SEARCH_EVERY == 0
        if fresh or due or not followed or len(followed) < len(self._recent):
            self._search(i, frame, followed, thorough=fresh or (due and not followed))
        if due or fresh:
            for tracklet in self._recent:
                _add_appearance(tracklet, i, frame)

    def _follow(self, i: int, frame: np.ndarray) -> list[Tracklet]:
        followed: list[Tracklet] = []
        for tracklet in self._recent:
            if tracklet.end != i - 1 or not tracklet.last:
                continue
            face = self.finder.refine(frame, tracklet.last.box, tracklet.last.tilt)
            taken = [t.last.box for t in followed if t.last]
            if face and face.score >= MIN_IOU and not any(overlap(face.box, box) > 0.5 for box in taken):
                _extend(tracklet, i, face)
                followed.append(tracklet)
        return followed

    def _search(self, i: int, frame: np.ndarray, followed: list[Tracklet], thorough: bool) -> None:
        known = [t.last.box for t in followed if t.last]
        for face in self.finder.detect(frame, known=known, thorough=thorough):
            lost = [t for t in self._recent if t.end < i and t.last and _near(face, t.last)]
            if lost:
                tracklet = max(lost, key=lambda t: t.end)
            else:
                tracklet = Tracklet()
                self.tracklets.append(tracklet)
                self._recent.append(tracklet)
            _extend(tracklet, i, face)
            _add_appearance(tracklet, i, frame)


def _extend(tracklet: Tracklet, i: int, face: Face) -> None:
    tracklet.seen[i], tracklet.last, tracklet.end = face.points68, face, i


def _near(face: Face, last: Face) -> bool:
    distance = float(np.hypot(*np.subtract(face.center, last.center)))
    return distance < NEAR * last.height and 0.6 < face.height / last.height < 1.6


def _add_appearance(tracklet: Tracklet, i: int, frame: np.ndarray) -> None:
    """Keep a thumbnail of the aligned face; when there are many, every second one is forgotten."""
    if i not in tracklet.seen:
        return
    matrix = align_matrices(three_points(tracklet.seen[i])[None], APPEARANCE_SIDE)[0]
    thumbnail = crop_face(frame, matrix, APPEARANCE_SIDE).reshape(-1, 3).astype(np.float32)
    thumbnail -= thumbnail.mean(0)  # neither the light's color nor its strength says who it is
    tracklet.appearance.append(thumbnail.ravel() / (np.linalg.norm(thumbnail) + 1e-6))
    if len(tracklet.appearance) > APPEARANCES:
        tracklet.appearance = tracklet.appearance[::2]


def _merge_tracklets(tracklets: Sequence[Tracklet], cuts: Sequence[int]) -> list[Tracklet]:
    """Trails of the same thumbnail that are never seen together become one, the most alike first."""
    people = dict(enumerate(tracklets))
    alike = {pair: _margin(people[pair[0]], people[pair[1]], cuts) for pair in combinations(people, 2)}
    while alike:
        kept, gone = max(alike, key=lambda pair: alike[pair])
        if alike[kept, gone] < 0:
            break
        a, b = people[kept], people.pop(gone)
        appearance = (a.appearance + b.appearance)[-2 * APPEARANCES :]
        people[kept] = Tracklet(a.seen | b.seen, None, appearance, max(a.end, b.end))
        alike = {pair: value for pair, value in alike.items() if gone not in pair}
        for other in people.keys() - {kept}:
            pair = (min(kept, other), max(kept, other))
            alike[pair] = _margin(people[pair[0]], people[pair[1]], cuts)
    return list(people.values())


def _margin(a: Tracklet, b: Tracklet, cuts: Sequence[int]) -> float:
    """How much more alike than needed two tracklets are; below 0 they are two people, or were seen together."""
    if not a.seen.keys().isdisjoint(b.seen):
        return -np.inf
    first, second = (a, b) if a.start < b.start else (b, a)
    cut = any(first.end < c <= second.start for c in cuts)
    table = np.stack(a.appearance) @ np.stack(b.appearance).T
    best = table.max(1) if len(table) <= table.shape[1] else table.max(0)
    return float(best.mean()) - (SAME_FACE if cut else SAME_FACE_IN_SHOT)


def _thumbnail(frame: np.ndarray) -> np.ndarray:
    """A tiny gray picture (18, 32) uint8; large frames are thinned first, which is enough for this and fast."""
    thin = frame[:: max(1, frame.shape[0] // 180), :: max(1, frame.shape[1] // 320)]
    return cv2.cvtColor(cv2.resize(thin, THUMB, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)


def _differ(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether two thumbnails show different pictures, not one picture moved a little or lit otherwise."""
    a, b = (thumb.astype(np.float32).ravel() for thumb in (before, after))
    if float(np.abs(a - b).mean()) < CUT_LEVEL:
        return False
    a, b = a - a.mean(), b - b.mean()
    norms = (np.linalg.norm(a) + 20) * (np.linalg.norm(b) + 20)  # 20: plain pictures have no shape to compare
    return 1 - float(a @ b) / float(norms) > CUT_SHAPE


def find_cuts(thumbs: Sequence[np.ndarray]) -> tuple[int, ...]:
    """Frames that start a new shot; a flash of up to FLASH frames between two alike pictures is none."""
    cuts: list[int] = []
    quiet_until = 0
    for i in range(1, len(thumbs)):
        if i < quiet_until or not _differ(thumbs[i - 1], thumbs[i]):
            continue
        back = [j for j in range(i + 1, min(i + FLASH + 1, len(thumbs))) if not _differ(thumbs[i - 1], thumbs[j])]
        if back:
            quiet_until = back[0] + 1
        else:
            cuts.append(i)
    return tuple(cuts)


def _track(index: int, tracklet: Tracklet, count: int, cuts: tuple[int, ...], size: tuple[int, int]) -> FaceTrack:
    seen = np.array(sorted(tracklet.seen))
    measured = np.stack([tracklet.seen[i] for i in seen])
    breaks = sorted({*cuts, *_jumps(seen, measured)})
    present = _bridge_gaps(seen, count, breaks)
    columns = measured.reshape(len(seen), -1).T
    filled = np.stack([np.interp(np.arange(count), seen, column) for column in columns], 1)
    landmarks = filled.reshape(count, *measured.shape[1:]).astype(np.float32)
    segments = _segments(present, breaks)
    points = _hold(smooth(three_points(landmarks), segments), present)
    return FaceTrack(index, points, _hold(landmarks, present), present, segments, size, tuple(breaks))


def _bridge_gaps(seen: np.ndarray, count: int, breaks: Sequence[int]) -> np.ndarray:
    present = np.zeros(count, bool)
    present[seen] = True
    for a, b in pairwise(seen.tolist()):
        if 1 < b - a <= BRIDGE + 1 and not any(a < c <= b for c in breaks):
            present[a:b] = True
    return present


def _hold(values: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Absent frames repeat the last present one before them (the first one, at the start)."""
    where = np.where(present, np.arange(len(present)), -1)
    last = np.maximum.accumulate(where)
    return values[np.where(last < 0, np.argmax(present), last)]


def _jumps(seen: np.ndarray, measured: np.ndarray) -> list[int]:
    """Frames at which a face is suddenly elsewhere although its neighbourhood in time is calm."""
    centers = three_points(measured).mean(1)
    heights = np.ptp(measured[..., 1], axis=1)
    steps = np.linalg.norm(np.diff(centers, axis=0), axis=1) / heights[1:]
    found = []
    for n in np.flatnonzero((steps > JUMP) & (np.diff(seen) == 1)):
        around = np.concatenate([steps[max(0, n - 6) : n], steps[n + 1 : n + 7]])
        if not len(around) or steps[n] > 6 * np.median(around):
            found.append(int(seen[n + 1]))
    return found


def _segments(present: np.ndarray, breaks: Iterable[int]) -> tuple[tuple[int, int], ...]:
    edges = set(np.flatnonzero(np.diff(present.astype(np.int8), prepend=0, append=0)).tolist())
    edges |= {c for c in breaks if 0 < c < len(present) and present[c] and present[c - 1]}
    return tuple((a, b) for a, b in pairwise(sorted(edges)) if present[a])


def fade(segments: Iterable[tuple[int, int]], frames: int, *, cuts: Iterable[int] = (), length: int = 3) -> np.ndarray:
    """How strongly to repaint each frame, (F,) float32: 0 without the face, 1 with it, a ramp of length frames between.
    At cuts and at the clip's ends there is no ramp, nor where one segment follows another at once."""
    weights = np.zeros(frames, np.float32)
    segments = list(segments)
    hard = {0, frames, *cuts} | ({a for a, _ in segments} & {b for _, b in segments})
    for start, stop in segments:
        since = np.arange(1, stop - start + 1) / (length + 1)
        rise = np.ones_like(since) if start in hard else since
        fall = np.ones_like(since) if stop in hard else since[::-1]
        weights[start:stop] = np.minimum(np.minimum(rise, fall), 1)
    return weights
