"""Which of a file's sound tracks is heard."""

import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import UserError
from .opening import clean_tags, decoded, open_media
from .samples import piece_of

SILENT = 0.001
"""Of full scale: a track that never is louder (-60 dB) is silent."""
DEFAULT = 1
"""FFmpeg's flag of the track that players take."""

_log = logging.getLogger(__name__)


def audible(container: Any) -> bool:
    return any(decodable(stream) for stream in container.streams.audio)


def chosen_track(container: Any, path: Path, number: int | None = None) -> Any:
    """The stream of track `number` (from 0), or else the one a player takes, where it can be heard: of the default ones
    and then the others the first that is not silent. UserError where there is none."""
    tracks = container.streams.audio
    if number is not None and not (0 <= number < len(tracks) and decodable(tracks[number])):
        raise UserError(f"{path} has no audio track {number} that can be decoded; {_choice(tracks)}.")
    if not audible(container):
        raise UserError(f"{path} has no audio that can be decoded; {_choice(tracks)}.")
    if number is None and len(tracks) > 1:
        facts = path.stat()
        number = _heard_track(path, facts.st_mtime_ns, facts.st_size)
    return tracks[number or 0]


def decodable(stream: Any) -> bool:
    return stream.codec_context is not None and bool(stream.codec_context.sample_rate)


@lru_cache(maxsize=64)
def _heard_track(path: Path, changed: int, size: int) -> int:
    with open_media(path, "an audio file") as container:
        tracks = container.streams.audio
        fit = [i for i, track in enumerate(tracks) if decodable(track)]
        fit.sort(key=lambda i: not int(getattr(tracks[i], "disposition", 0) or 0) & DEFAULT)
        listed = _choice(tracks)
    number = next((i for i in fit if _is_heard(path, i)), fit[0])
    if number:
        _log.warning("%s: audio track %d is used, as the default or the first with sound; %s",
                     path, number, listed)  # fmt: skip
    return number


def _is_heard(path: Path, number: int) -> bool:
    with open_media(path, "an audio file") as container:
        frames = decoded(container, container.streams.audio[number])
        return any(abs(piece_of(frame).floats()).max(initial=0) > SILENT for frame in frames)


def _choice(tracks: Any) -> str:
    if not tracks:
        return "give a file with sound"
    listed = []
    for i, track in enumerate(tracks):
        known = track.codec_context
        kind = f"{known.name}, {known.layout.nb_channels} channels" if decodable(track) else "cannot be decoded"
        language = clean_tags(track.metadata).get("language", "und")
        listed.append(f"{i}: {kind}" + ("" if language == "und" else f", {language}"))
    return f"it has {'; '.join(listed)}"
