"""Writing a video file: exact size, rate, color and sound, and never half a file under the final name."""

import errno
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from fractions import Fraction
from math import ceil, lcm
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError

from ..errors import UserError
from ..files import partial_path
from .audio_track import AudioTrack, open_soundtrack
from .color import Color, Scaler
from .opening import file_url, reason
from .sound import Sound

X264_OPTIONS = {"preset": "veryfast", "rc-lookahead": "10"}
VP9_OPTIONS = {"b": "0", "row-mt": "1", "cpu-used": "4", "deadline": "good"}

FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
"""File name endings that can be written, and their containers."""

STANDARD = {"comment"}  # metadata for which every container has a field of its own


class VideoWriter(AbstractContextManager["VideoWriter"]):
    """Writes uint8 RGB frames (H, W, 3) with a sound track; a context manager.

    H.264 (webm: VP9) of exactly this size and rate; odd sizes are stored without chroma subsampling, which cannot
    express them. The encoder and the file are opened at once. The file has a hidden name of its own until close();
    after an error nothing is left, and a file of that name from before is untouched.
    color: how to store the colors, VideoInfo.color for those of the source. aspect: VideoInfo.aspect.
    metadata: fields for the container, such as comment.
    """

    def __init__(
        self,
        path: str | Path,
        width: int,
        height: int,
        fps: Fraction,
        *,
        audio: AudioTrack | None = None,
        color: Color | None = None,
        aspect: Fraction = Fraction(1),
        crf: int = 16,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.path, self.fps, self.frames = Path(path), Fraction(fps), 0
        self._shape = (height, width, 3)
        self._color = color or Color()
        self._part = _checked(self.path)
        self._container: Any = None
        self._sound: Any = None
        with self._guard():
            form = FORMATS[self.path.suffix.lower()]
            own = not set(metadata or ()) <= STANDARD
            self._sound = source = None if audio is None else Sound(audio.path, audio.number)
            options = self._options(form, source, own)
            self._container = av.open(file_url(self._part), "w", format=form, options=options)
            self._stream = self._add_picture(form, crf, aspect)
            if audio is not None and source is not None:
                self._sound = open_soundtrack(audio, source, self._container)
            self._container.metadata.update(metadata or {})
            self._container.start_encoding()

    def _options(self, form: str, sound: Any, own: bool) -> dict[str, str]:
        if form not in ("mp4", "mov"):
            return {}
        rate = 1 if sound is None else sound.rate
        # A clock on which both lengths are whole numbers; on FFmpeg's of 1 ms they are not
        clock = lcm(self.fps.numerator, rate)
        # MP4 has fields of its own for some names, and keeps others only in this form
        flags = "+faststart+use_metadata_tags" if own else "+faststart"
        return {"movflags": flags, "movie_timescale": str(clock * ceil(1000 / clock) if clock < 2**31 else rate)}

    def _add_picture(self, form: str, crf: int, aspect: Fraction) -> Any:
        height, width, _ = self._shape
        vp9 = form == "webm"
        stream = self._container.add_stream("libvpx-vp9" if vp9 else "libx264", rate=self.fps)
        context = stream.codec_context
        context.width, context.height, context.time_base = width, height, 1 / self.fps
        context.pix_fmt = "yuv420p" if vp9 or width % 2 == height % 2 == 0 else "yuv444p"
        context.sample_aspect_ratio = aspect
        context.colorspace, context.color_range = self._color.matrix, self._color.range
        context.color_primaries, context.color_trc = self._color.primaries, self._color.transfer
        context.options = VP9_OPTIONS | {"crf": str(crf + 8)} if vp9 else X264_OPTIONS | {"crf": str(crf)}
        context.open()
        self._scaler = Scaler(context.pix_fmt, width, height, self._color, inward=False)
        return stream

    def __exit__(self, kind: object, *_: object) -> None:
        self.close() if kind is None else self.abort()

    def write(self, frame: np.ndarray) -> None:
        if frame.shape != self._shape or frame.dtype != np.uint8:
            raise ValueError(f"frame is {frame.dtype} {frame.shape}, not uint8 {self._shape}")
        with self._guard():
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts, picture.time_base = self.frames, 1 / self.fps
            picture = self._scaler(picture)
            picture.pts, picture.time_base = self.frames, 1 / self.fps
            self._container.mux(self._stream.encode(picture))
            self.frames += 1
            if self._sound is not None:
                self._sound.advance(self.frames / self.fps)

    def close(self) -> None:
        """Finish the file and give it its name; after this or an error, nothing happens."""
        if self._container is None:
            return
        with self._guard():
            if not self.frames:
                raise UserError(f"No frame was made for {self.path}; nothing was written.")
            self._container.mux(self._stream.encode(None))
            if self._sound is not None:
                self._sound.finish(self.frames / self.fps)
                self._sound.close()
            container, self._container = self._container, None
            container.close()
            self._part.replace(self.path)

    def abort(self) -> None:
        for thing in (self._sound, self._container):
            with suppress(FFmpegError, OSError, ValueError):
                if thing is not None:
                    thing.close()
        self._container = None
        with suppress(OSError):
            self._part.unlink(missing_ok=True)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except (FFmpegError, OSError) as error:
            self.abort()
            if getattr(error, "errno", None) == errno.ENOSPC:
                fault = f"The disk is full, so {self.path} could not be written; free some space and run again."
            else:
                advice = "choose another place or make it writable"
                fault = f"{self.path} could not be written ({reason(error)}); {advice}."
            raise UserError(fault) from error
        except BaseException:
            self.abort()
            raise


def _checked(path: Path) -> Path:
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the name of the video file to write.")
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{path.name} ends in {path.suffix!r}; a video can be written as {', '.join(FORMATS)}.")
    if not path.parent.is_dir():
        raise UserError(f"There is no folder {path.parent} to write {path.name} to; make it first.")
    return partial_path(path)
