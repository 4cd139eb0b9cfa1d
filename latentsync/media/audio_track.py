"""The sound of an output file: the user's packets as they are where the container can hold them, else encoded."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError

from ..errors import UserError

COPIED: dict[str, frozenset[str]] = {
    "mp4": frozenset({"aac", "mp3", "mp3float", "alac", "ac3", "eac3", "opus", "libopus", "flac"}),
    "mov": frozenset({"aac", "mp3", "mp3float", "alac", "ac3", "eac3"}),
    "matroska": frozenset(
        {"aac", "mp3", "mp3float", "mp2", "mp2float", "alac", "ac3", "eac3", "dca", "opus", "libopus", "flac", "vorbis"}
    ),
    "webm": frozenset({"opus", "libopus", "vorbis"}),
}
"""Decoder names whose packets a container takes over and that common players play back from it."""

PCM: dict[str, frozenset[str]] = {
    "mov": frozenset(f"pcm_{x}" for x in ("s16le", "s16be", "s24le", "s24be", "s32le", "s32be", "f32le", "f32be")),
    "matroska": frozenset(f"pcm_{x}" for x in ("s16le", "s24le", "s32le", "f32le")),
}
"""Written again in the same form: the same samples, and cut at any sample, which packets do not allow."""

CODEC_RATES = {
    "aac": (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000),
    "libopus": (8000, 12000, 16000, 24000, 48000),
}
"""Of a source's rate, the next of these is taken; other codecs take any."""
LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 7: "7.1", 8: "7.1"}
CHUNK = 1024  # samples that codecs without a frame size get at a time


@dataclass(frozen=True)
class AudioTrack:
    """Sound to lay under the picture.

    start: time on the file's own clock (seconds) that falls on the first video frame; None is the first sample.
    duration: seconds to keep at most. pad_to: append silence up to this many seconds. The video's end always cuts.
    seconds: how long it is from the start on, where that is known; else padding means to measure it by decoding.
    """

    path: str | Path
    start: Fraction | None = None
    duration: Fraction | None = None
    pad_to: Fraction | None = None
    seconds: Fraction | None = None


def reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def open_media(path: str | Path, kind: str) -> Any:
    """The opened container; UserError where the path is no media file. kind: "a video", "an audio file"."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the path of {kind} in it.")
    if not path.exists():
        raise UserError(f"There is no file {path}; give the path of {kind}.")
    try:
        container = av.open(str(path))
    except (FFmpegError, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as {kind} ({reason(error)}); give a file that plays.") from error
    if container.format.name == "tty":  # FFmpeg draws any text file as a picture
        container.close()
        raise UserError(f"{path} is a text file; give the path of {kind}.")
    return container


def open_audio(path: str | Path) -> Any:
    """The opened container, which has an audio stream that can be decoded; UserError otherwise."""
    container = open_media(path, "an audio file")
    if not _audible(container):
        container.close()
        raise UserError(f"{path} has no audio that can be decoded; give a file with sound.")
    return container


def _audible(container: Any) -> bool:
    return any(s.codec_context is not None and s.codec_context.sample_rate for s in container.streams.audio)


def has_audio(path: str | Path) -> bool:
    with open_media(path, "an audio or video file") as container:
        return _audible(container)


def audio_duration(path: str | Path) -> Fraction:
    """Seconds of sound, exact: decoded samples over the rate, less what an MP4 marks as padding of its last packet."""
    with open_audio(path) as container:
        stream = container.streams.audio[0]
        seconds = Fraction(sum(f.samples for f in decoded(container, stream)), stream.codec_context.sample_rate)
        stated = _stated_duration(container, stream)
        return seconds if stated is None else min(seconds, stated)


def sound_start(path: str | Path) -> Fraction:
    """When the first sample of a file's sound is heard, on the file's clock, in seconds."""
    with open_audio(path) as container:
        return audio_origin(container.streams.audio[0])


def _stated_duration(container: Any, stream: Any) -> Fraction | None:
    """MP4 and MOV state the length to the sample; elsewhere it is an estimate or the decoder trims by itself."""
    if "mp4" not in container.format.name.split(",") or not stream.duration:
        return None
    return stream.duration * stream.time_base


def audio_origin(stream: Any) -> Fraction:
    """Time of the first sample to be heard, on the file's clock; encoder priming lies before it."""
    return Fraction(0) if stream.start_time is None else stream.start_time * stream.time_base


def decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Frames of a stream, damaged packets left out."""
    with contextlib.suppress(FFmpegError):  # the file ends in the middle of a packet
        for packet in container.demux(stream):
            with contextlib.suppress(FFmpegError):
                yield from packet.decode()


class Soundtrack:
    """Feeds one track into an output container in step with the picture: advance() with it, finish() at its end."""

    def __init__(self, track: AudioTrack, source: Any, output: Any) -> None:
        """source: the track's file as open_audio gives it; closed here."""
        self.track = track
        self._output = output
        self._source = source
        self._stream = self._source.streams.audio[0]
        self._origin = audio_origin(self._stream) if track.start is None else Fraction(track.start)

    def advance(self, until: Fraction) -> None:
        """Write what is heard before `until` seconds."""
        raise NotImplementedError

    def finish(self, length: Fraction) -> None:
        """Write the rest up to the picture's length."""
        raise NotImplementedError

    def close(self) -> None:
        self._source.close()

    def _end(self, length: Fraction) -> Fraction:
        return length if self.track.duration is None else min(length, Fraction(self.track.duration))


def open_soundtrack(track: AudioTrack, source: Any, output: Any) -> Soundtrack:
    codec = source.streams.audio[0].codec_context.name
    form = output.format.name
    if codec in PCM.get(form, ()):
        return Reencoder(track, source, output, codec)
    padded = track.pad_to is not None and _length(track) < track.pad_to
    if codec in COPIED[form] and not padded:
        return PacketCopier(track, source, output)
    return Reencoder(track, source, output, "libopus" if form == "webm" else "aac")


def _length(track: AudioTrack) -> Fraction:
    """Seconds of sound from the track's start on."""
    if track.seconds is not None:
        return track.seconds
    seconds = audio_duration(track.path)
    if track.start is not None:
        seconds += sound_start(track.path) - track.start
    return seconds if track.duration is None else min(seconds, track.duration)


class PacketCopier(Soundtrack):
    """The source's packets, byte for byte; only their time stamps move."""

    PREROLL = 4
    """Packets before a cut that a decoder needs to come up to speed (AAC, MP3: one; Opus: 80 ms)."""

    def __init__(self, track: AudioTrack, source: Any, output: Any) -> None:
        super().__init__(track, source, output)
        if hasattr(output, "add_stream_from_template"):
            self._target = output.add_stream_from_template(self._stream)
        else:  # PyAV < 14
            self._target = output.add_stream(template=self._stream)
        self._packets = self._heard()
        self._next = next(self._packets, None)

    def advance(self, until: Fraction) -> None:
        until = self._end(until)
        while self._next is not None and self._next[1] <= until:
            self._write(self._next[2])

    def finish(self, length: Fraction) -> None:
        end = self._end(length)
        while self._next is not None and self._next[0] < end:
            start, stop, packet = self._next
            if stop > end:
                # Tells players to stop inside the last packet. PyAV < 14 cannot set it: the sound then is a bit longer
                with contextlib.suppress(AttributeError):
                    packet.duration = max(1, round((end - start) / packet.time_base))
            self._write(packet)

    def _write(self, packet: Any) -> None:
        packet.stream = self._target
        self._output.mux(packet)
        self._next = next(self._packets, None)

    def _heard(self) -> Iterator[tuple[Fraction, Fraction, Any]]:
        """(start, stop, packet) in output time, from the first packet that is needed on."""
        base = self._stream.time_base
        shift = round(self._origin / base)
        whole = self._origin == audio_origin(self._stream)  # then keep the encoder's priming as it is
        hides = self._output.format.name in ("mp4", "mov")  # an edit list hides what lies before time 0
        clock = None
        for packet in self._source.demux(self._stream):
            if not packet.size or (packet.is_discard and not whole):
                continue
            length = packet.duration or 0
            start = clock or 0 if packet.pts is None else packet.pts - shift
            clock = start + length
            if not whole and clock <= -length * (self.PREROLL if hides else 0):
                continue
            packet.pts = packet.dts = start
            yield start * base, clock * base, packet


class Reencoder(Soundtrack):
    """Decoded, cut to the sample, padded if asked, encoded at the source's rate and channels where the codec can."""

    def __init__(self, track: AudioTrack, source: Any, output: Any, codec: str) -> None:
        super().__init__(track, source, output)
        stored: Any = self._stream.codec_context
        rates = CODEC_RATES.get(codec, (stored.sample_rate,))
        self._rate = next((rate for rate in rates if rate >= stored.sample_rate), rates[-1])
        layout = LAYOUTS.get(len(stored.layout.channels), "stereo")
        self._target = output.add_stream(codec, rate=self._rate)
        context: Any = self._target.codec_context
        context.layout = layout
        channels = len(av.AudioLayout(layout).channels)
        context.time_base = Fraction(1, self._rate)
        if not codec.startswith("pcm_"):
            # transparent for speech and music; AAC allows 6144 bits for each channel of a 1024-sample packet
            wanted, most = max(128_000, 96_000 * channels), 6 * self._rate if codec == "aac" else 256_000
            context.bit_rate = min(wanted, most * channels)
        context.open()
        self._layout, self._format = layout, context.format.name
        self._size = context.frame_size or CHUNK
        self._width = 1 if context.format.is_planar else channels
        self._blocks = self._heard()
        self._rest: np.ndarray | None = None  # decoded, not yet due
        self._due: list[np.ndarray] = []  # due, not yet a full frame
        self._taken = self._sent = 0

    def advance(self, until: Fraction) -> None:
        self._take(int(self._end(until) * self._rate))

    def finish(self, length: Fraction) -> None:
        self._take(round(self._end(length) * self._rate))
        if self.track.pad_to is not None:
            silence = round(min(length, Fraction(self.track.pad_to)) * self._rate) - self._taken
            if silence > 0:
                self._queue(self._silence(silence))
        self._encode(everything=True)

    def _take(self, until: int) -> None:
        """Queue samples up to number `until` of the output, as far as the source has them."""
        while self._taken < until:
            block = self._rest if self._rest is not None else next(self._blocks, None)
            if block is None:
                break
            cut = (until - self._taken) * self._width
            self._rest = block[:, cut:] if block.shape[1] > cut else None
            self._queue(block[:, :cut])
        self._encode()

    def _queue(self, block: np.ndarray) -> None:
        self._due.append(block)
        self._taken += block.shape[1] // self._width

    def _encode(self, everything: bool = False) -> None:
        size = self._size * self._width
        samples = np.concatenate(self._due, axis=1) if self._due else None
        while samples is not None and (samples.shape[1] >= size or (everything and samples.shape[1])):
            self._send(samples[:, :size])
            samples = samples[:, size:]
        self._due = [] if samples is None else [samples]
        if everything:
            self._output.mux(self._target.encode(None))

    def _send(self, block: np.ndarray) -> None:
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format=self._format, layout=self._layout)
        frame.sample_rate, frame.time_base, frame.pts = self._rate, Fraction(1, self._rate), self._sent
        self._sent += frame.samples
        self._output.mux(self._target.encode(frame))

    def _heard(self) -> Iterator[np.ndarray]:
        """Samples from time 0 of the output on: silence where the source starts later, cut where it starts earlier."""
        stated = _stated_duration(self._source, self._stream)
        last = None if stated is None else round((audio_origin(self._stream) + stated - self._origin) * self._rate)
        position = None
        for frame in self._resampled():
            block = frame.to_ndarray()
            if position is None:
                position = round(self._first_time * self._rate)
                if position > 0:
                    yield self._silence(position)
            start, position = position, position + block.shape[1] // self._width
            stop = position if last is None else min(position, last)
            block = block[:, max(0, -start) * self._width : max(0, stop - start) * self._width]
            if block.shape[1]:
                yield block

    def _resampled(self) -> Iterator[Any]:
        resampler = av.AudioResampler(format=self._format, layout=self._layout, rate=self._rate)
        first = True
        for frame in decoded(self._source, self._stream):
            if first:
                time = self._origin if frame.pts is None else frame.pts * self._stream.time_base
                self._first_time, first = time - self._origin, False
            yield from resampler.resample(frame)
        if not first:
            yield from resampler.resample(None)

    def _silence(self, samples: int) -> np.ndarray:
        planes = len(av.AudioLayout(self._layout).channels) if self._width == 1 else 1
        kind = av.AudioFrame(format=self._format, layout=self._layout, samples=1).to_ndarray().dtype
        return np.zeros((planes, samples * self._width), kind)
