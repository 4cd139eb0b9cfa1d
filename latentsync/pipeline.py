"""A face and a speech in, a talking video out: the whole story, window by window."""

import dataclasses
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .audio.load import MIN_SECONDS, check_speech, load_audio, to_mono_16k
from .audio.mel import SAMPLE_RATE
from .audio.whisper_features import SpeechFeatures
from .errors import UserError
from .face.align import latent_mask, mouth_mask
from .face.aligned import AlignedFace, shown_segments
from .face.detect import FaceFinder
from .face.track import FaceTrack, Tracks, choose, find_tracks
from .media.audio_track import AudioTrack
from .media.image import is_image
from .media.source import ArraySource, Source, open_source, sound_part
from .media.watermark import COMMENT, drawn
from .media.writer import VideoWriter
from .models.unet import UNet
from .models.vae import VAE
from .models.whisper import WhisperEncoder
from .sampling import denoise_window, shared_noise
from .settings import GUIDANCE, STEPS, WINDOW, Settings
from .timeline import Cut, Timeline, Window, exact_rate, fit_timeline, windows
from .weights.load import default_settings, load_unet
from .weights.registry import find
from .weights.vae_files import load_vae
from .weights.whisper_files import load_whisper


@dataclass(frozen=True)
class Progress:
    """Progress: stage is "track" or "sample"; clean are the latents so far, (B, C, F, h, w), while sampling."""

    stage: str
    done: int
    total: int
    clean: Tensor | None = None


ProgressCallback = Callable[[Progress], None]
"""Called after every unit of work; whatever it raises ends the run (and removes the unfinished file)."""


@dataclass(frozen=True)
class Models:
    """The networks of one checkpoint, on one device. defaults: settings that suit it."""

    unet: UNet
    vae: VAE
    whisper: WhisperEncoder
    finder: FaceFinder
    resolution: int
    name: str = ""
    defaults: Settings = field(default_factory=partial(Settings, steps=STEPS, guidance=GUIDANCE))

    def __enter__(self) -> "Models":
        return self

    def __exit__(self, *_: object) -> None:
        self.finder.close()

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype

    @property
    def first_frame_reference(self) -> bool:
        """Whether the U-Net was trained with one reference frame held still; the published ones were not."""
        return bool(self.unet.info) and self.unet.info.metadata.get("reference") == "still"


@dataclass
class Report:
    """What was done; `as_dict` is the command line's --json."""

    frames: int = 0
    fps: Fraction = Fraction(0)
    size: tuple[int, int] = (0, 0)
    source_frames: int = 0
    faces: int = 0
    segments: list[tuple[int, int]] = field(default_factory=list)
    checkpoint: str = ""
    settings: Settings = field(default_factory=Settings)
    seconds: dict[str, float] = field(default_factory=dict)
    out: str | None = None

    @property
    def repainted(self) -> int:
        return sum(stop - start for start, stop in self.segments)

    def as_dict(self) -> dict[str, Any]:
        facts = dataclasses.asdict(self)
        seconds = {stage: round(value, 3) for stage, value in self.seconds.items()}
        return facts | {"fps": str(self.fps), "repainted": self.repainted, "seconds": seconds}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


RenderedFrame = tuple[np.ndarray, np.ndarray]
"""An output frame (H, W, 3) uint8 and how much of each pixel was repainted, (H, W) float32."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class Result:
    """frames (F, H, W, 3) uint8; mask (F, H, W) float32, how much of each pixel was repainted; report."""

    frames: np.ndarray
    mask: np.ndarray
    report: Report


FrameProducer = Callable[[Source, Timeline, Tensor], Iterable[RenderedFrame]]
"""Makes the output frames, in order, of a source, a timeline and the speech (T,) at 16 kHz."""
RenderFn = Callable[[Iterator[np.ndarray], int, int], Iterable[RenderedFrame]]
"""Takes the frames start … stop-1 from the iterator and gives them back painted."""


def load_models(
    checkpoint: str | Path = "nano",
    *,
    vae: str | Path | None = None,
    whisper: str | Path | None = None,
    resolution: int | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Models:
    """Load what a checkpoint needs. vae and whisper default to those that it was trained with."""
    unet = load_unet(checkpoint, dtype=dtype, device=device, resolution=resolution)
    info: Any = unet.info
    nano = info.kind == "nano"
    if not info.resolution:
        raise UserError(
            f"{checkpoint} does not state its resolution; give it (--resolution 256 for LatentSync 1.5, 512 for 1.6)."
        )
    loaded_vae = load_vae(vae or (info.path if nano else "vae"), dtype=dtype, device=device)
    if loaded_vae.channels != unet.config.latent_channels:
        raise UserError(
            f"The VAE has {loaded_vae.channels} latent channels and {checkpoint} takes {unet.config.latent_channels};"
            " give the VAE that belongs to it."
        )
    encoder = load_whisper(whisper or ("tiny.en" if nano else "tiny"), device=device)
    if encoder.dim != unet.config.audio_dim:
        raise UserError(
            f"The Whisper encoder gives {encoder.dim} numbers per token and {checkpoint} takes"
            f" {unet.config.audio_dim}; LatentSync 1.5 and 1.6 go with Whisper tiny."
        )
    finder = FaceFinder(find("face_landmarker.task"))
    name = info.version or Path(checkpoint).stem
    return Models(unet, loaded_vae, encoder, finder, info.resolution, name, default_settings(info.path))


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
    report = Report(settings=settings)
    frames = _checked_frames(frames)
    speech, seconds = _checked_speech(waveform, sample_rate)
    timeline = fit_timeline(exact_rate(fps), len(frames), seconds, settings.fit, still=len(frames) == 1)
    made = list(_told(ArraySource(frames), timeline, speech, models, settings, report, on_step))
    return Result(np.stack([frame for frame, _ in made]), np.stack([mask for _, mask in made]), report)


def lipsync_file(
    video: str | Path,
    audio: str | Path | None,
    out: str | Path,
    *,
    models: Models,
    settings: Settings | None = None,
    cut: Cut | None = None,
    tracks: MutableMapping[int, Tracks] | None = None,
    metadata: Mapping[str, str] | None = None,
    allow_silence: bool = False,
    on_step: ProgressCallback | None = None,
) -> Report:
    """The same from file to file, streamed: memory does not grow with length. video may be a still image.

    cut: the part of picture and sound that is used. tracks: the faces found in this part of the video before, by the
    number of frames looked at; what is found now is added. metadata: more fields for the file.
    allow_silence: a speech without a sound is no mistake (a pause between two pieces).

    audio None takes the video's own sound. The output appears under its name only when it is complete; the sound is
    the user's own, copied where the container can hold it.
    """
    settings = (settings or models.defaults).resolved(models.defaults)
    report = Report(settings=settings, out=str(out))

    def tell(source: Source, timeline: Timeline, speech: Tensor) -> Iterator[RenderedFrame]:
        return _told(source, timeline, speech, models, settings, report, on_step, tracks)

    write_video(video, audio, out, tell, report, cut, metadata, allow_silence=allow_silence)
    return report


def write_video(
    video: str | Path,
    audio: str | Path | None,
    out: str | Path,
    tell: FrameProducer,
    report: Report,
    cut: Cut | None = None,
    metadata: Mapping[str, str] | None = None,
    *,
    allow_silence: bool = False,
) -> None:
    """All of lipsync_file but the making of the frames, which `tell` does."""
    still, cut = is_image(video), cut or Cut()
    if audio is None and still:
        raise UserError(f"{video} is a picture and has no sound; give a speech as well.")
    with open_source(video, report.settings, still, cut) as (source, shown):
        start, length = sound_part(video, audio, shown, cut)
        speech = load_audio(audio or video, start, length)
        if not allow_silence:
            check_speech(speech.waveform, str(audio or video))
        timeline = fit_timeline(shown.fps, shown.frames, speech.seconds, report.settings.fit, still=still)
        track = AudioTrack(audio or video, start, length, _padding(timeline, speech.seconds))
        # the encoder is opened before anything is computed: a bad output path costs no time
        said = ({} if report.settings.mark == "none" else {"comment": COMMENT}) | dict(metadata or {})
        look: Any = {"color": shown.color, "aspect": shown.aspect, "metadata": said}
        with VideoWriter(out, shown.width, shown.height, shown.fps, audio=track, **look) as writer:
            for frame, _ in tell(source, timeline, speech.waveform):
                with report.timed("write"):
                    writer.write(frame)


def _padding(timeline: Timeline, seconds: Fraction) -> Fraction | None:
    """Up to where silence follows the sound; for less than a frame it is not worth a new encoding."""
    return timeline.duration if timeline.duration - seconds >= 1 / timeline.fps else None


def _checked_frames(frames: Sequence[np.ndarray] | np.ndarray) -> Sequence[np.ndarray] | np.ndarray:
    if not len(frames):
        raise UserError("There are no frames; give at least one picture.")
    first = np.asarray(frames[0])
    if first.dtype != np.uint8 or first.ndim != 3 or first.shape[-1] != 3:
        raise UserError(f"Frames are {first.dtype} of shape {first.shape}; wanted is uint8 RGB, (height, width, 3).")
    for i, frame in enumerate(frames):
        if frame.shape != first.shape or frame.dtype != np.uint8:
            raise UserError(f"Frame {i} is {frame.dtype} {frame.shape}, the first {first.shape}; make them alike.")
    return frames


def _checked_speech(waveform: Tensor | np.ndarray, sample_rate: int) -> tuple[Tensor, Fraction]:
    """At 16 kHz, with its exact length in seconds; checked before anything is computed, as load_audio does."""
    speech = to_mono_16k(waveform, sample_rate)
    seconds = Fraction(np.shape(waveform)[-1]) / Fraction(sample_rate)
    if seconds < MIN_SECONDS:
        raise UserError(f"The sound lasts {float(seconds):g} s; at least {float(MIN_SECONDS):g} s of sound is needed.")
    if not speech.isfinite().all():
        raise UserError("The sound has samples that are not numbers (NaN or infinity); export it again.")
    check_speech(speech)
    return speech, seconds


@torch.inference_mode()
def _told(
    source: Source,
    timeline: Timeline,
    speech: Tensor,
    models: Models,
    settings: Settings,
    report: Report,
    on_step: ProgressCallback | None,
    tracks: MutableMapping[int, Tracks] | None = None,
) -> Iterator[RenderedFrame]:
    """Every output frame with its mask, in order."""
    say = on_step or (lambda step: None)
    track = follow(source, timeline, models.finder, report, say, {} if tracks is None else tracks)
    report.checkpoint = models.name
    painter = WindowRenderer(timeline, track, speech, models, settings, report, say)
    yield from in_order(source, timeline, report, painter.stretch)


def follow(
    source: Source,
    timeline: Timeline,
    finder: FaceFinder,
    report: Report,
    say: ProgressCallback,
    tracks: MutableMapping[int, Tracks],
) -> FaceTrack:
    """The chosen face through the clip, which is read once, if at all; the report learns what was found."""
    used = min(timeline.source_frames, timeline.frames)
    with report.timed("track"):
        if used not in tracks:
            seen = source.read(range(used))
            tracks[used] = find_tracks(seen, finder, on_step=lambda n: say(Progress("track", n, used)))
        track = choose(tracks[used], report.settings.face)
    report.frames, report.fps, report.size = timeline.frames, timeline.fps, track.size
    report.source_frames, report.faces = timeline.source_frames, len(tracks[used].faces)
    report.segments = shown_segments(timeline, track)
    return track


def in_order(source: Source, timeline: Timeline, report: Report, paint: RenderFn) -> Iterator[RenderedFrame]:
    """All frames of a clip: those of its stretches painted, the others as they are; marked where that is wanted."""
    painted = _in_order(source, timeline, report, paint)
    if report.settings.mark == "picture":
        return ((drawn(frame), mask) for frame, mask in painted)
    return painted


def _in_order(source: Source, timeline: Timeline, report: Report, paint: RenderFn) -> Iterator[RenderedFrame]:
    frames = source.read(timeline.source_indices())
    empty = np.zeros((report.size[1], report.size[0]), np.float32)
    position = 0
    for start, stop in report.segments:
        yield from ((frame, empty) for frame in _take(frames, start - position))
        yield from paint(frames, start, stop)
        position = stop
    yield from ((frame, empty) for frame in _take(frames, timeline.frames - position))


def _take(frames: Iterator[np.ndarray], count: int) -> Iterator[np.ndarray]:
    return (next(frames) for _ in range(count))


def grouped(start: int, stop: int, size: int) -> list[list[Window]]:
    """The windows of a stretch, in the groups that are computed together."""
    plan = windows(start, stop)
    return [plan[i : i + size] for i in range(0, len(plan), size)]


class Recent(OrderedDict[int, Value]):
    """What was made of the source frames shown last, by their numbers.

    Kept are those of the window before, which the next may look back on, and no more whatever window_batch is: which
    frames are encoded together, and so their rounding, must not hang on it.
    """

    def missing(self, shown: Iterable[int]) -> list[int]:
        return [source for source in shown if source not in self]

    def renew(self, shown: Iterable[int], new: Mapping[int, Value]) -> None:
        self.update(new)
        for source in shown:
            self.move_to_end(source)
        while len(self) > 2 * WINDOW:
            self.popitem(last=False)


class WindowRenderer:
    """Repaints stretches of frames in windows; holds what neighbouring windows share."""

    def __init__(
        self,
        timeline: Timeline,
        track: FaceTrack,
        speech: Tensor,
        models: Models,
        settings: Settings,
        report: Report,
        say: ProgressCallback,
    ) -> None:
        self.timeline, self.models, self.settings = timeline, models, settings
        self.report, self.say = report, say
        self.reference = settings.paste == "reference"
        # the public code neither steadies the points nor lets Whisper's blocks overlap
        self.clip = AlignedFace(track, timeline, models.resolution, reference=self.reference)
        # sound that ends before the picture is followed by silence, not by its last sound held
        short = int(timeline.duration * SAMPLE_RATE) - len(speech)
        sound = F.pad(speech, (0, max(0, short)))
        self.features = SpeechFeatures(sound, SAMPLE_RATE, models.whisper, exact=self.reference)
        self.keep = torch.from_numpy(mouth_mask(models.resolution)).to(models.device)
        cells = torch.from_numpy(latent_mask(models.resolution, models.vae.factor))
        self.cells = cells.to(models.device, models.dtype)
        self.noise = shared_noise(settings.seed, models.vae.channels, *cells.shape).to(models.device)
        self.latents: Recent[Tensor] = Recent()
        self.still: Tensor | None = None
        self.done = 0
        self.total = settings.steps * sum(len(windows(*run)) for run in report.segments)

    def stretch(self, frames: Iterator[np.ndarray], start: int, stop: int) -> Iterator[RenderedFrame]:
        """The frames start … stop-1 with their masks; takes as many from `frames`."""
        self.begin()
        for group in grouped(start, stop, self.settings.window_batch):
            yield from self.group(frames, group)

    def begin(self) -> None:
        """A new stretch: with a held reference it has its own, and nothing made with the old one may linger."""
        if self.models.first_frame_reference:
            self.still = None
            self.latents.clear()

    def group(self, frames: Iterator[np.ndarray], group: list[Window]) -> Iterator[RenderedFrame]:
        """The frames that these windows keep, with their masks; takes as many from `frames`."""
        first, last = group[0].keep, group[-1].stop
        with self.report.timed("read"):
            held = list(_take(frames, last - first))
        crops = self._crops(held, first)
        conditions = []
        for w in group:
            self._remember(crops[w.keep - first : w.stop - first], w.keep)
            conditions.append(self._conditions(w))
        pixels = self._sample(group, torch.stack(conditions)).numpy()
        for i, frame in enumerate(held):
            with self.report.timed("paste"):
                result = self.clip.paste(frame, pixels[i], first + i, reference=self.reference)
            yield result

    def _crops(self, frames: list[np.ndarray], first: int) -> list[np.ndarray]:
        with self.report.timed("crop"):
            return list(self.clip.crops(frames, first))

    def _remember(self, crops: list[np.ndarray], first: int) -> None:
        """Latents of new source frames into self.latents."""
        shown = {self.timeline.source_index(first + i): crop for i, crop in enumerate(crops)}
        new = self.latents.missing(shown)
        made = self.encode([shown[source] for source in new]) if new else ()
        self.latents.renew(shown, dict(zip(new, made, strict=True)))

    def encode(self, crops: list[np.ndarray]) -> Tensor:
        """(N, 2C, h, w): latents of crops without their mouths, and of the reference."""
        with self.report.timed("encode"):
            pixels = torch.from_numpy(np.stack(crops)).to(self.models.device)
            pixels = (pixels.permute(0, 3, 1, 2).to(self.models.dtype) / 127.5) - 1
            masked = self.models.vae.encode(pixels * self.keep.to(pixels))
            return torch.cat((masked, self._references(pixels)), 1)

    def _references(self, pixels: Tensor) -> Tensor:
        """Latents that show the network whose face it is: of each frame, or of the stretch's first for all of it."""
        if not self.models.first_frame_reference:
            return self.models.vae.encode(pixels)
        if self.still is None:
            self.still = self.models.vae.encode(pixels[:1])
        return self.still.expand(len(pixels), -1, -1, -1)

    def _sample(self, group: list[Window], conditions: Tensor) -> Tensor:
        """Kept frames of all windows of a group as pixels (N, R, R, 3), 0..255."""
        audio = torch.stack([self.features.windows(self.timeline.fps, w.start, w.stop) for w in group])
        noise = self.noise.expand(len(group), -1, group[0].stop - group[0].start, -1, -1)
        with self.report.timed("sample"):
            latents = denoise_window(
                self.models.unet,
                noise,
                conditions,
                audio.to(conditions),
                steps=self.settings.steps,
                guidance=self.settings.guidance,
                solver=self.settings.solver,
                on_step=lambda done, steps, clean: self._report_step(len(group), clean),
            )
        kept = [frames[:, w.keep - w.start :] for frames, w in zip(latents, group, strict=True)]
        # window by window, as they are encoded: rounding then never depends on the group
        with self.report.timed("decode"):
            pixels = torch.cat([self.models.vae.decode(frames.transpose(0, 1).to(conditions)) for frames in kept])
            return ((pixels.float().clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).cpu()

    def _conditions(self, window: Window) -> Tensor:
        """(2C + 1, F, h, w): mask, masked and reference latents of a window."""
        sources = [self.timeline.source_index(i) for i in range(window.start, window.stop)]
        latents = torch.stack([self.latents[s] for s in sources], 1)
        return torch.cat((self.cells.expand(1, len(sources), *self.cells.shape), latents))

    def _report_step(self, number: int, clean: Tensor) -> None:
        self.done += number
        self.say(Progress("sample", self.done, self.total, clean))
