"""Do the lips follow the sound? How far the inner lips are apart is held against how loud the speech is, lag by lag.

Of all bands, 1.5 to 4.5 kHz tells best how open a mouth is: parted lips let the upper formants out (Grant and Seitz
2000 found the same). Both curves are freed of what changes slower than syllables, or any two sentences would match.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from operator import length_hint
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..audio.load import Rate, check_speech, load_audio, loudness, to_mono_16k
from ..audio.mel import SAMPLE_RATE
from ..errors import UserError
from ..face.detect import FaceFinder, mouth_opening
from ..face.track import FaceTrack, choose, find_tracks
from ..media.image import is_image
from ..media.probe import probe
from ..media.reader import VideoReader
from ..settings import Settings
from ..timeline import exact_rate

FEWEST_SECONDS = 1.0
"""Face and sound together for at least so long; below it anything matches anything."""
FEWEST_FRAMES = 12
LAG_SECONDS = 0.6
"""Lags that are tried, either way: 15 frames at 25 frames a second."""
BAND = (1500.0, 4500.0)
"""Hertz."""
TAPS = 129
RANGE = 30.0
"""dB below the loud parts that count as silence: what is quieter is breath and room."""
FINE, COARSE = 0.03, 0.2
"""Widths (sigma, seconds) of the two low passes between which a curve speaks of syllables."""
SURE = 2.8
"""Standard deviations: unrelated curves come this far at any of the lags about one time in twenty."""

SHOWN = 50.0
"""dB of loudness that are worth showing."""
LONGEST = 20_000
"""Values of a curve that are handed to a browser or a JSON file."""

CountCallback = Callable[[int, int], None]
"""Called after every frame with how many are done, of how many (0: not known); what it raises ends the run."""


@dataclass(frozen=True)
class Score:
    """How well the lips follow the sound. Lags and offset are frames; positive: the sound comes after the picture.

    opening: (F,) distance of the inner lips over the face's height, NaN without a face. loudness: (F,) dB below full
    scale of the speech between 1.5 and 4.5 kHz, NaN past its end. present: (F,) bool, face found.
    lags, by_lag: correlation of the two curves with the sound read so many frames later. correlation: at lag 0.
    offset: the lag that fits best. confidence: by how much it stands out, peak minus median of by_lag, 0 to 2.
    chance: correlation that unrelated lips and sound reach at some lag about one time in twenty.

    confidence is made like SyncNet's LSE-C but from landmarks and loudness: its numbers (0.4 and more in step over
    ten seconds, 0.2 by accident) compare with each other on clips of like length, never with SyncNet's.
    """

    fps: float
    opening: np.ndarray
    loudness: np.ndarray
    present: np.ndarray
    lags: np.ndarray
    by_lag: np.ndarray
    correlation: float
    offset: int
    confidence: float
    chance: float

    @property
    def sure(self) -> bool:
        """Whether the match is more than an accident."""
        return bool(self.by_lag.max() > self.chance)

    def as_dict(self) -> dict[str, Any]:
        """As plain numbers for JSON; None where not known. loudness here is dB above silence, 0 to SHOWN.

        Clips of more than LONGEST frames give every step-th of both curves: step is how many frames one value is.
        """
        step = -(-len(self.opening) // LONGEST)
        heard = np.maximum(self.loudness - (np.nanmax(self.loudness) - SHOWN), 0)
        return {
            "fps": round(self.fps, 6),
            "frames": len(self.opening),
            "step": step,
            "offset": self.offset,
            "confidence": round(self.confidence, 4),
            "correlation": round(self.correlation, 4),
            "chance": round(self.chance, 4),
            "sure": self.sure,
            "opening": _plain(self.opening[::step]),
            "loudness": _plain(heard[::step]),
            "lags": self.lags.tolist(),
            "by_lag": _plain(self.by_lag),
        }


def score(
    frames: Iterable[np.ndarray],
    waveform: Tensor | np.ndarray,
    sample_rate: int,
    fps: Rate,
    finder: FaceFinder,
    *,
    face: str = Settings.face,
    on_step: CountCallback | None = None,
) -> Score:
    """Score frames (uint8 RGB, read once and not kept) against (T,) or (channels, T) sound in [-1, 1].

    face: as in Settings. UserError: no face, silent or broken sound, less than a second of both.
    """
    speech = checked_speech(waveform, sample_rate)
    rate, total = exact_rate(fps), length_hint(frames)

    def step(done: int) -> None:
        if on_step:
            on_step(done, total)

    return score_track(choose(find_tracks(_checked(frames), finder, on_step=step), face), speech, rate)


def score_file(
    video: str | Path,
    audio: str | Path | None,
    finder: FaceFinder,
    *,
    face: str = Settings.face,
    on_step: CountCallback | None = None,
) -> Score:
    """The same for a video file, streamed. audio None is its own sound; another begins with the first frame."""
    if is_image(video):
        raise UserError(f"{video} is a still picture, whose lips cannot follow a sound; give a video.")
    info = probe(video)
    if audio is None and not info.has_audio:
        raise UserError(f"{video} has no sound; give the speech as well.")
    own = audio is None or Path(audio).resolve() == Path(video).resolve()
    speech = load_audio(audio or video, info.start if own else None)
    with VideoReader(info) as reader:
        frames = _Counted(reader, info.frames)
        return score(frames, speech.waveform, speech.sample_rate, info.fps, finder, face=face, on_step=on_step)


class _Counted:
    """All frames of a video in turn, with their number known beforehand."""

    def __init__(self, reader: VideoReader, count: int) -> None:
        self.reader, self.count = reader, count

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.reader.read(range(self.count))

    def __length_hint__(self) -> int:
        return self.count


def score_track(track: FaceTrack, speech: Tensor, fps: Rate) -> Score:
    """Score a face that was followed already; speech (T,) at 16 kHz begins with its first frame."""
    opening = np.where(track.present, mouth_opening(track.landmarks), np.nan)
    return compare(opening, speech_level(speech, fps, track.frames), float(fps), track.segments)


def compare(opening: np.ndarray, level: np.ndarray, fps: float, segments: Iterable[tuple[int, int]]) -> Score:
    """Score two curves (F,), see Score; NaN is not known. segments: stretches of one shot with the face."""
    lips, sound = _lips(opening, segments, fps), _sound(level, fps)
    both = np.isfinite(lips) & np.isfinite(sound)
    needed = max(FEWEST_SECONDS, FEWEST_FRAMES / fps)
    if both.sum() < round(needed * fps):
        raise UserError(
            f"Face and sound are there together for {both.sum() / fps:.2g} s only; at least {needed:.2g} s are "
            "needed to tell whether lips and speech match, so give a longer clip."
        )
    reach = min(round(LAG_SECONDS * fps), int(both.sum()) // 3)
    lags = np.arange(-reach, reach + 1)
    by_lag = np.array([_correlation(*_shifted(lips, sound, int(lag))) for lag in lags])
    best = max(range(len(lags)), key=lambda i: (by_lag[i], -abs(lags[i])))
    return Score(
        fps=fps,
        opening=opening,
        loudness=level,
        present=np.isfinite(opening),
        lags=lags,
        by_lag=by_lag,
        correlation=float(by_lag[reach]),
        offset=int(lags[best]),
        confidence=float(by_lag[best] - np.median(by_lag)),
        chance=_chance(lips[both], sound[both], reach),
    )


def speech_level(speech: Tensor, fps: Rate, frames: int) -> np.ndarray:
    """(frames,) loudness in BAND during each frame, dB below full scale; NaN past the sound's end.

    From the frame's own time to the next one's: so 29 real recordings in step come out at 2 ms (median).
    """
    band = np.convolve(speech.numpy(), _band_pass(), "same")
    level = loudness(torch.from_numpy(band), fps, frames).double().numpy()
    level[int(np.ceil(len(speech) / SAMPLE_RATE * Fraction(fps))) :] = np.nan
    return level


@cache
def _band_pass() -> np.ndarray:
    """A windowed sinc: no delay, and nothing but convolution to know."""
    t = np.arange(TAPS) - TAPS // 2
    low, high = (2 * edge / SAMPLE_RATE * np.sinc(2 * edge / SAMPLE_RATE * t) for edge in BAND)
    return ((high - low) * np.hanning(TAPS)).astype(np.float32)


def _plain(values: np.ndarray) -> list[float | None]:
    """NaN is not JSON."""
    return [round(v, 4) if np.isfinite(v) else None for v in values.tolist()]


def _checked(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    for i, frame in enumerate(frames):
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
            raise UserError(f"Frame {i} is {frame.dtype} {frame.shape}; wanted is uint8 RGB, (height, width, 3).")
        yield frame


def checked_speech(waveform: Tensor | np.ndarray, sample_rate: int) -> Tensor:
    """(T,) at 16 kHz. UserError: silent or broken sound, or less than a second of it."""
    speech = to_mono_16k(waveform, sample_rate)
    if len(speech) < FEWEST_SECONDS * SAMPLE_RATE:
        raise UserError(
            f"The sound lasts {len(speech) / SAMPLE_RATE:.2g} s; at least {FEWEST_SECONDS:g} s are needed to tell "
            "whether lips and speech match, so give a longer clip."
        )
    if not speech.isfinite().all():
        raise UserError("The sound has samples that are not numbers (NaN or infinity); export it again.")
    check_speech(speech)
    return speech


def _lips(opening: np.ndarray, segments: Iterable[tuple[int, int]], fps: float) -> np.ndarray:
    """Each shot on its own: another distance or pose gives another opening, which is no syllable."""
    out = np.full(len(opening), np.nan)
    for start, stop in segments:
        out[start:stop] = _syllables(opening[start:stop], fps)
    return out


def _sound(level: np.ndarray, fps: float) -> np.ndarray:
    """A clip that is silent for the most part still has its loud parts found among what is not far below its peak."""
    out, heard = np.full(len(level), np.nan), np.isfinite(level)
    if heard.any():
        known = level[heard]
        loud = np.percentile(known[known > known.max() - 2 * RANGE], 95)
        out[heard] = _syllables(np.maximum(known, loud - RANGE), fps)
    return out


def _syllables(curve: np.ndarray, fps: float) -> np.ndarray:
    return _low_pass(curve, FINE * fps) - _low_pass(curve, COARSE * fps)


def _low_pass(curve: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian; at the ends the mean of what is there."""
    reach = int(np.ceil(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    padded, there = np.pad(curve, reach), np.pad(np.ones(len(curve)), reach)
    return np.convolve(padded, kernel, "valid") / np.convolve(there, kernel, "valid")


def _shifted(lips: np.ndarray, sound: np.ndarray, lag: int) -> tuple[np.ndarray, np.ndarray]:
    """Lips of every frame and the sound of lag frames later, where both are known."""
    length = len(lips)
    a, b = lips[max(0, -lag) : length - max(0, lag)], sound[max(0, lag) : length - max(0, -lag)]
    both = np.isfinite(a) & np.isfinite(b)
    return a[both], b[both]


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """0 where one does not move: lips that stay still follow nothing."""
    if len(a) < 2 or np.ptp(a) < 1e-9 or np.ptp(b) < 1e-9:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _chance(a: np.ndarray, b: np.ndarray, reach: int) -> float:
    """Bartlett (1935): curves whose neighbouring values are alike match by accident more often than noise does."""
    alike = [_correlation(a[k:], a[: len(a) - k]) * _correlation(b[k:], b[: len(b) - k]) for k in range(1, reach + 1)]
    return float(SURE * np.sqrt(max(1 + 2 * sum(alike), 0.1) / len(a)))
