"""Sound in: any file to 16 kHz mono, its log-mel, Whisper's features, and the window of them that each frame hears."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .errors import UserError

if TYPE_CHECKING:
    from .models.whisper import WhisperEncoder

# Whisper's log-mel (Radford et al. 2022, section 2.2).
SAMPLE_RATE = 16_000
N_FFT = 400
HOP = 160
MELS = 80
MEL_RATE = SAMPLE_RATE // HOP
"""Mel frames per second."""
BLOCK_MELS = 3000
"""Mel frames that the encoder sees at once: 30 s."""

FEATURE_RATE = MEL_RATE // 2
"""Feature rows per second: the encoder's second convolution has stride 2."""
BLOCK_ROWS = BLOCK_MELS // 2
EDGE_ROWS = FEATURE_RATE
"""Rows at a block's inner ends that are not used: the encoder's states are off there (measured: for 10 rows)."""
FADE_ROWS = 4 * FEATURE_RATE
OVERLAP_ROWS = FADE_ROWS + 2 * EDGE_ROWS
"""Two neighbouring Whisper blocks share these rows: edge, cross-fade, edge."""

ROWS_BEFORE = 4
WINDOW_ROWS = 10
"""A frame hears rows c - 4 … c + 5 around its own row c: 0.2 s."""

MIN_SECONDS = Fraction(3, 20)
"""Shorter sound holds no syllable."""
SILENT_DB = -60.0
"""Peak, relative to full scale, under which a whole clip counts as silent."""
FLOOR_DB = -100.0

Rate = Fraction | float | int


@dataclass(frozen=True)
class Audio:
    """waveform (T,) float32 at sample_rate, seconds its exact length. Unpacks to waveform, sample_rate."""

    waveform: Tensor
    sample_rate: int
    seconds: Fraction

    def __iter__(self) -> Iterator[Any]:
        return iter((self.waveform, self.sample_rate))


def load_audio(path: str | os.PathLike[str], start: Fraction | None = None, duration: Fraction | None = None) -> Audio:
    """Decode any file with sound to mono at 16 kHz; channels are mixed so that the level stays below full scale.

    start: time on the file's own clock (seconds) at which the waveform begins, as in AudioTrack (VideoInfo.start keeps
    a video's own sound in step); None is the first sample. A sound track that begins later is led by silence.
    duration: seconds from there on at most.
    Raises UserError for a missing or unreadable file, no audio stream, no or too little sound, NaN or infinity.
    """
    from av.error import FFmpegError

    from .soundtrack import audio_origin, open_audio

    with open_audio(Path(path)) as container:
        try:
            audio = _decode(container)
        except FFmpegError as error:
            raise UserError(f"The sound of {path} cannot be mixed to mono ({error}); convert it to stereo.") from error
        late = Fraction(0) if start is None else audio_origin(container.streams.audio[0]) - Fraction(start)
    if not audio.seconds:
        raise UserError(f"{path} has an audio stream without sound in it; give a recording of speech.")
    moved = torch.nn.functional.pad(audio.waveform, (max(round(late * SAMPLE_RATE), -len(audio.waveform)), 0))
    left = max(audio.seconds + late, Fraction(0))
    if duration is not None and duration < left:
        moved, left = moved[: math.ceil(duration * SAMPLE_RATE)], duration
    audio = Audio(moved, SAMPLE_RATE, left)
    _check(audio.waveform, audio.seconds, str(path))
    return audio


def to_mono_16k(waveform: Tensor | np.ndarray, sample_rate: int) -> Tensor:
    """(T,) or (C, T), any rate, to (T',) float32 at 16 kHz; channels are averaged."""
    sound = torch.as_tensor(waveform).detach().cpu()
    if not sound.is_floating_point():
        raise UserError(f"The sound has {sound.dtype} samples; floats between -1 and 1 are needed.")
    if sound.ndim not in (1, 2) or sample_rate <= 0:
        shape = tuple(sound.shape)
        raise UserError(f"The sound is {shape} at {sample_rate} Hz; (samples,) or (channels, samples) is needed.")
    sound = sound.float() if sound.ndim == 1 else sound.float().mean(0)
    if sample_rate == SAMPLE_RATE or not len(sound):
        return sound.contiguous()
    import soxr

    return torch.from_numpy(soxr.resample(sound.numpy(), sample_rate, SAMPLE_RATE))


def is_silent(waveform: Tensor) -> bool:
    """Whether nothing in it is louder than SILENT_DB."""
    peak = float(waveform.abs().max()) if waveform.numel() else 0.0
    return 20 * math.log10(max(peak, 1e-10)) < SILENT_DB


def check_speech(waveform: Tensor, name: str = "The sound") -> None:
    """UserError when the whole clip is silent. Separate from loading: some callers want silence."""
    if is_silent(waveform):
        raise UserError(f"{name} is silent from end to end; give a recording of speech.")


def loudness(waveform: Tensor, fps: Rate, frames: int, sample_rate: int = SAMPLE_RATE) -> Tensor:
    """(frames,) RMS of each video frame's stretch in dB below full scale; FLOOR_DB where there is no sound."""
    rate = _rational(fps)
    edges = torch.tensor([_floor(i, sample_rate, rate) for i in range(frames + 1)]).clamp(max=len(waveform))
    energy = torch.cat([torch.zeros(1, dtype=torch.float64), waveform.double().square().cumsum(0)])[edges]
    power = energy.diff() / edges.diff().clamp(min=1)
    return (10 * power.clamp(min=1e-30).log10()).clamp(min=FLOOR_DB).float()


def encode_audio(waveform: Tensor, sample_rate: int, whisper: "WhisperEncoder", *, exact: bool = False) -> Tensor:
    """(T,) sound to (T50, layers + 1, D) float32 features at 50 rows a second, T50 = mel frames // 2.

    exact=True cuts at every 30 s as the public code does (features jump there); otherwise blocks overlap and are
    cross-faded. Up to 30 s both are the same. Raises UserError for too short sound, NaN or infinity.
    """
    features = SpeechFeatures(waveform, sample_rate, whisper, exact=exact)
    return features.rows(0, features.length)


def window_rows(fps: Rate, start: int, stop: int, length: int) -> Tensor:
    """(stop - start, 10) rows that frames start … stop hear: c - 4 … c + 5, c = int(i · 50 / fps), within the clip."""
    rate = _rational(fps)
    centres = torch.tensor([_floor(i, FEATURE_RATE, rate) for i in range(start, stop)], dtype=torch.long)
    return (centres[:, None] + torch.arange(-ROWS_BEFORE, WINDOW_ROWS - ROWS_BEFORE)).clamp(0, length - 1)


def audio_windows(features: Tensor, fps: Rate, frames: int) -> Tensor:
    """(T50, L, D) features to the (frames, 10 · L, D) tokens of each frame at fps frames a second."""
    return features[window_rows(fps, 0, frames, len(features))].flatten(1, 2)


class SpeechFeatures:
    """The features of a clip of any length, encoded 30 s at a time as they are asked for; at most two blocks are held.

    Asked in ascending order, every block is encoded once. The rows are exactly encode_audio's.
    """

    def __init__(self, waveform: Tensor, sample_rate: int, whisper: "WhisperEncoder", *, exact: bool = False) -> None:
        self.waveform = to_mono_16k(waveform, sample_rate)
        _check(self.waveform, Fraction(len(self.waveform), SAMPLE_RATE), "The sound")
        self.whisper = whisper
        self.mel_frames = len(self.waveform) // HOP
        self.length = self.mel_frames // 2
        self.overlap = 0 if exact else OVERLAP_ROWS
        self.stride = BLOCK_ROWS - self.overlap
        self.blocks = max(1, math.ceil((self.length - self.overlap) / self.stride))
        self._peak = self._loudest()
        self._held: dict[int, Tensor] = {}

    def windows(self, fps: Rate, start: int, stop: int) -> Tensor:
        """(stop - start, 10 · L, D): what frames start … stop hear, as audio_windows gives it."""
        rows = window_rows(fps, start, stop, self.length)
        first, last = int(rows[0, 0]), int(rows[-1, -1])
        return self.rows(first, last + 1)[rows - first].flatten(1, 2)

    def rows(self, start: int, stop: int) -> Tensor:
        """(stop - start, L, D) float32 on the CPU."""
        out = torch.zeros(stop - start, self.whisper.layers + 1, self.whisper.dim)
        for k in range(self.blocks):
            offset = k * self.stride
            low, high = max(start, offset), min(stop, offset + BLOCK_ROWS)
            if low < high:
                out[low - start : high - start] += self._block(k)[low - offset : high - offset]
        return out

    def _block(self, k: int) -> Tensor:
        """Block k, already weighted for the cross-fade."""
        if k not in self._held:
            while len(self._held) > 1:
                del self._held[next(iter(self._held))]
            self._held[k] = self._encode(k)
        return self._held[k]

    @torch.no_grad()
    def _encode(self, k: int) -> Tensor:
        first = 2 * k * self.stride
        mel = self._log_mel(first, min(first + BLOCK_MELS, self.mel_frames))
        mel = (mel.clamp(min=self._peak - 8) + 4) / 4
        # Zeros of the normalised mel, not of the sound: the public code's padding, which the networks were trained on.
        mel = torch.nn.functional.pad(mel, (0, BLOCK_MELS - mel.shape[1]))
        states = self.whisper(mel[None].to(self.whisper.device, self.whisper.dtype))
        return states[0].float().cpu() * self._fade(k)[:, None, None]

    def _fade(self, k: int) -> Tensor:
        """(1500,) weights; those of two neighbours add to 1."""
        weights = torch.ones(BLOCK_ROWS)
        if not self.overlap:
            return weights
        ramp = torch.linspace(0, 1, FADE_ROWS + 2)[1:-1]
        rise = torch.cat([torch.zeros(EDGE_ROWS), ramp, torch.ones(EDGE_ROWS)])
        if k > 0:
            weights[:OVERLAP_ROWS] = rise
        if k < self.blocks - 1:
            weights[-OVERLAP_ROWS:] = 1 - rise
        return weights

    def _loudest(self) -> float:
        """Maximum of the log-mel over the whole clip: Whisper's clamp hangs on it."""
        starts = range(0, self.mel_frames, BLOCK_MELS)
        return max(float(self._log_mel(i, min(i + BLOCK_MELS, self.mel_frames)).max()) for i in starts)

    def _log_mel(self, start: int, stop: int) -> Tensor:
        """(80, stop - start) log10 mel power of those mel frames, before Whisper's clamp and scaling."""
        low, high = start * HOP - N_FFT // 2, (stop - 1) * HOP + N_FFT // 2
        piece = _reflected(self.waveform, low, high)
        spectrum = torch.stft(piece, N_FFT, HOP, window=torch.hann_window(N_FFT), center=False, return_complex=True)
        return (mel_filters() @ spectrum.abs().square()).clamp(min=1e-10).log10()


@cache
def mel_filters(n_fft: int = N_FFT, low: float = 0.0, high: float = SAMPLE_RATE / 2) -> Tensor:
    """(80, n_fft / 2 + 1) triangles of equal area between two frequencies in Hz, on Slaney's mel scale (Auditory
    Toolbox, 1998), for sound at 16 kHz."""
    edges = _mel_to_hertz(torch.linspace(_hertz_to_mel(low), _hertz_to_mel(high), MELS + 2, dtype=torch.float64))
    bins = torch.linspace(0, SAMPLE_RATE / 2, n_fft // 2 + 1, dtype=torch.float64)
    first, peak, last = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = torch.minimum((bins - first) / (peak - first), (last - bins) / (last - peak)).clamp(min=0)
    return (triangles * 2 / (last - first)).float()


# Slaney's scale: 3 mels per 200 Hz up to 1 kHz, above that 27 mels for each factor of 6.4.
_LINEAR = 3 / 200
_CORNER = 1000.0
_STEP = math.log(6.4) / 27


def _hertz_to_mel(hertz: float) -> float:
    return hertz * _LINEAR if hertz < _CORNER else _CORNER * _LINEAR + math.log(hertz / _CORNER) / _STEP


def _mel_to_hertz(mels: Tensor) -> Tensor:
    corner = _CORNER * _LINEAR
    return torch.where(mels < corner, mels / _LINEAR, _CORNER * ((mels - corner) * _STEP).exp())


def _reflected(sound: Tensor, low: int, high: int) -> Tensor:
    """sound[low:high], mirrored at both ends without repeating the end sample."""
    left, right = max(0, -low), max(0, high - len(sound))
    before, after = sound[1 : left + 1].flip(0), sound[len(sound) - 1 - right : len(sound) - 1].flip(0)
    return torch.cat([before, sound[max(0, low) : high], after])


def _rational(fps: Rate) -> Fraction:
    """A float is taken as the decimal that was written: 29.97 is 2997/100."""
    if not math.isfinite(fps) or fps <= 0:
        raise UserError(f"The frame rate is {fps}; it must be a number above 0.")
    return Fraction(str(fps)) if isinstance(fps, float) else Fraction(fps)


def _floor(frame: int, rate: int, fps: Fraction) -> int:
    """The row or sample, of rate a second, at which a video frame begins."""
    return frame * rate * fps.denominator // fps.numerator


def _check(sound: Tensor, seconds: Fraction, name: str) -> None:
    if seconds < MIN_SECONDS:
        raise UserError(f"{name} lasts {float(seconds):g} s; at least {float(MIN_SECONDS):g} s of sound is needed.")
    if not sound.isfinite().all():
        raise UserError(f"{name} has samples that are not numbers (NaN or infinity); export it again.")


class _Resampler:
    """Frames of one kind to mono 16 kHz bytes of float32."""

    def __init__(self, frame: Any) -> None:
        from av.filter import Graph

        self.kind = _kind(frame)
        self.graph = Graph()
        source = self.graph.add_abuffer(
            sample_rate=frame.sample_rate,
            format=frame.format.name,
            layout=frame.layout.name,
            time_base=Fraction(1, frame.sample_rate),
        )
        # rematrix_maxval: libswresample scales a float downmix only on request; without it stereo gains 3 dB.
        change = self.graph.add(
            "aresample", f"{SAMPLE_RATE}:osf=flt:ochl=mono:rematrix_maxval=1:filter_size=64:cutoff=0.97"
        )
        sink = self.graph.add("abuffersink")
        source.link_to(change)
        change.link_to(sink)
        self.graph.configure()

    def push(self, frame: Any | None) -> bytes:
        self.graph.push(frame)
        out = b""
        while True:
            try:
                out += self.graph.pull().to_ndarray().tobytes()
            except (BlockingIOError, EOFError):
                return out


def _kind(frame: Any) -> tuple[int, str, str]:
    return frame.sample_rate, frame.format.name, frame.layout.name


def _decode(container: Any) -> Audio:
    from .soundtrack import _stated_duration, decoded

    stream = container.streams.audio[0]
    sound, seconds = bytearray(), Fraction(0)
    resampler: _Resampler | None = None
    for frame in decoded(container, stream):
        # Chained streams may change their rate or channels midway.
        if resampler is None or resampler.kind != _kind(frame):
            sound += resampler.push(None) if resampler else b""
            resampler = _Resampler(frame)
        seconds += Fraction(frame.samples, frame.sample_rate)
        frame.pts = None
        sound += resampler.push(frame)
    sound += resampler.push(None) if resampler else b""
    stated = _stated_duration(container, stream)
    seconds = seconds if stated is None else min(seconds, stated)
    return Audio(_exactly(sound, math.ceil(seconds * SAMPLE_RATE)), SAMPLE_RATE, seconds)


def _exactly(sound: bytearray, samples: int) -> Tensor:
    """The resampler's delay leaves a few samples too many or too few."""
    got = torch.frombuffer(sound, dtype=torch.float32) if sound else torch.zeros(0)
    return torch.nn.functional.pad(got, (0, samples - len(got)))
