"""The recipe of the built-in model "nano": which clips, and how to write the finished file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from latentsync.models.vae import VAE
from latentsync.weights.convert import save_model

from .data import MARGIN, Clip
from .unet import UNetTraining, fold_whitening
from .vae import VAETraining, build_vae, latent_scale

CLIPS = ("latentsync_demo*", "obama_*", "reagan_*", "grid/*", "grid_s1/*")
"""Under the media folder's clips/: those whose license allows weights to be shipped."""
STRANGERS = ("hdtf_*", "videoretalking_*", "edtalk_*")
"""Clips of people that the model never saw, to judge it by."""
DELAYS = {"obama_b_30s": 0.08, "hdtf_wda_katiehill": 0.1, "edtalk_pose_source2_60s": 0.1}
"""Seconds by which a clip's sound is late."""

USUAL_STEPS, USUAL_GUIDANCE = 1, 2.0
"""Half of its training begins at the noisiest step, hence one is enough; more guidance opens the mouth wider."""


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


def latent_rgb(vae: VAE, pictures: Tensor) -> list[list[float]]:
    """Least squares from latents to colors: a row (R, G, B) for each channel and one for the bias.

    pictures: (N, 3, H, W) in [-1, 1]. For previews while sampling: a cell's latents give its mean color.
    """
    latents = vae.encode(pictures).movedim(1, -1).flatten(0, 2)
    colors = F.avg_pool2d(pictures, vae.factor).movedim(1, -1).flatten(0, 2)
    inputs = torch.cat((latents, torch.ones(len(latents), 1)), 1)
    rows = torch.linalg.lstsq(inputs, colors).solution
    return [[round(value, 4) for value in row] for row in rows.tolist()]


def _pictures(clips: list[Clip], side: int) -> Tensor:
    """The first crop of each clip, without its margin, (N, 3, side, side) in [-1, 1]."""
    edge = side // MARGIN
    crops = np.stack([clip.crops[0][edge : edge + side, edge : edge + side] for clip in clips])
    return torch.from_numpy(crops).permute(0, 3, 1, 2) / 127.5 - 1


def export(vae: VAE, unet_checkpoint: Path, path: Path, clips: list[Clip]) -> Path:
    """Write U-Net and VAE as one fp16 file with all that the loader must know."""
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
        "latent_rgb": latent_rgb(vae, _pictures(clips, settings.resolution)),
        "license": "Apache-2.0",
        "steps": parts["step"],
        "default_steps": USUAL_STEPS,
        "default_guidance": USUAL_GUIDANCE,
    }
    state = {k: v.half() for k, v in fold_whitening(parts["average"], parts["whitening"]).items()}
    vae_state = {key: value.half() for key, value in vae.model.state_dict().items()}
    return save_model(path, state, vae_state=vae_state, metadata=metadata)
