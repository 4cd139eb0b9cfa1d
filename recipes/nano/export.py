"""Writing the file of the built-in model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from latentsync.models.vae import VAE
from latentsync.weights.convert import save_model
from latentsync.weights.files import our_metadata, read_tensors, write_safetensors

from .data import MARGIN, RESOLUTION, Person
from .decoder import with_decoder
from .unet import UNetTraining

DEFAULT_STEPS, DEFAULT_GUIDANCE = 1, 1.0
"""Most training windows start at the noisiest timestep, so one step is enough. Hearing is enlarged already, which
guidance does for twice the time."""


def latent_rgb(vae: VAE, images: Tensor) -> list[list[float]]:
    """Least squares from latents to colors: a row (R, G, B) for each channel and one for the bias.

    images: (N, 3, H, W) in [-1, 1]. For previews while sampling: a cell's latents give its mean color.
    """
    latents = vae.encode(images).movedim(1, -1).flatten(0, 2)
    colors = F.avg_pool2d(images, vae.factor).movedim(1, -1).flatten(0, 2)
    inputs = torch.cat((latents, torch.ones(len(latents), 1)), 1)
    rows = torch.linalg.lstsq(inputs, colors).solution
    return [[round(value, 4) for value in row] for row in rows.tolist()]


def _first_crops(people: Sequence[Person]) -> Tensor:
    """The first crop of each, without its margin, (N, 3, R, R) in [-1, 1]."""
    inner = slice(RESOLUTION // MARGIN, RESOLUTION // MARGIN + RESOLUTION)
    crops = np.stack([person.crops[0][inner, inner] for person in people])
    return torch.from_numpy(crops).permute(0, 3, 1, 2) / 127.5 - 1


def export(vae: VAE, heard: Path, path: Path, people: Sequence[Person]) -> Path:
    """Write U-Net and autoencoder as one fp16 file with all metadata that the loader needs."""
    parts = torch.load(heard, weights_only=True)
    vae = with_decoder(vae, parts["average_decoder"])
    settings = UNetTraining(**parts["settings"])
    metadata: dict[str, Any] = {
        "version": "nano",
        "resolution": RESOLUTION,
        "prediction_type": "sample",
        "vae_scaling": vae.scaling,
        "vae_shift": vae.shift,
        "unet_groups": settings.norm_groups,
        "unet_residual": settings.config.residual,
        "latent_rgb": latent_rgb(vae, _first_crops(people)),
        "license": "Apache-2.0",
        "steps": parts["step"],
        "default_steps": DEFAULT_STEPS,
        "default_guidance": DEFAULT_GUIDANCE,
    }
    state = {key: value.half() for key, value in parts["unet"].items()}
    vae_state = {key: value.half() for key, value in vae.model.state_dict().items()}
    return save_model(path, state, vae_state=vae_state, metadata=metadata)


def exchange_decoder(file: Path, unet: Path, out: Path) -> Path:
    """Write a finished model again with the decoder of a run's unet.pt; both started from the same latents."""
    decoder = torch.load(unet, weights_only=True)["average_decoder"]
    state = {name: value for name, value in read_tensors(file).items() if not name.startswith("vae.decoder.")}
    state |= {f"vae.decoder.{name}": value.half() for name, value in decoder.items()}
    return write_safetensors(out, state, our_metadata(file))
