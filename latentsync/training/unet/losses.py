"""The losses of the LatentSync recipe, as pure functions of tensors. All are computed in float32.

Names: B windows, F frames, C latent channels; alpha_bar: (B,) signal power left at each window's training step.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import UserError
from ...models.syncnet import StableSyncNet
from ...sampling import predict_x0

Perceptual = Callable[[Tensor, Tensor], Tensor]
"""Two batches of pictures (N, 3, H, W) in [-1, 1] to their distances, of any shape."""

VIDEOMAE_SIDE = 224
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels in 0 … 1; VideoMAE was trained on pictures normalised by them."""


def mixed_noise(shape: Sequence[int], generator: torch.Generator, alpha: float = 1.0) -> Tensor:
    """(C, F, h, w) noise of unit variance, partly the same in all frames (Ge et al. 2023, "mixed noise").

    alpha² is the shared part's variance over the frame's own: 1 halves it, 0 shares nothing.
    """
    channels, frames, height, width = shape
    shared = torch.randn(channels, 1, height, width, generator=generator)
    own = torch.randn(channels, frames, height, width, generator=generator)
    return (alpha * shared + own) / (1 + alpha**2) ** 0.5


def add_noise(clean: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """(B, C, F, h, w): the latents as they are at that step (Ho et al. 2020, eq. 4)."""
    bar = _broadcast(alpha_bar, clean)
    return bar.sqrt() * clean + (1 - bar).sqrt() * noise


def target(clean: Tensor, noise: Tensor, alpha_bar: Tensor, prediction: str) -> Tensor:
    """What the network is to say: the noise, the clean latents, or v (Salimans & Ho 2022)."""
    if prediction == "epsilon":
        return noise
    if prediction == "sample":
        return clean
    if prediction == "v_prediction":
        bar = _broadcast(alpha_bar, clean)
        return bar.sqrt() * noise - (1 - bar).sqrt() * clean
    raise UserError(f"prediction is {prediction!r}; known are epsilon, sample and v_prediction.")


def estimate(output: Tensor, noisy: Tensor, alpha_bar: Tensor, prediction: str) -> Tensor:
    """The clean latents that follow from one evaluation: x0 = (x_t − sqrt(1 − ā) ε) / sqrt(ā)."""
    bar: Any = _broadcast(alpha_bar, noisy)
    return predict_x0(output.float(), noisy, bar, prediction)


def _broadcast(alpha_bar: Tensor, like: Tensor) -> Tensor:
    return alpha_bar.to(like).reshape(-1, *(1,) * (like.ndim - 1))


def noise_loss(output: Tensor, wanted: Tensor) -> Tensor:
    return F.mse_loss(output.float(), wanted.float())


def sync_input(pixels: Tensor | None, latents: Tensor | None, net: StableSyncNet) -> Tensor:
    """What a SyncNet sees of pixels (B, F, 3, R, R) in [-1, 1], or of latents (B, F, C, h, w): frames on channels.

    Pixels are scaled to its width first, and of them it sees the lower half.
    """
    config = net.config
    seen = latents if config.space == "latent" else pixels
    if seen is None or seen.shape[1] != config.frames:
        frames = "none" if seen is None else seen.shape[1]
        raise UserError(f"The SyncNet judges {config.frames} frames of {config.space}s together; it got {frames}.")
    if config.space == "pixel":
        seen = lower_half(_scaled(seen.flatten(0, 1), config.size[1])).unflatten(0, seen.shape[:2])
    if tuple(seen.shape[-2:]) != config.size:
        raise UserError(f"The SyncNet takes {config.space}s of {config.size}; these are {tuple(seen.shape[-2:])}.")
    return seen.flatten(1, 2)


def similarity(net: StableSyncNet, picture: Tensor, mel: Tensor) -> Tensor:
    """(B,) cosine similarity of sight and sound, 0 … 1: how sure the SyncNet is that they belong together."""
    seen, heard = net(picture, mel)
    return (seen.float() * heard.float()).sum(1)


def sync_loss(cosine: Tensor) -> Tensor:
    """Binary cross-entropy of the similarity as a likelihood, with target 1 (Prajwal et al. 2020)."""
    return -cosine.clamp(1e-7, 1).log().mean()


def lower_half(pictures: Tensor) -> Tensor:
    return pictures[..., pictures.shape[-2] // 2 :, :]


def perceptual_loss(made: Tensor, true: Tensor, network: Perceptual) -> Tensor:
    """LPIPS (Zhang et al. 2018), or any perceptual distance, over the lower halves of (B, F, 3, R, R) in [-1, 1]."""
    a, b = (lower_half(pixels).flatten(0, 1) for pixels in (made, true))
    return network(a, b).mean()


def trepa_loss(made: Tensor, true: Tensor, features: Callable[[Tensor], Tensor]) -> Tensor:
    """Temporal representation alignment (LatentSync): squared distance of normalised features of whole clips.

    made, true: (B, F, 3, R, R) in [-1, 1]. features: videomae_input's (B, F, 3, 224, 224) to (B, D).
    """
    with torch.no_grad():
        wanted = F.normalize(features(videomae_input(true)).float(), dim=1)
    return F.mse_loss(F.normalize(features(videomae_input(made)).float(), dim=1), wanted)


def videomae_input(pixels: Tensor) -> Tensor:
    """(B, F, 3, R, R) in [-1, 1] to (B, F, 3, 224, 224), normalised as VideoMAE wants it."""
    scaled = _scaled(pixels.flatten(0, 1), VIDEOMAE_SIDE).unflatten(0, pixels.shape[:2])
    mean, spread = (torch.tensor(values).to(scaled)[:, None, None] for values in (MEAN, SPREAD))
    return (scaled / 2 + 0.5 - mean) / spread


def _scaled(pictures: Tensor, side: int) -> Tensor:
    if pictures.shape[-1] == side:
        return pictures
    return F.interpolate(pictures, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
