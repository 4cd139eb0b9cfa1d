"""A run that was stopped and gone on with makes the file that an uninterrupted one makes."""

import subprocess
import sys
import wave
from contextlib import suppress
from fractions import Fraction

import av
import numpy as np
import pytest

from latentsync.errors import UserError
from latentsync.media import journal, writer
from latentsync.media.audio_track import AudioTrack
from latentsync.media.encoding import ENDINGS, Kind, choose_encoding
from latentsync.media.journal import Journal, fingerprint, journal_folder, open_journal
from latentsync.media.writer import VideoWriter
from latentsync.settings import Settings

SIZE, FPS, COUNT, CHUNK = (96, 64), Fraction(30000, 1001), 23, 6
FORMS = [("mp4", "h264"), ("mp4", "h265"), ("webm", "vp9"), ("webm", "av1"), ("mp4", "av1"), ("mov", "prores")]


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    monkeypatch.setattr(journal, "CHUNK", CHUNK)
    monkeypatch.setattr(writer, "CHUNK", CHUNK)


def picture(i):
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    waves = [np.sin((x + 3 * i) / 7), np.cos((y - 2 * i) / 5), np.sin((x + y + i) / 9)]
    return (128 + 80 * np.stack(waves, -1)).astype(np.uint8)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "a.wav"
    t = np.arange(round(48000 * COUNT / FPS)) / 48000
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(48000)
        file.writeframes((9000 * np.sin(2 * np.pi * (300 + 200 * t) * t)).astype("<i2").tobytes())
    return path


def start(out, kept, codec="h264", sound=None):
    encoding = choose_encoding(ENDINGS[out.suffix], SIZE, Kind(), Settings(codec=codec))
    track = None if sound is None else AudioTrack(sound, Fraction(0), None, None, COUNT / FPS, True)
    return VideoWriter(out, *SIZE, FPS, encoding=encoding, audio=track, journal=kept)


class Stopped(Exception):
    pass


def run(out, stop=None, key="a", codec="h264", sound=None):
    """Write, as far as the frame `stop`; the frame at which it went on."""
    with open_journal(out, key) as kept, start(out, kept, codec, sound) as made:
        began = made.frames
        for i in range(made.frames, COUNT if stop is None else stop):
            made.write(picture(i))
        if stop is not None:
            raise Stopped
    return began


def stopped(out, stop, **options):
    with pytest.raises(Stopped):
        run(out, stop, **options)
    assert not out.exists()


def content(path):
    """Decoded pictures, their times, key frames, and the sound."""
    with av.open(str(path)) as file:
        frames = list(file.decode(video=0))
        pictures = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
        times = [frame.pts * frame.time_base for frame in frames]
    heard = None
    with av.open(str(path)) as file:
        if file.streams.audio:
            heard = np.concatenate([frame.to_ndarray().ravel() for frame in file.decode(audio=0)])
    return pictures, times, heard


def packets(path):
    with av.open(str(path)) as file:
        return [(p.pts, p.dts, p.duration, p.is_keyframe, bytes(p)) for p in file.demux(video=0) if p.size]


def files(out):
    return sorted(path.name for path in out.parent.iterdir())


def check_same(one, other):
    (a, times, heard), (b, other_times, other_heard) = content(one), content(other)
    assert len(a) == COUNT
    assert np.array_equal(a, b)
    assert times == other_times
    assert (heard is None) == (other_heard is None)
    assert heard is None or np.array_equal(heard, other_heard)
    assert packets(one) == packets(other)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Uninterrupted runs, by form."""
    return {"folder": tmp_path_factory.mktemp("whole")}


def uninterrupted(whole, ending, codec, sound):
    name = f"{codec}.{ending}"
    if name not in whole:
        whole[name] = whole["folder"] / name
        run(whole[name], codec=codec, sound=sound)
    return whole[name]


@pytest.mark.parametrize("stop", [1, CHUNK, CHUNK + 1, 2 * CHUNK + 4, COUNT - 1])
@pytest.mark.parametrize(("ending", "codec"), FORMS)
def test_what_was_stopped_goes_on_to_the_same_file(tmp_path, whole, sound, ending, codec, stop):
    out = tmp_path / f"out.{ending}"
    stopped(out, stop, codec=codec, sound=sound)
    assert run(out, codec=codec, sound=sound) == stop // CHUNK * CHUNK
    check_same(out, uninterrupted(whole, ending, codec, sound))
    assert files(out) == [out.name]


@pytest.mark.parametrize(("ending", "codec"), FORMS)
def test_a_run_with_a_journal_shows_the_frames_it_was_given(whole, sound, ending, codec):
    pictures, times, heard = content(uninterrupted(whole, ending, codec, sound))
    wanted = np.stack([picture(i) for i in range(COUNT)])
    assert np.abs(pictures.astype(int) - wanted).mean() < 6
    assert all(abs(time - i / FPS) < Fraction(1, 900) for i, time in enumerate(times))
    assert len(heard) / 48000 == pytest.approx(float(COUNT / FPS), abs=0.05)


def test_it_may_be_stopped_again_and_again(tmp_path, whole, sound):
    out = tmp_path / "out.mp4"
    for stop in range(1, COUNT, 2):
        stopped(out, stop, sound=sound)
    run(out, sound=sound)
    check_same(out, uninterrupted(whole, "mp4", "h264", sound))


def test_it_may_be_stopped_when_all_frames_are_written(tmp_path, whole, sound):
    out = tmp_path / "out.mp4"
    for _ in range(2):
        stopped(out, COUNT, sound=sound)
    assert run(out, sound=sound) == COUNT // CHUNK * CHUNK
    check_same(out, uninterrupted(whole, "mp4", "h264", sound))


def test_before_a_chunk_is_done_nothing_is_kept(tmp_path):
    out = tmp_path / "out.mp4"
    stopped(out, CHUNK - 1)
    assert files(out) == []


def test_something_else_that_was_kept_is_there_again_and_then_gone(tmp_path):
    out = tmp_path / "out.mp4"
    with suppress(Stopped), open_journal(out, "a") as kept:
        kept.path("tracks.npz").write_bytes(b"faces")
        raise Stopped
    with open_journal(out, "a") as kept:
        assert (kept.frames, kept.path("tracks.npz").read_bytes()) == (0, b"faces")
    assert files(out) == []


def test_another_run_does_not_go_on_with_it(tmp_path, whole, sound):
    out = tmp_path / "out.mp4"
    stopped(out, 2 * CHUNK + 1, sound=sound)
    assert run(out, key="b", sound=sound) == 0
    check_same(out, uninterrupted(whole, "mp4", "h264", sound))
    assert files(out) == [out.name]


@pytest.mark.parametrize("size", [0, 1, 20, -1, "other bytes"])
@pytest.mark.parametrize("number", [0, 1])
def test_a_torn_chunk_and_those_after_it_are_made_again(tmp_path, whole, sound, size, number):
    """As a computer leaves them that loses its power while it writes."""
    out = tmp_path / "out.mp4"
    stopped(out, 3 * CHUNK + 1, sound=sound)
    chunk = Journal(journal_folder(out))._chunk(number)
    data = chunk.read_bytes()
    chunk.write_bytes(data[:-9] + bytes(9) if size == "other bytes" else data[:size])
    assert run(out, sound=sound) == number * CHUNK
    check_same(out, uninterrupted(whole, "mp4", "h264", sound))


@pytest.mark.parametrize("state", ["", "{", "[1]", '{"key": 3, "pid": "x"}', "null"])
def test_a_torn_state_is_another_run_s(tmp_path, state):
    out = tmp_path / "out.mp4"
    stopped(out, CHUNK + 1)
    (journal_folder(out) / "run.json").write_text(state)
    assert run(out) == 0
    assert files(out) == [out.name]


def test_what_a_killed_process_left_beside_the_output_goes(tmp_path):
    out = tmp_path / "out.mp4"
    code = f"""
import os, pathlib
from latentsync.media.journal import open_journal
from latentsync.files import partial_path
with open_journal({str(out)!r}, "a") as kept:
    partial_path(pathlib.Path({str(out)!r})).write_bytes(b"half")
    (kept.folder / ".x.part").write_bytes(b"half")
    kept.path("tracks.npz").write_bytes(b"faces")
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert len(files(out)) == 2
    with suppress(Stopped), open_journal(out, "a") as kept:
        assert files(out) == [journal_folder(out).name]
        assert sorted(path.name for path in kept.folder.iterdir()) == ["lock", "run.json", "tracks.npz"]
        raise Stopped
    assert run(out) == 0
    assert files(out) == [out.name]


def test_two_at_once_one_keeps_the_journal_and_both_write(tmp_path, whole, sound):
    """The second does without; neither takes anything from the other."""
    out = tmp_path / "out.mp4"
    code = f"""
import sys
from latentsync.media.journal import open_journal
with open_journal({str(out)!r}, "a") as kept:
    print(kept is not None, flush=True)
    sys.stdin.readline()
    print(kept.folder.is_dir(), flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        with open_journal(out, "a") as kept:
            assert kept is None
        with pytest.raises(Stopped):  # without a journal nothing is kept
            run(out, CHUNK + 1, sound=sound)
        run(out, sound=sound)
        assert files(out) == [journal_folder(out).name, out.name]
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.stdout.readline() == "True\n"
    assert files(out) == [out.name]
    assert np.abs(content(out)[0].astype(int) - content(uninterrupted(whole, "mp4", "h264", sound))[0]).mean() < 4


def test_a_full_disk_leaves_no_half_file_and_the_run_goes_on_when_there_is_room(tmp_path, whole, sound):
    """A limit on file sizes is as near to a full disk as a test can come without being root."""
    resource = pytest.importorskip("resource")
    reference, out = uninterrupted(whole, "mp4", "h264", sound), tmp_path / "out.mp4"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (reference.stat().st_size * 2 // 3, before[1]))
    try:
        with pytest.raises(UserError, match="could not be written") as caught:
            run(out, sound=sound)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    assert not out.exists()
    assert files(out) in ([], [journal_folder(out).name])
    run(out, sound=sound)
    check_same(out, reference)
    assert files(out) == [out.name]


@pytest.mark.skipif(sys.platform == "win32", reason="folders have no such mode")
def test_a_journal_that_cannot_be_made_does_not_stop_a_run(tmp_path):
    out = tmp_path / "out.mp4"
    journal_folder(out).write_bytes(b"a file of that name")
    with open_journal(out, "a") as kept:
        assert kept is None
    assert files(out) == [journal_folder(out).name]


def test_fingerprints_tell_runs_apart(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"1")
    same = fingerprint({"seed": 1, "rate": FPS}, path, None)
    assert fingerprint({"rate": FPS, "seed": 1}, str(path)) == same
    others = [fingerprint({"seed": 2, "rate": FPS}, path), fingerprint({"seed": 1, "rate": FPS})]
    path.write_bytes(b"22")
    others.append(fingerprint({"seed": 1, "rate": FPS}, path))
    assert len({same, *others}) == 4
