"""LPIPS and VideoMAE, frozen: perceptual networks of training losses and of evaluation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from .libraries import hide_broken_torchvision, torchvision_advice

Perceptual = Callable[[Tensor, Tensor], Tensor]
"""Two batches of images (N, 3, H, W) in [-1, 1] to their distances, of any shape."""

VIDEOMAE_SIDE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, for pixels from 0 to 1; VideoMAE takes images normalized by them."""

LPIPS_NETS = ("vgg", "alex", "squeeze")


def load_lpips(name: str, device: torch.device | str) -> Perceptual:
    """By the lpips package, or by torchmetrics' copy of it."""
    if name not in LPIPS_NETS:
        raise UserError(f"lpips is {name!r}; it must be one of {', '.join(LPIPS_NETS)}, or off.")
    if problem := hide_broken_torchvision():
        advice = f"{torchvision_advice()} and use --lpips off"
        raise UserError(f"LPIPS needs torchvision, which cannot be imported here ({problem}); {advice}.")
    reasons = []
    for build in (_from_lpips, _from_torchmetrics):
        try:
            return build(name).to(device).eval().requires_grad_(False)
        except Exception as error:  # not installed; torchvision missing; weights absent and no network
            reasons.append(str(error).splitlines()[0] if str(error) else type(error).__name__)
    raise UserError(
        f"LPIPS ({name}) cannot be loaded ({'; '.join(reasons)}); install lpips and torchvision with the network's"
        " weights, or use --lpips off."
    )


def _from_lpips(name: str) -> nn.Module:
    import lpips  # pyright: ignore[reportMissingImports]

    return lpips.LPIPS(net=name, verbose=False)


def _from_torchmetrics(name: str) -> nn.Module:
    from torchmetrics.functional.image.lpips import _LPIPS  # pyright: ignore[reportMissingImports]

    return _LPIPS(pretrained=True, net=name)  # pyright: ignore[reportArgumentType]


def load_videomae(
    folder: Path, device: torch.device | str, frames: int, dtype: torch.dtype = torch.float32
) -> Callable[[Tensor], Tensor]:
    """A transformers VideoMAEModel from a local folder with config.json and weights."""
    hide_broken_torchvision()
    from transformers import VideoMAEModel

    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} holds no VideoMAE (config.json and weights, as transformers saves them); give such a folder."
        )
    try:
        loaded: Any = VideoMAEModel.from_pretrained(str(folder), local_files_only=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder} cannot be read as a VideoMAE ({str(error).splitlines()[0]}).") from error
    model, report = loaded
    if report["missing_keys"]:  # transformers would initialize them at random
        raise UserError(f"{folder} lacks weights of a VideoMAE, among them {sorted(report['missing_keys'])[0]}.")
    config = model.config
    if (config.num_frames, config.image_size) != (frames, VIDEOMAE_SIDE):
        raise UserError(
            f"The VideoMAE in {folder} takes {config.num_frames} frames of {config.image_size} px; {frames} of"
            f" {VIDEOMAE_SIDE} are needed."
        )
    return VideoFeatures(model.to(device, dtype).eval().requires_grad_(False))


class VideoFeatures(nn.Module):
    """(B, F, 3, 224, 224) to one vector per clip, (B, D): the mean of all patches' last states."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, clips: Tensor) -> Tensor:
        return self.model(clips.to(self.model.dtype)).last_hidden_state.mean(1)


def videomae_input(pixels: Tensor) -> Tensor:
    """(B, F, 3, R, R) in [-1, 1] to (B, F, 3, 224, 224), normalized for VideoMAE."""
    scaled = resize(pixels.flatten(0, 1), VIDEOMAE_SIDE).unflatten(0, pixels.shape[:2])
    mean, std = (torch.tensor(values).to(scaled)[:, None, None] for values in (MEAN, STD))
    return (scaled / 2 + 0.5 - mean) / std


def resize(images: Tensor, side: int) -> Tensor:
    if images.shape[-1] == side:
        return images
    return F.interpolate(images, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
