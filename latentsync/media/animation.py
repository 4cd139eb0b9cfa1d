"""Moving pictures that FFmpeg does not take for films: animated WebP and AVIF (by Pillow), and JPEGs in a row."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
from PIL import Image

from .image import is_animation
from .opening import file_url, open_media
from .sequence import is_sequence, open_sequence

SHORTEST, INSTEAD = 10, 100
"""Browsers show a frame that claims 10 ms or less for 100."""
BASE = Fraction(1, 1000)
AVIF_BRANDS = ("avif", "avis")


def open_video(path: str | Path) -> Any:
    """A film as opening.open_media opens it, or what acts like it."""
    if is_sequence(path):
        return open_sequence(path)
    container = open_media(path, "a video")
    try:
        name, brand = container.format.name, container.metadata.get("major_brand", "")
        moves = (name.endswith("_pipe") or name == "image2" or brand in AVIF_BRANDS) and is_animation(path)
    except BaseException:
        container.close()
        raise
    if not moves:
        return container
    container.close()
    with Path(path).open("rb") as file:
        jpeg = file.read(2) == b"\xff\xd8"
    return av.open(file_url(path), format="mjpeg") if jpeg else Animation(path)


class Animation:
    """An animated picture behind the few calls that probe and reader make to a container of PyAV."""

    def __init__(self, path: str | Path) -> None:
        self.image = Image.open(path, formats=["WEBP", "AVIF"])
        context = SimpleNamespace(is_open=True, sample_aspect_ratio=None, name="webp", thread_type="AUTO")
        rates: Any = dict.fromkeys(("guessed_rate", "average_rate", "base_rate"))
        self.stream = SimpleNamespace(codec_context=context, time_base=BASE, type="video", metadata={}, **rates)
        self.streams = SimpleNamespace(video=[self.stream], audio=[])
        self.format, self.metadata = SimpleNamespace(name="pillow"), {}

    def demux(self, _stream: Any) -> "Iterator[Picture]":
        time = 0
        for number in range(getattr(self.image, "n_frames", 1)):
            picture = Picture(self, number, time)
            yield picture
            time += picture.duration

    def decode(self, number: int, time: int) -> Any:
        self.image.seek(number)
        frame = av.VideoFrame.from_ndarray(np.asarray(self.image.convert("RGBA")), format="rgba")
        frame.pts, frame.time_base = time, BASE
        return frame

    def seek(self, *_args: Any, **_more: Any) -> None:
        """Decoding begins at the first frame, as it does anyway."""

    def close(self) -> None:
        self.image.close()

    def __enter__(self) -> "Animation":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Picture:
    """A packet of an animation."""

    size, is_discard = 1, False

    def __init__(self, owner: Animation, number: int, time: int) -> None:
        self.owner, self.number, self.pts, self.is_keyframe = owner, number, time, number == 0
        self._frame: Any = None

    @property
    def duration(self) -> int:
        """In milliseconds; Pillow knows it once a frame is decoded."""
        self.decode()
        stated = int(self.owner.image.info.get("duration") or 0)
        return stated if stated > SHORTEST else INSTEAD

    def decode(self) -> list[Any]:
        if self._frame is None:
            self._frame = self.owner.decode(self.number, self.pts)
        return [self._frame]
