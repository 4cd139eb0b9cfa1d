"""Writing a video file: exact size, rate, color and sound, and never half a file under the final name."""

import errno
import os
from collections.abc import Iterable, Iterator, Mapping
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
from ..settings import Settings
from .audio_track import AudioTrack, open_soundtrack
from .color import Color, Scaler, of_rgb
from .encoding import ENDINGS, Encoding, Kind, choose_encoding, with_screen
from .hdr import in_16_bits
from .journal import CHUNK, EncodedPacket, Journal
from .opening import clean_tags, file_url, reason
from .sequence import CONTAINER, Pictures, is_sequence
from .sound import Sound
from .tags import MOV_LANGUAGES, MP4_FIELDS, Extras, Tags


class VideoWriter(AbstractContextManager["VideoWriter"]):
    """Writes uint8 RGB frames (H, W, 3) with a sound track; a context manager.

    H.264 (webm: VP9) of exactly this size and rate; odd sizes are stored without chroma subsampling, which cannot
    express them. A name with a number (sequence.py) makes PNG files and a WAV. The encoder and the file are opened at
    once. The file has a hidden name of its own until close(); after an error nothing is left, and a file of that name
    from before is untouched.
    color: how to store the colors, VideoInfo.color for those of the source. aspect: VideoInfo.aspect.
    metadata: fields for the container, such as comment. tags: what is taken over from a source.
    encoding: from choose_encoding; else by its ending, crf the strength. deep: for an encoding that is deep, each frame
    as it was seen and as the source has it (VideoReader.read_deep): where write() gets what was seen, the source's own
    numbers are written. screen: VideoInfo.screen. journal: of an earlier run of the same file; its frames are there
    already, see `frames`, and deep goes on behind them.
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
        crf: int = 0,
        metadata: Mapping[str, str] | None = None,
        tags: Tags | None = None,
        encoding: Encoding | None = None,
        deep: Iterator[tuple[np.ndarray, np.ndarray]] | None = None,
        screen: Mapping[str, str] | None = None,
        journal: Journal | None = None,
    ) -> None:
        self.path, self.fps, self.frames = Path(path), Fraction(fps), 0
        self._shape = (height, width, 3)
        self._pictures: Pictures | None = None
        self._part = _checked(self.path)
        self._container: Any = None
        self._sound: Any = None
        self._extras: Any = None
        self._journal = journal
        self._encoder: Any = None
        self._chunk: list[EncodedPacket] = []
        with self._guard():
            form = container_of(self.path)
            self._color = of_rgb(color or Color()) if form == CONTAINER else color or Color()
            tags = tags or Tags()
            fields = tags.with_fields(metadata or {})
            own = not set(fields) <= MP4_FIELDS
            self._sound = source = None if audio is None else Sound(audio.path, audio.number)
            options = self._options(form, source, own)
            if form == CONTAINER:
                self._container = self._pictures = Pictures(self.path, self._part)
            else:
                self._container = av.open(file_url(self._part), "w", format=form, options=options)
            self._deep = deep if encoding and encoding.deep else None
            encoding = encoding or choose_encoding(form, (width, height), Kind(), Settings(), crf)
            self._stream = self._add_picture(encoding, aspect, screen or {})
            if audio is not None and source is not None:
                self._sound = open_soundtrack(audio, source, self._container)
            self._container.metadata.update(fields)
            self._extras = Extras(tags, self._container)
            self._name_languages(tags, source)
            self._container.start_encoding()
            self._extras.write()
            if journal is not None:
                for packets in journal.packets():
                    self._mux(packets)
                    self._advance(CHUNK)

    def _options(self, form: str, sound: Any, own: bool) -> dict[str, str]:
        if form not in ("mp4", "mov"):
            return {}
        rate = 1 if sound is None else sound.rate
        # A clock on which both lengths are whole numbers; on FFmpeg's of 1 ms they are not
        clock = lcm(self.fps.numerator, rate)
        # MP4 has fields of its own for some names, and keeps others only in this form
        flags = "+faststart+use_metadata_tags" if own else "+faststart"
        return {"movflags": flags, "movie_timescale": str(clock * ceil(1000 / clock) if clock < 2**31 else rate)}

    def _add_picture(self, encoding: Encoding, aspect: Fraction, screen: Mapping[str, str]) -> Any:
        height, width, _ = self._shape
        stream = self._container.add_stream(encoding.encoder, rate=self.fps)

        def prepared(context: Any) -> Any:
            context.width, context.height, context.time_base = width, height, 1 / self.fps
            context.pix_fmt, context.sample_aspect_ratio = encoding.pix_fmt, aspect
            context.colorspace, context.color_range = self._color.matrix, self._color.range
            context.color_primaries, context.color_trc = self._color.primaries, self._color.transfer
            context.options = with_screen(encoding, screen)
            if encoding.encoder.startswith(("libx265", "hevc_")) and self._container.format.name in ("mp4", "mov"):
                context.codec_tag = "hvc1"  # the only one that Apple's players take
            return context

        context = prepared(stream.codec_context)
        self._another_encoder = lambda: _like(context, prepared(av.CodecContext.create(encoding.encoder, "w")))
        if encoding.keeps_alpha and encoding.encoder == "libvpx-vp9":
            stream.metadata["alpha_mode"] = "1"
        context.open()
        self._scaler = Scaler(context.pix_fmt, width, height, self._color, inward=False)
        return stream

    def _name_languages(self, tags: Tags, source: Sound | None) -> None:
        spoken = "" if source is None or tags.path is None else clean_tags(source.stream.metadata).get("language", "")
        for stream, language in (
            (self._stream, tags.language),
            *((one, spoken) for one in self._container.streams.audio),
        ):
            if language and not stream.metadata.get("language"):
                mov = self._container.format.name == "mov"
                stream.metadata["language"] = MOV_LANGUAGES.get(language, language) if mov else language

    def __exit__(self, kind: object, *_: object) -> None:
        self.close() if kind is None else self.abort()

    def write(self, frame: np.ndarray) -> None:
        if frame.shape != self._shape or frame.dtype != np.uint8:
            raise ValueError(f"frame is {frame.dtype} {frame.shape}, not uint8 {self._shape}")
        with self._guard():
            picture = self._picture(frame)
            picture.pts, picture.time_base = self.frames, 1 / self.fps
            picture = self._scaler(picture)
            picture.pts, picture.time_base = self.frames, 1 / self.fps
            with suppress(AttributeError):  # PyAV < 14; PNG and ProRes take them from the frame alone
                picture.color_primaries, picture.color_trc = self._color.primaries, self._color.transfer
            self._encode(picture)
            self._advance(1)

    def _encode(self, picture: Any) -> None:
        if self._journal is None:
            self._container.mux(self._stream.encode(picture))
            return
        if self._encoder is None:
            self._encoder = self._another_encoder()
        self._chunk += map(EncodedPacket.of, self._encoder.encode(picture))
        if (self.frames + 1) % CHUNK == 0:
            self._end_chunk(self._journal)

    def _end_chunk(self, journal: Journal | None) -> None:
        """All packets of the encoder into the file, and into the journal, if one is given."""
        if self._encoder is not None:
            self._chunk += map(EncodedPacket.of, self._encoder.encode(None))
        if journal is not None:
            journal.save_chunk(self._chunk)
        self._mux(self._chunk)
        self._encoder, self._chunk = None, []

    def _mux(self, packets: Iterable[EncodedPacket]) -> None:
        for one in packets:
            self._container.mux(one.packet(self._stream, 1 / self.fps))

    def _advance(self, frames: int) -> None:
        self.frames += frames
        if self._sound is not None:
            self._sound.advance(self.frames / self.fps)

    def _picture(self, frame: np.ndarray) -> Any:
        if self._deep is None:
            return av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        seen, whole = next(self._deep)
        rows, columns = (np.flatnonzero((frame != seen).any((axis, 2))) for axis in (1, 0))
        if len(rows):
            whole = whole.copy()
            box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
            painted, before = (in_16_bits(one[box], self._color.transfer) for one in (frame, seen))
            changed = whole[box][..., :3] + (painted - before)
            whole[(*box, slice(3))] = changed.clip(0, 65535)
        if self._stream.codec_context.pix_fmt == "rgba":  # FFmpeg would be off by one
            return av.VideoFrame.from_ndarray(((whole.astype(np.uint32) + 128) // 257).astype(np.uint8), format="rgba")
        return av.VideoFrame.from_ndarray(whole, format="rgba64le" if whole.shape[2] == 4 else "rgb48le")

    def close(self) -> None:
        """Finish the file and give it its name; after this or an error, nothing happens."""
        if self._container is None:
            return
        with self._guard():
            if not self.frames:
                raise UserError(f"No frame was made for {self.path}; nothing was written.")
            if self._journal is None:
                self._container.mux(self._stream.encode(None))
            else:
                self._end_chunk(None)
            if self._sound is not None:
                self._sound.finish(self.frames / self.fps)
                self._sound.close()
            self._extras.close()
            container, self._container = self._container, None
            container.close()
            if self._pictures is not None:
                self._pictures.take_places()
            else:
                self._part.replace(self.path)

    def abort(self) -> None:
        for thing in (self._sound, self._extras, self._container):
            with suppress(FFmpegError, OSError, ValueError):
                if thing is not None:
                    thing.close()
        self._container = None
        if self._pictures is not None:
            return self._pictures.discard()
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


def _like(context: Any, other: Any) -> Any:
    """The other encoder, opened to make packets that fit into one stream with those of the first."""
    other.framerate, other.flags = context.framerate, context.flags
    other.open()
    return other


def container_of(path: str | Path) -> str:
    """FFmpeg's name of the container; UserError for a name that cannot be written."""
    _checked(Path(path))
    return CONTAINER if is_sequence(path) else ENDINGS[Path(path).suffix.lower()]


def _checked(path: Path) -> Path:
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder; give the name of the video file to write.")
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)[:200]!r} cannot be written ({reason(error)}); choose another name.") from error
    pictures, ending = is_sequence(path), path.suffix.lower()
    if ending == ".png" and not pictures:
        one = path.stem.replace("%", "")
        raise UserError(f"{path.name} names one picture; frames need a number in their name, as in {one}_%05d.png.")
    if ending not in (*ENDINGS, ".png"):
        kinds = ", ".join(ENDINGS)
        raise UserError(f"{path.name} ends in {path.suffix!r}; a video can be written as {kinds}, or as name_%05d.png.")
    folder = path.parent.parent if pictures and not path.parent.exists() else path.parent
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder} to write {path.name} to; make it first.")
    return partial_path(path)
