"""The encoder half of Whisper: its hidden states are what the U-Net hears. The decoder is never read.

Names of modules and tensors are those of transformers, whose class is not used: importing it takes longer than loading
everything else that a run needs.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError

MELS = 80
POSITIONS = 1500
"""Hidden states of one 30-second window: 3000 mel frames, halved by the second convolution."""
HEAD_DIM = 64
"""Width of one attention head, the same in every published Whisper."""
MAX_LAYERS = 32
"""Blocks of the largest published Whisper; a file that names more would have us build them."""

State = dict[str, Tensor]


class _Attention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.q_proj, self.v_proj, self.out_proj = (nn.Linear(dim, dim) for _ in range(3))
        self.k_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))


class _Block(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = _Attention(dim)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.final_layer_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.self_attn_layer_norm(x))
        return x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))


class _Encoder(nn.Module):
    def __init__(self, dim: int, layers: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(MELS, dim, 3, padding=1)
        self.conv2 = nn.Conv1d(dim, dim, 3, stride=2, padding=1)
        # given its numbers, or it would draw some, for which torch imports its compiler (0.7 s)
        self.embed_positions = nn.Embedding(POSITIONS, dim, _weight=torch.empty(POSITIONS, dim))
        self.layers = nn.ModuleList([_Block(dim, hidden) for _ in range(layers)])
        self.layer_norm: nn.Module = nn.LayerNorm(dim)

    def forward(self, mel: Tensor) -> Tensor:
        x = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2) + self.embed_positions.weight
        states = [x] + [x := block(x) for block in self.layers]
        return torch.stack(states, dim=2)


class WhisperEncoder(nn.Module):
    """Called with log-mel (B, 80, 3000), answers (B, 1500, layers + 1, dim).

    The hidden states are those after the convolutions and positions, then after each block, all before the final norm
    (which is therefore not kept).
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.dim, self.layers, hidden = _shape_of(state)
        with torch.device("meta"):  # nothing is allocated, the global random generator is left alone
            self.encoder = _Encoder(self.dim, self.layers, hidden)
        _load_strictly(self.encoder, state)
        self.encoder.layer_norm = nn.Identity()

    @property
    def dtype(self) -> torch.dtype:
        return self.encoder.conv1.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.encoder.conv1.weight.device

    def forward(self, mel: Tensor) -> Tensor:
        return self.encoder(mel)


def _count(state: Mapping[str, Any], pattern: str) -> int:
    """How many blocks the keys speak of."""
    return 1 + max((int(found[1]) for key in state if (found := re.match(pattern, key))), default=-1)


def _shape_of(state: Mapping[str, Tensor]) -> tuple[int, int, int]:
    """(width, blocks, feed-forward width) from the tensors."""
    conv, wide = state.get("conv1.weight"), state.get("layers.0.fc1.weight")
    if conv is None or wide is None or conv.ndim != 3:
        raise UserError("conv1 or the first block is missing.")
    dim, mels = conv.shape[:2]
    if mels != MELS or dim % HEAD_DIM:
        raise UserError(
            f"it has {mels} mel bands and width {dim}; {MELS} bands and a multiple of {HEAD_DIM} are needed."
        )
    layers = _count(state, r"layers\.(\d+)\.")
    if layers > MAX_LAYERS:
        raise UserError(f"it names block {layers - 1}; Whisper has at most {MAX_LAYERS}.")
    return dim, layers, wide.shape[0]


def _load_strictly(encoder: nn.Module, state: Mapping[str, Tensor]) -> None:
    wanted = {key: tuple(tensor.shape) for key, tensor in encoder.state_dict().items()}
    missing = sorted(wanted.keys() - state.keys())
    unknown = sorted(state.keys() - wanted.keys())
    wrong = [key for key in wanted.keys() & state.keys() if wanted[key] != tuple(state[key].shape)]
    for problem, keys in (("missing", missing), ("not known", unknown), ("of another shape", sorted(wrong))):
        if keys:
            more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
            raise UserError(f"{problem}: {', '.join(keys[:5])}{more}.")
    encoder.load_state_dict(dict(state), strict=True, assign=True)
