"""Which networks, windows and clips go together: all of it is looked at before a run writes anything."""

from collections.abc import Callable, Sequence

from ...audio.syncnet_mel import mel_span
from ...dataset import FPS, ClipFile
from ...errors import UserError
from ...models.syncnet import StableSyncNet
from ...models.unet import UNet
from ...models.unet_config import POSITIONS
from ...models.vae import VAE
from ..dataset import CLIP_ERRORS, ClipStore
from ..recipes import Files, UNetRecipe
from .data import target_starts
from .init import InitialUNet

LOOKED_AT = 64
"""Clips whose sizes are looked at when a run starts; what is wrong with the others is found when they are read."""


def check_initial(recipe: UNetRecipe, files: Files, initial: InitialUNet, audio_dim: int) -> None:
    """UserError unless the weights suit the recipe and the Whisper."""
    if recipe.lora and initial.new:
        raise UserError(
            f"A LoRA needs a complete network, but {files.init} lacks {initial.new[0]} and more that this stage adds;"
            " take --stage 1 for a network without motion modules."
        )
    if audio_dim != initial.unet.config.audio_dim:
        raise UserError(
            f"The Whisper gives {audio_dim} numbers per token and the U-Net takes {initial.unet.config.audio_dim}; give"
            " the Whisper that it was trained with."
        )


def check_networks(unet: UNet, vae: VAE, recipe: UNetRecipe, syncnet: StableSyncNet | None = None) -> None:
    """UserError unless the networks can work on the recipe's windows together."""
    config, side = unet.config, recipe.resolution
    if vae.channels != config.latent_channels:
        raise UserError(f"The VAE has {vae.channels} latent channels and the U-Net {config.latent_channels}.")
    step = vae.factor * 2 ** (len(config.widths) - 1)
    if side % step:
        raise UserError(f"The resolution is {side}; VAE and U-Net together take multiples of {step}.")
    if config.motion != "none" and recipe.frames > POSITIONS:
        raise UserError(f"The windows have {recipe.frames} frames; motion modules take at most {POSITIONS}.")
    if syncnet is not None:
        _check_syncnet(syncnet, vae, recipe)


def _check_syncnet(syncnet: StableSyncNet, vae: VAE, recipe: UNetRecipe) -> None:
    config, latent = syncnet.config, syncnet.config.space == "latent"
    problems = []
    if recipe.sync_weight and config.frames > recipe.frames:
        problems.append(f"{config.frames} frames together, and the U-Net's windows have {recipe.frames}")
    channels = config.frames * (vae.channels if latent else 3)
    if config.visual.in_channels != channels:
        problems.append(f"{config.visual.in_channels} channels, and {config.frames} frames here have {channels}")
    cells = recipe.resolution // vae.factor
    if latent and config.size != (cells, cells):
        problems.append(f"latents of {_by(config.size)}, and those of {recipe.resolution} px are {cells}×{cells}")
    if not latent and config.size[0] > config.size[1]:
        problems.append(f"pictures of {_by(config.size)}, higher than wide, which a part of a square crop is not")
    first, stop = mel_span(0, FPS, config.frames)
    if config.mels[1] != stop - first:
        problems.append(f"{config.mels[1]} mel frames, and {config.frames} frames at {FPS} fps have {stop - first}")
    if problems:
        raise UserError(f"The SyncNet takes {'; '.join(problems)}. Give another one with --sync-net, or leave it out.")


def _by(size: tuple[int, int]) -> str:
    """height × width."""
    return f"{size[0]}×{size[1]}"


def check_clips(store: ClipStore, clips: Sequence[ClipFile], frames: int) -> str:
    """UserError if none of the clips that are looked at can be trained on; "", or a line about those that cannot."""
    looked_at = clips[:: max(1, -(-len(clips) // LOOKED_AT))]
    small = [clip for clip in looked_at if _holds(lambda clip=clip: store.side(clip) < store.resolution)]
    short = [
        clip
        for clip in looked_at
        if _holds(lambda clip=clip: not target_starts(*clip.span(store.info(clip).frames), frames))
    ]
    if short and len(short) == len(looked_at):
        raise UserError(f"No clip has two windows of {frames} frames to train on; give longer clips, or hold out less.")
    if not small or store.upsample:
        return ""
    counts = f"{len(small)} of {len(looked_at)} clips that were looked at"
    some = f"{counts} have crops of {store.side(small[0])} px, below the resolution of {store.resolution}"
    if len(small) == len(looked_at):
        raise UserError(
            f"{some}; take --resolution {store.side(small[0])}, prepare them with --resolution {store.resolution}, or"
            " set upsample: true in --config to train on enlarged pictures."
        )
    return f"{some}; they will be replaced by others (upsample: true in --config enlarges them)"


def _holds(condition: Callable[[], bool]) -> bool:
    """Clips that cannot be read are left to the dataset, which says why."""
    try:
        return condition()
    except CLIP_ERRORS:
        return False
