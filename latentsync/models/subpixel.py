"""Doubling a picture and a 3×3 convolution, as four 2×2 convolutions of the small one."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .vae import VAE

LEAST_CHANNELS = 128
"""Measured on a CPU in bf16: 512 channels take 0.6 of the time, 256 take 0.7, 64 take 1.6."""


class SubPixelUpsample(nn.Module):
    """Nearest doubling before a 3×3 convolution with a margin of 1: the same sums with 4/9 of the multiplications, and
    without the large picture between. (N, C, h, w) → (N, C', 2h, 2w)."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        taps = conv.weight.detach().double()
        self.bias = conv.bias
        # of three taps in a row two fall on one small pixel: the last two for an even row, the first two for an odd one
        folded = [_folded(_folded(taps, a, 2), b, 3) for a in (0, 1) for b in (0, 1)]
        self.weights = nn.ParameterList(
            nn.Parameter(w.to(conv.weight.dtype).contiguous(memory_format=torch.channels_last), requires_grad=False)
            for w in folded
        )

    def forward(self, x: Tensor, *_: object) -> Tensor:
        n, (h, w) = len(x), x.shape[2:]
        padded = F.pad(x, (1, 1, 1, 1))
        size = (n, len(self.weights[0]), 2 * h, 2 * w)
        out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        for i, weight in enumerate(self.weights):
            a, b = divmod(i, 2)
            out[:, :, a::2, b::2] = F.conv2d(padded[:, :, a : a + h + 1, b : b + w + 1], weight, self.bias)
        return out


def _folded(taps: Tensor, odd: int, dim: int) -> Tensor:
    first, second, third = taps.split(1, dim)
    return torch.cat((first + second, third) if odd else (first, second + third), dim)


def quicken(vae: VAE) -> VAE:
    """With this in place of the doubling layers of an AutoencoderKL's decoder. Such a VAE is not for training."""
    for block in getattr(vae.model.decoder, "up_blocks", ()):
        for i, layer in enumerate(block.upsamplers or ()):
            if layer.conv.in_channels >= LEAST_CHANNELS:
                block.upsamplers[i] = SubPixelUpsample(layer.conv)
    return vae
