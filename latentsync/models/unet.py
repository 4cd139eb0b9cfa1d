"""The LatentSync U-Net: Stable Diffusion 1.5's, run per frame, with audio cross-attention and attention along time.

Inside, the frames of a window are one channels_last batch (B·F, C, H, W); only the norms of the residual blocks and
the motion modules look across frames. Parameter names are those of the published checkpoints.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import UserError
from ..settings import GUIDANCE, STEPS

HEADS = 8  # the published configs call this attention_head_dim; it is the number of heads
GROUPS = 32  # of all published weights; shapes do not tell it, so small models of ours say theirs in metadata
POSITIONS = 24  # frames that the stored position code of a motion module covers

Motion = Literal["none", "all", "decoder"]
Ops = ModuleType | Any
"""Where layers come from: torch.nn, or a host's drop-in set with the same class names."""


@dataclass(frozen=True)
class UNetConfig:
    """Everything that differs between LatentSync U-Nets. cross: which down blocks attend (up blocks mirror them).

    The fields from `groups` on (STATED) cannot be read from the tensors; the defaults are the published weights'.
    residual: what it predicts is added to the reference's latents, and around the lips only. The published ones do not;
    a small one that does keeps the looks of people it has never seen.
    prediction_type: epsilon, sample (the clean latents) or v_prediction. reference_mode: per_frame, or first_frame
    where one reference frame serves a whole segment. resolution: side of the crops in pixels, 0: not stated.
    default_steps, default_guidance: what suits the weights.
    """

    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    layers: int = 2
    cross: tuple[bool, ...] = (True, True, True, False)
    audio_dim: int = 384
    latent_channels: int = 4
    motion: Motion = "all"
    groups: int = GROUPS
    residual: bool = False
    prediction_type: str = "epsilon"
    reference_mode: str = "per_frame"
    resolution: int = 0
    default_steps: int = STEPS
    default_guidance: float = GUIDANCE

    @property
    def in_channels(self) -> int:
        """Noisy, masked and reference latents and the one mask channel."""
        return 3 * self.latent_channels + 1

    @property
    def time_width(self) -> int:
        return 4 * self.widths[0]


STATED = ("groups", "residual", "prediction_type", "reference_mode", "resolution", "default_steps", "default_guidance")


@lru_cache
def lips_window(height: int, width: int) -> Tensor:
    """(h, w) float32: 1 at the lips of an aligned crop, falling smoothly to 0 at the cheeks and within the chin.

    The chin's outline stays the reference's: small networks fray it.
    """
    rows, columns = ((torch.arange(n) + 0.5) / n for n in (height, width))
    # the ellipse on which it is 0: the mouth of an aligned face lies at 0.66 of its height
    distance = (((rows - 0.66) / 0.25)[:, None] ** 2 + ((columns - 0.5) / 0.28) ** 2).sqrt()
    inside = ((1 - distance) / 0.45).clamp(0, 1)
    return inside * inside * (3 - 2 * inside)


def config_from_tensors(shapes: Mapping[str, tuple[int, ...]]) -> UNetConfig:
    """Read the architecture from parameter names and shapes. UserError if they are not a LatentSync U-Net's."""
    try:
        latent_channels = shapes["conv_out.weight"][0]
        levels = 1 + max(int(k.split(".")[1]) for k in shapes if k.startswith("down_blocks."))
        audio_key = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
        config = UNetConfig(
            widths=tuple(shapes[f"down_blocks.{i}.resnets.0.conv1.weight"][0] for i in range(levels)),
            layers=sum(f"down_blocks.0.resnets.{i}.conv1.weight" in shapes for i in range(16)),
            cross=tuple(f"down_blocks.{i}.attentions.0.proj_in.weight" in shapes for i in range(levels)),
            audio_dim=shapes[audio_key][1],
            latent_channels=latent_channels,
            motion=_motion(shapes),
        )
        got = shapes["conv_in.weight"][1]
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"This is not a LatentSync U-Net: it lacks {error}.") from error
    if got != config.in_channels:
        raise UserError(
            f"This is not a LatentSync U-Net: its first layer takes {got} channels; with {latent_channels} latent"
            f" channels it must take {config.in_channels}."
        )
    return config


def _motion(shapes: Mapping[str, tuple[int, ...]]) -> Motion:
    down = any(k.startswith("down_blocks.") and "motion_modules" in k for k in shapes)
    up = any(k.startswith("up_blocks.") and "motion_modules" in k for k in shapes)
    return "all" if down else "decoder" if up else "none"


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
    tokens = x.permute(0, 2, 3, 1).reshape(n // frames, frames * h * w, c)
    return norm(tokens.transpose(1, 2)).transpose(1, 2).reshape(n, h, w, c).permute(0, 3, 1, 2)


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
        return x + self.pe[:, : x.shape[1]].to(x)


class TemporalAttention(Attention):
    def __init__(self, width: int, ops: Ops) -> None:
        super().__init__(width, width, ops)
        self.pos_encoder = PositionEncoder(width)

    def project(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        coded = self.pos_encoder(x)
        return super().project(coded, coded)


class TemporalBlock(nn.Module):
    def __init__(self, width: int, ops: Ops) -> None:
        super().__init__()
        self.attention_blocks = nn.ModuleList([TemporalAttention(width, ops) for _ in range(2)])
        self.norms = nn.ModuleList([ops.LayerNorm(width) for _ in range(2)])
        self.ff = FeedForward(width, ops)
        self.ff_norm = ops.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        for attention, norm in zip(self.attention_blocks, self.norms, strict=True):
            normed = norm(x)
            x = x + attention(normed, normed)
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
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(n // frames, frames, h * w, c)
        tokens = self.proj_in(tokens.transpose(1, 2).reshape(-1, frames, c))
        tokens = self.proj_out(self.transformer_blocks[0](tokens))
        tokens = tokens.reshape(n // frames, h * w, frames, c).transpose(1, 2)
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

    def forward(self, x: Tensor, skips: list[Tensor], time: Tensor, audio: Tensor, frames: int) -> Tensor:
        for i in range(len(self.resnets)):
            x = self.layer(i, torch.cat((x, skips.pop()), dim=1), time, audio, frames)
        for up in self.upsamplers:
            x = up(x)
        return x


class UNet(nn.Module):
    """unet(sample (B, 3C+1, F, h, w), timestep, audio (B, F, 50, D)) → (B, C, F, h, w).

    sample: [noisy C | keep-mask 1 | masked C | reference C] latents; h and w divisible by 2^(levels - 1);
    F at most POSITIONS where there are motion modules. timestep: a number or (B,).
    """

    def __init__(self, config: UNetConfig, ops: Ops = nn) -> None:
        super().__init__()
        self.config = config
        widths, levels = config.widths, len(config.widths)
        self.conv_in = ops.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(widths[0], ops)
        self.down_blocks = nn.ModuleList(
            DownBlock(widths[max(i - 1, 0)], widths[i], config, ops, cross=config.cross[i], last=i == levels - 1)
            for i in range(levels)
        )
        self.mid_block = MidBlock(config, ops)
        self.up_blocks = nn.ModuleList(UpBlock(i, config, ops) for i in reversed(range(levels)))
        self.conv_norm_out = ops.GroupNorm(config.groups, widths[0], eps=1e-5)
        self.conv_out = ops.Conv2d(widths[0], config.latent_channels, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor | float, audio: Tensor) -> Tensor:
        batch, _, frames, _, _ = sample.shape
        self._check(sample, audio)
        step = torch.as_tensor(timestep, device=sample.device).expand(batch)
        time = self.time_embedding(step, sample.dtype)
        audio = audio.flatten(0, 1)
        x = sample.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        skips = [x := self.conv_in(x)]
        for down in self.down_blocks:
            x = cast(DownBlock, down)(x, skips, time, audio, frames)
        x = self.mid_block(x, time, audio, frames)
        for up in self.up_blocks:
            x = cast(UpBlock, up)(x, skips, time, audio, frames)
        x = self.conv_out(F.silu(window_norm(self.conv_norm_out, x, frames)))
        x = x.unflatten(0, (batch, frames)).transpose(1, 2)
        if not self.config.residual:
            return x
        return sample[:, -self.config.latent_channels :] + lips_window(*x.shape[-2:]).to(x) * x

    def _check(self, sample: Tensor, audio: Tensor) -> None:
        batch, channels, frames, height, width = sample.shape
        factor = 2 ** (len(self.config.widths) - 1)
        if channels != self.config.in_channels:
            raise UserError(f"The U-Net got {channels} channels; it takes {self.config.in_channels}.")
        if height % factor or width % factor:
            raise UserError(f"The U-Net got latents of {height}×{width}; both must be multiples of {factor}.")
        if audio.shape[:2] != (batch, frames) or audio.shape[-1] != self.config.audio_dim:
            wanted = (batch, frames, 50, self.config.audio_dim)
            raise UserError(f"The U-Net got audio of shape {tuple(audio.shape)}; it takes {wanted}.")
        if self.config.motion != "none" and frames > POSITIONS:
            raise UserError(f"The U-Net got {frames} frames at once; its motion modules take at most {POSITIONS}.")
