"""SyncNets: StableSyncNet, which supervises the training of LatentSync, and the one of Chung & Zisserman.

Both embed a few frames of a mouth and their audio as two vectors, which are close if they are in sync.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from .unet_blocks import Attention, FeedForward

GROUPS = 32
EPS = 1e-6

Factor = int | tuple[int, int]
"""Downsampling of a block: the same for both axes, or (height, width)."""


@dataclass(frozen=True)
class EncoderConfig:
    """Block i has widths[i] channels, downsamples by factors[i], and is followed by self-attention if attention[i]."""

    in_channels: int
    widths: tuple[int, ...]
    factors: tuple[Factor, ...]
    attention: tuple[bool, ...]

    def sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """(height, width) after each block, for an input of this size."""
        out = [(height, width)]
        for factors in map(_pair, self.factors):
            # 3×3 with stride: along an axis that shrinks the padding is 1, along the other 2 (see ResidualBlock)
            height, width = ((n + (1 if k > 1 else 2) - 3) // k + 1 for n, k in zip(out[-1], factors, strict=True))
            out.append((height, width))
        return out[1:]


@dataclass(frozen=True)
class SyncNetConfig:
    """space "pixel": RGB of the lower half of the crop, frames stacked on channels; "latent": VAE latents of the whole
    crop. size: (height, width) of the visual input. mels: (bands, frames) of the audio input.
    """

    audio: EncoderConfig
    visual: EncoderConfig
    frames: int = 16
    space: str = "pixel"
    size: tuple[int, int] = (128, 256)
    mels: tuple[int, int] = (80, 52)

    def check(self) -> None:
        """UserError unless both encoders end in 1×1 with the same number of channels."""
        for name, part, size in (("audio", self.audio, self.mels), ("visual", self.visual, self.size)):
            lengths = {len(part.widths), len(part.factors), len(part.attention)}
            if len(lengths) != 1:
                raise UserError(
                    f"The {name} encoder has {sorted(lengths)} widths, factors and attentions; give as many of each."
                )
            sizes = part.sizes(*size)
            if sizes[-1] != (1, 1):
                way = " → ".join(f"{h}×{w}" for h, w in [size, *sizes])
                advice = (
                    f"its factors must shrink the height {sizes[-1][0]} times and the width {sizes[-1][1]} times more"
                )
                if min(sizes[-1]) < 1:
                    advice = "its factors shrink too much; use a smaller one, or one block fewer"
                raise UserError(f"The {name} encoder does not end in 1×1 ({way}); {advice}.")
        if self.audio.widths[-1] != self.visual.widths[-1]:
            raise UserError(
                f"The audio encoder ends in {self.audio.widths[-1]} channels and the visual one in"
                f" {self.visual.widths[-1]}; their vectors are compared, so make these equal."
            )


def config_from_dict(facts: Mapping[str, Any]) -> SyncNetConfig:
    """From JSON in our form, or in the public one with audio_encoder and visual_encoder.

    In the public form 3 · 16 visual channels are RGB frames, any other number is latents.
    """
    if "audio_encoder" not in facts:
        parts = {name: EncoderConfig(**_tuples(facts[name])) for name in ("audio", "visual")}
        return SyncNetConfig(**{**_tuples(facts), **parts})
    audio, visual = (_public_encoder(facts[name]) for name in ("audio_encoder", "visual_encoder"))
    latent = visual.in_channels != 48
    return SyncNetConfig(audio, visual, space="latent" if latent else "pixel", size=(32, 32) if latent else (128, 256))


def _public_encoder(facts: Mapping[str, Any]) -> EncoderConfig:
    plain = _tuples(facts)
    attention = tuple(map(bool, plain.get("attn_blocks") or [0] * len(plain["block_out_channels"])))
    return EncoderConfig(plain["in_channels"], plain["block_out_channels"], plain["downsample_factors"], attention)


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _public(audio: tuple[Any, ...], visual: tuple[Any, ...], channels: int) -> SyncNetConfig:
    names = ("block_out_channels", "downsample_factors", "attn_blocks")
    parts = [dict(zip(names, part, strict=False)) for part in (audio, visual)]
    return config_from_dict(
        {"audio_encoder": parts[0] | {"in_channels": 1}, "visual_encoder": parts[1] | {"in_channels": channels}}
    )


_AUDIO = ([32, 64, 128, 256, 512, 1024, 2048], [[2, 1], 2, 2, 1, 2, 2, [2, 3]])
_VISUAL = ([64, 128, 256, 256, 512, 1024, 2048, 2048], [[1, 2], 2, 2, 2, 2, 2, 2, 2])

PUBLISHED = {
    "16_latent": _public(
        ([32, 64, 128, 256, 512, 1024], [[2, 1], 2, 2, 2, 2, [2, 3]]),
        ([64, 128, 256, 256, 512, 1024], [2, 2, 2, 1, 2, 2]),
        64,
    ),
    "16_pixel": _public(_AUDIO, _VISUAL, 48),
    "16_pixel_attn": _public((*_AUDIO, [0, 0, 0, 1, 1, 0, 0]), (*_VISUAL, [0, 0, 0, 0, 1, 1, 0, 0]), 48),
}
"""The public architectures; the file published with LatentSync 1.5 and 1.6 is 16_pixel_attn."""


def _pair(factor: Factor) -> tuple[int, int]:
    return (factor, factor) if isinstance(factor, int) else factor


class ResidualBlock(nn.Module):
    def __init__(self, width_in: int, width: int, factor: Factor) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, width_in, eps=EPS)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(GROUPS, width, eps=EPS)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(width_in, width, 1) if width_in != width else nn.Identity()
        self.factor = _pair(factor)
        shrinks = self.factor != (1, 1)
        self.downsample_conv = nn.Conv2d(width, width, 3, stride=self.factor) if shrinks else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(h)))
        if self.downsample_conv is None:
            return h
        top, left = (0 if factor > 1 else 1 for factor in self.factor)  # an axis that shrinks is padded at its end only
        return self.downsample_conv(F.pad(h, (left, 1, top, 1)))


class AttentionBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, width, eps=EPS)
        self.conv_in = nn.Conv2d(width, width, 1)
        self.norm2 = nn.LayerNorm(width)
        self.attn = Attention(width, width, nn, bias=True)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width, nn)
        self.conv_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(self.norm1(x)).flatten(2).transpose(1, 2)
        normed = self.norm2(h)
        h = h + self.attn(normed, normed)
        h = h + self.ff(self.norm3(h))
        return x + self.conv_out(h.transpose(1, 2).reshape(x.shape))


class Encoder(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.widths[0]
        self.conv_in = nn.Conv2d(config.in_channels, width, 3, padding=1)
        blocks: list[nn.Module] = []
        for wide, factor, attends in zip(config.widths, config.factors, config.attention, strict=True):
            blocks.append(ResidualBlock(width, wide, factor))
            width = wide
            blocks += [AttentionBlock(width)] if attends else []
        self.down_blocks = nn.ModuleList(blocks)
        self.norm_out = nn.GroupNorm(GROUPS, width, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return F.normalize(F.relu(self.norm_out(x)).flatten(1), dim=1)


class StableSyncNet(nn.Module):
    """syncnet(picture (B, frames · channels, H, W) in [-1, 1], mel (B, 1, 80, 52)) → two unit vectors (B, D).

    Their dot product is the likelihood of sync. It lies in 0 … 1, because the vectors are non-negative.
    """

    def __init__(self, config: SyncNetConfig) -> None:
        super().__init__()
        config.check()
        self.config = config
        self.audio_encoder, self.visual_encoder = Encoder(config.audio), Encoder(config.visual)

    def forward(self, picture: Tensor, mel: Tensor) -> tuple[Tensor, Tensor]:
        return self.visual_encoder(picture), self.audio_encoder(mel)


class ChungSyncNet(nn.Module):
    """The SyncNet of Chung & Zisserman 2016, for LSE-C and LSE-D; layer sizes and names are those of syncnet_v2.model.

    lips (N, 3, 5, 224, 224): BGR frames in 0 … 255. sound (N, 1, 13, 20): MFCCs, 100 a second. Vectors: (N, 1024).
    """

    def __init__(self) -> None:
        super().__init__()
        relu = nn.ReLU
        self.netcnnaud = nn.Sequential(
            *(nn.Conv2d(1, 64, 3, padding=1), nn.BatchNorm2d(64), relu(), nn.MaxPool2d(1)),
            *(nn.Conv2d(64, 192, 3, padding=1), nn.BatchNorm2d(192), relu(), nn.MaxPool2d(3, (1, 2))),
            *(nn.Conv2d(192, 384, 3, padding=1), nn.BatchNorm2d(384), relu()),
            *(nn.Conv2d(384, 256, 3, padding=1), nn.BatchNorm2d(256), relu()),
            *(nn.Conv2d(256, 256, 3, padding=1), nn.BatchNorm2d(256), relu(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(256, 512, (5, 4)), nn.BatchNorm2d(512), relu()),
        )
        self.netcnnlip = nn.Sequential(
            *(nn.Conv3d(3, 96, (5, 7, 7), (1, 2, 2)), nn.BatchNorm3d(96), relu(), nn.MaxPool3d((1, 3, 3), (1, 2, 2))),
            *(nn.Conv3d(96, 256, (1, 5, 5), (1, 2, 2), (0, 1, 1)), nn.BatchNorm3d(256), relu()),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
            *(nn.Conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1)), nn.BatchNorm3d(256), relu()),
            *(nn.Conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1)), nn.BatchNorm3d(256), relu()),
            *(nn.Conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1)), nn.BatchNorm3d(256), relu()),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *(nn.Conv3d(256, 512, (1, 6, 6)), nn.BatchNorm3d(512), relu()),
        )
        self.netfcaud, self.netfclip = (
            nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), relu(), nn.Linear(512, 1024)) for _ in range(2)
        )

    def forward(self, lips: Tensor, sound: Tensor) -> tuple[Tensor, Tensor]:
        return self.netfclip(self.netcnnlip(lips).flatten(1)), self.netfcaud(self.netcnnaud(sound).flatten(1))


SyncNet = StableSyncNet | ChungSyncNet
