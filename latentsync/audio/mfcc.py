"""MFCCs of the SyncNet of Chung & Zisserman: the defaults of python_speech_features.

The recipe is Davis and Mermelstein's (1980) with the constants of the HTK book (Young et al. 2006, chapter 5).
"""

import math
from functools import cache

import numpy as np
from torch import Tensor

from .mel import SAMPLE_RATE

PRE_EMPHASIS = 0.97
WINDOW, STEP, N_FFT = SAMPLE_RATE // 40, SAMPLE_RATE // 100, 512
"""Samples: 25 ms every 10 ms."""
FILTERS, CEPSTRA, LIFTER = 26, 13, 22
RATE = SAMPLE_RATE // STEP
"""Rows a second."""
INT16 = 32768
"""The network was trained on 16-bit samples; the first coefficient, the log energy, depends on the scale."""
_TINY = np.finfo(np.float64).eps
_BLOCK = 4096


def mfcc(waveform: Tensor | np.ndarray) -> np.ndarray:
    """(T,) in [-1, 1] at 16 kHz to (1 + ceil((T - 400) / 160), 13) float32, at least one row; the end is padded with
    zeros. Columns: log energy, then cepstra 1 to 12 of 26 mel bands from 0 to 8 kHz, liftered."""
    sound = np.clip(np.round(np.asarray(waveform, np.float64) * INT16), -INT16, INT16 - 1)
    sound = np.append(sound[:1], sound[1:] - PRE_EMPHASIS * sound[:-1])
    count = 1 + max(0, math.ceil((len(sound) - WINDOW) / STEP))
    sound = np.pad(sound, (0, max(0, (count - 1) * STEP + WINDOW - len(sound))))
    frames = np.lib.stride_tricks.sliding_window_view(sound, WINDOW)[::STEP][:count]
    # in blocks: the spectra of an hour would take gigabytes
    rows = [_cepstra(frames[i : i + _BLOCK]) for i in range(0, count, _BLOCK)]
    return np.concatenate(rows).astype(np.float32)


def _cepstra(frames: np.ndarray) -> np.ndarray:
    """(n, 400) samples, not windowed, to (n, 13)."""
    power = np.abs(np.fft.rfft(frames, N_FFT)) ** 2 / N_FFT
    bands = _nonzero(power @ _filters().T)
    out = np.log(bands) @ _cosines().T * (1 + LIFTER / 2 * np.sin(np.pi * np.arange(CEPSTRA) / LIFTER))
    out[:, 0] = np.log(_nonzero(power.sum(1)))
    return out


def _nonzero(power: np.ndarray) -> np.ndarray:
    """Avoids the logarithm of 0 in digital silence."""
    return np.where(power == 0, _TINY, power)


@cache
def _filters() -> np.ndarray:
    """(26, 257): triangles of height 1 whose corners are whole bins."""
    top = 2595 * math.log10(1 + SAMPLE_RATE / 2 / 700)
    hertz = 700 * (10 ** (np.linspace(0, top, FILTERS + 2) / 2595) - 1)
    corners = np.floor((N_FFT + 1) * hertz / SAMPLE_RATE)
    bins = np.arange(N_FFT // 2 + 1)
    first, peak, last = (corners[i : i + FILTERS, None] for i in range(3))
    rise, fall = (bins - first) / (peak - first), (last - bins) / (last - peak)
    return np.clip(np.minimum(rise, fall), 0, None)


@cache
def _cosines() -> np.ndarray:
    """(13, 26): the orthonormal DCT-II."""
    angles = np.pi * np.arange(CEPSTRA)[:, None] * (np.arange(FILTERS) + 0.5) / FILTERS
    scale = np.full((CEPSTRA, 1), math.sqrt(2 / FILTERS))
    scale[0] = math.sqrt(1 / FILTERS)
    return scale * np.cos(angles)
