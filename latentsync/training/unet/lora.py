"""Low-rank additions (Hu et al. 2021) to the attention that hears and to the attention along time.

Files hold `diffusion_model.<layer>.lora_A.weight`, `.lora_B.weight` and `.alpha`, which ComfyUI's LoRA loader takes.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from ...errors import UserError
from ...weights.files import read_tensors, write_safetensors

PREFIX = "diffusion_model."
LAYERS = ("to_q", "to_k", "to_v", "to_out.0")
MARK = "lora_"


class LoRALinear(nn.Linear):
    """A linear layer that stays as it is, plus scale · B(A(x)); B starts at zero, so at first nothing changes."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        where = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.lora_A = nn.Linear(base.in_features, rank, bias=False, **where)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False, **where)
        nn.init.zeros_(self.lora_B.weight)
        self.alpha, self.scale = alpha, alpha / rank

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + self.scale * self.lora_B(self.lora_A(input))


def targets(unet: nn.Module) -> list[str]:
    """Names of the layers that get an addition: the attention to the speech and the one along time."""
    names = (name for name, module in unet.named_modules() if isinstance(module, nn.Linear))
    heard = (".attn2.", ".attention_blocks.")
    return [name for name in names if any(part in name for part in heard) and name.endswith(LAYERS)]


def add_lora(unet: nn.Module, rank: int, alpha: float = 0.0, seed: int = 0) -> list[str]:
    """Put additions into the U-Net and give their layers' names. alpha 0 means the rank: a scale of 1."""
    if rank < 1:
        raise UserError(f"The rank of a LoRA is {rank}; it must be 1 or more.")
    names = targets(unet)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in names:
            parent, _, leaf = name.rpartition(".")
            base = cast(nn.Linear, unet.get_submodule(name))
            setattr(unet.get_submodule(parent), leaf, LoRALinear(base, rank, alpha or float(rank)))
    return names


def lora_state(unet: nn.Module) -> dict[str, Tensor]:
    """The additions under the names of the file."""
    out = {}
    for name, module in unet.named_modules():
        if isinstance(module, LoRALinear):
            out[f"{PREFIX}{name}.lora_A.weight"] = module.lora_A.weight.detach()
            out[f"{PREFIX}{name}.lora_B.weight"] = module.lora_B.weight.detach()
            out[f"{PREFIX}{name}.alpha"] = torch.tensor(module.alpha)
    return out


def load_lora_state(unet: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Into a U-Net that has additions already. UserError unless all fit."""
    own = {key: tensor for key, tensor in unet.state_dict(keep_vars=True).items() if MARK in key}
    given = {key.removeprefix(PREFIX): tensor for key, tensor in state.items() if MARK in key}
    if own.keys() != given.keys() or any(own[key].shape != given[key].shape for key in own):
        raise UserError("This LoRA was made for another network or rank; start a new run for it.")
    with torch.no_grad():
        for key, tensor in given.items():
            own[key].copy_(tensor)


def save_lora(path: str | os.PathLike[str], unet: nn.Module, metadata: Mapping[str, str]) -> Path:
    return write_safetensors(path, lora_state(unet), {"format": "latentsync", "kind": "lora", **metadata})


def base_state(unet: nn.Module) -> dict[str, Tensor]:
    """The U-Net's own tensors without the additions."""
    return {key: tensor for key, tensor in unet.state_dict().items() if MARK not in key}


def merge_lora(
    state: Mapping[str, Tensor], lora: str | os.PathLike[str] | Mapping[str, Tensor], strength: float = 1.0
) -> dict[str, Tensor]:
    """A U-Net's tensors with the additions summed in: W + strength · alpha / rank · B A. UserError unless all fit."""
    additions = dict(lora) if isinstance(lora, Mapping) else read_tensors(lora)
    layers = sorted(key.removesuffix(".lora_A.weight") for key in additions if key.endswith(".lora_A.weight"))
    if not layers:
        raise UserError("These tensors hold no LoRA (none ends in lora_A.weight); give a file of `train unet --lora`.")
    out = dict(state)
    for layer in layers:
        key = f"{layer.removeprefix(PREFIX)}.weight"
        down, up = additions[f"{layer}.lora_A.weight"], additions.get(f"{layer}.lora_B.weight")
        if up is None or key not in out or out[key].shape != (up.shape[0], down.shape[1]):
            raise UserError(f"The LoRA's layer {layer} does not fit this U-Net; it was made for another one.")
        scale = strength * float(additions.get(f"{layer}.alpha", torch.tensor(float(len(down))))) / len(down)
        out[key] = (out[key].float() + scale * up.float() @ down.float()).to(out[key].dtype)
    return out
