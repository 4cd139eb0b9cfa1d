"""Media files as FFmpeg opens them: plain files under any name, whatever is in their tags."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.error import FFmpegError

from ..errors import UserError

PLAIN_FILES = {"protocol_whitelist": "file,crypto,data"}
"""A playlist may name parts beside it, but no address in a network."""


ANY_TAGS: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
"""Tags are written in many encodings, which is no reason to refuse a file. From PyAV 19 on: clean_tags."""


def clean_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Names in small letters; bytes that are no UTF-8, which PyAV 19 hands on as halves of characters, replaced."""
    return {_clean(name).lower(): _clean(text) for name, text in tags.items()}


def _clean(text: str) -> str:
    return text.encode(errors="surrogateescape").decode(errors="replace")


def exact(rational: Any) -> Fraction:
    """A rate, a time base or a ratio of PyAV; 0 where it is not stated. From PyAV 19 on they are numbers of its own,
    whose sums and products are rounded."""
    if not rational or not rational.denominator:
        return Fraction(0)
    return Fraction(rational.numerator, rational.denominator)


def reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def file_url(path: str | os.PathLike[str]) -> str:
    """FFmpeg takes what stands before a colon as a protocol ("12:30 take.wav", "concat:a|b") unless it is told."""
    return f"file:{os.fspath(path)}"


def open_media(path: str | os.PathLike[str], kind: str, **options: str) -> Any:
    """The opened container; UserError where the path is no media file. kind: "a video", "an audio file". options: of
    FFmpeg's demuxer."""
    path = Path(path)
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder; give the path of {kind} in it.")
        if not path.exists():
            raise UserError(f"There is no file {path}; give the path of {kind}.")
        container = av.open(file_url(path), options=PLAIN_FILES | options, **ANY_TAGS)
    except UnicodeError as error:
        advice = "rename it with plain letters"
        raise UserError(f"{path} has a name that this system cannot pass on to FFmpeg; {advice}.") from error
    except (FFmpegError, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as {kind} ({reason(error)}); give a file that plays.") from error
    if container.format.name == "tty":  # FFmpeg draws any text file as a picture
        container.close()
        raise UserError(f"{path} is a text file; give the path of {kind}.")
    return container


def decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Frames of a stream, damaged packets left out."""
    with contextlib.suppress(FFmpegError):  # the file ends in the middle of a packet
        for packet in container.demux(stream):
            with contextlib.suppress(FFmpegError):
                yield from packet.decode()
