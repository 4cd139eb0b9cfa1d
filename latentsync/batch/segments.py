"""One long clip on many workers, joined to the same frames as a single run.

Faces are found over the whole clip, once, by whoever joins. The windows are those of a single run; segments are runs of
them, and a worker paints a segment exactly as the single run would have: with the whole sound, the same groups of
windows, the reference of the stretch underway, and the latents that the windows before have left, made again from the
frames that were encoded together then. It gives back what changed, cut out of each frame; the joiner lays that onto the
frames it reads, in order, and encodes them.
"""

import time
import uuid
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..face.detect import FaceFinder
from ..face.track import FaceTrack
from ..media.image import read_image
from ..media.probe import VideoInfo
from ..media.reader import VideoReader
from ..media.source import ArraySource
from ..pipeline import (
    Models,
    Progress,
    ProgressCallback,
    Recent,
    RenderedFrame,
    Report,
    Source,
    WindowRenderer,
    follow,
    grouped,
    in_order,
    write_video,
)
from ..settings import Settings
from ..timeline import Timeline, Window
from ..weights.registry import find
from .parallel.dispatch import Pool, map_calls
from .parallel.worker import Call

Batch = tuple[int, ...]
"""Output frames whose source frames were encoded together."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What every worker must know of a clip. source: a video or a picture. speech: (T,) float32 at 16 kHz, all."""

    source: VideoInfo | Path
    timeline: Timeline
    track: FaceTrack
    segments: list[tuple[int, int]]
    speech: np.ndarray
    settings: Settings
    key: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True)
class Segment:
    """Groups of windows that follow each other.

    begins: frames at which a stretch begins in it. reference: the first frame of a stretch that began before.
    held: source frames, oldest first, whose latents the windows before have left; each with the frames that were
    encoded together then where this segment needs them, else with none.
    """

    groups: tuple[tuple[Window, ...], ...]
    begins: frozenset[int]
    reference: int | None
    held: tuple[tuple[int, Batch], ...]

    @property
    def start(self) -> int:
        return self.groups[0][0].keep

    @property
    def stop(self) -> int:
        return self.groups[-1][-1].stop


@dataclass(frozen=True)
class Patch:
    """What changed in a frame: pixels (h, w, 3) uint8 whose corner lies at row top, column left."""

    top: int
    left: int
    pixels: np.ndarray


@dataclass(frozen=True)
class RenderedSegment:
    """A segment's patches, frame by frame, and the seconds that its stages took."""

    patches: list[Patch]
    seconds: dict[str, float]


# ---- cutting -------------------------------------------------------------------------------------------------------


def plan_segments(
    timeline: Timeline, segments: Sequence[tuple[int, int]], *, seconds: float, window_batch: int, still: bool
) -> list[Segment]:
    """Segments of at least so many painted seconds (the last has what is left), cut between groups of windows.

    still: the network holds the first frame of a stretch as its reference, and starts each stretch afresh.
    """
    wanted = Fraction(str(seconds)) * timeline.fps  # the decimal that was written
    cuts: list[Segment] = []
    groups: list[tuple[Window, ...]] = []
    frames = 0
    history = _History(timeline, {start for start, _ in segments}, still)
    for start, stop in segments:
        for group in grouped(start, stop, window_batch):
            groups.append(tuple(group))
            frames += group[-1].stop - group[0].keep
            if frames >= wanted:
                cuts.append(history.segment(groups))
                groups, frames = [], 0
    return [*cuts, history.segment(groups)] if groups else cuts


class _History:
    """Follows which source frames are remembered, and in whose company they were encoded; nothing is computed."""

    def __init__(self, timeline: Timeline, begins: set[int], still: bool) -> None:
        self.timeline, self.begins, self.still = timeline, begins, still
        self.held: Recent[Batch] = Recent()
        self.reference: int | None = None

    def segment(self, groups: Sequence[tuple[Window, ...]]) -> Segment:
        before, reference, used = Recent(self.held), self.reference, set()
        for window in (window for group in groups for window in group):
            used |= self._step(window, before)
        held = tuple((source, batch if source in used else ()) for source, batch in before.items())
        begins = frozenset(self.begins & {group[0].keep for group in groups})
        return Segment(tuple(groups), begins, None if groups[0][0].keep in begins else reference, held)

    def _step(self, window: Window, before: Recent[Batch]) -> set[int]:
        """Live through a window; the source frames whose latents it takes from before the segment."""
        if window.keep in self.begins:
            self.reference = window.keep if self.still else None
            if self.still:
                self.held.clear()
        first: dict[int, int] = {}
        for i in range(window.keep, window.stop):
            first.setdefault(self.timeline.source_index(i), i)
        new = self.held.missing(first)
        batch = tuple(first[source] for source in new)
        self.held.renew(first, dict.fromkeys(new, batch))
        shown = set(self.timeline.source_indices(window.start, window.stop))
        # a batch is one object: what was encoded again since is not what was there before
        return {source for source in shown if source in before and self.held[source] is before[source]}


# ---- painting: the worker's side -----------------------------------------------------------------------------------


class SegmentRenderer:
    """Paints segments of one plan, in any order; holds what they share: the clip, the sound, the face's places."""

    def __init__(self, plan: Plan, models: Models, say: ProgressCallback) -> None:
        self.plan, self.timeline = plan, plan.timeline
        self.report = Report(settings=plan.settings, segments=plan.segments)
        self.reader = VideoReader(plan.source) if isinstance(plan.source, VideoInfo) else None
        self.source: Source = self.reader or ArraySource([read_image(plan.source)])  # type: ignore[arg-type]
        speech = torch.from_numpy(np.array(plan.speech))
        self.painter = WindowRenderer(plan.timeline, plan.track, speech, models, plan.settings, self.report, say)

    def close(self) -> None:
        if self.reader is not None:
            self.reader.close()

    @torch.inference_mode()
    def render(self, segment: Segment) -> RenderedSegment:
        self.report.seconds.clear()
        start = time.perf_counter()
        self._recall(segment)
        patches: list[Patch] = []
        for group in segment.groups:
            if group[0].keep in segment.begins:
                self.painter.begin()
            frames = self.source.read(self.timeline.source_indices(group[0].keep, group[-1].stop))
            patches += [make_patch(*painted) for painted in self.painter.group(frames, list(group))]
        seconds = dict(self.report.seconds)
        other = time.perf_counter() - start - sum(seconds.values())  # mostly Whisper
        return RenderedSegment(patches, seconds | {"other": other})

    def _recall(self, segment: Segment) -> None:
        """Put the painter where it would be had it painted everything before."""
        painter = self.painter
        painter.latents.clear()
        painter.still = None
        if segment.reference is not None:
            painter.encode(self._crops((segment.reference,)))
        made: dict[int, Tensor] = {}
        for batch in dict.fromkeys(batch for _, batch in segment.held if batch):
            sources = map(self.timeline.source_index, batch)
            made |= dict(zip(sources, painter.encode(self._crops(batch)), strict=True))
        unneeded = torch.empty(0)
        painter.latents.update((source, made[source] if batch else unneeded) for source, batch in segment.held)

    def _crops(self, frames: Batch) -> list[np.ndarray]:
        shown = self.source.read(map(self.timeline.source_index, frames))
        return [self.painter.clip.crop(frame, i) for i, frame in zip(frames, shown, strict=True)]


def make_patch(frame: np.ndarray, mask: np.ndarray) -> Patch:
    """What a painted frame has that its source has not: the box around its mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return Patch(0, 0, frame[:0, :0].copy())
    top, left = int(rows[0]), int(columns[0])
    return Patch(top, left, frame[top : rows[-1] + 1, left : columns[-1] + 1].copy())


# ---- joining: the caller's side ------------------------------------------------------------------------------------


def lipsync_segments(
    video: str | Path,
    audio: str | Path | None,
    out: str | Path,
    *,
    pool: Pool,
    seconds: float,
    settings: Settings | None = None,
    retries: int = 2,
    on_step: ProgressCallback | None = None,
) -> Report:
    """pipeline.lipsync_file by the workers of a pool, in segments of at least `seconds`: the same frames.

    Report.seconds has the stages of all workers added up; what this process does (faces, write) runs beside them.
    Memory holds a few segments' patches, whatever the length. UserError as lipsync_file; a segment that fails ends it.
    """
    if seconds <= 0:
        raise UserError(f"A segment of {seconds:g} s is too short; give a length above 0, such as 10.")
    settings = settings or Settings()
    report = Report(settings=settings, out=str(out))
    joiner = SegmentMerger(Path(video), pool, seconds, retries, report, on_step or (lambda step: None))
    with closing(joiner):
        write_video(video, audio, out, joiner.tell, report)
    return report


@dataclass
class SegmentMerger:
    video: Path
    pool: Pool
    seconds: float
    retries: int
    report: Report
    say: ProgressCallback
    patches: Generator[Patch, None, None] | None = None
    handle: Any = None

    def close(self) -> None:
        """Nothing may be painted any more, whatever ended the writing."""
        if self.patches is not None:
            self.patches.close()
            self.pool.release(self.handle)

    def tell(self, source: Source, timeline: Timeline, speech: Tensor) -> Iterator[RenderedFrame]:
        facts = self._ask()  # before the long pass over the faces: can the workers load the models?
        own = Settings(steps=facts["default_steps"], guidance=facts["default_guidance"])
        self.report.settings = self.report.settings.resolved(own)
        with closing(FaceFinder(find("face_landmarker.task"))) as finder:
            track = follow(source, timeline, finder, self.report, self.say, {})
        self.report.checkpoint = facts["checkpoint"]
        place = source.info if isinstance(source, VideoReader) else self.video
        plan = Plan(place, timeline, track, self.report.segments, speech.numpy(), self.report.settings)
        segments = plan_segments(
            timeline,
            plan.segments,
            seconds=self.seconds,
            window_batch=self.report.settings.window_batch,
            still=facts["first_frame_reference"],
        )
        self.handle = self.pool.share(plan)
        self.patches = self._painted(segments)
        yield from in_order(source, timeline, self.report, partial(apply_patches, self.patches))

    def _ask(self) -> dict[str, Any]:
        for _, outcome in map_calls([Call("describe")], self.pool, retries=self.retries):
            if outcome.status == "done":
                return outcome.value
            raise UserError(f"A worker did not answer: {outcome.error}")
        raise UserError("There is no worker to paint the segments; give at least one.")

    def _painted(self, segments: Sequence[Segment]) -> Generator[Patch, None, None]:
        calls = [Call("render", (self.handle, segment)) for segment in segments]
        size = self.report.settings.window_batch
        total = self.report.settings.steps * sum(len(w) for run in self.report.segments for w in grouped(*run, size))
        done = 0
        for pending, outcome in map_calls(calls, self.pool, retries=self.retries, ordered=True):
            if outcome.status != "done":
                raise UserError(f"Segment {pending.index + 1} of {len(calls)} could not be rendered: {outcome.error}")
            for stage, spent in outcome.value.seconds.items():
                self.report.seconds[stage] = self.report.seconds.get(stage, 0.0) + spent
            done += self.report.settings.steps * sum(map(len, segments[pending.index].groups))
            self.say(Progress("sample", done, total))
            yield from outcome.value.patches


def apply_patches(
    patches: Iterator[Patch], frames: Iterator[np.ndarray], start: int, stop: int
) -> Iterator[RenderedFrame]:
    """The frames of a stretch with the next patches on them."""
    nothing = np.zeros((0, 0), np.float32)
    for _ in range(start, stop):
        frame, patch = next(frames).copy(), next(patches)
        height, width = patch.pixels.shape[:2]
        frame[patch.top : patch.top + height, patch.left : patch.left + width] = patch.pixels
        yield frame, nothing
