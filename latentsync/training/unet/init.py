"""What a U-Net begins with: Stable Diffusion 1.5, a LatentSync file, or nothing but a seed."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ...errors import UserError
from ...models.unet import UNet, UNetConfig, config_from_tensors
from ...weights.files import read_tensors, shapes_of
from ...weights.identify import FileInfo, check_is_unet, identify
from ...weights.load import config_of
from ...weights.registry import find, is_registered, model_folders
from ..recipes import UNetRecipe, unet_config

SD15_FILES = ("v1-5-pruned-emaonly.safetensors", "v1-5-pruned.safetensors", "sd15.safetensors")
_HEARD = ".attn2."
_FAR = "time_embed.", "input_blocks.", "middle_block.", "output_blocks.", "out."
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


@dataclass(frozen=True)
class Start:
    """A network to train, and what its file said. new: parameters that no file gave. bundle: has a VAE of its own.

    still: it takes one frame of reference for a whole stretch."""

    unet: UNet
    prediction_type: str
    resolution: int | None
    new: tuple[str, ...]
    bundle: Path | None = None
    still: bool = False
    latent_rgb: str | None = None


def start_from(init: str, recipe: UNetRecipe, *, size: str = "full", audio_dim: int = 384, channels: int = 4) -> Start:
    """init: "none", "sd15", a known name ("1.5", "1.6", "nano") or a file. size, audio_dim and channels (of the
    latents) are for networks that begin with nothing; a Stable Diffusion brings its size. The seed is the recipe's."""
    if init == "none":
        unet = _fresh(unet_config(size, recipe.motion, audio_dim, channels), recipe.seed)
        return Start(unet, recipe.prediction_type, None, tuple(name for name, _ in unet.named_parameters()))
    path = locate(init)
    info = identify(path)
    if info.kind == "sd15":
        return _from_sd15(read_tensors(path), recipe, audio_dim)
    check_is_unet(info)
    return _from_latentsync(info, recipe)


def locate(init: str) -> Path:
    """The file of a known name, of "sd15", or of that path."""
    if init == "sd15":
        places = [folder / name for folder in model_folders() for name in SD15_FILES]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise UserError(
                f"No Stable Diffusion 1.5 ({' or '.join(SD15_FILES[:2])}) is in {model_folders()[0]}; give its path."
            )
        return found
    path = Path(init)
    return find(init) if not path.is_file() and is_registered(init) else path


def _fresh(config: UNetConfig, seed: int) -> UNet:
    """Usual initial weights, from the seed alone. A motion module starts without effect: its last layer is zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet(config)
    for module in unet.modules():
        motion = getattr(module, "temporal_transformer", None)
        if motion is not None:
            nn.init.zeros_(motion.proj_out.weight)
            nn.init.zeros_(motion.proj_out.bias)
    return unet


def _from_latentsync(info: FileInfo, recipe: UNetRecipe) -> Start:
    tensors = read_tensors(info.path)
    bundle = info.kind == "nano"
    state = {k.removeprefix("unet."): v for k, v in tensors.items() if not (bundle and k.startswith("vae."))}
    state = {_plain(key): value for key, value in state.items()}
    config = config_of(state, info)
    if config.motion not in ("none", recipe.motion):
        raise UserError(
            f"{info.path} has motion modules ({config.motion}) that this stage ({recipe.motion}) would throw away; take"
            " another stage, or set motion in the recipe's file."
        )
    unet = _fresh(dataclasses.replace(config, motion=recipe.motion), recipe.seed)
    new = _take_over(unet, state)
    prediction = info.prediction_type or "epsilon"
    still, colors = info.metadata.get("reference") == "still", info.metadata.get("latent_rgb")
    return Start(unet, prediction, info.resolution, new, info.path if bundle else None, still, colors)


def _plain(key: str) -> str:
    for prefix in ("model.diffusion_model.", "diffusion_model.", "module."):
        key = key.removeprefix(prefix)
    return key


def _from_sd15(tensors: Mapping[str, Tensor], recipe: UNetRecipe, audio_dim: int) -> Start:
    """Spatial layers taken over; attention to the speech and motion modules new; the new input channels count zero."""
    state = {key: t for key, t in sd_unet(tensors).items() if _HEARD not in key}
    shapes = shapes_of(sd_unet(tensors))
    latents = shapes["conv_out.weight"][0]
    heard = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    shapes["conv_in.weight"] = (shapes["conv_in.weight"][0], 3 * latents + 1, 3, 3)
    shapes[heard] = (shapes[heard][0], audio_dim)
    config = dataclasses.replace(config_from_tensors(shapes), motion=recipe.motion)
    first = torch.zeros(shapes["conv_in.weight"])
    first[:, :latents] = state["conv_in.weight"][:, :latents].float()
    unet = _fresh(config, recipe.seed)
    new = _take_over(unet, {**state, "conv_in.weight": first})
    return Start(unet, "epsilon", None, new)


def _take_over(unet: UNet, state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Copy every tensor of state into the network, and give the names of those that state lacks.

    Lacking may only what a stage adds: motion modules and the attention to the speech, each as a whole.
    """
    own = unet.state_dict()
    unknown = [key for key in state if key not in own]
    wrong = [key for key in state if key in own and state[key].numel() != own[key].numel()]
    new = tuple(key for key in own if key not in state)
    odd = [key for key in new if "motion_modules." not in key and _HEARD not in key]
    if unknown or wrong or odd:
        first = [*unknown, *wrong, *odd][0]
        raise UserError(f"This file does not fit the network that the stage trains: look at {first}.")
    with torch.no_grad():
        for key, tensor in state.items():
            own[key].copy_(tensor.reshape(own[key].shape))
    return new


def sd_unet(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The U-Net of a Stable Diffusion 1.x file, in either layout, under diffusers' names."""
    prefix = "model.diffusion_model."
    inside = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    state = inside or {key.removeprefix("unet."): value for key, value in tensors.items()}
    if not any(key.startswith("input_blocks.") for key in state):
        return dict(state)
    layers = _layers(state)
    return {diffusers_name(key, layers): value for key, value in state.items() if key.startswith(_FAR)}


def _layers(state: Mapping[str, Tensor]) -> int:
    """Residual blocks of a level: the first downsampler comes after them."""
    downs = [int(m[1]) for key in state if (m := re.match(r"input_blocks\.(\d+)\.0\.op\.weight", key))]
    return (min(downs) if downs else len({k.split(".")[1] for k in state if k.startswith("input_blocks.")})) - 1


def diffusers_name(key: str, layers: int) -> str:
    """input_blocks.4.1.norm.weight there is down_blocks.1.attentions.0.norm.weight here, with 2 layers a level."""
    for old, new in _ENDS.items():
        if key.startswith(f"{old}."):
            return new + key.removeprefix(old)
    side, *rest = key.split(".")
    if side == "middle_block":
        part, inner = int(rest[0]), ".".join(rest[1:])
        return f"mid_block.{('resnets.0', 'attentions.0', 'resnets.1')[part]}.{_resnet_name(inner)}"
    number, part, inner = int(rest[0]), int(rest[1]), ".".join(rest[2:])
    if side == "input_blocks":
        level, layer = divmod(number - 1, layers + 1)
        if inner.startswith("op."):
            return f"down_blocks.{level}.downsamplers.0.conv.{inner.removeprefix('op.')}"
        return f"down_blocks.{level}.{('resnets', 'attentions')[part]}.{layer}.{_resnet_name(inner)}"
    level, layer = divmod(number, layers + 1)
    if inner.startswith("conv."):
        return f"up_blocks.{level}.upsamplers.0.{inner}"
    return f"up_blocks.{level}.{('resnets', 'attentions')[part]}.{layer}.{_resnet_name(inner)}"


def _resnet_name(inner: str) -> str:
    return next((new + inner.removeprefix(old) for old, new in _RESNET.items() if inner.startswith(f"{old}.")), inner)
