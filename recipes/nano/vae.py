"""Train a small AutoencoderKL on face crops: first plain reconstruction, then an adversarial loss for the decoder.

The network sees tiles of the crops, most of them over the mouth, where sharpness matters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from latentsync.face.mask import mouth_mask
from latentsync.training.optim import averaged_model

from .critic import AdversarialLoss, adversarial_weight, plain_losses
from .data import Clip, random_augmentation
from .loop import Report, cosine_schedule, fit, save_checkpoint

DECAY = 0.998
"""Of the moving average of the weights."""


@dataclass(frozen=True)
class VAETraining:
    """adversarial_from: share of the steps after which the adversarial loss starts and the encoder is frozen.
    adversarial_weight: its gradient over that of the other losses. p_masked: chance that a crop is masked.

    norm_groups: few, since a group of two channels, normalized over an image, cannot carry its color.
    """

    resolution: int = 160
    widths: tuple[int, ...] = (32, 64, 96, 128)
    latent_channels: int = 16
    norm_groups: int = 2
    steps: int = 3000
    batch_size: int = 16
    tile: int = 96
    learning_rate: float = 1e-3
    adversarial_from: float = 0.5
    adversarial_weight: float = 0.5
    feature_weight: float = 0.5
    edge_weight: float = 0.5
    texture_weight: float = 10.0
    tone_weight: float = 1.0
    kl_weight: float = 1e-6
    p_masked: float = 0.15
    seed: int = 1247
    report_every: int = 50


def build_vae(settings: VAETraining) -> AutoencoderKL:
    """Convolutions only (no attention), so that tiles and crops are treated alike."""
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
        self.adversarial = AdversarialLoss()
        self.average = averaged_model(self.vae, DECAY)
        self.optimizer = torch.optim.AdamW(self.vae.parameters(), lr=settings.learning_rate, weight_decay=1e-4)
        self.schedule = cosine_schedule(self.optimizer, settings.steps)
        self.keep = torch.from_numpy(mouth_mask(settings.resolution))
        self.chances = clip_chances(self.clips)
        self.step = 0

    def batch(self) -> Tensor:
        """(N, 3, tile, tile) in [-1, 1], one tile of each crop; some masked as the U-Net needs them."""
        tiles = []
        while len(tiles) < self.settings.batch_size:
            clip = self.clips[self.random.choice(len(self.clips), p=self.chances)]
            frame = clip.crops[self.random.integers(clip.train_frames)]
            crop = random_augmentation(self.random, self.settings.resolution)([frame], self.settings.resolution)[0]
            if self.random.random() < self.settings.p_masked:
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
    def adversarial_on(self) -> bool:
        return self.step >= self.settings.adversarial_from * self.settings.steps

    def train_step(self) -> dict[str, Tensor]:
        settings = self.settings
        pixels = self.batch()
        with torch.autocast("cpu", torch.bfloat16):
            with torch.set_grad_enabled(not self.adversarial_on):
                posterior = self.vae.encode(pixels).latent_dist  # pyright: ignore[reportAttributeAccessIssue]
                latents = posterior.mean if self.adversarial_on else posterior.sample()
            made = self.vae.decode(latents).sample  # pyright: ignore[reportAttributeAccessIssue]
        made = made.float()
        losses = plain_losses(made, pixels)
        losses["kl"] = posterior.kl().mean()
        total = losses["l1"] + settings.edge_weight * losses["edges"] + settings.tone_weight * losses["tones"]
        total = total + settings.texture_weight * losses["texture"] + settings.kl_weight * losses["kl"]
        if self.adversarial_on:
            losses |= self.adversarial.losses(made, pixels)
            total = total + settings.feature_weight * losses["features"]
            losses["weight"] = adversarial_weight(total, losses, made)
            total = total + settings.adversarial_weight * losses["weight"] * losses["g_loss"]
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(self.vae.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.average.update_parameters(self.vae)
        self.step += 1
        return {name: loss.detach() for name, loss in losses.items()}

    def save(self, path: Path) -> None:
        save_checkpoint(
            path,
            step=self.step,
            settings=asdict(self.settings),
            average=self.average.module.state_dict(),
            updates=self.average.n_averaged,
            vae=self.vae.state_dict(),
            critic=self.adversarial.critic.state_dict(),
            optimizer=self.optimizer.state_dict(),
            critic_optimizer=self.adversarial.optimizer.state_dict(),
            random=self.random.bit_generator.state,
            torch_random=torch.get_rng_state(),
        )

    def load(self, path: Path) -> None:
        parts = torch.load(path, weights_only=True)
        self.step = parts["step"]
        self.average.module.load_state_dict(parts["average"])
        self.average.n_averaged.copy_(parts["updates"])
        self.vae.load_state_dict(parts["vae"])
        self.adversarial.critic.load_state_dict(parts["critic"])
        self.optimizer.load_state_dict(parts["optimizer"])
        self.schedule = cosine_schedule(self.optimizer, self.settings.steps, step=self.step)
        self.adversarial.optimizer.load_state_dict(parts["critic_optimizer"])
        self.random.bit_generator.state = parts["random"]
        torch.set_rng_state(parts["torch_random"])


def clip_chances(clips: Sequence[Clip]) -> np.ndarray:
    """How often to draw each clip: by length, but a person with much footage less than in proportion (square root)."""
    frames = np.array([clip.train_frames for clip in clips], np.float64)
    people = {p: sum(c.train_frames for c in clips if c.person == p) for p in {c.person for c in clips}}
    weights = frames / np.sqrt([people[clip.person] for clip in clips])
    return weights / weights.sum()


def start_from(vae: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy weights, also of a VAE with fewer latent channels; new channels keep their random weights."""
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
    on_report: Report | None = None,
) -> VAETrainer:
    """Train, or resume from folder/vae.pt; a checkpoint and a log line every report_every steps.

    init: a checkpoint whose weights a new run starts from.
    """
    trainer, checkpoint = VAETrainer(clips, settings), folder / "vae.pt"
    if checkpoint.exists():
        trainer.load(checkpoint)
    elif init:
        start_from(trainer.vae, torch.load(init, weights_only=True)["vae"])
        trainer.average = averaged_model(trainer.vae, DECAY)
    fit(trainer, checkpoint, save_every=settings.report_every, on_report=on_report)
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
