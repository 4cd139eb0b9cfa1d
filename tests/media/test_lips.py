"""Lips against sound: films that flash when they click, as they are heard and as they are written.

By default each container, codec and other value comes once in each test; all pairs of them run by -m slow.
"""

from fractions import Fraction
from itertools import product
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition

from benchmarks.robustness import ENCODER_DELAY, SOUNDS
from latentsync.audio.load import load_audio
from latentsync.pipeline import open_job
from latentsync.settings import Settings
from latentsync.timeline import Cut

from .clicks import broken, click_times, click_wave, heard_in

TIMES = (0.28, 0.72, 1.08, 1.92, 2.32, 2.72)
GAP = (1.2, 1.8)
SECONDS = 3
NEAR = 0.010
PICTURES: dict[str, tuple[str, str, dict[str, str]]] = {
    ".webm": ("libvpx", "yuv420p", {"deadline": "realtime", "cpu-used": "8", "g": "25"}),
    ".wmv": ("wmv2", "yuv420p", {"g": "25"}),
    ".mpg": ("mpeg2video", "yuv420p", {"g": "25"}),
    ".3gp": ("h263", "yuv420p", {}),
    ".mxf": ("mpeg2video", "yuv422p", {}),
}
FINE = Fraction(1, 720_000)
X264 = "libx264", "yuv420p", {"preset": "veryfast", "g": "25"}
"""With B-frames: its first stamp is not its first picture's."""


def encoded(stream, frames):
    return [packet for frame in [*frames, None] for packet in stream.encode(frame)]


def flashes(stream, fps, times, size=(64, 48)):
    """Packets of a dark film that is bright for the frames at these times."""
    stream.width, stream.height = size
    stream.codec_context.time_base = 1 / fps
    frames = []
    for i in range(round(SECONDS * fps)):
        bright = any(round(t * fps) == i for t in times)
        frame = av.VideoFrame.from_ndarray(np.full((*size[::-1], 3), 220 if bright else 30, np.uint8), format="rgb24")
        frame.pts, frame.time_base = i, 1 / fps
        frames.append(frame.reformat(format=stream.codec_context.pix_fmt))
    return encoded(stream, frames)


def clicks(stream, times, delay=0):
    rate, layout = stream.codec_context.sample_rate, stream.codec_context.layout.name
    if not stream.codec_context.name.startswith(("pcm", "flac", "alac")):
        stream.codec_context.bit_rate = 128_000
    stream.codec_context.open()
    wave, size = click_wave(times, rate, SECONDS + 0.1), stream.codec_context.frame_size or 1024
    frames = []
    for start in range(0, len(wave), size):
        block = np.repeat(wave[start : start + size, None], stream.codec_context.layout.nb_channels, 1)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block.reshape(1, -1)), format="flt", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, start + delay, Fraction(1, rate)
        frames.append(frame)
    return encoded(stream, frames)


def film(path, sound, *, fps=25, rate=48000, picture=None, late=0.0, gap=None, damage=None, cut=0.0, other=()):
    """late: of the sound's stamps, seconds. gap: seconds without packets. damage: seconds of spoilt packets. cut: the
    film was trimmed there without a new encoding. other: times of clicks of a track before it that is no default."""
    fps, (codec, form, options) = Fraction(fps), picture or PICTURES.get(path.suffix, X264)
    times = [float(round(t * fps) / fps) for t in TIMES]
    # players hide what comes before time 0, if the container can say so; AVI cannot
    trimmed = {"avoid_negative_ts": "disabled"} if cut and path.suffix in (".mp4", ".mov") else {}
    with av.open(str(path), "w", options=trimmed) as container:
        video: Any = container.add_stream(codec, rate=fps, options=options)
        video.pix_fmt = form
        video.codec_context.thread_count = 1  # quicker, of so small pictures
        packets = flashes(video, fps, times, (176, 144) if codec == "h263" else (64, 48))
        for heard in (other, times) if other else (times,):
            track: Any = container.add_stream(sound, rate=rate, layout="stereo")
            if sound == "vorbis":
                track.codec_context.options = {"strict": "experimental"}
            found = clicks(track, heard, ENCODER_DELAY.get(sound, 0) if path.suffix == ".avi" else 0)
            if other:
                track.disposition = Disposition.default if heard is times else Disposition(0)
            packet: Any
            for packet in found:
                at = float(packet.pts * packet.time_base)
                if gap and gap[0] <= at < gap[1]:
                    continue
                if damage and damage[0] <= at < damage[1]:
                    packet = broken(packet)
                packet.pts += round(late / packet.time_base)
                packet.dts = packet.pts
                packet.stream = track
                packets.append(packet)
        for packet in sorted(_kept(packets, cut), key=lambda one: one.dts * one.time_base):
            container.mux(packet)
    return times


def _kept(packets, cut):
    """As ffmpeg -ss -c copy: from the key frame before the cut on, with the cut as time 0."""
    seconds = [packet.pts * packet.time_base for packet in packets]
    keys = (
        at for packet, at in zip(packets, seconds, strict=True) if packet.stream.type == "video" and packet.is_keyframe
    )
    first = max(at for at in keys if at <= cut) if cut else min(seconds)
    for packet, at in zip(packets, seconds, strict=True):
        if at >= first:
            ahead = (packet.pts - packet.dts) * packet.time_base
            packet.time_base = FINE
            packet.pts, packet.dts = (round((one - Fraction(str(cut))) / FINE) for one in (at, at - ahead))
            yield packet


def bright(pictures):
    return [i for i, picture in enumerate(pictures) if picture.mean() > 120]


def run(path, out, part=None):
    """Seconds of the flashes as the engine sees them, and what it hears, at 16 kHz; writes the file."""
    with open_job(path, None, out, Settings(fit="trim"), part) as job:
        pictures = []
        for frame in job.source.read(job.timeline.source_indices()):
            pictures.append(frame)
            job.writer.write(frame)
        speech = job.speech.numpy()
    return [i / float(job.timeline.fps) for i in bright(pictures)], speech


def seen_in(path):
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        frames: list[Any] = list(container.decode(video=0))
    return [frames[i].time for i in bright([frame.to_ndarray(format="gray") for frame in frames])]


def in_file(path):
    """The same of a file, read by PyAV alone."""
    seen, (wave, rate) = seen_in(path), heard_in(path)
    return seen, (wave[: 5 * rate], rate)


def apart(seen, wave, rate, gap=None):
    """Seconds by which each click is later than its flash."""
    if gap:
        wave = np.where(np.abs(np.arange(len(wave)) / rate - seen[0] - np.mean(gap) + TIMES[0]) < 0.38, 0, wave)
    heard = click_times(wave, rate)
    assert len(heard) == len(seen), (heard, seen)
    return np.subtract(heard, seen)


def check(path, suffixes, wanted=0.0, gap=None, count=6, part=None):
    for suffix in suffixes:
        out = path.with_name(f"out{suffix}")
        seen, speech = run(path, out, part)
        assert len(seen) == count
        assert np.abs(apart(seen, speech, 16000, gap) - wanted).max() < NEAR, ("heard", apart(seen, speech, 16000, gap))
        seen, (wave, rate) = in_file(out)
        assert len(seen) == count
        assert np.abs(apart(seen, wave, rate, gap) - wanted).max() < NEAR, (suffix, apart(seen, wave, rate, gap))


UNFIT = (".mp4", "ac3"), (".ts", "aac")
"""The first is refused by the muxer; in the second FFmpeg takes all up to 2.1 s for one packet."""


def spread(cases):
    """The cases; few of them, in which each value comes at least once, are not slow."""
    few, left = [], {one for case in cases for one in enumerate(case)}
    while left:
        few.append(max(cases, key=lambda case: len(left.intersection(enumerate(case)))))
        left.difference_update(enumerate(few[-1]))
    return [case if case in few else pytest.param(*case, marks=pytest.mark.slow) for case in cases]


@pytest.mark.parametrize(("sound", "start"), spread(list(product(["libmp3lame", "ac3"], ["1/25", "3/25", "1/5"]))))
def test_a_part_of_an_avi_begins_between_its_packets(tmp_path, sound, start):
    film(tmp_path / "in.avi", sound, rate=44100)
    wanted = _delay(".avi", sound, 44100)
    check(tmp_path / "in.avi", [".mp4", ".mkv"], wanted, part=Cut(Fraction(start)))


def in_turn(*values):
    """Each container and codec with one of the values."""
    return [(*pair, values[i % len(values)]) for i, pair in enumerate(STAMPED)]


def written_as(suffix):
    return [suffix if suffix in (".mp4", ".mov", ".mkv", ".webm", ".m4v") else ".mp4", ".mkv"]


PAIRS = [(suffix, sound) for suffix, sounds in SOUNDS.items() if suffix != ".ogv" for sound in sounds]


@pytest.mark.parametrize(("suffix", "sound"), spread(PAIRS))
def test_every_container_and_codec(tmp_path, suffix, sound):
    path = tmp_path / f"in{suffix}"
    film(path, sound)
    check(path, written_as(suffix), _delay(suffix, sound))


def _delay(suffix, sound, rate=48000):
    return ENCODER_DELAY.get(sound, 0) / rate if suffix == ".avi" else 0.0


AVI_RATES = zip(["24000/1001", "30", "60000/1001", "50"], SOUNDS[".avi"], strict=True)
AVI_PICTURES = [("libx264", 0), ("libx264", 3), ("mpeg4", 0), ("mpeg4", 2)]


@pytest.mark.parametrize(("rate", "picture"), spread(list(product(AVI_RATES, AVI_PICTURES))))
def test_avi_states_no_times(tmp_path, rate, picture):
    path, (fps, sound), (codec, between) = tmp_path / "in.avi", rate, picture
    film(path, sound, fps=fps, rate=44100, picture=(codec, "yuv420p", {"bf": str(between)}))
    check(path, [".mp4", ".mkv"], _delay(".avi", sound, 44100))


STAMPED = [(".mp4", "aac"), (".mp4", "ac3"), (".mp4", "libopus"), (".mp4", "libmp3lame"), (".mov", "aac"),
           (".mov", "pcm_s16le"), (".mov", "alac"), (".mkv", "aac"), (".mkv", "libopus"), (".mkv", "flac"),
           (".mkv", "pcm_s16le"), (".mkv", "libmp3lame"), (".webm", "libopus"), (".ts", "aac"), (".ts", "mp2"),
           (".ts", "ac3"), (".flv", "aac"), (".flv", "libmp3lame"), (".wmv", "wmav2"), (".mpg", "mp2")]  # fmt: skip


@pytest.mark.parametrize(("suffix", "sound"), spread([pair for pair in STAMPED if pair != (".mov", "pcm_s16le")]))
def test_missing_packets(tmp_path, suffix, sound):
    path = tmp_path / f"in{suffix}"
    film(path, sound, gap=GAP)
    check(path, written_as(suffix))


@pytest.mark.parametrize(("suffix", "sound"), spread([pair for pair in STAMPED if pair not in UNFIT]))
def test_damaged_packets(tmp_path, suffix, sound):
    path = tmp_path / f"in{suffix}"
    film(path, sound, damage=(1.2, 1.5))  # decoders need a while to find their place again
    check(path, written_as(suffix), gap=GAP)


def test_a_packet_that_the_output_refuses_is_a_hole(tmp_path):
    film(tmp_path / "in.ts", "aac", damage=(1.2, 1.5))
    _, speech = run(tmp_path / "in.ts", tmp_path / "out.mp4")
    for wave in (speech, load_audio(tmp_path / "out.mp4").waveform):
        found = [t for t in click_times(wave, 16000) if not 1.15 < t < 2.1]  # what is damaged may crackle
        assert found == pytest.approx([t for t in TIMES if t != 1.92], abs=NEAR)


@pytest.mark.parametrize(("suffix", "sound", "late"), spread(in_turn(0.064, -0.2, 0.2)))
def test_sound_that_begins_late_or_early(tmp_path, suffix, sound, late):
    path = tmp_path / f"in{suffix}"
    film(path, sound, late=late)
    check(path, written_as(suffix), late)


# what writes .wmv drops what comes before time 0
@pytest.mark.parametrize(("suffix", "sound", "cut"), spread([one for one in in_turn(0.9, 1.53) if one[0] != ".wmv"]))
def test_trimmed_without_a_new_encoding(tmp_path, suffix, sound, cut):
    path = tmp_path / f"in{suffix}"
    film(path, sound, cut=cut)
    count = len(seen_in(path))
    assert count >= 3
    check(path, written_as(suffix), count=count)


@pytest.mark.parametrize(("suffix", "sound"), spread([one for one in STAMPED if one[0] in (".mp4", ".mov", ".mkv")]))
def test_the_default_track_is_not_the_first(tmp_path, suffix, sound):
    path = tmp_path / f"in{suffix}"
    film(path, sound, other=(0.5, 1.5))
    check(path, written_as(suffix))
