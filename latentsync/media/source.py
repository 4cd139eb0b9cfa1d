"""Pictures by index and what the output takes over from them: a video or a part of it, a picture, frames in memory."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np

from ..settings import Settings
from ..timeline import Cut
from .audio_track import sound_start
from .color import Color
from .image import read_image
from .reader import VideoReader


class Source(Protocol):
    """Pictures by index, in any order."""

    def read(self, indices: Iterable[int]) -> Iterator[np.ndarray]: ...


class ArraySource:
    """Frames that are in memory already; a still image is one frame that is read again and again."""

    def __init__(self, frames: Sequence[np.ndarray] | np.ndarray) -> None:
        self.frames = frames

    def read(self, indices: Iterable[int]) -> Iterator[np.ndarray]:
        return (np.ascontiguousarray(self.frames[i]) for i in indices)


@dataclass(frozen=True)
class Shown:
    """What the output takes over from the source; see VideoInfo."""

    width: int
    height: int
    fps: Fraction
    frames: int
    start: Fraction = Fraction(0)
    color: Color | None = None
    aspect: Fraction = Fraction(1)


@dataclass(frozen=True)
class Part:
    """A source from one of its frames on."""

    whole: Source
    first: int

    def read(self, indices: Iterable[int]) -> Iterator[np.ndarray]:
        return self.whole.read(self.first + i for i in indices)


@contextmanager
def open_source(video: str | Path, settings: Settings, still: bool, cut: Cut) -> Iterator[tuple[Source, Shown]]:
    if still:
        image = read_image(video)
        yield ArraySource([image]), Shown(image.shape[1], image.shape[0], Fraction(settings.still_fps), 1)
        return
    with VideoReader.open(video) as reader:
        info = reader.info
        first, frames = cut.frames(info.fps, info.frames)
        start = info.start + first / info.fps
        source = Part(reader, first) if first else reader
        yield source, Shown(info.width, info.height, info.fps, frames, start, info.color, info.aspect)


def sound_part(
    video: str | Path, audio: str | Path | None, shown: Shown, cut: Cut, number: int | None = None
) -> tuple[Fraction | None, Fraction | None]:
    """Start on the sound file's own clock and length in seconds of what is heard; None: from the first, to the last."""
    own = audio is None or Path(audio).resolve() == Path(video).resolve()
    if own and not cut.audio_start:
        # the video's own sound stays where it is against the picture, and ends with it
        return shown.start, None if cut.duration is None else shown.frames / shown.fps
    # another sound begins with the first frame
    return sound_start(audio or video, number) + cut.audio_start if cut.audio_start else None, cut.audio_duration
