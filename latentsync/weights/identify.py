"""What a weight file is, from its metadata and its tensors' names and shapes."""

import dataclasses
import functools
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from ..files import command
from ..models.unet import UNet
from ..models.unet_config import UNetConfig, config_from_tensors
from .files import Header, Shape, mismatch, read_head, read_header, shapes_of, zip_names
from .registry import ENTRIES, ModelEntry, get
from .tiny_vae_files import find_prefix as find_tiny
from .tiny_vae_files import half_of
from .vae_files import find_prefix, is_original

PREDICTIONS = ("epsilon", "sample", "v_prediction")
_UNET_PREFIXES = ("unet.", "model.diffusion_model.", "diffusion_model.", "module.")
_WANTED = "give latentsync_unet.pt of LatentSync 1.5 or 1.6, a file converted from it, or the name nano"
_STAGES = {
    "none": "stage 1 (no motion modules)",
    "all": "stage 2 (motion modules at all levels)",
    "decoder": "stage 2 efficient (motion modules in the decoder only)",
}
_PREDICTS = {"sample": ", predicts clean latents", "v_prediction": ", predicts velocity"}


@dataclass(frozen=True)
class FileInfo:
    """What `identify` found out. problem: one sentence, when the file cannot be used as what it is.

    kind: unet, nano, vae, taesd (half of a tiny VAE), whisper, syncnet, lora, sd15, face_landmarker or unknown.
    version: "1.5", "1.6", "nano" or what the file says of itself. license: of the weights. parameters: how many
    numbers, buffers included. motion: none, all or decoder.
    """

    path: Path
    kind: str
    title: str
    bytes: int = 0
    layout: str = ""
    dtype: str | None = None
    parameters: int = 0
    tensors: int = 0
    version: str | None = None
    resolution: int | None = None
    motion: str | None = None
    prediction_type: str | None = None
    latent_channels: int | None = None
    license: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    problem: str | None = None


def identify(path: str | os.PathLike[str]) -> FileInfo:
    """Say what a file is, from its metadata, else its size, else its tensors' names and shapes. Never raises."""
    path = Path(path)
    try:
        if special := _without_tensors(path):
            return special
        return _describe(read_header(path))
    except (UserError, OSError) as error:
        return FileInfo(path, "unknown", "not a usable weight file", problem=str(error))


def check_is_unet(info: FileInfo) -> None:
    """UserError unless the file is a complete LatentSync U-Net."""
    if info.problem:
        raise UserError(info.problem)
    if info.kind == "lora":
        raise UserError(
            f"{info.path} is a LoRA, which changes a U-Net but is not one. Give the U-Net that it was trained on, such"
            " as 1.5, and the LoRA with --lora (in ComfyUI: as lora); or make one file of both:"
            f" `{command()} train merge-lora 1.5 {info.path.name} merged.safetensors`."
        )
    if info.kind not in ("unet", "nano"):
        raise UserError(f"{info.path} is {info.title}, not a LatentSync U-Net; {_WANTED}.")


def _without_tensors(path: Path) -> FileInfo | None:
    """The two kinds that are known files but not sets of tensors to us."""
    if not path.is_file():
        return None
    size = path.stat().st_size
    task = get("face-landmarker")
    if path.suffix == ".task" or size == task.bytes:
        zip_names(path)  # raises when it is cut off
        return FileInfo(path, "face_landmarker", task.title, size, "MediaPipe task")
    if read_head(path)[6:18] == b"WhisperSpec\0":  # after a version and the name's length
        return FileInfo(path, "whisper", "a Whisper model in CTranslate2's layout", size, "CTranslate2")
    return None


def _describe(header: Header) -> FileInfo:
    kind, title = _kind_of(header)
    ours = header.metadata if header.metadata.get("format") == "latentsync" else {}
    size = header.path.stat().st_size
    basic = FileInfo(
        path=header.path,
        kind=kind,
        title=f"{title}, {header.numbers / 1e6:.1f} M numbers, {_dtype(header)}",
        bytes=size,
        layout=header.layout,
        dtype=_dtype(header),
        parameters=header.numbers,
        tensors=len(header.shapes),
        version=ours.get("version"),
        license=ours.get("license"),
        metadata=ours,
    )
    if kind in ("unet", "nano"):
        return _describe_unet(basic, header)
    entry = _entry_of_size(size, kind)
    if not entry:
        return basic
    return dataclasses.replace(basic, version=entry.version, title=entry.title, license=basic.license or entry.license)


def _describe_unet(info: FileInfo, header: Header) -> FileInfo:
    shapes = _unet_part(header.shapes)
    origin = info.metadata.get("source_sha256")
    of_hash = (e for e in ENTRIES if origin and origin in {f.sha256 for f in e.files})
    entry = _entry_of_size(info.bytes, info.kind) or next(of_hash, None)
    stated = info.metadata.get("resolution", "")
    prediction = info.metadata.get("prediction_type", "epsilon")
    config, problem = _fit(shapes)
    info = dataclasses.replace(
        info,
        version=info.metadata.get("version") or (entry.version if entry else None),
        resolution=int(stated) if stated.isdigit() and int(stated) else entry.resolution if entry else None,
        prediction_type=prediction,
        motion=config.motion if config else None,
        latent_channels=config.latent_channels if config else None,
        license=info.license or (entry.license if entry else None),
    )
    if problem:
        problem = f"{info.path} is not a complete LatentSync U-Net: {problem}; {_WANTED}."
    elif prediction not in PREDICTIONS:
        problem = f"{info.path} says it predicts {prediction!r}, which is not one of {', '.join(PREDICTIONS)}."
    return dataclasses.replace(info, title=_unet_title(info), problem=problem or None)


def _unet_title(info: FileInfo) -> str:
    name = f"LatentSync {info.version}" if info.version else "LatentSync"
    pixels = f" for {info.resolution} px" if info.resolution else ""
    also = " and VAE" if info.kind == "nano" else ""
    stage = f", {_STAGES[info.motion]}" if info.motion else ""
    unknown = "" if info.resolution else ", resolution not recorded"
    rest = (
        f"{info.parameters / 1e6:.1f} M numbers, {info.dtype}{_PREDICTS.get(info.prediction_type or '', '')}{unknown}"
    )
    return f"{name} U-Net{also}{pixels}{stage}, {rest}"


def _kind_of(header: Header) -> tuple[str, str]:
    """(kind, how to call it in a sentence) from names and shapes alone."""
    shapes = header.shapes
    if any(mark in key.lower() for key in shapes for mark in ("lora_", ".lora.", "hada_w1", "lokr_w")):
        return "lora", "a LoRA (an addition to a model, not a model)"
    roots = {key.partition(".")[0] for key in shapes}
    if any(key.startswith("model.diffusion_model.input_blocks.") for key in shapes):
        return "sd15", "a Stable Diffusion checkpoint"
    if roots & {"netcnnaud", "netcnnlip"}:
        return "syncnet", "the SyncNet of Chung & Zisserman"
    if roots >= {"visual_encoder", "audio_encoder"}:
        return "syncnet", "a StableSyncNet"
    if roots >= {"unet", "vae"}:
        return "nano", "a U-Net and VAE"
    if any("embed_positions.weight" in k or "encoder.positional_embedding" in k for k in shapes):
        return "whisper", "a Whisper model"
    unet = _unet_part(shapes)
    if {key.partition(".")[0] for key in unet} >= {"down_blocks", "up_blocks"}:
        # LatentSync's first layer takes 3C + 1 channels for C latents; Stable Diffusion's 4, 8 or 9 for 4
        first, last = unet.get("conv_in.weight"), unet.get("conv_out.weight")
        plain = not any("motion_modules" in key for key in unet)
        foreign = plain and first and last and len(first) == 4 and first[1] in (4, 8, 9) and last[0] == 4
        return ("sd15", "a Stable Diffusion U-Net") if foreign else ("unet", "a LatentSync U-Net")
    return _vae_kind(shapes) or ("unknown", "a set of tensors of no kind that is known here")


def _vae_kind(shapes: Mapping[str, Shape]) -> tuple[str, str] | None:
    if find_prefix(shapes) is not None:
        return "vae", f"a Stable Diffusion VAE ({'original' if is_original(shapes) else 'diffusers'} layout)"
    if find_tiny(shapes) is not None:
        return "vae", "a tiny VAE (diffusers layout of TAESD)"
    half = half_of(shapes)
    return ("taesd", f"the {half} of a tiny VAE (original layout of TAESD)") if half else None


def _unet_part(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The U-Net's entries under their plain names: out of a bundle with a VAE, or from behind a common prefix."""
    for prefix in _UNET_PREFIXES:
        inside = sum(key.startswith(prefix) for key in tensors)
        if inside and (prefix == "unet." or 2 * inside > len(tensors)):
            rest = {k: v for k, v in tensors.items() if prefix != "unet." or not k.startswith("vae.")}
            return {key.removeprefix(prefix): value for key, value in rest.items()}
    return dict(tensors)


def _fit(shapes: Mapping[str, Shape]) -> tuple[UNetConfig | None, str]:
    """The architecture that the tensors fit best, and what does not fit it."""
    best: tuple[int, UNetConfig, dict[str, Shape]] | None = None
    for config in _candidates(shapes):
        wanted = _shapes_wanted(config)
        wrong = sum(wanted.get(key) != shapes.get(key) for key in wanted.keys() | shapes.keys())
        if best is None or wrong < best[0]:
            best = (wrong, config, wanted)
        if not wrong:
            break
    if best is None or best[0] > len(best[2]) // 2:
        return None, "its tensors are those of another network"
    return best[1], mismatch(best[2], shapes)


def _candidates(shapes: Mapping[str, Shape]) -> Iterator[UNetConfig]:
    """What the tensors say; if that leaves a misfit, what the tensors beside them say; then the published sizes.

    So one bad tensor is named itself, and not all the good ones that disagree with it.
    """
    for tensors in (shapes, _second_opinion(shapes)):
        try:
            config = config_from_tensors(tensors)
        except UserError:
            continue
        yield config
        yield from (dataclasses.replace(config, motion=m) for m in ("all", "decoder", "none") if m != config.motion)
    yield from (UNetConfig(motion=m) for m in ("all", "decoder", "none"))


def _second_opinion(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """The tensors that tell the architecture, restated from their neighbours."""
    levels = [f"down_blocks.{i}." for i in range(16) if f"down_blocks.{i}.resnets.0.conv2.weight" in shapes]
    out = {k: v for k, v in shapes.items() if not k.startswith("down_blocks.") or k.startswith(tuple(levels))}
    for key, shape in shapes.items():
        if key.startswith("down_blocks.") and key.endswith(".conv2.weight"):
            out[key.replace(".conv2.", ".conv1.")] = shape
        if key.startswith("down_blocks.") and key.endswith(".proj_out.weight"):
            out[key.replace(".proj_out.", ".proj_in.")] = shape
    mid = "mid_block.attentions.0.transformer_blocks.0.attn2."
    if f"{mid}to_v.weight" in shapes:
        out[f"{mid}to_k.weight"] = shapes[f"{mid}to_v.weight"]
    if latents := shapes.get("conv_out.bias"):
        out["conv_out.weight"] = latents
        out["conv_in.weight"] = (0, 3 * latents[0] + 1)
    return out


@functools.lru_cache(maxsize=16)
def _shapes_wanted(config: UNetConfig) -> dict[str, Shape]:
    with torch.device("meta"):  # shapes do not depend on the groups, which must divide all widths
        return shapes_of(UNet(dataclasses.replace(config, groups=1)).state_dict())


def _entry_of_size(size: int, kind: str) -> ModelEntry | None:
    return next((e for e in ENTRIES if e.kind == kind and size in {f.bytes for f in e.files if f.bytes}), None)


def _dtype(header: Header) -> str:
    """The dtype that most of the numbers have."""
    counted: Counter[torch.dtype] = Counter()
    for key, kind in header.dtypes.items():
        counted[kind] += math.prod(header.shapes[key])
    return str(counted.most_common(1)[0][0]).removeprefix("torch.") if counted else "empty"
