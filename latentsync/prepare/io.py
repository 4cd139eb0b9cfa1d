"""Files of a run: complete or absent, and the same bytes for the same content."""

import json
import time
import wave
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..audio.mel import SAMPLE_RATE
from ..dataset import FPS
from ..files import atomic_path, parse_json
from ..media.encoding import X264
from ..media.opening import ANY_TAGS, file_url

SAMPLES_PER_FRAME = int(SAMPLE_RATE / FPS)
CRF = 9
"""x264; on talking faces 44 to 49 dB against the crops that went in."""
KEYFRAME_INTERVAL = 25
"""Frames; a window of 16 is then read by decoding at most 40."""
STALE_SECONDS = 3600.0
"""Age of a temporary file that no running process can own any more."""


def remove_stale(folder: Path) -> None:
    """Remove the temporary files that killed runs have left in a folder."""
    for part in folder.glob(".*.part"):
        try:
            if time.time() - part.stat().st_mtime > STALE_SECONDS:
                part.unlink()
        except FileNotFoundError:  # another run finished it
            continue


def write_text(path: Path, text: str) -> None:
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """None where there is no such file, or none that is JSON."""
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with atomic_path(path) as part, part.open("wb") as file:  # given a path, NumPy would add .npz to it
        np.savez(file, allow_pickle=False, **arrays)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def as_pcm(waveform: np.ndarray) -> np.ndarray:
    """Floats in -1 … 1 to int16."""
    return np.clip(np.round(waveform * 32768), -32768, 32767).astype(np.int16)


def write_wav(path: Path, samples: np.ndarray) -> None:
    """(T,) int16 at 16 kHz as a WAV file."""
    with atomic_path(path) as part, wave.open(str(part), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        file.writeframes(samples.astype("<i2").tobytes())


def read_wav(path: Path, start: int, stop: int) -> np.ndarray:
    """(stop - start,) int16 samples of a WAV file; silence outside it."""
    out = np.zeros(stop - start, np.int16)
    with wave.open(str(path), "rb") as file:
        first, last = max(start, 0), min(stop, file.getnframes())
        if first < last:
            file.setpos(first)
            out[first - start : last - start] = np.frombuffer(file.readframes(last - first), "<i2")
    return out


def write_clip(path: Path, side: int, frames: Iterable[np.ndarray], audio: np.ndarray) -> int:
    """(side, side, 3) uint8 RGB frames at 25 a second as H.264 4:4:4, nearly lossless, and 16 kHz int16 as FLAC.

    Returns the number of frames. One encoding thread: the same bytes on every machine with the same libraries.
    """
    from ..media.color import Color, Scaler

    count, color = 0, Color()
    with atomic_path(path) as part, _container(part) as out:
        stream = out.add_stream("libx264", rate=FPS)
        context = stream.codec_context
        context.width, context.height, context.pix_fmt, context.time_base = side, side, "yuv444p", 1 / FPS
        context.colorspace, context.color_range = color.matrix, color.range
        context.color_primaries, context.color_trc = color.primaries, color.transfer
        context.thread_count = 1
        context.options = X264 | {"crf": str(CRF), "g": str(KEYFRAME_INTERVAL)}
        scaler = Scaler("yuv444p", side, side, color, inward=False)
        track = _AudioTrack(out, audio)
        for count, frame in enumerate(frames, 1):
            out.mux(stream.encode(_frame(frame, count - 1, scaler)))
            track.advance(count * SAMPLES_PER_FRAME)
        out.mux(stream.encode(None))
        track.finish()
    return count


def replace_audio(path: Path, audio: np.ndarray) -> None:
    """Copy the video packets, with other audio."""
    import av

    with (
        atomic_path(path) as part,
        av.open(file_url(path), **ANY_TAGS) as source,
        _container(part) as out,
    ):
        old = source.streams.video[0]
        if hasattr(out, "add_stream_from_template"):
            stream = out.add_stream_from_template(old)
        else:  # PyAV < 14
            stream = out.add_stream(template=old)
        track = _AudioTrack(out, audio)
        for number, packet in enumerate(p for p in source.demux(old) if p.size):
            packet.stream = stream
            out.mux(packet)
            track.advance(number * SAMPLES_PER_FRAME)
        track.finish()


def _container(path: Path) -> Any:
    import av

    # both lengths are whole numbers on this clock, but not on FFmpeg's default of 1 ms
    return av.open(file_url(path), "w", format="mp4", options={"movie_timescale": str(SAMPLE_RATE)})


def _frame(frame: np.ndarray, number: int, scaler: Any) -> Any:
    import av

    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
    picture.pts, picture.time_base = number, 1 / FPS
    picture = scaler(picture)
    picture.pts, picture.time_base = number, 1 / FPS
    return picture


class _AudioTrack:
    """Audio as FLAC, interleaved with the video."""

    def __init__(self, out: Any, audio: np.ndarray) -> None:
        self.out, self.audio, self.sent = out, audio, 0
        self.stream = out.add_stream("flac", rate=SAMPLE_RATE, layout="mono")
        self.stream.codec_context.open()
        self.size = self.stream.codec_context.frame_size

    def advance(self, until: int) -> None:
        while self.sent + self.size <= min(until, len(self.audio)):
            self._send(self.audio[self.sent : self.sent + self.size])

    def finish(self) -> None:
        self.advance(len(self.audio))
        if self.sent < len(self.audio):
            self._send(self.audio[self.sent :])
        self.out.mux(self.stream.encode(None))

    def _send(self, block: np.ndarray) -> None:
        import av

        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block[None]), format="s16", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = SAMPLE_RATE, Fraction(1, SAMPLE_RATE), self.sent
        self.sent += len(block)
        self.out.mux(self.stream.encode(frame))
