"""Who speaks: whose mouth goes with a sound, or moves at all."""

from collections.abc import Iterable

import numpy as np

from .detect import CHIN, NASION, mouth_opening
from .track import FaceTrack

UPPER_EDGE, LOWER_EDGE = (50, 51, 52), (58, 57, 56)
"""Three pairs of points on the outer edges of the lips."""
RATE = 16000
"""Samples a second of all sound in here."""
BANDS = ((100, 500, -0.6), (500, 1500, 0.4), (1500, 3000, 1.0), (3000, 4500, 0.3))
"""Hertz from and to, and how an open mouth is heard in it: parted lips let the upper formants out, closed ones leave
the hum. Near to what fits ten people best, and to what tells
pairs of them apart: python -m benchmarks.speakers --fit."""
WINDOW = 768
"""Samples that are heard around the middle of a frame."""
RANGE = 30.0
"""dB below the loud parts at which levels are clamped: quieter sounds are breath and room."""
FINE, COARSE = 0.03, 0.12
"""Widths (sigma, seconds) of the two low-pass filters whose difference keeps the rate of syllables, 1.5 to 8 Hz:
what is slower goes with anything over a few seconds."""
LATE, SPREAD, LATEST = 0.03, 0.15, 0.3
"""Seconds by which sound comes after its picture, usually, give or take, and at most either way."""
MOVING, CHANCE = 0.003, 0.3
"""A mouth that moves so many face heights hardly speaks: over three seconds 17 speakers have 0.003 to 0.018, those who
smile, turn or lean on a hand up to 0.002. And what any mouth and sound match by accident: where no mouth follows the
sound, the one that moves wins. Chosen, with the lags and bands above, on pairs: python -m benchmarks.speakers."""
MIN_SECONDS = 1.0
"""With less of a face, anything matches anything."""


def openness(speech: np.ndarray, fps: float, frames: int) -> np.ndarray:
    """(frames,) how open a mouth must be by the sound of it, around 0; NaN past the end. speech: (T,) at RATE Hz from
    the first frame on."""
    known = min(frames, int(np.ceil(len(speech) / RATE * fps)))
    total = np.full(frames, np.nan)
    if not known:
        return total
    total[:known] = 0
    for level, (_, _, weight) in zip(_levels(speech, fps, known), BANDS, strict=True):
        rhythm = _syllables(_clamped(level), [(0, known)], fps)
        total[:known] += weight * rhythm / (rhythm.std() + 1e-6)
    return total


def _levels(speech: np.ndarray, fps: float, frames: int) -> np.ndarray:
    """(bands, frames) in dB, of the WINDOW around the middle of each frame."""
    padded = np.pad(speech.astype(np.float32), WINDOW)
    starts = ((np.arange(frames) + 0.5) / fps * RATE).astype(int) + WINDOW // 2
    around = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)
    edges = [slice(*(round(edge * WINDOW / RATE) for edge in band[:2])) for band in BANDS]
    power = np.zeros((len(BANDS), frames))
    for some in np.array_split(np.arange(frames), max(1, frames // 1000)):  # spectra of an hour do not fit
        spectrum = np.abs(np.fft.rfft(around[starts[some].clip(max=len(around) - 1)] * np.hanning(WINDOW))) ** 2
        power[:, some] = [spectrum[:, edge].sum(1) for edge in edges]
    return 10 * np.log10(power + 1e-9)


def _clamped(level: np.ndarray) -> np.ndarray:
    # the loud parts of what is near the peak: the clip may be silent for the most part
    return np.maximum(level, np.percentile(level[level >= level.max() - 2 * RANGE], 95) - RANGE)


def _syllables(curve: np.ndarray, segments: Iterable[tuple[int, int]], fps: float) -> np.ndarray:
    """A curve (F,) without what is slower or faster than speech, each segment on its own; NaN outside of them."""
    out = np.full(len(curve), np.nan)
    for a, b in segments:
        out[a:b] = low_pass(curve[a:b], FINE * fps) - low_pass(curve[a:b], COARSE * fps)
    return out


def low_pass(curve: np.ndarray, sigma: float) -> np.ndarray:
    """A curve (F,) under a Gaussian, normalized at the ends. sigma: frames."""
    reach = int(np.ceil(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    padded, weights = np.pad(curve, reach), np.pad(np.ones(len(curve)), reach)
    return np.convolve(padded, kernel, "valid") / np.convolve(weights, kernel, "valid")


def speaking(track: FaceTrack, fps: float, sound: np.ndarray | None = None) -> float:
    """How likely it is the one who speaks, to compare with others of the clip; 0 for who is seen too briefly to tell.

    sound: from `openness`. Without: how much the mouth moves, the time when it is not seen counted as rest.
    """
    seconds = float(track.present.sum()) / fps
    if seconds < MIN_SECONDS:
        return 0.0
    lips = _syllables(_opening(track.landmarks), track.segments, fps)
    moves = _motion(lips, track.segments, fps)
    if sound is None:
        return moves * float(track.present.mean())
    return (_following(lips, sound, fps) + CHANCE) * moves / (moves + MOVING)


def _opening(points68: np.ndarray) -> np.ndarray:
    """(F, 68, 2) -> (F,): how far the lips are apart, in face heights, by their inner and their outer edges."""
    outer = np.linalg.norm(points68[:, UPPER_EDGE] - points68[:, LOWER_EDGE], axis=-1).mean(1)
    return (mouth_opening(points68) + outer / np.linalg.norm(points68[:, NASION] - points68[:, CHIN], axis=-1)) / 2


def _motion(lips: np.ndarray, segments: Iterable[tuple[int, int]], fps: float) -> float:
    """How much a mouth moves while it is seen: medians over a second, which a smile or a yawn does not lift."""
    parts = [part for a, b in segments for part in np.array_split(np.abs(lips[a:b]), max(1, round((b - a) / fps)))]
    return float(np.average([np.median(part) for part in parts], weights=[len(part) for part in parts]))


def _following(lips: np.ndarray, sound: np.ndarray, fps: float) -> float:
    """The highest correlation at a likely lag, times the root of the seconds that it holds over: by accident 0.3, and
    0.7 one time in twenty. NaN in either is unknown."""
    best, most = 0.0, round(LATEST * fps)
    for lag in range(-most, most + 1):
        a, b = lips[max(0, -lag) : len(lips) - max(0, lag)], sound[max(0, lag) : len(sound) - max(0, -lag)]
        both = np.isfinite(a) & np.isfinite(b)
        if both.sum() < MIN_SECONDS * fps / 2:
            continue
        a, b = a[both] - a[both].mean(), b[both] - b[both].mean()
        alike = float(a @ b) / (float(np.linalg.norm(a)) * float(np.linalg.norm(b)) + 1e-9)
        likely = np.exp(-0.5 * ((lag / fps - LATE) / SPREAD) ** 2)
        best = max(best, alike * float(likely) * np.sqrt(both.sum() / fps))
    return float(best)
