"""Lip sync by a SyncNet: LSE-C, LSE-D and the offset, from the distance at every shift of the audio.

The measures are those of Chung and Zisserman ("Out of time", 2016), under the names that Prajwal et al. 2020 gave them.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import length_hint
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from ..audio import mfcc as cepstra
from ..audio.load import check_speech, to_mono_16k
from ..audio.mel import SAMPLE_RATE
from ..audio.syncnet_mel import HOP, N_FFT, RATE, mel_span, sync_mel
from ..dataset import FPS
from ..errors import UserError
from ..face.track import FaceTrack
from ..models.syncnet import ChungSyncNet, StableSyncNet, SyncNet
from ..models.vae import VAE
from ..settings import Progress, ProgressCallback

MAX_SHIFT = 15
"""Frames, either way."""
MIN_WINDOWS = 10
MIN_COVERAGE = 0.5
"""Share of all windows that must have audio at a shift."""
SMOOTHING = 9
"""Windows of the running median of the confidence over time, as in Chung and Zisserman's plots."""
CHUNG_SIDE, CHUNG_FRAMES, CHUNG_STEPS = 224, 5, 20
CROP_SCALE, CROP_FILL, CROP_TAPS = 0.4, 110, 13
FOREHEAD = 0.17
"""How far a face box extends above the brows, relative to the distance from brows to chin (measured on MediaPipe's
mesh: 0.08 to 0.2, median 0.17); 68 landmarks end at the brows."""


@dataclass(frozen=True)
class SyncScore:
    """Sync of F frames at 25 fps. Shifts and offset are frames; positive: the audio comes after the video (as in
    landmark_sync; Chung and Zisserman print the opposite sign).

    network: "chung", whose distances are Euclidean, about 6 (in sync) to 13, or "stable", where they are 1 - cosine.
    shifts, distances (S,): mean distance of video and audio with the audio read that many frames later.
    offset: the shift of the smallest distance. distance: that one (LSE-D). confidence: median of the distances minus
    the smallest (LSE-C). per_frame (F,): the confidence around each frame at the offset, NaN without a window.
    windows: how many were compared.
    """

    network: str
    frames: int
    windows: int
    shifts: np.ndarray
    distances: np.ndarray
    offset: int
    confidence: float
    distance: float
    distance_at_zero: float
    per_frame: np.ndarray

    def as_dict(self) -> dict[str, Any]:
        """For JSON; None for NaN."""
        return {
            "network": self.network,
            "frames": self.frames,
            "windows": self.windows,
            "offset": self.offset,
            "lse_c": round(self.confidence, 4),
            "lse_d": round(self.distance, 4),
            "distance_at_zero": round(self.distance_at_zero, 4),
            "shifts": self.shifts.tolist(),
            "distances": [round(v, 4) for v in self.distances.tolist()],
            "per_frame": [round(v, 4) if np.isfinite(v) else None for v in self.per_frame.tolist()],
        }


@torch.no_grad()
def sync_offset(
    net: SyncNet,
    faces: Iterable[np.ndarray],
    waveform: Tensor | np.ndarray,
    *,
    sample_rate: int = SAMPLE_RATE,
    segments: Sequence[tuple[int, int]] | None = None,
    max_shift: int = MAX_SHIFT,
    batch: int = 16,
    vae: VAE | None = None,
    total: int = 0,
    on_progress: ProgressCallback | None = None,
) -> SyncScore:
    """Compare faces at 25 fps ((R, R, 3) uint8 RGB, read once and not kept) with the audio from their start on.

    faces: aligned crops for a StableSyncNet, those of chung_crops() for Chung's. segments: half-open frame ranges that
    windows must lie in; None is all. vae: for a StableSyncNet on latents. total: number of faces, if known.
    UserError: silent audio, fewer than MIN_WINDOWS windows, a network on latents without a VAE.
    """
    speech = to_mono_16k(waveform, sample_rate)
    check_speech(speech)
    scorer = ChungScorer(net, speech) if isinstance(net, ChungSyncNet) else StableScorer(net, speech, vae)
    rows, norms, windows = [], [], 0
    audio = _AudioVectors(scorer, batch)
    for vectors, frames in _video_vectors(scorer, faces, batch):
        first = windows
        windows += len(vectors)
        rows.append(_distances(scorer, vectors, audio.around(first, windows, max_shift), first, max_shift))
        norms.append(vectors.norm(dim=1).cpu().numpy())
        if on_progress:
            on_progress(Progress("syncnet", frames, total or length_hint(faces)))
    if not rows or min(windows, scorer.audio_windows) < MIN_WINDOWS:
        raise UserError(_too_short(scorer, windows))
    table = np.concatenate(rows)
    if isinstance(net, ChungSyncNet):
        _pad_as_published(table, np.concatenate(norms), min(windows, scorer.audio_windows))
    return _score(scorer, table, segments, max_shift)


class ChungScorer:
    """A network with one audio track. window: frames of one window. audio_windows: windows that have audio."""

    name, window = "chung", CHUNG_FRAMES

    def __init__(self, net: ChungSyncNet, speech: Tensor) -> None:
        self.net, self.weight = net, next(net.parameters())
        self.rows = torch.from_numpy(cepstra.mfcc(speech))
        self.step = cepstra.RATE // int(FPS)
        self.audio_windows = max(0, len(speech) * int(FPS) // SAMPLE_RATE - CHUNG_FRAMES)

    def frame(self, face: np.ndarray) -> Tensor:
        if face.shape[:2] != (CHUNG_SIDE, CHUNG_SIDE):
            face = cv2.resize(face, (CHUNG_SIDE, CHUNG_SIDE))
        return torch.from_numpy(np.ascontiguousarray(face[..., ::-1])).permute(2, 0, 1)

    def embed_video(self, frames: Tensor) -> Tensor:
        """(n + window - 1, …) consecutive frames to (n, D)."""
        lips = frames.unfold(0, CHUNG_FRAMES, 1).permute(0, 1, 4, 2, 3).to(self.weight)
        return self.net.netfclip(self.net.netcnnlip(lips).flatten(1)).float()

    def embed_audio(self, start: int, stop: int) -> Tensor:
        """(stop - start, D): the audio of the windows that begin at these frames."""
        rows = self.rows[start * self.step : (stop - 1) * self.step + CHUNG_STEPS]
        sound = rows.unfold(0, CHUNG_STEPS, self.step)[:, None].to(self.weight)
        return self.net.netfcaud(self.net.netcnnaud(sound).flatten(1)).float()

    def distance(self, video: Tensor, audio: Tensor) -> Tensor:
        return (video - audio).norm(dim=-1)


class StableScorer:
    """As ChungScorer."""

    name = "stable"

    def __init__(self, net: StableSyncNet, speech: Tensor, vae: VAE | None) -> None:
        self.net, self.weight, self.vae, self.speech = net, next(net.parameters()), vae, speech
        self.config = net.config
        self.window = self.config.frames
        self.length = self.config.mels[1]
        if self.config.space == "latent" and vae is None:
            raise UserError("This SyncNet takes VAE latents; name the VAE that it was trained with.")
        self.mels = 1 + len(speech) // HOP
        room = self.mels - self.length + 1  # window i begins at mel column floor(i · 80 / 25)
        self.audio_windows = max(0, -(-room * int(FPS) // RATE))

    @property
    def side(self) -> int:
        """Side of the aligned crops in pixels."""
        return self.config.size[1] * (self.vae.factor if self.vae and self.config.space == "latent" else 1)

    def frame(self, face: np.ndarray) -> Tensor:
        if len(face) != self.side:
            face = cv2.resize(face, (self.side, self.side), interpolation=cv2.INTER_AREA)
        face = face if self.config.space == "latent" else face[-self.config.size[0] :]
        return torch.from_numpy(np.ascontiguousarray(face)).permute(2, 0, 1)

    def embed_video(self, frames: Tensor) -> Tensor:
        pixels = frames.to(self.weight) / 127.5 - 1
        if self.vae is not None and self.config.space == "latent":
            pixels = self.vae.encode(pixels).to(self.weight)
        # frame by frame on the channels: r0 g0 b0 r1 g1 b1 …
        windows = pixels.unfold(0, self.window, 1).permute(0, 4, 1, 2, 3).flatten(1, 2)
        return self.net.visual_encoder(windows).float()

    def embed_audio(self, start: int, stop: int) -> Tensor:
        spans = [mel_span(i, FPS, self.window)[0] for i in range(start, stop)]
        mel = mel_rows(self.speech, spans[0], spans[-1] + self.length)
        windows = torch.stack([mel[:, a - spans[0] : a - spans[0] + self.length] for a in spans])
        return self.net.audio_encoder(windows[:, None].to(self.weight)).float()

    def distance(self, video: Tensor, audio: Tensor) -> Tensor:
        return 1 - (video * audio).sum(-1)


Scorer = ChungScorer | StableScorer


def mel_rows(speech: Tensor, start: int, stop: int) -> Tensor:
    """Columns start … stop of sync_mel(speech), computed from the audio around them only."""
    before = N_FFT // 2 // HOP + 1  # a column depends on N_FFT samples around it, and on one more by pre-emphasis
    first = max(0, start - before)
    around = speech[first * HOP : (stop - 1) * HOP + N_FFT // 2 + HOP]
    return sync_mel(around)[:, start - first : stop - first]


def _video_vectors(scorer: Scorer, faces: Iterable[np.ndarray], batch: int) -> Iterator[tuple[Tensor, int]]:
    """Vectors of up to `batch` consecutive windows, and the number of faces read so far."""
    frames: list[Tensor] = []
    done = 0
    for face in faces:
        frames.append(scorer.frame(face))
        done += 1
        if len(frames) == batch + scorer.window - 1:
            yield scorer.embed_video(torch.stack(frames)), done
            frames = frames[batch:]
    if len(frames) >= scorer.window:
        yield scorer.embed_video(torch.stack(frames)), done


class _AudioVectors:
    """The audio's vectors around a moving window; older ones are dropped."""

    def __init__(self, scorer: Scorer, batch: int) -> None:
        self.scorer, self.batch = scorer, batch
        self.first, self.vectors = 0, torch.zeros(0, 0)

    def around(self, start: int, stop: int, max_shift: int) -> tuple[int, Tensor]:
        """Vectors of the windows start - max_shift … stop + max_shift that have audio, after the first one's index."""
        low, high = max(0, start - max_shift), min(self.scorer.audio_windows, stop + max_shift)
        computed = self.first + len(self.vectors)
        parts = [self.vectors] if len(self.vectors) else []
        for i in range(computed, high, self.batch):
            parts.append(self.scorer.embed_audio(i, min(i + self.batch, high)))
        if parts:
            old = min(max(0, low - self.first), sum(map(len, parts)))
            self.vectors, self.first = torch.cat(parts)[old:], self.first + old
        return self.first, self.vectors


def _distances(scorer: Scorer, video: Tensor, audio: tuple[int, Tensor], first: int, max_shift: int) -> np.ndarray:
    """(n, 2 · max_shift + 1) float32, NaN where there is no audio. first: index of the first window."""
    begin, vectors = audio
    wanted = torch.arange(first, first + len(video))[:, None] + torch.arange(-max_shift, max_shift + 1)
    exists = (wanted >= 0) & (wanted < scorer.audio_windows)
    out = torch.full(wanted.shape, torch.nan)
    if exists.any():
        picked = vectors[(wanted - begin).clamp(0, len(vectors) - 1)]
        out = torch.where(exists, scorer.distance(video[:, None], picked).cpu(), out)
    return out.numpy()


def _pad_as_published(table: np.ndarray, norms: np.ndarray, count: int) -> None:
    """Chung and Zisserman pad the audio with zero vectors before and after the clip; published figures need it."""
    max_shift = table.shape[1] // 2
    wanted = np.arange(len(table))[:, None] + np.arange(-max_shift, max_shift + 1)
    table[:] = np.where((wanted < 0) | (wanted >= count), norms[:, None], table)
    table[count:] = np.nan


def _score(scorer: Scorer, table: np.ndarray, segments: Sequence[tuple[int, int]] | None, max_shift: int) -> SyncScore:
    frames = len(table) + scorer.window - 1
    inside = np.zeros(len(table), bool)
    for start, stop in segments or [(0, frames)]:
        inside[start : max(start, stop - scorer.window + 1)] = True
    inside &= np.isfinite(table).any(1)
    if inside.sum() < MIN_WINDOWS:
        raise UserError(_too_short(scorer, int(inside.sum())))
    table[~inside] = np.nan
    used = [j for j in range(2 * max_shift + 1) if np.isfinite(table[:, j]).sum() >= MIN_COVERAGE * inside.sum()]
    means = np.nanmean(table[:, used], 0)
    shifts = np.array(used) - max_shift
    best = min(range(len(used)), key=lambda j: (means[j], abs(shifts[j])))
    per_frame = np.full(frames, np.nan)
    known = np.isfinite(table[:, used[best]])
    own = np.nanmedian(table[known][:, used], 1) - table[known, used[best]]
    per_frame[np.flatnonzero(known) + scorer.window // 2] = _running_median(own, SMOOTHING)
    return SyncScore(
        network=scorer.name,
        frames=frames,
        windows=int(inside.sum()),
        shifts=shifts,
        distances=means,
        offset=int(shifts[best]),
        confidence=float(np.median(means) - means[best]),
        distance=float(means[best]),
        distance_at_zero=float(means[shifts == 0][0]) if (shifts == 0).any() else float("nan"),
        per_frame=per_frame,
    )


def _too_short(scorer: Scorer, windows: int) -> str:
    needed = (MIN_WINDOWS + scorer.window - 1) / float(FPS)
    windows = min(windows, scorer.audio_windows)
    return (
        f"Face and sound give {windows} windows of {scorer.window} frames; at least {MIN_WINDOWS} are needed"
        f" ({needed:.2g} s of both without a gap), so give a longer clip."
    )


def _running_median(values: np.ndarray, taps: int) -> np.ndarray:
    """Along the first axis, of values without NaN; shorter at the ends."""
    pad = [(taps // 2, taps // 2)] + [(0, 0)] * (values.ndim - 1)
    around = np.lib.stride_tricks.sliding_window_view(np.pad(values, pad, constant_values=np.nan), taps, 0)
    return np.nanmedian(around, -1)


def chung_boxes(track: FaceTrack) -> np.ndarray:
    """(F, 3): center x, y and half the longer side of the face's box in pixels, each smoothed by a 13-tap median."""
    low, high = track.landmarks.min(1).astype(np.float64), track.landmarks.max(1).astype(np.float64)
    low[:, 1] -= FOREHEAD * (high[:, 1] - low[:, 1])
    raw = np.concatenate(((low + high) / 2, (high - low).max(1, keepdims=True) / 2), 1)
    out = raw.copy()
    for start, stop in track.segments:
        out[start:stop] = _running_median(raw[start:stop], CROP_TAPS)
    return out


def chung_crop(frame: np.ndarray, box: np.ndarray) -> np.ndarray:
    """(224, 224, 3) uint8 RGB: from the box's top to 0.4 of its size below it, as wide as high; gray outside."""
    x, y, half = box
    around = int(half * (1 + 2 * CROP_SCALE))
    padded = cv2.copyMakeBorder(frame, *(around,) * 4, borderType=cv2.BORDER_CONSTANT, value=(CROP_FILL,) * 3)
    x, y = x + around, y + around
    rows = slice(max(0, int(y - half)), max(0, int(y + half * (1 + 2 * CROP_SCALE))))
    columns = slice(max(0, int(x - half * (1 + CROP_SCALE))), max(0, int(x + half * (1 + CROP_SCALE))))
    face = padded[rows, columns]
    if face.size == 0:
        return np.full((CHUNG_SIDE, CHUNG_SIDE, 3), CROP_FILL, np.uint8)
    return cv2.resize(face, (CHUNG_SIDE, CHUNG_SIDE))


def chung_crops(frames: Iterable[np.ndarray], track: FaceTrack) -> Iterator[np.ndarray]:
    """Crops for Chung's network of the frames of a track."""
    return (chung_crop(frame, box) for frame, box in zip(frames, chung_boxes(track), strict=False))
