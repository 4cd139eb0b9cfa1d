"""Crops and sound as tensors that the U-Net is conditioned on. No ComfyUI in here."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from ..latentsync.audio.mel import SAMPLE_RATE
from ..latentsync.audio.whisper_features import FEATURE_RATE, audio_windows
from ..latentsync.conditions import encode_crops
from ..latentsync.errors import UserError
from ..latentsync.face.aligned import AlignedFace
from ..latentsync.face.mask import latent_mask, mouth_mask
from ..latentsync.settings import WINDOW
from .windows import FrameConditions

SHORT = Fraction(1, 4)
"""Seconds of picture after the sound's end that need no word: a container's rounding, a last closed mouth."""

StageCallback = Callable[[str, int, int], None]


def sound_tokens(audio: dict[str, Any], fps: Fraction, frames: int) -> Tensor:
    """AUDIO_ENCODER_OUTPUT to what each frame hears, (F, 50, D)."""
    layers = audio.get("encoded_audio_all_layers")
    if not isinstance(layers, list | tuple) or not layers or layers[0].ndim != 3 or layers[0].shape[0] != 1:
        raise UserError(
            "This AUDIO_ENCODER_OUTPUT does not hold all layers of one recording; connect LatentSync: Encode Audio."
        )
    rows = torch.stack([layer[0].float().cpu() for layer in layers], 1)
    heard = Fraction(audio.get("audio_samples") or len(rows) * SAMPLE_RATE // FEATURE_RATE, SAMPLE_RATE)
    if frames / fps - heard > SHORT:
        raise UserError(
            f"The audio lasts {float(heard):.2f} s and the {frames} frames at {float(fps):g} fps"
            f" {float(frames / fps):.2f} s; put LatentSync: Fit Length before it (fit: silence keeps the whole video)."
        )
    return audio_windows(rows, fps, frames)


def frame_conditions(vae: Any, crops: Tensor, clip: AlignedFace, on_step: StageCallback) -> FrameConditions:
    """Encode every crop with and without its mouth; a picture that is shown again is encoded once."""
    _check(crops, clip)
    side = clip.resolution
    keep = torch.from_numpy(mouth_mask(side))
    segment = torch.from_numpy(clip.segment_index).long()
    shown = torch.tensor(clip.source_indices)
    wanted, where = shown[segment >= 0].unique(return_inverse=True)
    example = {int(s): i for i, s in reversed(list(enumerate(shown.tolist())))}
    rows = torch.tensor([example[s] for s in wanted.tolist()])
    parts = []
    for start in range(0, len(rows), WINDOW):
        on_step("encoding", start, len(rows))
        pixels = crops[rows[start : start + WINDOW], ..., :3].float().movedim(-1, 1)
        parts.append(encode_crops(lambda x: vae.encode((x.movedim(1, -1) + 1) / 2), pixels * 2 - 1, keep).cpu())
    on_step("encoding", len(rows), len(rows))
    encoded = torch.cat(parts)
    latents = encoded.new_zeros(clip.frames, *encoded.shape[1:])
    latents[segment >= 0] = encoded[where]
    masked, reference = latents.chunk(2, 1)
    cells = torch.from_numpy(latent_mask(side, side // latents.shape[-1]))[None].to(latents)
    first = torch.from_numpy(clip.first_of).long()
    return FrameConditions(cells, masked, reference, segment, first, side)


def _check(crops: Tensor, clip: AlignedFace) -> None:
    if len(crops) != clip.frames:
        raise UserError(
            f"There are {len(crops)} crops and the FACE_TRACK has {clip.frames} frames; connect both from the same"
            " LatentSync: Find Faces or Fit Length."
        )
    if tuple(crops.shape[1:3]) != (clip.resolution, clip.resolution):
        raise UserError(
            f"The crops are {crops.shape[2]}×{crops.shape[1]} px and the FACE_TRACK was made for {clip.resolution} px;"
            " connect the crops as Find Faces gives them (enlarge after sampling, before Composite)."
        )


def empty_latents(frames: FrameConditions) -> dict[str, Any]:
    """LATENT of zeros. One batch_index for all frames: ComfyUI then draws one noise and repeats it."""
    return {"samples": torch.zeros_like(frames.masked), "batch_index": [0] * frames.frames}
