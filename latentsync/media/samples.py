"""Decoded samples in memory, and their way to another rate, other channels and another kind of number."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.error import FFmpegError

MOST_PLANES = 7
"""PyAV reads past the end of a frame that has more planes than this."""
MOST_CHANNELS = 8
"""What FFmpeg can mix by the places of loudspeakers. More are single microphones, whatever they are called."""
FORMATS = {"u1": "u8", "i2": "s16", "i4": "s32", "i8": "s64", "f4": "flt", "f8": "dbl"}
"""NumPy's names of packed sample formats."""


@dataclass(frozen=True)
class Piece:
    """samples (samples, channels) in the file's own kind of number, heard at time (seconds on the file's clock)."""

    samples: np.ndarray
    time: Fraction
    rate: int
    layout: str

    @property
    def end(self) -> Fraction:
        return self.time + Fraction(len(self.samples), self.rate)

    @property
    def kind(self) -> tuple[int, str, Any]:
        return self.rate, self.layout, self.samples.dtype

    def channel(self, number: int) -> "Piece":
        if number >= self.samples.shape[1]:
            return averaged(self)
        return replace(self, samples=self.samples[:, number : number + 1].copy(), layout="mono")

    def frame(self) -> Any:
        """Packed, without a time stamp."""
        form = FORMATS[self.samples.dtype.str[1:]]
        frame = av.AudioFrame.from_ndarray(self.samples.reshape(1, -1), format=form, layout=self.layout)
        frame.sample_rate = self.rate
        return frame

    def floats(self) -> np.ndarray:
        """-1 … 1"""
        if self.samples.dtype.kind == "f":
            return self.samples
        scale = float(2 ** (8 * self.samples.dtype.itemsize - 1))
        return (self.samples.astype(np.float64) - (scale if self.samples.dtype.kind == "u" else 0)) / scale


def piece_of(frame: Any) -> Piece:
    channels = frame.layout.nb_channels
    if frame.format.is_planar and channels > MOST_PLANES:
        packed = av.AudioResampler(format=frame.format.packed.name, layout=frame.layout.name, rate=frame.sample_rate)
        (frame,) = packed.resample(frame)
    samples = frame.to_ndarray()
    samples = samples.T if frame.format.is_planar else samples.reshape(-1, channels)
    return Piece(np.ascontiguousarray(samples), Fraction(0), frame.sample_rate, frame.layout.name)


def silence(like: Piece, count: int) -> Piece:
    """So many samples of the same kind."""
    return replace(like, samples=no_sound(count, like.samples.shape[1], FORMATS[like.samples.dtype.str[1:]]))


def no_sound(count: int, channels: int, form: str) -> np.ndarray:
    kind = next(name for name, known in FORMATS.items() if known == form)
    return np.full((count, channels), 128 if kind == "u1" else 0, kind)


def resampled(pieces: Iterable[Piece], rate: int, layout: str, form: str, options: str = "") -> Iterator[np.ndarray]:
    """Blocks (samples, channels) of a packed format, one after the other. Where rate or channels change on the way, and
    at the end, as many samples have come as are due. options: of FFmpeg's filter aresample."""
    converter: _Converter | None = None
    begin, end, sent = None, Fraction(0), 0
    for piece in pieces:
        begin = piece.time if begin is None else begin
        if converter is None or converter.kind != piece.kind:
            if converter is not None:
                yield (block := _sized(converter.push(None), round((piece.time - begin) * rate) - sent))
                sent += len(block)
            converter = _Converter(piece, rate, layout, form, options)
        yield (block := converter.push(piece))
        sent, end = sent + len(block), piece.end
    if converter is not None and begin is not None:
        yield _sized(converter.push(None), round((end - begin) * rate) - sent)


def _sized(block: np.ndarray, count: int) -> np.ndarray:
    """The resampler's delay leaves a few samples too many or too few."""
    lacking = count - len(block)
    return np.pad(block, ((0, lacking), (0, 0)), "edge") if lacking > 0 and len(block) else block[: max(0, count)]


class _Converter:
    """Pieces of one kind to packed blocks."""

    def __init__(self, piece: Piece, rate: int, layout: str, form: str, options: str) -> None:
        self.kind, self._form, self._width = piece.kind, form, av.AudioLayout(layout).nb_channels
        self._as_is = (piece.rate, piece.layout, FORMATS[piece.samples.dtype.str[1:]]) == (rate, layout, form)
        self._averaged = piece.samples.shape[1] > MOST_CHANNELS
        self._options = f"{rate}:osf={form}:ochl={layout}{options}"
        if self._as_is:
            return
        try:
            self._connect(averaged(piece) if self._averaged else piece)
        except FFmpegError:  # channels for which FFmpeg knows no places
            self._averaged = True
            self._connect(averaged(piece))

    def _connect(self, piece: Piece) -> None:
        from av.filter import Graph

        self._graph, frame = Graph(), piece.frame()
        source = self._graph.add_abuffer(
            sample_rate=piece.rate,
            format=frame.format.name,
            layout=frame.layout.name,
            time_base=Fraction(1, piece.rate),
        )
        change, sink = self._graph.add("aresample", self._options), self._graph.add("abuffersink")
        source.link_to(change)
        change.link_to(sink)
        self._graph.configure()

    def push(self, piece: Piece | None) -> np.ndarray:
        """None: the end; what the resampler still holds."""
        if self._as_is:
            return no_sound(0, self._width, self._form) if piece is None else piece.samples
        self._graph.push(None if piece is None else (averaged(piece) if self._averaged else piece).frame())
        blocks = [no_sound(0, self._width, self._form)]
        while True:
            try:
                blocks.append(self._graph.pull().to_ndarray().reshape(-1, self._width))
            except (BlockingIOError, EOFError):
                return np.concatenate(blocks)


def averaged(piece: Piece) -> Piece:
    return replace(piece, samples=piece.floats().mean(1, keepdims=True, dtype=np.float64).astype("f4"), layout="mono")
