"""Train a small U-Net on scenes, together with the decoder of the autoencoder.

It predicts the clean latents (x0, "sample") as a difference from the reference's. The loss weights the cells around
the lips most, and their change from state to state. The shape of the lips is told to it, in place of the speech, which
tells little of it: the mean of all lips that would fit is a blur. Hearing is learned after that (see `hearing`). Most
windows start at the noisiest timestep, so that one step makes an image; mouths are decoded from early on and judged as
pictures, since an error of latents alone prefers a blur.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel

from latentsync.face.mask import latent_mask
from latentsync.models.device import autocast
from latentsync.models.unet import UNet
from latentsync.models.unet_config import UNetConfig
from latentsync.models.vae import VAE
from latentsync.sampling import alphas_cumprod
from latentsync.training.loop import Report, Trainer, fit, trapezoid
from latentsync.training.optim import averaged_model
from latentsync.training.unet.critic import AdversarialLoss, adversarial_weight
from latentsync.training.unet.picture_losses import plain_losses

from .data import RESOLUTION, Person
from .puppets import Speakers, Speech
from .scenes import STATES, Scenes, load_scenes
from .tiles import Tile, any_tile, decode_tile, mouth_tile, tile_of

LIPS = (0, 13, 14, 17, 37, 267, 84, 314, 61, 291, 78, 308, 152)
"""Points of the mesh whose movement is the shape of the lips: lips, corners, chin."""


@dataclass(frozen=True)
class UNetTraining:
    """batch_size: scenes of a step, `frames` states of each.

    Up to step easy_until all is easy: the reference is the picture as it was taken, timesteps are the noisiest. That
    changes until mixed_from. audio_lr_scale: learning rate of the attention to the audio over that of the rest.
    p_natural: chance that the reference is the picture as it was taken; else it says something too. p_static: chance
    that one reference serves all states of a scene, as for a still; else each has its own, as in a clip.
    noise_bias: timesteps are 999 · u^noise_bias; a small one keeps them where what is told, not the noisy latents,
    shows the mouth. p_max_noise: chance of the noisiest timestep. p_shared_noise: chance that all states of a scene
    have the same noise, as in sampling. decoded_frames: mouths that are decoded in a step for losses of the picture,
    which tell more about lips than those of latents: an opening explains a tenth of how latents vary.
    adversarial_from: step from which a critic judges them; adversarial_weight: its gradient over that of the others.
    decoder_from: step from which the autoencoder's decoder is trained too: it adapts to latents of a U-Net, which have
    less detail than those of an encoder. p_elsewhere: chance of a step in which it decodes parts of whole pictures
    instead of mouths, lest it forget the rest of a face.
    """

    widths: tuple[int, ...] = (64, 96, 176)
    cross: tuple[bool, ...] = (False, False, True)
    layers: int = 1
    latent_channels: int = 4
    norm_groups: int = 8
    steps: int = 9000
    batch_size: int = 4
    frames: int = 6
    learning_rate: float = 1.5e-3
    easy_until: int = 1200
    mixed_from: int = 3600
    p_natural: float = 0.4
    p_static: float = 0.4
    p_shared_noise: float = 0.6
    keep_weight: float = 0.05
    lips_weight: float = 4.0
    clean_weight: float = 1.0
    motion_weight: float = 2.0
    noise_bias: float = 0.2
    p_max_noise: float = 0.85
    adversarial_from: int = 1500
    decoder_from: int = 1500
    p_elsewhere: float = 0.15
    pictures_from: int = 500
    decoded_frames: int = 8
    picture_weight: float = 1.0
    texture_weight: float = 20.0
    feature_weight: float = 0.25
    adversarial_weight: float = 0.5
    decoder_learning_rate: float = 1e-4
    audio_lr_scale: float = 2.0
    seed: int = 1247
    report_every: int = 50

    @property
    def config(self) -> UNetConfig:
        return UNetConfig(
            self.widths,
            self.layers,
            self.cross,
            latent_channels=self.latent_channels,
            motion="none",
            groups=self.norm_groups,
            residual="jaw",
        )


def cell_weights(settings: UNetTraining) -> Tensor:
    """(h, w) loss weight of each latent cell: kept cells little, repainted cells 1, the lips' surroundings more."""
    keep = torch.from_numpy(latent_mask(RESOLUTION, 8))
    weights = torch.where(keep > 0.5, settings.keep_weight, 1.0)
    h, w = weights.shape
    # where lips and chin lie in an aligned crop: 50-84 % of its height, the middle 44 % of its width
    weights[round(0.5 * h) : round(0.84 * h), round(0.28 * w) : round(0.72 * w)] *= settings.lips_weight
    return weights / weights.mean()


class Shapes:
    """(N,) of each moment of speech: the strongest components of how the lips move, standardized."""

    def __init__(self, people: Sequence[Person], components: int = 12) -> None:
        speakers = Speakers(people)
        moved = {
            i: np.stack([speakers.movement(Speech(i, f))[list(LIPS)].ravel() for f in frames])
            for i, frames in speakers.frames.items()
        }
        movements = np.concatenate([*moved.values()])
        _, strength, self.directions = np.linalg.svd(movements - movements.mean(0), full_matrices=False)
        scale = strength[:components] / np.sqrt(len(movements))
        mean = movements.mean(0)
        project = lambda m: torch.from_numpy((m - mean) @ self.directions[:components].T / scale).float()  # noqa: E731
        self.spoken = {i: project(m) for i, m in moved.items()}
        self.silent = project(np.zeros(len(LIPS) * 3))

    def __call__(self, person: int, frame: int) -> Tensor:
        return self.silent if person == Speech.SILENT else self.spoken[person][frame]


class UNetTrainer(Trainer):
    """Holds the networks and takes steps. Deterministic for a seed on one machine."""

    def __init__(self, scenes: Sequence[Scenes], people: Sequence[Person], settings: UNetTraining, vae: VAE) -> None:
        torch.manual_seed(settings.seed)
        self.settings, self.scenes, self.vae = settings, list(scenes), vae
        self.decoder = vae.model.decoder.requires_grad_(False)
        self.average_decoder = averaged_model(self.decoder, 0.998)
        self.adversarial = AdversarialLoss()
        self.random = np.random.default_rng(settings.seed)
        self.unet = UNet(settings.config).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        nn.init.zeros_(self.unet.conv_out.weight)  # the first picture is the reference
        nn.init.zeros_(self.unet.conv_out.bias)
        # nor is it disturbed by noise, which tells nothing at the noisiest timestep
        with torch.no_grad():
            self.unet.conv_in.weight[:, : settings.latent_channels] = 0
        self.average = averaged_model(self.unet, decay=0.999)
        self.shapes = Shapes(people)
        self.teller = nn.Linear(len(self.shapes.silent), settings.config.audio_dim)
        audio = [p for name, p in self.unet.named_parameters() if "attn2." in name]
        others = [p for name, p in self.unet.named_parameters() if "attn2." not in name]
        rate = settings.learning_rate
        groups = [
            {"params": others, "lr": rate},
            {"params": audio, "lr": rate * settings.audio_lr_scale},
            {"params": [*self.teller.parameters()], "lr": rate * 3},
            {"params": [*self.decoder.parameters()], "lr": settings.decoder_learning_rate},
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01)
        self.schedule = trapezoid(self.optimizer, settings.steps)
        self.weights = cell_weights(settings)
        self.mask = torch.from_numpy(latent_mask(RESOLUTION, 8))
        self.alphas_cumprod = alphas_cumprod()
        self.step = 0

    def window(self) -> dict[str, Tensor]:
        """Some states of one scene, each with a reference that says something else."""
        settings, random = self.settings, self.random
        scenes = self.scenes[int(random.integers(len(self.scenes)))]
        which = int(random.integers(len(scenes)))
        person, frame = scenes.person[which].tolist(), scenes.frame[which].tolist()
        saying = [i for i in range(STATES) if person[i] != Speech.NATURAL]
        states = random.permutation(saying)[: settings.frames].tolist()
        references = self._references(states)
        latents = scenes.latents[which].float()
        masked = scenes.masked[which].float()[None].expand(len(states), -1, -1, -1)
        parts = {"clean": latents[states], "masked": masked, "reference": latents[references]}
        return {k: v.transpose(0, 1) for k, v in parts.items()} | {
            "noise": self._noise(parts["clean"]),
            "shape": torch.stack([self.shapes(person[i], frame[i]) for i in states]),
            "mouth": scenes.mouths[which][states],
            "natural": latents[0],
            "picture": scenes.picture[which],
        }

    def _grown(self, first: float, last: float) -> float:
        """A chance at this step: first while lessons are easy, then on its way to last."""
        return float(np.interp(self.step, (self.settings.easy_until, self.settings.mixed_from), (first, last)))

    def _references(self, states: list[int]) -> list[int]:
        """A state of the scene for each of these, never itself: its mouth would be copied and the speech ignored."""
        random = self.random
        natural = random.random() < self._grown(1, self.settings.p_natural)
        one = random.random() < self._grown(1, self.settings.p_static)
        shared = 0 if natural else int(random.integers(STATES))
        chosen = []
        for state in states:
            others = [i for i in range(STATES) if i != state]
            alike = one and shared != state
            chosen.append(shared if alike else int(random.choice(others)))
        return chosen

    def _noise(self, clean: Tensor) -> Tensor:
        frames, c, h, w = clean.shape
        one = torch.randn(c, 1, h, w).expand(c, frames, h, w)
        if self.random.random() < self.settings.p_shared_noise:
            return one
        return (one + torch.randn(c, frames, h, w)) * 0.5**0.5  # mixed noise, alpha 1 (spec of the public recipe)

    def train_step(self) -> dict[str, Tensor]:
        settings = self.settings
        self.decoder.requires_grad_(self.step >= settings.decoder_from)
        windows = [self.window() for _ in range(settings.batch_size)]
        data = {name: torch.stack([w[name] for w in windows]) for name in windows[0]}
        told = self.teller(data["shape"])[:, :, None].expand(-1, -1, 50, -1)
        timestep = self._timesteps()
        bar = self.alphas_cumprod[timestep].float()[:, None, None, None, None]
        noisy = bar.sqrt() * data["clean"] + (1 - bar).sqrt() * data["noise"]
        mask = self.mask.expand(settings.batch_size, 1, settings.frames, *self.mask.shape)
        # PyTorch's fused attention is slow backwards on a CPU: a quarter of the step
        with autocast("cpu"), sdpa_kernel(SDPBackend.MATH):
            made = self.unet(torch.cat((noisy, mask, data["masked"], data["reference"]), 1), timestep, told)
        made = made.float()
        losses = self.losses(made, data["clean"])
        total = settings.clean_weight * losses["clean"] + settings.motion_weight * losses["motion"]
        if self.step >= settings.pictures_from:
            elsewhere = self.step >= settings.decoder_from and self.random.random() < settings.p_elsewhere
            parts = self._elsewhere(data) if elsewhere else self._mouths(made, data)
            images, pixel_losses = self.pixel_losses(*parts)
            losses |= pixel_losses
            total = total + settings.picture_weight * self._pixel_total(pixel_losses, images)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        if self.step >= settings.decoder_from:
            nn.utils.clip_grad_norm_(self.decoder.parameters(), 1.0)
            self.average_decoder.update_parameters(self.decoder)
        self.optimizer.step()
        self.schedule.step()
        self.average.update_parameters(self.unet)
        self.step += 1
        return {name: loss.detach() for name, loss in losses.items()}

    def _timesteps(self) -> Tensor:
        settings = self.settings
        shares = self.random.random(settings.batch_size) ** settings.noise_bias
        shares[self.random.random(settings.batch_size) < self._grown(1, settings.p_max_noise)] = 1
        return torch.from_numpy((999 * shares).astype(np.int64))

    def _mouths(self, made: Tensor, data: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tile]:
        """Latents of some of the mouths that were made, the true ones as pixels, and where they are.

        While the decoder is trained, a third of the latents are an encoder's, lest it forget them: all that is not
        repainted is still decoded by it.
        """
        picked = self.random.choice(made.shape[0] * made.shape[2], self.settings.decoded_frames, replace=False)
        latents = made.transpose(1, 2).flatten(0, 1)[picked]
        if self.step >= self.settings.decoder_from:
            true_latents = data["clean"].transpose(1, 2).flatten(0, 1)[picked]
            latents = torch.cat((true_latents[::3], latents[1::3], latents[2::3]))
            picked = np.concatenate((picked[::3], picked[1::3], picked[2::3]))
        tile = mouth_tile(self.random)
        return latents, tile_of(data["mouth"].flatten(0, 1)[picked], tile), tile

    def _elsewhere(self, data: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tile]:
        tile = any_tile(self.random)
        return data["natural"], tile_of(data["picture"], tile, whole=True), tile

    def pixel_losses(self, latents: Tensor, true: Tensor, tile: Tile) -> tuple[Tensor, dict[str, Tensor]]:
        """A decoded tile and its losses. latents: (N, C, h, w); true: (N, 3, H, W) in [-1, 1], the tile alone."""
        with autocast("cpu"):
            images = decode_tile(self.vae, latents, tile).float()
        losses = plain_losses(images, true)
        if self.step >= self.settings.adversarial_from:
            losses |= self.adversarial.losses(images, true)
        return images, losses

    def _pixel_total(self, losses: dict[str, Tensor], images: Tensor) -> Tensor:
        """Weighted sum; the adversarial loss is balanced with the others by their gradients in the images."""
        settings = self.settings
        total = losses["l1"] + losses["edges"] + losses["tones"] + settings.texture_weight * losses["texture"]
        if "g_loss" not in losses:
            return total
        total = total + settings.feature_weight * losses["features"]
        losses["weight"] = adversarial_weight(total, losses, images)
        return total + settings.adversarial_weight * losses["weight"] * losses["g_loss"]

    def losses(self, made: Tensor, clean: Tensor) -> dict[str, Tensor]:
        """Weighted errors of the latents, and of their difference from the scene's mean.

        The second excludes the person's appearance, whose errors would outweigh the movement.
        """
        motion = (made - made.mean(2, keepdim=True), clean - clean.mean(2, keepdim=True))
        return {
            "clean": (F.mse_loss(made, clean, reduction="none") * self.weights).mean(),
            "motion": (F.mse_loss(*motion, reduction="none") * self.weights).mean(),
        }

    def parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        return {
            "unet": self.unet,
            "average": self.average.module,
            "decoder": self.decoder,
            "average_decoder": self.average_decoder.module,
            "teller": self.teller,
            "critic": self.adversarial.critic,
            "critic_optimizer": self.adversarial.optimizer,
            "optimizer": self.optimizer,
        }

    def averages(self) -> dict[str, AveragedModel]:
        return {"updates": self.average, "decoder_updates": self.average_decoder}


def settings_of(checkpoint: Path) -> UNetTraining:
    return UNetTraining(**torch.load(checkpoint, weights_only=True)["settings"])


def train_unet(
    scenes: Path,
    people: Sequence[Person],
    folder: Path,
    settings: UNetTraining,
    vae: VAE,
    *,
    on_report: Report | None = None,
) -> UNetTrainer:
    """Train, or resume from folder/unet.pt; a checkpoint every 2 reports. The decoder of vae is trained too.

    Scenes that are written meanwhile are taken up at each report.
    """
    trainer, checkpoint = UNetTrainer(load_scenes(scenes), people, settings, vae), folder / "unet.pt"
    if checkpoint.exists():
        trainer.load(checkpoint)

    def report(values: dict[str, float]) -> None:
        trainer.scenes += load_scenes(scenes, len(trainer.scenes))
        if on_report:
            on_report(values)

    fit(trainer, checkpoint, save_every=2 * settings.report_every, on_report=report)
    return trainer
