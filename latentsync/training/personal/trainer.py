"""Training steps of a model of one person: a LoRA of the U-Net, and the VAE's decoder where it is small."""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import default_collate

from ...models.unet import UNet
from ...models.unet_blocks import Block
from ...models.vae import VAE
from ...sampling import TRAIN_STEPS, alphas_cumprod
from ..dataset import Sample, to_device, to_signed
from ..loop import Trainer, trapezoid
from ..optim import averaged_model
from ..unet.codec import Codec
from ..unet.critic import AdversarialLoss, adversarial_weight
from ..unet.lora import LORA_KEY, add_lora
from ..unet.losses import add_noise, mixed_noise, predict_clean, target
from ..unet.picture_losses import plain_losses
from .examples import Examples
from .settings import PersonalSettings
from .told import Told

KEPT, LIPS = 0.05, 4.0
"""Weights of latent cells that are not repainted, and of those around the lips."""
MOUTH = ((0.5, 0.84), (0.28, 0.72))
"""Where lips and chin lie in an aligned crop: rows and columns, as shares of its side."""
TILE = (0.42, 0.5)
"""Rows and columns of the part that is decoded for losses, as shares of the crop."""
TILE_TOP, TILE_LEFT = (0.42, 0.55), (0.2, 0.3)
"""Where its corner lies."""


class PersonalTrainer(Trainer):
    """Holds the networks and takes steps. Deterministic for a seed on one machine."""

    warmup = 30

    def __init__(self, unet: UNet, vae: VAE, examples: Examples, settings: PersonalSettings, codec: Codec) -> None:
        torch.manual_seed(settings.seed)
        self.settings, self.examples, self.codec = settings, examples, codec
        self.random = np.random.default_rng(settings.seed)
        self.unet = prepare(unet, settings)
        self.decoder = vae.model.decoder.requires_grad_(settings.decoder)
        self.told = tell(unet, examples, settings)
        self.lora = nn.ParameterList(p for name, p in unet.named_parameters() if LORA_KEY in name)
        self.picture = nn.ParameterList(p for p in self.decoder.parameters() if p.requires_grad)
        groups: list[Any] = [{"params": [*self.lora], "lr": settings.learning_rate}]
        if settings.decoder:
            groups.append({"params": [*self.picture], "lr": settings.decoder_learning_rate})
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01)
        self.schedule = trapezoid(self.optimizer, settings.steps, warmup=self.warmup)
        shapes = [] if self.told is None else [*self.told.offsets.parameters()]
        self.shapes = torch.optim.SparseAdam(shapes, lr=settings.shape_rate, betas=(0.5, 0.9)) if shapes else None
        self.average = averaged_model(nn.ParameterList([*self.lora, *self.picture]), settings.ema_decay)
        self.adversarial = AdversarialLoss()
        self.adversarial.to(codec.device)
        self.alphas_cumprod = alphas_cumprod().float().to(codec.device)
        self.weights = cell_weights(codec.mask)
        # PyTorch's fused attention is slow backwards on a CPU: a quarter of the step. What checkpointing computes again
        # would be computed with it all the same, and fit no more
        self.fused = codec.device.type != "cpu" or settings.checkpointing
        self.step = 0

    def plan_steps(self, steps: int) -> None:
        """Take so many in all; soon after the start, before the learning rate falls."""
        self.settings = replace(self.settings, steps=steps)
        self.schedule = trapezoid(self.optimizer, steps, warmup=self.warmup, step=self.step)

    def train_step(self) -> dict[str, Tensor]:
        settings, batch = self.settings, self.batch()
        if self.told is not None:
            self.told.moments = batch["moments"].flatten()
        losses = self.losses(self.unet, batch)
        if self.told is not None:
            losses["total"] = (
                losses["total"] + settings.shape_weight * self.told.offsets(self.told.moments).square().mean()
            )
            self.told.moments = None
        self.optimizer.zero_grad(set_to_none=True)
        if self.shapes is not None:
            self.shapes.zero_grad()
        losses["total"].backward()
        for part in (self.lora, self.picture):
            nn.utils.clip_grad_norm_(part, 1.0)
        self.optimizer.step()
        if self.shapes is not None:
            self.shapes.step()
        self.schedule.step()
        self.average.update_parameters(nn.ParameterList([*self.lora, *self.picture]))
        self.step += 1
        return {name: loss.detach() for name, loss in losses.items()}

    def batch(self) -> Sample:
        settings, scattered = self.settings, self.unet.config.motion == "none"
        draw = partial(
            self.examples.window, self.random, settings.frames, scattered=scattered, own=settings.own_reference
        )
        data: Any = default_collate([draw() for _ in range(settings.batch_size)])
        picked = self.random.choice(settings.batch_size * settings.frames, settings.decoded, replace=False)
        data["picked"] = torch.from_numpy(np.sort(picked))
        data["true"] = self.examples.pixels(data["moments"].flatten()[data["picked"]].numpy())
        return to_device(data, self.codec.device)

    def losses(self, network: nn.Module, batch: Sample) -> dict[str, Tensor]:
        """Of the batch's windows; "total" is what is minimized."""
        settings = self.settings
        clean, masked, reference = (batch[name].transpose(1, 2) for name in ("clean", "masked", "reference"))
        timestep, noise = self.draw(clean.shape)
        bar = self.alphas_cumprod[timestep]
        noisy = add_noise(clean, noise, bar)
        mask = self.codec.mask.expand(len(clean), 1, clean.shape[2], -1, -1)
        inputs = torch.cat((noisy, mask, masked, reference), 1)
        if inputs.device.type == "cpu":
            inputs.requires_grad_()  # see UNetTask.losses
        with self.codec.autocast(), nullcontext() if self.fused else sdpa_kernel(SDPBackend.MATH):
            output = network(inputs, timestep, batch["audio"])
        kind = self.unet.config.prediction_type
        made = predict_clean(output.float(), noisy, bar, kind)
        wanted = target(clean, noise, bar, kind)
        out = {"clean": (F.mse_loss(output.float(), wanted, reduction="none") * self.weights).mean()}
        total = settings.clean_weight * out["clean"]
        if settings.motion_weight:  # without the looks, whose errors outweigh the movement
            moved = (made - made.mean(2, keepdim=True), clean - clean.mean(2, keepdim=True))
            out["motion"] = (F.mse_loss(*moved, reduction="none") * self.weights).mean()
            total = total + settings.motion_weight * out["motion"]
        pictures = self.picture_losses(made, clean, batch)
        return {"total": total + pictures.pop("pictures"), **out, **pictures}

    def draw(self, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Timesteps (B,), and noise (B, C, F, h, w): one for all frames of a window, as in sampling."""
        settings, count = self.settings, shape[0]
        steps = self.random.integers(TRAIN_STEPS, size=count)
        steps[self.random.random(count) < settings.p_max_noise] = TRAIN_STEPS - 1
        generator = torch.Generator().manual_seed(int(self.random.integers(2**63)))
        one = (shape[1], 1, *shape[3:])
        noise = torch.stack([mixed_noise(torch.Size(one), generator, 0.0).expand(shape[1:]) for _ in range(count)])
        return torch.from_numpy(steps).to(self.codec.device), noise.to(self.codec.device)

    def picture_losses(self, made: Tensor, clean: Tensor, batch: Sample) -> dict[str, Tensor]:
        """Of some decoded mouths; "pictures" is their weighted sum. Where the decoder is trained, a third are of an
        encoder's latents, lest it forget those: all that is not repainted is still decoded by it."""
        settings, picked = self.settings, batch["picked"]
        latents = made.transpose(1, 2).flatten(0, 1)[picked]
        if settings.decoder:
            third = len(picked) // 3
            latents = torch.cat((clean.transpose(1, 2).flatten(0, 1)[picked[:third]], latents[third:]))
        rows, columns = self.tile(latents.shape[-1])
        images = self.decode(latents, rows, columns)
        factor = self.codec.vae.factor
        pixels = (slice(part.start * factor, part.stop * factor) for part in (rows, columns))
        true = to_signed(batch["true"])[:, :, next(pixels), next(pixels)].contiguous(memory_format=torch.channels_last)
        losses = plain_losses(images, true)
        total = losses["l1"] + losses["edges"] + losses["tones"] + settings.texture_weight * losses["texture"]
        if settings.adversarial and self.step >= settings.adversarial_from:
            losses |= self.adversarial.losses(images, true)
            total = total + settings.feature_weight * losses["features"]
            weight = adversarial_weight(total, losses, images)
            total = total + settings.adversarial_weight * weight * losses["g_loss"]
        return {"pictures": total, **losses}

    def tile(self, cells: int) -> tuple[slice, slice]:
        """Rows and columns of latent cells: over the lips, or a little above, or down to the chin."""
        parts = []
        for share, (low, high) in zip(TILE, (TILE_TOP, TILE_LEFT), strict=True):
            start = int(self.random.integers(round(low * cells), round(high * cells) + 1))
            parts.append(slice(start, min(cells, start + round(share * cells))))
        return parts[0], parts[1]

    def decode(self, latents: Tensor, rows: slice, columns: slice, margin: int = 1) -> Tensor:
        """(N, C, h, w) to the pixels of a tile, float32; only that and a cell around it are decoded."""
        wide = [slice(max(0, part.start - margin), part.stop + margin) for part in (rows, columns)]
        images = self.codec.decode(latents[None, :, :, wide[0], wide[1]])[0]
        factor = self.codec.vae.factor
        inner = []
        for part, around in zip((rows, columns), wide, strict=True):
            first = (part.start - around.start) * factor
            inner.append(slice(first, first + (part.stop - part.start) * factor))
        return images[:, :, inner[0], inner[1]]

    def parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        known: dict[str, nn.Module | torch.optim.Optimizer] = {
            "lora": self.lora,
            "picture": self.picture,
            "average": self.average.module,
            "critic": self.adversarial.critic,
            "critic_optimizer": self.adversarial.optimizer,
            "optimizer": self.optimizer,
        }
        if self.told is not None and self.shapes is not None:
            known |= {"told": self.told.offsets, "shapes": self.shapes}
        return known

    def averages(self) -> dict[str, AveragedModel]:
        return {"updates": self.average}


def prepare(unet: UNet, settings: PersonalSettings) -> UNet:
    """With a LoRA, of which alone gradients are kept."""
    unet.requires_grad_(False)
    add_lora(unet, settings.rank, seed=settings.seed, everywhere=settings.everywhere)
    for module in unet.modules():
        if isinstance(module, Block):
            module.checkpointing = settings.checkpointing
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(LORA_KEY in name)
    return unet.train()


def tell(unet: UNet, examples: Examples, settings: PersonalSettings) -> Told | None:
    """Only networks that make one token of a moment's speech."""
    if not (unet.config.audio_rank and settings.shape_rate):
        return None
    told = Told(unet.audio_projection, examples.audio)
    unet.add_module("audio_projection", told)
    return told


def cell_weights(keep: Tensor) -> Tensor:
    """(h, w) loss weight of each latent cell. keep: the mask, 1 where nothing is repainted."""
    weights = torch.where(keep > 0.5, KEPT, 1.0)
    side = len(weights)
    rows, columns = (slice(round(start * side), round(stop * side)) for start, stop in MOUTH)
    weights[rows, columns] *= LIPS
    return weights / weights.mean()
