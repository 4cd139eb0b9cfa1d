"""Whisper features of a clip of any length, and the window of them that conditions each video frame."""

import math
from fractions import Fraction
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..timeline import exact_rate
from .load import Rate, _check, _floor, to_mono_16k
from .mel import HOP, MEL_RATE, SAMPLE_RATE, log_mel

if TYPE_CHECKING:
    from ..models.whisper import WhisperEncoder


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


def encode_audio(waveform: Tensor, sample_rate: int, whisper: "WhisperEncoder", *, exact: bool = False) -> Tensor:
    """(T,) sound to (T50, layers + 1, D) float32 features at 50 rows a second, T50 = mel frames // 2.

    exact=True cuts at every 30 s as the public code does (features jump there); otherwise blocks overlap and are
    cross-faded. Up to 30 s both are the same. Raises UserError for too short sound, NaN or infinity.
    """
    features = SpeechFeatures(waveform, sample_rate, whisper, exact=exact)
    return features.rows(0, features.length)


def window_rows(fps: Rate, start: int, stop: int, length: int) -> Tensor:
    """(stop - start, 10) rows that frames start … stop hear: c - 4 … c + 5, c = int(i · 50 / fps), within the clip."""
    rate = exact_rate(fps)
    centers = torch.tensor([_floor(i, FEATURE_RATE, rate) for i in range(start, stop)], dtype=torch.long)
    return (centers[:, None] + torch.arange(-ROWS_BEFORE, WINDOW_ROWS - ROWS_BEFORE)).clamp(0, length - 1)


def audio_windows(features: Tensor, fps: Rate, frames: int) -> Tensor:
    """(T50, L, D) features to the (frames, 10 · L, D) tokens of each frame at fps frames a second."""
    return features[window_rows(fps, 0, frames, len(features))].flatten(1, 2)


class SpeechFeatures:
    """The features of a clip of any length, encoded 30 s at a time as they are asked for; at most two blocks are held.

    Asked in ascending order, every block is encoded once. The rows are exactly encode_audio's.
    """

    def __init__(self, waveform: Tensor, sample_rate: int, whisper: "WhisperEncoder", *, exact: bool = False) -> None:
        self.waveform = to_mono_16k(waveform, sample_rate)
        _check(self.waveform, Fraction(len(self.waveform), SAMPLE_RATE), "The audio")
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
        mel = log_mel(self.waveform, first, min(first + BLOCK_MELS, self.mel_frames))
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
        return max(float(log_mel(self.waveform, i, min(i + BLOCK_MELS, self.mel_frames)).max()) for i in starts)
