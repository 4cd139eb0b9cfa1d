"""Merging a U-Net and its LoRA into one file."""

import os
from pathlib import Path

from ...errors import UserError
from ...weights.convert import save_model
from ...weights.files import read_tensors
from ...weights.identify import identify
from ...weights.load import load_unet
from .init import locate
from .lora import merge_lora


def merge_files(base: str, lora: str | os.PathLike[str], out: Path, strength: float = 1.0) -> Path:
    """Write base with the LoRA added, under base's metadata; with its VAE, if it has one inside."""
    if identify(lora).kind != "lora":
        raise UserError(f"{lora} is {identify(lora).title}, not a LoRA; give lora.safetensors of `train unet --lora`.")
    path = locate(base)
    info = identify(path)
    unet = load_unet(path)
    state = merge_lora(unet.state_dict(), lora, strength)
    vae = None
    if info.kind == "nano":
        vae = {key.removeprefix("vae."): t for key, t in read_tensors(path).items() if key.startswith("vae.")}
    metadata = {key: value for key, value in info.metadata.items() if key not in ("format", "kind", "config")}
    metadata |= {"prediction_type": info.prediction_type or "epsilon", "resolution": info.resolution, "lora": strength}
    return save_model(out, state, vae_state=vae, metadata=metadata)
