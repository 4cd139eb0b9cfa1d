"""A clip from a file as the measures want it: one face followed, at any frame rate, with its sound."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from torch import Tensor

from ..audio.load import load_audio
from ..dataset import FPS, ClipFile, find_videos
from ..errors import UserError
from ..face.aligned import AlignedFace
from ..face.detect import FaceFinder
from ..face.track import FaceTrack, choose, find_tracks
from ..media.image import is_image
from ..media.probe import VideoInfo, probe
from ..media.reader import VideoReader
from ..models.syncnet import ChungSyncNet, SyncNet
from ..settings import Settings
from .syncnet_sync import CountCallback, StableJudge, SyncScore, Vae, chung_crops, sync_offset

Read = Callable[[Sequence[int]], Iterator[np.ndarray]]
"""A clip's frames by their numbers, ascending: (H, W, 3) uint8 RGB."""


@dataclass(frozen=True, eq=False)
class Followed:
    """One face of a file. shown: the file's frame at each of this clip's frames, ascending; fps: their rate."""

    info: VideoInfo
    track: FaceTrack
    shown: Sequence[int]
    fps: Fraction

    @property
    def path(self) -> Path:
        return self.info.path

    def frames(self) -> Iterator[np.ndarray]:
        """(H, W, 3) uint8 RGB, one after the other."""
        return self.read(range(len(self.shown)))

    def read(self, numbers: Iterable[int]) -> Iterator[np.ndarray]:
        """Some of them, by their numbers in this clip."""
        with VideoReader(self.info) as reader:
            yield from reader.read(self.shown[i] for i in numbers)

    def at(self, fps: Fraction) -> "Followed":
        """The same at another rate: every frame is the latest at or before its time."""
        picked = _moments(len(self.shown), self.fps, fps)
        return replace(self, track=_picked(self.track, picked), shown=[self.shown[i] for i in picked], fps=fps)

    def speech(self, audio: Path | None = None) -> Tensor:
        """(T,) at 16 kHz from the first frame on; audio: another sound, which begins with it."""
        if audio is not None and audio.resolve() != self.path.resolve():
            return load_audio(audio).waveform
        if not self.info.has_audio:
            raise UserError(f"{self.path} has no sound; give the speech as well.")
        return load_audio(self.path, self.info.start).waveform


def follow(
    path: str | Path, finder: FaceFinder, *, face: str = Settings.face, on_step: CountCallback | None = None
) -> Followed:
    """One pass over a video file. UserError: no video, no face."""
    if is_image(path):
        raise UserError(f"{path} is a still picture; give a video.")
    info = probe(path)

    def step(done: int) -> None:
        if on_step:
            on_step(done, info.frames)

    with VideoReader(info) as reader:
        tracks = find_tracks(reader.read(range(info.frames)), finder, on_step=step)
    return Followed(info, choose(tracks, face), range(info.frames), info.fps)


def _moments(count: int, fps: Fraction, wanted: Fraction) -> list[int]:
    """Which of so many frames show at another rate: each the latest at or before its time."""
    return [int(i * fps / wanted) for i in range(max(1, int(count * wanted / fps)))]


def _picked(track: FaceTrack, picked: Sequence[int]) -> FaceTrack:
    def moved(frame: int) -> int:
        return int(np.searchsorted(picked, frame))

    segments = tuple((moved(a), moved(b)) for a, b in track.segments)
    rows = np.asarray(picked)
    return replace(
        track,
        points=track.points[rows],
        landmarks=track.landmarks[rows],
        present=track.present[rows],
        segments=tuple((a, b) for a, b in segments if a < b),
        cuts=tuple(sorted({moved(c) for c in track.cuts} - {len(picked)})),
    )


def sync_clip(
    net: SyncNet,
    clip: Followed,
    speech: Tensor,
    *,
    vae: Vae | None = None,
    batch: int = 16,
    on_step: CountCallback | None = None,
) -> SyncScore:
    """A SyncNet's verdict on a followed face of a file."""
    return sync_track(net, clip.track, clip.read, speech, clip.fps, vae=vae, batch=batch, on_step=on_step)


def sync_track(
    net: SyncNet,
    track: FaceTrack,
    read: Read,
    speech: Tensor,
    fps: Fraction,
    *,
    vae: Vae | None = None,
    batch: int = 16,
    on_step: CountCallback | None = None,
) -> SyncScore:
    """The same wherever the frames are from. speech: (T,) at 16 kHz, begins with the first frame."""
    shown = _moments(track.frames, fps, FPS)
    track = _picked(track, shown)
    if isinstance(net, ChungSyncNet):
        faces = chung_crops(read(shown), track)
    else:
        faces = AlignedFace.from_track(track, StableJudge(net, speech, vae).side).crops(read(shown))
    counted = _Counted(faces, len(shown))
    return sync_offset(net, counted, speech, segments=track.segments, vae=vae, batch=batch, on_step=on_step)


def sync_aligned(
    net: SyncNet, clip: ClipFile, *, vae: Vae | None = None, batch: int = 16, on_step: CountCallback | None = None
) -> SyncScore:
    """The same for a prepared clip, whose frames are aligned crops already."""
    path = clip.path
    if isinstance(net, ChungSyncNet):
        raise UserError(
            f"{path} is an aligned crop, too narrow for the SyncNet of Chung and Zisserman; give the clip it is from."
        )
    info = probe(path)
    if not info.has_audio:
        raise UserError(f"{path} has no sound; prepare it again with its sound.")
    speech = load_audio(path, info.start).waveform
    count = max(1, int(info.frames * FPS / info.fps))
    with VideoReader(info) as reader:
        frames = (clip.crop(frame) for frame in reader.read(int(i * info.fps / FPS) for i in range(count)))
        faces = _Counted(frames, count)
        return sync_offset(net, faces, speech, vae=vae, batch=batch, on_step=on_step)


class _Counted:
    """An iterator whose length is known beforehand."""

    def __init__(self, items: Iterator[np.ndarray], count: int) -> None:
        self.items, self.count = items, count

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.items

    def __length_hint__(self) -> int:
        return self.count


def videos(folder: str | Path) -> dict[str, Path]:
    """The videos of a folder and of those in it, by their path in it without ending; UserError where there are none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}; give one with videos.")
    found = find_videos(folder)
    if not found:
        raise UserError(f"{folder} holds no videos (.mp4, .mov, .mkv and the like); give a folder that does.")
    return {p.relative_to(folder).with_suffix("").as_posix(): p for p in found}
