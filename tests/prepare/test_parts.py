"""The parts of `prepare` one by one: arithmetic, files, shots, the chain of steps, the list of files."""

import itertools
import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentsync.audio.load import load_audio
from latentsync.errors import UserError
from latentsync.face.track import FaceTrack, Tracks
from latentsync.media.probe import probe
from latentsync.media.reader import VideoReader
from latentsync.prepare import io, statistics
from latentsync.prepare.clip_steps import only_face
from latentsync.prepare.report import REASONS
from latentsync.prepare.runner import Report, list_sources
from latentsync.prepare.settings import PrepareSettings
from latentsync.prepare.shots import find_shots, split_shot
from latentsync.prepare.steps import Outcome, Rejected, Step, run_steps
from latentsync.prepare.workspace import Item, at_rate, source_id

from ..tiny import write_clip
from .scenes import moved, noise

# ------------------------------------------------------------------------------------------------------------- lengths


@pytest.mark.parametrize(
    ("length", "wanted"),
    [
        (124, [124]),  # too short, and listed
        (125, [125]),
        (250, [250]),
        (251, [125, 126]),
        (300, [150, 150]),
        (501, [167, 167, 167]),
    ],
)
def test_shots_are_cut_into_few_equal_clips(length, wanted):
    assert [b - a for a, b in split_shot(length, PrepareSettings())] == wanted


@given(st.integers(1, 5000), st.integers(10, 100), st.integers(0, 300))
def test_clips_cover_a_shot(length, tenths, more):
    settings = PrepareSettings(min_seconds=tenths / 10, max_seconds=(tenths + more) / 10)
    clips = split_shot(length, settings)
    assert clips[0][0] == 0
    assert clips[-1][1] == length
    assert all(a[1] == b[0] for a, b in itertools.pairwise(clips))
    assert all(b - a <= settings.max_frames for a, b in clips)
    lengths = [b - a for a, b in clips]
    if settings.max_frames >= 2 * settings.min_frames and length >= settings.min_frames:
        assert min(lengths) >= settings.min_frames
        assert max(lengths) - min(lengths) <= 1
    assert sum(n < settings.min_frames for n in lengths) <= 1  # a tail at most


def test_lengths_are_whole_frames():
    settings = PrepareSettings(min_seconds=0.61, max_seconds=1.03)
    assert (settings.min_frames, settings.max_frames) == (16, 25)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"skip": ("face",)}, "--skip is 'face'"),
        ({"resolution": 100}, "multiple of 8"),
        ({"margin": 0.7}, "margin"),
        ({"min_seconds": 6, "max_seconds": 5}, "impossible"),
        ({"min_seconds": 0}, "impossible"),
    ],
)
def test_settings_that_make_no_sense(changes, says):
    with pytest.raises(UserError, match=says):
        PrepareSettings(**changes)


# ---------------------------------------------------------------------------------------------------------------- rate


@pytest.mark.parametrize("rate", ["12", "24", "25", "30000/1001", "30", "50", "60"])
def test_25_fps_shows_what_a_player_shows(tmp_path, rate):
    fps = Fraction(rate)
    levels = np.arange(10, 10 + 5 * 36, 5, dtype=np.uint8)
    frames = np.repeat(levels, 32 * 32 * 3).reshape(-1, 32, 32, 3)
    info = at_rate(probe(write_clip(tmp_path / "ramp.mp4", frames, fps)))
    assert (info.fps, info.frames) == (25, int(36 / fps * 25))
    with VideoReader(info) as reader:
        seen = [round((float(frame.mean()) - 10) / 5) for frame in reader.read(range(info.frames))]
    assert seen == [min(int(j * fps / 25), 35) for j in range(info.frames)]


# --------------------------------------------------------------------------------------------------------------- files


def sine(samples: int) -> np.ndarray:
    return (np.sin(np.arange(samples) / 9) * 9000 + np.random.default_rng(0).normal(0, 99, samples)).astype(np.int16)


def test_sound_is_cut_to_the_sample_and_silent_outside(tmp_path):
    sound = sine(5000)
    io.write_wav(tmp_path / "s.wav", sound)
    assert np.array_equal(io.read_wav(tmp_path / "s.wav", 100, 300), sound[100:300])
    around = io.read_wav(tmp_path / "s.wav", -50, 5070)
    assert np.array_equal(around, np.pad(sound, (50, 70)))
    assert not io.read_wav(tmp_path / "s.wav", 6000, 6100).any()
    assert io.read_wav(tmp_path / "s.wav", -20, -10).tolist() == [0] * 10


def test_pcm_is_clipped_not_wrapped():
    assert io.as_pcm(np.array([0.0, 1.0, -1.0, 1.5, 0.5])).tolist() == [0, 32767, -32768, 32767, 16384]


def test_a_clip_keeps_every_frame_and_every_sample(tmp_path):
    frames, sound = noise(18, 64, 64, 3), sine(18 * 640)
    for name in ("one.mp4", "two.mp4"):
        assert io.write_clip(tmp_path / name, 64, iter(frames), sound) == 18
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()
    # x264 states its options in the stream; with its tree of blocks the bytes vary now and then
    assert b"mbtree=0" in (tmp_path / "one.mp4").read_bytes()
    info = probe(tmp_path / "one.mp4")
    assert (info.fps, info.frames, info.width, info.height, info.variable_rate) == (25, 18, 64, 64, False)
    with VideoReader(info) as reader:
        back = np.stack(list(reader.read(range(18))))
    assert np.abs(back.astype(int) - frames).mean() < 2
    assert heard(tmp_path / "one.mp4").tolist() == sound.tolist()
    assert info.audio_start == 0


def heard(path: Path) -> np.ndarray:
    return io.as_pcm(load_audio(path).waveform.numpy())


def test_other_sound_under_the_same_picture(tmp_path):
    frames, sound = noise(30, 64, 64, 4), sine(30 * 640)
    path = tmp_path / "clip.mp4"
    io.write_clip(path, 64, iter(frames), sound)
    with VideoReader(probe(path)) as reader:
        before = np.stack(list(reader.read(range(30))))
    io.replace_audio(path, np.roll(sound, 1280))
    info = probe(path)
    with VideoReader(info) as reader:
        after = np.stack(list(reader.read(range(info.frames))))
    assert np.array_equal(before, after)
    assert heard(path).tolist() == np.roll(sound, 1280).tolist()


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    """Whatever is written: JSON, arrays, WAV, a clip."""

    class Interrupts(list):
        def __iter__(self):
            yield noise(1, 64, 64, 0)[0]
            raise KeyboardInterrupt

    class Broken:
        def __array__(self, *_, **__):
            raise KeyboardInterrupt

        astype = __array__

    writes = {
        "x.mp4": lambda path: io.write_clip(path, 64, Interrupts(), sine(640)),
        "x.npz": lambda path: io.write_arrays(path, {"a": np.zeros(9), "b": Broken()}),  # type: ignore[dict-item]
        "x.wav": lambda path: io.write_wav(path, Broken()),  # type: ignore[arg-type]
    }
    for name, write in writes.items():
        (tmp_path / name).write_text("old")
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / name)
        assert (tmp_path / name).read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == set(writes)


def test_temporary_files_of_killed_runs_are_removed_later(tmp_path):
    old, new = tmp_path / ".x.mp4.1.part", tmp_path / ".x.mp4.2.part"
    for part in (old, new):
        part.touch()
    os.utime(old, (1, 1))
    io.remove_stale(tmp_path)
    assert not old.exists()
    assert new.exists()


# --------------------------------------------------------------------------------------------------------------- shots


def test_a_cut_is_found_at_its_frame():
    pytest.importorskip("scenedetect", reason="PySceneDetect, of the extra `prepare`")
    frames = np.concatenate([noise(40, 320, 180, 1), noise(40, 320, 180, 2)])
    assert find_shots(frames, 3.0) == ([40], [])
    assert find_shots(frames[:40], 3.0) == ([], [])


def test_a_picture_that_stands_still_is_found():
    pytest.importorskip("scenedetect", reason="PySceneDetect, of the extra `prepare`")
    one = noise(30, 320, 180, 1)
    frames = np.concatenate([one[:10], np.repeat(one[9:10], 24, axis=0), one[10:]])
    assert find_shots(frames, 3.0)[1] == [[9, 34]]
    assert find_shots(np.delete(frames, 20, axis=0), 3.0)[1] == []  # 24 equal frames are less than a second
    assert find_shots(np.concatenate([one[:5], np.repeat(one[4:5], 40, axis=0)]), 3.0)[1] == [[4, 45]]
    assert find_shots(moved(np.full((90, 160, 3), 9, np.uint8), 30), 3.0)[1] == [[0, 30]]


# --------------------------------------------------------------------------------------------------------------- faces


def track(present: list[int] | None = None, segments=((0, 10),), height: float = 100.0, index: int = 0) -> FaceTrack:
    points = np.zeros((10, 68, 2), np.float32)
    points[:, 8, 1] = height
    there = np.ones(10, bool) if present is None else np.isin(np.arange(10), present)
    return FaceTrack(index, np.zeros((10, 3, 2), np.float32), points, there, segments, (640, 480))


@pytest.mark.parametrize(
    ("faces", "reason"),
    [
        ([track(), track(index=1)], "several_faces"),
        ([track(present=[0, 1, 2, 3], segments=((0, 4),))], "face_lost"),
        ([track(segments=((0, 4), (4, 10)))], "cut"),
        ([track(height=95.9)], "small_face"),
        ([track(height=96.0)], None),
    ],
)
def test_exactly_one_face_in_every_frame(faces, reason):
    tracks = Tracks(tuple(faces), 10, (640, 480))
    if reason is None:
        assert only_face(tracks, 96.0) is faces[0]
        return
    with pytest.raises(Rejected) as dropped:
        only_face(tracks, 96.0)
    assert dropped.value.reason == reason
    assert reason in REASONS


# --------------------------------------------------------------------------------------------------------------- chain


def chain(tmp_path: Path, ran: list[str], **options):
    """Three steps that note that they ran; the second leaves a file, the third drops odd items."""

    def second(workspace, item, data):
        ran.append("two")
        (tmp_path / "made").touch()
        return {"two": data["one"] + 1}

    def third(workspace, item, data):
        ran.append("three")
        if options.get("limit", 0) > data["two"]:
            raise Rejected("small_face", "Too small.", size=data["two"])
        return {}

    steps = (
        Step("one", lambda s, i, f: ran.append("one") or {"one": 1}, "unreadable"),
        Step("two", second, "unreadable", lambda s, i: options.get("two"), lambda s, i: (tmp_path / "made",)),
        Step("three", third, "unreadable", lambda s, i: options.get("limit")),
    )
    settings = PrepareSettings(skip=options.get("skip", ()))
    workspace = SimpleNamespace(settings=settings, path=lambda item: Path("in") / item.source)
    return run_steps(steps, workspace, Item("x", "x.mp4", key=options.get("key", "")), tmp_path / "x.json")  # type: ignore[arg-type]


def test_steps_run_once_and_again_only_from_what_changed(tmp_path):
    ran: list[str] = []
    first = chain(tmp_path, ran)
    assert ran == ["one", "two", "three"]
    assert first.data == {"one": 1, "two": 2}
    assert first.rejected is None

    def again(**options):
        ran.clear()
        return chain(tmp_path, ran, **options)

    assert again().steps == first.steps
    assert ran == []
    assert again(two="other").data == first.data
    assert ran == ["two", "three"]
    assert again(two="other", limit=5).rejected == ("three", "small_face", "Too small.")
    assert ran == ["three"]
    assert again(two="other", limit=5).data["size"] == 2
    assert ran == []
    (tmp_path / "made").unlink()
    assert again(two="other", limit=5).rejected
    assert ran == []
    assert again(two="other").rejected is None
    assert ran == ["two", "three"]
    assert again(key="another source")
    assert ran == ["one", "two", "three"]
    (tmp_path / "x.json").write_text("[{", encoding="utf-8")
    assert again(key="another source")
    assert ran == ["one", "two", "three"]


def test_damaged_input_ends_an_item_by_the_steps_fault_and_bugs_do_not(tmp_path):
    def bad(workspace, item, data):
        raise UserError(f"{workspace.path(item)} is damaged; give another.")

    workspace = SimpleNamespace(settings=PrepareSettings(), path=lambda item: Path("/data") / item.source)
    outcome = run_steps([Step("one", bad, "bad_sound")], workspace, Item("x", "a/x.mp4"), tmp_path / "x.json")  # type: ignore[list-item,arg-type]
    assert outcome.rejected == ("one", "bad_sound", "a/x.mp4 is damaged; give another.")
    assert Outcome.from_json(outcome.to_json()) == outcome

    def broken(workspace, item, data):
        raise TypeError("a bug")

    with pytest.raises(TypeError):
        run_steps([Step("one", broken, "bad_sound")], workspace, Item("y", "y"), tmp_path / "y.json")  # type: ignore[list-item,arg-type]
    assert not (tmp_path / "y.json").exists()  # so that the next run tries again


# ------------------------------------------------------------------------------------------------------------- folders


def test_only_videos_outside_the_results_are_sources(tmp_path):
    for name in ("b.mp4", "a/b.MOV", "a/.hidden.mp4", ".cache/c.mp4", "n.txt", "out/clips/d.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list_sources(tmp_path, tmp_path / "out") == (tmp_path, ["a/b.MOV", "b.mp4"], 1)
    assert list_sources(tmp_path, tmp_path / "out", ["a/*"])[1:] == (["a/b.MOV"], 0)
    assert list_sources(tmp_path / "b.mp4", tmp_path / "out") == (tmp_path, ["b.mp4"], 0)
    for source, out, says in [
        (tmp_path, tmp_path, "is in the output"),
        (tmp_path / "a", tmp_path, "is in the output"),
        (tmp_path / "none", tmp_path / "out", "There is no"),
        (tmp_path / "out", tmp_path / "out", "is in the output"),
    ]:
        with pytest.raises(UserError, match=says):
            list_sources(source, out)
    with pytest.raises(UserError, match="no video"):
        list_sources(tmp_path, tmp_path / "out", ["*.avi"])


def test_equal_names_in_two_folders_do_not_meet():
    ids = {source_id(path) for path in ("a/x.mp4", "b/x.mp4", "a/x.mov", "x.mp4")}
    assert len(ids) == 4
    assert all(name.startswith("x-") for name in ids)
    assert source_id("a/ü: *?.mp4").isprintable()
    assert not set(source_id("a/ü: *?.mp4")) & set(' :*?/"')


def test_a_video_at_25_fps_is_left_as_it_is(tmp_path):
    info = probe(write_clip(tmp_path / "x.mp4", noise(5, 32, 32, 0), Fraction(25)))
    assert at_rate(info) is info
    assert at_rate(replace(info, fps=Fraction(50))).frames == 5  # by its duration, which is kept


# ---- statistics ------------------------------------------------------------------------------------------------------


def kept_record(number, **values):
    usual = {"id": f"c{number}", "source": f"anna/{number}.mp4", "status": "kept", "reason": None, "start": 0.0,
             "stop": 4.0, "face_px": 200.0, "offset": 0, "confidence": 6.0, "quality": None}  # fmt: skip
    return usual | values


def test_the_page_sums_up_and_suggests_limits_with_a_reason(tmp_path):
    records = [kept_record(i, face_px=90.0 if i < 3 else 200.0) for i in range(14)]
    records += [kept_record(20 + i, source="ben/x.mp4", offset=5, confidence=i / 10) for i in range(11)]
    report = Report(tmp_path, PrepareSettings(min_confidence=0.0), records)
    assert dict(statistics.totals(report))["Hours"] == f"{25 * 4 / 3600:.2f}"
    assert dict(statistics.totals(report))["Recordings"] == "15"
    assert dict(statistics.totals(report))["Folders of the input (people, if there is one for each)"] == "2"
    assert dict(statistics.totals(report))["Largest recording"] == "ben/x.mp4, 44 % of the time"
    spread = {row[0]: row[1:] for row in statistics.spread(report)}
    assert spread["Face, brows to chin (px)"] == ("25", "90", "90", "200", "200", "200")
    assert "Image quality" not in spread
    found = dict(statistics.suggestions(report))
    assert "3 of 25" in found["--min-face 96"]
    assert "9 kept clips" in found["--min-confidence 0.9"]  # nine of the eleven false matches lie below 0.9
    assert "more recordings" not in found
    page = statistics.write_statistics(report).read_text()
    assert "<td>ben/x.mp4, 44 % of the time" in page
    assert "report.png" not in page


def test_nothing_to_suggest_and_nothing_kept(tmp_path):
    fine = Report(tmp_path, PrepareSettings(), [kept_record(i) for i in range(9)])
    assert statistics.suggestions(fine) == []
    empty = Report(tmp_path, PrepareSettings(), [])
    assert statistics.spread(empty) == []
    assert "None: the limits fit" in statistics.write_statistics(empty).read_text()
