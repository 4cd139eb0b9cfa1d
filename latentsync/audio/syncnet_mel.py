"""The mel spectrogram of StableSyncNet."""

from fractions import Fraction

import torch
from torch import Tensor

from .mel import SAMPLE_RATE, mel_filters

# StableSyncNet's mel spectrogram: that of Wav2Lip (Prajwal et al. 2020).
PRE_EMPHASIS = 0.97
N_FFT = 800
HOP = 200
MIN_HZ, MAX_HZ = 55.0, 7600.0
FLOOR_DB, REFERENCE_DB, RANGE = -100.0, 20.0, 4.0

RATE = SAMPLE_RATE // HOP
"""Mel frames a second: 80."""


def sync_mel(waveform: Tensor) -> Tensor:
    """(T,) at 16 kHz to (80, 1 + T // 200), dB scaled to -4 … 4."""
    sound = torch.cat((waveform[:1], waveform[1:] - PRE_EMPHASIS * waveform[:-1]))
    window = torch.hann_window(N_FFT)
    spectrum = torch.stft(sound, N_FFT, HOP, window=window, pad_mode="constant", return_complex=True).abs()
    level = 20 * (mel_filters(N_FFT, MIN_HZ, MAX_HZ) @ spectrum).clamp(min=10 ** (FLOOR_DB / 20)).log10()
    return (2 * RANGE * (level - REFERENCE_DB - FLOOR_DB) / -FLOOR_DB - RANGE).clamp(-RANGE, RANGE)


def mel_span(frame: int, fps: Fraction, frames: int = 16) -> tuple[int, int]:
    """(start, stop) of the mel frames of video frames frame … frame + frames - 1: 52 for 16 at 25 fps."""
    length = -(-frames * RATE * fps.denominator // fps.numerator)
    start = frame * RATE * fps.denominator // fps.numerator
    return start, start + length
