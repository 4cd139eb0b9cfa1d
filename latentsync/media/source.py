"""Pictures by index and what the output takes over from them: a video or a part of it, a picture, frames in memory."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import UserError
from ..settings import Settings
from ..timeline import Cut
from .audio_track import sound_start
from .color import Color
from .encoding import Kind
from .image import flattened, is_image, read_picture, within
from .probe import VideoInfo
from .reader import VideoReader
from .sequence import is_sequence
from .tags import Tags, tags_of

SMALLEST, LARGEST = 16, 16384


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
    """What the output takes over from the source; see VideoInfo. scale: how much smaller it was made. notes: what else
    was changed, in words for people."""

    width: int
    height: int
    fps: Fraction
    frames: int
    start: Fraction = Fraction(0)
    color: Color | None = None
    aspect: Fraction = Fraction(1)
    still: bool = False
    scale: float = 1.0
    notes: tuple[str, ...] = ()
    said: Tags = field(default_factory=Tags)
    kind: Kind = field(default_factory=Kind)
    screen: Mapping[str, str] = field(default_factory=dict)

    def tags(self, duration: Fraction, settings: Settings) -> Tags:
        """What the source says about itself, for an output that is so long."""
        return Tags() if settings.strip_metadata else replace(self.said, start=self.start, duration=duration)


@dataclass(frozen=True)
class Part:
    """A source from one of its frames on."""

    whole: Source
    first: int

    def read(self, indices: Iterable[int]) -> Iterator[np.ndarray]:
        return self.whole.read(self.first + i for i in indices)


def read_still(path: Path, settings: Settings) -> tuple[np.ndarray, float, Kind, tuple[str, ...]]:
    """The picture as it is used, how much smaller it was made, how it is stored, and a word on what was changed."""
    whole = read_picture(path)
    image = flattened(within(whole, settings.max_side), settings.background)
    sizes = [f"{one.shape[1]} × {one.shape[0]}" for one in (whole, image)]
    notes = [f"a picture of {sizes[0]}, made {sizes[1]} (max_side)"] if sizes[0] != sizes[1] else []
    return image, max(image.shape) / max(whole.shape), Kind(alpha=whole.shape[2] == 4), tuple(notes)


@contextmanager
def open_source(video: str | Path, settings: Settings, cut: Cut) -> Iterator[tuple[Source, Shown]]:
    if is_image(video):
        image, scale, kind, notes = read_still(Path(video), settings)
        (height, width), rate = image.shape[:2], Fraction(settings.still_fps)
        check_shape(video, width, height)
        yield ArraySource([image]), Shown(width, height, rate, 1, still=True, scale=scale, notes=notes, kind=kind)
        return
    with VideoReader.open(video, settings.background) as reader:
        info = reader.info
        check_shape(video, info.width, info.height)
        rate = Fraction(settings.still_fps) if info.frames == 1 or is_sequence(video) else info.fps
        first, frames = cut.frames(rate if info.frames > 1 else info.fps, info.frames)
        start = info.start + first / info.fps
        source = Part(reader, first) if first else reader
        # a film of one frame is a still picture, whatever rate it states; unless its own length is asked for
        look = (info.color, info.aspect, info.frames == 1 and settings.fit not in ("trim", "silence"))
        told: Any = {
            "said": tags_of(reader.container, Path(video)),
            "kind": info.kind,
            "screen": info.screen,
            "notes": tuple(_changes(info)),
        }
        yield source, Shown(info.width, info.height, rate, frames, start, *look, **told)


def check_shape(path: str | Path, width: int, height: int) -> None:
    """UserError for what no face could be seen in, or no encoder takes."""
    if min(width, height) < SMALLEST or max(width, height) > LARGEST:
        raise UserError(
            f"{path} is {width} × {height} pixels; a side must have {SMALLEST} to {LARGEST}, so crop or scale it first."
        )


def _changes(info: VideoInfo) -> Iterator[str]:
    if info.interlaced:
        yield "interlaced; whole frames were made of its fields by bwdif, at the same rate"
    if info.variable_rate and info.frames > 1:
        late = float(info.deviation() * 1000)
        yield f"of a variable rate; written at {float(info.fps):.4g} fps, each frame within {late:.1f} ms of its time"


def sound_part(
    video: str | Path, audio: str | Path | None, shown: Shown, cut: Cut, number: int | None = None
) -> tuple[Fraction | None, Fraction | None]:
    """Start on the sound file's own clock and length in seconds of what is heard; None: from the first, to the last."""
    if audio is None and is_sequence(video):
        raise UserError(f"{video} are pictures and have no sound; give a speech as well.")
    own = audio is None
    with suppress(OSError, ValueError):  # a file that is not there is told of when it is opened
        own = audio is None or Path(audio).samefile(video)
    if own and not cut.audio_start:
        # the video's own sound stays where it is against the picture, and ends with it
        return shown.start, None if cut.duration is None else shown.frames / shown.fps
    # another sound begins with the first frame
    return sound_start(audio or video, number) + cut.audio_start if cut.audio_start else None, cut.audio_duration
