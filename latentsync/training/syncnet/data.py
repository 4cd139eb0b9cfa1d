"""Mouths and sounds for the training of a SyncNet: small crops of every clip, mapped from the disk."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from ...audio.syncnet_mel import RATE, mel_span
from ...errors import UserError
from ...media.reader import VideoReader
from ...models.syncnet import SyncNetConfig
from ..dataset import FPS, ClipFile, ClipStore, Sample, margin_of

RING = 1 / 12
"""Of the width: stored around the mouth, so that augmentation may move and turn it."""
UNIT = 40
"""Places for a window: a stretch of a clip is drawn once an epoch for so many."""
TURN, SCALE, SHIFT = 5.0, 0.06, 0.04
"""Augmentation at strength 1: degrees, share, share of the width."""
LEVEL, TILT, MUTED = 0.6, 0.4, 10
"""And of the sound: on the mel's scale of -4 … 4 for all bands and for the outermost, and bands."""


class Encode(Protocol):
    """Pictures (N, 3, R, R) in [-1, 1] to VAE latents (N, C, h, w). mark: tells one VAE from another."""

    mark: str

    def __call__(self, pixels: Tensor) -> Tensor: ...


class CropStore(ClipStore):
    """Pictures as a SyncNet sees them, kept as .npy and read by mapping, and the mel of ClipStore.

    encode: for a network on latents, whose pictures are the whole crop's.
    """

    def __init__(self, cache: Path, config: SyncNetConfig, encode: Encode | None = None) -> None:
        super().__init__(cache, config.size[1])
        self.config, self.encode = config, encode
        self.ring = 0 if config.space == "latent" else max(1, round(RING * config.size[1]))
        if config.space == "latent" and encode is None:
            raise UserError("A SyncNet on latents is trained with the VAE whose latents it judges; name it by --vae.")

    def starts(self, clip: ClipFile) -> range:
        """Frames that a window may begin at: picture and sound lie within the clip's part. UserError: there is none."""
        info = self.info(clip)
        first, stop = clip.span(info.frames)
        columns = int(info.duration * RATE) + 1
        last = stop - self.config.frames
        while last >= first and mel_span(last, FPS, self.config.frames)[1] > columns:
            last -= 1
        if last < first:
            raise UserError(f"{clip.path} has {stop - first} frames to use; a window has {self.config.frames}.")
        return range(first, last + 1)

    def crops(self, clip: ClipFile) -> np.ndarray:
        """(F, h + 2 · ring, w + 2 · ring, 3) uint8, or latents (F, C, h, w) float16, of the whole clip."""
        height, width = self.config.size
        latents = self.encode is not None and self.config.space == "latent"
        kind = f"latents-{self.encode.mark}" if self.encode and latents else "mouths"
        path = self._place(clip, f"syncnet-{kind}-{height}x{width}").with_suffix(".npy")
        if not path.exists():
            self._write(path, self._latents(clip) if latents else self._mouths(clip))
        return np.load(path, mmap_mode="r")

    def opening(self, clip: ClipFile) -> np.ndarray | None:
        """(F,) float32 of mean 0 and spread 1 over the clip, where the clip comes with it."""
        return _opening(clip.path.with_suffix(".npz"))

    def has_openings(self, clips: Sequence[ClipFile]) -> bool:
        return bool(clips) and all(self.opening(clip) is not None for clip in clips)

    def _mouths(self, clip: ClipFile) -> np.ndarray:
        info, margin = self.info(clip), margin_of(clip.path)
        with VideoReader(info) as reader:
            return np.stack([mouth(f, margin, self.config.size, self.ring) for f in reader.read(range(info.frames))])

    def _latents(self, clip: ClipFile, block: int = 16) -> np.ndarray:
        assert self.encode is not None
        info, margin = self.info(clip), margin_of(clip.path)
        inner = slice(margin, -margin or None)
        with VideoReader(info) as reader:
            frames = np.stack([f[inner, inner] for f in reader.read(range(info.frames))])
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
        latents = torch.cat([self.encode(part / 127.5 - 1).half().cpu() for part in pixels.split(block)]).numpy()
        if latents.shape[2:] != self.config.size:
            raise UserError(
                f"{clip.path}: crops of {frames.shape[1]} pixels are latents of {latents.shape[2:]}, but the SyncNet"
                f" takes {self.config.size}; prepare the clips at another resolution."
            )
        return latents

    def _write(self, path: Path, array: np.ndarray) -> None:
        """Complete or not there; several processes may make the same file at once."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{uuid.uuid4().hex}.npy")
        try:
            np.save(part, array)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


@lru_cache(maxsize=4096)
def _opening(path: Path) -> np.ndarray | None:
    if not path.is_file():
        return None
    with np.load(path) as file:
        if "opening" not in file.files:
            return None
        values = file["opening"].astype(np.float32)
    return (values - values.mean()) / max(1e-4, float(values.std()))


def mouth(frame: np.ndarray, margin: int, size: tuple[int, int], ring: int) -> np.ndarray:
    """The lower rows of an aligned crop at a SyncNet's (height, width), with a ring around them that is taken from the
    margin as far as there is one: (h + 2 · ring, w + 2 · ring, 3).

    frame: (S, S, 3) uint8, S = crop + 2 · margin. Inside the ring is just what evaluation.lse shows to the network.
    """
    height, width = size
    side = len(frame) - 2 * margin
    crop = frame[margin : margin + side, margin : margin + side]
    inner = crop if side == width else cv2.resize(crop, (width, width), interpolation=cv2.INTER_AREA)
    reach = round(ring * side / width)
    spare = max(0, reach - margin)
    wide = cv2.copyMakeBorder(frame, spare, spare, spare, spare, cv2.BORDER_REPLICATE) if spare else frame
    cut = max(0, margin - reach)
    wide = wide[cut : len(wide) - cut, cut : len(wide) - cut]
    out = cv2.resize(wide, (width + 2 * ring, width + 2 * ring), interpolation=cv2.INTER_AREA)
    out[ring : ring + width, ring : ring + width] = inner
    return np.ascontiguousarray(out[width - height :])  # a ring above, for the rows that lie there are real


def held_out(
    clips: Sequence[ClipFile], share: float, people: Sequence[str] = (), at: float = 0.5
) -> tuple[list[ClipFile], list[ClipFile], list[ClipFile]]:
    """(to train on, held-out time, held-out people).

    at: where in each clip the share of held-out time lies, 0 at its beginning, 1 at its end. people: beginnings of the
    names of recordings. UserError: a name that no recording has; nothing is left.
    """
    names = {clip.path: Path(clip.source).name for clip in clips}
    for name in people:
        if not any(own.startswith(name) for own in names.values()):
            some = ", ".join(sorted(set(names.values()))[:5])
            raise UserError(f"No recording's name begins with {name!r}; there are {some} and so on.")
    others = [clip for clip in clips if names[clip.path].startswith(tuple(people))]
    known = [clip for clip in clips if clip not in others]
    if not known:
        raise UserError("All clips are of held-out people; hold out fewer.")
    if not share:
        return known, [], others
    low = at * (1 - share)
    parts = [part for part in ((0.0, low), (low + share, 1.0)) if part[1] - part[0] > 1e-6]
    train = [replace(clip, part=part) for clip in known for part in parts]
    return train, [replace(clip, part=(low, low + share)) for clip in known], others


def weighted(clips: Sequence[ClipFile], store: CropStore) -> list[ClipFile]:
    """Long clips several times, so that an epoch shows all of them about alike."""
    return [clip for clip in clips for _ in range(max(1, round(len(store.starts(clip)) / UNIT)))]


# ---- samples ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SyncWindows:
    """Windows of one clip: picture (K, frames · C, h, w) uint8 (float for latents), mel (K, 1, 80, T), start (K,) of
    the picture, together (K,) bool, opening (K, frames) where wanted. With K = 1 half of the samples are shifted."""

    store: CropStore
    windows: int = 1
    least: int = 1
    augment: float = 0.0
    flip: bool = False
    opening: bool = False

    def __call__(self, clip: ClipFile, random: np.random.Generator) -> Sample:
        store, starts = self.store, self.store.starts(clip)
        if self.windows > 1:
            seen = heard = self._several(random, starts)
        else:
            seen, heard = draw_pair(random, starts, self.least)
        mel = torch.stack([store.mel(clip, s, store.config.frames) for s in heard])
        sample: Sample = {
            "picture": self._pictures(store.crops(clip), seen, random),
            "mel": draw_hearing(random, mel, self.augment) if self.augment else mel,
            "start": torch.tensor(seen),
            "together": torch.tensor([a == b for a, b in zip(seen, heard, strict=True)]),
        }
        if self.opening:
            values = store.opening(clip)
            if values is None:
                raise UserError(f"{clip.path} comes without mouth openings.")
            sample["opening"] = torch.from_numpy(np.stack([values[s : s + store.config.frames] for s in seen]))
        return sample

    def _several(self, random: np.random.Generator, starts: range) -> list[int]:
        picked = random.choice(starts, self.windows, replace=len(starts) < self.windows)
        return [int(start) for start in picked]

    def _pictures(self, crops: np.ndarray, starts: Sequence[int], random: np.random.Generator) -> Tensor:
        frames = self.store.config.frames
        if crops.dtype != np.uint8:
            stacks = [torch.from_numpy(crops[s : s + frames].astype(np.float32)).flatten(0, 1) for s in starts]
            return torch.stack(stacks)
        change = draw_change(random, self.store.config.size, self.store.ring, self.augment, self.flip)
        needed = sorted({f for s in starts for f in range(s, s + frames)})
        done = {f: change(crops[f]) for f in needed}
        windows = [np.concatenate([done[f] for f in range(s, s + frames)], -1) for s in starts]
        return torch.from_numpy(np.stack(windows)).permute(0, 3, 1, 2).contiguous()


def draw_pair(random: np.random.Generator, starts: range, least: int) -> tuple[list[int], list[int]]:
    """One picture's start and its sound's: the same, or, half of the time, another one `least` frames away or more."""
    seen = int(random.choice(starts))
    if random.random() < 0.5:
        return [seen], [seen]
    others = [s for s in starts if abs(s - seen) >= least]
    if not others:
        raise UserError(f"{len(starts)} places for a window leave no room to shift by {least} frames.")
    return [seen], [int(random.choice(others))]


@dataclass(frozen=True)
class Change:
    """A small move and another light, the same for all frames of a sample. matrix (2, 3): stored crop to picture."""

    matrix: np.ndarray
    size: tuple[int, int]
    gain: np.ndarray
    offset: float
    gray: float

    def __call__(self, crop: np.ndarray) -> np.ndarray:
        """A stored crop to (h, w, 3) uint8."""
        height, width = self.size
        edge = cv2.BORDER_REPLICATE
        moved = cv2.warpAffine(crop, self.matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=edge)
        pixels = moved.astype(np.float32)
        pixels += self.gray * (pixels.mean(-1, keepdims=True) - pixels)
        return np.clip(pixels * self.gain + self.offset + 0.5, 0, 255).astype(np.uint8)


def draw_change(random: np.random.Generator, size: tuple[int, int], ring: int, strength: float, flip: bool) -> Change:
    """Strength 0: none but the mirroring."""
    height, width = size
    mirrored = flip and random.random() < 0.5
    angle = np.deg2rad(random.uniform(-TURN, TURN) * strength)
    scale = 1 + random.uniform(-SCALE, SCALE) * strength
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turn = np.diag([-1.0, 1.0]) @ turn if mirrored else turn
    middle = np.array([width - 1, height - 1]) / 2
    move = middle + random.uniform(-SHIFT, SHIFT, 2) * strength * width - turn @ (middle + ring)
    return Change(
        np.concatenate([turn, move[:, None]], 1),
        size,
        (1 + (random.uniform(-0.2, 0.2) + random.uniform(-0.06, 0.06, 3)) * strength).astype(np.float32),
        random.uniform(-25, 25) * strength,
        min(1.0, random.uniform(0, 0.5) * strength),
    )


def draw_hearing(random: np.random.Generator, mel: Tensor, strength: float) -> Tensor:
    """(K, 1, bands, T): louder or softer, another microphone, a few bands missing (Park et al. 2019)."""
    bands = mel.shape[2]
    tilt = np.linspace(-1, 1, bands) * random.uniform(-TILT, TILT)
    level = torch.from_numpy(strength * (random.uniform(-LEVEL, LEVEL) + tilt)).float()[:, None]
    mel = (mel + level).clamp(-4, 4)
    count = int(random.integers(0, round(MUTED * strength) + 1))
    first = int(random.integers(0, bands - count + 1))
    mel[:, :, first : first + count] = mel.mean()
    return mel
