"""Frames, frame rates and windows: exact arithmetic on fractions, no media."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, isfinite

from .errors import UserError
from .settings import FITS, WINDOW

NTSC = tuple(Fraction(n * 1000, 1001) for n in (24, 30, 48, 60, 120))
"""The rates that are written 23.976, 29.97, 47.952, 59.94, 119.88."""


@dataclass(frozen=True)
class Timeline:
    """Which source frame shows at each output frame. fps is exact (30000/1001 stays so); fit is one of FITS."""

    fps: Fraction
    frames: int
    source_frames: int
    fit: str

    @property
    def duration(self) -> Fraction:
        """Seconds from the first frame's start to the last one's end."""
        return self.frames / self.fps

    def time(self, i: int) -> Fraction:
        """Seconds at which output frame i appears."""
        return i / self.fps

    def source_index(self, i: int) -> int:
        if not 0 <= i < self.frames:
            raise IndexError(f"output frame {i} of {self.frames}")
        last = self.source_frames - 1
        if i <= last:
            return i
        if self.fit == "loop":
            return i % self.source_frames
        if self.fit == "pingpong" and last > 0:
            phase = i % (2 * last)  # 0 … last … 1, then again from 0: neither end is shown twice
            return min(phase, 2 * last - phase)
        return last

    def source_indices(self, start: int = 0, stop: int | None = None) -> Iterator[int]:
        """Source frames for output frames start … stop-1."""
        return (self.source_index(i) for i in range(start, self.frames if stop is None else stop))


@dataclass(frozen=True)
class Cut:
    """Which part of a video and of its speech is used, in seconds from the beginning of each; None: all the rest.

    A video's own sound goes with its picture. The audio_ fields are for another recording, or, where audio_start is
    above 0, for the own sound against its picture.
    """

    start: Fraction = Fraction(0)
    duration: Fraction | None = None
    audio_start: Fraction = Fraction(0)
    audio_duration: Fraction | None = None

    def __post_init__(self) -> None:
        for name, value in (("start", self.start), ("audio_start", self.audio_start)):
            if value < 0:
                raise UserError(f"{name} is {float(value):g} s; it must be 0 or more.")
        for name, value in (("duration", self.duration), ("audio_duration", self.audio_duration)):
            if value is not None and value <= 0:
                raise UserError(f"{name} is {float(value):g} s; it must be above 0.")

    def frames(self, fps: Fraction, frames: int) -> tuple[int, int]:
        """First frame and number of frames, of so many."""
        first = round(self.start * fps)
        if first >= frames:
            raise UserError(
                f"start is {float(self.start):g} s and the video lasts {float(frames / fps):.2f} s; start earlier."
            )
        rest = frames - first
        return first, rest if self.duration is None else min(rest, max(1, round(self.duration * fps)))


@dataclass(frozen=True)
class Window:
    """Frames start … stop-1 are computed together; those before keep belong to the window before."""

    start: int
    stop: int
    keep: int


def parse_spans(text: str) -> tuple[tuple[Fraction, Fraction | None], ...]:
    """Parts of a clip as "1.5-4, 10-12.5, 1:20-": start and end in seconds or minutes:seconds; None is the clip's end.

    UserError where it is not that, or a part has no length.
    """
    found = []
    for part in filter(None, (one.strip() for one in re.split(r"[,;]", text))):
        match = re.fullmatch(r"([\d:.]+)\s*-\s*([\d:.]*)", part)
        start, stop = (_seconds(time) if time else None for time in match.groups()) if match else (None, None)
        if match is None or start is None or (match[2] and stop is None) or (stop is not None and stop <= start):
            raise UserError(
                f'spans has {part!r}; give parts as start-end in seconds or minutes:seconds, such as "1.5-4, 1:20-".'
            )
        found.append((start, stop))
    return tuple(sorted(found, key=lambda span: span[0]))


def _seconds(time: str) -> Fraction | None:
    match = re.fullmatch(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?|\.\d+)", time)
    if match is None:
        return None
    hours, minutes, seconds = match.groups()
    return Fraction(int(hours or 0) * 3600 + int(minutes or 0) * 60) + Fraction(seconds)


def frames_of_spans(
    spans: Iterable[tuple[Fraction, Fraction | None]], fps: Fraction, frames: int
) -> tuple[tuple[int, int], ...]:
    """Half-open runs of frames that lie in these parts, in order, where they meet joined."""
    ends = ((round(start * fps), frames if stop is None else round(stop * fps)) for start, stop in spans)
    runs = ((min(frames, start), min(frames, stop)) for start, stop in ends)
    return tuple(joined_runs((start, stop) for start, stop in runs if start < stop))


def joined_runs(runs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Half-open runs in order, without overlaps."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(runs):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined


def typed_seconds(value: float) -> Fraction:
    """A time as it was typed: 0.1 is a tenth. UserError where it is no number."""
    if not isfinite(value):
        raise UserError(f"A time is {value}; give seconds as a number.")
    return Fraction(str(value))


def exact_rate(fps: Fraction | float) -> Fraction:
    """Frames per second as the fraction that is meant: 29.97 and 29.97003 are 30000/1001. UserError unless above 0."""
    rate = Fraction(fps).limit_denominator(1001) if isfinite(fps) else Fraction(0)
    if rate <= 0:
        raise UserError(f"The frame rate is {fps}; it must be above 0.")
    if isinstance(fps, float):
        return next((ntsc for ntsc in NTSC if abs(rate / ntsc - 1) < Fraction(5, 10**6)), rate)
    return rate


def fit_timeline(fps: Fraction, source_frames: int, audio_seconds: Fraction, fit: str, still: bool = False) -> Timeline:
    """How long the result is when picture and sound differ in length.

    loop, pingpong, hold, and every still picture: as long as the sound, ceil(seconds · fps) frames.
    trim: the shorter of the two. silence: as long as the picture. Never less than one frame.
    """
    fps, seconds = Fraction(fps), Fraction(audio_seconds)
    if fit not in FITS:
        raise UserError(f"fit is {fit!r}; it must be one of {', '.join(FITS)}.")
    if fps <= 0 or source_frames < 1 or seconds < 0:
        raise ValueError(f"fps {fps}, {source_frames} source frames, {seconds} s of audio")
    spoken = ceil(seconds * fps)
    if still or fit in ("loop", "pingpong", "hold"):
        frames = spoken
    elif fit == "trim":
        frames = min(source_frames, spoken)
    else:
        frames = source_frames
    return Timeline(fps, max(1, frames), source_frames, fit)


def windows(start: int, stop: int, size: int = WINDOW) -> list[Window]:
    """Windows of `size` that cover start … stop-1; the last is shifted back over its neighbour, not run short."""
    if stop - start < size:
        return [Window(start, stop, start)] if stop > start else []
    full = [Window(a, a + size, a) for a in range(start, stop - size + 1, size)]
    covered = full[-1].stop
    return full if covered == stop else [*full, Window(stop - size, stop, covered)]
