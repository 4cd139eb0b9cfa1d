"""The sound of a file: samples at the times that its stamps say, for hearing, measuring and writing alike."""

import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from av.error import FFmpegError

from ..errors import UserError
from .opening import exact, open_media
from .samples import Piece, piece_of, silence
from .tracks import chosen_track

RATES = (1000, 2_000_000)
"""Samples a second: below, no speech is left; above, it is a mistake in the file."""
TOLERANCE = Fraction(8, 1000)
"""How far a stamp may be from where the samples before it end. Containers round stamps (Matroska and FLV to 1 ms) and
recorders jitter; to follow each stamp would cut or fill a few samples all the time, and every one is a click. 8 ms is
less than half of the shortest common packet (Opus and AAC: 20 ms) and keeps lips and sound within 10 ms."""
SETTLED = Fraction(1, 4)
"""Seconds for which stamps must stay away before they are followed: a late packet is caught up with by the next."""
LONGEST_OVERLAP = Fraction(1)
"""Stamps that go further back are a clock that was set anew, as where recordings were put together."""
LONGEST_HOLE = Fraction(600)
"""Stamps that leap further are a fault of the file."""
_log = logging.getLogger(__name__)


Stamped = tuple[Fraction | None, Piece]
"""With the time that its file states, on the file's clock."""


class Sound(AbstractContextManager["Sound"]):
    """One sound track of an open file."""

    def __init__(self, path: str | os.PathLike[str], number: int | None = None) -> None:
        """number: of the sound track, from 0; None is the one to be heard. UserError where there is none."""
        self.path = Path(path)
        self.container = open_media(path, "an audio file")
        try:
            self.stream = chosen_track(self.container, self.path, number)
            _check_rate(self.rate, self.path)
        except BaseException:
            self.container.close()
            raise

    @property
    def number(self) -> int:
        """Of this track among the file's sound tracks."""
        return [stream.index for stream in self.container.streams.audio].index(self.stream.index)

    @property
    def codec(self) -> str:
        return self.stream.codec_context.name

    @property
    def rate(self) -> int:
        return self.stream.codec_context.sample_rate

    @property
    def channels(self) -> int:
        return self.stream.codec_context.layout.nb_channels

    @property
    def origin(self) -> Fraction:
        """When the first sample is heard, on the file's clock; encoder priming lies before it."""
        return origin(self.stream)

    @property
    def stated_end(self) -> Fraction | None:
        """MP4 and MOV state the length to the sample; elsewhere it is an estimate or the decoder trims by itself."""
        if "mp4" not in self.container.format.name.split(",") or not self.stream.duration:
            return None
        return self.origin + self.stream.duration * exact(self.stream.time_base)

    def pieces(self, start: Fraction | None = None) -> Iterator[Piece]:
        """What is heard from `start` (None: the first sample) on, each piece where the one before it ends. Decodes;
        once for an open file."""
        begin = self.origin if start is None else start
        if self.origin - begin > LONGEST_HOLE:
            late = f"starts {float(self.origin - begin):.0f} s after its video"
            raise UserError(f"The audio of {self.path} {late}; combine them again in a video editor.")
        pieces = placed(_decoded(self), self.origin, self.path)
        end = self.stated_end
        return _from(pieces if end is None else _until(pieces, end), begin)

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.container.close()


def origin(stream: Any) -> Fraction:
    return Fraction(0) if stream.start_time is None else stream.start_time * exact(stream.time_base)


def _check_rate(rate: int, path: Path) -> None:
    if not RATES[0] <= rate <= RATES[1]:
        wanted = f"{RATES[0]} to {RATES[1]} Hz can be used"
        raise UserError(f"The audio of {path} has {rate} samples per second; {wanted}, so export it again.")


def _decoded(sound: Sound) -> Iterator[Stamped]:
    """Pieces with their stamps. Damaged packets leave a hole; at the end, where no stamp follows, they are silence."""
    base = exact(sound.stream.time_base)
    lost: Stamped | None = None
    last: Piece | None = None
    for packet in packets_of(sound.container, sound.stream):
        try:
            frames = packet.decode()
        except FFmpegError:
            if packet.pts is not None and packet.duration and last is not None:
                lost = packet.pts * base, silence(last, round(packet.duration * base * last.rate))
            continue
        for frame in frames:
            lost, last = None, piece_of(frame)
            _check_rate(last.rate, sound.path)
            yield (None if frame.pts is None else frame.pts * base), last
    if lost is not None:
        yield lost


def packets_of(container: Any, stream: Any) -> Iterator[Any]:
    packets = container.demux(stream)
    while True:
        try:
            yield next(packets)
        except (StopIteration, FFmpegError):  # the file may end in the middle of a packet
            return


def placed(stamped: Iterable[Stamped], origin: Fraction, path: Path) -> Iterator[Piece]:
    """The one place where samples get their time: each piece begins where the one before it ends.

    Holes in the stamps are filled with silence; of what overlaps, what came first is kept. A clock that was set back
    goes on from where it was. origin: time of the first piece where it has no stamp.
    """
    source, ahead = iter(stamped), deque[Stamped]()
    due: Fraction | None = None
    shift = Fraction(0)
    while item := ahead.popleft() if ahead else next(source, None):
        stamp, piece = item
        if due is None:
            due = origin if stamp is None else stamp
        off = Fraction(0) if stamp is None else stamp + shift - due
        if abs(off) > TOLERANCE:
            _look_ahead(source, ahead)
            off = _lasting([item, *ahead], due - shift)
        else:
            off = Fraction(0)
        if off > LONGEST_HOLE:
            at = f"jump by {float(off):.0f} s after {float(due - origin):.2f} s"
            raise UserError(f"The timestamps of the audio of {path} {at}; convert it to a file that plays through.")
        if off < -LONGEST_OVERLAP:
            _log.warning("%s: the timestamps of its audio jump back by %.1f s; it continues from there", path, -off)
            shift, off = shift - off, Fraction(0)
        if off > 0:
            hole = replace(silence(piece, round(off * piece.rate)), time=due)
            due = hole.end
            yield hole
        piece = replace(piece, samples=piece.samples[max(0, round(-off * piece.rate)) :], time=due)
        due = piece.end
        if len(piece.samples):
            yield piece


def _look_ahead(source: Iterator[Stamped], ahead: deque[Stamped]) -> None:
    seconds = sum((piece.end - piece.time for _, piece in ahead), Fraction(0))
    while seconds < SETTLED and (item := next(source, None)):
        ahead.append(item)
        seconds += item[1].end - item[1].time


def _lasting(items: Iterable[Stamped], due: Fraction) -> Fraction:
    """By how much all of these stamps are late or early at least; 0 where they are not."""
    offs = []
    for stamp, piece in items:
        if stamp is not None:
            offs.append(stamp - due)
        due += piece.end - piece.time
    least = min(offs, key=abs)
    same = all(off > TOLERANCE for off in offs) or all(off < -TOLERANCE for off in offs)
    return least if same else Fraction(0)


def _from(pieces: Iterable[Piece], begin: Fraction) -> Iterator[Piece]:
    """From a time on: silence where the sound begins later, cut where it begins earlier."""
    first = True
    for piece in pieces:
        if first and piece.time > begin:
            count = round((piece.time - begin) * piece.rate)
            yield replace(silence(piece, count), time=begin)
        cut = round((begin - piece.time) * piece.rate) if piece.time < begin else 0
        first = first and cut >= len(piece.samples)
        if cut < len(piece.samples):
            yield replace(piece, samples=piece.samples[cut:], time=max(piece.time, begin)) if cut else piece


def _until(pieces: Iterable[Piece], end: Fraction) -> Iterator[Piece]:
    for piece in pieces:
        kept = round((end - piece.time) * piece.rate)
        if kept <= 0:
            return
        yield piece if kept >= len(piece.samples) else replace(piece, samples=piece.samples[:kept])
