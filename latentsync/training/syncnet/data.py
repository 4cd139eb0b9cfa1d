"""Training samples of SyncNets: small crops of every clip, memory-mapped from the cache."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from ...audio.syncnet_mel import RATE, mel_span
from ...dataset import FPS, ClipFile
from ...errors import UserError
from ...files import atomic_path
from ...media.reader import VideoReader
from ...models.syncnet import SyncNetConfig
from ...weights.vae_files import load_vae
from ..dataset import ClipStore, Sample, fingerprint, to_signed

BORDER = 1 / 12
"""Of the width: stored around the crop, so that augmentation may move and turn it."""
WINDOWS_PER_EPOCH = 40
"""A clip is drawn once per epoch for this many windows."""
MAX_ANGLE, MAX_SCALE, MAX_SHIFT = 5.0, 0.06, 0.04
"""Augmentation of images at strength 1: degrees, share, share of the width."""
MAX_LEVEL, MAX_TILT, MAX_MASKED = 0.6, 0.4, 10
"""Augmentation of audio: on the mel's scale of -4 to 4 for all bands and for the outermost ones, and bands."""


class VaeEncoder:
    """Images (N, 3, R, R) in [-1, 1] to VAE latents (N, C, h, w). key: identifies the VAE in the cache."""

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        self.vae, self.device = load_vae(name, device=device), device
        self.key = fingerprint(self.vae.state_dict())

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        return self.vae.encode(pixels.to(self.device))


class CropStore(ClipStore):
    """The images that a SyncNet sees, as memory-mapped .npy files, and the mel of ClipStore.

    encode: for a network on latents, which sees the whole crop.
    """

    def __init__(
        self, cache: Path, config: SyncNetConfig, encode: VaeEncoder | None = None, *, upsample: bool = True
    ) -> None:
        super().__init__(cache, config.size[1], upsample=upsample)
        self.config, self.encode = config, encode
        self.border = 0 if config.space == "latent" else max(1, round(BORDER * config.size[1]))
        if config.space == "latent" and encode is None:
            raise UserError("A SyncNet on latents needs the VAE of these latents; give it with --vae.")

    def starts(self, clip: ClipFile) -> range:
        """First frames of windows whose images and audio lie within the clip's part. UserError: there is none."""
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
        """(F, h + 2 · border, w + 2 · border, 3) uint8, or latents (F, C, h, w) float16, of the whole clip."""
        height, width = self.config.size
        if self.config.space == "pixel":
            self.check_side(clip)
        encode = self.encode if self.config.space == "latent" else None
        kind = f"latents-{encode.key}" if encode else "mouths"
        path = self.cache_path(clip, f"syncnet-{kind}-{height}x{width}").with_suffix(".npy")
        if not path.exists():
            array = self._make(clip, encode)
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as part, part.open("wb") as file:
                np.save(file, array)
        return np.load(path, mmap_mode="r")

    def opening(self, clip: ClipFile) -> np.ndarray | None:
        """(F,) float32, the mouth opening of each frame, standardized; None without a file beside the clip."""
        return _opening(clip.file(".npz"))

    def _make(self, clip: ClipFile, encode: VaeEncoder | None) -> np.ndarray:
        info, size = self.video(clip), self.config.size
        with VideoReader(info) as reader:
            images = reader.read(range(info.frames))
            if encode is None:
                return np.stack([mouth(image, clip.margin, size, self.border) for image in images])
            frames = np.stack([clip.crop(image) for image in images])
        parts = torch.from_numpy(frames).permute(0, 3, 1, 2).split(16)
        latents = torch.cat([encode(to_signed(part)).half().cpu() for part in parts]).numpy()
        if latents.shape[2:] != self.config.size:
            raise UserError(
                f"{clip.path}: crops of {frames.shape[1]} pixels are latents of {latents.shape[2:]}, but the SyncNet"
                f" takes {self.config.size}; prepare the clips at another resolution."
            )
        return latents


@lru_cache(maxsize=4096)
def _opening(path: Path) -> np.ndarray | None:
    if not path.is_file():
        return None
    with np.load(path) as file:
        if "opening" not in file.files:
            return None
        values = file["opening"].astype(np.float32)
    return (values - values.mean()) / max(1e-4, float(values.std()))


def mouth(frame: np.ndarray, margin: int, size: tuple[int, int], border: int) -> np.ndarray:
    """The lower rows of an aligned crop at a SyncNet's (height, width), with a border around them that is taken from
    the margin as far as it reaches: (h + 2 · border, w + 2 · border, 3).

    frame: (S, S, 3) uint8, S = crop + 2 · margin. Inside the border it equals the input of evaluation.syncnet_sync.
    """
    height, width = size
    side = len(frame) - 2 * margin
    crop = frame[margin : margin + side, margin : margin + side]
    inner = crop if side == width else cv2.resize(crop, (width, width), interpolation=cv2.INTER_AREA)
    reach = round(border * side / width)
    missing = max(0, reach - margin)
    wide = cv2.copyMakeBorder(frame, missing, missing, missing, missing, cv2.BORDER_REPLICATE) if missing else frame
    excess = max(0, margin - reach)
    wide = wide[excess : len(wide) - excess, excess : len(wide) - excess]
    out = cv2.resize(wide, (width + 2 * border, width + 2 * border), interpolation=cv2.INTER_AREA)
    out[border : border + width, border : border + width] = inner
    return np.ascontiguousarray(out[width - height :])


def repeat_long_clips(clips: Sequence[ClipFile], store: CropStore) -> list[ClipFile]:
    """Long clips several times, so that an epoch draws all windows about equally often."""
    return [clip for clip in clips for _ in range(max(1, round(len(store.starts(clip)) / WINDOWS_PER_EPOCH)))]


@dataclass(frozen=True)
class SyncNetWindows:
    """Windows of one clip: images (K, frames · C, h, w) uint8 (float for latents), mel (K, 1, 80, T), start (K,) of
    the images, in_sync (K,) bool, and with opening: opening (K, frames). With K = 1 half of the samples are shifted."""

    store: CropStore
    windows: int = 1
    min_shift: int = 1
    augment: float = 0.0
    flip: bool = False
    opening: bool = False

    def __call__(self, clip: ClipFile, random: np.random.Generator) -> Sample:
        store, starts = self.store, self.store.starts(clip)
        frames = store.config.frames
        if self.windows > 1:
            drawn = random.choice(starts, self.windows, replace=len(starts) < self.windows)
            visual = audio = [int(start) for start in drawn]
        else:
            visual, audio = draw_pair(random, starts, self.min_shift)
        mel = torch.stack([store.mel(clip, s, frames) for s in audio])
        sample: Sample = {
            "images": self._images(store.crops(clip), visual, random),
            "mel": augment_mel(random, mel, self.augment) if self.augment else mel,
            "start": torch.tensor(visual),
            "in_sync": torch.tensor([a == b for a, b in zip(visual, audio, strict=True)]),
        }
        if self.opening:
            values = store.opening(clip)
            if values is None:
                raise UserError(f"{clip.path} has no mouth openings (.npz).")
            sample["opening"] = torch.from_numpy(np.stack([values[s : s + frames] for s in visual]))
        return sample

    def _images(self, crops: np.ndarray, starts: Sequence[int], random: np.random.Generator) -> Tensor:
        frames = self.store.config.frames
        if crops.dtype != np.uint8:
            stacks = [torch.from_numpy(crops[s : s + frames].astype(np.float32)).flatten(0, 1) for s in starts]
            return torch.stack(stacks)
        augment = draw_augmentation(random, self.store.config.size, self.store.border, self.augment, self.flip)
        augmented = {f: augment(crops[f]) for f in sorted({f for s in starts for f in range(s, s + frames)})}
        windows = [np.concatenate([augmented[f] for f in range(s, s + frames)], -1) for s in starts]
        return torch.from_numpy(np.stack(windows)).permute(0, 3, 1, 2).contiguous()


def draw_pair(random: np.random.Generator, starts: range, min_shift: int) -> tuple[list[int], list[int]]:
    """Starts of images and audio: the same, or, half of the time, min_shift frames apart or more."""
    visual = int(random.choice(starts))
    if random.random() < 0.5:
        return [visual], [visual]
    others = [s for s in starts if abs(s - visual) >= min_shift]
    if not others:
        raise UserError(f"{len(starts)} windows leave no room to shift by {min_shift} frames.")
    return [visual], [int(random.choice(others))]


def draw_augmentation(
    random: np.random.Generator, size: tuple[int, int], border: int, strength: float, flip: bool
) -> Callable[[np.ndarray], np.ndarray]:
    """A small move and another light, for all frames of a sample: stored crops to (h, w, 3) uint8."""
    height, width = size
    mirrored = flip and random.random() < 0.5
    angle = np.deg2rad(random.uniform(-MAX_ANGLE, MAX_ANGLE) * strength)
    scale = 1 + random.uniform(-MAX_SCALE, MAX_SCALE) * strength
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turn = np.diag([-1.0, 1.0]) @ turn if mirrored else turn
    middle = np.array([width - 1, height - 1]) / 2
    move = middle + random.uniform(-MAX_SHIFT, MAX_SHIFT, 2) * strength * width - turn @ (middle + border)
    matrix = np.concatenate([turn, move[:, None]], 1)
    gain = (1 + (random.uniform(-0.2, 0.2) + random.uniform(-0.06, 0.06, 3)) * strength).astype(np.float32)
    offset = random.uniform(-25, 25) * strength
    gray = min(1.0, random.uniform(0, 0.5) * strength)

    def augment(crop: np.ndarray) -> np.ndarray:
        moved = cv2.warpAffine(crop, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        pixels = moved.astype(np.float32)
        pixels += gray * (pixels.mean(-1, keepdims=True) - pixels)
        return np.clip(pixels * gain + offset + 0.5, 0, 255).astype(np.uint8)

    return augment


def augment_mel(random: np.random.Generator, mel: Tensor, strength: float) -> Tensor:
    """(K, 1, bands, T) with another level and tilt, and a few bands masked (Park et al. 2019)."""
    bands = mel.shape[2]
    tilt = np.linspace(-1, 1, bands) * random.uniform(-MAX_TILT, MAX_TILT)
    level = torch.from_numpy(strength * (random.uniform(-MAX_LEVEL, MAX_LEVEL) + tilt)).float()[:, None]
    mel = (mel + level).clamp(-4, 4)
    count = int(random.integers(0, round(MAX_MASKED * strength) + 1))
    first = int(random.integers(0, bands - count + 1))
    mel[:, :, first : first + count] = mel.mean()
    return mel
