"""What differs between LatentSync U-Nets, and reading it from tensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..errors import UserError
from ..settings import GUIDANCE, STEPS

Motion = Literal["none", "all", "decoder"]
SPACINGS = ("leading", "trailing")
Residual = Literal["none", "lips", "jaw"]
GROUPS = 32  # of all published weights; shapes do not tell it, so small models of ours say theirs in metadata
POSITIONS = 24  # frames that the stored position code of a motion module covers


@dataclass(frozen=True)
class UNetConfig:
    """Everything that differs between LatentSync U-Nets. cross: which down blocks attend (up blocks mirror them).

    audio_rank: of the projection that makes one token of a moment's audio; 0: none, as in the published weights.
    The fields from `groups` on (STATED) cannot be read from the tensors; the defaults are the published weights'.
    residual: what it predicts is added to the reference's latents, around the lips or down to the jaw. The published
    ones do not; a small one that does keeps the looks of people it has never seen.
    prediction_type: epsilon, sample (the clean latents) or v_prediction. reference_mode: per_frame, or first_frame
    where one reference frame serves a whole segment. resolution: side of the crops in pixels, 0: not stated.
    default_steps, default_guidance: what suits the weights. timestep_spacing: leading, or trailing for networks
    that were distilled to few steps; see sampling.timesteps.
    """

    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    layers: int = 2
    cross: tuple[bool, ...] = (True, True, True, False)
    audio_dim: int = 384
    latent_channels: int = 4
    motion: Motion = "all"
    audio_rank: int = 0
    groups: int = GROUPS
    residual: Residual = "none"
    prediction_type: str = "epsilon"
    reference_mode: str = "per_frame"
    resolution: int = 0
    default_steps: int = STEPS
    default_guidance: float = GUIDANCE
    timestep_spacing: str = "leading"

    @property
    def in_channels(self) -> int:
        """Noisy, masked and reference latents and the one mask channel."""
        return 3 * self.latent_channels + 1

    @property
    def time_width(self) -> int:
        return 4 * self.widths[0]


STATED = (
    "groups", "residual", "prediction_type", "reference_mode", "resolution", "default_steps", "default_guidance",
    "timestep_spacing",
)  # fmt: skip


def config_from_tensors(shapes: Mapping[str, tuple[int, ...]]) -> UNetConfig:
    """Read the architecture from parameter names and shapes. UserError if they are not a LatentSync U-Net's."""
    try:
        latent_channels = shapes["conv_out.weight"][0]
        levels = 1 + max(int(k.split(".")[1]) for k in shapes if k.startswith("down_blocks."))
        moving = {key.split("_")[0] for key in shapes if "motion_modules" in key}  # down_blocks, up_blocks
        audio_key = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
        config = UNetConfig(
            widths=tuple(shapes[f"down_blocks.{i}.resnets.0.conv1.weight"][0] for i in range(levels)),
            layers=sum(f"down_blocks.0.resnets.{i}.conv1.weight" in shapes for i in range(16)),
            cross=tuple(f"down_blocks.{i}.attentions.0.proj_in.weight" in shapes for i in range(levels)),
            audio_dim=shapes[audio_key][1],
            latent_channels=latent_channels,
            audio_rank=shapes.get("audio_projection.mix.weight", (0,))[0],
            motion="all" if "down" in moving else "decoder" if "up" in moving else "none",
        )
        got = shapes["conv_in.weight"][1]
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"This is not a LatentSync U-Net: it lacks {error}.") from error
    if got != config.in_channels:
        raise UserError(
            f"This is not a LatentSync U-Net: its first layer takes {got} channels; with {latent_channels} latent"
            f" channels it must take {config.in_channels}."
        )
    return config
