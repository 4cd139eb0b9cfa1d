"""Train a small AutoencoderKL on face crops: first plain reconstruction, then a small critic sharpens the decoder.

The network sees tiles rather than whole crops, most of them over the mouth: that is where sharpness matters.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ..face.align import mouth_mask
from .data import Clip, random_augmentation
from .loop import Log, MovingAverage, learning_rate, save_checkpoint, set_rate


@dataclass(frozen=True)
class VAETraining:
    """critic_from: share of the steps after which the critic joins and the encoder is frozen.

    norm_groups: few, since a group of two channels, normalised over a whole picture, cannot carry its colour.
    """

    resolution: int = 160
    widths: tuple[int, ...] = (32, 64, 96, 128)
    latent_channels: int = 8
    norm_groups: int = 2
    steps: int = 1500
    batch: int = 16
    tile: int = 96
    rate: float = 1e-3
    critic_from: float = 0.6
    critic_weight: float = 0.02
    feature_weight: float = 0.5
    edge_weight: float = 0.5
    tone_weight: float = 1.0
    kl_weight: float = 1e-6
    masked: float = 0.15
    seed: int = 1247
    report_every: int = 50


def build_vae(settings: VAETraining) -> AutoencoderKL:
    """Convolutions only (no attention), so that tiles and whole crops look alike to it."""
    levels = len(settings.widths)
    kinds: dict[str, Any] = {  # diffusers annotates these as tuples of one
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": settings.widths,
    }
    return AutoencoderKL(
        **kinds,
        layers_per_block=1,
        latent_channels=settings.latent_channels,
        norm_num_groups=settings.norm_groups,
        sample_size=settings.resolution,
        mid_block_add_attention=False,
    )


class Critic(nn.Module):
    """Judges 8-pixel patches (PatchGAN, Isola et al. 2017); its features also serve as a perceptual measure."""

    def __init__(self, widths: Sequence[int] = (32, 64, 128, 128)) -> None:
        super().__init__()
        inputs = (3, *widths[:-1])
        strides = (2,) * (len(widths) - 1) + (1,)
        self.layers = nn.ModuleList(
            spectral_norm(nn.Conv2d(i, o, 4 if s == 2 else 3, stride=s, padding=1))
            for i, o, s in zip(inputs, widths, strides, strict=True)
        )
        self.head = spectral_norm(nn.Conv2d(widths[-1], 1, 1))

    def forward(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = []
        for layer in self.layers:
            pixels = F.leaky_relu(layer(pixels), 0.2)
            features.append(pixels)
        return self.head(pixels), features


def edge_loss(a: Tensor, b: Tensor, scales: int = 3) -> Tensor:
    """Mean absolute difference of the horizontal and vertical gradients over a pyramid: punishes blur."""
    total = a.new_zeros(())
    for _ in range(scales):
        difference = a - b
        total = total + difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return total


def tone_loss(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference of coarse tiles: colours, which normalised features are slow to learn."""
    return sum((F.l1_loss(F.avg_pool2d(a, size), F.avg_pool2d(b, size)) for size in (4, 16)), a.new_zeros(()))


class VAETrainer:
    """Holds the networks and takes steps. Deterministic for a seed on one machine."""

    def __init__(self, clips: Sequence[Clip], settings: VAETraining) -> None:
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.clips = list(clips)
        self.random = np.random.default_rng(settings.seed)
        self.vae = build_vae(settings).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.critic = Critic().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.average = MovingAverage(self.vae)
        self.optimizer = torch.optim.AdamW(self.vae.parameters(), lr=settings.rate, weight_decay=1e-4)
        self.critic_optimizer = torch.optim.AdamW(self.critic.parameters(), lr=4e-4, betas=(0.5, 0.95))
        self.keep = torch.from_numpy(mouth_mask(settings.resolution))
        self.chances = clip_chances(self.clips)
        self.step = 0

    def batch(self) -> Tensor:
        """(N, 3, tile, tile) in [-1, 1], one tile of each crop; some masked as the U-Net needs them."""
        tiles = []
        while len(tiles) < self.settings.batch:
            clip = self.clips[self.random.choice(len(self.clips), p=self.chances)]
            frame = clip.crops[self.random.integers(clip.train_frames)]
            crop = random_augmentation(self.random, self.settings.resolution)([frame], self.settings.resolution)[0]
            if self.random.random() < self.settings.masked:
                crop = crop * self.keep
            tiles.append(self._tile(crop))
        return torch.stack(tiles).contiguous(memory_format=torch.channels_last)

    def _tile(self, crop: Tensor) -> Tensor:
        size, room = self.settings.tile, self.settings.resolution - self.settings.tile
        mouth = self.random.random() < 0.7
        y = self.random.integers(room // 2, room + 1) if mouth else self.random.integers(room + 1)
        x = self.random.integers(room // 4, room - room // 4 + 1) if mouth else self.random.integers(room + 1)
        return crop[:, y : y + size, x : x + size]

    @property
    def sharpening(self) -> bool:
        return self.step >= self.settings.critic_from * self.settings.steps

    def train_step(self) -> dict[str, Tensor]:
        rate = learning_rate(self.step, self.settings.steps, self.settings.rate)
        set_rate(self.optimizer, rate)
        pixels = self.batch()
        with torch.autocast("cpu", torch.bfloat16):
            with torch.set_grad_enabled(not self.sharpening):
                posterior = self.vae.encode(pixels).latent_dist  # pyright: ignore[reportAttributeAccessIssue]
                latents = posterior.mean if self.sharpening else posterior.sample()
            made = self.vae.decode(latents).sample  # pyright: ignore[reportAttributeAccessIssue]
        made = made.float()
        losses = {"l1": F.l1_loss(made, pixels), "edges": edge_loss(made, pixels), "tones": tone_loss(made, pixels)}
        losses["kl"] = posterior.kl().mean()
        total = losses["l1"] + self.settings.edge_weight * losses["edges"] + self.settings.tone_weight * losses["tones"]
        total = total + self.settings.kl_weight * losses["kl"]
        if self.sharpening:
            losses |= self._critic_losses(made, pixels)
            total = total + self.settings.critic_weight * losses["fool"]
            total = total + self.settings.feature_weight * losses["features"]
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(self.vae.parameters(), 1.0)
        self.optimizer.step()
        self.average.update(self.vae)
        self.step += 1
        return {name: loss.detach() for name, loss in losses.items()}

    def _critic_losses(self, made: Tensor, pixels: Tensor) -> dict[str, Tensor]:
        """Hinge critic, trained one step on the same batch; then what the decoder shall do about it."""
        with torch.autocast("cpu", torch.bfloat16):
            real, fake = self.critic(pixels)[0], self.critic(made.detach())[0]
            hinge = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
        self.critic_optimizer.zero_grad(set_to_none=True)
        hinge.backward()
        self.critic_optimizer.step()
        with torch.autocast("cpu", torch.bfloat16):
            verdict, features = self.critic(made)
            with torch.no_grad():
                _, wanted = self.critic(pixels)
            matched = torch.stack([F.l1_loss(f, w) for f, w in zip(features, wanted, strict=True)]).mean()
        return {"critic": hinge.detach(), "fool": -verdict.float().mean(), "features": matched.float()}

    def save(self, path: Path) -> None:
        save_checkpoint(
            path,
            step=self.step,
            settings=asdict(self.settings),
            average=self.average.state,
            count=self.average.count,
            vae=self.vae.state_dict(),
            critic=self.critic.state_dict(),
            optimizer=self.optimizer.state_dict(),
            critic_optimizer=self.critic_optimizer.state_dict(),
            random=self.random.bit_generator.state,
            torch_random=torch.get_rng_state(),
        )

    def load(self, path: Path) -> None:
        parts = torch.load(path, weights_only=True)
        self.step = parts["step"]
        self.average.state, self.average.count = parts["average"], parts["count"]
        self.vae.load_state_dict(parts["vae"])
        self.critic.load_state_dict(parts["critic"])
        self.optimizer.load_state_dict(parts["optimizer"])
        self.critic_optimizer.load_state_dict(parts["critic_optimizer"])
        self.random.bit_generator.state = parts["random"]
        torch.set_rng_state(parts["torch_random"])


def clip_chances(clips: Sequence[Clip]) -> np.ndarray:
    """How often to draw each clip: by length, but a person with much footage less than in proportion (square root)."""
    frames = np.array([clip.train_frames for clip in clips], np.float64)
    people = {p: sum(c.train_frames for c in clips if c.person == p) for p in {c.person for c in clips}}
    weights = frames / np.sqrt([people[clip.person] for clip in clips])
    return weights / weights.sum()


def train_vae(
    clips: Sequence[Clip],
    folder: Path,
    settings: VAETraining,
    *,
    init: Path | None = None,
    on_report: Callable[[str], None] | None = None,
) -> VAETrainer:
    """Train, or go on from folder/vae.pt; a checkpoint and a log line every report_every steps.

    init: a checkpoint whose weights a new run starts from.
    """
    trainer = VAETrainer(clips, settings)
    checkpoint, log = folder / "vae.pt", Log(folder / "vae.jsonl")
    if checkpoint.exists():
        trainer.load(checkpoint)
    elif init:
        trainer.vae.load_state_dict(torch.load(init, weights_only=True)["vae"])
        trainer.average = MovingAverage(trainer.vae)
    while trainer.step < settings.steps:
        log.add(**trainer.train_step())
        if trainer.step % settings.report_every == 0 or trainer.step == settings.steps:
            trainer.save(checkpoint)
            line = log.write(trainer.step)
            if on_report:
                on_report(line)
    return trainer


@torch.no_grad()
def latent_scale(vae: AutoencoderKL, clips: Sequence[Clip], settings: VAETraining, frames: int = 64) -> float:
    """1 / standard deviation of the latents, the factor that brings them to unit size for diffusion."""
    random = np.random.default_rng(settings.seed)
    picked = [clips[int(random.integers(len(clips)))] for _ in range(frames)]
    crops = [
        random_augmentation(random, settings.resolution)(
            [c.crops[random.integers(c.train_frames)]], settings.resolution
        )
        for c in picked
    ]
    means = vae.encode(torch.cat(crops)).latent_dist.mean  # pyright: ignore[reportAttributeAccessIssue]
    return float(1 / means.std())
