"""Video files for the measures: one tracked face, at any frame rate, with its audio."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from torch import Tensor

from ..audio.clues import clues_for
from ..audio.load import load_audio
from ..audio.mel import SAMPLE_RATE
from ..dataset import FPS, ClipFile, find_videos
from ..errors import UserError
from ..face.aligned import AlignedFace
from ..face.choose import choose
from ..face.detect import FaceFinder
from ..face.track import FaceTrack, find_tracks
from ..media.image import is_image
from ..media.probe import VideoInfo, probe
from ..media.reader import VideoReader
from ..models.syncnet import ChungSyncNet, SyncNet
from ..models.vae import VAE
from ..settings import Progress, ProgressCallback, Settings, check_face
from .landmark_sync import Score, checked_speech, score_track
from .syncnet_sync import StableScorer, SyncScore, chung_crops, sync_offset

Read = Callable[[Sequence[int]], Iterator[np.ndarray]]
"""Reads a clip's frames by their numbers, ascending: (H, W, 3) uint8 RGB."""


@dataclass(frozen=True, eq=False)
class TrackedClip:
    """One face of a file. source_frames: the file's frame number at each frame of this clip, ascending."""

    info: VideoInfo
    track: FaceTrack
    source_frames: Sequence[int]
    fps: Fraction

    @property
    def path(self) -> Path:
        return self.info.path

    def read(self, numbers: Iterable[int] | None = None) -> Iterator[np.ndarray]:
        """(H, W, 3) uint8 RGB: all frames, or some by their numbers in this clip."""
        numbers = range(len(self.source_frames)) if numbers is None else numbers
        with VideoReader(self.info) as reader:
            yield from reader.read(self.source_frames[i] for i in numbers)

    def at_rate(self, fps: Fraction) -> "TrackedClip":
        """The same clip at another frame rate."""
        picked = _resample(len(self.source_frames), self.fps, fps)
        source_frames = [self.source_frames[i] for i in picked]
        return replace(self, track=_pick(self.track, picked), source_frames=source_frames, fps=fps)

    def speech(self, audio: Path | None = None) -> Tensor:
        """(T,) at 16 kHz from the first frame on; audio: another file, which begins with the first frame."""
        return _load_speech(self.info, audio)


def _load_speech(info: VideoInfo, audio: str | Path | None) -> Tensor:
    if audio is not None and Path(audio).resolve() != info.path.resolve():
        return load_audio(audio).waveform
    if not info.has_audio:
        raise UserError(f"{info.path} has no sound; give the speech as well.")
    return load_audio(info.path, info.start).waveform


def track_clip(
    path: str | Path, finder: FaceFinder, *, face: str = Settings.face, on_progress: ProgressCallback | None = None
) -> TrackedClip:
    """Track one face in one pass over a video file. UserError: no video, no face."""
    return _track(_probe_video(path), finder, face, on_progress)


def _probe_video(path: str | Path) -> VideoInfo:
    if is_image(path):
        raise UserError(f"{path} is a still picture; give a video.")
    return probe(path)


def _track(info: VideoInfo, finder: FaceFinder, face: str, on_progress: ProgressCallback | None) -> TrackedClip:
    check_face(face)

    def count(done: int) -> None:
        if on_progress:
            on_progress(Progress("track", done, info.frames))

    with VideoReader(info) as reader:
        clues = clues_for(face, reader, info.frames, info.fps, lambda: finder)
        tracks = find_tracks(reader.read(range(info.frames)), finder, on_step=count)
        track = choose(tracks, face, clues)
    return TrackedClip(info, track, range(info.frames), info.fps)


def score_file(
    video: str | Path,
    audio: str | Path | None,
    finder: FaceFinder,
    *,
    face: str = Settings.face,
    on_progress: ProgressCallback | None = None,
) -> Score:
    """The landmark score of a video file, streamed. audio: see TrackedClip.speech; it is checked before the video."""
    info = _probe_video(video)
    speech = checked_speech(_load_speech(info, audio), SAMPLE_RATE)
    return score_track(_track(info, finder, face, on_progress).track, speech, info.fps)


def _resample(count: int, fps: Fraction, wanted: Fraction) -> list[int]:
    """The frame numbers shown at another rate: each the latest at or before its time."""
    return [int(i * fps / wanted) for i in range(max(1, int(count * wanted / fps)))]


def _pick(track: FaceTrack, picked: Sequence[int]) -> FaceTrack:
    """Some frames of a track, by their ascending numbers."""
    segments, cuts = (np.searchsorted(picked, np.array(at, int)).tolist() for at in (track.segments, track.cuts))
    arrays = {name: getattr(track, name)[np.asarray(picked)] for name in ("points", "landmarks", "present")}
    return replace(
        track,
        **arrays,
        segments=tuple((a, b) for a, b in segments if a < b),
        cuts=tuple(sorted(set(cuts) - {len(picked)})),
    )


def sync_clip(
    net: SyncNet,
    clip: TrackedClip,
    speech: Tensor,
    *,
    vae: VAE | None = None,
    on_progress: ProgressCallback | None = None,
) -> SyncScore:
    """The SyncNet score of a tracked clip."""
    return sync_track(net, clip.track, clip.read, speech, clip.fps, vae=vae, on_progress=on_progress)


def sync_track(
    net: SyncNet,
    track: FaceTrack,
    read: Read,
    speech: Tensor,
    fps: Fraction,
    *,
    vae: VAE | None = None,
    on_progress: ProgressCallback | None = None,
) -> SyncScore:
    """The same for frames of any origin. speech: (T,) at 16 kHz, begins with the first frame."""
    picked = _resample(track.frames, fps, FPS)
    track = _pick(track, picked)
    if isinstance(net, ChungSyncNet):
        faces = chung_crops(read(picked), track)
    else:
        faces = AlignedFace.from_track(track, StableScorer(net, speech, vae).side).crops(read(picked))
    return sync_offset(net, faces, speech, segments=track.segments, vae=vae, total=len(picked), on_progress=on_progress)


def sync_aligned(
    net: SyncNet, clip: ClipFile, *, vae: VAE | None = None, on_progress: ProgressCallback | None = None
) -> SyncScore:
    """The same for a prepared clip, whose frames are aligned crops already."""
    path = clip.path
    if isinstance(net, ChungSyncNet):
        raise UserError(
            f"{path} is an aligned crop, too narrow for the SyncNet of Chung and Zisserman; give the clip it is from."
        )
    info = probe(path)
    if not info.has_audio:
        raise UserError(f"{path} has no sound; prepare it again with its audio.")
    speech = load_audio(path, info.start).waveform
    picked = _resample(info.frames, info.fps, FPS)
    with VideoReader(info) as reader:
        faces = (clip.crop(frame) for frame in reader.read(picked))
        return sync_offset(net, faces, speech, vae=vae, total=len(picked), on_progress=on_progress)


def videos(folder: str | Path) -> dict[str, Path]:
    """All videos below a folder, by their relative path without suffix. UserError: there are none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}; give one with videos.")
    found = find_videos(folder)
    if not found:
        raise UserError(f"{folder} holds no videos (.mp4, .mov, .mkv or similar); give a folder that does.")
    return {p.relative_to(folder).with_suffix("").as_posix(): p for p in found}


def pair_videos(made: Path, true: Path) -> tuple[dict[str, tuple[Path, Path]], dict[str, str]]:
    """Videos of the same name in both folders, whatever their suffix; and why the others have no pair."""
    ours, theirs = videos(made), videos(true)
    pairs = {name: (path, theirs[name]) for name, path in ours.items() if name in theirs}
    if not pairs:
        raise UserError(f"{made} and {true} have no video of the same name; give folders with matching file names.")
    alone = dict.fromkeys(sorted(ours.keys() - pairs), f"only in {made}")
    return pairs, alone | dict.fromkeys(sorted(theirs.keys() - pairs), f"only in {true}")
