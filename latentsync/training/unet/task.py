"""The U-Net's task: noise on latents, and losses on the images that its output decodes to."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UserError
from ...face.detect import FaceFinder
from ...models.perceptual import Perceptual
from ...models.syncnet import StableSyncNet
from ...models.unet import UNet
from ...models.unet_blocks import Block
from ...models.vae import VAE
from ...sampling import TRAIN_STEPS, alphas_cumprod
from ...weights.convert import save_model
from ...weights.files import read_tensors
from ..dataset import ClipDataset, Sample, to_signed
from ..recipes import UNetRecipe
from ..task import Event
from . import losses as terms
from .checks import check_networks
from .codec import Codec, spread_evenly
from .lip_sync import GivenVideo, Openings
from .lora import LORA_KEY, add_lora, load_lora_state, save_lora
from .samples import SampleWriter


@dataclass(frozen=True)
class PerceptualNets:
    """Frozen networks of the pixel losses; None where a loss is off."""

    syncnet: StableSyncNet | None = None
    lpips: Perceptual | None = None
    videomae: Callable[[Tensor], Tensor] | None = None

    def to(self, device: torch.device) -> None:
        for net in (self.syncnet, self.lpips, self.videomae):
            if isinstance(net, nn.Module):
                net.to(device).eval().requires_grad_(False)


def prepare_unet(unet: UNet, recipe: UNetRecipe) -> list[str]:
    """Add the recipe's LoRA, and set which parameters are trained; returns their names."""
    unet.requires_grad_(False)
    if recipe.lora:
        add_lora(unet, recipe.lora, recipe.lora_alpha, recipe.seed)
    for module in unet.modules():
        if isinstance(module, Block):
            module.checkpointing = recipe.gradient_checkpointing
    parts = (LORA_KEY,) if recipe.lora else recipe.trainable
    names = [name for name, _ in unet.named_parameters() if any(part in name for part in parts)]
    for name in names:
        unet.get_parameter(name).requires_grad_(True)
    return names


@dataclass
class UNetTask:
    """See Task. metadata: for the weight file. vae_state: saved with the network if it has a VAE of its own.

    dtype: of VAE and perceptual networks, as the trainer's precision has it. landmarker: the file, for the mouths of
    samples. given: a video to make at each validation.
    """

    network: UNet
    vae: InitVar[VAE]
    recipe: UNetRecipe
    data: ClipDataset
    validation: ClipDataset | None = None
    nets: PerceptualNets = PerceptualNets()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    vae_state: Mapping[str, Tensor] | None = None
    dtype: InitVar[torch.dtype] = torch.float32
    landmarker: Path | None = None
    given: GivenVideo | None = None
    criterion: str = "validation/total"

    def __post_init__(self, vae: VAE, dtype: torch.dtype) -> None:
        recipe, nets, unet = self.recipe, self.nets, self.network
        needed = (("SyncNet", recipe.sync_weight, nets.syncnet), ("LPIPS", recipe.lpips_weight, nets.lpips),
                  ("VideoMAE", recipe.trepa_weight, nets.videomae))  # fmt: skip
        missing = [f"{name} (its weight is {weight:g})" for name, weight, net in needed if weight and net is None]
        if missing:
            raise UserError(f"The recipe needs a {' and a '.join(missing)}; give it, or set its weight to 0.")
        check_networks(unet, vae, recipe, nets.syncnet)
        self.trained = prepare_unet(unet, recipe)
        self.result = "lora.safetensors" if recipe.lora else "unet.safetensors"
        self.stated = {name: getattr(recipe, name) for name in ("prediction_type", "reference_mode", "resolution")}
        unet.config = dataclasses.replace(unet.config, **self.stated)
        self.alphas_cumprod = alphas_cumprod().float()
        self.true_openings: dict[bytes, np.ndarray] = {}
        self.codec = Codec(vae, recipe.resolution, dtype, gradient_checkpointing=recipe.gradient_checkpointing)

    @property
    def frozen(self) -> list[nn.Module]:
        nets = self.nets.syncnet, self.nets.lpips, self.nets.videomae
        return [self.codec.vae, *(net for net in nets if isinstance(net, nn.Module))]

    @property
    def result_bytes(self) -> int:
        if self.recipe.lora:
            return sum(p.nbytes for p in self.network.parameters() if p.requires_grad)
        return sum(t.nbytes for t in [*self.network.state_dict().values(), *(self.vae_state or {}).values()])

    def dry_loss(self, network: Any, batch: Sample) -> Tensor:
        return self.losses(network, batch)["total"]

    def to(self, device: torch.device) -> None:
        self.codec.to(device)
        self.nets.to(device)
        self.alphas_cumprod = self.alphas_cumprod.to(device)

    def losses(self, network: nn.Module, batch: Sample, *, validating: bool = False) -> dict[str, Tensor]:
        recipe = self.recipe
        clean, masked, reference = self.latents(batch)
        timestep, audio_on, noise = self.draw(batch["number"], clean.shape, validating=validating)
        alpha_bar = self.alphas_cumprod[timestep]
        noisy = terms.add_noise(clean, noise, alpha_bar)
        mask = self.codec.mask.expand(len(clean), 1, clean.shape[2], -1, -1)
        inputs = torch.cat((noisy, mask, masked, reference), 1)
        if inputs.device.type == "cpu" and torch.is_grad_enabled():
            inputs.requires_grad_()  # PyTorch 2.13 crashes in GroupNorm's backward on a CPU if its input needs none
        output = network(inputs, timestep, batch["audio"] * audio_on)
        target = terms.target(clean, noise, alpha_bar, recipe.prediction_type)
        out = {"noise": F.mse_loss(output.float(), target.float())}
        if recipe.has_pixel_losses:
            out |= self.pixel_losses(terms.predict_clean(output, noisy, alpha_bar, recipe.prediction_type), batch)
        total = torch.stack([getattr(recipe, f"{name}_weight") * loss for name, loss in out.items()]).sum()
        return {"total": total, **out}

    def latents(self, batch: Sample) -> tuple[Tensor, Tensor, Tensor]:
        """Clean, masked and reference (B, C, F, h, w), from the cache or encoded now."""
        if "clean" in batch:
            parts = batch["clean"], batch["masked"], batch["reference_latents"]
        else:
            pixels, reference = to_signed(batch["pixels"]), to_signed(batch["reference"])
            parts = tuple(self.codec.encode(torch.stack((pixels, pixels * self.codec.keep, reference))))
        clean, masked, reference = (part.transpose(1, 2) for part in parts)
        return clean, masked, reference

    def draw(self, numbers: Tensor, shape: torch.Size, *, validating: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Timestep (B,), 1 for audio and 0 for none (B, 1, 1, 1), noise (B, C, F, h, w), from the samples' indices.

        In validation the timesteps are spread evenly and there is always audio.
        """
        recipe, device = self.recipe, self.codec.device
        seed = recipe.validate_seed if validating else recipe.seed
        timesteps, audio_on, noises = [], [], []
        for number in numbers.tolist():
            random = np.random.default_rng([seed, number, 1])
            timestep, chance = int(random.integers(TRAIN_STEPS)), float(random.random())
            if validating:
                timestep, chance = int((number + 0.5) / recipe.validate_windows * TRAIN_STEPS) % TRAIN_STEPS, 1.0
            generator = torch.Generator().manual_seed(int(random.integers(2**63)))
            timesteps.append(timestep)
            audio_on.append(float(chance >= recipe.drop_audio))
            noises.append(terms.mixed_noise(shape[1:], generator, recipe.alpha))
        flags = torch.tensor(audio_on, device=device)[:, None, None, None]
        return torch.tensor(timesteps, device=device), flags, torch.stack(noises).to(device)

    def pixel_losses(self, clean: Tensor, batch: Sample) -> dict[str, Tensor]:
        """clean: predicted latents (B, C, F, h, w)."""
        recipe, nets, latents = self.recipe, self.nets, clean.transpose(1, 2)
        frames = spread_evenly(recipe.frames, recipe.decoded_frames)
        true, made = to_signed(batch["pixels"][:, frames]), self.codec.decode(latents[:, frames])
        out = {}
        with self.codec.autocast():
            if recipe.sync_weight and nets.syncnet is not None:
                out["sync"] = terms.sync_loss(terms.similarities(nets.syncnet, made, latents, batch["mel"]))
            if recipe.lpips_weight and nets.lpips is not None:
                out["lpips"] = terms.perceptual_loss(made, true, nets.lpips)
            if recipe.trepa_weight and nets.videomae is not None:
                out["trepa"] = terms.trepa_loss(made, true, nets.videomae)
        return out

    def evaluate(self, folder: Path, step: int, event: Event) -> dict[str, float]:
        with nullcontext() if self.landmarker is None else FaceFinder(self.landmarker) as finder:
            values: dict[str, float] = {}
            if self.validation is not None and self.recipe.sample_clips:
                judges = self.nets.syncnet, None if finder is None else Openings(finder, self.true_openings)
                writer = SampleWriter(self.network, self.codec, self.recipe, self.validation, *judges)
                values |= writer.write(folder, step, event)
            if self.given is not None and finder is not None:
                made = folder / f"step-{step:08d}-given.mp4"
                values |= self.given.write(self.network, self.codec.vae, self.recipe, finder, made, event)
            return values

    def save(self, folder: Path, state: dict[str, Tensor], step: int) -> None:
        vae = {"vae_scaling": self.codec.vae.scaling, "vae_shift": self.codec.vae.shift}
        metadata = {**self.metadata, "steps": step} | self.stated | vae
        if self.recipe.lora:
            texts = {name: v if isinstance(v, str) else json.dumps(v) for name, v in metadata.items()}
            save_lora(folder / self.result, self.network, texts)
            return
        save_model(folder / self.result, state, vae_state=self.vae_state, metadata=metadata)
        if self.recipe.public_form:
            plain = {key: tensor.detach().cpu() for key, tensor in state.items()}
            torch.save({"global_step": step, "state_dict": plain}, folder / "unet.pt")

    def load(self, folder: Path) -> None:
        state = read_tensors(folder / self.result)
        if self.recipe.lora:
            load_lora_state(self.network, state)
            return
        unet = {k.removeprefix("unet."): v for k, v in state.items() if not k.startswith("vae.")}
        try:
            self.network.load_state_dict(unet, strict=True)
        except RuntimeError as error:
            raise UserError(
                f"{folder} holds another network than this recipe trains; give a new --out, or the same options."
            ) from error
