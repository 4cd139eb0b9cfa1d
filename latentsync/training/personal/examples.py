"""Training examples of one person: a moment, and another moment with the head held alike as its reference."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ...settings import WINDOW
from ..dataset import Sample
from .footage import Clip

RIGID = slice(17, 48)
"""Landmarks that speech does not move: brows, nose, eyes."""
APART = 3
"""Frames, at least, between a moment and its reference: the mouth has moved by then."""
CHOICES = 24
"""References to choose from: so many moments in which the head is held most alike."""
HELD = 0.15
"""Share of each clip, at its end, that is not trained on."""

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]
"""(N, 3, R, R) uint8 to the latents (N, C, h, w) of the crops and of the masked crops."""


@dataclass(frozen=True)
class Examples:
    """N moments of one person, in one row. crops: (N, R, R, 3) uint8. clean, masked: (N, C, h, w) float16. audio:
    (N, 50, D) float16. runs: half-open runs of moments that follow each other without a gap. held_out: such runs that
    are not trained on. references: (N, CHOICES), for those that are."""

    crops: np.ndarray
    landmarks: np.ndarray
    clean: Tensor
    masked: Tensor
    audio: Tensor
    runs: tuple[tuple[int, int], ...]
    held_out: tuple[tuple[int, int], ...]
    references: np.ndarray

    @property
    def trained(self) -> Tensor:
        """(M,) the moments that are trained on."""
        return torch.cat([torch.arange(*run) for run in self.runs])

    def pixels(self, moments: np.ndarray) -> Tensor:
        """(…, 3, R, R) uint8."""
        return torch.from_numpy(self.crops[moments]).movedim(-1, -3)

    def window(self, random: np.random.Generator, frames: int, *, scattered: bool, own: float) -> Sample:
        """Moments that follow each other; or, half of the time where scattered is allowed, any. own: share of them that
        are their own reference."""
        long = [run for run in self.runs if run[1] - run[0] >= frames]
        if scattered and (not long or random.random() < 0.5):
            trained = self.trained.numpy()
            moments = random.choice(trained, frames, replace=len(trained) < frames)
        else:
            places = np.array([stop - start - frames + 1 for start, stop in long])
            start, stop = long[int(random.choice(len(long), p=places / places.sum()))]
            moments = np.arange(frames) + int(random.integers(start, stop - frames + 1))
        references = random.permuted(self.references[moments], axis=1)[:, 0]
        references = np.where(random.random(frames) < own, moments, references)
        return {
            "moments": torch.from_numpy(moments),
            "clean": self.clean[moments].float(),
            "masked": self.masked[moments].float(),
            "reference": self.clean[references].float(),
            "audio": self.audio[moments].float(),
        }


def make_examples(
    clips: Sequence[Clip], encode: Encode, on_frame: Callable[[int], None] = lambda done: None
) -> Examples:
    """Encode all moments, hold out the end of each clip, and look for references."""
    crops = np.concatenate([clip.crops for clip in clips])
    landmarks = np.concatenate([clip.landmarks for clip in clips])
    runs, held_out, first = [], [], 0
    for clip in clips:
        cut = int(len(clip.numbers) * (1 - HELD))
        for start, stop in unbroken(clip.numbers):
            parts = (runs, start, min(stop, cut)), (held_out, max(start, cut), stop)
            for into, a, b in parts:
                if a < b:
                    into.append((first + a, first + b))
        first += len(clip.numbers)
    pairs = []
    for start in range(0, len(crops), WINDOW):
        pairs.append(encode(torch.from_numpy(crops[start : start + WINDOW]).movedim(-1, -3)))
        on_frame(min(start + WINDOW, len(crops)))
    clean, masked = (torch.cat(side).half() for side in zip(*pairs, strict=True))
    owners = np.repeat(np.arange(len(clips)), [len(clip.numbers) for clip in clips])
    numbers = np.concatenate([clip.numbers for clip in clips])
    trained = np.zeros(len(crops), bool)
    for start, stop in runs:
        trained[start:stop] = True
    references = alike(landmarks[:, RIGID] / crops.shape[1], owners, numbers, trained)
    audio = torch.cat([clip.audio for clip in clips])
    return Examples(crops, landmarks, clean, masked, audio, tuple(runs), tuple(held_out), references)


def unbroken(numbers: np.ndarray) -> list[tuple[int, int]]:
    """Half-open runs of positions whose frame numbers follow each other."""
    edges = [0, *(np.flatnonzero(np.diff(numbers) != 1) + 1).tolist(), len(numbers)]
    return [(a, b) for a, b in pairwise(edges) if a < b]


def alike(rigid: np.ndarray, owners: np.ndarray, numbers: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """(N, CHOICES) moments with the head held most like in each, of those that are trained on and at least APART frames
    away. rigid: (N, P, 2) landmarks as shares of the crop."""
    flat, out = rigid.reshape(len(rigid), -1).astype(np.float32), []
    for i in range(len(flat)):
        distance = np.square(flat - flat[i]).sum(1)
        near = (owners == owners[i]) & (np.abs(numbers - numbers[i]) < APART)
        distance[near | ~trained] = np.inf
        best = np.argsort(distance, kind="stable")[:CHOICES]
        best = best[np.isfinite(distance[best])]
        out.append(np.resize(best, CHOICES) if len(best) else np.full(CHOICES, i))
    return np.stack(out)
