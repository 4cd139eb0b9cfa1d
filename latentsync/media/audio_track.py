"""The sound of an output file: the user's packets as they are where the container can hold them, else encoded."""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import InvalidDataError

from .opening import clean_tags, exact, open_media
from .samples import no_sound, resampled
from .sound import Sound, packets_of
from .tracks import DEFAULT, audible, decodable

_log = logging.getLogger(__name__)

COPIED: dict[str, frozenset[str]] = {
    "mp4": frozenset({"aac", "mp3", "mp3float", "alac", "ac3", "eac3", "opus", "libopus", "flac"}),
    "mov": frozenset({"aac", "mp3", "mp3float", "alac", "ac3", "eac3"}),
    "matroska": frozenset(
        {"aac", "mp3", "mp3float", "mp2", "mp2float", "alac", "ac3", "eac3", "dca", "opus", "libopus", "flac", "vorbis"}
    ),
    "webm": frozenset({"opus", "libopus", "vorbis"}),
    "wav": frozenset(),
}
"""Decoder names whose packets a container takes over and that common players play back from it."""

PCM: dict[str, frozenset[str]] = {
    "mov": frozenset(f"pcm_{x}" for x in ("s16le", "s16be", "s24le", "s24be", "s32le", "s32be", "f32le", "f32be")),
    "matroska": frozenset(f"pcm_{x}" for x in ("s16le", "s24le", "s32le", "f32le")),
    "wav": frozenset(f"pcm_{x}" for x in ("s16le", "s24le", "s32le", "f32le")),
}
"""Written again in the same form: the same samples, and cut at any sample, which packets do not allow."""

ENCODED = {"mp4": "aac", "mov": "aac", "matroska": "aac", "webm": "libopus", "wav": "pcm_s24le"}
"""What all other sound becomes."""

CODEC_RATES = {
    "aac": (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000),
    "libopus": (8000, 12000, 16000, 24000, 48000),
}
"""Of a source's rate, the next of these is taken; other codecs take any."""
LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 7: "7.1", 8: "7.1"}
"""Names by number; more channels are mixed to one, as no player knows where they belong."""
CHUNK = 1024  # samples that codecs without a frame size get at a time


@dataclass(frozen=True)
class AudioTrack:
    """Sound to lay under the picture.

    start: time on the file's own clock (seconds) that falls on the first video frame; None is the first sample.
    duration: seconds to keep at most. pad_to: append silence up to this many seconds. The video's end always cuts.
    seconds: how long it is from the start on, where that is known; else padding means to measure it by decoding.
    steady: its rate and channels do not change on the way, so that its packets may be copied.
    number: of the sound track in the file, from 0; None is the one to be heard (see tracks.chosen_track).
    """

    path: str | Path
    start: Fraction | None = None
    duration: Fraction | None = None
    pad_to: Fraction | None = None
    seconds: Fraction | None = None
    steady: bool = True
    number: int | None = None


def has_audio(path: str | Path) -> bool:
    with open_media(path, "an audio or video file") as container:
        return audible(container)


def audio_duration(path: str | Path) -> Fraction:
    """Seconds of sound, exact: from the first sample to the end of the last, holes included, less what an MP4 marks as
    padding of its last packet."""
    return _seconds(AudioTrack(path))


def sound_start(path: str | Path, number: int | None = None) -> Fraction:
    """When the first sample of a file's sound is heard, on the file's clock, in seconds."""
    with Sound(path, number) as sound:
        return sound.origin


def _seconds(track: AudioTrack) -> Fraction:
    """Of sound from the track's start on."""
    with Sound(track.path, track.number) as sound:
        start = sound.origin if track.start is None else Fraction(track.start)
        last = start
        for piece in sound.pieces(start):
            last = piece.end
    return last - start if track.duration is None else min(last - start, track.duration)


class Soundtrack:
    """Feeds one track into an output container in step with the picture: advance() with it, finish() at its end."""

    target: Any
    """The stream in the output."""

    def __init__(self, track: AudioTrack, source: Sound, output: Any) -> None:
        """source: the track's file, opened; closed here."""
        self.track = track
        self._output = output
        self._source = source
        self._stream = source.stream
        self.origin = source.origin if track.start is None else Fraction(track.start)
        self.language = clean_tags(source.stream.metadata).get("language", "und")

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


def open_soundtrack(track: AudioTrack, source: Sound, output: Any) -> Soundtrack:
    """The track, and the file's other tracks behind it where the container takes them as they are."""
    main = _open_one(track, source, output)
    others = list(_others(replace(track, start=main.origin), source, output))
    return Together(track, source, output, [main, *others]) if others else main


def _others(track: AudioTrack, source: Sound, output: Any) -> Iterator[Soundtrack]:
    form = output.format.name
    for number in range(len(source.container.streams.audio)):
        if number == source.number or not decodable(source.container.streams.audio[number]):
            continue
        other, one = Sound(track.path, number), replace(track, number=number, pad_to=None)
        if form != "wav" and other.codec in PCM.get(form, ()):
            yield Reencoder(one, other, output, other.codec)
        elif _holds(form, other) and _in_order(other):
            yield PacketCopier(one, other, output)
        else:
            _log.warning("%s: audio track %d is left out; a file like .mkv may hold it", track.path, number)
            other.close()


def _open_one(track: AudioTrack, source: Sound, output: Any) -> Soundtrack:
    form = output.format.name
    if source.codec in PCM.get(form, ()):
        return Reencoder(track, source, output, source.codec)
    if _holds(form, source) and track.steady and not _padded(track) and _in_order(source):
        return PacketCopier(track, source, output)
    return Reencoder(track, source, output, ENCODED[form])


class Together(Soundtrack):
    """Several tracks of one file; what players take by themselves is the first."""

    def __init__(self, track: AudioTrack, source: Sound, output: Any, tracks: list[Soundtrack]) -> None:
        super().__init__(track, source, output)
        self._tracks = tracks
        for number, one in enumerate(tracks):
            language = one.language
            if language != "und":
                one.target.metadata["language"] = language
            with contextlib.suppress(AttributeError):  # PyAV < 13
                one.target.disposition = DEFAULT if number == 0 else 0

    def advance(self, until: Fraction) -> None:
        for track in self._tracks:
            track.advance(until)

    def finish(self, length: Fraction) -> None:
        for track in self._tracks:
            track.finish(length)

    def close(self) -> None:
        for track in self._tracks:
            track.close()


MOST_PADDING = 4096
"""Samples that an encoder puts before the sound, at most."""


def _holds(form: str, source: Sound) -> bool:
    # FFmpeg refuses slow MP3 in these two
    slow = source.codec.startswith("mp3") and source.rate < 16000 and form in ("mp4", "mov")
    # an edit list that hides much of the beginning: FFmpeg 8.1 (PyAV 19) would have Matroska hide as much again
    hidden = getattr(source.stream.codec_context, "initial_padding", 0) > MOST_PADDING and form in ("matroska", "webm")
    return source.codec in COPIED[form] and not slow and not hidden


def _padded(track: AudioTrack) -> bool:
    if track.pad_to is None:
        return False
    return (_seconds(track) if track.seconds is None else track.seconds) < track.pad_to


def _in_order(source: Sound) -> bool:
    """Whether stamps only grow: containers take no others, and a clock that was set back has to be set right."""
    last: int | None = None
    with open_media(source.path, "an audio file") as container:
        for packet in packets_of(container, container.streams[source.stream.index]):
            if packet.pts is not None:
                if last is not None and packet.pts <= last:
                    return False
                last = packet.pts
    return True


class PacketCopier(Soundtrack):
    """The source's packets, byte for byte; only their time stamps move."""

    PREROLL = 4
    """Packets before a cut that a decoder needs to come up to speed (AAC, MP3: one; Opus: 80 ms)."""
    PRIMING = 2
    """Packets of silence that an encoder puts before the sound, at most."""

    def __init__(self, track: AudioTrack, source: Any, output: Any) -> None:
        super().__init__(track, source, output)
        if hasattr(output, "add_stream_from_template"):
            self.target = output.add_stream_from_template(self._stream)
        else:  # PyAV < 14
            self.target = output.add_stream(template=self._stream)
        # AVI counts in whole packets, which is too coarse for a part that begins anywhere
        self._tick = min(exact(self._stream.time_base), Fraction(1, source.rate))
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
                    packet.duration = max(1, round((end - start) / exact(packet.time_base)))
            self._write(packet)

    def _write(self, packet: Any) -> None:
        packet.stream = self.target
        with contextlib.suppress(InvalidDataError):  # too damaged to be taken: its time stays empty
            self._output.mux(packet)
        self._next = next(self._packets, None)

    def _heard(self) -> Iterator[tuple[Fraction, Fraction, Any]]:
        """(start, stop, packet) in output time, from the first packet that is needed on."""
        base, before = self._tick, []
        for start, stop, packet in self._moved():
            if stop <= 0 and before is not None:
                before.append((start, stop, packet))
                continue
            if packet.is_discard:  # cut away in the middle
                continue
            yield from ((a * base, b * base, early) for a, b, early in self._led(before or []))
            before = None
            yield start * base, stop * base, packet

    def _led(self, before: list[tuple[int, int, Any]]) -> list[tuple[int, int, Any]]:
        """Those of the packets before the first one heard that go along."""
        if self._output.format.name in ("mp4", "mov"):
            return before[-self.PREROLL :]  # an edit list hides what lies before time 0
        # elsewhere all starts with the first packet: an encoder's priming may, a part that was cut away may not
        whole = self.origin == self._source.origin
        return before if whole and len(before) <= self.PRIMING else []

    def _moved(self) -> Iterator[tuple[int, int, Any]]:
        """The same in ticks, of all packets."""
        base, clock = exact(self._stream.time_base), None
        for packet in packets_of(self._source.container, self._stream):
            if packet.size:
                start = clock or 0 if packet.pts is None else round((packet.pts * base - self.origin) / self._tick)
                clock = start + round((packet.duration or 0) * base / self._tick)
                packet.pts = packet.dts = start
                packet.time_base, packet.duration = self._tick, clock - start
                yield start, clock, packet


class Reencoder(Soundtrack):
    """Decoded, cut to the sample, padded if asked, encoded at the source's rate and channels where the codec can."""

    def __init__(self, track: AudioTrack, source: Sound, output: Any, codec: str) -> None:
        super().__init__(track, source, output)
        rates = CODEC_RATES.get(codec, (source.rate,))
        self._rate = next((rate for rate in rates if rate >= source.rate), rates[-1])
        plain = codec.startswith("pcm_")
        layouts = LAYOUTS | ({4: "quad"} if codec == "libopus" else {})
        self._layout = source.stream.codec_context.layout.name if plain else layouts.get(source.channels, "mono")
        if not plain and source.channels > max(LAYOUTS):
            _log.warning("%s: its %d channels are mixed to one", track.path, source.channels)
        self._channels = av.AudioLayout(self._layout).nb_channels
        self.target = output.add_stream(codec, rate=self._rate)
        context: Any = self.target.codec_context
        context.layout, context.time_base = self._layout, Fraction(1, self._rate)
        if not plain:
            # transparent for speech and music; AAC allows 6144 bits for each channel of a 1024-sample packet
            wanted, most = max(128_000, 96_000 * self._channels), 6 * self._rate if codec == "aac" else 256_000
            context.bit_rate = min(wanted, most * self._channels)
        context.open()
        self._format = context.format.packed.name
        self._size = context.frame_size or CHUNK
        self._blocks = resampled(source.pieces(self.origin), self._rate, self._layout, self._format)
        self._rest: np.ndarray | None = None  # decoded, not yet due
        self._due: list[np.ndarray] = []  # due, not yet a full frame
        self._taken = self._sent = 0

    def advance(self, until: Fraction) -> None:
        self._take(int(self._end(until) * self._rate))

    def finish(self, length: Fraction) -> None:
        self._take(round(self._end(length) * self._rate))
        if self.track.pad_to is not None:
            missing = round(min(length, Fraction(self.track.pad_to)) * self._rate) - self._taken
            if missing > 0:
                self._queue(no_sound(missing, self._channels, self._format))
        self._encode(everything=True)

    def _take(self, until: int) -> None:
        """Queue samples up to number `until` of the output, as far as the source has them."""
        while self._taken < until:
            block = self._rest if self._rest is not None else next(self._blocks, None)
            if block is None:
                break
            cut = until - self._taken
            self._rest = block[cut:] if len(block) > cut else None
            self._queue(block[:cut])
        self._encode()

    def _queue(self, block: np.ndarray) -> None:
        self._due.append(block)
        self._taken += len(block)

    def _encode(self, everything: bool = False) -> None:
        samples = np.concatenate(self._due) if self._due else None
        while samples is not None and (len(samples) >= self._size or (everything and len(samples))):
            self._send(samples[: self._size])
            samples = samples[self._size :]
        self._due = [] if samples is None else [samples]
        if everything:
            self._output.mux(self.target.encode(None))

    def _send(self, block: np.ndarray) -> None:
        """Packed, also where the codec takes planes: PyAV converts, and fails on more than seven planes of ours."""
        packed = np.ascontiguousarray(block).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, format=self._format, layout=self._layout)
        frame.sample_rate, frame.time_base, frame.pts = self._rate, Fraction(1, self._rate), self._sent
        self._sent += len(block)
        self._output.mux(self.target.encode(frame))
