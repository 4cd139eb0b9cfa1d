"""The clips of the built-in model "nano", and writing its file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from latentsync.models.vae import VAE
from latentsync.weights.convert import save_model

from .data import MARGIN, Clip, fold_whitening
from .unet import UNetTraining
from .vae import VAETraining, build_vae, latent_scale

CLIPS = ("latentsync_demo*", "obama_*", "reagan_*", "grid/*", "grid_s1/*")
"""Under the media folder's clips/: those whose license allows weights to be shipped."""
STRANGERS = ("hdtf_*", "videoretalking_*", "edtalk_*")
"""Clips of people that are not in the training data, for evaluation."""
DELAYS = {"obama_b_30s": 0.08, "hdtf_wda_katiehill": 0.1, "edtalk_pose_source2_60s": 0.1}
"""Seconds by which a clip's audio is late."""

DEFAULT_STEPS, DEFAULT_GUIDANCE = 1, 2.0
"""Most training windows start at the noisiest timestep, so one step is enough; more guidance opens the mouth wider."""


def clip_paths(media: Path, patterns: Sequence[str] = CLIPS) -> list[Path]:
    """The recipe's clips, or others, in a fixed order."""
    return [path for pattern in patterns for path in sorted((media / "clips").glob(pattern))]


def trained_vae(checkpoint: Path, clips: list[Clip]) -> VAE:
    """The averaged VAE of a training run, ready to encode."""
    parts = torch.load(checkpoint, weights_only=True)
    settings = VAETraining(**parts["settings"])
    model = build_vae(settings)
    model.load_state_dict(parts["average"])
    model = model.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return VAE(model, scaling=latent_scale(model, clips, settings)).eval()


def latent_rgb(vae: VAE, images: Tensor) -> list[list[float]]:
    """Least squares from latents to colors: a row (R, G, B) for each channel and one for the bias.

    images: (N, 3, H, W) in [-1, 1]. For previews while sampling: a cell's latents give its mean color.
    """
    latents = vae.encode(images).movedim(1, -1).flatten(0, 2)
    colors = F.avg_pool2d(images, vae.factor).movedim(1, -1).flatten(0, 2)
    inputs = torch.cat((latents, torch.ones(len(latents), 1)), 1)
    rows = torch.linalg.lstsq(inputs, colors).solution
    return [[round(value, 4) for value in row] for row in rows.tolist()]


def _first_crops(clips: list[Clip], side: int) -> Tensor:
    """The first crop of each clip, without its margin, (N, 3, side, side) in [-1, 1]."""
    edge = side // MARGIN
    crops = np.stack([clip.crops[0][edge : edge + side, edge : edge + side] for clip in clips])
    return torch.from_numpy(crops).permute(0, 3, 1, 2) / 127.5 - 1


def export(vae: VAE, unet_checkpoint: Path, path: Path, clips: list[Clip]) -> Path:
    """Write U-Net and VAE as one fp16 file with all metadata that the loader needs."""
    parts = torch.load(unet_checkpoint, weights_only=True)
    vae.model.decoder.load_state_dict(parts["average_decoder"])
    settings = UNetTraining(**parts["settings"])
    metadata: dict[str, Any] = {
        "version": "nano",
        "resolution": settings.resolution,
        "prediction_type": "sample",
        "vae_scaling": vae.scaling,
        "vae_shift": vae.shift,
        "vae_groups": vae.model.config.norm_num_groups,
        "unet_groups": settings.norm_groups,
        "unet_residual": "reference",
        "latent_rgb": latent_rgb(vae, _first_crops(clips, settings.resolution)),
        "license": "Apache-2.0",
        "steps": parts["step"],
        "default_steps": DEFAULT_STEPS,
        "default_guidance": DEFAULT_GUIDANCE,
    }
    state = {k: v.half() for k, v in fold_whitening(parts["average"], parts["whitening"]).items()}
    vae_state = {key: value.half() for key, value in vae.model.state_dict().items()}
    return save_model(path, state, vae_state=vae_state, metadata=metadata)
