"""Samples from prepared clips. A sample is a function of the seed and of its index, so a run can resume anywhere.

Step s of a run with N samples per step takes the indices s·N to s·N + N - 1, however many processes and accumulated
batches share them. There is no generator whose state would have to be saved.
"""

import gc
import hashlib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from av.error import FFmpegError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..audio.load import load_audio
from ..audio.mel import SAMPLE_RATE
from ..audio.syncnet_mel import mel_span, sync_mel
from ..audio.whisper_features import SpeechFeatures, window_rows
from ..dataset import FPS, ClipFile, holdout_part
from ..errors import UserError
from ..files import atomic_path
from ..media.probe import VideoInfo, probe
from ..media.reader import VideoReader
from ..models.device import cores
from ..settings import WINDOW
from .recipes import RunSettings

if TYPE_CHECKING:
    from ..models.whisper import WhisperEncoder

MIN_RECORDINGS = 8
"""From this many on whole recordings can be held out; with fewer, time of every clip."""
MAX_ATTEMPTS = 16
"""Clips tried for one sample before the data count as unusable."""
ROLLBACK_OFFSET = 2**40
"""Indices are shifted by this much after each rollback, so that the run does not meet the same samples again."""
CLIP_ERRORS = (
    UserError, OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, SafetensorError, FFmpegError, cv2.error,
)  # fmt: skip
"""What a broken clip or cache file raises. Anything else is an error of the program and ends the run."""

Sample = dict[str, Any]
MakeSample = Callable[[ClipFile, np.random.Generator], Sample]
"""One sample of one clip. Raises one of CLIP_ERRORS for a clip that cannot be used."""


@dataclass(frozen=True)
class Split:
    """Clips, or parts of them, to train on; held-out time of the same clips; clips of held-out recordings."""

    train: list[ClipFile]
    time: list[ClipFile]
    recordings: list[ClipFile]

    @property
    def validation(self) -> list[ClipFile]:
        return self.recordings or self.time


def split_clips(clips: Sequence[ClipFile], settings: RunSettings, at: float = 1.0) -> Split:
    """Hold out people, and a share of the recordings or of every clip's time. at: where in the clip, 1 at its end."""
    for name in settings.holdout_people:
        if not any(clip.is_of([name]) for clip in clips):
            some = ", ".join(sorted({Path(clip.source).name for clip in clips})[:5])
            raise UserError(f"holdout_people: no recording's name starts with {name!r}; there are {some} and so on.")
    held = [clip for clip in clips if settings.holdout_people and clip.is_of(settings.holdout_people)]
    train = [clip for clip in clips if clip not in held]
    sources = sorted({clip.source for clip in train})
    share, time = settings.holdout_recordings, settings.holdout_time
    if share and not held and (len(sources) >= MIN_RECORDINGS or not time):
        if len(sources) < 2:
            raise UserError("All clips are from one recording; set holdout_time instead of holdout_recordings.")
        shuffled = sorted(sources, key=lambda name: hashlib.sha256(f"{settings.seed}:{name}".encode()).digest())
        chosen = set(shuffled[: max(1, round(share * len(sources)))])
        return Split([c for c in train if c.source not in chosen], [], [c for c in train if c.source in chosen])
    if not train:
        raise UserError("holdout_people holds out all clips; hold out fewer.")
    if not time:
        return Split(train, [], held)
    first, stop = holdout_part(time, at)
    parts = [part for part in ((0.0, first), (stop, 1.0)) if part[1] - part[0] > 1e-6]
    kept = [replace(clip, part=part) for clip in train for part in parts]
    return Split(kept, [replace(clip, part=(first, stop)) for clip in train], held)


class ClipStore:
    """Windows of clips: images from the video; Whisper features, mel and latents from a cache folder.

    whisper: needed for features that are not in the cache yet. upsample: enlarge crops below the resolution.
    """

    def __init__(
        self, cache: Path, resolution: int, whisper: "WhisperEncoder | None" = None, *, upsample: bool = True
    ) -> None:
        self.cache, self.resolution, self.whisper, self.upsample = cache, resolution, whisper, upsample
        self.features_key = "none" if whisper is None else fingerprint(whisper.state_dict())
        self._infos: dict[Path, VideoInfo] = {}

    def info(self, clip: ClipFile) -> VideoInfo:
        """UserError unless the clip is square, 25 fps, and has audio."""
        if clip.path not in self._infos:
            info = probe(clip.file())
            if info.width != info.height or info.fps != FPS or not info.has_audio:
                audio = "with" if info.has_audio else "no"
                raise UserError(
                    f"{clip.path} is {info.width}×{info.height} at {float(info.fps):g} fps, {audio} audio; square clips"
                    " at 25 fps with audio are needed: make them by `latentsync prepare`."
                )
            self._infos[clip.path] = info
        return self._infos[clip.path]

    def video(self, clip: ClipFile) -> VideoInfo:
        """The same, with a file to read from."""
        return replace(self.info(clip), path=clip.file())

    def side(self, clip: ClipFile) -> int:
        """Of the crops, in pixels, without the margin."""
        return self.info(clip).width - 2 * clip.margin

    def check_side(self, clip: ClipFile) -> None:
        if not self.upsample and self.side(clip) < self.resolution:
            raise UserError(
                f"{clip.path} has crops of {self.side(clip)} px, smaller than {self.resolution}; prepare it with"
                f" --resolution {self.resolution}, or set upsample: true in --config to enlarge it."
            )

    def pixels(self, clip: ClipFile, start: int, frames: int = WINDOW) -> Tensor:
        """(F, 3, R, R) uint8 RGB, without the clip's margin."""
        self.check_side(clip)
        with VideoReader(self.video(clip)) as reader:
            images = [clip.crop(frame) for frame in reader.read(range(start, start + frames))]
        side = self.resolution
        if len(images[0]) != side:
            method = cv2.INTER_AREA if len(images[0]) > side else cv2.INTER_CUBIC
            images = [cv2.resize(image, (side, side), interpolation=method) for image in images]
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()

    def audio(self, clip: ClipFile, start: int, frames: int = WINDOW) -> Tensor:
        """(F, 50, D) float32: the audio tokens of each frame."""

        def make() -> dict[str, Tensor]:
            if self.whisper is None:
                raise UserError(f"{clip.path} has no features in the cache {self.cache}, and no Whisper was given.")
            waveform, rate = load_audio(clip.file(), self.info(clip).start)
            speech = SpeechFeatures(waveform, rate, self.whisper)
            return {"features": speech.rows(0, speech.length).half()}

        with safe_open(self._cached(clip, f"audio-{self.features_key}", make), "pt") as file:
            part = file.get_slice("features")
            rows = window_rows(FPS, start, start + frames, part.get_shape()[0])
            first, last = int(rows.min()), int(rows.max())
            features = part[first : last + 1]
        return features[rows - first].flatten(1, 2).float()

    def mel(self, clip: ClipFile, start: int, frames: int = WINDOW) -> Tensor:
        """(1, 80, T) of a StableSyncNet, T = 52 for 16 frames."""

        def make() -> dict[str, Tensor]:
            info = self.info(clip)
            waveform, _ = load_audio(clip.file(), info.start)
            length = int(info.duration * SAMPLE_RATE)  # so that the last frame's window is complete
            return {"mel": sync_mel(F.pad(waveform[:length], (0, max(0, length - len(waveform)))))}

        first, last = mel_span(start, FPS, frames)
        with safe_open(self._cached(clip, "mel", make), "pt") as file:
            part = file.get_slice("mel")
            if first < 0 or last > part.get_shape()[1]:
                raise UserError(f"{clip.path} has no audio for frames {start} to {start + frames}.")
            return part[:, first:last][None].clone()

    def latents(self, clip: ClipFile, start: int, frames: int, kind: str) -> tuple[Tensor, Tensor]:
        """(F, C, h, w) each: latents of the crops and of the masked crops, which fill_latents wrote."""
        path = self.cache_path(clip, kind)
        if not path.exists():
            raise UserError(f"{clip.path} has no latents in the cache {self.cache}.")
        with safe_open(path, "pt") as file:
            clean, masked = (file.get_slice(name)[start : start + frames] for name in ("clean", "masked"))
        return clean.float(), masked.float()

    def fill_latents(self, clip: ClipFile, kind: str, encode: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        """Put a clip's latents into the cache. encode: (N, 3, R, R) uint8 to clean and masked (N, C, h, w)."""

        def make() -> dict[str, Tensor]:
            frames = self.info(clip).frames
            parts = [encode(self.pixels(clip, i, min(WINDOW, frames - i))) for i in range(0, frames, WINDOW)]
            clean, masked = (torch.cat(side).half().cpu() for side in zip(*parts, strict=True))
            return {"clean": clean, "masked": masked}

        self._cached(clip, kind, make)

    def _cached(self, clip: ClipFile, kind: str, make: Callable[[], dict[str, Tensor]]) -> Path:
        """Several processes may write the same file at once; the last one stays."""
        path = self.cache_path(clip, kind)
        if not path.exists():
            tensors = {name: tensor.contiguous() for name, tensor in make().items()}
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as part:
                save_file(tensors, part)
        return path

    def cache_path(self, clip: ClipFile, kind: str) -> Path:
        """Another file of the same name, or the same file changed, has another path."""
        key = hashlib.sha256(clip.identity().encode()).hexdigest()[:12]
        return self.cache / kind / f"{clip.path.stem}-{key}.safetensors"


def default_cache(data: Path, out: Path) -> Path:
    """Beside the clips, so that the next run finds it; for a file list, in the run's folder."""
    return (data if data.is_dir() else out) / "cache"


def fingerprint(state: dict[str, Tensor]) -> str:
    """Eight hexadecimal digits that tell one set of weights from another."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + state[name].detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:8]


class ClipDataset(Dataset[Sample]):
    """Every clip once in an epoch, in another order each time; the windows are drawn at random.

    A clip that cannot be used is replaced by the next in the order, always by the same one, and named under "bad"
    ("" otherwise). "number" is the sample's index, for noise that depends on it.
    """

    def __init__(self, clips: Sequence[ClipFile], make: MakeSample, seed: int) -> None:
        if not clips:
            raise UserError("There are no clips to train on; give more, or hold out less.")
        self.clips, self.make, self.seed = list(clips), make, seed

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, number: int) -> Sample:
        problems: list[str] = []
        for attempt in range(min(MAX_ATTEMPTS, len(self.clips))):
            clip = self.clip(number, attempt)
            try:
                sample = self.make(clip, np.random.default_rng([self.seed, number, attempt]))
            except CLIP_ERRORS as error:
                problems.append(f"{clip.path}: {error or type(error).__name__}")
                continue
            return sample | {"number": number, "bad": "\n".join(problems)}
        raise UserError(f"{len(problems)} clips in a row cannot be used; the last was {problems[-1]}")

    def clip(self, number: int, attempt: int = 0) -> ClipFile:
        rollbacks, place = divmod(number, ROLLBACK_OFFSET)
        epoch, place = divmod(place, len(self.clips))
        order = _order(self.seed, rollbacks, epoch, len(self.clips))
        return self.clips[order[(place + attempt) % len(self.clips)]]


@lru_cache(maxsize=4)
def _order(seed: int, rollbacks: int, epoch: int, clips: int) -> np.ndarray:
    return np.random.default_rng([seed, rollbacks, epoch]).permutation(clips)


@dataclass
class IndexSampler(Sampler[list[int]]):
    """The indices of each batch of one process, from a step on, without end. rollbacks: of the run so far."""

    step: int
    batch_size: int
    accumulation: int = 1
    rank: int = 0
    world: int = 1
    rollbacks: int = 0

    def __iter__(self) -> Iterator[list[int]]:
        for batch in count(self.step * self.accumulation):
            first = self.rollbacks * ROLLBACK_OFFSET + (batch * self.world + self.rank) * self.batch_size
            yield list(range(first, first + self.batch_size))


def load_batches(data: Dataset[Sample], sampler: IndexSampler, workers: int = 0, pin: bool = False) -> Iterator[Sample]:
    """Batches, loaded ahead by worker processes, at most one for each core."""
    gc.collect()
    options = {"num_workers": min(workers, cores()), "pin_memory": pin, "worker_init_fn": _init_worker}
    return iter(DataLoader(data, batch_sampler=sampler, **options))


def _init_worker(number: int) -> None:
    """A forked process must not collect inherited objects: decoders would wait for threads that only the parent has."""
    gc.freeze()
    cv2.setNumThreads(0)


def to_device(batch: Sample, device: torch.device | str) -> Sample:
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}


def to_signed(pixels: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1
