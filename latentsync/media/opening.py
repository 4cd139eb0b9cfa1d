"""Media files as FFmpeg opens them: plain files under any name, whatever is in their tags."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
from av.error import FFmpegError

from ..errors import UserError

PLAIN_FILES = {"protocol_whitelist": "file,crypto,data"}
"""A playlist may name parts beside it, but no address in a network."""


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
        # tags are written in many encodings and are no reason to refuse a file
        container = av.open(file_url(path), options=PLAIN_FILES | options, metadata_errors="replace")
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
