"""The U-Net as a host calls it, on a batch of frames, and what it must know of each frame. No ComfyUI in here."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ..latentsync.models.unet import UNet
from ..latentsync.models.unet_config import UNetConfig
from ..latentsync.sampling import run_unet
from ..latentsync.timeline import Window, windows


@dataclass(frozen=True)
class FrameConditions:
    """What the network sees beside noise and sound, frame by frame; rides in the CONDITIONING under "latentsync".

    mask: (1, h, w), 1 = keep. masked, reference: (F, C, h, w) latents as the VAE gives them, not scaled. segment: (F,)
    int64, frames with one number are computed in windows together, -1 is not computed. first: (F,) int64, the first
    frame of each frame's segment. resolution: side of the crops in pixels.
    """

    mask: Tensor
    masked: Tensor
    reference: Tensor
    segment: Tensor
    first: Tensor
    resolution: int

    @property
    def frames(self) -> int:
        return len(self.masked)

    def with_first_reference(self) -> "FrameConditions":
        """With each segment's first frame as the reference for all of it."""
        return dataclasses.replace(self, reference=self.reference[self.first], first=torch.arange(self.frames))

    def windows(self) -> list[Window]:
        return plan(self.segment)

    def spread(self, split: list[Window]) -> tuple["FrameConditions", Tensor]:
        """The frames of these windows one after the other, each window a segment of its own, and their indices."""
        rows = torch.cat([torch.arange(w.start, w.stop) for w in split])
        number = torch.cat([torch.full((w.stop - w.start,), n) for n, w in enumerate(split)])
        parts = {"masked": self.masked[rows], "reference": self.reference[rows], "segment": number}
        return dataclasses.replace(self, **parts, first=torch.arange(len(rows))), rows

    def channels(self, scale: Callable[[Tensor], Tensor]) -> Tensor:
        """(F, 2C + 1, h, w): mask, masked and reference latents, scaled as the network takes them."""
        masks = self.mask.expand(self.frames, *self.mask.shape)
        return torch.cat((masks, scale(self.masked), scale(self.reference)), 1)


def plan(segment: Tensor) -> list[Window]:
    """Windows that cover every run of frames with one number of at least 0."""
    out: list[Window] = []
    start = 0
    for number, run in groupby(segment.tolist()):
        stop = start + len(list(run))
        out += windows(start, stop) if number >= 0 else []
        start = stop
    return out


@dataclass(frozen=True, eq=False)
class Branches:
    """One tensor (F, …) for each branch of the guidance, in main memory whatever the clip's length."""

    tensors: list[Tensor]

    def window(self, window: Window, like: Tensor) -> Tensor:
        """(B, frames of the window, …) where and in the format that `like` is."""
        return torch.stack([tensor[window.start : window.stop] for tensor in self.tensors]).to(like)


class FrameUNet(UNet):
    """The same network and weights behind the signature of ComfyUI's diffusion models.

    between: called before each window; whatever it raises ends the sampling.
    """

    def __init__(self, config: UNetConfig, ops: Any, between: Callable[[], None]) -> None:
        super().__init__(config, ops)
        self.between = between

    @property
    def dtype(self) -> torch.dtype:
        return self.conv_in.weight.dtype

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] — the host's signature; the engine's is window()
        self, x: Tensor, timesteps: Tensor, *, conditions: Branches, tokens: Branches, segment: Tensor, **_: Any
    ) -> Tensor:
        """x (B·F, C, h, w), timesteps (B·F,), conditions F × (2C + 1, h, w), tokens F × (50, D), segment (B·F,) →
        (B·F, C, h, w).

        B: the branches of the guidance that the host stacks. Frames that no window covers come out as zeros.
        """
        branches, frames = len(tokens.tensors), len(tokens.tensors[0])
        noisy = x.unflatten(0, (branches, frames))
        out = torch.zeros_like(noisy)
        for w in plan(segment[:frames]):
            self.between()
            inputs = torch.cat((noisy[:, w.start : w.stop], conditions.window(w, x)), 2)
            made = run_unet(self.window, inputs.transpose(1, 2), timesteps[0], tokens.window(w, x))
            out[:, w.keep : w.stop] = made.transpose(1, 2)[:, w.keep - w.start :]
        return out.flatten(0, 1)

    def window(self, sample: Tensor, timestep: Tensor, audio: Tensor, deep: list[Tensor] | None = None) -> Tensor:
        """The engine's own call: (B, 3C + 1, F, h, w) → (B, C, F, h, w)."""
        return super().forward(sample, timestep, audio, deep)
