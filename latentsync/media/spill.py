"""Decoded frames on disk: a long group of pictures is decoded once to be read backwards, not for each few frames."""

import tempfile
from typing import Any

import av
import numpy as np

MOST_BYTES = 4 * 2**30
"""On disk at a time. A group that is larger is decoded once for each so much of it."""


class Spill:
    """Frames of one size and format by number, in a temporary file without a name."""

    def __init__(self) -> None:
        self._file: Any = None
        self._places: dict[int, int] = {}
        self._kind: Any = None

    def clear(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._places, self._kind = None, {}, None

    def put(self, number: int, frame: Any) -> None:
        """Nothing is kept where the disk is full: then frames are decoded again."""
        copy = av.VideoFrame(frame.width, frame.height, frame.format.name)
        for plane, target in zip(frame.planes, copy.planes, strict=True):
            rows = np.frombuffer(bytes(plane), np.uint8).reshape(-1, abs(plane.line_size))
            into = np.frombuffer(bytes(target), np.uint8).reshape(-1, abs(target.line_size)).copy()
            width = min(rows.shape[1], into.shape[1])
            into[: len(rows), :width] = rows[: len(into), :width]
            target.update(into.tobytes())
        data = b"".join(bytes(plane) for plane in copy.planes)
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 — closed by clear
                self._kind = frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range
            self._places[number] = self._file.seek(0, 2)
            self._file.write(data)
        except OSError:
            self.clear()

    def get(self, number: int) -> Any:
        """None where it is not here."""
        if number not in self._places:
            return None
        width, height, name, space, span = self._kind
        frame = av.VideoFrame(width, height, name)
        self._file.seek(self._places[number])
        for plane in frame.planes:
            plane.update(self._file.read(plane.buffer_size))
        frame.colorspace, frame.color_range = space, span
        return frame
