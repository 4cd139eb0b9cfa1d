"""Faces over time: who is who, where the gaps and cuts are, and a steady position in every frame.

Frames are read once. An unbroken run of one face (tracklet) ends at a cut or a gap; afterwards tracklets of the same
appearance are merged into one track.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import cv2
import numpy as np

from ..errors import NoFaceError, UserError
from .cuts import CutFinder, thumbnail
from .detect import Box, Face, overlap, three_points
from .identity import SAME, Looks, embed, likeness
from .smooth import smooth
from .tracklet import CHECK_EVERY, GLIMPSE, IN_SHOT, LOST_FOR, VIEW_EVERY, Tracklet, Trail, merge_tracklets

SEARCH_EVERY = 12  # frames between full searches while every known face is being followed
SOON = 2  # frames between searches for a face lost within the last LOST_FOR frames
BRIDGE = 5  # gaps of up to this many frames without a cut are interpolated
MIN_IOU = 0.35  # box overlap from frame to frame below which a face counts as lost
NEAR = 0.6  # a lost face found again within BRIDGE frames lies at most this many face heights away
TOUCHING = 0.02  # overlap with another face's box from which it is asked in every frame who is who
MIN_FRAMES = 5  # faces seen in fewer frames than this are dropped, unless there are no others
SURELY = 0.1  # more alike than needed: views that are kept, lest a dissolve teaches another person little by little
SAME_IN_SHOT = SAME + IN_SHOT  # likeness below which a followed face is somebody else
DOUBTS = 2  # checks in a row that a face must fail to be somebody else
SUDDEN = 0.8
"""Correlation of two frames' pictures of a face below which it is asked who that is."""
STILL_THERE, STILL_LIT = 0.5, 0.2
"""A face is to be seen in a bridged frame when its picture is found there, with at least this correlation and this
share of its contrast."""
STEP = 0.15  # face heights, and share of its size, by which a face moves at most from frame to frame within a shot
JUMP = 0.12
"""Face heights in one frame, against a calm neighbourhood, that betray a cut which leaves the background alike."""


@dataclass(frozen=True)
class FaceTrack:
    """One person's face through a clip of F frames.

    points: (F, 3, 2) float32 left brow, right brow, nose in pixels of the source, steadied; held where absent.
    landmarks: (F, 68, 2) float32, as measured (interpolated in bridged gaps, held where absent).
    present: (F,) bool. segments: half-open runs (start, stop) with the face, ended by gaps and by cuts.
    size: width, height of the frames. cuts: frames that start a new shot.
    seen: (F,) bool, present and to be seen: False in bridged frames that show something else, as a flash does. All that
    is present where it is not given. measured: (F,) bool, the face was found in this very frame.
    covers: what lies over the face, by frame: (M, M) uint8 in the aligned crop, 255 = covered. hidden: frames in which
    most of the mouth is covered.
    """

    index: int
    points: np.ndarray
    landmarks: np.ndarray
    present: np.ndarray
    segments: tuple[tuple[int, int], ...]
    size: tuple[int, int]
    cuts: tuple[int, ...] = ()
    seen: np.ndarray = field(default_factory=lambda: np.empty(0, bool))
    measured: np.ndarray = field(default_factory=lambda: np.empty(0, bool))
    covers: Mapping[int, np.ndarray] = field(default_factory=dict)
    hidden: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        for name in ("seen", "measured"):
            if len(getattr(self, name)) != len(self.present):
                object.__setattr__(self, name, self.present)

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


def absent(frames: int, size: tuple[int, int]) -> FaceTrack:
    """The track of a face that is in none of the frames."""
    nowhere = np.zeros((frames, 68, 2), np.float32)
    return FaceTrack(0, three_points(nowhere), nowhere, np.zeros(frames, bool), (), size)


@dataclass(frozen=True)
class Tracks:
    """All faces of a clip, in order of appearance, then from left to right. cuts: frames that start a new shot."""

    faces: tuple[FaceTrack, ...]
    frames: int
    size: tuple[int, int]
    cuts: tuple[int, ...] = ()


class Finder(Protocol):
    """What finds faces in a frame: the engine's FaceFinder, or faces that somebody else found."""

    def detect(self, frame: np.ndarray, *, known: Iterable[Box] = (), thorough: bool = True) -> list[Face]: ...

    def refine(self, frame: np.ndarray, box: Box, tilt: float = 0.0) -> Face | None: ...


def find_tracks(
    frames: Iterable[np.ndarray], finder: Finder, *, on_step: Callable[[int], None] | None = None
) -> Tracks:
    """Follow every face through the frames ((H, W, 3) uint8 RGB), which are read once and not kept. on_step(n) is
    called after frame n - 1. Raises UserError where there is no face in any frame."""
    follower, cuts, count, size = _Follower(finder), CutFinder(), 0, (0, 0)
    for i, frame in enumerate(frames):
        count, size = i + 1, (frame.shape[1], frame.shape[0])
        changed = cuts.changed(thumbnail(frame))
        if follower.step(i, frame, changed=changed or i == 0):
            cuts.withdraw(i)
        if on_step:
            on_step(i + 1)
    if not count:
        raise UserError("The video has no frames; give one that can be played.")
    if not follower.tracklets:
        wanted = "give a picture or video with a face in it"
        raise NoFaceError(f"No face was found in any of the {count} frames; {wanted}.")
    merged = merge_tracklets(follower.tracklets, cuts.cuts)
    del follower
    people = [tracklet for tracklet in merged if len(tracklet.seen) >= MIN_FRAMES] or merged
    people.sort(key=lambda tracklet: (tracklet.start, tracklet.seen[tracklet.start][:, 0].mean()))
    del merged
    tracks: list[FaceTrack] = []
    while people:  # each is let go when it is done: landmarks of a long clip are not held twice
        tracks.append(_track(len(tracks), people.pop(0), count, cuts.cuts, size))
    return Tracks(tuple(tracks), count, size, cuts.cuts)


class _Follower:
    """The pass over the frames: grows tracklets, and searches where a face may be new or lost."""

    def __init__(self, finder: Finder) -> None:
        self.finder = finder
        self.tracklets: list[Tracklet] = []
        self._recent: list[Tracklet] = []  # followed, or lost a short while ago

    def step(self, i: int, frame: np.ndarray, *, changed: bool) -> bool:
        """Take in frame i. changed: the picture is another than the one before. Says whether a face goes on in it just
        as it was, so that a change of picture is no cut."""
        self._recent = [t for t in self._recent if i - t.end <= t.patience]
        for tracklet in self._recent:
            if changed and tracklet.end == i - 1:
                tracklet.patience = BRIDGE + 1
        before = {id(t): t.last for t in self._recent if t.end == i - 1}
        followed = self._follow(i, frame, changed)
        lost = [i - t.end for t in self._recent if t.end < i]
        due, soon = i % SEARCH_EVERY == 0, any(age <= BRIDGE + 1 or i % SOON == 0 for age in lost)
        if changed or due or not followed or soon:
            self._search(i, frame, followed, changed)
        for tracklet in self._recent:
            if 0 < i - tracklet.end <= BRIDGE and not _shows(tracklet, frame):
                tracklet.hidden.append(i)
        return any(_steady(before[id(t)], t.last) for t in followed)

    def _follow(self, i: int, frame: np.ndarray, changed: bool) -> list[Tracklet]:
        found: list[tuple[float, Tracklet, Face, np.ndarray, np.ndarray | None]] = []
        for tracklet in self._recent:
            if tracklet.end != i - 1 or not tracklet.last:
                continue
            face = self.finder.refine(frame, tracklet.last.box, tracklet.last.tilt)
            if not face or face.score < MIN_IOU:
                continue
            touching = [
                t for t in self._recent if t is not tracklet and t.last and overlap(face.box, t.last.box) > TOUCHING
            ]
            glimpse = _patch(frame, face.box, 1, GLIMPSE)
            sudden = _correlation(tracklet.glimpse, glimpse) < SUDDEN
            due = i - tracklet.checked >= CHECK_EVERY
            if not (changed or touching or sudden or due or tracklet.doubts):
                found.append((1.0, tracklet, face, glimpse, None))
                continue
            tracklet.checked = i
            view = embed(frame, face.points68)
            alike = _alike(tracklet, view)
            if alike < SAME_IN_SHOT and not (tracklet.settled or changed or any(t.end == i - 1 for t in touching)):
                # still in the midst of a dissolve
                tracklet.looks, alike = Looks.none(), 1.0
                tracklet.looks.add(view)
            tracklet.doubts = tracklet.doubts + 1 if alike < SAME_IN_SHOT else 0
            if tracklet.doubts < (1 if changed or touching else DOUBTS):
                sure = SAME + SURELY if tracklet.settled else SAME_IN_SHOT
                found.append((alike, tracklet, face, glimpse, view if alike >= sure else None))
        followed: list[Tracklet] = []
        for _, tracklet, face, glimpse, view in sorted(found, key=lambda one: -one[0]):
            if not any(overlap(face.box, t.last.box) > 0.5 for t in followed if t.last):
                _extend(tracklet, i, face, frame)
                _keep_view(tracklet, i, view)
                tracklet.glimpse = glimpse
                followed.append(tracklet)
        return followed

    def _search(self, i: int, frame: np.ndarray, followed: list[Tracklet], changed: bool) -> None:
        thorough = changed or (i % SEARCH_EVERY == 0 and not followed)
        known = [t.last.box for t in followed if t.last]
        for face in self.finder.detect(frame, known=known, thorough=thorough):
            view = embed(frame, face.points68)
            lost = [t for t in self._recent if t.end < i and i - t.end <= BRIDGE + 1 and _may_be(t, face, view)]
            tracklet = max(lost, key=lambda t: t.end) if lost else Tracklet(settled=changed)
            if not lost:
                self.tracklets.append(tracklet)
                self._recent.append(tracklet)
            _extend(tracklet, i, face, frame)
            _keep_view(tracklet, i, view)
            tracklet.glimpse, tracklet.checked, tracklet.doubts = _patch(frame, face.box, 1, GLIMPSE), i, 0
            tracklet.patience = LOST_FOR


def _extend(tracklet: Tracklet, i: int, face: Face, frame: np.ndarray) -> None:
    tracklet.seen.add(i, face.points68)
    tracklet.covers.watch(i, frame, face.points68)
    tracklet.last, tracklet.end = face, i


def _keep_view(tracklet: Tracklet, i: int, view: np.ndarray | None) -> None:
    if view is not None and i - tracklet.viewed >= VIEW_EVERY:
        if tracklet.looks.count and not tracklet.settled:
            tracklet.looks, tracklet.settled = Looks.none(), True
        tracklet.looks.add(view)
        tracklet.viewed = i


def _may_be(tracklet: Tracklet, face: Face, view: np.ndarray) -> bool:
    """Whether a face that is found is one that was just lost: near by, and as far as can be told the same person."""
    return tracklet.last is not None and _near(face, tracklet.last) and _alike(tracklet, view) >= SAME_IN_SHOT


def _alike(tracklet: Tracklet, view: np.ndarray) -> float:
    """Likeness to what a face looked like; 1 where that cannot be told."""
    return float(likeness(view, tracklet.looks.mean)) if view.any() and tracklet.looks.count else 1.0


def _near(face: Face, last: Face) -> bool:
    distance = float(np.hypot(*np.subtract(face.center, last.center)))
    return distance < NEAR * last.height and 0.6 < face.height / last.height < 1.6


def _steady(before: Face | None, after: Face | None) -> bool:
    """Whether a face moved on as faces do from one frame to the next, not as over a cut."""
    if not before or not after:
        return False
    distance = float(np.hypot(*np.subtract(after.center, before.center)))
    return distance < STEP * before.height and abs(after.height / before.height - 1) < STEP


def _patch(frame: np.ndarray, box: Box, around: float, side: int) -> np.ndarray:
    """(side, side) float32 gray: what is in this many boxes around a box, at a pinch what of it is in the frame."""
    (x0, y0, x1, y1), (height, width) = box, frame.shape[:2]
    x, y, reach = (x0 + x1) / 2, (y0 + y1) / 2, around / 2
    left, right = (int(np.clip(x + k * reach * (x1 - x0), 0, width)) for k in (-1, 1))
    top, bottom = (int(np.clip(y + k * reach * (y1 - y0), 0, height)) for k in (-1, 1))
    part = frame[top:bottom, left:right]
    if not part.size:
        return np.zeros((side, side), np.float32)
    thin = part[:: max(1, part.shape[0] // (4 * side)), :: max(1, part.shape[1] // (4 * side))]
    small = cv2.resize(thin, (side, side), interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum()) / (float(np.linalg.norm(a)) * float(np.linalg.norm(b)) + 1e-6)


def _shows(tracklet: Tracklet, frame: np.ndarray) -> bool:
    """Whether a face that is lost can be seen all the same, at most half its size from where it was."""
    if not tracklet.last:
        return False
    place, face = _patch(frame, tracklet.last.box, 2, 2 * GLIMPSE), tracklet.glimpse
    if place.std() < STILL_LIT * face.std():
        return False
    return float(cv2.matchTemplate(place, face, cv2.TM_CCOEFF_NORMED).max()) >= STILL_THERE


def _track(index: int, tracklet: Tracklet, count: int, cuts: tuple[int, ...], size: tuple[int, int]) -> FaceTrack:
    landmarks = np.zeros((count, 68, 2), np.float32)
    for i, points in tracklet.seen.items():
        landmarks[i] = points
    seen = tracklet.seen.frames
    tracklet.seen = Trail()
    breaks = sorted({*cuts, *_jumps(seen, landmarks)})
    present = _bridge_gaps(seen, count, breaks)
    for a, b in pairwise(seen.tolist()):
        if b - a > 1 and present[a + 1]:
            share = (np.arange(1, b - a, dtype=np.float32) / (b - a))[:, None, None]
            landmarks[a + 1 : b] = landmarks[a] + share * (landmarks[b] - landmarks[a])
    _hold(landmarks, present)
    segments = _segments(present, breaks)
    points = smooth(three_points(landmarks), segments)
    _hold(points, present)
    shown = present.copy()
    shown[tracklet.hidden] = False
    shown[seen] = True
    measured = np.zeros(count, bool)
    measured[seen] = True
    covers = tracklet.covers.finish(points)
    return FaceTrack(
        index, points, landmarks, present, segments, size, tuple(breaks), shown, measured, covers, covers.hidden
    )


def _bridge_gaps(seen: np.ndarray, count: int, breaks: Sequence[int]) -> np.ndarray:
    present = np.zeros(count, bool)
    present[seen] = True
    for a, b in pairwise(seen.tolist()):
        if 1 < b - a <= BRIDGE + 1 and not any(a < c <= b for c in breaks):
            present[a:b] = True
    return present


def _hold(values: np.ndarray, present: np.ndarray) -> None:
    """Absent frames repeat the last present one before them (the first one, at the start)."""
    for a, b in _segments(~present, ()):
        values[a:b] = values[a - 1] if a else values[np.argmax(present)]


def _jumps(seen: np.ndarray, landmarks: np.ndarray) -> list[int]:
    """Frames at which a face is suddenly elsewhere although its neighbourhood in time is calm."""
    centers = three_points(landmarks)[seen].mean(1)
    heights = np.ptp(landmarks[..., 1], axis=1)[seen]
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
