"""A film as pictures, one file for each frame, under a name with its number in it: shot/face_%04d.png."""

import glob
import os
import re
import shutil
import struct
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import av
from av.error import FFmpegError
from filelock import FileLock, Timeout

from ..errors import UserError
from .opening import PLAIN_FILES, file_url, reason

NUMBER = re.compile(r"%(?:0\d+)?d")
READ = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
CONTAINER = "image2"
"""FFmpeg's name for pictures in a row."""
FIRST = 1
RATE = Fraction(25)
"""Of what states no rate; runs take Settings.still_fps."""
LOCK = "lock"
_IHDR_ENDS = 33


def is_sequence(path: str | Path) -> bool:
    """Whether a name stands for pictures in a row. A file of this very name is itself."""
    name, ending = Path(path).name, Path(path).suffix.lower()
    return bool(NUMBER.search(name)) and name.count("%") == 1 and ending in READ and not os.path.lexists(path)


def pictures_of(path: str | Path) -> dict[int, Path]:
    """Those that are there, by their numbers, in order."""
    path, found = Path(path), {}
    before, after = NUMBER.split(path.name)
    with suppress(OSError):
        for one in path.parent.iterdir():
            digits = one.name[len(before) : len(one.name) - len(after)]
            if re.fullmatch("[0-9]+", digits) and path.name % int(digits) == one.name:
                found[int(digits)] = one
    return dict(sorted(found.items()))


def sound_of(path: Path) -> Path:
    """The name of the sound beside pictures that are written: face_sound.wav."""
    return path.with_name(NUMBER.sub("sound", path.name)).with_suffix(".wav")


def open_sequence(path: str | Path) -> Any:
    """An opened container; UserError where pictures are missing."""
    path, numbers = Path(path), list(pictures_of(path))
    if not numbers:
        raise UserError(f"There are no pictures {path}, such as {path.name % FIRST}; give the name that they have.")
    if hole := next((a + 1 for a, b in pairwise(numbers) if b > a + 1), None):
        last = path.name % numbers[-1]
        raise UserError(f"Of the pictures {path} up to {last} there is no {path.name % hole}; give all, or a part.")
    url = str(path.parent).replace("%", "%%") + os.sep + path.name
    options = {"framerate": str(RATE), "start_number": str(numbers[0]), "start_number_range": "1"}
    try:
        return av.open(file_url(url), format=CONTAINER, options=PLAIN_FILES | options)
    except (FFmpegError, OSError, ValueError) as error:
        raise UserError(f"The pictures {path} cannot be read ({reason(error)}); give PNG or JPEG files.") from error


class Pictures:
    """What writes them, behind the calls that VideoWriter makes to a container of PyAV: a PNG for each frame, and the
    sound as WAV beside them. All lie in a hidden folder until take_places()."""

    def __init__(self, path: Path, part: Path) -> None:
        self.path, self.part = path, part
        self.format, self.metadata = SimpleNamespace(name="wav"), {}
        self.codec_context: Any = None
        self._sound: Any = None
        self._comment = b""
        self._written = 0
        self._new = not path.parent.exists()
        _remove_abandoned(path)
        part.mkdir(parents=True)
        self._lock = FileLock(part / LOCK)
        self._lock.acquire()

    @property
    def streams(self) -> Any:
        return SimpleNamespace(audio=self._sound.streams.audio if self._sound else ())

    def add_stream(self, codec: str, rate: Any) -> Any:
        """The one of the pictures is this object itself."""
        if codec == "png":
            self.codec_context = av.CodecContext.create(codec, "w")
            return self
        sound = file_url(self.part / sound_of(self.path).name)
        self._sound = av.open(sound, "w", format="wav", options={"rf64": "auto"})  # above 4 GB
        return self._sound.add_stream(codec, rate=rate)

    def start_encoding(self) -> None:
        if self._sound:
            self._sound.metadata.update(self.metadata)
            self._sound.start_encoding()
        if text := self.metadata.get("comment"):
            body = b"iTXtComment\0\0\0\0\0" + text.encode()
            self._comment = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", crc32(body))

    def encode(self, frame: Any) -> list[Any]:
        """Writes files; there is nothing to mux."""
        for packet in self.codec_context.encode(frame):
            data, name = bytes(packet), self.path.name % (FIRST + self._written)
            (self.part / name).write_bytes(data[:_IHDR_ENDS] + self._comment + data[_IHDR_ENDS:])
            self._written += 1
        return []

    def mux(self, packets: Any) -> None:
        if self._sound and packets:
            self._sound.mux(packets)

    def close(self) -> None:
        if self._sound:
            self._sound.close()

    def take_places(self) -> None:
        """The new pictures in place of those that were there under this name, of which none stays."""
        old = set(pictures_of(self.path).values())
        for made in sorted(self.part.iterdir()):
            if made.name != LOCK:
                old.discard(made.replace(self.path.parent / made.name))
        for one in old:
            one.unlink()
        self.discard()

    def discard(self) -> None:
        self._lock.release()
        shutil.rmtree(self.part, ignore_errors=True)
        with suppress(OSError):  # not empty, by now
            if self._new:
                self.path.parent.rmdir()


def _remove_abandoned(path: Path) -> None:
    """What a process that was killed has left: nobody holds its lock."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with suppress(OSError, Timeout):
            FileLock(part / LOCK, timeout=0).acquire().lock.release()
            shutil.rmtree(part, ignore_errors=True)
