"""Loading U-Nets.

Our safetensors files carry these metadata, all of them text (readers must bear with any that is absent):

    format           "latentsync"
    kind             "unet", "nano" (U-Net and VAE in one file, keys "unet.…" and "vae.…"), "vae", "syncnet", "whisper"
    version          "1.5", "1.6", "nano" or the trainer's own word
    resolution       side of the face crop in pixels, "256"
    prediction_type  "epsilon" (published weights), "sample" (clean latents) or "v_prediction"
    latent_channels  "4"
    vae_scaling      latents = (posterior mean − vae_shift) · vae_scaling; "0.18215", a tiny VAE "1.0"
    vae_shift        "0.0"
    vae_groups       GroupNorm groups of the VAE and of the U-Net where they are not 32, which shapes do not tell
    unet_groups
    unet_residual    "lips" or "jaw" where the U-Net's output is to be added to the reference's latents, that far around
                     the mouth; older files say "reference" for "lips"
    reference_mode   "first_frame" where one reference frame serves a whole segment; else "per_frame"
    default_steps    solver steps and guidance that suit the weights, where they are not 20 and 1.5
    default_guidance
    timestep_spacing "trailing" of a network distilled to few steps, which begins at the noisiest; else "leading"
    latent_rgb       JSON, a row (R, G, B) for each latent channel and one for the bias: latents to a rough picture in
                     [-1, 1], for previews
    config           the U-Net's UNetConfig as JSON, for readers; loading goes by the tensors
    source_sha256    of the file that it was converted from
    license          of the weights, "OpenRAIL++"
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..models.unet import UNet
from ..models.unet_config import SPACINGS, UNetConfig, config_from_tensors
from ..settings import Settings
from .files import mismatch, our_metadata, read_tensors, shapes_of
from .identify import FileInfo, _unet_part, check_is_unet, identify
from .registry import find, is_registered

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_COPY_BELOW = 512_000_000  # bytes; bigger ones stay mapped from the file instead of being copied into memory


def default_settings(checkpoint: str | os.PathLike[str]) -> Settings:
    """The defaults, with the steps and the guidance that a checkpoint asks for if it is on this machine."""
    try:
        path = locate(checkpoint)
    except UserError:  # it is not here
        return settings_of({})
    return settings_of(our_metadata(path) if path.exists() else {})


def settings_of(metadata: Mapping[str, Any]) -> Settings:
    """The same from a checkpoint's metadata. UserError where the numbers there make no sense."""
    config = _stated(UNetConfig(), metadata)
    return Settings(steps=config.default_steps, guidance=config.default_guidance)


def load_unet(
    name_or_path: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    resolution: int | None = None,
    build: Callable[[UNetConfig], UNet] = UNet,
    change: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None,
) -> UNet:
    """A U-Net from "nano", "1.5", "1.6" or a file, every tensor accounted for, in eval mode, without gradients.

    Its `config.resolution` is `resolution` when given, else the file's (0 when neither says: a re-saved 1.5 and 1.6
    look alike). build makes the empty module: a host has layers of its own. change is applied to the tensors of the
    file.
    Raises UserError when the file is anything else or not complete.
    """
    path = locate(name_or_path)
    info = identify(path)
    check_is_unet(info)
    state = _unet_part(read_tensors(path))
    config = config_of(state, info)
    state = state if change is None else change(state)
    if resolution is not None:
        config = dataclasses.replace(config, resolution=resolution)
    small = sum(tensor.numel() * tensor.element_size() for tensor in state.values()) < _COPY_BELOW
    # the network's activations are channels_last, and convolutions want their weights alike
    layouts = {4: torch.channels_last}
    state = {
        key: tensor.to(device, dtype, copy=small, memory_format=layouts.get(tensor.ndim, torch.preserve_format))
        for key, tensor in state.items()
    }
    with torch.device("meta"):
        unet = build(config)
    load_state(unet, state)
    return unet.eval().requires_grad_(False)


def config_of(state: Mapping[str, Tensor], info: FileInfo) -> UNetConfig:
    """The architecture: from names and shapes of the tensors, and from the metadata what these do not tell."""
    config = _stated(config_from_tensors(shapes_of(state)), info.metadata)
    return dataclasses.replace(config, resolution=info.resolution or 0)


OLD_KEYS = {"usual_steps": "default_steps", "usual_guidance": "default_guidance", "reference": "reference_mode"}
OLD_VALUES = {"still": "first_frame"}
"""Metadata as files of before version 0.2 spell it."""


def _stated(config: UNetConfig, metadata: Mapping[str, Any]) -> UNetConfig:
    """With what a file's metadata state beside the tensors. UserError where that makes no sense."""
    stated = {OLD_KEYS.get(key, key): OLD_VALUES.get(str(value), str(value)) for key, value in metadata.items()}
    mode = stated.get("reference_mode", config.reference_mode)
    residual: Any = {"reference": "lips"}.get(value := stated.get("unet_residual", "none"), value)
    try:
        steps = int(stated.get("default_steps", config.default_steps))
        guidance = float(stated.get("default_guidance", config.default_guidance))
        groups = int(stated.get("unet_groups", config.groups))
    except ValueError as error:
        raise UserError(
            f"The file's metadata (default_steps, default_guidance, unet_groups) hold no number: {error}."
        ) from error
    if not 1 <= steps <= 1000 or not 0 < guidance <= 20 or groups < 1 or mode not in ("per_frame", "first_frame"):
        raise UserError(
            f"The file states default_steps {steps}, default_guidance {guidance:g}, unet_groups {groups} and"
            f" reference_mode {mode!r}; wanted are 1 to 1000, up to 20, at least 1, and per_frame or first_frame."
        )
    if (spacing := stated.get("timestep_spacing", config.timestep_spacing)) not in SPACINGS:
        raise UserError(f"The file states timestep_spacing {spacing!r}; wanted is {' or '.join(SPACINGS)}.")
    if residual not in ("none", "lips", "jaw"):
        raise UserError(f"The file states unet_residual {residual!r}; wanted is none, lips or jaw.")
    return dataclasses.replace(
        config,
        groups=groups,
        residual=residual,
        prediction_type=stated.get("prediction_type") or config.prediction_type,
        reference_mode=mode,
        default_steps=steps,
        default_guidance=guidance,
        timestep_spacing=spacing,
    )


OF_THE_FILE = frozenset((
    "format", "kind", "version", "config", "resolution", "prediction_type", "latent_channels", "reference_mode",
    "steps", "vae_scaling", "vae_shift", "source_sha256", "lora",
))  # fmt: skip
"""Metadata that describe a file itself, and that whoever writes another one states anew."""


def inherited(info: FileInfo) -> dict[str, str]:
    """The metadata of a checkpoint that hold for weights made from it as well: license, default steps and guidance,
    what the shapes do not tell, and whatever else its author wrote there."""
    named = {OLD_KEYS.get(key, key): value for key, value in info.metadata.items()}
    kept = {key: value for key, value in named.items() if key not in OF_THE_FILE}
    return kept | ({"license": info.license} if info.license else {})


def load_state(unet: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a module (built on "meta") these very tensors. UserError naming what is missing, unknown or misshapen."""
    if problem := mismatch(shapes_of(unet.state_dict()), shapes_of(state)):
        raise UserError(f"These tensors do not fit the U-Net; {problem}.")
    unet.load_state_dict(dict(state), strict=True, assign=True)


def locate(name_or_path: str | os.PathLike[str]) -> Path:
    """The file of a registered name, else the path itself."""
    path = Path(name_or_path)
    if isinstance(name_or_path, str) and not path.is_file() and is_registered(name_or_path):
        return find(name_or_path)
    return path
