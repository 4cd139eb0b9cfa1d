"""Pictures of what is being painted, as ComfyUI's setting asks for them (--preview-method, or the browser's)."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import comfy.taesd.taesd
import folder_paths
import torch
from comfy.cli_args import LatentPreviewMethod, args
from PIL import Image
from torch import Tensor

from ...latentsync.errors import UserError
from ...latentsync.weights import tiny_vae_files
from ...latentsync.weights.files import read_header
from ...latentsync.weights.vae_files import load_vae
from .files import find_file
from .progress import warn

FRAMES = 4
SHARE = 0.1
"""Of a run's time that true pictures may take; where they would take more, some steps have none."""

Decode = Callable[[Tensor], Tensor]
"""Scaled latents (N, C, h, w) to pixels (N, 3, H, W), about [-1, 1]."""


class Previews:
    """For one run. latents: the MODEL's latent format. True pictures by TAESD where it is at hand, else rough ones."""

    def __init__(self, latents: Any) -> None:
        self.latents, self.method = latents, args.preview_method
        self.decode: Decode | None = None
        self.next = 0.0
        if self.method in (LatentPreviewMethod.Auto, LatentPreviewMethod.TAESD):
            try:
                self.decode = _taesd(latents)
            except Exception as error:  # whatever is wrong with a user's file: a preview is not worth a failed run
                warn(f"previews are rough, since TAESD cannot be loaded: {error}")

    def picture(self, clean: Tensor) -> Image.Image | None:
        """A strip of evenly spaced frames of (N, C, h, w) scaled latents; None where none is wanted, or none yet."""
        if self.method is LatentPreviewMethod.NoPreviews:
            return None
        some = clean[torch.linspace(0, len(clean) - 1, min(FRAMES, len(clean))).long()].float().cpu()
        if self.decode is None:
            return _rough(some, self.latents)
        start = time.monotonic()
        if start < self.next:
            return None
        picture = _strip(self.decode(some.to(clean.device)).movedim(1, -1), some.shape[-1])
        self.next = start + (time.monotonic() - start) / SHARE
        return picture


def _taesd(latents: Any) -> Decode | None:
    """The built-in model's decoder, or the file that ComfyUI's own previews take; None where neither is there."""
    if latents.taesd_decoder_name != "taesd_decoder":  # latents of another space than Stable Diffusion 1.x
        return None
    nano = find_file("nano")
    if tiny_vae_files.find_prefix(read_header(nano).shapes) is not None:
        vae = load_vae(nano)
        return lambda some: vae.to(some.device).decode(some)
    names = (n for n in folder_paths.get_filename_list("vae_approx") if n.startswith(latents.taesd_decoder_name))
    name = next(names, None)
    path = folder_paths.get_full_path("vae_approx", name) if name else _downloaded()
    if path is None:
        return None
    taesd = comfy.taesd.taesd.TAESD(None, path).requires_grad_(False)  # needs no encoder beside it
    return lambda some: taesd.to(some.device).decode(some)


def _downloaded() -> str | None:
    with suppress(UserError):
        return str(find_file("taesd"))
    return None


def _rough(some: Tensor, latents: Any) -> Image.Image | None:
    """By the colors that latents stand for."""
    if latents.latent_rgb_factors is None:
        return None
    bias = torch.tensor(latents.latent_rgb_factors_bias or (0.0, 0.0, 0.0))
    return _strip(some.movedim(1, -1) @ torch.tensor(latents.latent_rgb_factors) + bias, some.shape[-1])


def _strip(frames: Tensor, cells: int) -> Image.Image:
    """(N, H, W, 3) in [-1, 1] beside each other. cells: a frame's width in latents."""
    strip = torch.cat(list(((frames.detach().cpu() + 1) * 127.5).round().clamp(0, 255).byte()), 1)
    # the crop is a face of 3:4 stretched to a square
    size = len(frames) * cells * 6, cells * 8
    return Image.fromarray(strip.numpy()).resize(size, Image.Resampling.BICUBIC)
