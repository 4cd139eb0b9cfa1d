"""Training samples of the U-Net."""

from dataclasses import dataclass

import numpy as np
import torch

from ...dataset import ClipFile
from ...errors import UserError
from ...settings import WINDOW
from ..dataset import ClipStore, Sample
from .losses import sub_windows


def target_starts(first: int, stop: int, length: int = WINDOW) -> list[int]:
    """Starts of windows from first to stop that leave room for a reference window before stop."""
    return [s for s in range(first, stop - length + 1) if s >= length or s + 2 * length <= stop]


def draw_windows(random: np.random.Generator, first: int, stop: int, length: int = WINDOW) -> tuple[int, int]:
    """Starts of two windows without overlap: the target from first to stop, the reference anywhere before stop."""
    starts = target_starts(first, stop, length)
    if not starts:
        raise UserError(f"{stop - first} frames, from {first} on, are too few for two windows of {length}.")
    target = int(random.choice(starts))
    others = [*range(target - length + 1), *range(target + length, stop - length + 1)]
    return target, int(random.choice(others))


@dataclass(frozen=True)
class UNetWindows:
    """A window, a reference window of the same clip, and the audio of the first.

    pixels, reference: (16, 3, R, R) uint8. audio: (16, 50, D). mel: (K, 1, 80, T) of the sub_windows of so many frames,
    0 for none. latents: a kind of the cache; with it
    the images come as clean, masked, reference_latents (16, C, h, w) too, and pixels only if asked for. first_frame:
    the reference is one frame, 16 times.
    """

    store: ClipStore
    mel: int = 0
    pixels: bool = True
    latents: str | None = None
    frames: int = WINDOW
    first_frame: bool = False

    def __call__(self, clip: ClipFile, random: np.random.Generator) -> Sample:
        store = self.store
        target, reference = draw_windows(random, *clip.span(store.info(clip).frames), self.frames)
        sample: Sample = {"audio": store.audio(clip, target, self.frames)}
        key = "reference_latents" if self.latents else "reference"
        if self.latents:
            sample["clean"], sample["masked"] = store.latents(clip, target, self.frames, self.latents)
            sample[key] = store.latents(clip, reference, self.frames, self.latents)[0]
        else:
            sample[key] = store.pixels(clip, reference, self.frames)
        if self.first_frame:
            sample[key] = sample[key][:1].repeat(self.frames, 1, 1, 1)
        if self.pixels or not self.latents:
            sample["pixels"] = store.pixels(clip, target, self.frames)
        if self.mel:
            starts = sub_windows(self.frames, self.mel)
            sample["mel"] = torch.stack([store.mel(clip, target + start, self.mel) for start in starts])
        return sample
