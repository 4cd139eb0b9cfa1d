"""What a video is, read without decoding more than a few frames."""

from array import array
from bisect import bisect_right
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from av.error import FFmpegError

from ..errors import UserError
from .animation import open_video
from .color import Color, color_of, has_alpha, hidden_alpha
from .encoding import Kind, kind_of
from .hdr import side_data
from .image import STILL_BRANDS
from .opening import decoded, exact, open_media
from .sequence import CONTAINER, is_sequence
from .sound import LONGEST_HOLE, origin
from .tracks import audible, chosen_track

CHECKED_FRAMES = 4  # frames that probe() decodes, to see whether packets and frames agree
MAX_RATE = 480  # above it a stated rate is a container's clock, not a frame rate
PROGRESSIVE = 1  # FFmpeg's AV_FIELD_PROGRESSIVE; 0 is unknown, those above have fields
SLOWEST, FLUENT = 10, 25
"""Pictures at a lower rate than the first are a slide show, on which lips could not move: each is shown so many times
that the rate is not below the second."""
RATES = "10 12 25/2 15 24000/1001 24 25 30000/1001 30 48 50 60000/1001 60 120"
COMMON_RATES = tuple(map(Fraction, RATES.split()))


@dataclass(frozen=True)
class FrameIndex:
    """Where the source's own frames lie, in shown order: time stamps, and those at which decoding can start."""

    times: "array[int]"
    keys: "array[int]"
    base: Fraction
    counted: bool = False  # the file has no time stamps; frames are told apart by counting


@dataclass(frozen=True)
class VideoInfo:
    """A video as the engine sees it: upright, at a constant exact rate, time 0 at its first frame.

    width, height: as shown, rotation applied. rotation: degrees clockwise from stored to shown.
    frames: at rate fps. start: the first frame's time on the file's own clock, seconds; AudioTrack(path, start)
    keeps the same file's sound in step. audio_start: when its first sample is heard, seconds after the first frame
    (negative: before). aspect: width over height of one pixel. lead: at half a frame, each frame of a variable rate
    is shown within half a frame of its own time; at 0 it is never early, as in a player. interlaced: the reader makes
    whole frames of its fields. screen: what HDR states of the screen that it was graded on.
    """

    path: Path
    width: int
    height: int
    fps: Fraction
    frames: int
    rotation: int
    variable_rate: bool
    has_audio: bool
    duration: Fraction
    start: Fraction
    audio_start: Fraction | None
    color: Color
    aspect: Fraction
    index: FrameIndex = field(repr=False, compare=False)
    turn: tuple[bool, bool, bool] = field(repr=False, default=(False, False, False))
    lead: Fraction = Fraction(1, 2)
    interlaced: bool = False
    alpha: bool = False
    kind: Kind = field(default_factory=Kind)
    screen: "dict[str, str]" = field(repr=False, default_factory=dict)

    def source(self, i: int) -> int:
        """The file's own frame that shows at output frame i: the latest at its time, or up to `lead` frames after."""
        if not 0 <= i < self.frames:
            raise IndexError(f"frame {i} of {self.frames} in {self.path.name}")
        if not self.variable_rate:
            return i
        times, tick = self.index.times, self.fps * self.index.base
        # Containers round stamps to their clock's ticks (Matroska: 1 ms), which must not cost a frame
        due = times[0] + int(i / tick + max(1, self.lead / tick))
        return max(0, bisect_right(times, due) - 1)

    def deviation(self) -> Fraction:
        """Seconds by which a frame is shown before or after its own time, at most; those never shown do not count."""
        if not self.variable_rate:
            return Fraction(0)
        times, base, worst, last = self.index.times, self.index.base, Fraction(0), -1
        for i in range(self.frames):
            k = self.source(i)
            if k != last:
                worst, last = max(worst, abs(i / self.fps - (times[k] - times[0]) * base)), k
        return worst


def probe(path: str | Path) -> VideoInfo:
    """Read what a video is without decoding it (a few frames excepted). UserError: no file, or no video in it."""
    with open_video(path) as container:
        return probe_container(container, Path(path))


def probe_container(container: Any, path: Path) -> VideoInfo:
    """The same for a container that is open; it stands at its end afterwards."""
    stream = _video_stream(container, path)
    packets, first, lead = _scan(container, stream)
    sound = chosen_track(container, path) if audible(container) else None
    heard = None if sound is None else origin(sound)
    aspect = exact(stream.codec_context.sample_aspect_ratio) or Fraction(1)
    rates = map(exact, (stream.guessed_rate, stream.average_rate, stream.base_rate))
    stated = [rate for rate in rates if 0 < rate <= MAX_RATE]
    index = _frame_index(path, packets, first)
    _check_leaps(path, index)
    turn = _orientation(first[0])
    fps, count = _constant_rate(index, stated, packets)
    height, width = (first[0].width, first[0].height) if turn[0] else (first[0].height, first[0].width)
    start, alpha = _first_time(container, stream, path, index, lead), _is_transparent(stream, first)
    frames, audio_start = count or len(index.times), None if heard is None else heard - start
    return VideoInfo(
        path, width, height, fps, frames, _degrees(turn), bool(count), sound is not None, frames / fps, start,
        audio_start, color_of(first[0]), 1 / aspect if turn[0] else aspect, index, turn,
        interlaced=_is_interlaced(stream, first), alpha=alpha,
        kind=kind_of(stream.codec_context.name, first[0].format, alpha), screen=side_data(first[0]),
    )  # fmt: skip


def _video_stream(container: Any, path: Path) -> Any:
    """The first stream of moving pictures; cover art and lone pictures are none."""
    pictures, form = is_sequence(path), container.format.name
    if (form == CONTAINER and not pictures) or form.endswith("_pipe") or _holds_a_picture(container):
        raise UserError(f"{path} is a picture, not a video; give it as the image instead.")
    for stream in container.streams.video:
        if stream.codec_context is not None and (pictures or not _is_cover(stream)):
            if not stream.codec_context.is_open:
                stream.thread_type = "AUTO"  # also since HEVC hangs in PyAV 14 with its default
            return stream
    sound = " (it has only sound)" if container.streams.audio else ""
    raise UserError(f"{path} has no video stream that can be decoded{sound}; give a video.")


def _holds_a_picture(container: Any) -> bool:
    """HEIC and AVIF are MP4s by their form; their tiles are no films."""
    return container.metadata.get("major_brand", "").encode() in STILL_BRANDS


def _is_cover(stream: Any) -> bool:
    disposition = getattr(stream, "disposition", None)
    if disposition is not None:
        return bool(int(disposition.value if hasattr(disposition, "value") else disposition) & 0x400)
    return stream.codec_context.name in ("png", "mjpeg") and exact(stream.average_rate) in (0, 90000)


def _scan(container: Any, stream: Any) -> tuple[list[tuple[int | None, int, bool]], list[Any], tuple[int, int | None]]:
    """(time stamp, duration, starts decoding) of every packet that is shown, the first few frames decoded, and place in
    the file and stamp of the very first packet."""
    packets: list[tuple[int | None, int, bool]] = []
    first: list[Any] = []
    lead: tuple[int, int | None] | None = None
    # the file may end in the middle of a packet: what came before it counts
    with suppress(FFmpegError):
        for packet in container.demux(stream):
            lead = lead or (getattr(packet, "pos", None) or 0, packet.pts)
            if packet.size and not packet.is_discard:  # discarded: before the start of an edit list
                packets.append((packet.pts, packet.duration or 0, packet.is_keyframe))
            if len(first) < CHECKED_FRAMES:
                first += _decode(packet)
    return packets, first[:CHECKED_FRAMES], lead or (0, None)


def _first_time(container: Any, stream: Any, path: Path, index: FrameIndex, first: tuple[int, int | None]) -> Fraction:
    """When the first frame is shown. first: place in the file and stamp of the stream's first packet."""
    begin = index.times[0] * index.base
    place, stamp = first
    if index.counted or stamp is None:
        return begin
    if container.format.name == "avi" and stream.start_time is not None:
        # AVI states no such times: FFmpeg guesses by how many frames a decoder may hold back, but what writes and what
        # plays AVI begins with the first frame when its first packet is due
        return begin - (stamp - stream.start_time) * exact(stream.time_base)
    if "mp4" in container.format.name.split(","):
        return begin + _edited(path, stream, place, stamp)
    return begin


def _edited(path: Path, stream: Any, place: int, stamp: int) -> Fraction:
    """By how many seconds FFmpeg's stamps are early where an edit list begins in the middle of a frame (a trim without
    a new encoding): it stamps the first whole frame 0. Told by the same packet as the list alone would stamp it."""
    with suppress(FFmpegError, StopIteration), open_media(path, "a video", advanced_editlist="0") as plain:
        same, second = plain.streams[stream.index], int(1 / exact(stream.time_base))
        plain.seek(stamp - second, stream=same, backward=True)
        packets = plain.demux(same)
        while (packet := next(packets)).pts is not None and packet.pts < stamp + second:
            if packet.pos == place:
                return (packet.pts - stamp) * exact(stream.time_base)
    return Fraction(0)


def _decode(packet: Any, decoder: Any = None) -> list[Any]:
    try:
        return packet.decode() if decoder is None else decoder.decode(packet if packet.size else None)
    except FFmpegError:  # one damaged packet; the frame before it stays on the screen
        return []


def _frame_index(path: Path, packets: list[tuple[int | None, int, bool]], first: list[Any]) -> FrameIndex:
    times = sorted({pts for pts, _, _ in packets if pts is not None})
    believable = len(times) > 0 and all(pts is not None for pts, _, _ in packets)
    if not believable or [frame.pts for frame in first] != times[: len(first)] or not first:
        return _decoded_index(path)
    keys = sorted({pts for pts, _, key in packets if key and pts is not None} | {times[0]})
    return FrameIndex(array("q", times), array("q", keys), exact(first[0].time_base))


def _decoded_index(path: Path) -> FrameIndex:
    """By decoding everything: AVI and raw streams have no stamps, or wrong ones; interlaced ones two for each frame."""
    with open_video(path) as container:
        stream = _video_stream(container, path)
        times = [frame.pts for frame in decoded(container, stream)]
        base = exact(stream.time_base)
        rate = exact(stream.guessed_rate) or exact(stream.average_rate) or Fraction(25)
    if not times:
        raise UserError(f"{path} has no frame that can be decoded; give a video that plays.")
    if None in times or any(b <= a for a, b in pairwise(times)):
        return FrameIndex(array("q", range(len(times))), array("q", [0]), 1 / rate, counted=True)
    return FrameIndex(array("q", times), array("q", times[:1]), base)


def _check_leaps(path: Path, index: FrameIndex) -> None:
    """UserError where a picture would stand for so long that its file must be wrong: every frame of it is painted."""
    steps = np.diff(np.asarray(index.times, np.int64))
    if len(steps) and int(steps.max()) * index.base > LONGEST_HOLE:
        at = (index.times[int(steps.argmax())] - index.times[0]) * index.base
        leap = f"jump by {float(int(steps.max()) * index.base):.0f} s after {float(at):.2f} s"
        raise UserError(f"The timestamps of the frames of {path} {leap}; convert it to a file that plays through.")


def _constant_rate(
    index: FrameIndex, stated: list[Fraction], packets: list[tuple[int | None, int, bool]]
) -> tuple[Fraction, int]:
    """Output rate, and the number of frames at that rate where the source does not keep it (else 0)."""
    fps, count = _own_rate(index, stated, packets)
    if fps >= SLOWEST or len(index.times) == 1:
        return fps, count
    times = ceil(FLUENT / fps)
    return fps * times, (count or len(index.times)) * times


def _own_rate(
    index: FrameIndex, stated: list[Fraction], packets: list[tuple[int | None, int, bool]]
) -> tuple[Fraction, int]:
    if index.counted:
        return 1 / index.base, 0
    if len(index.times) == 1:
        return (stated or [Fraction(25)])[0], 0
    ticks = np.asarray(index.times, np.int64) - index.times[0]
    mean = Fraction(len(ticks) - 1, int(ticks[-1])) / index.base
    for fps in [*stated, mean.limit_denominator(1001)]:
        if np.abs(ticks * float(index.base * fps) - np.arange(len(ticks))).max() <= 0.5:
            return fps, 0
    fps = _nominal_rate(np.diff(ticks), index.base, stated)
    last = next((d for pts, d, _ in packets if pts == index.times[-1]), 0)
    last = last if last * index.base <= LONGEST_HOLE else 0
    return fps, max(1, round((int(ticks[-1]) + last) * index.base * fps) + (0 if last else 1))


def _nominal_rate(steps: np.ndarray, base: Fraction, stated: list[Fraction]) -> Fraction:
    """The fastest rate that a variable-rate source keeps up for a while, so that hardly a frame is left out."""
    quick = np.quantile(steps, 0.25, method="lower")
    mean = float(steps[np.abs(steps - quick) <= 0.1 * quick].mean())
    rate = 1 / (mean * float(base))
    nearest = min([*stated, *COMMON_RATES], key=lambda r: abs(float(r) - rate))
    return nearest if abs(float(nearest) / rate - 1) < 0.1 else Fraction(rate).limit_denominator(1001)


def _is_transparent(stream: Any, first: list[Any]) -> bool:
    """GIF, APNG and WebP are decoded with alpha whether they use it or not."""
    if hidden_alpha(stream) is not None or not has_alpha(first[0]):
        return hidden_alpha(stream) is not None
    always = stream.codec_context.name in ("gif", "apng", "webp", "webp_anim")
    return not always or any(frame.to_ndarray(format="rgba")[..., 3].min() < 255 for frame in first)


def _is_interlaced(stream: Any, first: list[Any]) -> bool:
    fields = int(getattr(stream.codec_context, "field_order", 0) or 0) > PROGRESSIVE
    return fields or any(getattr(frame, "interlaced_frame", False) for frame in first)


def _orientation(frame: Any) -> tuple[bool, bool, bool]:
    """(transpose, flip left-right, flip up-down), in this order, that show a frame upright."""
    matrix = _display_matrix(frame)
    if matrix is None:
        return False, False, False
    a, b, _, c, d = (int(v) for v in matrix[:5])
    return (True, c < 0, b < 0) if abs(b) > abs(a) else (False, a < 0, d < 0)


def _display_matrix(frame: Any) -> np.ndarray | None:
    """3×3, 16.16 fixed point (ISO 14496-12, tkhd): x' = ax + cy, y' = bx + dy."""
    with suppress(ValueError):  # side data of a kind that this PyAV does not know
        for data in map(frame.side_data.__getitem__, range(len(frame.side_data))):  # PyAV 19 iterates over kinds
            if data.type.name == "DISPLAYMATRIX":
                return np.frombuffer(bytes(data), np.int32)
    return None


def _degrees(turn: tuple[bool, bool, bool]) -> int:
    transpose, flip_x, flip_y = turn
    if transpose:
        return 90 if flip_x else 270
    return 180 if flip_x and flip_y else 0
