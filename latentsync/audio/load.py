"""Any file with sound to 16 kHz mono, and checks of a waveform."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
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
CANCELLED = 0.25
"""Of the energy that channels with nothing in common have when mixed; a channel turned over has less from 45% on."""
SETTLING = Fraction(1, 10)
"""Seconds behind the end of a part for the resampler, so that the part ends as in the whole."""
TO_MONO = ":rematrix_maxval=1:filter_size=64:cutoff=0.97"
"""For the filter aresample. rematrix_maxval: a mix of floats is scaled on request only; else stereo gains 3 dB."""

Rate = Fraction | float | int


@dataclass(frozen=True)
class Audio:
    """waveform (T,) float32 at sample_rate, seconds its exact length. Unpacks to waveform, sample_rate.

    steady: the file keeps its rate and its channels.
    """

    waveform: Tensor
    sample_rate: int
    seconds: Fraction
    steady: bool = True

    def __iter__(self) -> Iterator[Any]:
        return iter((self.waveform, self.sample_rate))


def load_audio(
    path: str | os.PathLike[str],
    start: Fraction | None = None,
    duration: Fraction | None = None,
    number: int | None = None,
) -> Audio:
    """Decode any file with sound to mono at 16 kHz; channels are mixed so that the level stays below full scale.

    Samples lie where their time stamps say; where the channels cancel each other, the strongest one is taken alone.
    start: time on the file's own clock (seconds) at which the waveform begins, as in AudioTrack (VideoInfo.start keeps
    a video's own sound in step); None is the first sample. A sound track that begins later is led by silence.
    duration: seconds from there on at most. number: of the sound track, from 0; None is the one to be heard.
    Raises UserError for a missing or unreadable file, no audio stream, no or too little sound, NaN or infinity.
    """
    from ..media.sound import Sound

    with Sound(path, number) as sound:
        audio, only = _heard(sound, start, duration)
    if only is not None:
        with Sound(path, number) as sound:
            audio, _ = _heard(sound, start, duration, only)
    _check(audio.waveform, audio.seconds, str(path))
    return audio


def from_waveform(waveform: Tensor | np.ndarray, sample_rate: int) -> Audio:
    """Sound that is in memory, checked as load_audio does; see to_mono_16k."""
    mono = to_mono_16k(waveform, sample_rate)
    seconds = Fraction(np.shape(waveform)[-1]) / Fraction(sample_rate)
    _check(mono, seconds, "The audio")
    return Audio(mono, SAMPLE_RATE, seconds)


def to_mono_16k(waveform: Tensor | np.ndarray, sample_rate: int) -> Tensor:
    """(T,) or (C, T), any rate, to (T',) float32 at 16 kHz; channels are averaged."""
    sound = torch.as_tensor(waveform).detach().cpu()
    if not sound.is_floating_point():
        raise UserError(f"The audio has {sound.dtype} samples; floats between -1 and 1 are needed.")
    if sound.ndim not in (1, 2) or sample_rate <= 0:
        shape = tuple(sound.shape)
        raise UserError(f"The audio is {shape} at {sample_rate} Hz; (samples,) or (channels, samples) is needed.")
    sound = sound.float() if sound.ndim == 1 else _mixed(sound.float())
    if sample_rate == SAMPLE_RATE or not len(sound):
        return sound.contiguous()
    import soxr

    return torch.from_numpy(soxr.resample(sound.numpy(), sample_rate, SAMPLE_RATE))


def _mixed(channels: Tensor) -> Tensor:
    levels = _Levels()
    levels.add(channels.numpy().T)
    alone = levels.alone()
    return channels.mean(0) if alone is None else channels[alone]


def is_silent(waveform: Tensor) -> bool:
    """Whether nothing in it is louder than SILENT_DB."""
    peak = float(waveform.abs().max()) if waveform.numel() else 0.0
    return 20 * math.log10(max(peak, 1e-10)) < SILENT_DB


def check_speech(waveform: Tensor, name: str = "The audio") -> None:
    """UserError when the whole clip is silent. Separate from loading: some callers want silence."""
    if is_silent(waveform):
        raise UserError(f"{name} is silent from start to end; give a recording of speech.")


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
        raise UserError(f"{name} lasts {float(seconds):g} s; at least {float(MIN_SECONDS):g} s of audio is needed.")
    if not sound.isfinite().all():
        raise UserError(f"{name} has samples that are not numbers (NaN or infinity); export it again.")


def _heard(
    sound: Any, start: Fraction | None, duration: Fraction | None, only: int | None = None
) -> tuple[Audio, int | None]:
    """The sound of a file, mixed or of one channel alone, and which channel to take alone where the mix cancels."""
    from ..media.samples import resampled

    begin = end = sound.origin if start is None else Fraction(start)
    levels, kinds = _Levels(), set()

    def pieces() -> Iterator[Any]:
        nonlocal end
        for piece in sound.pieces(begin):
            if duration is not None and piece.time >= begin + duration + SETTLING:
                return
            end = piece.end
            kinds.add(piece.kind)
            levels.add(piece.floats())
            yield piece if only is None else piece.channel(only)

    blocks = [block[:, 0] for block in resampled(pieces(), SAMPLE_RATE, "mono", "flt", TO_MONO)]
    if not kinds and start is None:
        raise UserError(f"{sound.path} has an audio stream without sound in it; give a recording of speech.")
    seconds = end - begin if duration is None else min(end - begin, Fraction(duration))
    heard = np.concatenate([np.zeros(0, np.float32), *blocks])[: math.ceil(seconds * SAMPLE_RATE)]
    lacking = math.ceil(seconds * SAMPLE_RATE) - len(heard)
    waveform = torch.from_numpy(np.pad(heard, (0, lacking)))
    return Audio(waveform, SAMPLE_RATE, seconds, len(kinds) == 1), levels.alone()


class _Levels:
    """How strong the channels are and how strong their mix is."""

    def __init__(self) -> None:
        self.channels, self.mix = np.zeros(1), 0.0

    def add(self, samples: np.ndarray) -> None:
        """(samples, channels) -1 … 1; where their number changes, what was before no longer counts."""
        if len(self.channels) != samples.shape[1]:
            self.channels, self.mix = np.zeros(samples.shape[1]), 0.0
        self.channels = self.channels + np.einsum("tc,tc->c", samples, samples, dtype=np.float64)
        mixed = samples.mean(1, dtype=np.float64)
        self.mix += float(mixed @ mixed)

    def alone(self) -> int | None:
        """The strongest channel, where the mix is far weaker than channels with nothing in common would make it: one
        is the other turned over, by a cable or an effect."""
        unlike = self.channels.sum() / len(self.channels) ** 2
        return int(self.channels.argmax()) if self.mix < CANCELLED * unlike else None
