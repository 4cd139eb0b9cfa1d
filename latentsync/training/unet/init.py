"""The initial U-Net: Stable Diffusion 1.5, a LatentSync file, or random weights."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UserError
from ...models.libraries import hide_broken_torchvision
from ...models.unet import UNet
from ...models.unet_config import Motion, UNetConfig, config_from_tensors
from ...weights import load
from ...weights.files import read_tensors, shapes_of
from ...weights.identify import FileInfo, _unet_part, check_is_unet, identify
from ...weights.registry import model_folders
from ..recipes import UNetRecipe

SD15_FILES = ("v1-5-pruned-emaonly.safetensors", "v1-5-pruned.safetensors", "sd15.safetensors")
SD15_LICENSE = "CreativeML OpenRAIL-M"
_AUDIO_ATTENTION = ".attn2."
_UNET_PARTS = "time_embed.", "input_blocks.", "middle_block.", "output_blocks.", "out."

SIZES: dict[str, dict[str, Any]] = {
    "full": {},
    "small": {"widths": (64, 128, 256, 256)},
    "tiny": {"widths": (32, 32), "layers": 1, "cross": (True, True)},
}
"""Smaller networks, as differences from LatentSync's own (UNetConfig)."""


@dataclass(frozen=True)
class InitialUNet:
    """A network to train. new: parameters that are not from a file. metadata: what it inherits from its file's."""

    unet: UNet
    new: tuple[str, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)


def initial_unet(
    init: str, recipe: UNetRecipe, *, size: str = "full", audio_dim: int = 384, channels: int = 4
) -> InitialUNet:
    """init: "none", "sd15", a registered name or a file. size and channels (of the latents) apply to "none" only,
    audio_dim also to Stable Diffusion."""
    if init == "none":
        config = unet_config(size, recipe.motion, audio_dim, channels)
        unet = _new_unet(dataclasses.replace(config, prediction_type=recipe.prediction_type), recipe.seed)
        return InitialUNet(unet, tuple(name for name, _ in unet.named_parameters()))
    path = locate(init)
    info = identify(path)
    if info.kind == "sd15":
        return _from_sd15(read_tensors(path), recipe, audio_dim)
    check_is_unet(info)
    return _from_latentsync(info, recipe)


def unet_config(size: str, motion: Motion, audio_dim: int = 384, latent_channels: int = 4) -> UNetConfig:
    if size not in SIZES:
        raise UserError(f"size is {size!r}; it must be one of {', '.join(SIZES)}.")
    return UNetConfig(**SIZES[size], motion=motion, audio_dim=audio_dim, latent_channels=latent_channels)


def locate(init: str) -> Path:
    """The file of a registered name, of "sd15", or of that path."""
    if init != "sd15":
        return load.locate(init)
    for path in (folder / name for folder in model_folders() for name in SD15_FILES):
        if path.is_file():
            return path
    names = " or ".join(SD15_FILES[:2])
    raise UserError(f"No Stable Diffusion 1.5 ({names}) is in {model_folders()[0]}; give its path.")


def _new_unet(config: UNetConfig, seed: int) -> UNet:
    """Random weights from the seed. The last layer of every motion module is zero, so that it starts without effect."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet(config)
    for module in unet.modules():
        if (motion := getattr(module, "temporal_transformer", None)) is not None:
            nn.init.zeros_(motion.proj_out.weight)
            nn.init.zeros_(motion.proj_out.bias)
    return unet


def _from_latentsync(info: FileInfo, recipe: UNetRecipe) -> InitialUNet:
    state = _unet_part(read_tensors(info.path))
    config = load.config_of(state, info)
    if config.motion not in ("none", recipe.motion):
        raise UserError(
            f"{info.path} has motion modules ({config.motion}) that this stage ({recipe.motion}) would drop; take"
            " another --stage, or set motion in --config."
        )
    unet = _new_unet(dataclasses.replace(config, motion=recipe.motion), recipe.seed)
    return InitialUNet(unet, _copy_weights(unet, state), load.inherited(info))


def _from_sd15(tensors: Mapping[str, Tensor], recipe: UNetRecipe, audio_dim: int) -> InitialUNet:
    """Spatial layers from the file; audio attention and motion modules new; weights of new input channels zero."""
    state = {key: t for key, t in sd_unet(tensors).items() if _AUDIO_ATTENTION not in key}
    shapes = shapes_of(sd_unet(tensors))
    latents = shapes["conv_out.weight"][0]
    audio_key = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    shapes["conv_in.weight"] = (shapes["conv_in.weight"][0], 3 * latents + 1, 3, 3)
    shapes[audio_key] = (shapes[audio_key][0], audio_dim)
    config = dataclasses.replace(config_from_tensors(shapes), motion=recipe.motion)
    first = torch.zeros(shapes["conv_in.weight"])
    first[:, :latents] = state["conv_in.weight"][:, :latents].float()
    unet = _new_unet(config, recipe.seed)
    new = _copy_weights(unet, {**state, "conv_in.weight": first})
    return InitialUNet(unet, new, {"license": SD15_LICENSE})


def _copy_weights(unet: UNet, state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Copy every tensor of state into the network; returns the names of those that state lacks.

    It may lack only what a stage adds: motion modules and the attention to the audio.
    """
    own = unet.state_dict()
    odd = [key for key, tensor in state.items() if key not in own or tensor.numel() != own[key].numel()]
    new = tuple(key for key in own if key not in state)
    odd += [key for key in new if "motion_modules." not in key and _AUDIO_ATTENTION not in key]
    if odd:
        reason = f"{odd[0]} is missing, unknown or of another size"
        raise UserError(f"This file does not fit the network that the stage trains: {reason}.")
    with torch.no_grad():
        for key, tensor in state.items():
            own[key].copy_(tensor.reshape(own[key].shape))
    return new


def sd_unet(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The U-Net of a Stable Diffusion 1.x file, in either layout, under diffusers' names."""
    hide_broken_torchvision()
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    prefix = "model.diffusion_model."
    inside = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    state = inside or {key.removeprefix("unet."): value for key, value in tensors.items()}
    inputs = {int(key.split(".")[1]) for key in state if key.startswith("input_blocks.")}
    if not inputs:
        return dict(state)
    downs = [i for i in inputs if f"input_blocks.{i}.0.op.weight" in state]
    layers = min(downs, default=len(inputs)) - 1  # per level: the first downsampler comes after them
    original = {f"{prefix}{key}": value for key, value in state.items() if key.startswith(_UNET_PARTS)}
    return convert_ldm_unet_checkpoint(original, {"layers_per_block": layers})
