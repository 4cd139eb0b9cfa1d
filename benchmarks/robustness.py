"""Which files come through a run unharmed? Writes docs/robustness.md: small clips of many kinds, made here, opened and
written as a run does, with a mouth-sized box of each frame painted anew, and read back by PyAV alone.

python -m benchmarks.robustness
"""

import argparse
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError

from latentsync.errors import UserError
from latentsync.pipeline import open_job
from latentsync.settings import Settings

CASE_SECONDS = 30
SPAWN: Any = get_context("spawn")
STRIDE = 377
"""Has no factor in common with the number of cases."""
ROOT = Path(__file__).parents[1]
RATES = ("24000/1001", "25", "30000/1001", "50", "60000/1001")
LAYOUTS = ("mono", "stereo", "5.1", "7.1")
SECONDS = 0.6
CLICKS = (0.15, 0.40)
BLOCK = 16
MOUTH = slice(56, 72), slice(36, 60)
"""What is painted anew, rows and columns."""
MARGIN = 8
COLOR_LIMIT, DEEP_LIMIT, CLICK_LIMIT = 1.5, 4.0, 0.010
"""Mean color error of 255 and, for more than 8 bits, of 1023; seconds that a click may move."""
MATRICES = {1: (0.2126, 0.0722), 9: (0.2627, 0.0593)}
BT601 = (0.299, 0.114)
ENCODER_DELAY = {"libmp3lame": 1105, "mp2": 481, "ac3": 256}
"""Samples."""
SAMPLES = {"s16": np.int16, "s32": np.int32, "flt": np.float32, "dbl": np.float64}
BOTH, LIMITED, FULL = (1, 2), (1,), (2,)
OPTIONS: dict[str, dict[str, str]] = {
    "libx264": {"crf": "10", "preset": "veryfast"},
    "libx265": {"x265-params": "log-level=none:crf=10", "preset": "veryfast"},
    "libsvtav1": {"preset": "10", "crf": "20"},
    "libvpx-vp9": {"crf": "10", "b": "0", "cpu-used": "8", "deadline": "realtime"},
    "libvpx": {"crf": "4", "b": "2000000", "cpu-used": "8", "deadline": "realtime"},
}


@dataclass(frozen=True)
class Family:
    """How the pictures of a clip are stored. out: the ending of what is written."""

    suffix: str
    codec: str
    pix_fmt: str
    ranges: tuple[int, ...] = LIMITED
    out: str = ""
    size: tuple[int, int] = (96, 96)
    options: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        more = "".join(f" {name}={value}" for name, value in self.options)
        return f"{self.suffix[1:]} · {self.codec}{more} · {self.pix_fmt}"

    @property
    def target(self) -> str:
        return self.out or (self.suffix if self.suffix in (".mp4", ".mov", ".mkv", ".webm", ".m4v") else ".mp4")


PICTURES = (
    *(
        Family(".mp4", "libx264", name, BOTH)
        for name in ("yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le")
    ),
    *(Family(".mp4", "libx265", name, BOTH) for name in ("yuv420p", "yuv420p10le", "yuv422p10le", "yuv444p12le")),
    *(Family(".mp4", "libsvtav1", name, BOTH) for name in ("yuv420p", "yuv420p10le")),
    Family(".mp4", "libvpx-vp9", "yuv420p", BOTH),
    Family(".mp4", "mpeg4", "yuv420p"),
    Family(".m4v", "libx264", "yuv420p"),
    *(Family(".mov", "libx264", name, BOTH) for name in ("yuv420p", "yuv420p10le")),
    Family(".mov", "libx265", "yuv420p10le", BOTH),
    *(Family(".mov", "prores_ks", name) for name in ("yuv422p10le", "yuv444p10le")),
    Family(".mov", "dnxhd", "yuv422p10le", size=(256, 128), options=(("profile", "dnxhr_hqx"),)),
    Family(".mov", "v210", "yuv422p10le"),
    Family(".mov", "cfhd", "yuv422p10le"),
    Family(".mov", "mjpeg", "yuvj422p", FULL),
    *(Family(".mov", codec, "rgb24", FULL) for codec in ("qtrle", "png")),
    *(Family(".mkv", "libx264", name, BOTH) for name in ("yuv420p", "yuv444p10le")),
    *(Family(".mkv", "libx265", name, BOTH) for name in ("yuv420p10le", "yuv420p12le")),
    Family(".mkv", "libsvtav1", "yuv420p10le", BOTH),
    *(Family(".mkv", "libvpx-vp9", name, BOTH) for name in ("yuv420p", "yuv444p")),
    *(Family(".mkv", "ffv1", name, BOTH) for name in ("yuv420p", "yuv422p10le")),
    Family(".mkv", "ffv1", "gbrp10le", FULL),
    *(Family(".mkv", codec, "yuv420p") for codec in ("mpeg2video", "mpeg4")),
    Family(".mkv", "prores_ks", "yuv422p10le"),
    *(Family(".webm", "libvpx-vp9", name, BOTH) for name in ("yuv420p", "yuv422p", "yuv444p")),
    *(Family(".webm", "libsvtav1", name, BOTH) for name in ("yuv420p", "yuv420p10le")),
    Family(".webm", "libvpx", "yuv420p"),
    Family(".ogv", "libtheora", "yuv420p"),
    *(Family(".avi", codec, "yuv420p") for codec in ("mpeg4", "libx264", "rawvideo", "ffv1")),
    Family(".avi", "libx264", "yuv420p", options=(("bf", "0"),)),
    *(Family(".avi", codec, "yuv422p") for codec in ("huffyuv", "utvideo")),
    Family(".avi", "mjpeg", "yuvj420p", FULL),
    Family(".avi", "png", "rgb24", FULL),
    Family(".ts", "libx264", "yuv420p", BOTH),
    Family(".ts", "libx265", "yuv420p10le", BOTH),
    *(Family(".ts", "mpeg2video", "yuv420p", out=out) for out in (".mp4", ".mkv")),
    Family(".m2ts", "libx264", "yuv420p", out=".mkv"),
    *(Family(".mpg", codec, "yuv420p") for codec in ("mpeg2video", "mpeg1video")),
    *(Family(".flv", codec, "yuv420p") for codec in ("libx264", "flv")),
    Family(".wmv", "wmv2", "yuv420p"),
    Family(".3gp", "h263", "yuv420p", size=(176, 144)),
    Family(".mxf", "mpeg2video", "yuv422p", out=".mov"),
)
SOUNDS: dict[str, tuple[str, ...]] = {
    ".mp4": ("aac", "libmp3lame", "ac3", "eac3", "alac", "libopus", "flac"),
    ".m4v": ("aac", "alac"),
    ".mov": ("aac", "libmp3lame", "ac3", "alac", "pcm_s16le", "pcm_s24le", "pcm_f32le"),
    ".mkv": ("aac", "libmp3lame", "mp2", "ac3", "eac3", "flac", "alac", "libopus", "vorbis", "pcm_s16le", "pcm_f32le"),
    ".webm": ("libopus", "vorbis"),
    ".ogv": ("libopus", "vorbis"),
    ".avi": ("libmp3lame", "mp2", "ac3", "pcm_s16le"),
    ".ts": ("aac", "libmp3lame", "mp2", "ac3", "eac3", "libopus"),
    ".m2ts": ("ac3", "aac"),
    ".mpg": ("mp2", "ac3", "libmp3lame"),
    ".flv": ("aac", "libmp3lame"),
    ".wmv": ("wmav2",),
    ".3gp": ("aac",),
    ".mxf": ("pcm_s16le", "pcm_s24le"),
}
"""What each container is heard with, usual first."""
CROSSED = {".mp4": ".mkv", ".mov": ".mp4", ".mkv": ".mp4", ".webm": ".mp4"}
"""The second container that sounds are written to; of all others, mkv."""


@dataclass(frozen=True)
class Case:
    family: Family
    range: int = 1
    rate: str = "25"
    sound: str = "aac"
    layout: str = "stereo"
    sampled: int = 48000
    out: str = ""

    @property
    def target(self) -> str:
        return self.out or self.family.target

    @property
    def fps(self) -> Fraction:
        return Fraction(self.rate)

    @property
    def frames(self) -> int:
        return round(SECONDS * self.fps)

    def __str__(self) -> str:
        span = "full" if self.range == 2 else "limited"
        sound = f"{self.sound} {self.layout} {self.sampled} Hz"
        return f"{self.family.name} {span}, {self.rate} fps, {sound} → {self.target[1:]}"


@dataclass
class Outcome:
    """faults: what was wrong, with figures. missing: why the clip could not be made at all."""

    case: Case
    faults: list[str] = field(default_factory=list)
    missing: str = ""
    color: float = 0.0
    deep: bool = False
    moved: float = 0.0
    copied: bool = False


def picture_cases() -> Iterator[Case]:
    """Every family by range and rate; the sounds of its container and their layouts in turn."""
    turn = 0
    for family in PICTURES:
        for span in family.ranges:
            for rate in RATES:
                sounds = SOUNDS[family.suffix]
                sound = sounds[turn % len(sounds)]
                yield Case(family, span, rate, sound, _layout(sound, turn), _sampled(sound, turn, family.suffix))
                turn += 1


def sound_cases() -> Iterator[Case]:
    """Every container by codec of the sound, layout, and what is written."""
    turn = 0
    for suffix, sounds in SOUNDS.items():
        family = next(one for one in PICTURES if one.suffix == suffix)
        for sound in sounds:
            for layout in LAYOUTS:
                for out in (family.target, CROSSED.get(suffix, ".mkv")):
                    yield Case(family, family.ranges[0], "25", sound, layout, _sampled(sound, turn, suffix), out)
                    turn += 1


def _layout(sound: str, turn: int) -> str:
    most = {"libmp3lame": 2, "mp2": 2, "wmav2": 2, "vorbis": 2, "ac3": 3, "eac3": 3}
    layout = LAYOUTS[(turn // 3) % most.get(sound, 4)]
    return "stereo" if sound == "vorbis" else layout


def _sampled(sound: str, turn: int, suffix: str) -> int:
    return 48000 if sound == "libopus" or suffix in (".mxf", ".m2ts") or turn % 2 else 44100


def chart(number: int, width: int, height: int) -> np.ndarray:
    """RGB floats: blocks of color with a slope, and in the first row the number in black and white."""
    rows, columns = (height + BLOCK - 1) // BLOCK, (width + BLOCK - 1) // BLOCK
    random = np.random.default_rng(15)
    blocks = random.uniform(0.08, 0.92, (rows, columns, 3))
    blocks[1] = np.linspace(0.02, 0.98, columns)[:, None]
    blocks[0, :6] = [[0.95 if number >> bit & 1 else 0.05] * 3 for bit in range(6)]
    picture = blocks.repeat(BLOCK, 0).repeat(BLOCK, 1)[:height, :width]
    slope = np.linspace(-0.02, 0.02, width)[None, :, None] + np.linspace(0, 0.02, height)[:, None, None]
    return np.clip(picture + slope, 0, 1)


def number_of(picture: np.ndarray) -> int:
    middle = BLOCK // 2
    return sum(int(picture[middle, bit * BLOCK + middle].mean() > 0.5) << bit for bit in range(6))


def make_frame(picture: np.ndarray, pix_fmt: str, span: int) -> Any:
    """By our own arithmetic, BT.709."""
    height, width, _ = picture.shape
    form = av.VideoFormat(pix_fmt, width, height)
    if form.is_rgb:
        deep = np.round(picture * 65535).astype(np.uint16)
        return av.VideoFrame.from_ndarray(deep, format="rgb48le").reformat(format=pix_fmt)
    frame = av.VideoFrame(width, height, pix_fmt)
    red, blue = MATRICES[1]
    y = picture @ np.array([red, 1 - red - blue, blue])
    values = y, (picture[..., 2] - y) / (2 - 2 * blue), (picture[..., 0] - y) / (2 - 2 * red)
    for number, (plane, value) in enumerate(zip(frame.planes, values, strict=True)):
        bits = form.components[number].bits
        down, across = height // plane.height, width // plane.width
        value = value.reshape(plane.height, down, plane.width, across).mean((1, 3))
        low, wide = _scale(number, bits, span)
        line = np.zeros((plane.height, plane.line_size // (2 if bits > 8 else 1)), np.uint16 if bits > 8 else np.uint8)
        line[:, : plane.width] = np.clip(np.round(low + value * wide), 0, 2**bits - 1)
        plane.update(line.tobytes())
    frame.colorspace, frame.color_range = 1, span
    return frame


def _scale(number: int, bits: int, span: int) -> tuple[int, int]:
    """The code value of 0 and how many there are up to 1."""
    step = 2 ** (bits - 8)
    if span == 2:
        return (0 if number == 0 else 2 ** (bits - 1)), 2**bits - 1
    return (16 * step, 219 * step) if number == 0 else (128 * step, 224 * step)


def seen(frame: Any) -> np.ndarray:
    """RGB floats of a decoded frame by its own tags."""
    form = frame.format
    if form.is_rgb or form.has_palette:
        return frame.reformat(format="rgb48le").to_ndarray()[..., :3] / 65535
    span = 2 if form.name.startswith("yuvj") else int(frame.color_range)
    values = []
    for number, plane in enumerate(frame.planes[:3]):
        bits = form.components[number].bits
        line = np.frombuffer(plane, np.uint16 if bits > 8 else np.uint8)
        line = line.reshape(-1, plane.line_size // line.itemsize)[: plane.height, : plane.width]
        low, wide = _scale(number, bits, span)
        value = (line.astype(np.float64) - low) / wide
        value = value.repeat(frame.height // plane.height, 0).repeat(frame.width // plane.width, 1)
        values.append(value)
    y, u, v = values
    red, blue = MATRICES.get(int(frame.colorspace), BT601)
    r, b = y + v * (2 - 2 * red), y + u * (2 - 2 * blue)
    return np.clip(np.stack([r, (y - red * r - blue * b) / (1 - red - blue), b], -1), 0, 1)


def click_wave(rate: int, seconds: float) -> np.ndarray:
    t = np.arange(round(seconds * rate)) / rate
    bursts = (np.exp(-(((t - at) / 0.002) ** 2)) * np.cos(2 * np.pi * 1000 * (t - at)) for at in CLICKS)
    return (0.5 * np.sum(list(bursts), 0)).astype(np.float32)


def make_clip(case: Case, path: Path) -> None:
    family, (width, height) = case.family, case.family.size
    layout = "5.1(side)" if case.layout == "5.1" and case.sound in ("ac3", "eac3") else case.layout
    wave = click_wave(case.sampled, float(case.frames / case.fps) + 0.1)
    channels = av.AudioLayout(layout).nb_channels
    with av.open(str(path), "w") as container:
        chosen = OPTIONS.get(family.codec, {}) | dict(family.options)
        picture: Any = container.add_stream(family.codec, rate=case.fps, options=chosen)
        picture.width, picture.height, picture.pix_fmt = width, height, family.pix_fmt
        context = picture.codec_context
        context.time_base = 1 / case.fps
        context.colorspace, context.color_primaries, context.color_trc = 1, 1, 1
        context.color_range = case.range
        if family.codec not in OPTIONS:
            context.bit_rate = 8_000_000
        sound: Any = container.add_stream(case.sound, rate=case.sampled, layout=layout)
        if case.sound == "vorbis":
            sound.codec_context.options = {"strict": "experimental"}
        if not case.sound.startswith("pcm") and case.sound not in ("flac", "alac"):
            sound.codec_context.bit_rate = min(64_000 * max(2, channels), 384_000)
        sound.codec_context.open()
        size, sent = sound.codec_context.frame_size or 1024, 0
        # AVI has no stamps of sound: with the encoder's delay before 0 its muxer would leave out a frame instead
        delay = ENCODER_DELAY.get(case.sound, 0) if family.suffix == ".avi" else 0
        for i in range(case.frames):
            frame = make_frame(chart(i, width, height), family.pix_fmt, case.range)
            frame.pts, frame.time_base = i, 1 / case.fps
            container.mux(picture.encode(frame))
            until = (i + 1) / case.fps if i + 1 < case.frames else 10
            while sent < min(len(wave), until * case.sampled):
                block = np.ascontiguousarray(np.repeat(wave[sent : sent + size, None], channels, 1).reshape(1, -1))
                piece = av.AudioFrame.from_ndarray(block, format="flt", layout=layout)
                piece.sample_rate, piece.pts, piece.time_base = case.sampled, sent + delay, Fraction(1, case.sampled)
                container.mux(sound.encode(piece))
                sent += size
        container.mux(picture.encode(None))
        container.mux(sound.encode(None))


def run(path: Path, out: Path) -> None:
    """What a run does, with a box instead of a mouth."""
    with open_job(path, None, out, Settings(fit="silence")) as job:
        for frame in job.source.read(job.timeline.source_indices()):
            frame = frame.copy()
            frame[MOUTH] = frame[MOUTH] // 2 + 40
            job.writer.write(frame)


@dataclass
class Read:
    """What PyAV alone finds in a file. tick: of the picture's clock. clicks: seconds from the first picture on."""

    pictures: list[np.ndarray]
    stamps: list[Fraction]
    tick: Fraction
    fps: Fraction
    bits: int
    codec: str
    packets: list[bytes]
    clicks: list[float]


def read(path: Path) -> Read:
    with av.open(str(path)) as container:
        stream: Any = container.streams.video[0]
        pictures, stamps, bits = [], [], 8
        for packet in container.demux(stream):
            for frame in packet.decode():
                pictures.append(seen(frame))
                stamps.append((frame.pts or 0) * stream.time_base)
                bits = max(one.bits for one in frame.format.components)
        tick, fps = stream.time_base, stream.average_rate
    with av.open(str(path)) as container:
        sound: Any = container.streams.audio[0]
        packets = [bytes(one) for one in container.demux(sound) if one.size]
        codec = sound.codec_context.name
    # AVI has no stamps: FFmpeg guesses them, wrong ones of H.264, and only the number of a frame tells its time
    believable = path.suffix != ".avi" and all(a < b for a, b in pairwise(stamps))
    start = float(stamps[0]) if believable else 0.0
    return Read(pictures, stamps, tick, fps, bits, codec, packets, _clicks(path, start))


def _clicks(path: Path, start: float) -> list[float]:
    """Placed by the time stamps, as a player does it."""
    with av.open(str(path)) as container:
        track: Any = container.streams.audio[0]
        rate = track.codec_context.sample_rate
        wave, due = np.zeros(rate * 3), 0
        for packet in container.demux(track):
            try:
                frames: list[Any] = list(packet.decode())
            except FFmpegError:
                continue
            for frame in frames:
                # by its buffer: PyAV's arrays of more than seven planes crash
                form = frame.format
                block = np.frombuffer(frame.planes[0], SAMPLES[form.packed.name])
                step = 1 if form.is_planar else frame.layout.nb_channels
                block = block[: frame.samples * step : step]
                if block.dtype.kind == "i":
                    block = block / 2.0 ** (8 * block.dtype.itemsize - 1)
                at = round((float((frame.pts or 0) * track.time_base) - start + 0.5) * rate)
                at = due if abs(at - due) < 0.005 * rate else at
                due = at + len(block)
                low, high = max(0, at), min(len(wave), due)
                wave[low:high] = block[low - at : high - at] if high > low else 0
    strength = np.convolve(wave**2, np.ones(rate // 250), "same")
    loud = np.flatnonzero(strength > 0.2 * strength.max())
    groups = np.split(loud, np.flatnonzero(np.diff(loud) > rate // 50) + 1)
    return [float((group * strength[group]).sum() / strength[group].sum() / rate) - 0.5 for group in groups]


def compare(case: Case, source: Read, made: Read) -> Outcome:
    outcome = Outcome(case)
    say = outcome.faults.append
    if len(made.pictures) != case.frames:
        say(f"{len(made.pictures)} frames, not {case.frames} (a plain decode of the source: {len(source.pictures)})")
    numbers = [number_of(picture) for picture in made.pictures]
    if numbers != list(range(len(numbers))):
        say(f"frames in the order {numbers}")
    late = max(abs(at - made.stamps[0] - i / case.fps) for i, at in enumerate(made.stamps))
    # both stamps are rounded to the container's clock
    if late > (0 if (1 / case.fps / made.tick).denominator == 1 else made.tick):
        say(f"stamps off by up to {float(late * 1000):.2f} ms")
    if abs(float(made.fps / case.fps) - 1) > 1e-6 and case.target in (".mp4", ".mov", ".m4v"):
        say(f"states {made.fps} fps, not {case.rate}")
    _compare_color(source, made, outcome)
    _compare_sound(source, made, outcome)
    return outcome


def _compare_color(source: Read, made: Read, outcome: Outcome) -> None:
    outside = np.ones(source.pictures[0].shape[:2], bool)
    rows, columns = MOUTH
    outside[rows.start - MARGIN : rows.stop + MARGIN, columns.start - MARGIN : columns.stop + MARGIN] = False
    pairs = list(zip(source.pictures, made.pictures, strict=False))
    if made.pictures[0].shape != source.pictures[0].shape:
        outcome.faults.append(f"size {made.pictures[0].shape[1::-1]}, not {source.pictures[0].shape[1::-1]}")
        return
    outcome.deep = source.bits > 8
    unit, limit = (1023, DEEP_LIMIT) if outcome.deep else (255, COLOR_LIMIT)
    outcome.color = unit * float(np.mean([np.abs(a - b)[outside].mean() for a, b in pairs]))
    if outcome.color >= limit:
        outcome.faults.append(f"color error {outcome.color:.2f} of {unit}")
    if outcome.deep and made.bits < 10:
        outcome.faults.append(f"{made.bits} bits, not {source.bits}")


def _compare_sound(source: Read, made: Read, outcome: Outcome) -> None:
    if len(made.clicks) != len(CLICKS) or len(source.clicks) != len(CLICKS):
        outcome.faults.append(f"clicks at {made.clicks}, in the source {source.clicks}")
        return
    outcome.moved = max(abs(a - b) for a, b in zip(source.clicks, made.clicks, strict=True))
    if outcome.moved > CLICK_LIMIT:
        outcome.faults.append(f"a click moved by {1000 * outcome.moved:.1f} ms")
    if _is_pcm(made.codec) and made.codec == source.codec:
        outcome.copied = b"".join(source.packets).startswith(b"".join(made.packets))
        if not outcome.copied:
            outcome.faults.append("samples are not those of the source")
        return
    # MP4 keeps AAC without the headers that it has in a stream
    packets = [_bare(one) if source.codec == "aac" else one for one in source.packets]
    outcome.copied = made.packets[0] in packets
    if outcome.copied:
        first = packets.index(made.packets[0])
        if made.packets != packets[first : first + len(made.packets)]:
            outcome.faults.append("packets of the sound are not those of the source")


def _is_pcm(codec: str) -> bool:
    return codec.startswith("pcm_")


def _bare(packet: bytes) -> bytes:
    adts = packet[:1] == b"\xff" and packet[1] & 0xF6 == 0xF0
    return packet[7 if packet[1] & 1 else 9 :] if adts else packet


def check(case: Case, folder: Path) -> Outcome:
    path, out = folder / f"source{case.family.suffix}", folder / f"out{case.target}"
    for old in (path, out):
        old.unlink(missing_ok=True)
    try:
        make_clip(case, path)
        source = read(path)
    except (FFmpegError, ValueError, OverflowError, IndexError) as error:
        return Outcome(case, missing=str(error) or type(error).__name__)
    if not source.pictures:
        return Outcome(case, missing="cannot be read by PyAV alone")
    try:
        run(path, out)
        return compare(case, source, read(out))
    except UserError as error:
        return Outcome(case, [str(error).replace(str(folder), "").replace("/source", "source").replace("/out", "out")])
    except (FFmpegError, ValueError, IndexError) as error:
        return Outcome(case, [f"{type(error).__name__}: {error}".replace(f"{folder}/", "")])


HEAD = """# Supported files

<!-- made by python -m benchmarks.robustness; do not edit -->

Small clips of many kinds are made, opened and written as a run does it, and read back by PyAV alone. Each lasts
{seconds} s. Each frame is a color chart with its number in it; a box where a mouth would be is repainted. The audio
has clicks at known times. This page is made by one command:

    python -m benchmarks.robustness

**{passed} of {counted} cases passed.** {missing} more clips could not be made: this FFmpeg has no such encoder, or the
encoder or the container does not take them. They are listed [below](#not-built-in) and not counted.

A case passes when all of this holds:

- **Frames**: as many as were made, each once, in order.
- **Stamps**: exact; where the container's clock has no such number (mkv, webm: 1 ms), within one of its ticks.
- **Color** outside the box, {margin} pixels around it left out: mean error below {color:g} of 255. For sources with
  more than 8 bits: below {deep:g} of 1023, written with at least 10 bits. Both files are decoded and turned into RGB
  by the tags that each has itself.
- **Sound**: where it is copied, packets byte for byte those of the source (PCM: samples). Always: each click within
  {click:.0f} ms of where the source has it, against the picture.

Not in this table: variable rates, interlaced and transparent sources, HDR, damaged files, and sources that begin late
or were cut. Tests in `tests/media` have those; `test_lips.py` there has films that flash when they click, in every
container and codec, with holes, damage, offsets and trims.

PyAV {version}, FFmpeg's libavcodec {codec}.
"""


def document(outcomes: list[tuple[str, Outcome]]) -> str:
    made = [(kind, one) for kind, one in outcomes if not one.missing]
    passed = sum(not one.faults for _, one in made)
    left = len(all_cases()) - len(outcomes)
    facts: Any = {"seconds": SECONDS, "passed": passed, "counted": len(made), "missing": len(outcomes) - len(made)}
    facts |= {"margin": MARGIN, "color": COLOR_LIMIT, "deep": DEEP_LIMIT, "click": 1000 * CLICK_LIMIT}
    codec = ".".join(map(str, av.library_versions["libavcodec"]))
    parts = [HEAD.format(version=av.__version__, codec=codec, **facts)]
    if left:
        parts.append(f"**Made in part**: {left} of {len(all_cases())} cases, spread over all kinds, were not run.\n")
    parts += ["## Pictures\n\nPassed / made, by frame rate; the sounds of the container in turn.\n", _pictures(made)]
    parts += ["\n## Sounds\n\nPassed / made, by layout and by what is written; 25 fps.\n", _sounds(made)]
    faults = [f"- {one.case}: {'; '.join(one.faults)}" for _, one in made if one.faults]
    parts += ["\n## Every failure\n", "\n".join(faults or ["None."])]
    parts += ["\n## Not built in\n", _missing([one for _, one in outcomes if one.missing])]
    return "\n".join(parts) + "\n"


def _pictures(made: list[tuple[str, Outcome]]) -> str:
    rows: dict[tuple[Family, int], list[Outcome]] = defaultdict(list)
    for kind, one in made:
        if kind == "picture":
            rows[one.case.family, one.case.range].append(one)
    rates = [f"{float(Fraction(rate)):.5g}" for rate in RATES]
    lines = [f"| container · encoder · format | range | to | {' | '.join(rates)} | worst color error |"]
    lines.append("|---" * (4 + len(RATES)) + "|")
    for (family, span), all_of in rows.items():
        cells = [_count([one for one in all_of if one.case.rate == rate]) for rate in RATES]
        worst = f"{max(one.color for one in all_of):.2f} of {1023 if any(one.deep for one in all_of) else 255}"
        span_name = "rgb" if av.VideoFormat(family.pix_fmt).is_rgb else "full" if span == 2 else "limited"
        lines.append(f"| {family.name} | {span_name} | {family.target[1:]} | {' | '.join(cells)} | {worst} |")
    return "\n".join(lines)


def _sounds(made: list[tuple[str, Outcome]]) -> str:
    rows: dict[tuple[str, str, str], list[Outcome]] = defaultdict(list)
    for kind, one in made:
        if kind == "sound":
            rows[one.case.family.suffix[1:], one.case.sound, one.case.target[1:]].append(one)
    lines = [f"| container · encoder | to | {' | '.join(LAYOUTS)} | the same packets | a click moved at most |"]
    lines.append("|---" * (4 + len(LAYOUTS)) + "|")
    for (suffix, sound, target), all_of in rows.items():
        cells = [_count([one for one in all_of if one.case.layout == layout]) for layout in LAYOUTS]
        copied = {len(all_of): "yes", 0: "encoded"}.get(sum(one.copied for one in all_of), "some")
        moved = f"{1000 * max(one.moved for one in all_of):.1f} ms"
        lines.append(f"| {suffix} · {sound} | {target} | {' | '.join(cells)} | {copied} | {moved} |")
    return "\n".join(lines)


def _count(some: list[Outcome]) -> str:
    return f"{sum(not one.faults for one in some)}/{len(some)}" if some else "–"


def _missing(outcomes: list[Outcome]) -> str:
    """By what could not be made; a whole family in one line."""
    counts: dict[str, int] = defaultdict(int)
    for one in outcomes:
        case = one.case
        sound = f"{case.sound} {case.layout} {case.sampled} Hz in {case.family.suffix[1:]}"
        what = case.family.name if one.missing.startswith(case.family.codec) else sound
        counts[f"{what}: {one.missing}"] += 1
    return "\n".join(f"- {text} ({count} cases)" for text, count in counts.items()) or "Nothing."


def all_cases() -> list[tuple[str, Case]]:
    return [*(("picture", case) for case in picture_cases()), *(("sound", case) for case in sound_cases())]


class Child:
    """Checks cases in a process of its own, so that one which hangs or crashes is a fault and not the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._start()

    def _start(self) -> None:
        self.pipe, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=_serve, args=(theirs, self.folder), daemon=True)
        self.process.start()
        theirs.close()

    def check(self, case: Case) -> Outcome:
        self.pipe.send(case)
        try:
            if self.pipe.poll(CASE_SECONDS):
                return self.pipe.recv()
            fault = f"not done after {CASE_SECONDS} s"
        except EOFError:
            self.process.join()
            fault = f"the process ended with code {self.process.exitcode}"
        self.close()
        self._start()
        return Outcome(case, [fault])

    def close(self) -> None:
        self.process.kill()
        self.process.join()


def _serve(pipe: Any, folder: Path) -> None:
    while True:
        pipe.send(check(pipe.recv(), folder))


def outcomes_of(cases: list[tuple[str, Case]], seconds: float) -> list[tuple[str, Outcome]]:
    """In the order of the cases, those that could be run in so many seconds, spread over all."""
    spread = sorted(range(len(cases)), key=lambda i: i * STRIDE % len(cases))
    found, until = {}, time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder, closing(Child(Path(folder))) as child:
        for i in spread:
            if time.monotonic() > until:
                break
            kind, case = cases[i]
            found[i] = kind, child.check(case)
            for fault in found[i][1].faults:
                print(f"{case}: {fault}", flush=True)
    return [found[i] for i in sorted(found)]


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--out", type=Path, default=ROOT / "docs" / "robustness.md")
    ask.add_argument("--at-most", type=float, default=3600, metavar="SECONDS", help="then the page says what is left")
    args = ask.parse_args()
    os.environ.setdefault("SVT_LOG", "1")
    started = time.perf_counter()
    outcomes = outcomes_of(all_cases(), args.at_most)
    args.out.write_text(document(outcomes), encoding="utf-8")
    print(f"{len(outcomes)} cases in {time.perf_counter() - started:.0f} s, written to {args.out}")


if __name__ == "__main__":
    main()
