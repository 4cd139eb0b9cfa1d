"""Do the lips follow the sound, as a SyncNet judges it? LSE-C, LSE-D and the offset, for every shift of the sound.

The measures are those of Chung and Zisserman ("Out of time", 2016), under the names that Prajwal et al. 2020 gave them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import length_hint
from typing import Any, Protocol

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

REACH = 15
FEWEST = 10
"""Windows; fewer tell nothing."""
SHARE = 0.5
"""Of all windows; a shift that leaves fewer with sound is not tried."""
SMOOTHING = 9
"""Windows: the running median of the confidence over time, as Chung and Zisserman draw it."""
CHUNG_SIDE, CHUNG_FRAMES, CHUNG_STEPS = 224, 5, 20
CROP_SCALE, CROP_FILL, CROP_TAPS = 0.4, 110, 13
FOREHEAD = 0.17
"""A face box reaches so far above the brows, of the way from brows to chin (measured on MediaPipe's mesh: 0.08 to 0.2,
median 0.17); 68 landmarks end at the brows."""

CountCallback = Callable[[int, int], None]
"""Called with frames done, of how many (0: not known); what it raises ends the run."""


class Vae(Protocol):
    """What a SyncNet on latents needs: pixels over latents, and (N, 3, R, R) in [-1, 1] to (N, C, R / factor, same)."""

    @property
    def factor(self) -> int: ...
    def encode(self, pixels: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class SyncScore:
    """A SyncNet's verdict on F frames at 25 a second. Shifts and offset are frames; positive: the sound comes after the
    picture (the sign of evaluation.sync; Chung and Zisserman print the opposite one).

    network: "chung", whose distances are Euclidean, about 6 (in sync) to 13, or "stable", where they are 1 - cosine.
    shifts, distances (S,): mean distance of picture and sound with the sound read so many frames later.
    offset: the shift of the least distance. distance: that one (LSE-D). confidence: median of the distances minus the
    least (LSE-C). at_zero: the distance without a shift. per_frame (F,): the confidence around each frame at the
    offset, NaN where there is no window. windows: how many were compared.
    """

    network: str
    frames: int
    windows: int
    shifts: np.ndarray
    distances: np.ndarray
    offset: int
    confidence: float
    distance: float
    at_zero: float
    per_frame: np.ndarray

    def as_dict(self) -> dict[str, Any]:
        """As plain numbers for JSON; None where not known."""
        return {
            "network": self.network,
            "frames": self.frames,
            "windows": self.windows,
            "offset": self.offset,
            "lse_c": round(self.confidence, 4),
            "lse_d": round(self.distance, 4),
            "at_zero": round(self.at_zero, 4),
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
    reach: int = REACH,
    batch: int = 16,
    vae: Vae | None = None,
    on_step: CountCallback | None = None,
) -> SyncScore:
    """Judge faces at 25 a second ((R, R, 3) uint8 RGB, read once and not kept) against the sound from their start on.

    faces: aligned crops for a StableSyncNet, those of chung_crops() for Chung's. segments: half-open stretches that
    windows must lie in; None is all. reach: frames, either way. vae: for a StableSyncNet on latents.
    UserError: silent sound, fewer than FEWEST windows, a network on latents without a VAE.
    """
    speech = to_mono_16k(waveform, sample_rate)
    check_speech(speech)
    judge = judge_of(net, speech, vae)
    rows, norms, frames = [], [], 0
    sound = _Heard(judge, batch)
    for seen, done in _windows(judge, faces, batch):
        first = frames
        frames += len(seen)
        rows.append(_distances(judge, seen, sound.around(first, frames, reach), first, reach, judge.sounds))
        norms.append(seen.norm(dim=1).cpu().numpy())
        if on_step:
            on_step(done, length_hint(faces))
    if not rows or min(frames, judge.sounds) < FEWEST:
        raise UserError(_too_short(judge, frames, judge.sounds))
    table = np.concatenate(rows)
    if isinstance(net, ChungSyncNet):
        _as_published(table, np.concatenate(norms), min(frames, judge.sounds))
    return _verdict(judge, table, segments, reach)


class Judge(Protocol):
    """One network with one sound. window: frames that it sees at once. sounds: windows that the sound has."""

    name: str
    window: int
    sounds: int

    def frame(self, face: np.ndarray) -> Tensor: ...
    def see(self, frames: Tensor) -> Tensor:
        """(n + window - 1, …) consecutive frames to (n, D)."""
        ...

    def hear(self, start: int, stop: int) -> Tensor:
        """(stop - start, D): the sound that goes with the windows that begin at these frames."""
        ...

    def distance(self, seen: Tensor, heard: Tensor) -> Tensor: ...


def judge_of(net: SyncNet, speech: Tensor, vae: Vae | None = None) -> Judge:
    """speech: (T,) at 16 kHz."""
    return ChungJudge(net, speech) if isinstance(net, ChungSyncNet) else StableJudge(net, speech, vae)


class ChungJudge:
    name, window = "chung", CHUNG_FRAMES

    def __init__(self, net: ChungSyncNet, speech: Tensor) -> None:
        self.net, self.weight = net, next(net.parameters())
        self.rows = torch.from_numpy(cepstra.mfcc(speech))
        self.step = cepstra.RATE // int(FPS)
        self.sounds = max(0, len(speech) * int(FPS) // SAMPLE_RATE - CHUNG_FRAMES)

    def frame(self, face: np.ndarray) -> Tensor:
        if face.shape[:2] != (CHUNG_SIDE, CHUNG_SIDE):
            face = cv2.resize(face, (CHUNG_SIDE, CHUNG_SIDE))
        return torch.from_numpy(np.ascontiguousarray(face[..., ::-1])).permute(2, 0, 1)

    def see(self, frames: Tensor) -> Tensor:
        lips = frames.unfold(0, CHUNG_FRAMES, 1).permute(0, 1, 4, 2, 3).to(self.weight)
        return self.net.netfclip(self.net.netcnnlip(lips).flatten(1)).float()

    def hear(self, start: int, stop: int) -> Tensor:
        rows = self.rows[start * self.step : (stop - 1) * self.step + CHUNG_STEPS]
        sound = rows.unfold(0, CHUNG_STEPS, self.step)[:, None].to(self.weight)
        return self.net.netfcaud(self.net.netcnnaud(sound).flatten(1)).float()

    def distance(self, seen: Tensor, heard: Tensor) -> Tensor:
        return (seen - heard).norm(dim=-1)


class StableJudge:
    name = "stable"

    def __init__(self, net: StableSyncNet, speech: Tensor, vae: Vae | None) -> None:
        self.net, self.weight, self.vae, self.speech = net, next(net.parameters()), vae, speech
        self.config = net.config
        self.window = self.config.frames
        self.length = self.config.mels[1]
        if self.config.space == "latent" and vae is None:
            raise UserError("This SyncNet judges VAE latents; name the VAE that it was trained with.")
        self.mels = 1 + len(speech) // HOP
        room = self.mels - self.length + 1  # window i begins at mel column floor(i · 80 / 25)
        self.sounds = max(0, -(-room * int(FPS) // RATE))

    @property
    def side(self) -> int:
        """Of the aligned crops, in pixels."""
        return self.config.size[1] * (self.vae.factor if self.vae and self.config.space == "latent" else 1)

    def frame(self, face: np.ndarray) -> Tensor:
        if len(face) != self.side:
            face = cv2.resize(face, (self.side, self.side), interpolation=cv2.INTER_AREA)
        face = face if self.config.space == "latent" else face[-self.config.size[0] :]
        return torch.from_numpy(np.ascontiguousarray(face)).permute(2, 0, 1)

    def see(self, frames: Tensor) -> Tensor:
        pixels = frames.to(self.weight) / 127.5 - 1
        if self.vae is not None and self.config.space == "latent":
            pixels = self.vae.encode(pixels).to(self.weight)
        # frame by frame on the channels: r0 g0 b0 r1 g1 b1 …
        windows = pixels.unfold(0, self.window, 1).permute(0, 4, 1, 2, 3).flatten(1, 2)
        return self.net.visual_encoder(windows).float()

    def hear(self, start: int, stop: int) -> Tensor:
        spans = [mel_span(i, FPS, self.window)[0] for i in range(start, stop)]
        mel = mel_rows(self.speech, spans[0], spans[-1] + self.length)
        windows = torch.stack([mel[:, a - spans[0] : a - spans[0] + self.length] for a in spans])
        return self.net.audio_encoder(windows[:, None].to(self.weight)).float()

    def distance(self, seen: Tensor, heard: Tensor) -> Tensor:
        return 1 - (seen * heard).sum(-1)


def mel_rows(speech: Tensor, start: int, stop: int) -> Tensor:
    """Columns start … stop of sync_mel(speech) from the sound around them only."""
    before = N_FFT // 2 // HOP + 1  # a column hears N_FFT samples around its own, which pre-emphasis makes one more
    first = max(0, start - before)
    piece = speech[first * HOP : (stop - 1) * HOP + N_FFT // 2 + HOP]
    return sync_mel(piece)[:, start - first : stop - first]


def _windows(judge: Judge, faces: Iterable[np.ndarray], batch: int) -> Iterator[tuple[Tensor, int]]:
    """Vectors of up to `batch` consecutive windows, and how many faces were read."""
    held: list[Tensor] = []
    done = 0
    for face in faces:
        held.append(judge.frame(face))
        done += 1
        if len(held) == batch + judge.window - 1:
            yield judge.see(torch.stack(held)), done
            held = held[batch:]
    if len(held) >= judge.window:
        yield judge.see(torch.stack(held)), done


class _Heard:
    """The sound's vectors, in the order they are asked for; what lies behind is forgotten."""

    def __init__(self, judge: Judge, batch: int) -> None:
        self.judge, self.batch = judge, batch
        self.first, self.vectors = 0, torch.zeros(0, 0)

    def around(self, start: int, stop: int, reach: int) -> tuple[int, Tensor]:
        """Index of the first, and the vectors of windows start - reach … stop + reach, as far as there are any."""
        low, high = max(0, start - reach), min(self.judge.sounds, stop + reach)
        known = self.first + len(self.vectors)
        parts = [self.vectors] if len(self.vectors) else []
        for i in range(known, high, self.batch):
            parts.append(self.judge.hear(i, min(i + self.batch, high)))
        if parts:
            gone = min(max(0, low - self.first), sum(map(len, parts)))
            self.vectors, self.first = torch.cat(parts)[gone:], self.first + gone
        return self.first, self.vectors


def _distances(
    judge: Judge, seen: Tensor, sound: tuple[int, Tensor], first: int, reach: int, sounds: int
) -> np.ndarray:
    """(n, 2 · reach + 1) float32, NaN where there is no sound. first: the first window's number."""
    begin, heard = sound
    wanted = torch.arange(first, first + len(seen))[:, None] + torch.arange(-reach, reach + 1)
    there = (wanted >= 0) & (wanted < sounds)
    out = torch.full(wanted.shape, torch.nan)
    if there.any():
        picked = heard[(wanted - begin).clamp(0, len(heard) - 1)]
        out = torch.where(there, judge.distance(seen[:, None], picked).cpu(), out)
    return out.numpy()


def _as_published(table: np.ndarray, norms: np.ndarray, count: int) -> None:
    """Chung and Zisserman pad with vectors of zeros what lies before and behind the clip: figures compare only so."""
    reach = table.shape[1] // 2
    wanted = np.arange(len(table))[:, None] + np.arange(-reach, reach + 1)
    table[:] = np.where((wanted < 0) | (wanted >= count), norms[:, None], table)
    table[count:] = np.nan


def _verdict(judge: Judge, table: np.ndarray, segments: Sequence[tuple[int, int]] | None, reach: int) -> SyncScore:
    frames = len(table) + judge.window - 1
    inside = np.zeros(len(table), bool)
    for start, stop in segments or [(0, frames)]:
        inside[start : max(start, stop - judge.window + 1)] = True
    inside &= np.isfinite(table).any(1)
    if inside.sum() < FEWEST:
        raise UserError(_too_short(judge, int(inside.sum()), judge.sounds))
    table[~inside] = np.nan
    used = [j for j in range(2 * reach + 1) if np.isfinite(table[:, j]).sum() >= SHARE * inside.sum()]
    means = np.nanmean(table[:, used], 0)
    shifts = np.array(used) - reach
    best = min(range(len(used)), key=lambda j: (means[j], abs(shifts[j])))
    per_frame = np.full(frames, np.nan)
    known = np.isfinite(table[:, used[best]])
    own = np.nanmedian(table[known][:, used], 1) - table[known, used[best]]
    per_frame[np.flatnonzero(known) + judge.window // 2] = _running_median(own, SMOOTHING)
    return SyncScore(
        network=judge.name,
        frames=frames,
        windows=int(inside.sum()),
        shifts=shifts,
        distances=means,
        offset=int(shifts[best]),
        confidence=float(np.median(means) - means[best]),
        distance=float(means[best]),
        at_zero=float(means[shifts == 0][0]) if (shifts == 0).any() else float("nan"),
        per_frame=per_frame,
    )


def _too_short(judge: Judge, seen: int, heard: int) -> str:
    needed = (FEWEST + judge.window - 1) / float(FPS)
    return (
        f"Face and sound give {min(seen, heard)} windows of {judge.window} frames; at least {FEWEST} are needed"
        f" ({needed:.2g} s of both without a gap), so give a longer clip."
    )


def _running_median(values: np.ndarray, taps: int) -> np.ndarray:
    """Along the first axis of numbers without NaN; at the ends over what is there."""
    pad = [(taps // 2, taps // 2)] + [(0, 0)] * (values.ndim - 1)
    around = np.lib.stride_tricks.sliding_window_view(np.pad(values, pad, constant_values=np.nan), taps, 0)
    return np.nanmedian(around, -1)


def chung_boxes(track: FaceTrack) -> np.ndarray:
    """(F, 3): center x, y and half the longer side of the face's box in pixels, each steadied by a 13-tap median."""
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
    """The crops that Chung's network wants of the frames of a track."""
    return (chung_crop(frame, box) for frame, box in zip(frames, chung_boxes(track), strict=False))
