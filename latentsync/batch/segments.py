"""One long clip on many workers, joined to the same frames as a single run.

Faces are tracked over the whole clip once, by the merging process. A segment is a run of the windows of a single run. A
window depends only on its own frames, the first frame of its shown segment and the whole speech, so a worker renders it
exactly as the single run would. It returns the changed part of each frame; the merging process applies these patches to
the frames it reads, in order, and encodes them.
"""

import time
import uuid
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..face.aligned import AlignedFace
from ..face.detect import FaceFinder
from ..face.track import FaceTrack
from ..media.probe import VideoInfo
from ..media.reader import VideoReader
from ..media.source import ArraySource, Source, read_still
from ..pipeline import Job, Report, make_report, open_job
from ..prepared import TrackedFace, face_asked_for
from ..rendering import Timings, WindowRenderer, grouped, marked, only_in
from ..settings import Progress, ProgressCallback, Settings
from ..timeline import Timeline, Window
from ..weights.bundle import Models
from ..weights.registry import find
from .parallel.dispatch import Pool, map_calls
from .parallel.worker import Call

UNSIZED = 256  # of crops that are never made here


@dataclass(frozen=True, eq=False)
class Plan:
    """What every worker must know of a clip. source: a video or a picture. speech: (T,) float32 at 16 kHz, all."""

    source: VideoInfo | Path
    timeline: Timeline
    track: FaceTrack
    speech: np.ndarray
    settings: Settings
    key: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True)
class Segment:
    """Groups of windows that follow each other. references: for each group, the first frame of its shown segment."""

    groups: tuple[tuple[Window, ...], ...]
    references: tuple[int, ...]

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


def plan_segments(
    segments: Sequence[tuple[int, int]], fps: Fraction, seconds: float, window_batch: int
) -> list[Segment]:
    """Segments of at least `seconds` of rendered frames (the last has the rest), cut between groups of windows."""
    wanted = Fraction(str(seconds)) * fps  # the decimal that was written
    planned: list[Segment] = []
    groups: list[tuple[Window, ...]] = []
    references: list[int] = []
    frames = 0
    for start, stop in segments:
        for group in grouped(start, stop, window_batch):
            groups.append(tuple(group))
            references.append(start)
            frames += group[-1].stop - group[0].keep
            if frames >= wanted:
                planned.append(Segment(tuple(groups), tuple(references)))
                groups, references, frames = [], [], 0
    return [*planned, Segment(tuple(groups), tuple(references))] if groups else planned


class SegmentRenderer:
    """Renders segments of one plan, in any order."""

    def __init__(self, plan: Plan, models: Models, on_progress: ProgressCallback) -> None:
        self.plan, self.timeline, self.timings = plan, plan.timeline, Timings()
        self.reader, self.source = _opened(plan)
        speech, timings = torch.from_numpy(np.array(plan.speech)), self.timings
        self.renderer = WindowRenderer(plan.timeline, plan.track, speech, models, plan.settings, timings, on_progress)

    def close(self) -> None:
        if self.reader is not None:
            self.reader.close()

    @torch.inference_mode()
    def render(self, segment: Segment) -> tuple[list[Patch], dict[str, float]]:
        """A segment's patches, frame by frame, and the seconds that each stage took."""
        self.timings.clear()
        start = time.perf_counter()
        patches: list[Patch] = []
        references = {first: self._reference(first) for first in dict.fromkeys(segment.references)}
        for group, first in zip(segment.groups, segment.references, strict=True):
            frames = self._read(group[0].start, group[-1].stop)
            crops = self.renderer.crop(frames, group[0].start)
            kept = frames[group[0].keep - group[0].start :]
            rendered = self.renderer.render_windows(group, kept, crops, references[first])
            patches += [make_patch(frame, mask) for frame, mask in rendered]
        other = time.perf_counter() - start - sum(self.timings.values())  # mostly Whisper
        return patches, {**self.timings, "other": other}

    def _reference(self, first: int) -> Tensor | None:
        """Of a shown segment that begins at this frame; None for a network that takes one per frame."""
        if self.renderer.models.unet.config.reference_mode != "first_frame":
            return None
        return self.renderer.encode_reference(self.renderer.crop(self._read(first, first + 1), first)[0], first)

    def _read(self, start: int, stop: int) -> list[np.ndarray]:
        with self.timings.measure("read"):
            return list(self.source.read(self.timeline.source_indices(start, stop)))


def _opened(plan: Plan) -> tuple[VideoReader | None, Source]:
    if isinstance(plan.source, Path):
        return None, ArraySource([read_still(plan.source, plan.settings)[0]])
    reader = VideoReader(plan.source, background=plan.settings.background)
    return reader, reader


def make_patch(frame: np.ndarray, mask: np.ndarray) -> Patch:
    """The part of a rendered frame that differs from its source: the box around its mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return Patch(0, 0, frame[:0, :0].copy())
    top, left = int(rows[0]), int(columns[0])
    return Patch(top, left, frame[top : rows[-1] + 1, left : columns[-1] + 1].copy())


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

    Report.timings has the stages of all workers added up; what this process does (track, write) runs beside them.
    Memory holds a few segments' patches, whatever the length. UserError as lipsync_file; a segment that fails ends it.
    """
    if seconds <= 0:
        raise UserError(f"A segment cannot last {seconds:g} s; give a length above 0, such as 10.")
    settings, timings = settings or Settings(), Timings()
    facts = _describe(pool, retries)  # before the long pass over the faces: can the workers load the models?
    settings = settings.resolved(Settings(steps=facts["default_steps"], guidance=facts["default_guidance"]))
    with open_job(video, audio, out, settings) as job:
        with closing(FaceFinder(find("face_landmarker.task"))) as finder:
            tracked = face_asked_for(
                job.source, job.timeline, finder, job.face, settings, timings, on_step, {}, job.speech, job.scale
            )
        merger = SegmentMerger(Path(video), pool, seconds, retries, settings, timings, on_step)
        with closing(merger):
            for frame in merger.frames(job, tracked):
                with timings.measure("write"):
                    job.writer.write(marked(frame, settings))
    return make_report(
        [merger.face(job, tracked)], tracked.faces, facts["checkpoint"], settings, timings, out, job.notes
    )


def _describe(pool: Pool, retries: int) -> dict[str, Any]:
    for _, outcome in map_calls([Call("describe")], pool, retries=retries):
        if outcome.status == "done":
            return outcome.value
        raise UserError(f"A worker did not answer: {outcome.error}")
    raise UserError("There is no worker to render the segments; give at least one.")


@dataclass
class SegmentMerger:
    """Output frames in order, with the patches that the workers of a pool return applied."""

    video: Path
    pool: Pool
    seconds: float
    retries: int
    settings: Settings
    timings: Timings
    on_progress: ProgressCallback | None = None
    patches: Generator[Patch, None, None] | None = None
    handle: Any = None

    def close(self) -> None:
        """Stop all rendering, whatever ended the writing."""
        if self.patches is not None:
            self.patches.close()
            self.pool.release(self.handle)

    def face(self, job: Job, tracked: TrackedFace) -> AlignedFace:
        return AlignedFace(tracked.track, job.timeline, UNSIZED, only=only_in(self.settings, job.timeline))

    def frames(self, job: Job, tracked: TrackedFace) -> Iterator[np.ndarray]:
        timeline = job.timeline
        place = job.source.info if isinstance(job.source, VideoReader) else self.video
        shown = self.face(job, tracked).segments
        self.handle = self.pool.share(Plan(place, timeline, tracked.track, job.speech.numpy(), self.settings))
        self.patches = self._rendered(plan_segments(shown, timeline.fps, self.seconds, self.settings.window_batch))
        repainted = {i for start, stop in shown for i in range(start, stop)}
        for i, frame in enumerate(job.source.read(timeline.source_indices())):
            if i in repainted:
                patch, frame = next(self.patches), frame.copy()
                height, width = patch.pixels.shape[:2]
                frame[patch.top : patch.top + height, patch.left : patch.left + width] = patch.pixels
            yield frame

    def _rendered(self, segments: Sequence[Segment]) -> Generator[Patch, None, None]:
        calls = [Call("render", (self.handle, segment)) for segment in segments]
        done, steps = 0, [self.settings.steps * sum(map(len, segment.groups)) for segment in segments]
        for pending, outcome in map_calls(calls, self.pool, retries=self.retries, ordered=True):
            if outcome.status != "done":
                raise UserError(f"Segment {pending.index + 1} of {len(calls)} could not be rendered: {outcome.error}")
            patches, timings = outcome.value
            self.timings.add(timings)
            done += steps[pending.index]
            if self.on_progress:
                self.on_progress(Progress("sample", done, sum(steps)))
            yield from patches
