"""One face over the output frames: where each crop lies, and how it is pasted back."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from ..timeline import Timeline
from .align import align_matrices, crop_face
from .composite import Layer, Look, layer, paste
from .detect import three_points
from .mask import mouth_mask
from .opacity import facing, fade
from .smooth import low_pass_at
from .track import FaceTrack

UNTIMED = Fraction(25)  # the rate of a clip that nobody has given one yet; where the face lies does not depend on it


@dataclass(frozen=True, eq=False)
class AlignedFace:
    """A face followed through source frames (track) and the order in which they show (timeline).

    resolution: side of the crops. reference: align as the public code does, by unsteadied points in whole pixels.
    only: half-open runs of frames outside which nothing is repainted; None: everywhere. rest: (F,) float32, how much
    the mouth rests in each frame, 0 to 1, for whoever repaints it (see pauses.rest_weights); None: not known.
    Frame numbers are the timeline's; what is per frame has F = timeline.frames rows.
    """

    track: FaceTrack
    timeline: Timeline
    resolution: int
    reference: bool = False
    only: tuple[tuple[int, int], ...] | None = None
    rest: np.ndarray | None = None
    _known: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def from_track(cls, track: FaceTrack, resolution: int, fps: Fraction = UNTIMED) -> "AlignedFace":
        """Every source frame once."""
        return cls(track, Timeline(fps, track.frames, track.frames, "trim"), resolution)

    @property
    def frames(self) -> int:
        return self.timeline.frames

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the frames."""
        return self.track.size

    @cached_property
    def source_indices(self) -> np.ndarray:
        """(F,) int: the source frame that each frame shows."""
        return np.fromiter(self.timeline.source_indices(), np.int64, self.frames)

    @cached_property
    def segments(self) -> list[tuple[int, int]]:
        """Half-open runs of output frames that are rendered together."""
        runs = shown_segments(self.timeline, self.track)
        if self.only is None:
            return runs
        cut = ((max(a, c), min(b, d)) for a, b in runs for c, d in self.only)
        return [(start, stop) for start, stop in cut if start < stop]

    @cached_property
    def segment_index(self) -> np.ndarray:
        """(F,) int: number of each frame's segment, -1 where there is no face."""
        numbers = np.full(self.frames, -1)
        for number, (start, stop) in enumerate(self.segments):
            numbers[start:stop] = number
        return numbers

    @cached_property
    def first_of(self) -> np.ndarray:
        """(F,) int: first frame of each frame's segment, the frame itself where there is no face."""
        starts = np.array([*(start for start, _ in self.segments), -1])
        return np.where(self.segment_index < 0, np.arange(self.frames), starts[self.segment_index])

    @cached_property
    def opacity(self) -> np.ndarray:
        """(F,) float32: how strongly each frame is repainted, 0 without the face, rising over a few frames; less where
        it is turned away, nothing where a flash or a black frame hides it."""
        track = self.track
        weights = fade(track.segments, track.frames, cuts=track.cuts) * self.facing * track.seen
        shown = weights[self.source_indices].astype(np.float32)
        return shown if self.only is None else shown * fade(self.only, self.frames)

    @cached_property
    def facing(self) -> np.ndarray:
        """(source frames,) how much the face is painted by the head's turn; see track.facing."""
        return facing(self.track)

    def outline(self, i: int) -> np.ndarray:
        """(68, 2): the landmarks of frame i, steadied a little, so that the edge of what is repainted is calm."""
        shown = int(self.source_indices[i])
        start, stop = next((a, b) for a, b in self.track.segments if a <= shown < b)
        return low_pass_at(self.track.landmarks[start:stop], shown - start)

    def matrices(self, side: int | None = None) -> np.ndarray:
        """(F, 2, 3): what takes each frame to a crop of this side; see align_matrices. Held where there is no face."""
        side = side or self.resolution
        if side not in self._known:
            points = three_points(self.track.landmarks) if self.reference else self.track.points
            self._known[side] = align_matrices(points, side, reference=self.reference)[self.source_indices]
        return self._known[side]

    def matrix(self, i: int, side: int | None = None) -> np.ndarray:
        return self.matrices(side)[i]

    def crop(self, frame: np.ndarray, i: int, side: int | None = None) -> np.ndarray:
        """The face of frame i, (R, R, 3) uint8 RGB."""
        return crop_face(frame, self.matrix(i, side), side or self.resolution, reference=self.reference)

    def crops(self, frames: Iterable[np.ndarray], start: int = 0) -> Iterator[np.ndarray]:
        """The faces of frames start, start + 1, …; where there is none, the place where it was last."""
        return (self.crop(frame, i) for i, frame in enumerate(frames, start))

    def paste(
        self, frame: np.ndarray, crop: np.ndarray, i: int, *, reference: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Frame i with a new mouth, and the mask of what changed; see composite.paste. crop: (S, S, 3) uint8 or float
        in 0..255, of any side. reference: the public code's seam and no fades."""
        if self.segment_index[i] < 0:
            return frame, np.zeros(frame.shape[:2], np.float32)
        side = len(crop)
        if reference:
            keep = mouth_mask(side)[..., None] > 0.5
            crop = np.where(keep, self.crop(frame, i, side), crop)
        weight = 1.0 if reference else float(self.opacity[i])
        points = None if reference else self.outline(i)
        matrix = self.matrix(i, side)
        covered = None if reference else self.track.covers.get(int(self.source_indices[i]))
        at: Any = {"points68": points, "covered": covered}
        return paste(frame, crop, matrix, resolution=side, weight=weight, reference=reference, **at)

    def layer(self, frame: np.ndarray, crop: np.ndarray, i: int, look: Look) -> Layer | None:
        """What `paste` would lay over frame i, not blended yet; see composite.layer."""
        if self.segment_index[i] < 0:
            return None
        side = len(crop)
        at: Any = {"points68": self.outline(i), "covered": self.track.covers.get(int(self.source_indices[i]))}
        matrix, weight = self.matrix(i, side), float(self.opacity[i])
        return layer(frame, crop, matrix, resolution=side, weight=weight, look=look, **at)

    def retimed(self, timeline: Timeline) -> "AlignedFace":
        """These frames in another order: timeline.source_frames are its own. For another sound: without rest."""
        if timeline.source_frames != self.frames:
            raise ValueError(f"a timeline over {timeline.source_frames} frames for a clip of {self.frames}")
        unchanged = self.frames == self.track.frames and bool((np.diff(self.source_indices) == 1).all())
        return replace(self, track=self.track if unchanged else _as_shown(self), timeline=timeline, rest=None)


def shown_segments(timeline: Timeline, track: FaceTrack) -> list[tuple[int, int]]:
    """Runs of output frames that show the face without a gap, a cut or a jump of the loop."""
    segment = np.full(track.frames, -1)
    for number, (start, stop) in enumerate(track.segments):
        segment[start:stop] = number
    runs: list[tuple[int, int]] = []
    before = None
    for i, shown in enumerate(timeline.source_indices()):
        joined = before is not None and segment[before] == segment[shown] and abs(shown - before) <= 1
        if segment[shown] < 0:
            before = None
            continue
        runs[-1:] = [(runs[-1][0], i + 1)] if joined else [*runs[-1:], (i, i + 1)]
        before = shown
    return runs


def _as_shown(clip: AlignedFace) -> FaceTrack:
    """The track as the clip's own timeline shows it, as if it had been followed there."""
    track, shown = clip.track, clip.source_indices
    cut = np.isin(np.maximum(shown[1:], shown[:-1]), track.cuts) & (shown[1:] != shown[:-1])
    jump = np.abs(np.diff(shown)) > 1
    names = ("points", "landmarks", "present", "seen", "measured")
    per_frame: dict[str, Any] = {name: getattr(track, name)[shown] for name in names}
    masks = {i: track.covers[i] for i in set(shown.tolist()) if i in track.covers}
    per_frame["covers"] = {i: masks[s] for i, s in enumerate(shown.tolist()) if s in masks}
    per_frame["hidden"] = frozenset(i for i, s in enumerate(shown.tolist()) if s in track.hidden)
    cuts = tuple((np.flatnonzero(cut | jump) + 1).tolist())
    return replace(track, **per_frame, segments=tuple(clip.segments), cuts=cuts)
