"""Make TAESD's decoder narrower where pictures are large, where nearly all of its time goes, and tune it on faces: true
colors and fine detail around the mouth.

As it comes it blurs skin and shifts its color by as much as a mouth in motion changes the picture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from latentsync.models.device import autocast
from latentsync.models.tiny_vae import TinyAutoencoder, TinyVAE
from latentsync.models.vae import VAE
from latentsync.training.loop import Report, Trainer, fit, trapezoid
from latentsync.training.optim import averaged_model
from latentsync.training.unet.critic import AdversarialLoss, adversarial_weight
from latentsync.training.unet.picture_losses import plain_losses
from latentsync.weights.tiny_vae_files import build

from .scenes import Scenes, load_scenes
from .tiles import any_tile, decode_tile, mouth_tile, tile_of


@dataclass(frozen=True)
class DecoderTraining:
    """widths: of the decoder's levels, from the latents to the picture. p_mouth: chance of a tile at the mouth, else it
    is anywhere. adversarial_from: share of the steps after which a critic judges too; adversarial_weight: its gradient
    over that of the other losses."""

    widths: tuple[int, ...] = (64, 64, 48, 32)
    p_mouth: float = 0.75
    steps: int = 1600
    batch_size: int = 12
    learning_rate: float = 4e-4
    adversarial_from: float = 0.4
    adversarial_weight: float = 0.4
    feature_weight: float = 0.5
    edge_weight: float = 0.5
    texture_weight: float = 10.0
    tone_weight: float = 1.0
    seed: int = 1247
    report_every: int = 50


def narrowed(vae: VAE, widths: tuple[int, ...]) -> VAE:
    """The same with a decoder of these widths, which starts with the first channels of the other's."""
    slim = TinyAutoencoder(replace(vae.model.config, decoder_widths=widths))
    wide = vae.model.state_dict()
    slim.load_state_dict({
        name: wide[name][tuple(slice(size) for size in value.shape)] for name, value in slim.state_dict().items()
    })  # fmt: skip
    slim.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return TinyVAE(slim, scaling=vae.scaling, shift=vae.shift).eval().requires_grad_(False)


class DecoderTrainer(Trainer):
    """Holds the decoder and takes steps. Deterministic for a seed on one machine."""

    def __init__(self, scenes: Sequence[Scenes], settings: DecoderTraining, vae: VAE) -> None:
        torch.manual_seed(settings.seed)
        self.settings, self.scenes, self.vae = settings, list(scenes), vae
        self.random = np.random.default_rng(settings.seed)
        self.decoder: nn.Module = vae.model.decoder.requires_grad_(True)
        self.average = averaged_model(self.decoder, 0.995)
        self.adversarial = AdversarialLoss()
        self.optimizer = torch.optim.AdamW(self.decoder.parameters(), lr=settings.learning_rate, weight_decay=1e-4)
        self.schedule = trapezoid(self.optimizer, settings.steps)
        self.step = 0

    def batch(self, mouth: bool) -> tuple[Tensor, Tensor]:
        """Latents (N, C, h, w) and mouths (N, 3, H, W) uint8 of random states, or whole pictures as they were taken."""
        latents, pictures = [], []
        for _ in range(self.settings.batch_size):
            scenes = self.scenes[int(self.random.integers(len(self.scenes)))]
            which = int(self.random.integers(len(scenes)))
            state = int(self.random.integers(scenes.latents.shape[1])) if mouth else 0
            latents.append(scenes.latents[which, state])
            pictures.append(scenes.mouths[which, state] if mouth else scenes.picture[which])
        return torch.stack(latents).float(), torch.stack(pictures)

    def pictures(self) -> tuple[Tensor, Tensor]:
        """(N, 3, h, w) in [-1, 1]: decoded, and what they should be."""
        mouth = self.random.random() < self.settings.p_mouth
        latents, pictures = self.batch(mouth)
        tile = mouth_tile(self.random) if mouth else any_tile(self.random)
        with autocast("cpu"):
            return decode_tile(self.vae, latents, tile).float(), tile_of(pictures, tile, whole=not mouth)

    def train_step(self) -> dict[str, Tensor]:
        settings = self.settings
        images, true = self.pictures()
        losses = plain_losses(images, true)
        total = losses["l1"] + settings.edge_weight * losses["edges"] + settings.tone_weight * losses["tones"]
        total = total + settings.texture_weight * losses["texture"]
        if self.step >= settings.adversarial_from * settings.steps:
            losses |= self.adversarial.losses(images, true)
            total = total + settings.feature_weight * losses["features"]
            losses["weight"] = adversarial_weight(total, losses, images)
            total = total + settings.adversarial_weight * losses["weight"] * losses["g_loss"]
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(self.decoder.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.average.update_parameters(self.decoder)
        self.step += 1
        return {name: loss.detach() for name, loss in losses.items()}

    def parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        return {
            "decoder": self.decoder,
            "average": self.average.module,
            "critic": self.adversarial.critic,
            "critic_optimizer": self.adversarial.optimizer,
            "optimizer": self.optimizer,
        }

    def averages(self) -> dict[str, AveragedModel]:
        return {"updates": self.average}


def train_decoder(
    scenes: Path, folder: Path, settings: DecoderTraining, vae: VAE, *, on_report: Report | None = None
) -> DecoderTrainer:
    """Train, or resume from folder/decoder.pt; a checkpoint every 2 reports."""
    trainer, checkpoint = DecoderTrainer(load_scenes(scenes), settings, vae), folder / "decoder.pt"
    if checkpoint.exists():
        trainer.load(checkpoint)
    fit(trainer, checkpoint, save_every=2 * settings.report_every, on_report=on_report)
    return trainer


def with_tuned_decoder(vae: VAE, folder: Path) -> VAE:
    """The autoencoder with the decoder of a run: of the U-Net's training where that has begun."""
    if (path := folder / "unet.pt").exists():
        return with_decoder(vae, torch.load(path, weights_only=True)["average_decoder"])
    return with_decoder(vae, torch.load(folder / "decoder.pt", weights_only=True)["average"])


def with_decoder(vae: VAE, state: Mapping[str, Tensor]) -> VAE:
    """The autoencoder with a decoder of these tensors, which may be narrower than its own."""
    encoder = {f"encoder.{name}": value for name, value in vae.model.encoder.state_dict().items()}
    model = build(encoder | {f"decoder.{name}": value for name, value in state.items()})
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return TinyVAE(model, scaling=vae.scaling, shift=vae.shift).eval().requires_grad_(False)
