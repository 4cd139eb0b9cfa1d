"""Which numbers stand for which colors in a video, and conversion to and from RGB by them."""

from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

from av.filter import Graph

from .hdr import HLG, PQ
from .opening import clean_tags

TO_RGB = "neighbor+accurate_rnd+full_chroma_int"
FROM_RGB = "area+accurate_rnd+full_chroma_inp"
"""swscale flags. Chroma is repeated and averaged again over the same pixels, so that what nobody paints on goes back
into the encoder with the source's own numbers; the faster default darkens every picture by one level."""

MATRICES = {1: "bt709", 4: "fcc", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}
"""ITU-T H.273 matrix numbers by swscale's names; all others are read as BT.601, swscale's rule for untagged video."""
WIDE = (9, 11, 12)
"""H.273 primaries of BT.2020 and P3."""
SRGB = 13
"""H.273 transfer function."""


@dataclass(frozen=True)
class Color:
    """ITU-T H.273 numbers; 2 (range: 0) is unspecified. range: 1 limited, 2 full."""

    matrix: int = 1
    range: int = 1
    primaries: int = 1
    transfer: int = 1


def color_of(frame: Any) -> Color:
    primaries, transfer = int(getattr(frame, "color_primaries", 2)), int(getattr(frame, "color_trc", 2))
    if frame.format.is_rgb:
        matrix, primaries = 9 if primaries == 9 else 1, primaries if primaries in WIDE else 1
        return Color(matrix, 1, primaries, transfer if transfer in (PQ, HLG) else 1)
    return Color(int(frame.colorspace), int(frame.color_range), primaries, transfer)


def of_rgb(color: Color) -> Color:
    """What pictures of these colors say of themselves: sRGB, unless their numbers mean more."""
    if color.transfer in (PQ, HLG):
        return replace(color, matrix=0, range=2)
    return Color(0, 2, color.primaries if color.primaries in WIDE else 1, SRGB)


def has_alpha(frame: Any) -> bool:
    return any(one.is_alpha for one in frame.format.components)


def hidden_alpha(stream: Any) -> str | None:
    """The decoder that shows a stream's transparency where FFmpeg's own drops it: VP8 and VP9 keep it beside."""
    if clean_tags(stream.metadata).get("alpha_mode") != "1":
        return None
    return {"vp9": "libvpx-vp9", "vp8": "libvpx"}.get(stream.codec_context.name)


class Scaler:
    """Pixel formats converted by matrix and range. By a filter graph, since PyAV < 17 gets the range wrong itself."""

    def __init__(self, target: str, width: int, height: int, color: Color, *, inward: bool) -> None:
        matrix, span = MATRICES.get(color.matrix, "smpte170m"), "pc" if color.range == 2 else "tv"
        if inward and not color.range:
            span = "auto"
        way, flags = ("in", TO_RGB) if inward else ("out", FROM_RGB)
        self._options = f"w={width}:h={height}:{way}_color_matrix={matrix}:{way}_range={span}:flags={flags}"
        self._target = target
        self._built: tuple[str, int, int] | None = None

    def __call__(self, frame: Any) -> Any:
        kind = (frame.format.name, frame.width, frame.height)
        if kind != self._built:
            self._graph, self._built = self._build(*kind), kind
        self._graph.push(frame)
        return self._graph.pull()

    def _build(self, name: str, width: int, height: int) -> Any:
        graph: Any = Graph()
        chain = [
            graph.add_buffer(width=width, height=height, format=name, time_base=Fraction(1, 90000)),
            # FFmpeg 8 refuses transfer and primaries that it does not know, which say nothing here anyway
            graph.add("setparams", "color_primaries=unknown:color_trc=unknown"),
            graph.add("scale", self._options),
            graph.add("format", self._target),
            graph.add("buffersink"),
        ]
        for before, after in pairwise(chain):
            before.link_to(after)
        graph.configure()
        return graph
