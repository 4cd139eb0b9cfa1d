"""Which encoder and pixel format an output gets: like its source, where the container and the encoders allow it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av

from ..errors import UserError
from ..settings import LIKE_SOURCE, Settings
from . import hardware
from .sequence import CONTAINER

ENCODERS = {"h264": "libx264", "h265": "libx265", "av1": "libsvtav1", "vp9": "libvpx-vp9", "prores": "prores_ks",
            "png": "png"}  # fmt: skip
FAMILIES = {"h264": "h264", "hevc": "h265", "av1": "av1", "libdav1d": "av1", "vp9": "vp9", "libvpx-vp9": "vp9",
            "prores": "prores"}  # fmt: skip
"""FFmpeg's decoders, and what we call what they decode."""
HELD = {
    "mp4": ("h264", "h265", "av1", "vp9"),
    "mov": ("h264", "h265", "prores"),
    "matroska": ("h264", "h265", "av1", "vp9", "prores"),
    "webm": ("vp9", "av1"),
    CONTAINER: ("png",),
}
"""What each container holds and players play from it, best known first."""
WITH_ALPHA = {"webm": ("vp9",), "mov": ("prores",), "matroska": ("vp9", "prores"), CONTAINER: ("png",)}
CHROMA = {(1, 1): "420", (1, 0): "422", (0, 0): "444", (2, 0): "422", (0, 1): "444", (2, 2): "420"}
"""By how many halvings of width and height; rare ones by the next finer."""
DEPTHS = (8, 10, 12)
SCREENED = {
    "libx265": ("x265-params", {"master-display": "master-display", "max-cll": "max-cll"}),
    "libsvtav1": ("svtav1-params", {"master-display": "mastering-display", "max-cll": "content-light"}),
}
"""What writes the screen of HDR into its packets, and in which words. For all others it would have to be in the
container, where PyAV does not reach it."""
_NUMBERS = re.compile(r"([A-Z]+)\((\d+),(\d+)\)")
PNG_FORMATS = {(False, False): "rgb24", (False, True): "rgba", (True, False): "rgb48be", (True, True): "rgba64be"}
"""By whether it has more than 8 bits, and transparency."""
ENDINGS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
"""File name endings that can be written, and their containers."""

X264 = {"preset": "veryfast", "rc-lookahead": "10", "x264-params": "mbtree=0"}
"""With its tree of blocks x264 makes other files of the same frames now and then (seen with AVX-512, widths that are no
multiple of 64). Without it a file is 8 % larger at the same quality, which is reached at a crf higher by X264_CRF."""
X264_CRF = 2
X265 = {"preset": "veryfast", "x265-params": "log-level=error:rc-lookahead=10"}
VP9 = {"b": "0", "row-mt": "1", "cpu-used": "4", "deadline": "good"}
AV1 = {"preset": "9"}
PNG = {"compression_level": "3", "pred": "up"}
"""Several times as quick as what FFmpeg takes, and no larger: most lines are like the one above."""


@dataclass(frozen=True)
class Kind:
    """How a source stores its pictures. family: one of ENCODERS, or nothing of them."""

    family: str = ""
    depth: int = 8
    chroma: str = "420"
    alpha: bool = False


@dataclass(frozen=True)
class Encoding:
    """encoder: FFmpeg's name. keeps_alpha and deep: what of the source goes in that 8-bit RGB could not carry."""

    encoder: str
    pix_fmt: str
    options: dict[str, str] = field(default_factory=dict)
    deep: bool = False
    keeps_alpha: bool = False
    notes: tuple[str, ...] = ()


def kind_of(codec: str, form: Any, alpha: bool) -> Kind:
    """codec: the decoder's name; form: av.VideoFormat of its frames."""
    depth = max((one.bits for one in form.components), default=8)
    if form.is_rgb or len(form.components) < 3 or form.has_palette:
        return Kind(FAMILIES.get(codec, ""), depth if depth > 8 else 8, "444" if depth > 8 else "420", alpha)
    halved = (form.chroma_width(1024), form.chroma_height(1024))
    steps = tuple((1024 // max(1, side)).bit_length() - 1 for side in halved)
    return Kind(FAMILIES.get(codec, ""), depth, CHROMA.get(steps, "444"), alpha)  # type: ignore[arg-type]


def ending_for(codec: str, source: Path) -> str:
    """What the name of a file ends in that suits a codec of Settings best."""
    if codec == LIKE_SOURCE:
        return ending if (ending := source.suffix.lower()) in ENDINGS else ".mp4"
    return {"vp9": ".webm", "prores": ".mov"}.get(codec, ".mp4")


def choose_encoding(container: str, size: tuple[int, int], kind: Kind, settings: Settings, crf: int = 0) -> Encoding:
    """UserError where the container cannot hold what was asked for, or the encoder is not here. crf: instead of the
    settings' quality."""
    even = size[0] % 2 == size[1] % 2 == 0
    wanted = Kind(kind.family, kind.depth, kind.chroma if even else "444", kind.alpha)
    families = _candidates(container, wanted, settings)
    found = [(family, *_format(family, wanted, settings, container)) for family in families]
    # the first that loses least, transparency before all
    family, pix_fmt, lost = min(found, key=lambda one: (kind.alpha and not _has_alpha(one[1]), len(one[2])))
    alpha = _has_alpha(pix_fmt)
    depth = av.VideoFormat(pix_fmt).components[0].bits
    strength = crf or min(51, round((100 - settings.quality) * 0.8))
    notes = [*lost, *([f"transparent; laid on {settings.background} (background)"] if kind.alpha and not alpha else [])]
    options = _options(family, strength, alpha, settings.quality)
    deep = (kind.depth > 8 and depth > 8) or alpha
    encoder = ENCODERS[family]
    if settings.encoder == "hardware" and crf == 0:
        lossless = family == "h264" and strength == 0
        quantizer = strength + {"av1": 10, "vp9": 8}.get(family, 2)
        found = None if lossless else hardware.open_one(family, pix_fmt, size, settings.quality, quantizer)
        if found is None:
            notes.append(f"written by {encoder}: no hardware here encodes {family} as {pix_fmt}")
        else:
            encoder, pix_fmt, options = found
    return Encoding(encoder, pix_fmt, options, deep, alpha, tuple(notes))


def _candidates(container: str, kind: Kind, settings: Settings) -> list[str]:
    held = HELD[container]
    if settings.codec != LIKE_SOURCE:
        if settings.codec not in held:
            raise UserError(
                f"codec is {settings.codec!r}; this kind of file holds {', '.join(held)}; name another --out."
            )
        if not _formats(settings.codec):
            have = [name for name in held if _formats(name)]
            raise UserError(f"codec is {settings.codec!r}; this FFmpeg has no {ENCODERS[settings.codec]}; take one of"
                            f" {', '.join(have)}.")  # fmt: skip
        return [settings.codec]
    order = [kind.family] if kind.family in held else []
    if kind.alpha:
        order = [*WITH_ALPHA.get(container, ()), *order]
    # 10 bits as H.264 play hardly anywhere, unless the source is that already
    usual = held if kind.depth == 8 else tuple(sorted(held, key=lambda name: name in ("h264", "prores")))
    return [name for name in dict.fromkeys([*order, *usual]) if _formats(name)]


def _formats(family: str) -> list[str]:
    try:
        formats = av.Codec(ENCODERS[family], "w").video_formats
    except ValueError:  # av.codec.codec.UnknownCodecError
        return []
    return [one.name for one in formats or []]


def _format(family: str, kind: Kind, settings: Settings, container: str) -> tuple[str, list[str]]:
    """The pixel format, and what is lost by it."""
    here = _formats(family)
    if settings.pixel_format != "auto":
        if settings.pixel_format not in here:
            raise UserError(
                f"pixel_format is {settings.pixel_format!r}; the encoder {ENCODERS[family]} takes {', '.join(here)}."
            )
        return settings.pixel_format, []
    if family == "png":
        return PNG_FORMATS[kind.depth > 8, kind.alpha], []
    depth = next((d for d in DEPTHS if d >= kind.depth), 12)
    chromas = ["420", "422", "444"][["420", "422", "444"].index(kind.chroma) :]
    alpha = kind.alpha and family in WITH_ALPHA.get(container, ())
    for a in ("a", "") if alpha else ("",):
        for d in [depth, *(d for d in DEPTHS if d > depth), *(d for d in reversed(DEPTHS) if d < depth)]:
            for c in [*chromas, "422", "420"]:
                name = f"yuv{a}{c}p" + ("" if d == 8 else f"{d}le")
                if name in here:
                    return name, _lost(kind, d, c)
    return here[0], []


def _has_alpha(pix_fmt: str) -> bool:
    return any(one.is_alpha for one in av.VideoFormat(pix_fmt).components)


def _lost(kind: Kind, depth: int, chroma: str) -> list[str]:
    kept = min(kind.depth, 12)
    less = [f"of {kind.depth} bits; written with {depth}"] if depth < kept else []
    return less + ([f"of chroma {kind.chroma}; written with {chroma}"] if chroma < kind.chroma else [])


def _options(family: str, crf: int, alpha: bool, quality: int) -> dict[str, str]:
    if family == "h264":
        return X264 | {"crf": str(min(51, crf + X264_CRF) if crf else 0)}  # 0: lossless
    if family == "h265":
        return X265 | {"crf": str(min(51, crf + 2))}
    if family == "vp9":
        return VP9 | {"crf": str(min(63, crf + 8))} | ({"auto-alt-ref": "0"} if alpha else {})
    if family == "av1":
        return AV1 | {"crf": str(min(63, crf + 10))}
    if family == "png":
        return PNG
    profile = "4" if alpha else "3" if quality >= 80 else "2" if quality >= 60 else "1"
    return {"profile": profile, "vendor": "apl0"}


def with_screen(encoding: Encoding, screen: Mapping[str, str]) -> dict[str, str]:
    """The encoder's options with what HDR states of its screen (VideoInfo.screen)."""
    if encoding.encoder not in SCREENED or not screen:
        return encoding.options
    option, names = SCREENED[encoding.encoder]
    told = [f"{names[name]}={text}" for name, text in screen.items()]
    if encoding.encoder == "libsvtav1":
        told = [_NUMBERS.sub(_svt_numbers, text) for text in told]
    before = encoding.options.get(option)
    return encoding.options | {option: ":".join([before, *told] if before else told)}


def _svt_numbers(found: "re.Match[str]") -> str:
    """Coordinates, and candela per square meter, in place of x265's whole numbers."""
    unit = 10000 if found[1] == "L" else 50000
    return f"{found[1]}({int(found[2]) / unit:.5f},{int(found[3]) / unit:.5f})"
