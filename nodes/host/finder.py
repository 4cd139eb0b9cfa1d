"""The face finder that the nodes share."""

import atexit
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from threading import RLock

from ...latentsync.face.detect import FaceFinder
from .files import find_file

_turn = RLock()


@lru_cache(maxsize=1)
def _loaded(path: Path) -> FaceFinder:
    finder = FaceFinder(path)
    atexit.register(finder.close)
    return finder


@contextmanager
def face_finder() -> Iterator[FaceFinder]:
    """Loaded once and kept: MediaPipe starts threads for each one, and memory that threads had is not given back.

    One user at a time, the others wait.
    """
    with _turn:
        yield _loaded(find_file("face-landmarker"))
