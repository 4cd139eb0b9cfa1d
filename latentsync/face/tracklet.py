"""Unbroken followings of a face, and which of them are one person."""

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .detect import Face
from .identity import SAME, Looks, likeness, likenesses
from .occlusion import Covers

LOST_FOR = 50  # frames for which a lost face is searched for often
CHECK_EVERY, VIEW_EVERY = 4, 12  # frames between looks at who a followed face is, and between looks that are kept
GLIMPSE = 24  # side of the picture by which a followed face is known again from frame to frame
IN_SHOT = -0.08
"""What two faces of one shot may be less alike than faces of two shots, and still be one person's."""


class Trail:
    """Landmarks by frame, as compact as they are exact: 552 bytes each."""

    BLOCK = 32

    def __init__(self, items: Iterable[tuple[int, np.ndarray]] = ()) -> None:
        self._blocks: list[tuple[array[int], np.ndarray]] = []
        for i, points in items:
            self.add(i, points)

    def add(self, i: int, points: np.ndarray) -> None:
        """Landmarks (68, 2) of frame i; frames are added in order."""
        if not self._blocks or len(self._blocks[-1][0]) == self.BLOCK:
            self._blocks.append((array("i"), np.empty((self.BLOCK, *points.shape), np.float32)))
        frames, rows = self._blocks[-1]
        rows[len(frames)] = points
        frames.append(i)

    def joined(self, other: "Trail") -> "Trail":
        both = Trail()
        both._blocks = sorted(self._blocks + other._blocks, key=lambda block: block[0][0])
        return both

    @property
    def frames(self) -> np.ndarray:
        """(N,) int, those that have landmarks, in order."""
        return np.sort(np.concatenate([np.asarray(frames) for frames, _ in self._blocks]))

    def items(self) -> Iterator[tuple[int, np.ndarray]]:
        for frames, rows in self._blocks:
            yield from zip(frames, rows, strict=False)

    def __len__(self) -> int:
        return sum(len(frames) for frames, _ in self._blocks)

    def __getitem__(self, i: int) -> np.ndarray:
        return next(points for frame, points in self.items() if frame == i)


@dataclass
class Tracklet:
    """One unbroken following of a face. seen: landmarks by frame (a dict will do too); looks: who it is; hidden: frames
    just after it was lost that show something else; last: where it was at last, in frame `end`."""

    seen: Trail = field(default_factory=Trail)
    looks: Looks = field(default_factory=Looks.none)
    hidden: list[int] = field(default_factory=list)
    covers: Covers = field(default_factory=Covers)
    last: Face | None = None
    end: int = -1
    viewed: int = -VIEW_EVERY  # the frame of the last view in `looks`
    settled: bool = True  # whether its first view is none of the midst of a dissolve
    checked: int = -CHECK_EVERY
    doubts: int = 0
    glimpse: np.ndarray = field(default_factory=lambda: np.zeros((GLIMPSE, GLIMPSE), np.float32))
    patience: int = LOST_FOR

    def __post_init__(self) -> None:
        if isinstance(self.seen, Mapping):
            self.seen = Trail(sorted(self.seen.items()))

    @property
    def start(self) -> int:
        return int(self.seen.frames[0])


def merge_tracklets(tracklets: Sequence[Tracklet], cuts: Sequence[int]) -> list[Tracklet]:
    """Tracklets of one person that are never seen together become one, the most alike first."""
    people = dict(enumerate(tracklets))
    means = np.stack([t.looks.mean for t in tracklets])
    first, last = (np.searchsorted(cuts, [end(t) for t in tracklets], "right") for end in (_start, _end))
    in_shot = (last[:, None] == first[None]) | (first[:, None] == last[None])
    unknown = np.array([not t.looks.count for t in tracklets])
    apart = _seen_together(tracklets) | unknown | unknown[:, None]
    alike = likenesses(means) - SAME - IN_SHOT * in_shot
    alike[apart] = -np.inf
    while len(people) > 1:
        kept, gone = divmod(int(alike.argmax()), len(tracklets))
        if alike[kept, gone] < 0:
            break
        people[kept] = person = _joined(people[kept], people.pop(gone))
        means[kept] = person.looks.mean
        for table in (apart, in_shot):
            table[kept] |= table[gone]
            table[:, kept] |= table[:, gone]
        apart[gone] = apart[:, gone] = True
        row = likeness(means, means[kept]) - SAME - IN_SHOT * in_shot[kept]
        row[apart[kept]] = -np.inf
        alike[gone] = alike[:, gone] = -np.inf
        alike[kept] = alike[:, kept] = row
    return list(people.values())


def _joined(a: Tracklet, b: Tracklet) -> Tracklet:
    covers = a.covers.joined(b.covers)
    return Tracklet(a.seen.joined(b.seen), a.looks.joined(b.looks), a.hidden + b.hidden, covers, end=max(a.end, b.end))


def _start(tracklet: Tracklet) -> int:
    return tracklet.start


def _end(tracklet: Tracklet) -> int:
    return tracklet.end


def _seen_together(tracklets: Sequence[Tracklet]) -> np.ndarray:
    """(N, N) bool: which tracklets have a frame in common, each with itself."""
    starts, ends = (np.array([end(t) for t in tracklets]) for end in (_start, _end))
    apart = (starts[:, None] <= ends[None]) & (starts[None] <= ends[:, None])
    for a, b in np.argwhere(np.triu(apart, 1)).tolist():
        apart[a, b] = apart[b, a] = len(np.intersect1d(tracklets[a].seen.frames, tracklets[b].seen.frames)) > 0
    return apart
