"""Encoders of graphics cards and processors, where one of them can really be opened."""

from fractions import Fraction
from functools import lru_cache
from typing import Any

import av
from av.error import FFmpegError

ENCODERS: dict[str, tuple[str, ...]] = {
    "h264": ("h264_nvenc", "h264_videotoolbox", "h264_qsv", "h264_amf"),
    "h265": ("hevc_nvenc", "hevc_videotoolbox", "hevc_qsv", "hevc_amf"),
    "av1": ("av1_nvenc", "av1_qsv", "av1_amf"),
    "vp9": ("vp9_qsv",),
}
"""By codec, best first: NVIDIA, Apple, Intel, AMD. Not VAAPI, which takes no frames from ordinary memory."""
FORMATS = {"yuv420p": ("yuv420p", "nv12"), "yuv420p10le": ("p010le",)}
"""In what they take the same numbers. All else (4:2:2, 4:4:4, 12 bits, transparency) stays with the processor."""


def open_one(family: str, pix_fmt: str, size: tuple[int, int], quality: int, crf: int) -> tuple[str, str, Any] | None:
    """(encoder, pixel format, options) of the first that opens for such a film, or None. quality: 1 to 100; crf: the
    same on the scale of this codec's quantizer."""
    for name in ENCODERS.get(family, ()):
        options = _options(name, quality, min(max(1, crf), 51))
        for form in FORMATS.get(pix_fmt, ()):
            if _opens(name, form, size, tuple(options.items())):
                return name, form, options
    return None


def _options(name: str, quality: int, crf: int) -> dict[str, str]:
    """A constant quality in each maker's words (FFmpeg's documentation of its encoders)."""
    at = str(4 * crf if name == "av1_amf" else crf)  # it counts to 255
    return {
        "nvenc": {"preset": "p5", "rc": "vbr", "cq": at, "b": "0"},
        # 1 to 100, in units of 118 as all of FFmpeg's qscale
        "videotoolbox": {"flags": "+qscale", "global_quality": str(118 * quality)},
        "qsv": {"preset": "medium", "global_quality": at},
        "amf": {"rc": "cqp", "qp_i": at, "qp_p": at, "qp_b": at},
    }[name.partition("_")[2]]


@lru_cache(maxsize=64)
def _opens(name: str, pix_fmt: str, size: tuple[int, int], options: tuple[tuple[str, str], ...]) -> bool:
    """FFmpeg may have an encoder for which there is no card, no driver, or no room in either."""
    try:
        context: Any = av.CodecContext.create(name, "w")
        if pix_fmt not in [form.name for form in context.codec.video_formats or []]:
            return False
        context.width, context.height = size
        context.pix_fmt, context.time_base, context.framerate = pix_fmt, Fraction(1, 25), Fraction(25)
        context.options = dict(options)
        context.open()
    except (FFmpegError, ValueError):  # UnknownCodecError is a ValueError
        return False
    return True
