"""Train a small U-Net on precomputed latents of several augmentations of every clip.

It predicts the clean latents (x0, "sample"): with few parameters and little time that gives mouths where predicting
the noise gives blotches. The loss weights the repainted cells, most of all those around the lips, and their change
from frame to frame. Most windows start at the noisiest timestep, so that one step makes an image; later in training
there are losses on decoded mouths too, an adversarial one among them, so that this image is sharp.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsync.face.mask import latent_mask
from latentsync.models.unet import UNet, lips_window
from latentsync.models.unet_config import UNetConfig
from latentsync.models.vae import VAE
from latentsync.sampling import alphas_cumprod
from latentsync.training.optim import averaged_model

from .critic import AdversarialLoss, adversarial_weight, plain_losses
from .data import Clip, LatentClip, audio_whitening, mouth_box, opening_of
from .loop import Report, cosine_schedule, fit, save_checkpoint
from .vae import clip_chances

LAGS = range(5, 31)
"""Frames between a picture and its reference."""


@dataclass(frozen=True)
class UNetTraining:
    """frames: of a training window; fewer than in sampling, so that a batch covers more of the data.

    audio_lr_scale: learning rate of the attention to the speech over that of the rest.
    p_own_voice: chance of the original audio instead of another voice of the clip. audio_noise: largest noise on the
    audio tokens, in standard deviations: without it a few minutes of speech are memorized (in a small network the
    predicted opening of held-out time had a correlation of 0.46 without noise, 0.64 with it).
    p_static_masked: chance that the masked image of one frame serves the whole window. Cheeks show what the mouth says,
    and a network that reads them follows the source's words, not the given speech. p_static_reference: the same for the
    reference, as for an image. latent_augment: strength of a change of all latents of a window, in their own unit.
    noise_bias: timesteps are 999 · u^noise_bias; a small one keeps them where the speech, not the noisy latents, tells
    the mouth. p_shared_noise: chance that all frames of a window have the same noise, as in sampling.
    p_max_noise: chance of the noisiest timestep. pixel_losses_from: share of the steps after which mouths are decoded
    for pixel losses, decoded_frames per step. adversarial_weight: as for the VAE. preserve_weight: of the difference
    from the first decoder outside the lips. decoder_lr_scale: learning rate of the VAE's decoder over the U-Net's: it
    adapts to latents of a U-Net, which have less detail than those of an encoder.
    """

    resolution: int = 160
    widths: tuple[int, ...] = (64, 96, 160)
    cross: tuple[bool, ...] = (False, True, True)
    layers: int = 1
    latent_channels: int = 16
    norm_groups: int = 8
    steps: int = 3000
    batch_size: int = 4
    frames: int = 12
    learning_rate: float = 6e-4
    variants: int = 4
    drop_audio: float = 0.1
    p_own_voice: float = 0.5
    audio_noise: float = 3.0
    p_static_masked: float = 0.85
    p_static_reference: float = 0.3
    latent_augment: float = 0.4
    p_shared_noise: float = 0.6
    keep_weight: float = 0.05
    lips_weight: float = 5.0
    motion_weight: float = 4.0
    opening_weight: float = 0.3
    noise_bias: float = 0.2
    p_max_noise: float = 0.7
    pixel_losses_from: float = 0.5
    decoded_frames: int = 8
    picture_weight: float = 0.5
    texture_weight: float = 40.0
    preserve_weight: float = 3.0
    feature_weight: float = 0.25
    adversarial_weight: float = 0.5
    decoder_lr_scale: float = 2.0
    audio_lr_scale: float = 3.0
    seed: int = 1247
    report_every: int = 50

    @property
    def config(self) -> UNetConfig:
        return UNetConfig(
            self.widths, self.layers, self.cross, 384, self.latent_channels, "none", self.norm_groups, residual=True
        )


def cell_weights(settings: UNetTraining) -> Tensor:
    """(h, w) loss weight of each latent cell: kept cells little, repainted cells 1, the lips' surroundings more."""
    keep = torch.from_numpy(latent_mask(settings.resolution, 8))
    weights = torch.where(keep > 0.5, settings.keep_weight, 1.0)
    h, w = weights.shape
    # where lips and chin lie in an aligned crop: 52-80 % of its height, the middle 44 % of its width
    weights[round(0.52 * h) : round(0.8 * h), round(0.28 * w) : round(0.72 * w)] *= settings.lips_weight
    return weights / weights.mean()


class UNetTrainer:
    """Holds the network and takes steps. Deterministic for a seed on one machine."""

    def __init__(
        self, variants: Sequence[Sequence[LatentClip]], clips: Sequence[Clip], settings: UNetTraining, vae: VAE
    ) -> None:
        torch.manual_seed(settings.seed)
        self.settings, self.variants, self.vae = settings, variants, vae
        self.decoder = vae.model.decoder.requires_grad_(True)
        self.average_decoder = averaged_model(self.decoder, 0.998)
        self.first_vae = deepcopy(vae)
        self.adversarial = AdversarialLoss()
        self.random = np.random.default_rng(settings.seed)
        self.chances = clip_chances(clips)
        self.unet = UNet(settings.config)
        self.average = averaged_model(self.unet, decay=0.999)
        # a head on the middle block that predicts the mouth opening: an early gradient for the audio; not shipped
        self.openings = [opening_of(clip) for clip in clips]
        self.head = nn.Linear(settings.widths[-1], 1)
        self.middle = torch.empty(0)
        self.unet.mid_block.register_forward_hook(self._remember)
        audio = [p for name, p in self.unet.named_parameters() if "attn2." in name]
        others = [p for name, p in self.unet.named_parameters() if "attn2." not in name]
        scales = (
            (others, 1.0),
            (audio, settings.audio_lr_scale),
            ([*self.head.parameters()], 3.0),
            ([*self.decoder.parameters()], settings.decoder_lr_scale),
        )
        groups = [{"params": parameters, "lr": scale * settings.learning_rate} for parameters, scale in scales]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01)
        self.schedule = cosine_schedule(self.optimizer, settings.steps)
        self.weights = cell_weights(settings)
        self.mask = torch.from_numpy(latent_mask(settings.resolution, 8))
        self.lips = (3 * lips_window(settings.resolution, settings.resolution)).clamp(max=1)
        self.whitening = audio_whitening(variants)
        self.alphas_cumprod = alphas_cumprod()
        self.step = 0

    def _remember(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        self.middle = output

    def window(self) -> dict[str, Tensor]:
        """One training window."""
        frames = self.settings.frames
        clips = self.variants[int(self.random.integers(len(self.variants)))]
        which = int(self.random.choice(len(clips), p=self.chances))
        clip = clips[which]
        start = int(self.random.integers(len(clip.clean) - frames + 1))
        span = slice(start, start + frames)
        audio = self._voice(which).audio[span].float() @ self.whitening.T
        audio = audio + self.settings.audio_noise * self.random.random() * torch.randn_like(audio)
        if self.random.random() < self.settings.drop_audio:
            audio = torch.zeros_like(audio)
        masked = self._maybe_static(clip.masked[span], self.settings.p_static_masked).float()
        reference = self._maybe_static(self._reference(clip, start), self.settings.p_static_reference)
        gain, offset = self._draw_augmentation(clip)
        shown = {"clean": clip.clean[span], "masked": masked, "reference": reference}
        parts = {name: latents.float() * gain + offset for name, latents in shown.items()}
        parts["masked"] = parts["masked"] * self.mask + masked * (1 - self.mask)  # the gray mask stays gray
        return {k: v.transpose(0, 1) for k, v in parts.items()} | {
            "gain": gain.transpose(0, 1),
            "offset": offset.transpose(0, 1),
            "audio": audio,
            "noise": self._noise(clip),
            "opening": self.openings[which][span],
            "mouth": clip.mouth[span],
        }

    def _draw_augmentation(self, clip: LatentClip) -> tuple[Tensor, Tensor]:
        """Gain (1, C, 1, 1) and smooth offset (1, C, h, w) for all latents of a window, so that the network learns to
        change the reference's face and does not memorize a few people's."""
        c, h, w = clip.clean.shape[1:]
        gain = torch.exp(torch.randn(1, c, 1, 1) * self.settings.latent_augment / 2)
        coarse = torch.randn(1, c, 4, 4) * self.settings.latent_augment
        return gain, F.interpolate(coarse, (h, w), mode="bicubic", align_corners=False)

    def _maybe_static(self, latents: Tensor, chance: float) -> Tensor:
        if self.random.random() < chance:
            return latents[int(self.random.integers(len(latents)))].expand_as(latents)
        return latents

    def _reference(self, clip: LatentClip, start: int) -> Tensor:
        """The same face a little earlier or later, in nearly the same pose but with another mouth. With the window's
        own frames, as in sampling, the network would copy their mouth and ignore the speech."""
        last = len(clip.clean) - self.settings.frames
        starts = [i for i in range(last + 1) if LAGS.start <= abs(i - start) < LAGS.stop] or [0, last]
        picked = int(self.random.choice(starts))
        return clip.clean[picked : picked + self.settings.frames]

    def _voice(self, which: int) -> LatentClip:
        own = self.random.random() < self.settings.p_own_voice
        return self.variants[0 if own else int(self.random.integers(len(self.variants)))][which]

    def _noise(self, clip: LatentClip) -> Tensor:
        (c, h, w), frames = clip.clean.shape[1:], self.settings.frames
        one = torch.randn(c, 1, h, w).expand(c, frames, h, w)
        if self.random.random() < self.settings.p_shared_noise:
            return one
        return (one + torch.randn(c, frames, h, w)) * 0.5**0.5  # mixed noise, alpha 1 (spec of the public recipe)

    def train_step(self) -> dict[str, Tensor]:
        settings = self.settings
        windows = [self.window() for _ in range(settings.batch_size)]
        data = {name: torch.stack([w[name] for w in windows]) for name in windows[0]}
        timestep = self._timesteps()
        bar = self.alphas_cumprod[timestep].float()[:, None, None, None, None]
        noisy = bar.sqrt() * data["clean"] + (1 - bar).sqrt() * data["noise"]
        mask = self.mask.expand(settings.batch_size, 1, settings.frames, *self.mask.shape)
        with torch.autocast("cpu", torch.bfloat16):
            made = self.unet(torch.cat((noisy, mask, data["masked"], data["reference"]), 1), timestep, data["audio"])
            opening = self.head(self.middle.mean((2, 3))).unflatten(0, (settings.batch_size, -1)).squeeze(-1)
        made = made.float()
        losses = self.losses(made, data["clean"])
        losses["opening"] = F.mse_loss(opening.float(), data["opening"])
        total = losses["clean"] + settings.motion_weight * losses["motion"]
        total = total + settings.opening_weight * losses["opening"]
        if self.pixel_losses_on:
            pixel_losses = self.pixel_losses((made - data["offset"]) / data["gain"], data["mouth"])
            losses |= pixel_losses
            total = total + settings.picture_weight * self._pixel_total(pixel_losses, made)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        nn.utils.clip_grad_norm_(self.decoder.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.average.update_parameters(self.unet)
        self.average_decoder.update_parameters(self.decoder)
        self.step += 1
        return {name: loss.detach() for name, loss in losses.items()}

    def _timesteps(self) -> Tensor:
        settings = self.settings
        shares = self.random.random(settings.batch_size) ** settings.noise_bias
        shares[self.random.random(settings.batch_size) < settings.p_max_noise] = 1
        return torch.from_numpy((999 * shares).astype(np.int64))

    @property
    def pixel_losses_on(self) -> bool:
        return self.step >= self.settings.pixel_losses_from * self.settings.steps

    def pixel_losses(self, made: Tensor, mouths: Tensor) -> dict[str, Tensor]:
        """Of some decoded frames. made: (B, C, F, h, w); mouths: (B, F, 3, H, W) uint8.

        Around the lips only: elsewhere made is the reference, of another time, which the decoder must decode as before.
        """
        picked = self.random.choice(made.shape[0] * made.shape[2], self.settings.decoded_frames, replace=False)
        latents = made.transpose(1, 2).flatten(0, 1)[picked]
        rows, columns = mouth_box(self.settings.resolution)
        with torch.autocast("cpu", torch.bfloat16):
            images = self.vae.decode(latents)
            with torch.no_grad():
                before = self.first_vae.decode(latents)
        preserved = ((images - before).float().abs() * (1 - self.lips)).mean()
        true = mouths.flatten(0, 1)[picked].float() / 127.5 - 1
        images = torch.lerp(true, images.float()[:, :, rows, columns], self.lips[rows, columns])
        layout = {"memory_format": torch.channels_last}
        images, true = images.contiguous(**layout), true.contiguous(**layout)
        return plain_losses(images, true) | self.adversarial.losses(images, true) | {"preserved": preserved}

    def _pixel_total(self, losses: dict[str, Tensor], made: Tensor) -> Tensor:
        """Weighted sum; the adversarial loss is balanced with the others by their gradients in made."""
        settings = self.settings
        total = losses["l1"] + losses["edges"] + settings.texture_weight * losses["texture"]
        total = total + settings.feature_weight * losses["features"] + settings.preserve_weight * losses["preserved"]
        losses["weight"] = adversarial_weight(total, losses, made)
        return total + settings.adversarial_weight * losses["weight"] * losses["g_loss"]

    def losses(self, made: Tensor, clean: Tensor) -> dict[str, Tensor]:
        """Weighted errors of the latents, and of their difference from the window's mean.

        The second excludes the person's appearance, whose errors would outweigh the movement.
        """
        motion = (made - made.mean(2, keepdim=True), clean - clean.mean(2, keepdim=True))
        return {
            "clean": (F.mse_loss(made, clean, reduction="none") * self.weights).mean(),
            "motion": (F.mse_loss(*motion, reduction="none") * self.weights).mean(),
        }

    def save(self, path: Path) -> None:
        save_checkpoint(
            path,
            step=self.step,
            settings=asdict(self.settings),
            average=self.average.module.state_dict(),
            updates=self.average.n_averaged,
            whitening=self.whitening,
            unet=self.unet.state_dict(),
            decoder=self.decoder.state_dict(),
            average_decoder=self.average_decoder.module.state_dict(),
            head=self.head.state_dict(),
            critic=self.adversarial.critic.state_dict(),
            critic_optimizer=self.adversarial.optimizer.state_dict(),
            optimizer=self.optimizer.state_dict(),
            random=self.random.bit_generator.state,
            torch_random=torch.get_rng_state(),
        )

    def load(self, path: Path) -> None:
        parts = torch.load(path, weights_only=True)
        self.step = parts["step"]
        self.average.module.load_state_dict(parts["average"])
        self.average_decoder.module.load_state_dict(parts["average_decoder"])
        for average in (self.average, self.average_decoder):
            average.n_averaged.copy_(parts["updates"])
        self.whitening = parts["whitening"]  # the weights depend on it, whatever the clips are now
        self.unet.load_state_dict(parts["unet"])
        self.decoder.load_state_dict(parts["decoder"])
        self.head.load_state_dict(parts["head"])
        self.adversarial.critic.load_state_dict(parts["critic"])
        self.adversarial.optimizer.load_state_dict(parts["critic_optimizer"])
        self.optimizer.load_state_dict(parts["optimizer"])
        self.schedule = cosine_schedule(self.optimizer, self.settings.steps, step=self.step)
        self.random.bit_generator.state = parts["random"]
        torch.set_rng_state(parts["torch_random"])


def start_from(unet: UNet, state: Mapping[str, Tensor]) -> None:
    """Copy weights, also of a network with fewer latent channels; weights of new channels are zero."""
    own = unet.state_dict()
    given = dict(state)
    few, many = (tensors["conv_out.weight"].shape[0] for tensors in (given, own))
    inputs = torch.zeros_like(own["conv_in.weight"])
    for i, o, size in ((0, 0, few), (few, many, 1), (few + 1, many + 1, few), (2 * few + 1, 2 * many + 1, few)):
        inputs[:, o : o + size] = given["conv_in.weight"][:, i : i + size]
    given["conv_in.weight"] = inputs
    for key in ("conv_out.weight", "conv_out.bias"):
        wider = torch.zeros_like(own[key])
        wider[:few] = given[key]
        given[key] = wider
    unet.load_state_dict(given)


def train_unet(
    variants: Sequence[Sequence[LatentClip]],
    clips: Sequence[Clip],
    folder: Path,
    settings: UNetTraining,
    vae: VAE,
    *,
    init: Path | None = None,
    on_report: Report | None = None,
) -> UNetTrainer:
    """Train, or resume from folder/unet.pt; a checkpoint every 5 reports. init: weights that a new run starts from.

    The decoder of vae is trained too.
    """
    trainer, checkpoint = UNetTrainer(variants, clips, settings, vae), folder / "unet.pt"
    if checkpoint.exists():
        trainer.load(checkpoint)
    elif init:
        parts = torch.load(init, weights_only=True)
        start_from(trainer.unet, parts["unet"])
        trainer.whitening = parts["whitening"]
        trainer.average.module.load_state_dict(trainer.unet.state_dict())
        trainer.decoder.load_state_dict(parts["decoder"])
        trainer.average_decoder.module.load_state_dict(parts["decoder"])
        trainer.adversarial.critic.load_state_dict(parts["critic"])
    fit(trainer, checkpoint, save_every=5 * settings.report_every, on_report=on_report)
    return trainer
