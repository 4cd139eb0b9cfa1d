"""Video in and out by PyAV: exact frames and time stamps, streamed; memory does not depend on the clip's length."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from av import CodecContext
from av.error import FFmpegError

from ..errors import UserError
from .animation import open_video
from .color import Scaler, has_alpha, hidden_alpha
from .fields import deinterlaced
from .hdr import HLG, PQ, tone_mapped
from .image import BACKGROUND, flattened
from .probe import VideoInfo, _decode, _video_stream, probe_container
from .spill import MOST_BYTES, Spill

HELD_FRAMES = 32
HELD_BYTES = 96 * 2**20
"""What the reader keeps of the frames it just decoded, for reading backwards: at most so many, at most so large."""


class VideoReader(AbstractContextManager["VideoReader"]):
    """Frames of a video by number, in any order, upright uint8 RGB (H, W, 3); a context manager. Ascending is one pass
    of the decoder; backwards goes by key frames, and a group of pictures longer than the 32 frames held in memory is
    decoded once into a temporary file."""

    def __init__(self, info: VideoInfo, container: Any = None, background: str = BACKGROUND) -> None:
        """container: the file, open already; the reader closes it. background: behind transparent pixels."""
        self.info = info
        self._container: Any = container
        self._recent: dict[int, Any] = {}  # last decoded frames, oldest first
        self._spill = Spill()
        turned = info.turn[0]
        self._size = (info.height, info.width) if turned else (info.width, info.height)
        if container is None:
            self._reopen()
        else:
            self._stream = _video_stream(container, info.path)
            self._seek(0)
        first = self._frame(0)
        self._background = background
        kinds, size = ("rgba", "rgba64le") if has_alpha(first) else ("rgb24", "rgb48le"), (first.width, first.height)
        self._scaler, self._deep = (Scaler(kind, *size, info.color, inward=True) for kind in kinds)

    @classmethod
    def open(cls, path: str | Path, background: str = BACKGROUND) -> "VideoReader":
        """Probe and read through one opened container."""
        container = open_video(path)
        try:
            return cls(probe_container(container, Path(path)), container, background)
        except BaseException:
            container.close()
            raise

    @property
    def container(self) -> Any:
        """The open file, for what it says beside its pictures."""
        return self._container

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._recent.clear()
        self._spill.clear()
        if self._container is not None:
            self._container.close()
            self._container = None

    def read(self, indices: Iterable[int]) -> Iterator[np.ndarray]:
        """One contiguous array, the caller's own, for each output frame number."""
        for i in indices:
            yield self._upright(self._seen(self._frame(self.info.source(i))))

    def read_deep(self, indices: Iterable[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The same, and beside it all that the file has of it: uint16, with alpha where there is any."""
        for i in indices:
            frame = self._frame(self.info.source(i))
            yield self._upright(self._seen(frame)), self._upright(self._whole(frame))

    def _seen(self, frame: Any) -> np.ndarray:
        if self.info.color.transfer in (PQ, HLG):
            return tone_mapped(self._deep(frame).to_ndarray()[..., :3], self.info.color.transfer)
        return flattened(self._scaler(frame).to_ndarray(), self._background)

    def _whole(self, frame: Any) -> np.ndarray:
        """As exact as the file: from RGB of 8 bits FFmpeg is off by one, and it leaves low bits of alpha empty."""
        bits = frame.format.components[-1].bits
        if frame.format.is_rgb and bits == 8:
            return self._scaler(frame).to_ndarray().astype(np.uint16) * 257
        deep = self._deep(frame).to_ndarray()
        deep[..., 3:] |= deep[..., 3:] >> bits
        return deep

    def _upright(self, image: np.ndarray) -> np.ndarray:
        transpose, flip_x, flip_y = self.info.turn
        if transpose:
            image = image.transpose(1, 0, 2)
        image = image[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
        return np.ascontiguousarray(image)  # rows of the decoder's picture are padded

    def _frame(self, k: int) -> Any:
        if k in self._recent:
            return self._recent[k]
        if (spilled := self._spill.get(k)) is not None:
            return spilled
        keep = range(0)
        if k <= self._position and self._recent and k - self._key_before(k) > self._room():
            self._spill.clear()
            keep = range(k + 1 - MOST_BYTES // self._bytes(), k + 1)
        if k <= self._position or self._key_before(k) > self._position + HELD_FRAMES:
            self._seek(k)
        for n, frame in self._frames:
            self._position = n
            self._recent.pop(n, None)
            if self.info.interlaced and n == self._origin > 0:
                continue  # made without the frame before it
            if frame.width != self._size[0] or frame.height != self._size[1]:
                raise UserError(self._changed_size(n, frame))
            self._recent[n] = frame
            if n in keep:
                self._spill.put(n, frame)
            while len(self._recent) > self._room():
                del self._recent[next(iter(self._recent))]
            if n == k:
                return frame
        raise UserError(f"{self.info.path} can no longer be decoded at frame {k}; was the file changed?")

    def _bytes(self) -> int:
        return sum(plane.buffer_size for plane in next(iter(self._recent.values())).planes)

    def _room(self) -> int:
        return max(4, min(HELD_FRAMES, HELD_BYTES // self._bytes()))

    def _changed_size(self, n: int, frame: Any) -> str:
        sizes = f"from {self._size[0]} × {self._size[1]} to {frame.width} × {frame.height}"
        return f"{self.info.path} changes its size {sizes} at frame {n}; cut it there, or convert it to one size first."

    def _key_before(self, k: int) -> int:
        index = self.info.index
        k -= self.info.interlaced and k > 0  # a whole frame is made with the one before it
        key = index.keys[max(0, bisect_right(index.keys, index.times[k]) - 1)]
        return bisect_left(index.times, key)

    def _reopen(self) -> None:
        if self._container is not None:
            self._container.close()
        self._container = open_video(self.info.path)
        self._stream = _video_stream(self._container, self.info.path)
        self._start(0, self._container.demux(self._stream))

    def _start(self, origin: int, packets: Iterable[Any]) -> None:
        self._origin, self._position = origin, origin - 1
        numbered = self._numbered(packets)
        self._frames = self._gapless(origin, deinterlaced(numbered) if self.info.interlaced else numbered)

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
        count, other = 0, hidden_alpha(self._stream)
        decoder = None if other is None else CodecContext.create(other, "r")
        with suppress(FFmpegError):  # the file ends in the middle of a packet
            for packet in packets:
                for frame in _decode(packet, decoder):
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
