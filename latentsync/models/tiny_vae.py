"""TAESD and its like (github.com/madebyollin/taesd): small autoencoders of convolutions and ReLUs only.

Layers are numbered as in diffusers' AutoencoderTiny, and so are the tensors' names. That class is not used: to import
it takes longer than to load everything else, and it cannot leave out rows that nobody looks at.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .vae import SCALING, VAE


@dataclass(frozen=True)
class TinyConfig:
    """blocks: how many follow each convolution but the last, from the picture to the latents; (1, 3, 3, 3) is
    TAESD's. decoder_blocks, decoder_widths: of each level from the latents to the picture. width: of the encoder."""

    blocks: tuple[int, ...] = (1, 3, 3, 3)
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    width: int = 64
    decoder_widths: tuple[int, ...] = (64, 64, 64, 64)
    latent_channels: int = 4
    colors: int = 3

    @property
    def block_out_channels(self) -> tuple[int, ...]:
        """Under the name that an AutoencoderKL's config has: a width for each level."""
        return self.decoder_widths


class TinyBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(3):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True)]
        self.conv = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).add_(x).relu_()


class TinyEncoder(nn.Module):
    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        width = config.width
        layers: list[nn.Module] = []
        for level, blocks in enumerate(config.blocks):
            if level == 0:
                layers.append(nn.Conv2d(config.colors, width, 3, padding=1))
            else:
                layers.append(nn.Conv2d(width, width, 3, padding=1, stride=2, bias=False))
            layers += [TinyBlock(width) for _ in range(blocks)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, config.latent_channels, 3, padding=1))

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] → (N, C, H / factor, W / factor)."""
        return self.layers(pixels.add(1).div(2))


class TinyDecoder(nn.Module):
    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        widths, last = config.decoder_widths, len(config.decoder_blocks) - 1
        layers: list[nn.Module] = [
            nn.Conv2d(config.latent_channels, widths[0], 3, padding=1),
            nn.ReLU(inplace=True),
        ]
        for level, (width, blocks) in enumerate(zip(widths, config.decoder_blocks, strict=True)):
            layers += [TinyBlock(width) for _ in range(blocks)]
            if level < last:
                layers.append(nn.Upsample(scale_factor=2))
            out = widths[level + 1] if level < last else config.colors
            layers.append(nn.Conv2d(width, out, 3, padding=1, bias=level == last))
        self.layers = nn.Sequential(*layers)

    def forward(self, latents: Tensor, top: int = 0) -> Tensor:
        """(N, C, h, w) → (N, 3, h · factor, w · factor), about [-1, 1]; rows above `top` are left out."""
        x, dropped = torch.tanh(latents / 3) * 3, 0
        for layer, row in zip(self.layers, _first_rows(self.layers, top), strict=True):
            if isinstance(layer, nn.Upsample):  # a new picture is made here anyway; cutting elsewhere costs a copy
                x, dropped = layer(x[:, :, row - dropped :]), row * 2
            else:
                x = layer(x)
        x = x[:, :, top - dropped :] * 2 - 1
        return F.pad(x, (0, 0, top, 0), mode="replicate") if top else x


def _first_rows(layers: Sequence[nn.Module] | nn.Sequential, top: int) -> list[int]:
    """For each layer the first row of its input that the output's rows from `top` on depend on."""
    rows = list[int]()
    for layer in reversed([*layers]):
        if isinstance(layer, nn.Upsample):
            top //= 2
        reach = sum(isinstance(m, nn.Conv2d) for m in layer.modules())
        top = max(0, top - reach)  # a row for each 3×3 convolution
        rows.append(top)
    return rows[::-1]


class TinyAutoencoder(nn.Module):
    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = TinyEncoder(config)
        self.decoder = TinyDecoder(config)


class TinyVAE(VAE):
    """Over a TinyAutoencoder. It speaks the latents of Stable Diffusion's U-Nets, scaled already: scaling is 1 here."""

    def __init__(self, model: nn.Module, *, scaling: float = 1.0, shift: float = 0.0) -> None:
        super().__init__(model, scaling=scaling, shift=shift)

    @property
    def stored(self) -> tuple[float, float]:
        """Those of the VAE that TAESD stands in for, so that its latents and that VAE's can be mixed."""
        return self.scaling * SCALING, self.shift

    def _encoded(self, pixels: Tensor) -> Tensor:
        return self.model.encoder(pixels)

    def _pixels(self, latents: Tensor, top: int) -> Tensor:
        return self.model.decoder(latents, top)
