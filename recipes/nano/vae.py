"""Train a small AutoencoderKL on face crops: first plain reconstruction, then a small critic sharpens the decoder.

The network sees tiles rather than whole crops, most of them over the mouth: that is where sharpness matters.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from latentsync.face.align import mouth_mask
from latentsync.training.ema import Log, MovingAverage, learning_rate, save_checkpoint, set_rate

from .critic import Sharpener, balance, plain_losses
from .data import Clip, random_augmentation


@dataclass(frozen=True)
class VAETraining:
    """critic_from: share of the steps after which the critic joins and the encoder is frozen. critic_weight: how hard
    the critic pulls at the picture, over how hard the other losses do (Esser et al. 2021).

    norm_groups: few, since a group of two channels, normalised over a whole picture, cannot carry its color.
    """

    resolution: int = 160
    widths: tuple[int, ...] = (32, 64, 96, 128)
    latent_channels: int = 16
    norm_groups: int = 2
    steps: int = 3000
    batch: int = 16
    tile: int = 96
    rate: float = 1e-3
    critic_from: float = 0.5
    critic_weight: float = 0.5
    feature_weight: float = 0.5
    edge_weight: float = 0.5
    texture_weight: float = 10.0
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


class VAETrainer:
    """Holds the networks and takes steps. Deterministic for a seed on one machine."""

    def __init__(self, clips: Sequence[Clip], settings: VAETraining) -> None:
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.clips = list(clips)
        self.random = np.random.default_rng(settings.seed)
        self.vae = build_vae(settings).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.sharpener = Sharpener()
        self.average = MovingAverage(self.vae)
        self.optimizer = torch.optim.AdamW(self.vae.parameters(), lr=settings.rate, weight_decay=1e-4)
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
        settings = self.settings
        set_rate(self.optimizer, learning_rate(self.step, settings.steps, settings.rate))
        pixels = self.batch()
        with torch.autocast("cpu", torch.bfloat16):
            with torch.set_grad_enabled(not self.sharpening):
                posterior = self.vae.encode(pixels).latent_dist  # pyright: ignore[reportAttributeAccessIssue]
                latents = posterior.mean if self.sharpening else posterior.sample()
            made = self.vae.decode(latents).sample  # pyright: ignore[reportAttributeAccessIssue]
        made = made.float()
        losses = plain_losses(made, pixels)
        losses["kl"] = posterior.kl().mean()
        total = losses["l1"] + settings.edge_weight * losses["edges"] + settings.tone_weight * losses["tones"]
        total = total + settings.texture_weight * losses["texture"] + settings.kl_weight * losses["kl"]
        if self.sharpening:
            losses |= self.sharpener.losses(made, pixels)
            total = total + settings.feature_weight * losses["features"]
            losses["pull"] = balance(total, losses, made)
            total = total + settings.critic_weight * losses["pull"] * losses["fool"]
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(self.vae.parameters(), 1.0)
        self.optimizer.step()
        self.average.update(self.vae)
        self.step += 1
        return {name: loss.detach() for name, loss in losses.items()}

    def save(self, path: Path) -> None:
        save_checkpoint(
            path,
            step=self.step,
            settings=asdict(self.settings),
            average=self.average.state,
            count=self.average.count,
            vae=self.vae.state_dict(),
            critic=self.sharpener.critic.state_dict(),
            optimizer=self.optimizer.state_dict(),
            critic_optimizer=self.sharpener.optimizer.state_dict(),
            random=self.random.bit_generator.state,
            torch_random=torch.get_rng_state(),
        )

    def load(self, path: Path) -> None:
        parts = torch.load(path, weights_only=True)
        self.step = parts["step"]
        self.average.state, self.average.count = parts["average"], parts["count"]
        self.vae.load_state_dict(parts["vae"])
        self.sharpener.critic.load_state_dict(parts["critic"])
        self.optimizer.load_state_dict(parts["optimizer"])
        self.sharpener.optimizer.load_state_dict(parts["critic_optimizer"])
        self.random.bit_generator.state = parts["random"]
        torch.set_rng_state(parts["torch_random"])


def clip_chances(clips: Sequence[Clip]) -> np.ndarray:
    """How often to draw each clip: by length, but a person with much footage less than in proportion (square root)."""
    frames = np.array([clip.train_frames for clip in clips], np.float64)
    people = {p: sum(c.train_frames for c in clips if c.person == p) for p in {c.person for c in clips}}
    weights = frames / np.sqrt([people[clip.person] for clip in clips])
    return weights / weights.sum()


def start_from(vae: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Take weights over, also of a VAE with fewer latent channels: those that are new keep their random weights."""
    with torch.no_grad():
        for key, own in vae.state_dict().items():
            moments = key.startswith(("encoder.conv_out", "quant_conv"))  # means, then as many variances
            halves = (own.chunk(2), state[key].chunk(2)) if moments else ((own,), (state[key],))
            for to, given in zip(*halves, strict=True):
                to[tuple(slice(size) for size in given.shape)] = given


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
        start_from(trainer.vae, torch.load(init, weights_only=True)["vae"])
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
