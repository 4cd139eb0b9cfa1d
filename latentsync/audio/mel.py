"""Whisper's log-mel spectrogram (Radford et al. 2022, section 2.2)."""

import math
from functools import cache

import torch
from torch import Tensor

SAMPLE_RATE = 16_000
N_FFT = 400
HOP = 160
MELS = 80
MEL_RATE = SAMPLE_RATE // HOP
"""Mel frames per second."""


@cache
def mel_filters(n_fft: int = N_FFT, low: float = 0.0, high: float = SAMPLE_RATE / 2) -> Tensor:
    """(80, n_fft / 2 + 1) triangles of equal area between two frequencies in Hz, on Slaney's mel scale (Auditory
    Toolbox, 1998), for sound at 16 kHz. transformers has them too, but takes a second to import."""
    ends = torch.linspace(_mel(low), _mel(high), MELS + 2, dtype=torch.float64)
    # 1000 Hz are 15 mel; below the scale is linear, above every 27 mel are a factor of 6.4
    hertz = torch.where(ends < 15, ends * 200 / 3, 1000 * torch.exp((ends - 15) * math.log(6.4) / 27))
    bins = torch.linspace(0, SAMPLE_RATE / 2, n_fft // 2 + 1, dtype=torch.float64)
    rising = (bins - hertz[:-2, None]) / hertz.diff()[:-1, None]
    falling = (hertz[2:, None] - bins) / hertz.diff()[1:, None]
    return (torch.minimum(rising, falling).clamp(min=0) * 2 / (hertz[2:] - hertz[:-2])[:, None]).float()


def _mel(hertz: float) -> float:
    return hertz * 3 / 200 if hertz < 1000 else 15 + math.log(hertz / 1000) * 27 / math.log(6.4)


def log_mel(waveform: Tensor, start: int, stop: int) -> Tensor:
    """(80, stop - start) log10 mel power of those mel frames of 16 kHz sound, before Whisper's clamp and scaling."""
    segment = _reflected(waveform, start * HOP - N_FFT // 2, (stop - 1) * HOP + N_FFT // 2)
    spectrum = torch.stft(segment, N_FFT, HOP, window=torch.hann_window(N_FFT), center=False, return_complex=True)
    return (mel_filters() @ spectrum.abs().square()).clamp(min=1e-10).log10()


def _reflected(waveform: Tensor, low: int, high: int) -> Tensor:
    """waveform[low:high], mirrored at both ends without repeating the end sample."""
    left, right = max(0, -low), max(0, high - len(waveform))
    before = waveform[1 : left + 1].flip(0)
    after = waveform[len(waveform) - 1 - right : len(waveform) - 1].flip(0)
    return torch.cat([before, waveform[max(0, low) : high], after])
