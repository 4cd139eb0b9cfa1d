"""Faces and voices that come with the package, for people who have no files at hand."""

from dataclasses import dataclass
from pathlib import Path

from ..weights.registry import ASSETS


@dataclass(frozen=True)
class Example:
    """title: how it is offered. credit: whose it is, and under which license."""

    path: Path
    title: str
    credit: str


_MADE = "made with LatentSync nano from a frame of LatentSync's demonstration video (Apache-2.0)"
_SAID = "speech made with flite (CMU ARCTIC, free to use)"
FACES = (
    Example(ASSETS / "astronaut.jpg", "Picture: an astronaut", "Eileen Collins, NASA, public domain"),
    Example(ASSETS / "samples/face.mp4", "Video: one person", _MADE),
    Example(ASSETS / "samples/two_people.mp4", "Video: two people", _MADE),
)
VOICES = (
    Example(ASSETS / "voice.flac", "A sentence", _SAID),
    Example(ASSETS / "samples/voice_left.flac", "The first of two people", _SAID),
    Example(ASSETS / "samples/voice_right.flac", "The second of two people", _SAID),
)


def of_folder(paths: list[Path]) -> tuple[Example, ...]:
    """Those of the person who runs the app."""
    return tuple(Example(path, path.name, "") for path in paths)
