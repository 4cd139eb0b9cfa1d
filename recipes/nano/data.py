"""Training data: aligned crops with a margin, audio tokens and mouth opening of each clip, and their latents."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from torch import Tensor

from latentsync.audio.load import load_audio
from latentsync.audio.whisper_features import audio_windows, encode_audio
from latentsync.errors import UserError
from latentsync.face.align import align_matrices, crop_matrix, resample
from latentsync.face.choose import choose
from latentsync.face.detect import FaceFinder, mouth_opening
from latentsync.face.mask import mouth_mask
from latentsync.face.track import find_tracks
from latentsync.media.probe import probe
from latentsync.media.reader import VideoReader
from latentsync.models.whisper import WhisperEncoder

Encode = Callable[[Tensor], Tensor]
"""Pixels (N, 3, R, R) in [-1, 1] to scaled latents (N, C, h, w)."""

MARGIN = 8
"""Crops have R / MARGIN extra pixels on each side, so that augmentation may move and turn them."""
HELD_OUT = 0.25
"""The last quarter of every clip is never trained on."""


@dataclass(frozen=True)
class Clip:
    """One face speaking. crops (F, R + 2R/MARGIN, same, 3) uint8 RGB; audio (F, 50, D) float16; opening (F,).

    voices: audio of the same speech with other pitches and with noise."""

    name: str
    fps: float
    crops: np.ndarray
    audio: np.ndarray
    opening: np.ndarray
    voices: tuple[np.ndarray, ...] = ()

    @property
    def train_frames(self) -> int:
        return int(len(self.crops) * (1 - HELD_OUT))

    @property
    def person(self) -> str:
        return self.name.split("_")[0]


def prepare_clip(
    path: Path, folder: Path, finder: FaceFinder, whisper: WhisperEncoder, *, resolution: int, delay: float = 0.0
) -> Path:
    """Write one prepared clip into folder. delay: seconds by which its audio is late."""
    info = probe(path)
    with VideoReader(info) as reader:
        track = choose(find_tracks(reader.read(range(info.frames)), finder), "largest")
    start, stop = max(track.segments, key=lambda s: s[1] - s[0])
    matrices = align_matrices(track.points, resolution)
    with VideoReader(info) as reader:
        crops = [_wide_crop(f, matrices[start + i], resolution) for i, f in enumerate(reader.read(range(start, stop)))]
    waveform, rate = load_audio(path)
    late = round(delay * rate)
    waveform = F.pad(waveform, (-late, 0))  # a negative pad cuts the start off
    target = folder / f"{path.stem}.safetensors"
    tensors = {
        "crops": np.stack(crops),
        "opening": mouth_opening(track.landmarks[start:stop]).astype(np.float32),
    }
    for name, voice in {"audio": waveform, **other_voices(waveform, rate)}.items():
        tokens = audio_windows(encode_audio(voice, rate, whisper), info.fps, info.frames)[start:stop]
        tensors[name] = tokens.numpy().astype(np.float16)
    save_file(tensors, target, {"name": path.stem, "fps": str(float(info.fps))})
    return target


def other_voices(waveform: Tensor, rate: int) -> dict[str, Tensor]:
    """The same speech higher, lower, and muffled with noise (20 dB below it), since there are few speakers."""
    try:
        import librosa
    except ImportError as error:
        raise UserError('Other voices need librosa; type: pip install "latentsync[train]".') from error
    sound = waveform.numpy()
    voices = {f"voice {by:+d}": librosa.effects.pitch_shift(sound, sr=rate, n_steps=by) for by in (-3, 3)}
    noise = np.random.default_rng(len(sound)).standard_normal(len(sound)) * sound.std() / 10
    voices["voice in noise"] = librosa.effects.preemphasis(sound, coef=-0.6) + noise
    return {name: torch.from_numpy(voice.astype(np.float32)) for name, voice in voices.items()}


def _wide_crop(frame: np.ndarray, matrix: np.ndarray, resolution: int) -> np.ndarray:
    margin = resolution // MARGIN
    wide = crop_matrix(matrix, resolution)
    wide[:, 2] += margin
    return resample(frame, wide, resolution + 2 * margin)


def load_clips(folder: Path) -> list[Clip]:
    """All prepared clips of a folder, sorted by name."""
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise UserError(f"{folder} has no prepared clips; make them by `python -m recipes.nano prepare`.")
    return [_load_clip(path) for path in paths]


def _load_clip(path: Path) -> Clip:
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    voices = tuple(tensors[name] for name in sorted(tensors) if name.startswith("voice"))
    return Clip(
        metadata["name"], float(metadata["fps"]), tensors["crops"], tensors["audio"], tensors["opening"], voices
    )


@dataclass(frozen=True)
class Augmentation:
    """A small change of geometry and color for all frames of a window."""

    matrix: np.ndarray
    gain: np.ndarray
    offset: np.ndarray

    def __call__(self, crops: Sequence[np.ndarray] | np.ndarray, resolution: int) -> Tensor:
        """(N, W, W, 3) uint8 with margin → (N, 3, R, R) float32 in [-1, 1]."""
        size = (resolution, resolution)
        warped = [cv2.warpAffine(c, self.matrix, size, flags=cv2.INTER_LINEAR) for c in crops]
        pixels = np.stack(warped).astype(np.float32) / 127.5 - 1
        return torch.from_numpy(np.clip(pixels @ self.gain + self.offset, -1, 1)).permute(0, 3, 1, 2).contiguous()


def plain(resolution: int) -> Augmentation:
    """No augmentation: the crop without its margin."""
    margin = resolution // MARGIN
    matrix = np.array([[1, 0, -margin], [0, 1, -margin]], np.float64)
    return Augmentation(matrix, np.eye(3, dtype=np.float32), np.zeros(3, np.float32))


def random_augmentation(random: np.random.Generator, resolution: int) -> Augmentation:
    """Flip, turn (±4°), scale (±5 %), shift (±2 %), brightness, contrast, saturation and color balance."""
    margin, center = resolution // MARGIN, resolution / 2
    angle, scale = np.deg2rad(random.uniform(-4, 4)), random.uniform(0.95, 1.05)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if random.random() < 0.5:
        turn = np.diag([-1.0, 1.0]) @ turn
    middle = np.full(2, margin + center - 0.5)
    shift = (center - 0.5) + random.uniform(-0.02, 0.02, 2) * resolution - turn @ middle
    return Augmentation(np.concatenate([turn, shift[:, None]], 1), _color(random), _offset(random))


def _color(random: np.random.Generator) -> np.ndarray:
    gray = np.full((3, 3), 1 / 3)
    saturation = random.uniform(0.7, 1.2)
    mixed = saturation * np.eye(3) + (1 - saturation) * gray
    return (mixed * random.uniform(0.8, 1.15) * random.uniform(0.94, 1.06, 3)).astype(np.float32)


def _offset(random: np.random.Generator) -> np.ndarray:
    return (random.uniform(-0.15, 0.15) + random.uniform(-0.03, 0.03, 3)).astype(np.float32)


def prepare(
    paths: Sequence[Path],
    folder: Path,
    finder: FaceFinder,
    whisper: WhisperEncoder,
    *,
    resolution: int,
    delays: dict[str, float] | None = None,
    on_clip: Callable[[str], None] | None = None,
) -> None:
    """Prepare clips that are not in folder yet; a clip that cannot be used is reported and skipped."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        if (folder / f"{path.stem}.safetensors").exists():
            continue
        try:
            delay = (delays or {}).get(path.stem, 0.0)
            prepare_clip(path, folder, finder, whisper, resolution=resolution, delay=delay)
            message = f"{path.name}: ready"
        except UserError as error:
            message = f"{path.name}: skipped, {error}"
        if on_clip:
            on_clip(message)


# ---- latents ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LatentClip:
    """One augmentation of one clip: clean and masked latents (F, C, h, w) float16, audio (F, 50, D) float16, mouth
    (F, 3, H, W) uint8: the mouth_box of the images."""

    name: str
    clean: Tensor
    masked: Tensor
    audio: Tensor
    mouth: Tensor


def mouth_box(resolution: int) -> tuple[slice, slice]:
    """Rows and columns of a crop that hold nearly all that is repainted."""
    return slice(round(0.4 * resolution), resolution), slice(round(0.15 * resolution), round(0.85 * resolution))


def opening_of(clip: Clip) -> Tensor:
    """(F,) standardized mouth opening of the training part."""
    opening = torch.from_numpy(clip.opening[: clip.train_frames])
    return (opening - opening.mean()) / opening.std().clamp(min=1e-6)


@torch.no_grad()
def encode_clip(clip: Clip, encode: Encode, size: int, random: np.random.Generator, variant: int) -> LatentClip:
    """Latents of the training part of a clip. Variant 0 is not augmented."""
    voices = (clip.audio, *clip.voices)
    augment = random_augmentation(random, size) if variant else plain(size)
    pixels = augment(clip.crops[: clip.train_frames], size)
    keep = torch.from_numpy(mouth_mask(size))
    with torch.autocast("cpu", torch.bfloat16):
        clean, masked = (torch.cat([encode(part) for part in p.split(32)]).half() for p in (pixels, pixels * keep))
    audio = torch.from_numpy(voices[variant % len(voices)][: clip.train_frames])
    rows, columns = mouth_box(size)
    mouth = ((pixels[:, :, rows, columns] + 1) * 127.5).round().byte()
    return LatentClip(clip.name, clean, masked, audio, mouth)


def encode_clips(
    clips: Sequence[Clip],
    encode: Encode,
    *,
    resolution: int,
    variants: int,
    seed: int,
    on_variant: Callable[[int], None] = lambda variant: None,
) -> list[list[LatentClip]]:
    """[variant][clip]."""
    random, encoded = np.random.default_rng(seed), []
    for variant in range(variants):
        encoded.append([encode_clip(clip, encode, resolution, random, variant) for clip in clips])
        on_variant(variant)
    return encoded


def audio_whitening(variants: Sequence[Sequence[LatentClip]], layers: int = 5, floor: float = 1.0) -> Tensor:
    """(D, D) matrix that whitens audio tokens: no mean in any layer, no direction much stronger than the others.

    Whisper's states are dominated by a constant and by one direction 300 times as strong as the mean; with these the
    attention to the speech hardly learns. Directions weaker than floor times the mean power stay weak, since they
    differ between recordings more than between sounds. The matrix can be folded into the attention's weights afterwards
    (they have no bias, hence a projection and no subtraction), so that the file takes plain tokens.
    """
    tokens = torch.cat([clip.audio[::4].float().unflatten(1, (-1, layers))[:, 5] for clip in variants[0]])
    mean = tokens.mean(0)
    basis, _ = torch.linalg.qr(mean.T)
    without_mean = torch.eye(mean.shape[1]) - basis @ basis.T
    centered = (tokens - mean).flatten(0, 1) @ without_mean
    power, directions = torch.linalg.eigh(centered.T @ centered / len(centered))
    std = (power.clamp(min=0) + floor * power.mean()).sqrt()
    matrix = directions / std @ directions.T @ without_mean
    return matrix / (centered @ matrix.T).std()


def fold_whitening(state: Mapping[str, Tensor], whitening: Tensor) -> dict[str, Tensor]:
    """The same network for plain tokens."""
    folded = ("attn2.to_k.weight", "attn2.to_v.weight")
    return {key: value @ whitening if key.endswith(folded) else value for key, value in state.items()}
