"""The encoder half of Whisper: its hidden states are what the U-Net hears. The decoder is never read."""

import re
from collections.abc import Mapping
from typing import Any

import torch
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


class WhisperEncoder(nn.Module):
    """Called with log-mel (B, 80, 3000), answers (B, 1500, layers + 1, dim).

    The hidden states are those after the convolutions and positions, then after each block, all before the final norm
    (which is therefore not kept).
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.dim, self.layers, hidden = _shape_of(state)
        self.encoder = _empty_encoder(self.dim, self.layers, hidden)
        _load_strictly(self.encoder, state)
        # transformers puts the final norm on the last hidden state; LatentSync listens before it.
        self.encoder.layer_norm = nn.Identity()

    @property
    def dtype(self) -> torch.dtype:
        return self.encoder.conv1.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.encoder.conv1.weight.device

    def forward(self, mel: Tensor) -> Tensor:
        states = self.encoder(mel, output_hidden_states=True, return_dict=True).hidden_states
        return torch.stack(tuple(states), dim=2)


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


def _empty_encoder(dim: int, layers: int, hidden: int) -> Any:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder as Encoder

    config = WhisperConfig(
        num_mel_bins=MELS,
        d_model=dim,
        encoder_layers=layers,
        encoder_attention_heads=dim // HEAD_DIM,
        encoder_ffn_dim=hidden,
        max_source_positions=POSITIONS,
        decoder_layers=0,
    )
    # On "meta" nothing is allocated and the global random generator is left alone.
    with torch.device("meta"):
        return Encoder(config)


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
