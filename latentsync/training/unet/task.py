"""The U-Net as a Task: noise on latents, and judgement of the pictures that one evaluation leads to."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...errors import UserError
from ...face.align import latent_mask, mouth_mask
from ...models.syncnet import StableSyncNet
from ...models.unet import Block, UNet
from ...models.vae import VAE
from ...sampling import TRAIN_STEPS, alphas_cumprod
from ...weights.convert import save_model
from ...weights.files import read_tensors
from ...weights.identify import FileInfo
from ..dataset import ClipDataset, Sample, unit
from ..recipes import UNetRecipe
from . import losses as terms
from .lora import MARK, add_lora, load_lora_state, save_lora
from .samples import show_samples

FRAMES_AT_ONCE = 4
"""Frames that are decoded together when gradients flow: only these have their activations in memory."""


@dataclass(frozen=True)
class Judges:
    """What the pixel losses ask; None where a loss is off."""

    syncnet: StableSyncNet | None = None
    lpips: terms.Perceptual | None = None
    videomae: Callable[[Tensor], Tensor] | None = None

    def to(self, device: torch.device) -> None:
        for judge in (self.syncnet, self.lpips, self.videomae):
            if isinstance(judge, nn.Module):
                judge.to(device).eval().requires_grad_(False)


def prepare_unet(unet: UNet, recipe: UNetRecipe) -> list[str]:
    """Put in what the recipe adds, and let exactly its parameters be trained; gives their names."""
    unet.requires_grad_(False)
    if recipe.lora:
        add_lora(unet, recipe.lora, recipe.lora_alpha, recipe.seed)
    for module in unet.modules():
        if isinstance(module, Block):
            module.checkpointing = recipe.checkpointing
    wanted = (MARK,) if recipe.lora else recipe.trains
    names = [name for name, _ in unet.named_parameters() if any(part in name for part in wanted)]
    for name in names:
        unet.get_parameter(name).requires_grad_(True)
    return names


class UNetTask:
    """See Task. facts: metadata for the weight file. vae_state: to be saved with it, where the VAE is no common one.

    dtype: of the arithmetic of VAE and judges, as the trainer's precision has it.
    """

    def __init__(
        self,
        unet: UNet,
        vae: VAE,
        recipe: UNetRecipe,
        data: ClipDataset,
        held: ClipDataset | None = None,
        judges: Judges | None = None,
        *,
        facts: Mapping[str, Any] | None = None,
        vae_state: Mapping[str, Tensor] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.judges, self.recipe = judges or Judges(), recipe
        self._check(unet, vae)
        self.network, self.vae = unet, vae
        self.trained = prepare_unet(unet, recipe)
        self.data, self.held = data, held
        self.facts, self.vae_state, self.dtype = dict(facts or {}), vae_state, dtype
        self.result = "lora.safetensors" if recipe.lora else "unet.safetensors"
        info = FileInfo(Path(self.result), "unet", "in training", prediction_type=recipe.prediction_type)
        object.__setattr__(unet, "info", info)  # sampling asks it what the network predicts
        self.bars = alphas_cumprod().float()
        self.keep = torch.from_numpy(mouth_mask(recipe.resolution))
        self.mask = torch.from_numpy(latent_mask(recipe.resolution, vae.factor))

    def _check(self, unet: UNet, vae: VAE) -> None:
        recipe, judges = self.recipe, self.judges
        missing = [
            f"{name} (its weight is {weight:g})"
            for name, weight, judge in (
                ("SyncNet", recipe.sync_weight, judges.syncnet),
                ("LPIPS", recipe.lpips_weight, judges.lpips),
                ("VideoMAE", recipe.trepa_weight, judges.videomae),
            )
            if weight and judge is None
        ]
        if missing:
            raise UserError(f"The recipe wants a {' and a '.join(missing)}; give it, or set its weight to 0.")
        if vae.channels != unet.config.latent_channels:
            raise UserError(f"The VAE has {vae.channels} latent channels and the U-Net {unet.config.latent_channels}.")

    def to(self, device: torch.device) -> None:
        self.vae.to(device)
        self.judges.to(device)
        self.bars, self.keep, self.mask = (t.to(device) for t in (self.bars, self.keep, self.mask))

    # ---- losses ----

    def losses(self, network: nn.Module, batch: Sample, *, validating: bool = False) -> dict[str, Tensor]:
        clean, masked, reference = self.latents(batch)
        step, heard, noise = self.draw(batch["number"], clean.shape, validating=validating)
        bar = self.bars[step]
        noisy = terms.add_noise(clean, noise, bar)
        mask = self.mask.expand(len(clean), 1, clean.shape[2], -1, -1)
        seen = torch.cat((noisy, mask, masked, reference), 1)
        if seen.device.type == "cpu" and torch.is_grad_enabled():
            seen.requires_grad_()  # PyTorch 2.13 crashes in GroupNorm's gradients on a CPU where its input wants none
        output = network(seen, step, batch["audio"] * heard)
        wanted = terms.target(clean, noise, bar, self.recipe.prediction_type)
        out = {"noise": terms.noise_loss(output, wanted)}
        if self.recipe.supervises_pixels:
            out |= self.pixel_losses(terms.estimate(output, noisy, bar, self.recipe.prediction_type), batch)
        weights = {name: getattr(self.recipe, f"{name}_weight") for name in out}
        total = torch.stack([weights[name] * loss for name, loss in out.items()]).sum()
        return {"total": total, **out}

    def latents(self, batch: Sample) -> tuple[Tensor, Tensor, Tensor]:
        """Clean, masked and reference (B, C, F, h, w), from the cache or encoded now."""
        if "clean" in batch:
            parts = batch["clean"], batch["masked"], batch["reference_latents"]
        else:
            pixels, reference = unit(batch["pixels"]), unit(batch["reference"])
            parts = tuple(self.encode(torch.stack((pixels, pixels * self.keep, reference))))
        clean, masked, reference = (part.transpose(1, 2) for part in parts)
        return clean, masked, reference

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """(…, 3, R, R) in [-1, 1] to latents (…, C, h, w) float32."""
        with self._cast():
            return self.vae.encode(pixels.flatten(0, -4)).float().unflatten(0, pixels.shape[:-3])

    def encode_bytes(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, R, R) uint8 to the latents of the pictures and of the masked pictures, for the cache."""
        plain = unit(pixels.to(self.keep.device))
        clean, masked = self.encode(torch.stack((plain, plain * self.keep)))
        return clean, masked

    def draw(self, numbers: Tensor, shape: torch.Size, *, validating: bool) -> tuple[Tensor, Tensor, Tensor]:
        """What is random about samples, from their numbers: training step (B,), whether the speech is heard
        (B, 1, 1, 1), noise (B, C, F, h, w). In validation the steps are spread evenly and all is heard."""
        recipe, device = self.recipe, self.mask.device
        seed = recipe.validate_seed if validating else recipe.seed
        steps, heard, noises = [], [], []
        for number in numbers.tolist():
            random = np.random.default_rng([seed, number, 1])
            step, chance = int(random.integers(TRAIN_STEPS)), float(random.random())
            if validating:
                step, chance = int((number + 0.5) / recipe.validate_windows * TRAIN_STEPS) % TRAIN_STEPS, 1.0
            generator = torch.Generator().manual_seed(int(random.integers(2**63)))
            steps.append(step)
            heard.append(float(chance >= recipe.drop_audio))
            noises.append(terms.mixed_noise(shape[1:], generator, recipe.alpha))
        told = torch.tensor(heard, device=device)[:, None, None, None]
        return torch.tensor(steps, device=device), told, torch.stack(noises).to(device)

    def pixel_losses(self, estimate: Tensor, batch: Sample) -> dict[str, Tensor]:
        """Of the pictures that the estimated latents (B, C, F, h, w) decode to."""
        recipe, judges = self.recipe, self.judges
        frames = np.linspace(0, recipe.frames - 1, recipe.decoded).round().astype(int).tolist()
        true, made = unit(batch["pixels"][:, frames]), self.decode(estimate.transpose(1, 2)[:, frames])
        out = {}
        with self._cast():
            if recipe.sync_weight and judges.syncnet is not None:
                seen = terms.sync_input(made, estimate.transpose(1, 2), judges.syncnet)
                out["sync"] = terms.sync_loss(terms.similarity(judges.syncnet, seen, batch["mel"]))
            if recipe.lpips_weight and judges.lpips is not None:
                out["lpips"] = terms.perceptual_loss(made, true, judges.lpips)
            if recipe.trepa_weight and judges.videomae is not None:
                out["trepa"] = terms.trepa_loss(made, true, judges.videomae)
        return out

    def decode(self, latents: Tensor) -> Tensor:
        """(B, F, C, h, w) to pictures (B, F, 3, R, R). Gradients flow; activations are kept for a few frames only."""
        parts = []
        for part in latents.flatten(0, 1).split(FRAMES_AT_ONCE):
            with self._cast():
                keeps = self.recipe.checkpointing and part.requires_grad
                parts.append(checkpoint(self.vae.decode, part, use_reentrant=False) if keeps else self.vae.decode(part))
        return torch.cat(parts).float().unflatten(0, latents.shape[:2])  # pyright: ignore[reportArgumentType, reportCallIssue]

    def _cast(self) -> torch.autocast:
        return torch.autocast(self.mask.device.type, self.dtype, enabled=self.dtype != torch.float32)

    # ---- what it shows and leaves ----

    def show(self, folder: Path, step: int) -> dict[str, float]:
        return show_samples(self, folder, step) if self.recipe.sample_clips else {}

    def save(self, folder: Path, state: dict[str, Tensor], step: int) -> None:
        facts = {
            "prediction_type": self.recipe.prediction_type,
            "resolution": self.recipe.resolution,
            "vae_scaling": self.vae.scaling,
            "vae_shift": self.vae.shift,
            "steps": step,
            **self.facts,
        }
        if self.recipe.lora:
            save_lora(folder / self.result, self.network, {name: _text(value) for name, value in facts.items()})
            return
        save_model(folder / self.result, state, vae_state=self.vae_state, metadata=facts)
        if self.recipe.public_form:
            plain = {key: tensor.detach().cpu() for key, tensor in state.items()}
            torch.save({"global_step": step, "state_dict": plain}, folder / "unet.pt")

    def load(self, folder: Path) -> None:
        state = read_tensors(folder / self.result)
        if self.recipe.lora:
            load_lora_state(self.network, state)
            return
        own = {k.removeprefix("unet."): v for k, v in state.items() if not k.startswith("vae.")}
        try:
            self.network.load_state_dict(own, strict=True)
        except RuntimeError as error:
            raise UserError(
                f"{folder} holds another network than this recipe trains; give a new --out, or the same options."
            ) from error


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
