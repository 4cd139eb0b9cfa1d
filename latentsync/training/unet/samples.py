"""Samples of held-out clips during training: a video with audio, a sheet of frames, and a SyncNet's confidence."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from ...dataset import FPS, ClipFile
from ...errors import UserError
from ...files import atomic_path
from ...media.audio_track import AudioTrack
from ...media.probe import probe
from ...media.writer import VideoWriter
from ...models.syncnet import StableSyncNet
from ...models.unet import UNet
from ...sampling import denoise, shared_noise
from ...settings import WINDOW
from ..dataset import CLIP_ERRORS, ClipDataset, ClipStore, to_signed
from ..recipes import UNetRecipe
from ..task import Event
from .codec import Codec, spread_evenly
from .data import UNetWindows
from .lip_sync import OTHER, OWN, Openings
from .losses import similarity, syncnet_input

COLUMNS = 8


@dataclass(frozen=True)
class Segment:
    """Consecutive frames of a clip, (F, 3, R, R) in [-1, 1], and their audio."""

    clip: ClipFile
    first: int
    true: Tensor
    audio: Tensor


@dataclass(frozen=True)
class SampleWriter:
    """Samples the network on the first clips of a dataset of UNetWindows, as `run` would: the frames are their own
    references, or the first one is everybody's; steps and guidance are the network's own."""

    unet: UNet
    codec: Codec
    recipe: UNetRecipe
    data: ClipDataset
    syncnet: StableSyncNet | None = None
    openings: Openings | None = None

    def write(self, folder: Path, step: int, event: Event = lambda *_, **__: None) -> dict[str, float]:
        """Write the first clip's video and sheet as step-….mp4 and .png. Returns the SyncNet's mean cosine similarity
        on made and on true frames, if there is a SyncNet, and how mouths move with their own and with other voices."""
        scores: dict[str, list[float]] = {"made": [], "true": []}
        segments = list(self._segments())
        for number, segment in enumerate(segments):
            made = self.sample(segment)
            if number == 0:
                folder.mkdir(parents=True, exist_ok=True)
                _write_video(folder / f"step-{step:08d}.mp4", segment, made)
                _write_sheet(folder / f"step-{step:08d}.png", segment, made)
            for name, pixels in (("made", made), ("true", segment.true)):
                scores[name] += self._confidences(segment, pixels)
            if self.openings is not None:
                self.openings.add(OWN, segment.clip.path.name, _to_uint8(made), _to_uint8(segment.true))
                if number < self.recipe.other_voices:
                    speaker = segments[number - 1] if len(segments) > 1 else shifted(segment)
                    self._add_other_voice(self.openings, segment, speaker)
        values = {f"{name}/sync confidence": float(np.mean(found)) for name, found in scores.items() if found}
        return values if self.openings is None else values | self.openings.values(event)

    def _add_other_voice(self, judge: Openings, segment: Segment, speaker: Segment) -> None:
        frames = min(len(segment.true), len(speaker.true))
        made = self.sample(replace(segment, true=segment.true[:frames], audio=speaker.audio[:frames]))
        judge.add(OTHER, segment.clip.path.name, _to_uint8(made), _to_uint8(speaker.true[:frames]))

    @property
    def windows(self) -> UNetWindows:
        assert isinstance(self.data.make, UNetWindows)
        return self.data.make

    def _segments(self) -> Iterator[Segment]:
        """Of the clips in the order of validation, without broken ones."""
        frames = self.recipe.sample_frames
        for number in range(min(self.recipe.sample_clips, len(self.data.clips))):
            try:
                yield read_segment(self.windows.store, self.data.clip(number), frames)
            except CLIP_ERRORS:
                continue

    @torch.no_grad()
    def sample(self, segment: Segment) -> Tensor:
        """(F, 3, R, R) in [-1, 1]; pixels outside the mask are the clip's own."""
        codec, recipe, config = self.codec, self.recipe, self.unet.config
        true = segment.true.to(codec.device)
        reference, masked = (latents.transpose(0, 1)[None] for latents in codec.encode_pair(true))
        if config.reference_mode == "first_frame":
            reference = reference[:, :, :1].expand_as(masked)
        noise = shared_noise(recipe.validate_seed, *masked.shape[1:2], *masked.shape[3:])
        self.unet.eval()
        latents = denoise(
            self.unet,
            noise.to(codec.device).expand_as(masked),
            codec.mask.expand(1, 1, len(true), -1, -1),
            masked,
            reference,
            segment.audio[None].to(codec.device),
            steps=recipe.sample_steps or config.default_steps,
            guidance=recipe.sample_guidance or config.default_guidance,
        )
        made = codec.decode(latents.transpose(1, 2))[0].clamp(-1, 1)
        return torch.where(codec.keep > 0.5, true, made).cpu()

    @torch.no_grad()
    def _confidences(self, segment: Segment, pixels: Tensor) -> list[float]:
        """One for each of the SyncNet's windows, without overlap."""
        net, scores = self.syncnet, []
        if net is None:
            return []
        frames, device = net.config.frames, self.codec.device
        for start in range(0, len(pixels) - frames + 1, frames):
            window = pixels[None, start : start + frames].to(device)
            latents = self.codec.encode(window) if net.config.space == "latent" else None
            mel = self.windows.store.mel(segment.clip, segment.first + start, frames)[None].to(device)
            scores.append(float(similarity(net, syncnet_input(window, latents, net), mel)))
        return scores


def read_segment(store: ClipStore, clip: ClipFile, max_frames: int) -> Segment:
    """The first frames of the clip's held-out part, in whole windows."""
    begin, end = clip.span(store.info(clip).frames)
    frames = min(max_frames, end - begin) // WINDOW * WINDOW
    if not frames:
        raise UserError(f"{clip.path} has no {WINDOW} frames held out.")
    true = to_signed(store.pixels(clip, begin, frames))
    return Segment(clip, begin, true, store.audio(clip, begin, frames))


def shifted(segment: Segment) -> Segment:
    """The second half first: other speech of the same face, in the same frames."""
    half = len(segment.true) // 2
    return replace(segment, true=segment.true.roll(half, 0), audio=segment.audio.roll(half, 0))


def _to_uint8(pixels: Tensor) -> np.ndarray:
    """(F, 3, R, R) in [-1, 1] to (F, R, R, 3)."""
    return ((pixels + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def _write_video(path: Path, segment: Segment, made: Tensor) -> None:
    """True on the left, made on the right, with the clip's audio."""
    frames = np.concatenate((_to_uint8(segment.true), _to_uint8(made)), 2)
    source = segment.clip.file()
    start = probe(source).start + Fraction(segment.first) / FPS
    audio = AudioTrack(source, start, duration=len(frames) / FPS)
    with VideoWriter(path, frames.shape[2], frames.shape[1], FPS, audio=audio) as writer:
        for frame in frames:
            writer.write(frame)


def _write_sheet(path: Path, segment: Segment, made: Tensor) -> None:
    """Evenly spaced frames: true above, made below."""
    picked = spread_evenly(len(made), COLUMNS)
    sheet = np.concatenate([np.concatenate(list(_to_uint8(p[picked])), 1) for p in (segment.true, made)])
    scale = min(1.0, 2048 / sheet.shape[1])
    if scale < 1:
        sheet = cv2.resize(sheet, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    with atomic_path(path) as part:
        part.write_bytes(cv2.imencode(".png", np.ascontiguousarray(sheet[..., ::-1]))[1].tobytes())
