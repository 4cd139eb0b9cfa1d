"""Lip-sync a video or image to speech, one 16-frame window at a time."""

import logging
import time
from collections import deque
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .audio.load import check_speech, from_waveform, load_audio
from .audio.mel import SAMPLE_RATE
from .audio.pauses import hush, rest_weights, spoken
from .audio.speakers import Speaker as Speaker
from .audio.speakers import mixed
from .audio.whisper_features import SpeechFeatures
from .conditions import ConditionEncoder
from .errors import UserError
from .face.aligned import AlignedFace
from .face.choose import choose
from .face.composite import first_row_read
from .face.detect import FaceFinder
from .face.rest import rested
from .face.saved import load_tracks, save_tracks
from .face.spans import Span, spans
from .face.track import FaceTrack, Tracks, find_tracks
from .media.audio_track import AudioTrack
from .media.image import is_image
from .media.journal import Journal, fingerprint, open_journal
from .media.output import open_output
from .media.source import ArraySource, Source, open_source, sound_part
from .media.watermark import draw_watermark
from .media.writer import VideoWriter, container_of
from .sampling import denoise_window, shared_noise
from .settings import WINDOW, Progress, ProgressCallback, Settings, scaled_place
from .timeline import (
    Cut,
    Timeline,
    Window,
    exact_rate,
    fit_timeline,
    frames_of_spans,
    joined_runs,
    parse_spans,
    windows,
)
from .weights.bundle import Models as Models
from .weights.bundle import load_models as load_models


class Timings(dict[str, float]):
    """Seconds by stage."""

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add({stage: time.perf_counter() - start})

    def add(self, other: Mapping[str, float]) -> None:
        for stage, seconds in other.items():
            self[stage] = self.get(stage, 0.0) + seconds


@dataclass(frozen=True)
class Report:
    """What was done; `as_dict` is the command line's --json. spans: what became of every frame, for each face that was
    asked for. notes: what of the source could not stay as it was."""

    frames: int
    fps: Fraction
    size: tuple[int, int]
    source_frames: int
    faces: int
    segments: list[tuple[int, int]]
    spans: tuple[Span, ...]
    checkpoint: str
    settings: Settings
    timings: Mapping[str, float]
    out: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def repainted(self) -> int:
        """Frames in which a mouth was made."""
        return sum(stop - start for start, stop in joined_runs(self.segments))

    def as_dict(self) -> dict[str, Any]:
        timings = {stage: round(seconds, 3) for stage, seconds in self.timings.items()}
        spans = [span.as_dict(self.fps) for span in self.spans]
        return asdict(self) | {
            "fps": str(self.fps),
            "repainted": self.repainted,
            "timings": timings,
            "spans": spans,
        }


_log = logging.getLogger(__name__)

RenderedFrame = tuple[np.ndarray, np.ndarray]
"""An output frame (H, W, 3) uint8 and how much of each pixel was repainted, (H, W) float32."""


@dataclass(frozen=True)
class Result:
    """frames (F, H, W, 3) uint8; mask (F, H, W) float32, how much of each pixel was repainted; report."""

    frames: np.ndarray
    mask: np.ndarray
    report: Report


def lipsync(
    frames: Sequence[np.ndarray] | np.ndarray,
    waveform: Tensor | np.ndarray,
    sample_rate: int,
    fps: Fraction | float,
    *,
    models: Models,
    settings: Settings | None = None,
    on_step: ProgressCallback | None = None,
) -> Result:
    """Make a face say a speech. frames: (F, H, W, 3) uint8 RGB; one frame is a still image, repeated.

    waveform: (T,) or (channels, T) float in [-1, 1] at sample_rate Hz. fps: frames per second, a Fraction for rates
    like 30000/1001. UserError when no face is found, the sound is empty or silent, or a setting is out of range.
    """
    settings = (settings or models.defaults).resolved(models.defaults)
    _check_frames(frames)
    speech = from_waveform(waveform, sample_rate)
    check_speech(speech.waveform)
    timeline = fit_timeline(exact_rate(fps), len(frames), speech.seconds, settings.fit, still=len(frames) == 1)
    source, timings = ArraySource(frames), Timings()
    tracked = track_face(source, timeline, models.finder, settings.face, timings, on_step)
    renderer = WindowRenderer(timeline, tracked.track, speech.waveform, models, settings, timings, on_step)
    rendered = list(render(source, renderer))
    report = make_report([renderer.face], tracked.faces, models.name, settings, timings)
    return Result(np.stack([frame for frame, _ in rendered]), np.stack([mask for _, mask in rendered]), report)


def lipsync_file(
    video: str | Path,
    audio: str | Path | Sequence[Speaker] | None,
    out: str | Path,
    *,
    models: Models,
    settings: Settings | None = None,
    cut: Cut | None = None,
    tracks: MutableMapping[int, Tracks] | None = None,
    metadata: Mapping[str, str] | None = None,
    allow_silence: bool = False,
    resume: bool = False,
    on_step: ProgressCallback | None = None,
) -> Report:
    """The same from file to file, streamed: memory does not grow with length. video may be a still image.

    cut: the part of picture and sound that is used. tracks: the faces found in this part of the video before, by the
    number of frames looked at; what is found now is added. metadata: more fields for the file.
    allow_silence: a speech without a sound is no mistake (a pause between two parts of a film). resume: keep what is
    finished in a hidden folder beside the output until it is complete; the same call goes on there after a crash.

    audio None takes the video's own sound; several speakers each move their own face (settings.face is not used), keep
    its mouth where their voice pauses, and are mixed. The output appears under its name only when it is complete; the
    sound is the user's own, copied where the container can hold it.
    """
    settings = (settings or models.defaults).resolved(models.defaults)
    timings = Timings()
    with (
        _voices(audio) as (sound, speakers),
        _journal(resume, video, audio, out, models, settings, cut) as journal,
        open_job(video, sound, out, settings, cut, metadata, journal, allow_silence=allow_silence) as job,
    ):
        tracks = _known_tracks(journal, job, tracks)
        renderers: list[WindowRenderer] = []
        for speaker in speakers:
            face = job.face if speaker is None else scaled_place(speaker.face, job.scale)
            tracked = track_face(job.source, job.timeline, models.finder, face, timings, on_step, tracks)
            _check_other_face(tracked, renderers)
            speech, only = job.speech, None
            if speaker is not None:
                speech = speaker.heard()
                only = frames_of_spans(spoken(speech), job.timeline.fps, job.timeline.frames)
            renderers.append(
                WindowRenderer(job.timeline, tracked.track, speech, models, settings, timings, on_step, only=only)
            )
        if journal is not None:
            save_tracks(journal.path("tracks.npz"), *tracks.values())
        for frame, _ in render(job.source, renderers, job.writer.frames):
            with timings.measure("write"):
                job.writer.write(frame)
    faces, found = [renderer.face for renderer in renderers], len(tracks[_used(job.timeline)].faces)
    return make_report(faces, found, models.name, settings, timings, out, job.notes)


@contextmanager
def _voices(
    audio: str | Path | Sequence[Speaker] | None,
) -> Iterator[tuple[str | Path | None, tuple[Speaker | None, ...]]]:
    """The sound to write, and who speaks; None is whom the settings name, with that sound."""
    if audio is None or isinstance(audio, str | Path):
        yield audio, (None,)
        return
    with mixed(audio) as mix:
        yield mix, tuple(audio)


def _check_other_face(tracked: "TrackedFace", renderers: Sequence["WindowRenderer"]) -> None:
    if any(renderer.face.track.index == tracked.track.index for renderer in renderers):
        raise UserError(f"Two speakers are the same face, number {tracked.track.index}; name another face for one.")


@contextmanager
def _journal(
    wanted: bool, video: Any, audio: Any, out: str | Path, models: Models, settings: Settings, cut: Cut | None
) -> Iterator[Journal | None]:
    container_of(out)  # a name that cannot be written is said before anything is made beside it
    if not wanted or not Path(video).exists():
        yield None
        return
    speakers = () if audio is None or isinstance(audio, str | Path) else tuple(audio)
    facts = {"settings": asdict(settings), "cut": cut, "speakers": speakers, "dtype": models.dtype}
    files = [speaker.voice for speaker in speakers] or [audio]
    facts["models"] = models.fingerprint()
    with open_journal(out, fingerprint(facts, video, *files)) as journal:
        yield journal


def _known_tracks(
    journal: Journal | None, job: "Job", tracks: MutableMapping[int, Tracks] | None
) -> MutableMapping[int, Tracks]:
    """The faces that an earlier run of the journal found, beside those that are known."""
    tracks = {} if tracks is None else tracks
    if journal is not None and journal.path("tracks.npz").exists():
        tracks[_used(job.timeline)] = load_tracks(journal.path("tracks.npz"))
        if journal.frames:
            _log.info("%s: going on at frame %d", job.writer.path, journal.frames)
    return tracks


@dataclass(frozen=True)
class Job:
    """An opened run. speech: (T,) at 16 kHz. face: Settings.face in pixels of these frames. notes: see Report."""

    source: Source
    timeline: Timeline
    speech: Tensor
    writer: VideoWriter
    face: str
    scale: float
    notes: tuple[str, ...]


@contextmanager
def open_job(
    video: str | Path,
    audio: str | Path | None,
    out: str | Path,
    settings: Settings,
    cut: Cut | None = None,
    metadata: Mapping[str, str] | None = None,
    journal: Journal | None = None,
    *,
    allow_silence: bool = False,
) -> Iterator[Job]:
    """Open and check all inputs and the output before anything is computed. The output is finished on leaving."""
    cut = cut or Cut()
    if audio is None and is_image(video):
        raise UserError(f"{video} is a picture and has no sound; give a speech as well.")
    with open_source(video, settings, cut) as (source, shown):
        number = settings.audio_track if settings.audio_track >= 0 else None
        start, length = sound_part(video, audio, shown, cut, number)
        speech = load_audio(audio or video, start, length, number)
        if not allow_silence:
            check_speech(speech.waveform, str(audio or video))
        timeline = fit_timeline(shown.fps, shown.frames, speech.seconds, settings.fit, still=shown.still)
        _log.debug("%s: %s; %.2f s of speech; %s", video, shown, speech.seconds, timeline)
        # silence of less than a frame is not worth a new encoding of the sound
        padding = timeline.duration if timeline.duration - speech.seconds >= 1 / timeline.fps else None
        track = AudioTrack(audio or video, start, length, padding, speech.seconds, speech.steady, number)
        with open_output(out, video, shown, timeline, settings, track, metadata, journal) as (writer, notes):
            for note in notes:
                _log.info("%s is %s", video, note)
            face = scaled_place(settings.face, shown.scale)
            yield Job(source, timeline, speech.waveform, writer, face, shown.scale, notes)


def make_report(
    faces: Sequence[AlignedFace],
    found: int,
    checkpoint: str,
    settings: Settings,
    timings: Timings,
    out: Any = None,
    notes: tuple[str, ...] = (),
) -> Report:
    """faces: those that were asked for; found: how many there are."""
    timeline, out = faces[0].timeline, None if out is None else str(out)
    runs = sorted({segment for face in faces for segment in face.segments})
    said = tuple(span for face in faces for span in spans(face))
    frames, size, fps = timeline.frames, faces[0].size, timeline.fps
    of = timeline.source_frames
    return Report(frames, fps, size, of, found, runs, said, checkpoint, settings, timings, out, notes)


def _check_frames(frames: Sequence[np.ndarray] | np.ndarray) -> None:
    if not len(frames):
        raise UserError("There are no frames; give at least one picture.")
    first = np.asarray(frames[0])
    if first.dtype != np.uint8 or first.ndim != 3 or first.shape[-1] != 3:
        raise UserError(f"Frames are {first.dtype} of shape {first.shape}; wanted is uint8 RGB, (height, width, 3).")
    for i, frame in enumerate(frames):
        if frame.shape != first.shape or frame.dtype != np.uint8:
            raise UserError(f"Frame {i} is {frame.dtype} {frame.shape}, the first {first.shape}; make them alike.")


@dataclass(frozen=True)
class TrackedFace:
    """The chosen face through the clip; faces: how many were found in all."""

    track: FaceTrack
    faces: int


def track_face(
    source: Source,
    timeline: Timeline,
    finder: FaceFinder,
    face: str,
    timings: Timings,
    on_progress: ProgressCallback | None = None,
    tracks: MutableMapping[int, Tracks] | None = None,
) -> TrackedFace:
    """Follow the faces through the source frames that the timeline shows, read once unless `tracks` has them."""
    tracks = {} if tracks is None else tracks
    used = _used(timeline)

    def report(frames: int) -> None:
        if on_progress:
            on_progress(Progress("track", frames, used))

    with timings.measure("track"):
        if used not in tracks:
            tracks[used] = find_tracks(source.read(range(used)), finder, on_step=report)
        tracked = TrackedFace(choose(tracks[used], face), len(tracks[used].faces))
    _log.debug("%d faces in %d frames; the chosen one is %d", tracked.faces, used, tracked.track.index)
    return tracked


def _used(timeline: Timeline) -> int:
    """Source frames that are shown."""
    return min(timeline.source_frames, timeline.frames)


@torch.inference_mode()
def render(
    source: Source, renderers: "WindowRenderer | Sequence[WindowRenderer]", first: int = 0
) -> Iterator[RenderedFrame]:
    """Every output frame from `first` on with its mask, in order: those with the face repainted, the others as they
    are. Several renderers of one timeline paint one after the other."""
    every = [renderers] if isinstance(renderers, WindowRenderer) else list(renderers)
    settings = every[0].settings
    for frame, mask in _painted(source, every, first):
        yield marked(frame, settings), mask


def _painted(source: Source, renderers: Sequence["WindowRenderer"], first: int) -> Iterator[RenderedFrame]:
    *before, renderer = renderers
    timeline, window_batch = renderer.timeline, renderer.settings.window_batch
    begin, reference = first, None
    for start, stop in renderer.face.segments:
        if start < first < stop:  # in the midst of what is rendered together: from windows on that need none before
            groups = grouped(start, stop, window_batch)
            begin = max(g[0].start for g in groups if g[0].start == g[0].keep <= first)
            head = next(iter(source.read(timeline.source_indices(start, start + 1))))
            reference = renderer.encode_reference(renderer.crop([head], start)[0])
    if before:
        rendered = _painted(source, before, begin)
    else:
        empty = np.zeros(renderer.face.size[::-1], np.float32)
        rendered = ((frame, empty) for frame in source.read(timeline.source_indices(begin)))
    masks: deque[np.ndarray] = deque()

    def frames() -> Iterator[np.ndarray]:
        for frame, mask in rendered:
            masks.append(mask)
            yield frame

    given, position = frames(), begin
    for start, stop in (*renderer.face.segments, (timeline.frames, timeline.frames)):
        if stop <= first < timeline.frames:
            continue
        for frame in islice(given, max(0, start - position)):
            yield frame, masks.popleft()
        at = max(start, begin)
        for i, (frame, mask) in enumerate(renderer.render_segment(given, start, stop, at, reference), at):
            under = masks.popleft()
            if i >= first:
                yield frame, np.maximum(under, mask)
        position, reference = stop, None


def marked(frame: np.ndarray, settings: Settings) -> np.ndarray:
    return draw_watermark(frame) if settings.watermark == "visible" else frame


def only_in(
    settings: Settings, timeline: Timeline, only: tuple[tuple[int, int], ...] | None = None
) -> tuple[tuple[int, int], ...] | None:
    """Frames in which lips are made anew: those of settings.spans, and of only."""
    if not settings.spans:
        return only
    asked = frames_of_spans(parse_spans(settings.spans), timeline.fps, timeline.frames)
    if only is None:
        return asked
    return tuple((max(a, c), min(b, d)) for a, b in asked for c, d in only if max(a, c) < min(b, d))


def grouped(start: int, stop: int, size: int) -> list[list[Window]]:
    """The windows of a segment, in the groups that are computed together."""
    plan = windows(start, stop)
    return [plan[i : i + size] for i in range(0, len(plan), size)]


class WindowRenderer:
    """Repaints windows of output frames. A window depends on its own frames, the segment's first one and the speech.

    reference: align, hear and paste as the public code does, to compare with it. only: see AlignedFace.
    """

    @torch.inference_mode()
    def __init__(
        self,
        timeline: Timeline,
        track: FaceTrack,
        speech: Tensor,
        models: Models,
        settings: Settings,
        timings: Timings,
        on_progress: ProgressCallback | None = None,
        *,
        reference: bool = False,
        only: tuple[tuple[int, int], ...] | None = None,
    ) -> None:
        self.timeline, self.models, self.settings = timeline, models, settings
        self.timings, self.on_progress, self.reference = timings, on_progress, reference
        # the public code neither steadies the points nor lets Whisper's blocks overlap
        asked = only_in(settings, timeline, only)
        self.face = AlignedFace(track, timeline, models.resolution, reference=reference, only=asked)
        # sound that ends before the picture is followed by silence, not by its last sound held
        short = int(timeline.duration * SAMPLE_RATE) - len(speech)
        padded = F.pad(speech, (0, max(0, short)))
        self.rest = rest_weights(padded, timeline) if settings.silence == "close" else None
        if settings.silence != "keep":
            padded = hush(padded)
        self.features = SpeechFeatures(padded, SAMPLE_RATE, models.whisper, exact=reference)
        self.encoder = ConditionEncoder(models.vae, models.resolution, device=models.device, dtype=models.dtype)
        noise = shared_noise(settings.seed, models.vae.channels, *self.encoder.mask.shape)
        self.noise = noise.to(models.device)
        self.done = 0
        self.total = settings.steps * sum(len(windows(*segment)) for segment in self.face.segments)

    def render_segment(
        self,
        frames: Iterator[np.ndarray],
        start: int,
        stop: int,
        at: int | None = None,
        reference: Tensor | None = None,
    ) -> Iterator[RenderedFrame]:
        """The frames start … stop-1 with their masks; takes as many from `frames`. at: begin with the windows that
        start there instead; reference: encode_reference of the segment's first crop then."""
        at = start if at is None else at
        crops: deque[np.ndarray] = deque(maxlen=WINDOW)  # the last window is shifted back over its neighbor
        for group in grouped(start, stop, self.settings.window_batch):
            if group[0].keep < at:
                continue
            with self.timings.measure("read"):
                new = list(islice(frames, group[-1].stop - group[0].keep))
            cropped = self.crop(new, group[0].keep)
            if group[0].keep == start:
                reference = self.encode_reference(cropped[0])
            shared = [*crops][len(crops) - (group[0].keep - group[0].start) :]
            yield from self.render_windows(group, new, [*shared, *cropped], reference)
            crops.extend(cropped)

    def crop(self, frames: Sequence[np.ndarray], first: int) -> list[np.ndarray]:
        """The faces of the output frames first, first + 1, …"""
        with self.timings.measure("crop"):
            return list(self.face.crops(frames, first))

    def encode_reference(self, crop: np.ndarray) -> Tensor | None:
        """Latents of a segment's first crop, for a network that takes one reference for all of a segment."""
        if self.models.unet.config.reference_mode != "first_frame":
            return None
        with self.timings.measure("encode"):
            return self.encoder.encode_reference(crop)

    def render_windows(
        self,
        group: Sequence[Window],
        frames: Sequence[np.ndarray],
        crops: Sequence[np.ndarray],
        reference: Tensor | None = None,
    ) -> Iterator[RenderedFrame]:
        """The frames that these windows keep, with their masks. frames: just these; crops: from the first window's
        start on. ValueError where they are too few or too many."""
        origin, first, stop = group[0].start, group[0].keep, group[-1].stop
        if len(frames) != stop - first or len(crops) != stop - origin:
            raise ValueError(f"{len(frames)} frames and {len(crops)} crops for the windows {group}")
        with self.timings.measure("encode"):
            conditions = [
                self.encoder.window(
                    crops[w.start - origin : w.stop - origin],
                    list(self.timeline.source_indices(w.start, w.stop)),
                    reference,
                )
                for w in group
            ]
        pixels = self._sample(group, torch.stack(conditions)).numpy()
        for i, frame in enumerate(frames):
            with self.timings.measure("paste"):
                crop = pixels[i]
                if self.rest is not None and self.rest[first + i] > 0:
                    crop = rested(crop, self.models.finder, float(self.rest[first + i]))
                result = self.face.paste(frame, crop, first + i, reference=self.reference)
            yield result

    def _sample(self, group: Sequence[Window], conditions: Tensor) -> Tensor:
        """Kept frames of all windows of a group as pixels (N, R, R, 3), 0..255."""
        audio = torch.stack([self.features.windows(self.timeline.fps, w.start, w.stop) for w in group])
        with self.timings.measure("sample"):
            latents = denoise_window(
                self.models.unet,
                self.noise.expand(len(group), -1, group[0].stop - group[0].start, -1, -1),
                conditions,
                audio.to(conditions),
                steps=self.settings.steps,
                guidance=self.settings.guidance,
                solver=self.settings.solver,
                on_step=lambda done, steps, clean: self._report(len(group), clean),
            )
        kept = [frames[:, w.keep - w.start :] for frames, w in zip(latents, group, strict=True)]
        # window by window, as they are encoded: rounding then never depends on the group
        with self.timings.measure("decode"):
            top = first_row_read(self.models.resolution)
            return torch.cat([self.encoder.decode(frames, top) for frames in kept])

    def _report(self, steps: int, clean: Tensor) -> None:
        self.done += steps
        if self.on_progress:
            self.on_progress(Progress("sample", self.done, self.total, clean))
