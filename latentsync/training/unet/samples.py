"""What a U-Net in training makes of held-out clips: a video with sound, a sheet, and how sure a SyncNet is of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from torch import Tensor

from ...errors import UserError
from ...media.audio_track import AudioTrack
from ...media.writer import VideoWriter
from ...sampling import denoise, shared_noise
from ...settings import WINDOW
from ..dataset import FPS, ClipFile, ClipStore, UNetWindows, unit
from .losses import similarity, sync_input

if TYPE_CHECKING:
    from .task import UNetTask

COLUMNS = 8


@dataclass(frozen=True)
class Stretch:
    """Consecutive frames of a clip (F, 3, R, R) in [-1, 1], with a reference for each that lies elsewhere."""

    clip: ClipFile
    first: int
    true: Tensor
    reference: Tensor
    audio: Tensor


def show_samples(task: "UNetTask", folder: Path, step: int) -> dict[str, float]:
    """Sample the first held-out clips; the first one's video and sheet go into folder as step-….mp4 and .png.

    Gives "made/sync confidence" and "true/…": the SyncNet's mean cosine similarity, where there is a SyncNet.
    """
    scores: dict[str, list[float]] = {"made": [], "true": []}
    for number, stretch in enumerate(_stretches(task)):
        made = sample(task, stretch, seed=task.recipe.validate_seed)
        if number == 0:
            folder.mkdir(parents=True, exist_ok=True)
            _write_video(folder / f"step-{step:08d}.mp4", stretch, made)
            _write_sheet(folder / f"step-{step:08d}.png", stretch, made)
        for name, pixels in (("made", made), ("true", stretch.true)):
            scores[name] += list(_confidences(task, stretch, pixels))
    return {f"{name}/sync confidence": float(np.mean(values)) for name, values in scores.items() if values}


def _stretches(task: "UNetTask") -> Iterator[Stretch]:
    """Of the held-out clips in the order of validation; one that cannot be used is left out."""
    held = task.held
    assert held is not None
    assert isinstance(held.make, UNetWindows)
    for number in range(min(task.recipe.sample_clips, len(held.clips))):
        try:
            yield read_stretch(held.make.store, held.clip(number), task.recipe.sample_frames, held.make.still)
        except (UserError, OSError, ValueError):
            continue


def read_stretch(store: ClipStore, clip: ClipFile, most: int, still: bool = False) -> Stretch:
    """The first frames of what is held out of a clip, whole windows of them, at most `most`."""
    begin, end = clip.span(store.info(clip).frames)
    frames = min(most, end - begin) // WINDOW * WINDOW
    if not frames:
        raise UserError(f"{clip.path} has no {WINDOW} frames held out.")
    far = 0 if begin >= WINDOW else max(begin + frames, end - WINDOW)
    if far + WINDOW > end:  # no window lies apart from what is made
        far = 0
    reference = unit(store.pixels(clip, far, 1 if still else min(WINDOW, end - far)))
    return Stretch(
        clip,
        begin,
        unit(store.pixels(clip, begin, frames)),
        reference.repeat(frames // len(reference) + 1, 1, 1, 1)[:frames],
        store.audio(clip, begin, frames),
    )


@torch.no_grad()
def sample(task: "UNetTask", stretch: Stretch, *, seed: int) -> Tensor:
    """(F, 3, R, R) in [-1, 1]: the mouth made, the rest the clip's own."""
    device, recipe = task.mask.device, task.recipe
    true, reference = stretch.true.to(device), stretch.reference.to(device)
    masked, reference = (task.encode(pixels).transpose(0, 1)[None] for pixels in (true * task.keep, reference))
    frames = len(true)
    noise = shared_noise(seed, *masked.shape[1:2], *masked.shape[3:]).to(device).expand_as(masked)
    mask = task.mask.expand(1, 1, frames, -1, -1)
    audio = stretch.audio[None].to(device)
    guidance = 1.5 if recipe.drop_audio else 1.0
    task.network.eval()
    latents = denoise(task.network, noise, mask, masked, reference, audio, steps=recipe.sample_steps, guidance=guidance)
    made = task.decode(latents.transpose(1, 2))[0].clamp(-1, 1)
    return torch.where(task.keep > 0.5, true, made).cpu()


def _confidences(task: "UNetTask", stretch: Stretch, pixels: Tensor) -> Iterator[float]:
    """One for each of the SyncNet's windows, side by side."""
    net, store = task.judges.syncnet, _store(task)
    if net is None:
        return
    device, frames = task.mask.device, net.config.frames
    for start in range(0, len(pixels) - frames + 1, frames):
        window = pixels[None, start : start + frames].to(device)
        latents = task.encode(window) if net.config.space == "latent" else None
        mel = store.mel(stretch.clip, stretch.first + start, frames)[None].to(device)
        with torch.no_grad():
            yield float(similarity(net, sync_input(window, latents, net), mel))


def _store(task: "UNetTask") -> ClipStore:
    assert task.held is not None
    assert isinstance(task.held.make, UNetWindows)
    return task.held.make.store


def _bytes(pixels: Tensor) -> np.ndarray:
    """(F, 3, R, R) in [-1, 1] to (F, R, R, 3) uint8."""
    return ((pixels + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def _write_video(path: Path, stretch: Stretch, made: Tensor) -> None:
    """Truth on the left, made on the right, with the clip's own sound."""
    from ...media.probe import probe

    frames = np.concatenate((_bytes(stretch.true), _bytes(made)), 2)
    start = probe(stretch.clip.path).start + Fraction(stretch.first) / FPS
    sound = AudioTrack(stretch.clip.path, start, duration=len(frames) / FPS)
    with VideoWriter(path, frames.shape[2], frames.shape[1], FPS, audio=sound) as writer:
        for frame in frames:
            writer.write(frame)


def _write_sheet(path: Path, stretch: Stretch, made: Tensor) -> None:
    """Evenly spaced frames: above the truth, below what was made."""
    picked = np.linspace(0, len(made) - 1, COLUMNS).round().astype(int)
    rows = [np.concatenate(list(_bytes(pixels[picked])), 1) for pixels in (stretch.true, made)]
    picture = np.concatenate(rows)
    shrink = min(1.0, 2048 / picture.shape[1])
    if shrink < 1:
        picture = cv2.resize(picture, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
    part = path.with_name(f".{path.stem}.part.png")
    cv2.imwrite(str(part), np.ascontiguousarray(picture[..., ::-1]))
    part.replace(path)
