"""Video in and out by PyAV: exact frames and time stamps, streamed; memory does not depend on the clip's length."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from av.error import FFmpegError

from ..errors import UserError
from .color import Scaler
from .opening import open_media
from .probe import VideoInfo, _decode, _video_stream, probe_container

HELD_FRAMES = 32
HELD_BYTES = 96 * 2**20
"""What the reader keeps of the frames it just decoded, for reading backwards: at most so many, at most so large."""


class VideoReader(AbstractContextManager["VideoReader"]):
    """Frames of a video by number, in any order, upright uint8 RGB (H, W, 3); a context manager. Ascending is one pass
    of the decoder; backwards goes by key frames. At most 32 decoded frames are held."""

    def __init__(self, info: VideoInfo, container: Any = None) -> None:
        """container: the file, open already; the reader closes it."""
        self.info = info
        self._container: Any = container
        self._recent: dict[int, Any] = {}  # last decoded frames, oldest first
        if container is None:
            self._reopen()
        else:
            self._stream = _video_stream(container, info.path)
            self._seek(0)
        first = self._frame(0)
        self._scaler = Scaler("rgb24", first.width, first.height, info.color, inward=True)

    @classmethod
    def open(cls, path: str | Path) -> "VideoReader":
        """Probe and read through one opened container."""
        container = open_media(path, "a video")
        try:
            return cls(probe_container(container, Path(path)), container)
        except BaseException:
            container.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._recent.clear()
        if self._container is not None:
            self._container.close()
            self._container = None

    def read(self, indices: Iterable[int]) -> Iterator[np.ndarray]:
        """One contiguous array, the caller's own, for each output frame number."""
        transpose, flip_x, flip_y = self.info.turn
        for i in indices:
            image = self._scaler(self._frame(self.info.source(i))).to_ndarray()
            if transpose:
                image = image.transpose(1, 0, 2)
            image = image[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
            yield np.ascontiguousarray(image)  # rows of the decoder's picture are padded

    def _frame(self, k: int) -> Any:
        if k in self._recent:
            return self._recent[k]
        if k <= self._position or self._key_before(k) > self._position + HELD_FRAMES:
            self._seek(k)
        for n, frame in self._frames:
            self._position = n
            self._recent.pop(n, None)
            self._recent[n] = frame
            room = max(4, min(HELD_FRAMES, HELD_BYTES // sum(plane.buffer_size for plane in frame.planes)))
            while len(self._recent) > room:
                del self._recent[next(iter(self._recent))]
            if n == k:
                return frame
        raise UserError(f"{self.info.path} can no longer be decoded at frame {k}; was the file changed?")

    def _key_before(self, k: int) -> int:
        index = self.info.index
        key = index.keys[max(0, bisect_right(index.keys, index.times[k]) - 1)]
        return bisect_left(index.times, key)

    def _reopen(self) -> None:
        if self._container is not None:
            self._container.close()
        self._container = open_media(self.info.path, "a video")
        self._stream = _video_stream(self._container, self.info.path)
        self._start(0, self._container.demux(self._stream))

    def _start(self, origin: int, packets: Iterable[Any]) -> None:
        self._position = origin - 1
        self._frames = self._gapless(origin, self._numbered(packets))

    def _seek(self, k: int) -> None:
        """To the key frame before frame k; the file is opened again where the container cannot find it."""
        if self.info.index.counted:
            return self._reopen()
        wanted = self.info.index.times[self._key_before(k)]
        with suppress(FFmpegError):
            self._container.seek(wanted, stream=self._stream, backward=True, any_frame=False)
            packets = self._container.demux(self._stream)
            for packet in packets:
                if packet.size and packet.is_keyframe:
                    if packet.pts is None or packet.pts > wanted or packet.pts not in self.info.index.keys:
                        break
                    return self._start(bisect_left(self.info.index.times, packet.pts), chain([packet], packets))
        return self._reopen()

    def _numbered(self, packets: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """(source frame number, frame) as they are decoded."""
        count = 0
        with suppress(FFmpegError):  # the file ends in the middle of a packet
            for packet in packets:
                for frame in _decode(packet):
                    number = -1 if frame.pts is None else bisect_right(self.info.index.times, frame.pts) - 1
                    yield (count if self.info.index.counted else number), frame
                    count += 1

    def _gapless(self, origin: int, numbered: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        """Every number from origin on, once; a frame that cannot be decoded is replaced by the one before it."""
        due, held = origin, None
        for n, frame in numbered:
            if n < due:  # leading pictures of an open group, which need the group before
                continue
            for missing in range(due, n):
                yield missing, held or frame
            yield n, frame
            due, held = n + 1, frame
        if held is not None:
            for missing in range(due, len(self.info.index.times)):
                yield missing, held
