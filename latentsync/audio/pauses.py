"""Pauses in speech, and how strongly a mouth rests in them."""

from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from ..timeline import Timeline
from .mel import SAMPLE_RATE

HOP = SAMPLE_RATE // 100
SHORTEST = 0.3
"""Seconds: shorter ones are stops within words, in which lips must not wait."""
CLICK = 0.06  # a sound of at most so many seconds within a pause does not end it
TAIL = CLICK + 0.01  # nor does one after the last pause; longer sounds there are a last word
BELOW_SPEECH, ABOVE_NOISE, LEAST_BELOW = 38.0, 10.0, 15.0
"""Decibels: a pause is so far under the loud parts of the speech, or within so much of the background's noise, where
that is at least this much under the speech."""
AFTER, RELEASE, ATTACK, BEFORE = 0.06, 0.3, 0.32, 0.12
"""Seconds: lips still move so long after the sound, then come to rest; they open so long, and are ready before it."""


def pauses(waveform: Tensor) -> list[tuple[float, float]]:
    """Start and end in seconds of every pause. waveform: (T,) at 16 kHz."""
    steps = len(waveform) // HOP
    if not steps:
        return []
    power = waveform[: steps * HOP].reshape(steps, HOP).double().square().mean(1)
    level = (10 * power.clamp_min(1e-12).log10()).numpy()
    speech, noise = np.percentile(level, 99), np.percentile(level, 10)
    limit = speech - BELOW_SPEECH
    if noise + ABOVE_NOISE <= speech - LEAST_BELOW:  # or what is most quiet is soft speech, not the background
        limit = max(limit, noise + ABOVE_NOISE)
    found: list[tuple[int, int]] = []
    for start, stop in _runs(level < limit):
        if found and start - found[-1][1] <= CLICK * 100:
            start = found.pop()[0]
        found.append((start, stop))
    return [(a / 100, b / 100) for a, b in found if b - a >= SHORTEST * 100]


def spoken(waveform: Tensor) -> list[tuple[Fraction, Fraction | None]]:
    """Start and end in seconds of all between the pauses, with the time that lips need before and after."""
    end, edges = len(waveform) / SAMPLE_RATE, [0.0]
    for start, stop in pauses(waveform):
        rest = start + AFTER + RELEASE if start > 0 else 0.0, stop - BEFORE - ATTACK if stop < end - TAIL else end
        edges += rest if rest[0] < rest[1] else ()
    edges.append(end)
    spoken_parts = ((a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b > a)
    return [(Fraction(a).limit_denominator(1000), Fraction(b).limit_denominator(1000)) for a, b in spoken_parts]


def _runs(flags: np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(flags.astype(np.int8), prepend=0, append=0)).tolist()
    return [*zip(edges[::2], edges[1::2], strict=True)]


def rest_at(times: np.ndarray, found: list[tuple[float, float]], end: float) -> np.ndarray:
    """How much a mouth rests at these times in seconds, 0 to 1, float32. end: of the sound; what lies behind is rest.

    A pause at the beginning or the end has no ramp there: nothing was said before and nothing will be.
    """
    rest = np.zeros(len(times))
    last = found[-1][0] if found and found[-1][1] > end - TAIL else end
    for start, stop in [*(pause for pause in found if pause[0] != last), (last, np.inf)]:
        fall = np.inf if start <= 0 else (times - start - AFTER) / RELEASE
        rise = (stop - BEFORE - times) / ATTACK
        rest = np.maximum(rest, np.minimum(fall, rise).clip(0, 1))
    return (rest * rest * (3 - 2 * rest)).astype(np.float32)


def rest_weights(waveform: Tensor, timeline: Timeline) -> np.ndarray:
    """(F,) float32: how much the mouth rests in each output frame. waveform: (T,) at 16 kHz."""
    times = (np.arange(timeline.frames) + 0.5) / float(timeline.fps)
    return rest_at(times, pauses(waveform), len(waveform) / SAMPLE_RATE)


def hush(waveform: Tensor) -> Tensor:
    """The speech with true silence in its pauses: breath, hum and music there move no lips. (T,) at 16 kHz."""
    times = np.arange(len(waveform)) / SAMPLE_RATE
    return waveform * torch.from_numpy(1 - rest_at(times, pauses(waveform), len(waveform) / SAMPLE_RATE)).to(waveform)
