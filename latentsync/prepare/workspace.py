"""Files of the work: never half of one under its final name, and the same bytes for the same content."""

import json
import time
import uuid
import wave
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..audio.mel import SAMPLE_RATE
from ..dataset import FPS

SAMPLES = int(SAMPLE_RATE / FPS)
"""Of sound to one frame: 640, a whole number."""
CRF = 8
"""x264; on talking faces about 49 dB against the crops that went in."""
KEY_EVERY = 25
"""Frames; a window of 16 is then read by decoding at most 40."""
ABANDONED = 3600.0
"""Seconds without a change after which a partial file belongs to nobody any more."""


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A hidden name beside path to write to; it becomes path at the end, and nothing is left after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{uuid.uuid4().hex}.part{path.suffix}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove the partial files that killed runs have left in a folder."""
    for part in folder.glob(".*.part*"):
        try:
            if time.time() - part.stat().st_mtime > ABANDONED:
                part.unlink()
        except FileNotFoundError:  # another run finished it
            continue


def write_text(path: Path, text: str) -> None:
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, facts: Any) -> None:
    write_text(path, json.dumps(facts, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """None where there is no such file, or none that is JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with whole(path) as part:
        np.savez(part, allow_pickle=False, **arrays)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def as_pcm(waveform: np.ndarray) -> np.ndarray:
    """Floats in -1 … 1 to int16."""
    return np.clip(np.round(waveform * 32768), -32768, 32767).astype(np.int16)


def write_sound(path: Path, samples: np.ndarray) -> None:
    """(T,) int16 at 16 kHz as a WAV file."""
    with whole(path) as part, wave.open(str(part), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        file.writeframes(samples.astype("<i2").tobytes())


def read_sound(path: Path, start: int, stop: int) -> np.ndarray:
    """(stop - start,) int16 samples of a WAV file; silence outside it."""
    out = np.zeros(stop - start, np.int16)
    with wave.open(str(path), "rb") as file:
        first, last = max(start, 0), min(stop, file.getnframes())
        if first < last:
            file.setpos(first)
            out[first - start : last - start] = np.frombuffer(file.readframes(last - first), "<i2")
    return out


def write_clip(path: Path, side: int, frames: Iterable[np.ndarray], sound: np.ndarray) -> int:
    """(side, side, 3) uint8 RGB frames at 25 a second as H.264 4:4:4, nearly lossless, and 16 kHz int16 as FLAC.

    Gives the number of frames. One encoding thread: the same bytes on every machine with the same libraries.
    """
    from ..media.color import Color, Scaler

    count, color = 0, Color()
    with whole(path) as part, _container(part) as out:
        stream = _picture(out, side, side, color)
        scaler = Scaler("yuv444p", side, side, color, inward=False)
        track = _Track(out, sound)
        for count, frame in enumerate(frames, 1):
            out.mux(stream.encode(_frame(frame, count - 1, scaler)))
            track.advance(count * SAMPLES)
        out.mux(stream.encode(None))
        track.finish()
    return count


def replace_sound(path: Path, sound: np.ndarray) -> None:
    """The same picture, packet by packet, under other sound."""
    import av

    with whole(path) as part, av.open(str(path)) as source, _container(part) as out:
        old = source.streams.video[0]
        if hasattr(out, "add_stream_from_template"):
            stream = out.add_stream_from_template(old)
        else:  # PyAV < 14
            stream = out.add_stream(template=old)
        track = _Track(out, sound)
        for number, packet in enumerate(p for p in source.demux(old) if p.size):
            packet.stream = stream
            out.mux(packet)
            track.advance(number * SAMPLES)
        track.finish()


def _container(path: Path) -> Any:
    import av

    # A clock on which both lengths are whole numbers; on FFmpeg's of 1 ms they are not
    return av.open(str(path), "w", format="mp4", options={"movie_timescale": str(SAMPLE_RATE)})


def _picture(out: Any, width: int, height: int, color: Any) -> Any:
    stream = out.add_stream("libx264", rate=FPS)
    context = stream.codec_context
    context.width, context.height, context.pix_fmt, context.time_base = width, height, "yuv444p", 1 / FPS
    context.colorspace, context.color_range = color.matrix, color.range
    context.color_primaries, context.color_trc = color.primaries, color.transfer
    context.thread_count = 1
    context.options = {"preset": "veryfast", "crf": str(CRF), "g": str(KEY_EVERY)}
    return stream


def _frame(frame: np.ndarray, number: int, scaler: Any) -> Any:
    import av

    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
    picture.pts, picture.time_base = number, 1 / FPS
    picture = scaler(picture)
    picture.pts, picture.time_base = number, 1 / FPS
    return picture


class _Track:
    """Sound as FLAC, fed in step with the picture."""

    def __init__(self, out: Any, sound: np.ndarray) -> None:
        self.out, self.sound, self.sent = out, sound, 0
        self.stream = out.add_stream("flac", rate=SAMPLE_RATE, layout="mono")
        self.stream.codec_context.open()
        self.size = self.stream.codec_context.frame_size

    def advance(self, until: int) -> None:
        while self.sent + self.size <= min(until, len(self.sound)):
            self._send(self.sound[self.sent : self.sent + self.size])

    def finish(self) -> None:
        self.advance(len(self.sound))
        if self.sent < len(self.sound):
            self._send(self.sound[self.sent :])
        self.out.mux(self.stream.encode(None))

    def _send(self, block: np.ndarray) -> None:
        import av

        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block[None]), format="s16", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = SAMPLE_RATE, Fraction(1, SAMPLE_RATE), self.sent
        self.sent += len(block)
        self.out.mux(self.stream.encode(frame))
