"""Lip-sync a video or image to speech, one 16-frame window at a time."""

import logging
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .audio.load import check_speech, from_waveform, load_audio
from .audio.pauses import spoken
from .audio.speakers import Speaker as Speaker
from .audio.speakers import mixed
from .errors import UserError, memory_told
from .face.aligned import AlignedFace
from .face.points import Points
from .face.saved import NO_TRACKS, load_tracks, save_tracks
from .face.spans import Span, spans
from .face.track import Tracks
from .media.ahead import ahead
from .media.audio_track import AudioTrack
from .media.image import is_image
from .media.journal import Journal, fingerprint, open_journal
from .media.output import open_output
from .media.source import ArraySource, Source, open_source, sound_part
from .media.writer import VideoWriter, container_of
from .prepared import PreparedClip, TrackedFace, face_asked_for, looked_at
from .rendering import RenderedFrame as RenderedFrame
from .rendering import Timings, WindowRenderer, render
from .settings import WINDOW, ProgressCallback, Settings, scaled_place
from .timeline import (
    Cut,
    Timeline,
    exact_rate,
    fit_timeline,
    frames_of_spans,
    joined_runs,
    parse_spans,
)
from .weights.bundle import Models as Models
from .weights.bundle import load_models as load_models


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


@dataclass(frozen=True)
class Result:
    """frames (F, H, W, 3) uint8; mask (F, H, W) float32, how much of each pixel was repainted; report."""

    frames: np.ndarray
    mask: np.ndarray
    report: Report


@memory_told()
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
    whose = (source, timeline, models.finder, settings.face, settings)
    tracked = face_asked_for(*whose, timings, on_step, {}, speech.waveform)
    renderer = WindowRenderer(timeline, tracked.track, speech.waveform, models, settings, timings, on_step)
    rendered = list(render(source, renderer))
    report = make_report([renderer.face], tracked.faces, models.name, settings, timings)
    return Result(np.stack([frame for frame, _ in rendered]), np.stack([mask for _, mask in rendered]), report)


@memory_told()
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
    cache: str | Path | None = None,
    on_step: ProgressCallback | None = None,
) -> Report:
    """The same from file to file, streamed: memory does not grow with length. video may be a still image.

    cut: the part of picture and sound that is used. tracks: the faces found in this part of the video before, by the
    number of frames looked at; what is found now is added. metadata: more fields for the file.
    allow_silence: a speech without a sound is no mistake (a pause between two parts of a film). resume: keep what is
    finished in a hidden folder beside the output until it is complete; the same call goes on there after a crash.
    cache: a folder for the faces and latents of videos: another speech for the same video then starts at once.

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
        clip = None if cache is None else PreparedClip(Path(cache), video, settings, cut)
        tracks = _known_tracks(journal, job, tracks, clip)
        renderers = _renderers(job, speakers, models, settings, tracks, clip, timings, on_step)
        known = tracks.get(looked_at(job.timeline, whole=clip is not None))
        if journal is not None and known is not None:
            with suppress(OSError):  # a run that cannot be gone on with is still a run
                save_tracks(journal.path("tracks.npz"), known)
        if clip is not None and known is not None and clip.tracks() is None:
            clip.save(known)
        frames = render(job.source, renderers, job.writer.frames)
        if renderers[0].overlapped:  # a frame is pasted while the one before is encoded
            frames = ahead(frames, WINDOW)
        for frame, _ in frames:
            with timings.measure("write"):
                job.writer.write(frame)
    faces, found = [renderer.face for renderer in renderers], sum(len(known.faces) for known in tracks.values())
    return make_report(faces, found, models.name, settings, timings, out, job.notes)


def _renderers(
    job: "Job",
    speakers: Sequence[Speaker | None],
    models: Models,
    settings: Settings,
    tracks: MutableMapping[int, Tracks],
    clip: PreparedClip | None,
    timings: Timings,
    on_step: ProgressCallback | None,
) -> list[WindowRenderer]:
    """One for each who speaks; None is whom the settings name, with the job's sound."""
    renderers: list[WindowRenderer] = []
    for speaker in speakers:
        face = job.face if speaker is None else scaled_place(speaker.face, job.scale)
        speech, only = (job.speech if speaker is None else speaker.heard()), None
        whose = (job.source, job.timeline, models.finder, face, settings)
        tracked = face_asked_for(*whose, timings, on_step, tracks, speech, job.scale, whole=clip is not None)
        _check_other_face(tracked, renderers)
        if speaker is not None:
            only = frames_of_spans(spoken(speech), job.timeline.fps, job.timeline.frames)
        latents = None  # of the second speaker on, frames come painted
        if clip is not None and not renderers:
            latents = clip.latents(tracked.track, job.timeline, models)
        how = (models, settings, timings, on_step)
        renderers.append(WindowRenderer(job.timeline, tracked.track, speech, *how, only=only, latents=latents))
    return renderers


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


def _check_other_face(tracked: TrackedFace, renderers: Sequence["WindowRenderer"]) -> None:
    if tracked.faces and any(renderer.face.track.index == tracked.track.index for renderer in renderers):
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
    journal: Journal | None, job: "Job", tracks: MutableMapping[int, Tracks] | None, clip: PreparedClip | None
) -> MutableMapping[int, Tracks]:
    """The faces that an earlier run found, beside those that are known."""
    tracks = {} if tracks is None else tracks
    if clip is not None and (found := clip.tracks()) is not None:
        tracks[job.timeline.source_frames] = found
    if journal is not None:
        with suppress(*NO_TRACKS):
            found = load_tracks(journal.path("tracks.npz"))
            tracks[found.frames] = found
        if journal.frames:
            _log.info("%s: resuming at frame %d", job.writer.path, journal.frames)
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
    parse_spans(settings.spans)  # known to be wrong before anything is looked at
    if settings.points:
        Points.parse(settings.points)
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
