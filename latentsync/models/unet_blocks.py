"""The blocks of the LatentSync U-Net."""

import math
from types import ModuleType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .unet_config import POSITIONS, UNetConfig

AUDIO_TIMES, AUDIO_LAYERS = 10, 5  # whose tokens a frame hears, the times in the outer order
HEADS = 8  # the published configs call this attention_head_dim; it is the number of heads
Ops = ModuleType | Any
"""Where layers come from: torch.nn, or a host's drop-in set with the same class names."""


def timestep_embedding(timestep: Tensor, width: int) -> Tensor:
    """Sinusoidal code (B,) → (B, width), cosines first, frequencies 10000^(-i / (width / 2)) (Ho et al. 2020)."""
    half = width // 2
    frequency = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=timestep.device) / half)
    angle = timestep.float()[:, None] * frequency
    return torch.cat((angle.cos(), angle.sin()), dim=-1)


def position_code(width: int, length: int = POSITIONS) -> Tensor:
    """Sinusoidal code (1, length, width), sine and cosine interleaved (Vaswani et al. 2017)."""
    position = torch.arange(length, dtype=torch.float32)[:, None]
    angle = position * torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(10000.0) / width))
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)[None]


def window_norm(norm: nn.Module, x: Tensor, frames: int) -> Tensor:
    """GroupNorm with statistics over all frames of a window together, (B·F, C, H, W) → same."""
    n, c, h, w = x.shape
    # as one tall picture: channels_last as well, which a norm of a CPU reads and writes without copies
    tall = x.permute(0, 2, 3, 1).reshape(n // frames, frames * h, w, c).permute(0, 3, 1, 2)
    return norm(tall).permute(0, 2, 3, 1).reshape(n, h, w, c).permute(0, 3, 1, 2)


class TimeEmbedding(nn.Module):
    def __init__(self, width: int, ops: Ops) -> None:
        super().__init__()
        self.width = width
        self.linear_1 = ops.Linear(width, 4 * width)
        self.linear_2 = ops.Linear(4 * width, 4 * width)

    def forward(self, timestep: Tensor, dtype: torch.dtype) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(timestep_embedding(timestep, self.width).to(dtype))))


class ResnetBlock(nn.Module):
    def __init__(self, width_in: int, width: int, config: UNetConfig, ops: Ops) -> None:
        super().__init__()
        self.norm1 = ops.GroupNorm(config.groups, width_in, eps=1e-5)
        self.conv1 = ops.Conv2d(width_in, width, 3, padding=1)
        self.time_emb_proj = ops.Linear(config.time_width, width)
        self.norm2 = ops.GroupNorm(config.groups, width, eps=1e-5)
        self.conv2 = ops.Conv2d(width, width, 3, padding=1)
        self.conv_shortcut = ops.Conv2d(width_in, width, 1) if width_in != width else nn.Identity()

    def forward(self, x: Tensor, time: Tensor, frames: int) -> Tensor:
        h = self.conv1(F.silu(window_norm(self.norm1, x, frames)))
        h = h + self.time_emb_proj(F.silu(time)).repeat_interleave(frames, 0)[:, :, None, None]
        h = self.conv2(F.silu(window_norm(self.norm2, h, frames)))
        return self.conv_shortcut(x) + h


class Attention(nn.Module):
    """Multi-head attention of tokens (N, T, C) to a context (N, S, D)."""

    def __init__(self, width: int, context_width: int, ops: Ops, *, bias: bool = False) -> None:
        super().__init__()
        self.to_q = ops.Linear(width, width, bias=bias)
        self.to_k = ops.Linear(context_width, width, bias=bias)
        self.to_v = ops.Linear(context_width, width, bias=bias)
        self.to_out = nn.ModuleList([ops.Linear(width, width)])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.project(x, context))
        return self.to_out[0](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))

    def project(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.to_q(x), self.to_k(context), self.to_v(context)


class AudioProjection(nn.Module):
    """The audio tokens of a moment, (N, 50, D), ten times of five layers, to one token (N, 1, width).

    Linear and of low rank. It knows when each token was, which attention cannot tell: a small network hears better
    with it. Published weights have none.
    """

    def __init__(self, audio_dim: int, rank: int, width: int, ops: Ops) -> None:
        super().__init__()
        self.mix = ops.Linear(AUDIO_LAYERS * audio_dim, rank, bias=False)
        self.out = ops.Linear(AUDIO_TIMES * rank, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.mixed(tokens))[:, None]

    def mixed(self, tokens: Tensor) -> Tensor:
        """(N, 10 · rank): what is heard at each of the ten times."""
        return self.mix(tokens.unflatten(1, (AUDIO_TIMES, -1)).flatten(2)).flatten(1)


class GEGLU(nn.Module):
    def __init__(self, width: int, inner: int, ops: Ops) -> None:
        super().__init__()
        self.proj = ops.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, width: int, ops: Ops) -> None:
        super().__init__()
        # index 1 is the dropout of the published layout; it holds no numbers
        self.net = nn.ModuleList([GEGLU(width, 4 * width, ops), nn.Identity(), ops.Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class SpatialBlock(nn.Module):
    def __init__(self, width: int, audio_dim: int, ops: Ops) -> None:
        super().__init__()
        self.norm1 = ops.LayerNorm(width)
        self.attn1 = Attention(width, width, ops)
        self.norm2 = ops.LayerNorm(width)
        self.attn2 = Attention(width, audio_dim, ops)
        self.ff = FeedForward(width, ops)
        self.norm3 = ops.LayerNorm(width)

    def forward(self, x: Tensor, audio: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed)
        x = x + self.attn2(self.norm2(x), audio)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Each frame attends to its own pixels and to its own audio tokens."""

    def __init__(self, width: int, config: UNetConfig, ops: Ops) -> None:
        super().__init__()
        self.norm = ops.GroupNorm(config.groups, width, eps=1e-6)
        self.proj_in = ops.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList([SpatialBlock(width, config.audio_dim, ops)])
        self.proj_out = ops.Conv2d(width, width, 1)

    def forward(self, x: Tensor, audio: Tensor) -> Tensor:
        height = x.shape[2]
        h = self.proj_in(self.norm(x)).permute(0, 2, 3, 1).flatten(1, 2)
        h = self.transformer_blocks[0](h, audio).unflatten(1, (height, -1)).permute(0, 3, 1, 2)
        return x + self.proj_out(h)


class PositionEncoder(nn.Module):
    pe: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("pe", position_code(width))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, F, H·W, C)."""
        return x + self.pe[:, : x.shape[1], None].to(x)


class TemporalAttention(Attention):
    """Each pixel's attention to itself in the other frames: tokens (B, F, H·W, C)."""

    def __init__(self, width: int, ops: Ops) -> None:
        super().__init__(width, width, ops)
        self.pos_encoder = PositionEncoder(width)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        batch = len(x)
        coded = self.pos_encoder(x)
        # only attention sees time as its sequence; all else stays in the order of the frames, which saves copies
        q, k, v = (
            t.unflatten(-1, (HEADS, -1)).permute(0, 2, 3, 1, 4).flatten(0, 1) for t in self.project(coded, coded)
        )
        seen = F.scaled_dot_product_attention(q, k, v).unflatten(0, (batch, -1))
        return self.to_out[0](seen.permute(0, 3, 1, 2, 4).flatten(-2))


class TemporalBlock(nn.Module):
    def __init__(self, width: int, ops: Ops) -> None:
        super().__init__()
        self.attention_blocks = nn.ModuleList([TemporalAttention(width, ops) for _ in range(2)])
        self.norms = nn.ModuleList([ops.LayerNorm(width) for _ in range(2)])
        self.ff = FeedForward(width, ops)
        self.ff_norm = ops.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        for attention, norm in zip(self.attention_blocks, self.norms, strict=True):
            x = x + attention(norm(x))
        return x + self.ff(self.ff_norm(x))


class TemporalTransformer(nn.Module):
    def __init__(self, width: int, config: UNetConfig, ops: Ops) -> None:
        super().__init__()
        self.norm = ops.GroupNorm(config.groups, width, eps=1e-6)
        self.proj_in = ops.Linear(width, width)
        self.transformer_blocks = nn.ModuleList([TemporalBlock(width, ops)])
        self.proj_out = ops.Linear(width, width)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        n, c, h, w = x.shape
        tokens = self.proj_in(self.norm(x).permute(0, 2, 3, 1).reshape(n // frames, frames, h * w, c))
        tokens = self.proj_out(self.transformer_blocks[0](tokens))
        return x + tokens.reshape(n, h, w, c).permute(0, 3, 1, 2)


class MotionModule(nn.Module):
    """Attention along time, for every pixel on its own."""

    def __init__(self, width: int, config: UNetConfig, ops: Ops) -> None:
        super().__init__()
        self.temporal_transformer = TemporalTransformer(width, config, ops)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        return self.temporal_transformer(x, frames)


class Resampler(nn.Module):
    """Stride-2 convolution, or nearest-neighbour doubling before a convolution."""

    def __init__(self, width: int, up: bool, ops: Ops) -> None:
        super().__init__()
        self.up = up
        self.conv = ops.Conv2d(width, width, 3, stride=1 if up else 2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest") if self.up else x)


class Block(nn.Module):
    """One level: residual blocks, each followed by its transformer and its motion module where the level has them.

    checkpointing: in training, keep no activations within a layer and compute them again for the gradients.
    """

    checkpointing = False

    def __init__(
        self, inputs: list[int], width: int, config: UNetConfig, ops: Ops, *, cross: bool, motion: bool
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock(i, width, config, ops) for i in inputs])
        if cross:
            self.attentions = nn.ModuleList([SpatialTransformer(width, config, ops) for _ in inputs])
        if motion:
            self.motion_modules = nn.ModuleList([MotionModule(width, config, ops) for _ in inputs])

    def layer(self, i: int, x: Tensor, time: Tensor, audio: Tensor, frames: int) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(self.plain_layer, i, x, time, audio, frames, use_reentrant=False))
        return self.plain_layer(i, x, time, audio, frames)

    def plain_layer(self, i: int, x: Tensor, time: Tensor, audio: Tensor, frames: int) -> Tensor:
        x = self.resnets[i](x, time, frames)
        if hasattr(self, "attentions"):
            x = self.attentions[i](x, audio)
        if hasattr(self, "motion_modules"):
            x = self.motion_modules[i](x, frames)
        return x


class DownBlock(Block):
    def __init__(self, width_in: int, width: int, config: UNetConfig, ops: Ops, *, cross: bool, last: bool) -> None:
        inputs = [width_in] + [width] * (config.layers - 1)
        super().__init__(inputs, width, config, ops, cross=cross, motion=config.motion == "all")
        self.downsamplers = nn.ModuleList([] if last else [Resampler(width, False, ops)])

    def forward(self, x: Tensor, skips: list[Tensor], time: Tensor, audio: Tensor, frames: int) -> Tensor:
        for i in range(len(self.resnets)):
            x = self.layer(i, x, time, audio, frames)
            skips.append(x)
        for down in self.downsamplers:
            x = down(x)
            skips.append(x)
        return x


class MidBlock(nn.Module):
    def __init__(self, config: UNetConfig, ops: Ops) -> None:
        super().__init__()
        width = config.widths[-1]
        self.attentions = nn.ModuleList([SpatialTransformer(width, config, ops)])
        self.resnets = nn.ModuleList([ResnetBlock(width, width, config, ops) for _ in range(2)])

    def forward(self, x: Tensor, time: Tensor, audio: Tensor, frames: int) -> Tensor:
        x = self.attentions[0](self.resnets[0](x, time, frames), audio)
        return self.resnets[1](x, time, frames)


class UpBlock(Block):
    def __init__(self, level: int, config: UNetConfig, ops: Ops) -> None:
        widths, layers = config.widths, config.layers
        below = widths[min(level + 1, len(widths) - 1)]
        skips = [widths[level]] * layers + [widths[max(level - 1, 0)]]
        inputs = [(below if i == 0 else widths[level]) + skip for i, skip in enumerate(skips)]
        motion = config.motion != "none"
        super().__init__(inputs, widths[level], config, ops, cross=config.cross[level], motion=motion)
        self.upsamplers = nn.ModuleList([Resampler(widths[level], True, ops)] if level else [])

    def forward(
        self,
        x: Tensor,
        skips: list[Tensor],
        time: Tensor,
        audio: Tensor,
        frames: int,
        deep: list[Tensor] | None = None,
    ) -> Tensor:
        """deep: gets what the last layer is given by those below."""
        for i in range(len(self.resnets)):
            if deep is not None and i == len(self.resnets) - 1:
                deep.append(x)
            x = self.layer(i, torch.cat((x, skips.pop()), dim=1), time, audio, frames)
        for up in self.upsamplers:
            x = up(x)
        return x
