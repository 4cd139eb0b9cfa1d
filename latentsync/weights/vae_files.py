"""VAE files in the diffusers and the original layout; those of tiny autoencoders are in `tiny_vae_files`."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..files import getting, parse_json
from ..models.libraries import hide_broken_torchvision
from ..models.tiny_vae import TinyVAE
from ..models.vae import GROUPS, SCALING, VAE
from ..weights.files import Shape, file_in, mismatch, our_metadata, read_header, read_tensors, shapes_of
from ..weights.registry import find, get, is_registered
from . import tiny_vae_files as tiny

PREFIXES = ("", "vae.", "first_stage_model.")
_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
_OLD_ATTENTION = (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))
_LDM_ATTENTION = (("norm", "group_norm"), ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0"))
_FOLDER_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


def load_vae(
    name_or_path: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> VAE:
    """A VAE from a known name ("vae", "nano", "taesd"), a file, or a folder.

    Read are the diffusers layout (with old or new attention names), the original one (bare, or inside a Stable
    Diffusion checkpoint), our own files, and TAESD as diffusers' AutoencoderTiny or as its two original files.
    Scaling and shift come from the file's metadata, else 0.18215 (TAESD: 1) and 0.
    Raises UserError when anything is missing, unexpected or of another shape.
    """
    state, facts, label = _read(name_or_path)
    is_tiny = tiny.find_prefix(state) is not None
    try:
        state = state if is_tiny else diffusers_layout(state)
        state = {key: tensor.to(dtype, copy=True) for key, tensor in state.items()}
        model = tiny.build(state) if is_tiny else _build(state, int(facts.get("vae_groups", GROUPS)))
    except UserError as error:
        raise UserError(f"{label} is not a usable VAE: {error}") from error
    model = model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    kind, scaling = (TinyVAE, 1.0) if is_tiny else (VAE, SCALING)
    vae = kind(model, scaling=float(facts.get("vae_scaling", scaling)), shift=float(facts.get("vae_shift", 0.0)))
    return vae.eval().requires_grad_(False)


def _read(source: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str], str]:
    path = Path(source)
    if not path.exists() and isinstance(source, str) and is_registered(source):
        path = tiny.find_taesd() if get(source).kind == "taesd" else find(source)
    if halves := tiny.halves_of(path):
        return tiny.read_halves(halves), {}, str(path)
    facts = our_metadata(path) if path.is_file() else _folder_facts(path)
    path = file_in(path, _FOLDER_FILES)
    keys = read_header(path).shapes
    prefix, parts = find_prefix(keys), _PARTS
    if prefix is None:
        prefix, parts = tiny.find_prefix(keys), ("encoder.layers.", "decoder.layers.")
    if prefix is None:
        raise UserError(f"{path} holds no VAE; give Stable Diffusion's ({getting('vae')}), in either layout.")
    wanted = [key for key in keys if key.startswith(tuple(prefix + part for part in parts))]
    # A prefix marks a part of a bigger file; without one, whatever else is inside is a surprise.
    wanted = wanted if prefix else [key for key in keys if not key.startswith(("loss.", "model_ema."))]
    return {k.removeprefix(prefix): v for k, v in read_tensors(path, wanted).items()}, facts, str(path)


def _folder_facts(path: Path) -> dict[str, str]:
    try:
        config = parse_json((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(config, dict):
        return {}
    names = (("scaling_factor", "vae_scaling"), ("shift_factor", "vae_shift"), ("norm_num_groups", "vae_groups"))
    return {ours: str(config[theirs]) for theirs, ours in names if config.get(theirs) is not None}


def find_prefix(keys: Iterable[str]) -> str | None:
    """What stands before "encoder.conv_in.weight" and "decoder.conv_in.weight"; None when there is no VAE."""
    keys = set(keys)
    for prefix in PREFIXES:
        if any(f"{prefix}{part}.conv_in.weight" in keys for part in ("encoder", "decoder")) and any(
            key.startswith(f"{prefix}decoder.") for key in keys
        ):
            return prefix
    return None


def is_original(keys: Iterable[str]) -> bool:
    """True for the layout of the original (CompVis) code."""
    return any(re.search(r"(encoder\.down|decoder\.up)\.\d|\.mid\.block_\d", key) for key in keys)


def diffusers_layout(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the names that diffusers uses today, attention as plain matrices."""
    levels = _levels(state, r"decoder\.up\.(\d+)\.")
    out = {_diffusers_name(key, levels): tensor for key, tensor in state.items()}
    for key, tensor in out.items():  # the original stores the attention's matrices as 1×1 convolutions
        if ".attentions." in key and key.endswith("weight") and tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
            out[key] = tensor.flatten(1)
    return out


def _diffusers_name(key: str, levels: int) -> str:
    """decoder.up.0.block.1 here is decoder.up_blocks.3.resnets.1 there: the original counts from the finest level."""
    key = re.sub(r"^encoder\.down\.(\d+)\.block\.(\d+)\.", r"encoder.down_blocks.\1.resnets.\2.", key)
    key = re.sub(r"^encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0.", key)
    if found := re.match(r"decoder\.up\.(\d+)\.(.*)", key):
        inner = re.sub(r"^block\.(\d+)\.", r"resnets.\1.", found[2])
        inner = re.sub(r"^upsample\.", "upsamplers.0.", inner)
        key = f"decoder.up_blocks.{levels - 1 - int(found[1])}.{inner}"
    key = key.replace(".nin_shortcut.", ".conv_shortcut.")
    key = re.sub(r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out.", key)
    key = re.sub(r"\.mid\.block_(\d)\.", lambda m: f".mid_block.resnets.{int(m[1]) - 1}.", key)
    for old, new in _LDM_ATTENTION:
        key = re.sub(rf"\.mid\.attn_1\.{old}\.", f".mid_block.attentions.0.{new}.", key)
    for old, new in _OLD_ATTENTION:
        key = re.sub(rf"(\.attentions\.\d+)\.{old}\.", rf"\1.{new}.", key)
    return key


def _levels(keys: Iterable[str], pattern: str) -> int:
    return 1 + max((int(found[1]) for key in keys if (found := re.match(pattern, key))), default=-1)


def config_from_shapes(shapes: Mapping[str, Shape], groups: int = GROUPS) -> dict[str, Any]:
    """Arguments of diffusers' AutoencoderKL, read from the tensors of the diffusers layout."""
    levels = _levels(shapes, r"encoder\.down_blocks\.(\d+)\.")
    try:
        widths = tuple(shapes[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"][0] for i in range(levels))
        config = {
            "in_channels": shapes["encoder.conv_in.weight"][1],
            "out_channels": shapes["decoder.conv_out.weight"][0],
            "latent_channels": shapes["decoder.conv_in.weight"][1],
        }
    except (KeyError, IndexError) as error:
        raise UserError(f"missing: {error.args[0]}.") from error
    if not widths or any(width % groups for width in widths):
        raise UserError(f"its widths are {widths}, which do not divide into the {groups} groups of its norms.")
    return config | {
        "block_out_channels": widths,
        "layers_per_block": _levels(shapes, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "mid_block_add_attention": any("mid_block.attentions." in key for key in shapes),
        "use_quant_conv": any(key.startswith("quant_conv.") for key in shapes),
        "use_post_quant_conv": any(key.startswith("post_quant_conv.") for key in shapes),
        "norm_num_groups": groups,
    }


def _build(state: Mapping[str, Tensor], groups: int) -> nn.Module:
    hide_broken_torchvision()
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    shapes = shapes_of(state)
    config = config_from_shapes(shapes, groups)
    with torch.device("meta"):  # nothing is allocated, the global random generator is left alone
        model = AutoencoderKL(**config)
    if problem := mismatch(shapes_of(model.state_dict()), shapes):
        raise UserError(f"{problem}.")
    model.load_state_dict(dict(state), strict=True, assign=True)
    return model
