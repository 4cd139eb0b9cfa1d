"""The losses of the LatentSync recipe, computed in float32.

B windows, F frames, C latent channels; alpha_bar: (B,) signal power at each window's timestep.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import UserError
from ...models.perceptual import Perceptual, resize, videomae_input
from ...models.syncnet import StableSyncNet
from ...sampling import predict_x0


def mixed_noise(shape: Sequence[int], generator: torch.Generator, alpha: float = 1.0) -> Tensor:
    """(C, F, h, w) noise of unit variance, partly shared by all frames (Ge et al. 2023, "mixed noise").

    alpha²: variance of the shared part over that of a frame's own part; 0 shares nothing.
    """
    channels, frames, height, width = shape
    shared = torch.randn(channels, 1, height, width, generator=generator)
    own = torch.randn(channels, frames, height, width, generator=generator)
    return (alpha * shared + own) / (1 + alpha**2) ** 0.5


def add_noise(clean: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """(B, C, F, h, w) latents at a timestep (Ho et al. 2020, eq. 4)."""
    bar = _broadcast(alpha_bar, clean)
    return bar.sqrt() * clean + (1 - bar).sqrt() * noise


def target(clean: Tensor, noise: Tensor, alpha_bar: Tensor, prediction: str) -> Tensor:
    """What the network predicts: the noise, the clean latents, or v (Salimans & Ho 2022)."""
    bar = _broadcast(alpha_bar, clean)
    targets = {"epsilon": noise, "sample": clean, "v_prediction": bar.sqrt() * noise - (1 - bar).sqrt() * clean}
    if prediction not in targets:
        raise UserError(f"prediction_type is {prediction!r}; it must be epsilon, sample or v_prediction.")
    return targets[prediction]


def predict_clean(output: Tensor, noisy: Tensor, alpha_bar: Tensor, prediction: str) -> Tensor:
    """The clean latents by the network's output: x0 = (x_t − sqrt(1 − ā) ε) / sqrt(ā)."""
    bar: Any = _broadcast(alpha_bar, noisy)
    return predict_x0(output.float(), noisy, bar, prediction)


def _broadcast(alpha_bar: Tensor, like: Tensor) -> Tensor:
    return alpha_bar.to(like).reshape(-1, *(1,) * (like.ndim - 1))


def sub_windows(frames: int, window: int) -> list[int]:
    """First frames of the fewest windows of a SyncNet that together hold all frames, evenly spread: 0 and 6 of 16 for
    windows of 10."""
    count = -(-frames // window)
    return [round(i * (frames - window) / max(1, count - 1)) for i in range(count)]


def syncnet_input(pixels: Tensor | None, latents: Tensor | None, net: StableSyncNet) -> Tensor:
    """The SyncNet's image input, frames on channels, of pixels (B, F, 3, R, R) in [-1, 1] or latents (B, F, C, h, w).

    Pixels are scaled to its width; it sees the lower rows, mostly half.
    """
    config = net.config
    images = latents if config.space == "latent" else pixels
    if images is None or images.shape[1] != config.frames:
        frames = "none" if images is None else images.shape[1]
        raise UserError(f"The SyncNet takes {config.frames} frames of {config.space}s together; it got {frames}.")
    if config.space == "pixel":
        scaled = resize(images.flatten(0, 1), config.size[1])[..., -config.size[0] :, :]
        images = scaled.unflatten(0, images.shape[:2])
    if tuple(images.shape[-2:]) != config.size:
        raise UserError(f"The SyncNet takes {config.space}s of {config.size}; these are {tuple(images.shape[-2:])}.")
    return images.flatten(1, 2)


def similarity(net: StableSyncNet, images: Tensor, mel: Tensor) -> Tensor:
    """(B,) cosine similarity of images and audio, 0 to 1: the SyncNet's confidence that they are in sync."""
    visual, audio = net(images, mel)
    return (visual.float() * audio.float()).sum(1)


def similarities(net: StableSyncNet, pixels: Tensor, latents: Tensor, mel: Tensor) -> Tensor:
    """(B, K) similarities of all sub_windows of pixels (B, F, 3, R, R) or latents (B, F, C, h, w), whichever the
    SyncNet takes. mel: (B, K, 1, 80, T)."""
    starts = sub_windows(pixels.shape[1], window := net.config.frames)
    images = [syncnet_input(pixels[:, s : s + window], latents[:, s : s + window], net) for s in starts]
    return similarity(net, torch.stack(images, 1).flatten(0, 1), mel.flatten(0, 1)).unflatten(0, mel.shape[:2])


def sync_loss(cosine: Tensor) -> Tensor:
    """Binary cross-entropy of the similarity as a likelihood, with target 1 (Prajwal et al. 2020)."""
    return -cosine.clamp(1e-7, 1).log().mean()


def lower_half(images: Tensor) -> Tensor:
    return images[..., images.shape[-2] // 2 :, :]


def perceptual_loss(made: Tensor, true: Tensor, network: Perceptual) -> Tensor:
    """LPIPS (Zhang et al. 2018), or any perceptual distance, over the lower halves of (B, F, 3, R, R) in [-1, 1]."""
    a, b = (lower_half(pixels).flatten(0, 1) for pixels in (made, true))
    return network(a, b).mean()


def trepa_loss(made: Tensor, true: Tensor, features: Callable[[Tensor], Tensor]) -> Tensor:
    """Temporal representation alignment (LatentSync): squared distance of normalized features of whole clips.

    made, true: (B, F, 3, R, R) in [-1, 1]. features: videomae_input's (B, F, 3, 224, 224) to (B, D).
    """
    with torch.no_grad():
        wanted = F.normalize(features(videomae_input(true)).float(), dim=1)
    return F.mse_loss(F.normalize(features(videomae_input(made)).float(), dim=1), wanted)
