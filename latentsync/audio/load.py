"""Any file with sound to 16 kHz mono, and checks of a waveform."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..timeline import exact_rate
from .mel import SAMPLE_RATE

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

    from ..media.audio_track import audio_origin, open_audio

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


def from_waveform(waveform: Tensor | np.ndarray, sample_rate: int) -> Audio:
    """Sound that is in memory, checked as load_audio does; see to_mono_16k."""
    mono = to_mono_16k(waveform, sample_rate)
    seconds = Fraction(np.shape(waveform)[-1]) / Fraction(sample_rate)
    _check(mono, seconds, "The sound")
    return Audio(mono, SAMPLE_RATE, seconds)


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
    """(frames,) RMS of the sound of each video frame in dB below full scale; FLOOR_DB where there is no sound."""
    rate = exact_rate(fps)
    edges = torch.tensor([_floor(i, sample_rate, rate) for i in range(frames + 1)]).clamp(max=len(waveform))
    energy = torch.cat([torch.zeros(1, dtype=torch.float64), waveform.double().square().cumsum(0)])[edges]
    power = energy.diff() / edges.diff().clamp(min=1)
    return (10 * power.clamp(min=1e-30).log10()).clamp(min=FLOOR_DB).float()


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
    from ..media.audio_track import _stated_duration, decoded

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
    got = torch.frombuffer(sound, dtype=torch.float32) if sound else torch.zeros(0)
    # the resampler's delay leaves a few samples too many or too few
    missing = math.ceil(seconds * SAMPLE_RATE) - len(got)
    return Audio(torch.nn.functional.pad(got, (0, missing)), SAMPLE_RATE, seconds)
