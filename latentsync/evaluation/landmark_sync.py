"""Lip sync without a network: correlation of mouth opening and speech loudness, lag by lag.

Loudness between 1.5 and 4.5 kHz follows the mouth opening best: parted lips let the upper formants out (Grant and Seitz
2000 found the same). Both curves are high-pass filtered at the rate of syllables, or any two sentences would match.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..audio.load import Rate, check_speech, loudness, to_mono_16k
from ..audio.mel import SAMPLE_RATE
from ..audio.pauses import pauses, rest_at
from ..errors import UserError
from ..face.detect import mouth_opening
from ..face.speaker import low_pass
from ..face.track import FaceTrack
from .mouth_motion import correlation

MIN_SECONDS = 1.0
"""Of face and sound together; with less, anything matches anything."""
MIN_FRAMES = 12
MAX_LAG_SECONDS = 0.6
"""Either way: 15 frames at 25 fps."""
BAND = (1500.0, 4500.0)
"""Hertz."""
TAPS = 129
DYNAMIC_RANGE = 30.0
"""dB below the loud parts at which loudness is clamped: quieter sounds are breath and room."""
FINE, COARSE = 0.03, 0.2
"""Widths (sigma, seconds) of the two low-pass filters whose difference keeps the rate of syllables."""
SIGNIFICANT = 2.8
"""Standard deviations that unrelated curves reach at any of the lags about one time in twenty."""

SHOWN_DB = 50.0
"""Range of loudness in charts and JSON."""
MAX_VALUES = 20_000
"""Values of a curve in JSON; longer ones are thinned."""


@dataclass(frozen=True)
class Score:
    """Sync by landmarks. Lags and offset are frames; positive: the audio comes after the video.

    opening: (F,) distance of the inner lips over the face's height, NaN without a face. loudness: (F,) of the speech
    between 1.5 and 4.5 kHz in dB of full scale, NaN past its end. present: (F,) bool, face found.
    lags, correlation_by_lag: correlation of the two curves with the audio read that many frames later.
    correlation: at lag 0. offset: the lag of the highest correlation. confidence: peak minus median of
    correlation_by_lag, 0 to 2. significance_threshold: correlation that unrelated lips and audio reach at some lag
    about one time in twenty. rest: (F,) 0 to 1, how much a mouth rests there in pauses of the speech; None: not known.

    confidence is defined like SyncNet's LSE-C, but its values (0.4 and more in sync over ten seconds, 0.2 by accident)
    compare only with each other, on clips of similar length.
    """

    fps: float
    opening: np.ndarray
    loudness: np.ndarray
    present: np.ndarray
    lags: np.ndarray
    correlation_by_lag: np.ndarray
    correlation: float
    offset: int
    confidence: float
    significance_threshold: float
    rest: np.ndarray | None = None

    @property
    def significant(self) -> bool:
        return bool(self.correlation_by_lag.max() > self.significance_threshold)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; None for NaN. loudness is dB above silence here, 0 to SHOWN_DB.

        step: frames per value of both curves, more than 1 in clips of more than MAX_VALUES frames.
        """
        step = -(-len(self.opening) // MAX_VALUES)
        loudness = np.maximum(self.loudness - (np.nanmax(self.loudness) - SHOWN_DB), 0)
        return {
            "fps": round(self.fps, 6),
            "frames": len(self.opening),
            "step": step,
            "offset": self.offset,
            "confidence": round(self.confidence, 4),
            "correlation": round(self.correlation, 4),
            "significance_threshold": round(self.significance_threshold, 4),
            "significant": self.significant,
            "opening": _plain(self.opening[::step]),
            "loudness": _plain(loudness[::step]),
            "lags": self.lags.tolist(),
            "correlation_by_lag": _plain(self.correlation_by_lag),
        }


def score_track(track: FaceTrack, speech: Tensor, fps: Rate) -> Score:
    """Score a tracked face; speech (T,) at 16 kHz begins with its first frame."""
    opening = np.where(track.present, mouth_opening(track.landmarks), np.nan)
    score = compare(opening, speech_level(speech, fps, track.frames), float(fps), track.segments)
    times = (np.arange(track.frames) + 0.5) / float(fps)
    return replace(score, rest=rest_at(times, pauses(speech), len(speech) / SAMPLE_RATE))


def compare(opening: np.ndarray, level: np.ndarray, fps: float, segments: Iterable[tuple[int, int]]) -> Score:
    """Score two curves (F,) of mouth opening and loudness; NaN is unknown. segments: frame ranges of one shot each."""
    lips, sound = np.full(len(opening), np.nan), _sound(level, fps)
    for start, stop in segments:  # each on its own: another distance or pose gives another opening
        lips[start:stop] = _syllables(opening[start:stop], fps)
    both = np.isfinite(lips) & np.isfinite(sound)
    needed = max(MIN_SECONDS, MIN_FRAMES / fps)
    if both.sum() < round(needed * fps):
        raise UserError(
            f"Face and sound are there together for {both.sum() / fps:.2g} s only; at least {needed:.2g} s are "
            "needed to tell whether lips and speech match, so give a longer clip."
        )
    max_lag = min(round(MAX_LAG_SECONDS * fps), int(both.sum()) // 3)
    lags = np.arange(-max_lag, max_lag + 1)
    correlations = np.array([correlation(*_shifted(lips, sound, int(lag))) or 0.0 for lag in lags])
    best = max(range(len(lags)), key=lambda i: (correlations[i], -abs(lags[i])))
    return Score(
        fps=fps,
        opening=opening,
        loudness=level,
        present=np.isfinite(opening),
        lags=lags,
        correlation_by_lag=correlations,
        correlation=float(correlations[max_lag]),
        offset=int(lags[best]),
        confidence=float(correlations[best] - np.median(correlations)),
        significance_threshold=_significance_threshold(lips[both], sound[both], max_lag),
    )


def speech_level(speech: Tensor, fps: Rate, frames: int) -> np.ndarray:
    """(frames,) loudness in BAND during each frame, dB of full scale; NaN past the audio's end.

    From the frame's own time to the next one's: 29 real recordings in sync then measure 2 ms (median).
    """
    band = np.convolve(speech.numpy(), _band_pass(), "same")
    level = loudness(torch.from_numpy(band), fps, frames).double().numpy()
    level[int(np.ceil(len(speech) / SAMPLE_RATE * Fraction(fps))) :] = np.nan
    return level


@cache
def _band_pass() -> np.ndarray:
    """A windowed sinc, which has no delay."""
    t = np.arange(TAPS) - TAPS // 2
    low, high = (2 * edge / SAMPLE_RATE * np.sinc(2 * edge / SAMPLE_RATE * t) for edge in BAND)
    return ((high - low) * np.hanning(TAPS)).astype(np.float32)


def _plain(values: np.ndarray) -> list[float | None]:
    return [round(v, 4) if np.isfinite(v) else None for v in values.tolist()]


def checked_speech(waveform: Tensor | np.ndarray, sample_rate: int) -> Tensor:
    """(T,) at 16 kHz. UserError: silent or broken sound, or less than a second of it."""
    speech = to_mono_16k(waveform, sample_rate)
    if len(speech) < MIN_SECONDS * SAMPLE_RATE:
        raise UserError(
            f"The audio lasts {len(speech) / SAMPLE_RATE:.2g} s; at least {MIN_SECONDS:g} s are needed to tell "
            "whether lips and speech match, so give a longer clip."
        )
    if not speech.isfinite().all():
        raise UserError("The audio has samples that are not numbers (NaN or infinity); export it again.")
    check_speech(speech)
    return speech


def _sound(level: np.ndarray, fps: float) -> np.ndarray:
    out, known = np.full(len(level), np.nan), np.isfinite(level)
    if known.any():
        levels = level[known]
        # the loud parts of what is near the peak: the clip may be silent for the most part
        loud = np.percentile(levels[levels > levels.max() - 2 * DYNAMIC_RANGE], 95)
        out[known] = _syllables(np.maximum(levels, loud - DYNAMIC_RANGE), fps)
    return out


def _syllables(curve: np.ndarray, fps: float) -> np.ndarray:
    return low_pass(curve, FINE * fps) - low_pass(curve, COARSE * fps)


def _shifted(lips: np.ndarray, sound: np.ndarray, lag: int) -> tuple[np.ndarray, np.ndarray]:
    """Lips of every frame and the audio of lag frames later, where both are known."""
    length = len(lips)
    a, b = lips[max(0, -lag) : length - max(0, lag)], sound[max(0, lag) : length - max(0, -lag)]
    both = np.isfinite(a) & np.isfinite(b)
    return a[both], b[both]


def _significance_threshold(a: np.ndarray, b: np.ndarray, max_lag: int) -> float:
    """After Bartlett (1935): autocorrelated curves match by accident more often than noise does."""
    products = [
        (correlation(a[k:], a[: len(a) - k]) or 0.0) * (correlation(b[k:], b[: len(b) - k]) or 0.0)
        for k in range(1, max_lag + 1)
    ]
    return float(SIGNIFICANT * np.sqrt(max(1 + 2 * sum(products), 0.1) / len(a)))
