"""Faces over time: who is who, where the gaps and cuts are, and a steady position in every frame.

Frames are read once. While they pass, faces are followed by landmarks on a crop around their last place; stretches of
one face (trails) break at cuts and gaps. Afterwards trails of the same look become one track.
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

SEARCH_EVERY = 12
"""Frames between full searches while every known face is being followed."""
BRIDGE = 5
"""Gaps of up to this many frames without a cut are interpolated."""
FOLLOWED = 0.35
"""Box overlap from frame to frame below which a face counts as lost."""
NEAR = 0.6
"""A lost face found again within BRIDGE frames lies at most this many face heights away."""
FEWEST = 5
"""Faces seen in fewer frames than this are dropped, unless there are no others."""
LOOK_SIDE, LOOKS = 16, 16
SAME_LOOK, SAME_LOOK_SHOT = 0.75, 0.55
"""Likeness of aligned thumbnails (correlation) from which two trails are one person: across cuts, within a shot."""
THUMB = (32, 18)
CUT_LEVEL, CUT_SHAPE = 12.0, 0.3
"""A cut changes gray by this much on average (of 255) and the picture's shape (1 - correlation) by this much."""
FLASH = 3
"""A picture that is back after at most this many frames was interrupted by a flash, not by cuts."""
JUMP = 0.12
"""Face heights in one frame, against a calm neighbourhood, that betray a cut which leaves the background alike."""


@dataclass(frozen=True)
class FaceTrack:
    """One person's face through a clip of F frames.

    points: (F, 3, 2) float32 left brow, right brow, nose in pixels of the source, steadied; held where absent.
    landmarks: (F, 68, 2) float32, as measured (interpolated in bridged gaps, held where absent).
    present: (F,) bool. segments: half-open stretches (start, stop) with the face, ended by gaps and by cuts.
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
class _Trail:
    """One unbroken following of a face: frame -> landmarks, and a few thumbnails of it. end: last frame seen."""

    seen: dict[int, np.ndarray] = field(default_factory=dict)
    last: Face | None = None
    looks: list[np.ndarray] = field(default_factory=list)
    end: int = -1

    @property
    def start(self) -> int:
        return min(self.seen)


class Finder(Protocol):
    """What finds faces in a frame: the engine's FaceFinder, or faces that somebody else found."""

    def detect(self, frame: np.ndarray, *, known: Iterable[Box] = (), thorough: bool = True) -> list[Face]: ...

    def refine(self, frame: np.ndarray, box: Box) -> Face | None: ...


def find_tracks(
    frames: Iterable[np.ndarray], finder: Finder, *, on_step: Callable[[int], None] | None = None
) -> Tracks:
    """Follow every face through the frames ((H, W, 3) uint8 RGB), which are read once and not kept.

    on_step(n) is called after frame n - 1. Raises UserError where there is no face in any frame.
    """
    follower, thumbs, size = _Follower(finder), [], (0, 0)
    for i, frame in enumerate(frames):
        size = (frame.shape[1], frame.shape[0])
        thumbs.append(_thumbnail(frame))
        follower.step(i, frame, fresh=i == 0 or _differ(thumbs[i - 1], thumbs[i]))
        if on_step:
            on_step(i + 1)
    if not thumbs:
        raise UserError("The video has no frames; give one that can be played.")
    if not follower.trails:
        raise UserError(
            f"No face was found in any of the {len(thumbs)} frames; give a picture or video with a face in it."
        )
    cuts = find_cuts(thumbs)
    people = _substantial(_joined(follower.trails, cuts))
    people.sort(key=lambda trail: (trail.start, trail.seen[trail.start][:, 0].mean()))
    tracks = tuple(_track(n, trail, len(thumbs), cuts, size) for n, trail in enumerate(people))
    return Tracks(tracks, len(thumbs), size, cuts)


class _Follower:
    """The pass over the frames: grows trails, and searches where a face may be new or lost."""

    def __init__(self, finder: Finder) -> None:
        self.finder = finder
        self.trails: list[_Trail] = []
        self._recent: list[_Trail] = []  # of this shot, seen within the last BRIDGE frames

    def step(self, i: int, frame: np.ndarray, fresh: bool) -> None:
        self._recent = [] if fresh else [t for t in self._recent if i - t.end <= BRIDGE + 1]
        followed = self._follow(i, frame)
        due = i % SEARCH_EVERY == 0
        if fresh or due or not followed or len(followed) < len(self._recent):
            self._search(i, frame, followed, thorough=fresh or (due and not followed))
        if due or fresh:
            for trail in self._recent:
                _remember(trail, i, frame)

    def _follow(self, i: int, frame: np.ndarray) -> list[_Trail]:
        followed: list[_Trail] = []
        for trail in self._recent:
            if trail.end != i - 1 or not trail.last:
                continue
            face = self.finder.refine(frame, trail.last.box)
            taken = [t.last.box for t in followed if t.last]
            if face and face.score >= FOLLOWED and not any(overlap(face.box, box) > 0.5 for box in taken):
                _extend(trail, i, face)
                followed.append(trail)
        return followed

    def _search(self, i: int, frame: np.ndarray, followed: list[_Trail], thorough: bool) -> None:
        known = [t.last.box for t in followed if t.last]
        for face in self.finder.detect(frame, known=known, thorough=thorough):
            lost = [t for t in self._recent if t.end < i and t.last and _near(face, t.last)]
            if lost:
                trail = max(lost, key=lambda t: t.end)
            else:
                trail = _Trail()
                self.trails.append(trail)
                self._recent.append(trail)
            _extend(trail, i, face)
            _remember(trail, i, frame)


def _extend(trail: _Trail, i: int, face: Face) -> None:
    trail.seen[i], trail.last, trail.end = face.points68, face, i


def _near(face: Face, last: Face) -> bool:
    distance = float(np.hypot(*np.subtract(face.center, last.center)))
    return distance < NEAR * last.height and 0.6 < face.height / last.height < 1.6


def _remember(trail: _Trail, i: int, frame: np.ndarray) -> None:
    """Keep a thumbnail of the aligned face; when there are many, every second one is forgotten."""
    if i not in trail.seen:
        return
    matrix = align_matrices(three_points(trail.seen[i])[None], LOOK_SIDE)[0]
    look = crop_face(frame, matrix, LOOK_SIDE).reshape(-1, 3).astype(np.float32)
    look -= look.mean(0)  # neither the light's color nor its strength says who it is
    trail.looks.append(look.ravel() / (np.linalg.norm(look) + 1e-6))
    if len(trail.looks) > LOOKS:
        trail.looks = trail.looks[::2]


def _likeness(a: _Trail, b: _Trail) -> float:
    table = np.stack(a.looks) @ np.stack(b.looks).T
    best = table.max(1) if len(table) <= table.shape[1] else table.max(0)
    return float(best.mean())


def _joined(trails: Sequence[_Trail], cuts: Sequence[int]) -> list[_Trail]:
    """Trails of the same look that are never seen together become one, the most alike first."""
    people = dict(enumerate(trails))
    alike = {pair: _surplus(people[pair[0]], people[pair[1]], cuts) for pair in combinations(people, 2)}
    while alike:
        kept, gone = max(alike, key=lambda pair: alike[pair])
        if alike[kept, gone] < 0:
            break
        people[kept] = _union(people[kept], people.pop(gone))
        alike = {pair: value for pair, value in alike.items() if gone not in pair}
        for other in people.keys() - {kept}:
            pair = (min(kept, other), max(kept, other))
            alike[pair] = _surplus(people[pair[0]], people[pair[1]], cuts)
    return list(people.values())


def _union(a: _Trail, b: _Trail) -> _Trail:
    return _Trail(a.seen | b.seen, None, (a.looks + b.looks)[-2 * LOOKS :], max(a.end, b.end))


def _surplus(a: _Trail, b: _Trail, cuts: Sequence[int]) -> float:
    """How much more alike than needed two trails are; below 0 they are two people, or were seen together."""
    return _likeness(a, b) - _needed(a, b, cuts) if a.seen.keys().isdisjoint(b.seen) else -np.inf


def _needed(a: _Trail, b: _Trail, cuts: Sequence[int]) -> float:
    first, second = (a, b) if a.start < b.start else (b, a)
    cut = any(first.end < c <= second.start for c in cuts)
    return SAME_LOOK if cut else SAME_LOOK_SHOT


def _substantial(people: list[_Trail]) -> list[_Trail]:
    return [trail for trail in people if len(trail.seen) >= FEWEST] or people


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


def _track(index: int, trail: _Trail, count: int, cuts: tuple[int, ...], size: tuple[int, int]) -> FaceTrack:
    seen = np.array(sorted(trail.seen))
    measured = np.stack([trail.seen[i] for i in seen])
    breaks = sorted({*cuts, *_jumps(seen, measured)})
    present = _bridged(seen, count, breaks)
    landmarks = _interpolated(seen, measured, count)
    segments = _segments(present, breaks)
    points = _held(smooth(three_points(landmarks), segments), present)
    return FaceTrack(index, points, _held(landmarks, present), present, segments, size, tuple(breaks))


def _bridged(seen: np.ndarray, count: int, breaks: Sequence[int]) -> np.ndarray:
    present = np.zeros(count, bool)
    present[seen] = True
    for a, b in pairwise(seen.tolist()):
        if 1 < b - a <= BRIDGE + 1 and not any(a < c <= b for c in breaks):
            present[a:b] = True
    return present


def _interpolated(seen: np.ndarray, measured: np.ndarray, count: int) -> np.ndarray:
    columns = measured.reshape(len(seen), -1).T
    filled = np.stack([np.interp(np.arange(count), seen, column) for column in columns], 1)
    return filled.reshape(count, *measured.shape[1:]).astype(np.float32)


def _held(values: np.ndarray, present: np.ndarray) -> np.ndarray:
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
    ordered = sorted(edges)
    return tuple((a, b) for a, b in pairwise(ordered) if present[a])


STEADY, AGILE = 4.0, 1.5
"""Widths (sigma, frames) of the two low passes: for a still head, for a moving one."""
NOISE = 0.012
"""Share of the distance brows - nose by which a still face's points wander: more than that is motion."""


def smooth(points: np.ndarray, segments: Iterable[tuple[int, int]]) -> np.ndarray:
    """Points (F, 3, 2) steadied along time without lag, each segment on its own; float32.

    Two zero-phase low passes; where they agree within the landmarks' noise the stronger one is taken.
    """
    out = points.astype(np.float32)
    for start, stop in segments:
        out[start:stop] = _steadied(points[start:stop].astype(np.float64))
    return out


def _steadied(part: np.ndarray) -> np.ndarray:
    steady, agile = _low_pass(part, STEADY), _low_pass(part, AGILE)
    size = float(np.median(np.linalg.norm(part[:, :2].mean(1) - part[:, 2], axis=-1))) + 1e-6
    apart = np.linalg.norm((steady - agile).mean(1), axis=-1) / (NOISE * size)
    moving = _gaussian((apart**2 / (1 + apart**2))[:, None], AGILE)[:, :, None]
    return steady + moving * (agile - steady)


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


def fade(segments: Iterable[tuple[int, int]], frames: int, *, cuts: Iterable[int] = (), length: int = 3) -> np.ndarray:
    """How strongly to repaint each frame, (F,) float32: 0 without the face, 1 with it, a ramp of length frames between.

    At cuts and at the clip's ends there is no ramp, nor where one segment follows another at once.
    """
    weights = np.zeros(frames, np.float32)
    segments = list(segments)
    hard = {0, frames, *cuts} | ({a for a, _ in segments} & {b for _, b in segments})
    for start, stop in segments:
        since = np.arange(1, stop - start + 1) / (length + 1)
        rise = np.ones_like(since) if start in hard else since
        fall = np.ones_like(since) if stop in hard else since[::-1]
        weights[start:stop] = np.minimum(np.minimum(rise, fall), 1)
    return weights


def choose(tracks: Tracks, face: str) -> FaceTrack:
    """The face asked for: "largest" (area times time), "left", "right", an index, or a point "x,y,frame" in pixels.

    Raises UserError, listing the faces, where there is no such face.
    """
    faces = tracks.faces
    if face == "largest":
        return max(faces, key=lambda track: track.height**2 * track.present.sum())
    if face in ("left", "right"):
        return (min if face == "left" else max)(faces, key=lambda track: track.center[0])
    numbers = _numbers(face)
    if len(numbers) == 1 and numbers[0] in range(len(faces)):
        return faces[int(numbers[0])]
    if len(numbers) == 3:
        return _at_point(tracks, *numbers)
    raise UserError(
        f'There is no face {face!r}; give "largest", "left", "right", a point "x,y,frame" '
        f"or the number of one of the faces found: {describe(tracks)}."
    )


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return []


def _at_point(tracks: Tracks, x: float, y: float, frame: float) -> FaceTrack:
    """The face nearest to a point, at most one face height away from it."""
    if frame not in range(tracks.frames):
        raise UserError(f"The point's frame {frame:g} is outside the clip, which has frames 0 to {tracks.frames - 1}.")
    i = int(frame)

    def distance(track: FaceTrack) -> float:
        points = track.landmarks[i]
        return float(np.linalg.norm(points.mean(0) - (x, y)) / np.ptp(points[:, 1]))

    near = [track for track in tracks.faces if track.present[i] and distance(track) <= 1]
    if not near:
        raise UserError(f"No face near the point ({x:g}, {y:g}) in frame {i}; the faces found are {describe(tracks)}.")
    return min(near, key=distance)


def describe(tracks: Tracks) -> str:
    """One line that lists the faces found: index, height, place, frames."""
    return "; ".join(
        f"{t.index} ({t.height:.0f} px high at {t.center[0]:.0f},{t.center[1]:.0f}, "
        f"in {int(t.present.sum())} of {tracks.frames} frames from frame {t.segments[0][0]})"
        for t in tracks.faces
    )
