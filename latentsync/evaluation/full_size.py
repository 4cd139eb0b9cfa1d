"""Networks of the published size with random weights: as fast and as large as the real ones, and they know nothing."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..face.detect import FaceFinder
from ..models.libraries import hide_broken_torchvision
from ..models.unet import UNet
from ..models.unet_config import UNetConfig
from ..models.vae import VAE
from ..weights.bundle import Models
from ..weights.registry import find
from ..weights.whisper_files import load_whisper

SD_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
"""Arguments of diffusers' AutoencoderKL for Stable Diffusion 1.x."""
SEED = 0


def full_models(
    device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, *, resolution: int = 256
) -> Models:
    """Models of LatentSync 1.5 and 1.6's shape (1,267 million numbers in the U-Net), each made on the device in dtype.

    Whisper and the face finder are the real ones; Whisper tiny.en has the shape of tiny, for which it may stand.
    """
    unet = random_unet(UNetConfig(resolution=resolution), device, dtype)
    finder = FaceFinder(find("face_landmarker.task"))
    try:
        whisper = load_whisper("tiny", device=device)
    except UserError:  # it is not here
        whisper = load_whisper("tiny.en", device=device)
    return Models(unet, random_vae(SD_VAE, device, dtype), whisper, finder, resolution, "full")


def at_resolution(models: Models, resolution: int) -> Models:
    """The same networks for crops of another side: the published ones differ in their weights alone."""
    models.unet.config = replace(models.unet.config, resolution=resolution)
    return replace(models, resolution=resolution)


def random_unet(config: UNetConfig, device: str | torch.device, dtype: torch.dtype) -> UNet:
    with torch.device("meta"):
        unet = UNet(config)
    return _filled(unet, device, dtype)


def random_vae(shape: dict[str, Any], device: str | torch.device, dtype: torch.dtype) -> VAE:
    """shape: arguments of diffusers' AutoencoderKL."""
    hide_broken_torchvision()
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    with torch.device("meta"):
        model = AutoencoderKL(**shape)
    return VAE(_filled(model, device, dtype))


def _filled(module: Any, device: str | torch.device, dtype: torch.dtype) -> Any:
    """The module, built on "meta", with numbers that keep activations near 1, each tensor allocated just once."""
    generator = torch.Generator(device).manual_seed(SEED)

    def numbers(shape: torch.Size) -> Tensor:
        layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
        empty = torch.empty(shape, device=device, dtype=dtype, memory_format=layout)
        return empty.normal_(0, shape[1:].numel() ** -0.5, generator=generator)

    for part in module.modules():
        for name, buffer in list(part.named_buffers(recurse=False)):
            part.register_buffer(name, numbers(buffer.shape))
        for name, parameter in list(part.named_parameters(recurse=False)):
            flat = torch.full(parameter.shape, float(name == "weight"), device=device, dtype=dtype)
            value = numbers(parameter.shape) if parameter.ndim > 1 else flat
            setattr(part, name, nn.Parameter(value, requires_grad=False))
    return module.eval()
