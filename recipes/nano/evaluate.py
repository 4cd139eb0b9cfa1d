"""How well the made mouths follow the speech, on the held-out last quarter of clips, through the whole pipeline."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from latentsync.audio.load import load_audio
from latentsync.errors import UserError
from latentsync.face.align import align_matrices, crop_face
from latentsync.face.choose import choose
from latentsync.face.detect import mouth_opening
from latentsync.face.track import FaceTrack, find_tracks
from latentsync.media.audio_track import AudioTrack
from latentsync.media.probe import probe
from latentsync.media.reader import VideoReader
from latentsync.media.writer import VideoWriter
from latentsync.pipeline import lipsync
from latentsync.settings import Settings
from latentsync.weights.bundle import Models

from .data import DELAYS, HELD_OUT


@dataclass(frozen=True)
class HeldOut:
    """The last quarter of a clip: frames (F, H, W, 3) uint8, speech (T,) at 16 kHz, fps, and the face track.

    audio: the same speech in the clip's file."""

    name: str
    frames: np.ndarray
    speech: Tensor
    fps: Fraction
    track: FaceTrack
    audio: AudioTrack


@dataclass(frozen=True)
class Score:
    """Correlations of made with true mouth opening; sharpness: variance of the Laplacian at the lips, made / true."""

    name: str
    own: float
    other: float
    sharpness: float


def held_out(path: Path, models: Models, rate: int = 16000) -> HeldOut:
    """Read the part of a clip that is not trained on, with its audio delay corrected."""
    info = probe(path)
    first = int(info.frames * (1 - HELD_OUT))
    with VideoReader(info) as reader:
        frames = np.stack(list(reader.read(range(first, info.frames))))
    speech = load_audio(path).waveform
    start = first / info.fps + Fraction(str(DELAYS.get(path.stem, 0)))
    begin, length = int(start * rate), int(len(frames) / info.fps * rate)
    part = torch.nn.functional.pad(speech[begin : begin + length], (0, max(0, begin + length - len(speech))))
    track = choose(find_tracks(frames, models.finder), "largest")
    return HeldOut(path.stem, frames, part, info.fps, track, AudioTrack(path, info.start + start))


def score(clip: HeldOut, other: HeldOut, models: Models, settings: Settings) -> tuple[Score, np.ndarray, np.ndarray]:
    """Score one clip with its own and another clip's speech; also the frames made with each."""
    own = lipsync(clip.frames, clip.speech, 16000, clip.fps, models=models, settings=settings).frames
    # the other's speech, repeated or cut to this clip's length
    foreign = other.speech.repeat(len(clip.speech) // len(other.speech) + 1)[: len(clip.speech)]
    wrong = lipsync(clip.frames, foreign, 16000, clip.fps, models=models, settings=settings).frames
    present = clip.track.present
    truth = mouth_opening(clip.track.landmarks)[present]
    r_own, r_other = (_correlation(truth, opening(frames, models)[present]) for frames in (own, wrong))
    sharpness = lip_sharpness(own, clip.track, models) / lip_sharpness(clip.frames, clip.track, models)
    return Score(clip.name, r_own, r_other, sharpness), own, wrong


def opening(frames: np.ndarray, models: Models) -> np.ndarray:
    """(F,) mouth opening, detected again in the made frames."""
    return mouth_opening(choose(find_tracks(frames, models.finder), "largest").landmarks)


def lip_sharpness(frames: np.ndarray, track: FaceTrack, models: Models, every: int = 5) -> float:
    """Mean variance of the Laplacian (8-bit gray) over the lips' part of the aligned crop."""
    side = models.resolution
    matrices = align_matrices(track.points, side)
    rows, columns = slice(round(0.5 * side), round(0.85 * side)), slice(round(0.25 * side), round(0.75 * side))
    values = []
    for i in range(0, len(frames), every):
        crop = cv2.cvtColor(crop_face(frames[i], matrices[i], side), cv2.COLOR_RGB2GRAY)
        values.append(cv2.Laplacian(crop[rows, columns], cv2.CV_64F).var())
    return float(np.mean(values))


def write_videos(folder: Path, clip: HeldOut, own: np.ndarray) -> None:
    """The truth and what was made of its own speech, for `latentsync eval compare`: folder/true, folder/made."""
    for kind, frames in (("true", clip.frames), ("made", own)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        height, width = frames.shape[1:3]
        path = folder / kind / f"{clip.name}.mp4"
        with VideoWriter(path, width, height, clip.fps, audio=clip.audio, crf=8) as writer:
            for frame in frames:
                writer.write(frame)


def strip(clip: HeldOut, own: np.ndarray, wrong: np.ndarray, *, columns: int = 12, side: int = 128) -> np.ndarray:
    """Evenly spaced aligned faces of one clip: truth, made with its own speech, made with another's. RGB uint8."""
    matrices = align_matrices(clip.track.points, side)
    picked = np.linspace(0, len(own) - 1, columns).round().astype(int)
    rows = [np.concatenate([crop_face(f[i], matrices[i], side) for i in picked], 1) for f in (clip.frames, own, wrong)]
    return np.concatenate(rows)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def score_all(
    paths: Sequence[Path],
    models: Models,
    settings: Settings,
    *,
    on_clip: Callable[[Score, HeldOut, np.ndarray, np.ndarray], None] | None = None,
) -> list[Score]:
    """Every clip with its own speech and with that of the next clip, of another source if there is one."""
    if len(paths) < 2:
        raise UserError(f"Scoring needs another clip's speech, and there are {len(paths)} clips; give more.")
    clips = [held_out(path, models) for path in paths]
    scores = []
    for i, clip in enumerate(clips):
        others = clips[i + 1 :] + clips[:i]
        elsewhere = [c for c in others if c.name.split("_")[:2] != clip.name.split("_")[:2]]
        result, own, wrong = score(clip, (elsewhere or others)[0], models, settings)
        scores.append(result)
        if on_clip:
            on_clip(result, clip, own, wrong)
    return scores
