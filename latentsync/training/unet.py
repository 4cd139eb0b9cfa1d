"""Train a small U-Net on latents that were computed once, for several augmentations of every clip.

It predicts the clean latents (x0, "sample"): with few parameters and little time that gives mouths where predicting
the noise gives blotches. The loss counts the repainted cells, most of all those around the lips, and their change
from frame to frame.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..face.align import latent_mask, mouth_mask
from ..models.unet import UNet, UNetConfig
from ..sampling import alpha_bars
from ..settings import WINDOW
from .data import Clip, plain, random_augmentation
from .loop import Log, MovingAverage, learning_rate, save_checkpoint, set_rate
from .vae import clip_chances

Encode = Callable[[Tensor], Tensor]
"""Pixels (N, 3, R, R) in [-1, 1] to scaled latents (N, C, h, w)."""


@dataclass(frozen=True)
class UNetTraining:
    """shared: chance that one noise frame serves the whole window, as it does when sampling."""

    resolution: int = 160
    widths: tuple[int, ...] = (64, 96, 160)
    cross: tuple[bool, ...] = (False, True, True)
    layers: int = 1
    latent_channels: int = 8
    norm_groups: int = 8
    steps: int = 3000
    batch: int = 3
    rate: float = 5e-4
    variants: int = 5
    drop_audio: float = 0.1
    shared: float = 0.6
    still_reference: float = 0.25
    keep_weight: float = 0.05
    lips_weight: float = 3.0
    motion_weight: float = 1.0
    seed: int = 1247
    report_every: int = 50

    @property
    def config(self) -> UNetConfig:
        return UNetConfig(self.widths, self.layers, self.cross, 384, self.latent_channels, "none", self.norm_groups)


@dataclass(frozen=True)
class LatentClip:
    """One clip under one augmentation: clean and masked latents (F, C, h, w) float16, audio (F, 50, D) float16."""

    name: str
    clean: Tensor
    masked: Tensor
    audio: Tensor


@torch.no_grad()
def encode_clip(clip: Clip, encode: Encode, settings: UNetTraining, random: np.random.Generator | None) -> LatentClip:
    """Latents of the training part of a clip; random None = no augmentation."""
    size = settings.resolution
    augment = random_augmentation(random, size) if random else plain(size)
    pixels = augment(clip.crops[: clip.train_frames], size)
    keep = torch.from_numpy(mouth_mask(size))
    clean, masked = (torch.cat([encode(part) for part in p.split(32)]).half() for p in (pixels, pixels * keep))
    return LatentClip(clip.name, clean, masked, torch.from_numpy(clip.audio[: clip.train_frames]))


def encode_clips(
    clips: Sequence[Clip], encode: Encode, settings: UNetTraining, on_variant: Callable[[int], None] | None = None
) -> list[list[LatentClip]]:
    """[variant][clip]; the first variant is the unchanged clip."""
    random = np.random.default_rng(settings.seed)
    variants = []
    for i in range(settings.variants):
        variants.append([encode_clip(clip, encode, settings, random if i else None) for clip in clips])
        if on_variant:
            on_variant(i)
    return variants


def cell_weights(settings: UNetTraining) -> Tensor:
    """(h, w) loss weight of each latent cell: kept cells little, repainted cells 1, the lips' surroundings more."""
    keep = torch.from_numpy(latent_mask(settings.resolution, 8))
    weights = torch.where(keep > 0.5, settings.keep_weight, 1.0)
    h, w = weights.shape
    # the lips lie at about 62-88 % of the crop's height and in the middle half of its width
    weights[round(0.6 * h) : round(0.88 * h), round(0.25 * w) : round(0.75 * w)] *= settings.lips_weight
    return weights / weights.mean()


class UNetTrainer:
    """Holds the network and takes steps. Deterministic for a seed on one machine."""

    def __init__(self, variants: Sequence[Sequence[LatentClip]], clips: Sequence[Clip], settings: UNetTraining) -> None:
        torch.manual_seed(settings.seed)
        self.settings, self.variants = settings, variants
        self.random = np.random.default_rng(settings.seed)
        self.chances = clip_chances(clips)
        self.unet = UNet(settings.config)
        self.average = MovingAverage(self.unet, decay=0.999)
        self.optimizer = torch.optim.AdamW(
            self.unet.parameters(), lr=settings.rate, betas=(0.9, 0.98), weight_decay=0.01
        )
        self.weights = cell_weights(settings)
        self.mask = torch.from_numpy(latent_mask(settings.resolution, 8))
        self.alpha_bars = alpha_bars()
        self.step = 0

    def window(self) -> dict[str, Tensor]:
        """One training window; the reference frames never overlap the target's."""
        clips = self.variants[int(self.random.integers(len(self.variants)))]
        clip = clips[int(self.random.choice(len(clips), p=self.chances))]
        last = len(clip.clean) - WINDOW
        start = int(self.random.integers(last + 1))
        others = [i for i in range(last + 1) if abs(i - start) >= WINDOW] or [start]
        other = others[int(self.random.integers(len(others)))]
        reference = clip.clean[other : other + WINDOW]
        if self.random.random() < self.settings.still_reference:
            reference = reference[:1].expand_as(reference)
        span = slice(start, start + WINDOW)
        audio = clip.audio[span].float()
        if self.random.random() < self.settings.drop_audio:
            audio = torch.zeros_like(audio)
        parts = {"clean": clip.clean[span], "masked": clip.masked[span], "reference": reference}
        return {k: v.float().transpose(0, 1) for k, v in parts.items()} | {"audio": audio, "noise": self._noise(clip)}

    def _noise(self, clip: LatentClip) -> Tensor:
        c, h, w = clip.clean.shape[1:]
        one = torch.randn(c, 1, h, w).expand(c, WINDOW, h, w)
        if self.random.random() < self.settings.shared:
            return one
        return (one + torch.randn(c, WINDOW, h, w)) * 0.5**0.5  # mixed noise, alpha 1 (spec of the public recipe)

    def train_step(self) -> dict[str, Tensor]:
        settings = self.settings
        set_rate(self.optimizer, learning_rate(self.step, settings.steps, settings.rate))
        windows = [self.window() for _ in range(settings.batch)]
        data = {name: torch.stack([w[name] for w in windows]) for name in windows[0]}
        # most of the work is done where the noise is strong: square-root density towards t = 999
        timestep = torch.from_numpy((999 * self.random.random(settings.batch) ** 0.6).astype(np.int64))
        bar = self.alpha_bars[timestep].float()[:, None, None, None, None]
        noisy = bar.sqrt() * data["clean"] + (1 - bar).sqrt() * data["noise"]
        mask = self.mask.expand(settings.batch, 1, WINDOW, *self.mask.shape)
        with torch.autocast("cpu", torch.bfloat16):
            made = self.unet(torch.cat((noisy, mask, data["masked"], data["reference"]), 1), timestep, data["audio"])
        losses = self.losses(made.float(), data["clean"])
        total = losses["clean"] + settings.motion_weight * losses["motion"]
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        self.average.update(self.unet)
        self.step += 1
        return {name: loss.detach() for name, loss in losses.items()}

    def losses(self, made: Tensor, clean: Tensor) -> dict[str, Tensor]:
        """Weighted errors of the latents and of their change from frame to frame."""
        changes = (made.diff(dim=2), clean.diff(dim=2))
        return {
            "clean": (F.mse_loss(made, clean, reduction="none") * self.weights).mean(),
            "motion": (F.mse_loss(*changes, reduction="none") * self.weights).mean(),
        }

    def save(self, path: Path) -> None:
        save_checkpoint(
            path,
            step=self.step,
            settings=asdict(self.settings),
            average=self.average.state,
            count=self.average.count,
            unet=self.unet.state_dict(),
            optimizer=self.optimizer.state_dict(),
            random=self.random.bit_generator.state,
            torch_random=torch.get_rng_state(),
        )

    def load(self, path: Path) -> None:
        parts = torch.load(path, weights_only=True)
        self.step = parts["step"]
        self.average.state, self.average.count = parts["average"], parts["count"]
        self.unet.load_state_dict(parts["unet"])
        self.optimizer.load_state_dict(parts["optimizer"])
        self.random.bit_generator.state = parts["random"]
        torch.set_rng_state(parts["torch_random"])


def train_unet(
    variants: Sequence[Sequence[LatentClip]],
    clips: Sequence[Clip],
    folder: Path,
    settings: UNetTraining,
    *,
    on_report: Callable[[str], None] | None = None,
) -> UNetTrainer:
    """Train, or go on from folder/unet.pt; a checkpoint every 5 reports."""
    trainer = UNetTrainer(variants, clips, settings)
    checkpoint, log = folder / "unet.pt", Log(folder / "unet.jsonl")
    if checkpoint.exists():
        trainer.load(checkpoint)
    while trainer.step < settings.steps:
        log.add(**trainer.train_step())
        last = trainer.step == settings.steps
        if trainer.step % settings.report_every == 0 or last:
            line = log.write(trainer.step)
            if on_report:
                on_report(line)
        if trainer.step % (5 * settings.report_every) == 0 or last:
            trainer.save(checkpoint)
    return trainer
