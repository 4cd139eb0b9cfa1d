"""The face finder that the nodes and the routes share."""

import atexit
from functools import lru_cache
from pathlib import Path

from ...latentsync.face.detect import FaceFinder
from .files import find_file


@lru_cache(maxsize=1)
def _loaded(path: Path) -> FaceFinder:
    finder = FaceFinder(path)
    atexit.register(finder.close)
    return finder


def face_finder() -> FaceFinder:
    """Loaded once and kept: MediaPipe starts threads for each one, and memory that threads had is not given back."""
    return _loaded(find_file("face-landmarker"))
