"""The recipe of the built-in model "nano": which clips, and how to write the finished file."""

from pathlib import Path
from typing import Any

import torch

from ..models.vae import VAE
from ..weights import save_model
from .data import Clip
from .unet import UNetTraining, fold_whitening
from .vae import VAETraining, build_vae, latent_scale

CLIPS = ("latentsync_demo*", "obama_*", "reagan_*", "grid/*", "grid_s1/*")
"""Under the media folder's clips/: those whose licence allows weights to be shipped."""
DELAYS = {"obama_b_30s": 0.08}
"""Seconds by which a clip's sound is late."""


def clip_paths(media: Path) -> list[Path]:
    """The recipe's clips, in a fixed order."""
    return [path for pattern in CLIPS for path in sorted((media / "clips").glob(pattern))]


def trained_vae(checkpoint: Path, clips: list[Clip]) -> VAE:
    """The averaged VAE of a training run, ready to encode."""
    parts = torch.load(checkpoint, weights_only=True)
    settings = VAETraining(**parts["settings"])
    model = build_vae(settings)
    model.load_state_dict(parts["average"])
    model = model.eval().requires_grad_(False)
    return VAE(model, scaling=latent_scale(model, clips, settings)).eval()


def export(vae: VAE, unet_checkpoint: Path, path: Path) -> Path:
    """Write U-Net and VAE as one fp16 file with all that the loader must know."""
    parts = torch.load(unet_checkpoint, weights_only=True)
    settings = UNetTraining(**parts["settings"])
    metadata: dict[str, Any] = {
        "version": "nano",
        "resolution": settings.resolution,
        "prediction_type": "sample",
        "vae_scaling": vae.scaling,
        "vae_shift": vae.shift,
        "vae_groups": vae.model.config.norm_num_groups,
        "unet_groups": settings.norm_groups,
        "reference": "still",
        "licence": "Apache-2.0",
        "steps": parts["step"],
    }
    state = {k: v.half() for k, v in fold_whitening(parts["average"], parts["whitening"]).items()}
    vae_state = {key: value.half() for key, value in vae.model.state_dict().items()}
    return save_model(path, state, vae_state=vae_state, metadata=metadata)
