"""Clips to samples. A sample is a function of the seed and of its number, so a run can stop and go on anywhere.

Samples are numbered through a whole run: step s of a run with N samples a step takes the numbers s·N … s·N + N - 1,
however many processes and accumulated parts share them. Nothing is drawn from a generator that lives on.
"""

import gc
import hashlib
import json
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..audio.load import load_audio
from ..audio.mel import SAMPLE_RATE
from ..audio.syncnet_mel import mel_span, sync_mel
from ..audio.whisper_features import SpeechFeatures, window_rows
from ..errors import UserError
from ..media.probe import VideoInfo, probe
from ..media.reader import VideoReader
from ..settings import WINDOW

if TYPE_CHECKING:
    from ..models.whisper import WhisperEncoder

FPS = Fraction(25)
"""All published LatentSync weights, and the SyncNets, were trained at this rate."""
MANIFEST = "manifest.jsonl"
VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".mpg")
MANY_SOURCES = 8
"""From so many recordings on, whole ones are held out; with fewer, the end of every clip."""
TRIES = 16
"""Clips tried for one sample before the data are taken to be unusable."""
ROLL = 2**40
"""Sample numbers are shifted by this much after each rollback, so that the run does not meet the same trouble again."""

Sample = dict[str, Any]
Make = Callable[["ClipFile", np.random.Generator], Sample]
"""One sample of one clip. Raises for a clip that cannot be used."""


# ---- which clips -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClipFile:
    """A clip of aligned crops with sound. source: the recording it was cut from.

    part: the share of its frames that may be shown to the network, (0, 1) for all.
    """

    path: Path
    source: str
    part: tuple[float, float] = (0.0, 1.0)

    def span(self, frames: int) -> tuple[int, int]:
        """First frame and the one after the last."""
        return round(self.part[0] * frames), round(self.part[1] * frames)


def find_clips(data: Path) -> list[ClipFile]:
    """The clips of a folder made by `latentsync prepare`, of a list, or of a folder of videos, in a fixed order."""
    if data.is_dir():
        clips = _from_manifest(data) if (data / MANIFEST).is_file() else _from_folder(data)
    elif data.is_file():
        clips = _from_list(data)
    else:
        raise UserError(f"There is no {data}; give a folder made by `latentsync prepare`, or a list of clips.")
    if not clips:
        raise UserError(f"{data} names no clip that was kept; see the report of `latentsync prepare`.")
    return clips


def _records(manifest: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines() if line.strip()]
    except ValueError as error:
        raise UserError(f"{manifest} is damaged ({error}); run `latentsync prepare` again.") from error


def _from_manifest(folder: Path) -> list[ClipFile]:
    kept = [r for r in _records(folder / MANIFEST) if r.get("status") == "kept"]
    clips = [ClipFile(folder / r["path"], str(r.get("source", r["path"]))) for r in kept]
    return sorted(clips, key=lambda clip: clip.path)


def _from_folder(folder: Path) -> list[ClipFile]:
    paths = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in VIDEOS and p.name[0] != "."]
    return [ClipFile(path, _source(path)) for path in paths]


def _from_list(path: Path) -> list[ClipFile]:
    """One path a line, absolute, or as seen from here or from the list; # begins a remark."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    paths = [Path(line) for line in lines if line and not line.startswith("#")]
    found = [p if p.is_absolute() or p.exists() else path.parent / p for p in paths]
    return [ClipFile(path, _source(path)) for path in found]


def _source(path: Path) -> str:
    return str(_prepared(path.parent.parent).get(path.name, {}).get("source", path.stem))


def margin_of(path: Path) -> int:
    """Pixels around the aligned crop that `latentsync prepare` left on each side of this clip's frames."""
    return int(_prepared(path.parent.parent).get(path.name, {}).get("margin") or 0)


@lru_cache(maxsize=64)
def _prepared(folder: Path) -> dict[str, dict[str, Any]]:
    """File name → record, of the clips of a prepared folder; nothing where the folder is none."""
    manifest = folder / MANIFEST
    records = _records(manifest) if manifest.is_file() else []
    return {Path(record["path"]).name: record for record in records if record.get("path")}


def split(
    clips: Sequence[ClipFile], share: float, how: str = "auto", seed: int = 0
) -> tuple[list[ClipFile], list[ClipFile]]:
    """(to train on, held out). how: "source" holds out whole recordings, "time" the end of every clip; "auto" chooses
    recordings where there are at least MANY_SOURCES. share: of recordings or of time, 0 for none held out."""
    sources = sorted({clip.source for clip in clips})
    if how == "auto":
        how = "source" if len(sources) >= MANY_SOURCES else "time"
    if how not in ("source", "time") or not 0 <= share < 1:
        raise UserError(f"hold_out is {how!r}, {share}; give source, time or auto, and a share from 0 to below 1.")
    if not share:
        return list(clips), []
    if how == "time":
        return [replace(c, part=(0.0, 1 - share)) for c in clips], [replace(c, part=(1 - share, 1.0)) for c in clips]
    if len(sources) < 2:
        raise UserError("All clips come from one recording, so none can be held out; use --hold-out time.")
    shuffled = sorted(sources, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    held = set(shuffled[: max(1, round(share * len(sources)))])
    return [c for c in clips if c.source not in held], [c for c in clips if c.source in held]


# ---- what is in a clip -----------------------------------------------------------------------------------------------


class ClipStore:
    """Pieces of clips: pictures from the video, and, kept in a cache folder, Whisper's features, mel and latents.

    whisper: needed where features are asked for that are not in the cache yet.
    """

    def __init__(self, cache: Path, resolution: int, whisper: "WhisperEncoder | None" = None) -> None:
        self.cache, self.resolution, self.whisper = cache, resolution, whisper
        self.hears = "none" if whisper is None else fingerprint(whisper.state_dict())
        self._infos: dict[Path, VideoInfo] = {}

    def info(self, clip: ClipFile) -> VideoInfo:
        """UserError unless the clip is one to train on: square, 25 fps, with sound."""
        if clip.path not in self._infos:
            info = probe(clip.path)
            if info.width != info.height or info.fps != FPS or not info.has_audio:
                got = (
                    f"{info.width}×{info.height} at {float(info.fps):g} fps, {'with' if info.has_audio else 'no'} sound"
                )
                raise UserError(f"{clip.path} is {got}; square crops at 25 fps with sound are needed (prepare).")
            self._infos[clip.path] = info
        return self._infos[clip.path]

    def pixels(self, clip: ClipFile, start: int, frames: int = WINDOW) -> Tensor:
        """(F, 3, R, R) uint8 RGB, without the margin that the clip was prepared with."""
        margin = margin_of(clip.path)
        inner = slice(margin, -margin or None)
        with VideoReader(self.info(clip)) as reader:
            crops = (frame[inner, inner] for frame in reader.read(range(start, start + frames)))
            pictures = [_resized(crop, self.resolution) for crop in crops]
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()

    def audio(self, clip: ClipFile, start: int, frames: int = WINDOW) -> Tensor:
        """(F, 50, D) float32: the tokens that each frame hears."""
        path = self._cached(clip, f"audio-{self.hears}", self._features)
        with safe_open(path, "pt") as file:
            part = file.get_slice("features")
            rows = window_rows(FPS, start, start + frames, part.get_shape()[0])
            first, last = int(rows.min()), int(rows.max())
            features = part[first : last + 1]
        return features[rows - first].flatten(1, 2).float()

    def mel(self, clip: ClipFile, start: int, frames: int = WINDOW) -> Tensor:
        """(1, 80, 52) for 16 frames: the sound as the SyncNets hear it, from frame start on (may lie at any frame)."""
        first, last = mel_span(start, FPS, frames)
        with safe_open(self._cached(clip, "mel", self._mel), "pt") as file:
            part = file.get_slice("mel")
            if first < 0 or last > part.get_shape()[1]:
                raise UserError(f"{clip.path} has no sound for frames {start} to {start + frames}.")
            return part[:, first:last][None].clone()

    def latents(self, clip: ClipFile, start: int, frames: int, kind: str) -> tuple[Tensor, Tensor]:
        """(F, C, h, w) each: latents of the crops and of the masked crops, as fill_latents has left them."""
        path = self._place(clip, kind)
        if not path.exists():
            raise UserError(f"{clip.path} has no latents in the cache {self.cache}.")
        with safe_open(path, "pt") as file:
            clean, masked = (file.get_slice(name)[start : start + frames] for name in ("clean", "masked"))
        return clean.float(), masked.float()

    def fill_latents(
        self, clip: ClipFile, kind: str, encode: Callable[[Tensor], tuple[Tensor, Tensor]], block: int = WINDOW
    ) -> None:
        """Put a whole clip's latents into the cache. encode: (N, 3, R, R) uint8 → clean, masked (N, C, h, w)."""

        def make(clip: ClipFile) -> dict[str, Tensor]:
            frames = self.info(clip).frames
            parts = [encode(self.pixels(clip, i, min(block, frames - i))) for i in range(0, frames, block)]
            clean, masked = (torch.cat(side).half().cpu() for side in zip(*parts, strict=True))
            return {"clean": clean, "masked": masked}

        self._cached(clip, kind, make)

    def _features(self, clip: ClipFile) -> dict[str, Tensor]:
        if self.whisper is None:
            raise UserError(f"{clip.path} is not in the cache {self.cache}, and no Whisper was given to listen to it.")
        waveform, rate = load_audio(clip.path, self.info(clip).start)
        speech = SpeechFeatures(waveform, rate, self.whisper)
        return {"features": speech.rows(0, speech.length).half()}

    def _mel(self, clip: ClipFile) -> dict[str, Tensor]:
        info = self.info(clip)
        waveform, _ = load_audio(clip.path, info.start)
        whole = int(info.duration * SAMPLE_RATE)  # so that the last frame's window of sound is complete
        return {"mel": sync_mel(F.pad(waveform[:whole], (0, max(0, whole - len(waveform)))))}

    def _cached(self, clip: ClipFile, kind: str, make: Callable[[ClipFile], dict[str, Tensor]]) -> Path:
        """Several processes may make the same file at once: each under a name of its own, the last one stays."""
        path = self._place(clip, kind)
        if not path.exists():
            tensors = {name: tensor.contiguous() for name, tensor in make(clip).items()}
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{uuid.uuid4().hex}.part")
            try:
                save_file(tensors, part)
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
        return path

    def _place(self, clip: ClipFile, kind: str) -> Path:
        """Another file of that name, or the same one changed, has another place."""
        facts = clip.path.stat()
        mark = f"{clip.path.resolve()}:{facts.st_size}:{facts.st_mtime_ns}"
        return self.cache / kind / f"{clip.path.stem}-{hashlib.sha256(mark.encode()).hexdigest()[:12]}.safetensors"


def fingerprint(state: dict[str, Tensor]) -> str:
    """Eight hexadecimal digits that tell one set of weights from another."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:8]


def _resized(frame: np.ndarray, side: int) -> np.ndarray:
    if frame.shape[0] == side:
        return frame
    way = cv2.INTER_AREA if frame.shape[0] > side else cv2.INTER_CUBIC
    return cv2.resize(frame, (side, side), interpolation=way)


# ---- samples ---------------------------------------------------------------------------------------------------------


def draw_windows(random: np.random.Generator, first: int, stop: int, length: int = WINDOW) -> tuple[int, int]:
    """Starts of two windows that do not overlap: the target within first … stop, the reference anywhere before stop."""
    starts = [s for s in range(first, stop - length + 1) if s >= length or s + 2 * length <= stop]
    if not starts:
        raise UserError(f"{stop - first} frames, from {first} on, are too few for two windows of {length}.")
    target = int(random.choice(starts))
    others = [*range(target - length + 1), *range(target + length, stop - length + 1)]
    return target, int(random.choice(others))


@dataclass(frozen=True)
class UNetWindows:
    """What the U-Net is trained on: a window, a reference window of the same clip, and the sound of the first.

    pixels, reference: (16, 3, R, R) uint8. audio: (16, 50, D). mel: (1, 80, 52). With latents (a cache's kind) the
    pictures come as clean, masked, reference_latents (16, C, h, w) too, and pixels only where wanted. still: the
    reference is one frame, 16 times.
    """

    store: ClipStore
    mel: bool = False
    pixels: bool = True
    latents: str | None = None
    frames: int = WINDOW
    still: bool = False

    def __call__(self, clip: ClipFile, random: np.random.Generator) -> Sample:
        store = self.store
        target, reference = draw_windows(random, *clip.span(store.info(clip).frames), self.frames)
        sample: Sample = {"audio": store.audio(clip, target, self.frames)}
        seen = "reference_latents" if self.latents else "reference"
        if self.latents:
            sample["clean"], sample["masked"] = store.latents(clip, target, self.frames, self.latents)
            sample[seen] = store.latents(clip, reference, self.frames, self.latents)[0]
        else:
            sample[seen] = store.pixels(clip, reference, self.frames)
        if self.still:
            sample[seen] = sample[seen][:1].repeat(self.frames, 1, 1, 1)
        if self.pixels or not self.latents:
            sample["pixels"] = store.pixels(clip, target, self.frames)
        if self.mel:
            sample["mel"] = store.mel(clip, target, self.frames)
        return sample


class ClipDataset(Dataset[Sample]):
    """Sample number n: every clip once in an epoch, in an order of its own each time; what is taken of it is drawn.

    A clip that cannot be used is replaced by the next in the order, always by the same one, and named under "bad"
    ("" otherwise); so every process always has its sample. "number" is in the sample, for noise that hangs on it.
    """

    def __init__(self, clips: Sequence[ClipFile], make: Make, seed: int) -> None:
        if not clips:
            raise UserError("There are no clips to draw samples from; give more, or hold out less.")
        self.clips, self.make, self.seed = list(clips), make, seed

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, number: int) -> Sample:
        troubles: list[str] = []
        for attempt in range(min(TRIES, len(self.clips))):
            clip = self.clip(number, attempt)
            try:
                sample = self.make(clip, self.random(number, attempt))
            except Exception as error:  # whatever a broken file makes its reader raise
                troubles.append(f"{clip.path}: {error or type(error).__name__}")
                continue
            return sample | {"number": number, "bad": "\n".join(troubles)}
        raise UserError(f"{len(troubles)} clips in a row cannot be used; the last was {troubles[-1]}")

    def clip(self, number: int, attempt: int = 0) -> ClipFile:
        rolls, place = divmod(number, ROLL)
        epoch, place = divmod(place, len(self.clips))
        order = _order(self.seed, rolls, epoch, len(self.clips))
        return self.clips[order[(place + attempt) % len(self.clips)]]

    def random(self, number: int, attempt: int = 0) -> np.random.Generator:
        return np.random.default_rng([self.seed, number, attempt])


@lru_cache(maxsize=4)
def _order(seed: int, rolls: int, epoch: int, clips: int) -> np.ndarray:
    return np.random.default_rng([seed, rolls, epoch]).permutation(clips)


# ---- batches ---------------------------------------------------------------------------------------------------------


class Numbers(Sampler[list[int]]):
    """The numbers of each batch of one process, from a step on, without end. rolls: rollbacks of the run so far."""

    def __init__(
        self, step: int, batch: int, *, accumulate: int = 1, rank: int = 0, world: int = 1, rolls: int = 0
    ) -> None:
        self.step, self.batch, self.accumulate = step, batch, accumulate
        self.rank, self.world, self.rolls = rank, world, rolls

    def __iter__(self) -> Iterator[list[int]]:
        for part in count(self.step * self.accumulate):
            first = self.rolls * ROLL + (part * self.world + self.rank) * self.batch
            yield list(range(first, first + self.batch))


class Feed:
    """Batches of a dataset, loaded ahead by worker processes. waited: seconds that the caller stood waiting."""

    def __init__(self, dataset: Dataset[Sample], numbers: Numbers, *, workers: int = 0, pin: bool = False) -> None:
        self.waited = 0.0
        gc.collect()
        loader = DataLoader(
            dataset, batch_sampler=numbers, num_workers=workers, pin_memory=pin, worker_init_fn=_begin_worker
        )
        self._batches = iter(loader)

    def __next__(self) -> Sample:
        start = time.perf_counter()
        batch = next(self._batches)
        self.waited += time.perf_counter() - start
        return batch

    def __iter__(self) -> "Feed":
        return self


def _begin_worker(number: int) -> None:
    """A forked process must not tidy up what it inherited: decoders would wait for threads that only the parent has."""
    gc.freeze()
    cv2.setNumThreads(0)


def to_device(batch: Sample, device: torch.device | str) -> Sample:
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}


def collate(samples: Sequence[Sample]) -> Sample:
    """Samples to a batch, as Feed does."""
    return torch.utils.data.default_collate(list(samples))


def unit(pixels: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1
