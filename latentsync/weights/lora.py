"""Adding a LoRA (Hu et al. 2021) to the weights of a checkpoint.

Files hold, for layers of the U-Net, `diffusion_model.<layer>.lora_A.weight`, `.lora_B.weight` and `.alpha`, which
ComfyUI's LoRA loader takes too. Those of one person also have `vae.<parameter>.diff`: the difference of a parameter of
the VAE. Metadata: base, the version of the checkpoint that it was trained on, and resolution.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from .files import our_metadata, read_tensors
from .identify import FileInfo, identify

PREFIX, VAE_PREFIX, DIFFERENCE = "diffusion_model.", "vae.", ".diff"
STRONGEST = 4.0
STRENGTH = re.compile(r"^(.+):(-?\d+(?:\.\d*)?|-?\.\d+)$")


@dataclass(frozen=True)
class Lora:
    """A LoRA's file and how strongly it acts: 1 as trained, 0 not at all."""

    path: Path
    strength: float
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    @property
    def label(self) -> str:
        return self.path.stem if self.strength == 1 else f"{self.path.stem}:{self.strength:g}"

    @property
    def changes_vae(self) -> bool:
        return any(name.startswith(VAE_PREFIX) for name in self.tensors)

    def check(self, checkpoint: FileInfo) -> None:
        """UserError if it states that it was trained on another checkpoint."""
        base, resolution = self.metadata.get("base"), self.metadata.get("resolution")
        other = base and checkpoint.version and base != checkpoint.version
        if other or (resolution and checkpoint.resolution and int(resolution) != checkpoint.resolution):
            trained = f"{base or 'a checkpoint'} at {resolution or '?'} px"
            raise UserError(
                f"{self.path} was trained on {trained}, but {checkpoint.path.name} is {checkpoint.version or 'another'}"
                f" at {checkpoint.resolution or '?'} px; take the checkpoint that it belongs to."
            )

    def merged(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A U-Net's tensors with it. UserError unless all layers fit."""
        return merge_lora(state, self.tensors, self.strength)

    def merged_vae(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A VAE's tensors with it."""
        out = dict(state)
        for name, tensor in self.tensors.items():
            if name.startswith(VAE_PREFIX) and name.endswith(DIFFERENCE):
                key = name.removeprefix(VAE_PREFIX).removesuffix(DIFFERENCE)
                if key not in out or out[key].shape != tensor.shape:
                    raise UserError(f"{self.path} changes the VAE's {key}, which this VAE lacks; leave out --vae.")
                out[key] = (out[key].float() + self.strength * tensor.float()).to(out[key].dtype)
        return out


def split_strength(given: str | Path) -> tuple[Path, float]:
    """The file and the strength of "FILE:STRENGTH", or of a file alone."""
    found = STRENGTH.match(str(given))
    return (Path(found[1]), float(found[2])) if found and not Path(given).is_file() else (Path(given), 1.0)


def open_lora(given: str | Path) -> Lora:
    """given: a file, or "FILE:STRENGTH"."""
    path, strength = split_strength(given)
    if not path.is_file():
        raise UserError(f"There is no LoRA {path}; give its file, or FILE:STRENGTH, such as me.safetensors:0.8.")
    if abs(strength) > STRONGEST:
        raise UserError(
            f"The LoRA's strength is {strength:g}; give -{STRONGEST:g} to {STRONGEST:g}, where 1 is as it was trained."
        )
    info = identify(path)
    if info.kind != "lora":
        raise UserError(f"{path} is {info.title}, not a LoRA; give a file of `train unet --lora` or `personalize`.")
    return Lora(path, strength, read_tensors(path), our_metadata(path))


def merge_lora(state: Mapping[str, Tensor], tensors: Mapping[str, Tensor], strength: float = 1.0) -> dict[str, Tensor]:
    """A U-Net's tensors with W + strength · alpha / rank · B A, for linear layers and convolutions. UserError unless
    all layers fit."""
    layers = sorted(key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight"))
    if not layers:
        raise UserError(
            "There is no LoRA in this file (no key ends in lora_A.weight); give a file of `train unet --lora`."
        )
    out = dict(state)
    for layer in layers:
        key = f"{layer.removeprefix(PREFIX)}.weight"
        down, up = tensors[f"{layer}.lora_A.weight"], tensors.get(f"{layer}.lora_B.weight")
        if up is None or key not in out or out[key].shape != (up.shape[0], *down.shape[1:]):
            raise UserError(f"The LoRA's layer {layer} does not fit this U-Net; it was made for another one.")
        scale = strength * float(tensors.get(f"{layer}.alpha", torch.tensor(float(len(down))))) / len(down)
        added = (up.float().flatten(1) @ down.float().flatten(1)).reshape(out[key].shape)
        out[key] = (out[key].float() + scale * added).to(out[key].dtype)
    return out
