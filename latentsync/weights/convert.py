"""Writing our own safetensors files: converting a checkpoint, saving a trained one."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..errors import UserError
from ..models.unet_config import STATED, config_from_tensors
from .download import sha256
from .files import Progress, Shape, read_tensors, shapes_of, write_safetensors
from .identify import PREDICTIONS, FileInfo, _entry_of_size, _unet_part, identify
from .load import DTYPES, locate


def save_model(
    path: str | os.PathLike[str],
    unet_state: Mapping[str, Tensor],
    *,
    vae_state: Mapping[str, Tensor] | None = None,
    metadata: Mapping[str, object],
) -> Path:
    """Write a U-Net, or U-Net and VAE together, as our safetensors; the file gets its name when it is whole.

    metadata: any of the keys above; format, kind, config and latent_channels are filled in from the tensors.
    vae_state: in the diffusers layout.
    """
    facts = {"kind": "unet" if vae_state is None else "nano", **_unet_facts(shapes_of(unet_state)), **metadata}
    if str(facts["prediction_type"]) not in PREDICTIONS:
        raise UserError(f"prediction_type is {facts['prediction_type']!r}; it must be one of {', '.join(PREDICTIONS)}.")
    tensors = dict(unet_state)
    if vae_state is not None:
        tensors = {f"unet.{k}": v for k, v in unet_state.items()} | {f"vae.{k}": v for k, v in vae_state.items()}
    return write_safetensors(path, tensors, _as_text(facts))


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    dtype: str = "fp16",
    resolution: int | None = None,
    version: str | None = None,
    on_progress: Progress | None = None,
) -> Path:
    """Rewrite a U-Net, VAE or SyncNet as our safetensors in fp16, bf16 or fp32, one tensor in memory at a time.

    resolution and version: for a U-Net that neither its size nor its metadata tells. The source is checked by its
    SHA-256 where that is known. Raises UserError; `dst` is complete or untouched.
    """
    path, dst = locate(src), Path(dst)
    if dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}.")
    if dst.suffix != ".safetensors":
        raise UserError(f"convert writes safetensors; name the output {dst.with_suffix('.safetensors').name}.")
    info = identify(path)
    if info.problem:
        raise UserError(info.problem)
    if info.kind not in ("unet", "nano", "vae", "syncnet"):
        raise UserError(f"{path} is {info.title}; convert takes a U-Net, a VAE or a SyncNet.")
    facts = _facts_of(info, resolution, version)
    tensors = read_tensors(path)
    if info.kind == "unet":
        tensors = _unet_part(tensors)
        facts |= _unet_facts(shapes_of(tensors)) | {"prediction_type": info.prediction_type}
    return write_safetensors(dst, tensors, _as_text(facts), dtype=DTYPES[dtype], on_progress=on_progress)


def _facts_of(info: FileInfo, resolution: int | None, version: str | None) -> dict[str, object]:
    digest = sha256(info.path)
    entry = _entry_of_size(info.bytes, info.kind)
    if entry and entry.sha256 and entry.sha256 != digest:
        raise UserError(f"{info.path} has the size of {entry.title} but not its SHA-256; download it again.")
    facts: dict[str, object] = dict(info.metadata)
    facts |= {"kind": info.kind, "source_sha256": digest}
    if info.kind in ("unet", "nano"):
        facts |= {"version": version or info.version, "resolution": resolution or info.resolution}
    if entry:
        facts |= {"license": entry.license}
    return facts


def _unet_facts(shapes: Mapping[str, Shape]) -> dict[str, object]:
    config = config_from_tensors(shapes)
    return {
        "prediction_type": "epsilon",
        "latent_channels": config.latent_channels,
        "vae_scaling": 0.18215,
        "vae_shift": 0.0,
        "config": json.dumps({key: value for key, value in dataclasses.asdict(config).items() if key not in STATED}),
    }


def _as_text(facts: Mapping[str, object]) -> dict[str, str]:
    known = {key: value for key, value in facts.items() if value is not None}
    text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in known.items()}
    return {"format": "latentsync"} | text
