"""The LatentSync U-Net: Stable Diffusion 1.5's, run per frame, with audio cross-attention and attention along time.

Inside, the frames of a window are one channels_last batch (B·F, C, H, W); only the norms of the residual blocks and
the motion modules look across frames. Parameter names are those of the published checkpoints.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from .unet_blocks import AudioProjection, DownBlock, MidBlock, Ops, TimeEmbedding, UpBlock, window_norm
from .unet_config import POSITIONS, Residual, UNetConfig

WINDOW_RADII: dict[str, tuple[float, float]] = {"lips": (0.25, 0.28), "jaw": (0.34, 0.36)}
"""Half height and half width of the ellipse beyond which a residual network adds nothing, as shares of the crop."""


# not cached: what is made while sampling or counting memory would be an inference tensor or one without content
def lips_window(height: int, width: int, reach: Residual = "lips") -> Tensor:
    """(h, w) float32: 1 at the lips of an aligned crop, falling smoothly to 0 at the cheeks and within the chin.

    With "lips" the chin's outline stays the reference's; with "jaw" it moves.
    """
    high, wide = WINDOW_RADII[reach]
    rows, columns = ((torch.arange(n) + 0.5) / n for n in (height, width))
    # the ellipse on which it is 0: the mouth of an aligned face lies at 0.66 of its height
    distance = (((rows - 0.66) / high)[:, None] ** 2 + ((columns - 0.5) / wide) ** 2).sqrt()
    inside = ((1 - distance) / 0.45).clamp(0, 1)
    return inside * inside * (3 - 2 * inside)


class UNet(nn.Module):
    """unet(sample (B, 3C+1, F, h, w), timestep, audio (B, F, 50, D)) → (B, C, F, h, w).

    sample: [noisy C | keep-mask 1 | masked C | reference C] latents; h and w divisible by 2^(levels - 1);
    F at most POSITIONS where there are motion modules. timestep: a number or (B,). deep: an empty list gets what the
    deep layers give; one that holds it already stands in for them, and only the outermost layers are computed: the
    branch 0 of DeepCache (Ma et al. 2024), with 7 % of the work.
    """

    def __init__(self, config: UNetConfig, ops: Ops = nn) -> None:
        super().__init__()
        self.config = config
        widths, levels = config.widths, len(config.widths)
        self.conv_in = ops.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(widths[0], ops)
        if config.audio_rank:
            self.audio_projection = AudioProjection(config.audio_dim, config.audio_rank, config.audio_dim, ops)
        self.down_blocks = nn.ModuleList(
            DownBlock(widths[max(i - 1, 0)], widths[i], config, ops, cross=config.cross[i], last=i == levels - 1)
            for i in range(levels)
        )
        self.mid_block = MidBlock(config, ops)
        self.up_blocks = nn.ModuleList(UpBlock(i, config, ops) for i in reversed(range(levels)))
        self.conv_norm_out = ops.GroupNorm(config.groups, widths[0], eps=1e-5)
        self.conv_out = ops.Conv2d(widths[0], config.latent_channels, 3, padding=1)

    def forward(
        self, sample: Tensor, timestep: Tensor | float, audio: Tensor, deep: list[Tensor] | None = None
    ) -> Tensor:
        batch, _, frames, _, _ = sample.shape
        self._check(sample, audio)
        step = torch.as_tensor(timestep, device=sample.device).expand(batch)
        time = self.time_embedding(step, sample.dtype)
        audio = audio.flatten(0, 1)
        if self.config.audio_rank:
            audio = self.audio_projection(audio)
        x = sample.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        skips = [x := self.conv_in(x)]
        *ups, last = (cast(UpBlock, up) for up in self.up_blocks)
        if deep:
            x = last.layer(len(last.resnets) - 1, torch.cat((deep[0], x), dim=1), time, audio, frames)
        else:
            for down in self.down_blocks:
                x = cast(DownBlock, down)(x, skips, time, audio, frames)
            x = self.mid_block(x, time, audio, frames)
            for up in ups:
                x = up(x, skips, time, audio, frames)
            x = last(x, skips, time, audio, frames, deep)
        x = self.conv_out(F.silu(window_norm(self.conv_norm_out, x, frames)))
        x = x.unflatten(0, (batch, frames)).transpose(1, 2)
        reach = self.config.residual
        if reach == "none":
            return x
        return sample[:, -self.config.latent_channels :] + lips_window(x.shape[-2], x.shape[-1], reach).to(x) * x

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
