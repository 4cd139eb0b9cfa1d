"""Sound lies where its time stamps say: for hearing, for measuring and in what is written."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soxr
from scipy.signal import fftconvolve

from latentsync.audio.load import load_audio
from latentsync.errors import UserError
from latentsync.media.audio_track import AudioTrack, audio_duration
from latentsync.media.probe import probe
from latentsync.media.samples import Piece
from latentsync.media.sound import Sound, placed
from latentsync.media.writer import VideoWriter
from latentsync.timeline import fit_timeline

from .clicks import HOLE, RATE, TIMES, click_times, heard_in, picture_start, write_clicks

KINDS = {"opus.webm": "libopus", "opus.mkv": "libopus", "aac.mp4": "aac", "aac.mkv": "aac", "pcm.mkv": "pcm_s16le"}
KINDS |= {"mp3.mkv": "libmp3lame", "ac3.mp4": "ac3", "flac.mkv": "flac", "aac.ts": "aac", "wma.wma": "wmav2"}
NEAR = 0.005


PRIMED = {"aac.ts": 1024 / RATE, "wma.wma": 2048 / RATE}
"""Seconds of an encoder's priming in a container that cannot hide it."""


def at(name):
    return np.add(TIMES, PRIMED.get(name, 0))


def near(found, wanted):
    assert len(found) == len(wanted), (found, wanted)
    assert np.abs(np.subtract(found, wanted)).max() < NEAR, (found, wanted)


def filmed(path, track, seconds=3):
    with VideoWriter(path, 64, 48, Fraction(25), audio=track) as writer:
        for _ in range(round(25 * seconds)):
            writer.write(np.zeros((48, 64, 3), np.uint8))
    return path


def source(folder, name, **more):
    return write_clicks(folder / f"in.{name}", KINDS[name], **more)


@pytest.mark.parametrize("name", KINDS)
def test_words_behind_a_hole_are_heard_at_their_time(tmp_path, name):
    path = source(tmp_path, name, hole=HOLE)
    loaded = load_audio(path)
    near(click_times(loaded.waveform, 16000), at(name))
    assert abs(float(loaded.seconds) - 3) < 0.08  # with the priming and padding of codecs that do not state it
    assert loaded.seconds == audio_duration(path)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
@pytest.mark.parametrize(
    ("name", "encoded"), [*((name, False) for name in KINDS), ("opus.mkv", True), ("aac.mp4", True)]
)
def test_words_behind_a_hole_are_written_at_their_time(tmp_path, name, suffix, encoded):
    path = source(tmp_path, name, hole=HOLE)
    # padding takes a new encoding
    track = AudioTrack(path, pad_to=Fraction(4) if encoded else None)
    out = filmed(tmp_path / f"out{suffix}", track, 4)
    wave, rate = heard_in(out)
    near(np.subtract(click_times(wave, rate), picture_start(out)), at(name))


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
@pytest.mark.parametrize("name", ["clip_trimmed_lossless_edit_list.mp4"])
def test_what_was_trimmed_away_stays_away(media, tmp_path, name, suffix):
    path = media / "reports" / name
    info = probe(path)
    out = filmed(tmp_path / f"out{suffix}", AudioTrack(path, info.start), 2)
    assert picture_start(out) < 0.025
    assert abs(float(audio_duration(out)) - 2) < 0.03
    with av.open(str(out)) as container:
        kept = sum(1 for packet in container.demux(container.streams.audio[0]) if packet.size)
    assert kept < (105 if suffix == ".webm" else 100)
    wave, rate = heard_in(out)
    heard = load_audio(path, info.start).waveform.numpy()
    assert lag(heard, resample(wave[round(picture_start(out) * rate) :], rate)[: len(heard)]) < 0.005


@pytest.mark.parametrize("name", ["own_sound_0.6s_gap_opus.mkv", "own_sound_19_damaged_aac_packets.mp4"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_own_sound_with_a_hole_stays_with_its_picture(media, tmp_path, name, suffix):
    path = media / "reports" / name
    info = probe(path)
    loaded = load_audio(path, info.start)
    assert info.frames == 75
    assert fit_timeline(info.fps, info.frames, loaded.seconds, "trim").frames == 75
    theirs, rate = heard_in(path)
    theirs = resample(theirs[round(float(info.start) * rate) :], rate)
    out = filmed(tmp_path / f"out{suffix}", AudioTrack(path, info.start))
    ours, rate = heard_in(out)
    ours = resample(ours[round(picture_start(out) * rate) :], rate)
    for start in (0, 28000, 36000):  # before and behind the hole
        part = slice(start, start + 10000)
        assert lag(theirs[part], loaded.waveform.numpy()[part]) < 0.005
        assert lag(theirs[part], ours[part]) < 0.005


def resample(wave, rate):
    return soxr.resample(np.asarray(wave, np.float32), rate, 16000)


def lag(a, b):
    """Seconds by which two recordings at 16 kHz are apart; they must be alike."""
    size = min(len(a), len(b))
    a, b = a[:size] - a[:size].mean(), b[:size] - b[:size].mean()
    found = np.correlate(a, b, "full") if size < 4000 else fftconvolve(a, b[::-1])
    assert found.max() > 0.5 * np.linalg.norm(a) * np.linalg.norm(b)
    return abs(int(found.argmax()) - size + 1) / 16000


@pytest.mark.parametrize("name", ["opus.mkv", "aac.mkv", "aac.mp4", "pcm.mkv"])
def test_jitter_neither_cuts_nor_fills(tmp_path, name):
    steady = source(tmp_path, name)
    jittery = write_clicks(tmp_path / f"jitter.{name}", KINDS[name], jitter=0.006)
    found = click_times(load_audio(jittery).waveform, 16000)
    assert np.abs(np.subtract(found, TIMES)).max() < 0.01
    a, b = (np.concatenate([piece.samples[:, 0] for piece in Sound(path).pieces()]) for path in (steady, jittery))
    middle = a[RATE // 2 : 5 * RATE // 2].astype(np.float32)
    moved = int(fftconvolve(b.astype(np.float32), middle[::-1]).argmax()) - len(middle) + 1
    assert np.array_equal(b[moved : moved + len(middle)], a[RATE // 2 : 5 * RATE // 2])


@pytest.mark.parametrize("name", ["opus.mkv", "aac.mp4", "mp3.mkv", "ac3.mp4"])
def test_a_late_packet_that_is_caught_up_with_is_no_hole(tmp_path, name):
    path = source(tmp_path, name)
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        late = tmp_path / f"late.{name}"
        with av.open(str(late), "w") as out:
            target = out.add_stream_from_template(stream)
            packets = [packet for packet in container.demux(stream) if packet.size]
            packets[50].pts = packets[50].dts = (packets[51].pts or 0) - 1
            for packet in packets:
                packet.stream = target
                out.mux(packet)
    near(click_times(load_audio(late).waveform, 16000), TIMES)
    assert len(load_audio(late).waveform) == len(load_audio(path).waveform)


@pytest.mark.parametrize("late", [0.5, 7.25])
@pytest.mark.parametrize("name", ["opus.mkv", "aac.mp4", "pcm.mkv"])
def test_sound_and_picture_keep_their_offset(tmp_path, name, late):
    """The clock of the file begins somewhere else; the picture shows at that time, the sound 0.2 s later."""
    path = source(tmp_path, name, late=late + 0.2)
    near(click_times(load_audio(path, Fraction(late)).waveform, 16000), np.add(TIMES, 0.2))
    for suffix in (".mp4", ".mkv", ".webm"):
        out = filmed(tmp_path / f"out{suffix}", AudioTrack(path, Fraction(late)), 4)
        wave, rate = heard_in(out)
        near(np.subtract(click_times(wave, rate), picture_start(out)), np.add(TIMES, 0.2))


def test_damaged_packets_leave_their_time(tmp_path):
    path = source(tmp_path, "aac.mp4", damage=(1.2, 1.8))
    near(click_times(load_audio(path).waveform, 16000), TIMES)
    path = source(tmp_path, "aac.mp4", damage=(2.8, 3.0))  # to the end
    assert float(load_audio(path).seconds) == pytest.approx(3, abs=0.03)


def stamped(*parts, rate=RATE):
    """(time stamp or None, samples) as the decoder would give them: numbers that count up."""
    count = 0
    for stamp, size in parts:
        samples = (np.arange(size, dtype=np.float32) + count + 1)[:, None]
        count += size
        yield (None if stamp is None else Fraction(stamp)), Piece(samples, Fraction(0), rate, "mono")


def rendered(*parts):
    return np.concatenate(
        [piece.samples[:, 0] for piece in placed(stamped(*parts, rate=1000), Fraction(0), Path("a file"))]
    )


ALL = range(1, 1001)
HUNDRED = [(Fraction(i, 10), 100) for i in range(10)]


@pytest.mark.parametrize(
    ("parts", "wanted"),
    [
        (HUNDRED, ALL),
        ([(None, 100)] * 10, ALL),
        (HUNDRED[:5] + [(s + Fraction(1, 5), n) for s, n in HUNDRED[5:]], [*ALL[:500], *[0] * 200, *ALL[500:]]),
        (HUNDRED[:5] + [(s - Fraction(1, 20), n) for s, n in HUNDRED[5:]], [*range(1, 501), *range(551, 1001)]),
        (HUNDRED[:5] + [(s - Fraction(3, 20), n) for s, n in HUNDRED[5:]], [*range(1, 501), *range(651, 1001)]),
        (HUNDRED[:5] + [(s - 100, n) for s, n in HUNDRED[5:]], range(1, 1001)),  # a clock set back
        ([(s + Fraction((i % 3 - 1) * 30, 1000), n) for i, (s, n) in enumerate(HUNDRED)], range(1, 1001)),  # jitter
        ([*HUNDRED[:5], (Fraction(90), 100), *HUNDRED[6:]], range(1, 1001)),  # one wrong stamp
        ([(s, n) for i, (s, n) in enumerate(HUNDRED) if i != 4], [*range(1, 401), *[0] * 100, *range(401, 901)]),
    ],
)  # fmt: skip
def test_placing(parts, wanted):
    assert rendered(*parts).astype(int).tolist() == list(wanted)


def test_a_leap_is_a_fault_of_the_file():
    with pytest.raises(UserError, match=r"a file jump by 20000 s after 0\.50 s"):
        rendered(*HUNDRED[:5], *((s + 20000, n) for s, n in HUNDRED[5:]))


def test_a_slow_clock_drifts_no_further_than_the_ear():
    """A recorder's clock that is 0.1% slow: over 100 s its sound never is more than 10 ms from its stamps."""
    parts = [(Fraction(i, 10) * Fraction(1001, 1000), 100) for i in range(1000)]
    for piece in placed(stamped(*parts, rate=1000), Fraction(0), Path("a file")):
        if piece.samples[0, 0]:
            number = int(piece.samples[0, 0] - 1)
            assert abs(piece.time - Fraction(number, 1000) * Fraction(1001, 1000)) < Fraction(10, 1000)
