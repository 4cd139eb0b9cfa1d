"""What a run has finished, kept beside its output: after a crash the same run goes on there, not from the start.

The picture is encoded in chunks of CHUNK frames, each by an encoder of its own that begins with a key frame. Packets of
a finished chunk are written down; a run that goes on puts them into the file as they are. So the frames are those of an
uninterrupted run, and nothing is computed twice but the last chunk.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any
from zlib import crc32

import av
from filelock import FileLock, Timeout

from ..files import atomic_path, parse_json, remove_partial_files
from .sequence import is_sequence, pictures_of

CHUNK = 240
"""Frames: about 10 s, a usual distance of key frames; a crash loses at most so many."""
_HEAD = struct.Struct("<qqqBQ")
_CHECK = struct.Struct("<I")  # of all that comes before, at a chunk's end


@dataclass(frozen=True)
class EncodedPacket:
    """pts, dts and duration in frames."""

    pts: int
    dts: int
    duration: int
    key: bool
    data: bytes

    @classmethod
    def of(cls, packet: Any) -> "EncodedPacket":
        return cls(packet.pts, packet.dts, packet.duration or 0, packet.is_keyframe, bytes(packet))

    def packet(self, stream: Any, frame: Fraction) -> Any:
        """An av.Packet of this stream. frame: seconds that a frame lasts."""
        made = av.Packet(self.data)
        made.pts, made.dts, made.duration, made.time_base = self.pts, self.dts, self.duration, frame
        made.is_keyframe, made.stream = self.key, stream
        return made


class Journal:
    """A folder beside the output. It is for one run at a time; `finished` counts its complete chunks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.finished = 0
        while _is_whole(self._chunk(self.finished)):
            self.finished += 1

    @property
    def frames(self) -> int:
        """Finished frames."""
        return self.finished * CHUNK

    def _chunk(self, number: int) -> Path:
        return self.folder / f"chunk{number:06d}"

    def save_chunk(self, packets: Iterable[EncodedPacket]) -> None:
        known = 0
        with atomic_path(self._chunk(self.finished)) as part, part.open("wb") as file:
            for one in packets:
                for data in (_HEAD.pack(one.pts, one.dts, one.duration, one.key, len(one.data)), one.data):
                    file.write(data)
                    known = crc32(data, known)
            file.write(_CHECK.pack(known))
        self.finished += 1

    def packets(self) -> Iterator[list[EncodedPacket]]:
        """Of every finished chunk."""
        for number in range(self.finished):
            data, at, found = self._chunk(number).read_bytes(), 0, []
            while at < len(data) - _CHECK.size:
                pts, dts, duration, key, size = _HEAD.unpack_from(data, at)
                at += _HEAD.size
                found.append(EncodedPacket(pts, dts, duration, bool(key), data[at : at + size]))
                at += size
            yield found

    def path(self, name: str) -> Path:
        """Of something else that is kept."""
        return self.folder / name


def _is_whole(chunk: Path) -> bool:
    """A computer that loses its power may leave part of a file under its name."""
    with suppress(OSError):
        data = chunk.read_bytes()
        return len(data) > _CHECK.size and _CHECK.pack(crc32(data[: -_CHECK.size])) == data[-_CHECK.size :]
    return False


def fingerprint(facts: Mapping[str, Any], *files: str | os.PathLike[str] | None) -> str:
    """One string for a run: another setting, model or file (by size and time of change) makes another."""
    given = [Path(f) for f in files if f is not None]
    paths = [path for one in given for path in (pictures_of(one).values() if is_sequence(one) else [one])]
    stats = [(str(path.resolve()), (s := path.stat()).st_size, s.st_mtime_ns) for path in paths]
    text = json.dumps([stats, facts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()


def journal_folder(out: Path) -> Path:
    return out.with_name(f".{out.name}.unfinished")


@contextmanager
def open_journal(out: str | Path, key: str) -> Iterator[Journal | None]:
    """The journal of a run, with what an earlier one of the same key has finished. It goes when the run is complete,
    and where it holds nothing. None while another process uses it."""
    out = Path(out)
    folder = journal_folder(out)
    lock = FileLock(folder / "lock", timeout=0)
    keep = False
    try:
        folder.mkdir(exist_ok=True)
        lock.acquire()
        _take_over(folder, key, out)
    except (OSError, Timeout):  # no place for it, or another run's: the output itself may still be written
        lock.release()
        yield None
        return
    try:
        journal = Journal(folder)
        try:
            yield journal
        except BaseException:
            keep = {path.name for path in folder.iterdir()} > {"lock", "run.json"}
            raise
    finally:
        for path in () if keep else folder.iterdir():
            with suppress(OSError):  # Windows removes the lock's file when it is released
                path.unlink()
        lock.release()
        with suppress(OSError):  # not empty: something is kept, or the next run has begun by now
            folder.rmdir()


def _take_over(folder: Path, key: str, out: Path) -> None:
    """What an earlier run left goes, unless it is of this very run."""
    state: Any = {}
    with suppress(OSError, ValueError):
        state = parse_json((folder / "run.json").read_text())
    known = state if isinstance(state, dict) else {}
    if isinstance(known.get("pid"), int):
        remove_partial_files(out, known["pid"])
    for path in folder.iterdir():
        if path.name != "lock" and (known.get("key") != key or path.suffix == ".part"):
            path.unlink()
    with atomic_path(folder / "run.json") as part:
        part.write_text(json.dumps({"key": key, "pid": os.getpid()}))
