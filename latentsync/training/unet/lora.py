"""LoRA (Hu et al. 2021) on the attention to the audio and on the attention along time.

Files hold `diffusion_model.<layer>.lora_A.weight`, `.lora_B.weight` and `.alpha`, which ComfyUI's LoRA loader takes.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UserError
from ...weights.convert import save_model
from ...weights.files import read_tensors, write_safetensors
from ...weights.identify import identify
from ...weights.load import inherited, load_unet
from ...weights.lora import PREFIX, open_lora
from .init import locate

LAYERS = ("to_q", "to_k", "to_v", "to_out.0")
LORA_KEY = "lora_"
HEARING = "audio_projection."


class LoRAConv2d(nn.Conv2d):
    """The same for a convolution. The change is added to the weights: cheaper than a second convolution."""

    def __init__(self, base: nn.Conv2d, rank: int, alpha: float) -> None:
        kernel: Any = base.kernel_size
        places: Any = {"stride": base.stride, "padding": base.padding}
        super().__init__(
            base.in_channels, base.out_channels, kernel, bias=base.bias is not None, device="meta", **places
        )
        self.weight, self.bias = base.weight, base.bias
        options: Any = {"bias": False, "device": base.weight.device, "dtype": base.weight.dtype}
        self.lora_A = nn.Conv2d(base.in_channels, rank, kernel, **options)
        self.lora_B = nn.Conv2d(rank, base.out_channels, 1, **options)
        nn.init.zeros_(self.lora_B.weight)
        self.alpha, self.scale = alpha, alpha / rank

    def forward(self, input: Tensor) -> Tensor:
        change = self.lora_B.weight.flatten(1) @ self.lora_A.weight.flatten(1)
        weight = self.weight + self.scale * change.view_as(self.weight).to(self.weight)
        return self._conv_forward(input, weight, self.bias)


class LoRALinear(nn.Linear):
    """A frozen linear layer plus scale · B(A(x)). B starts at zero."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        options = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.lora_A = nn.Linear(base.in_features, rank, bias=False, **options)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False, **options)
        nn.init.zeros_(self.lora_B.weight)
        self.alpha, self.scale = alpha, alpha / rank

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + self.scale * self.lora_B(self.lora_A(input))


def targets(unet: nn.Module, *, everywhere: bool = False) -> list[str]:
    """Names of the layers with a LoRA. everywhere: all that make pictures, also convolutions; not those that hear."""
    if everywhere:
        kinds = nn.Linear, nn.Conv2d
        return [n for n, m in unet.named_modules() if isinstance(m, kinds) and not n.startswith(HEARING)]
    names = (name for name, module in unet.named_modules() if isinstance(module, nn.Linear))
    parts = (".attn2.", ".attention_blocks.")
    return [name for name in names if any(part in name for part in parts) and name.endswith(LAYERS)]


def add_lora(unet: nn.Module, rank: int, alpha: float = 0.0, seed: int = 0, *, everywhere: bool = False) -> list[str]:
    """Add a LoRA in place; returns the layers' names. alpha 0: the rank, a scale of 1."""
    if rank < 1:
        raise UserError(f"The LoRA's rank is {rank}; it must be 1 or more.")
    names = targets(unet, everywhere=everywhere)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in names:
            parent, _, leaf = name.rpartition(".")
            base = unet.get_submodule(name)
            kind: Any = LoRAConv2d if isinstance(base, nn.Conv2d) else LoRALinear
            setattr(unet.get_submodule(parent), leaf, kind(base, rank, alpha or float(rank)))
    return names


def lora_state(unet: nn.Module) -> dict[str, Tensor]:
    """The LoRA's tensors under the names of the file."""
    out = {}
    for name, module in unet.named_modules():
        if isinstance(module, LoRALinear | LoRAConv2d):
            out[f"{PREFIX}{name}.lora_A.weight"] = module.lora_A.weight.detach()
            out[f"{PREFIX}{name}.lora_B.weight"] = module.lora_B.weight.detach()
            out[f"{PREFIX}{name}.alpha"] = torch.tensor(module.alpha)
    return out


def load_lora_state(unet: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Into a U-Net with a LoRA of the same rank."""
    own = {key: tensor for key, tensor in unet.state_dict(keep_vars=True).items() if LORA_KEY in key}
    given = {key.removeprefix(PREFIX): tensor for key, tensor in state.items() if LORA_KEY in key}
    if own.keys() != given.keys() or any(own[key].shape != given[key].shape for key in own):
        raise UserError("This LoRA was made for another network or rank; start a new run for it.")
    with torch.no_grad():
        for key, tensor in given.items():
            own[key].copy_(tensor)


def save_lora(path: str | os.PathLike[str], unet: nn.Module, metadata: Mapping[str, str]) -> Path:
    return write_safetensors(path, lora_state(unet), {"format": "latentsync", "kind": "lora", **metadata})


def merge_files(base: str, lora: Path, out: Path, strength: float = 1.0) -> Path:
    """Write base with the LoRA added, under base's metadata; with its VAE, if it has one inside."""
    added = dataclasses.replace(open_lora(lora), strength=strength)
    path = locate(base)
    info = identify(path)
    added.check(info)
    state = added.merged(load_unet(path).state_dict())
    vae = None
    if info.kind == "nano":
        inside = {key.removeprefix("vae."): t for key, t in read_tensors(path).items() if key.startswith("vae.")}
        vae = added.merged_vae(inside)
    stated = {key: value for key, value in info.metadata.items() if key not in ("format", "kind", "config")}
    metadata = stated | inherited(info) | {"version": info.version, "resolution": info.resolution, "lora": strength}
    metadata |= {"prediction_type": info.prediction_type or "epsilon"}
    return save_model(out, state, vae_state=vae, metadata=metadata)
