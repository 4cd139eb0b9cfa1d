"""From file to file as footage needs it: gone on with after a stop, several speakers, parts, no face, a drawn face."""

from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest

from latentsync.audio.speakers import Speaker
from latentsync.errors import NoFaceError, UserError
from latentsync.face.saved import NO_TRACKS, load_tracks
from latentsync.face.spans import PASSED
from latentsync.media import journal, output, writer
from latentsync.media.probe import probe
from latentsync.media.reader import VideoReader
from latentsync.media.writer import VideoWriter
from latentsync.pipeline import lipsync_file
from latentsync.settings import Settings

from ..face.test_points import frame as drawn
from ..face.test_points import places
from ..tiny import pan, tiny_models, write_clip, write_speech

FPS, CHUNK, COUNT = Fraction(25), 5, 30
QUICK = Settings(
    steps=1, guidance=1, fit="silence", quality=100
)  # H.264 without loss: what is read is what was written


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    with tiny_models(tmp_path_factory.mktemp("models"), resolution=32) as models:
        yield models


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    monkeypatch.setattr(journal, "CHUNK", CHUNK)
    monkeypatch.setattr(writer, "CHUNK", CHUNK)


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """A face that is gone for a while, and two people side by side, each 30 frames."""
    folder = tmp_path_factory.mktemp("stage")
    frames = pan(COUNT)
    frames[17:24] = 90
    two = np.concatenate([pan(COUNT), pan(COUNT)[:, :, ::-1]], 2)
    sound = write_speech(folder / "own.wav", COUNT / 25)
    write_clip(folder / "one.mp4", frames, FPS, audio=sound)
    write_clip(folder / "two.mp4", two, FPS, audio=sound)
    write_speech(folder / "short.wav", 0.4)
    return folder


class Spy(VideoWriter):
    """Keeps what is written, as it is before the encoder."""

    written: list[np.ndarray]

    def __init__(self, *args, **options):
        Spy.written = []
        super().__init__(*args, **options)

    def write(self, frame):
        Spy.written.append(frame)
        super().write(frame)


@pytest.fixture
def spy(monkeypatch):
    monkeypatch.setattr(output, "VideoWriter", Spy)
    return Spy


def source_of(path):
    info = probe(path)
    with VideoReader(info) as reader:
        return np.stack(list(reader.read(range(info.frames))))


def content(path):
    with av.open(str(path)) as file:
        frames = list(file.decode(video=0))
        times = [frame.pts * frame.time_base for frame in frames]
    with av.open(str(path)) as file:
        heard = np.concatenate([block.to_ndarray().ravel() for block in file.decode(audio=0)])
    return np.stack([frame.to_ndarray(format="rgb24") for frame in frames]), times, heard


class Stopped(Exception):
    pass


def stop_at(stage, number):
    """Raise when so much of a stage is done."""

    def on_step(progress):
        if (progress.stage, progress.done) == (stage, number):
            raise Stopped

    return on_step


@pytest.fixture(scope="module")
def uninterrupted():
    return []


STOPS = [[("track", 20)], [("sample", 1)], [("sample", 3), ("sample", 1)]]


@pytest.mark.parametrize("stops", STOPS)
def test_a_run_that_was_stopped_goes_on_to_the_same_film(models, stage, tmp_path, uninterrupted, stops):
    out, given = tmp_path / "out.mp4", {"models": models, "settings": QUICK}
    if not uninterrupted:
        lipsync_file(stage / "one.mp4", None, stage / "whole.mp4", **given)
        uninterrupted.extend(content(stage / "whole.mp4"))
    for where in stops:
        with pytest.raises(Stopped):
            lipsync_file(stage / "one.mp4", None, out, **given, resume=True, on_step=stop_at(*where))
        assert not out.exists()
    told = []
    report = lipsync_file(stage / "one.mp4", None, out, **given, resume=True, on_step=told.append)
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    assert (report.frames, report.segments, report.faces) == (COUNT, [(0, 17), (24, COUNT)], 1)
    made = content(out)
    assert len(made[0]) == COUNT
    for a, b in zip(made, uninterrupted, strict=True):
        assert np.array_equal(a, b)
    tracked = any(progress.stage == "track" for progress in told)
    assert tracked == (stops[0][0] == "track")  # faces that were found are known


def test_what_was_finished_is_not_made_again(models, stage, tmp_path, spy):
    out = tmp_path / "out.mp4"
    given = {"models": models, "settings": QUICK, "resume": True}
    with pytest.raises(Stopped):
        lipsync_file(stage / "one.mp4", None, out, **given, on_step=stop_at("sample", 3))
    lipsync_file(stage / "one.mp4", None, out, **given)
    assert len(spy.written) == COUNT - 20  # the third window begins at 24


@pytest.mark.parametrize("changed", [{"seed": 1}])
def test_with_another_setting_it_begins_anew(models, stage, tmp_path, spy, changed):
    out, other = tmp_path / "out.mp4", replace(QUICK, **changed)
    with pytest.raises(Stopped):
        lipsync_file(
            stage / "one.mp4", None, out, models=models, settings=QUICK, resume=True, on_step=stop_at("sample", 3)
        )
    lipsync_file(stage / "one.mp4", None, out, models=models, settings=other, resume=True)
    assert len(spy.written) == COUNT
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_torn_tracks_are_found_anew(models, stage, tmp_path):
    out = tmp_path / "out.mp4"
    given = {"models": models, "settings": QUICK, "resume": True}
    with pytest.raises(Stopped):
        lipsync_file(stage / "one.mp4", None, out, **given, on_step=stop_at("sample", 3))
    path = journal.journal_folder(out) / "tracks.npz"
    data = path.read_bytes()
    assert load_tracks(path).faces[0].segments == ((0, 17), (24, COUNT))
    for torn in (b"", b"half of it", data[:-9], data[: len(data) // 2], data[:900] + bytes(40) + data[940:]):
        path.write_bytes(torn)
        with pytest.raises(NO_TRACKS):
            load_tracks(path)
    assert lipsync_file(stage / "one.mp4", None, out, **given).frames == COUNT


def test_without_being_asked_nothing_is_kept(models, stage, tmp_path):
    out = tmp_path / "out.mp4"
    with pytest.raises(Stopped):
        lipsync_file(stage / "one.mp4", None, out, models=models, settings=QUICK, on_step=stop_at("sample", 3))
    assert list(tmp_path.iterdir()) == []


def test_each_voice_moves_its_own_face_and_only_while_it_is_heard(models, stage, tmp_path, spy):
    source, out = source_of(stage / "two.mp4"), tmp_path / "out.mp4"
    voices = [Speaker("left", stage / "short.wav"), Speaker("right", stage / "short.wav", Fraction(4, 5))]
    report = lipsync_file(stage / "two.mp4", voices, out, models=models, settings=QUICK)
    different = (np.stack(spy.written) != source).any(-1)
    left, right = different[:, :, :128].any((1, 2)), different[:, :, 128:].any((1, 2))
    assert left[:8].all()  # 0.4 s
    assert right[20:28].all()  # from 0.8 s on
    assert not left[18:].any()  # with 0.3 s in which lips come to rest
    assert not right[:8].any()  # and as much in which they open
    assert not different[:, :40].any()  # nothing above the mouths
    assert report.faces == 2
    assert {span.face for span in report.spans} == {None, 0, 1}
    samples = content(out)[2]
    assert len(samples) > 0


def test_the_order_of_speakers_does_not_matter(models, stage, tmp_path, spy):
    voices = [Speaker("right", stage / "short.wav"), Speaker("left", stage / "short.wav", Fraction(1, 5))]
    made = []
    for order in (voices, voices[::-1]):
        lipsync_file(stage / "two.mp4", order, tmp_path / "out.mp4", models=models, settings=QUICK)
        made.append(np.stack(spy.written))
    assert np.array_equal(*made)


def test_two_speakers_with_one_face_are_one_sentence(models, stage, tmp_path):
    voices = [Speaker("left", stage / "short.wav"), Speaker("0", stage / "short.wav", Fraction(1))]
    with pytest.raises(UserError, match="Two speakers are the same face"):
        lipsync_file(stage / "two.mp4", voices, tmp_path / "out.mp4", models=models, settings=QUICK)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("text", "runs"), [("0.2-0.4, 0.6-", [(5, 10), (15, 17), (24, COUNT)])])
def test_outside_the_spans_every_pixel_is_the_source_s(models, stage, tmp_path, spy, text, runs):
    source = source_of(stage / "one.mp4")
    settings = replace(QUICK, spans=text)
    report = lipsync_file(stage / "one.mp4", None, tmp_path / "out.mp4", models=models, settings=settings)
    different = (np.stack(spy.written) != source).any((1, 2, 3))
    assert report.segments == runs
    assert np.flatnonzero(different).tolist() == [i for a, b in runs for i in range(a, b)]
    assert [i for span in report.spans for i in range(span.start, span.stop)] == list(range(COUNT))


def test_a_clip_without_a_face_may_be_passed_through(models, stage, tmp_path, spy):
    scene = np.random.default_rng(0).integers(0, 255, (12, 112, 128, 3), dtype=np.uint8)
    clip = write_clip(tmp_path / "scene.mp4", scene, FPS, audio=stage / "short.wav")
    given = {"models": models, "resume": True}
    with pytest.raises(NoFaceError):
        lipsync_file(clip, None, tmp_path / "out.mp4", settings=QUICK, **given)
    assert [path.name for path in tmp_path.iterdir()] == ["scene.mp4"]
    report = lipsync_file(clip, None, tmp_path / "out.mp4", settings=replace(QUICK, no_face="pass"), **given)
    assert np.array_equal(np.stack(spy.written), source_of(clip))
    assert (report.faces, report.repainted, report.segments) == (0, 0, [])
    assert [(span.start, span.stop, span.state, span.face) for span in report.spans] == [(0, 12, PASSED, None)]


def test_a_drawn_face_that_is_pointed_out_gets_a_mouth(models, stage, tmp_path, spy):
    frames = np.stack([drawn(i) for i in range(10)])
    clip = write_clip(tmp_path / "drawn.mp4", frames, FPS, audio=stage / "short.wav")
    points = ",".join(f"{value:.1f}" for place in places(8) for value in place) + ",8"
    settings = replace(QUICK, points=points)
    report = lipsync_file(clip, None, tmp_path / "out.mp4", models=models, settings=settings)
    different = (np.stack(spy.written) != source_of(clip)).any(-1)
    assert (report.faces, report.segments) == (1, [(0, 10)])
    for i in range(10):
        y, x = np.nonzero(different[i])
        left, right, nose = places(i)
        across = np.linalg.norm(right - left)
        away = np.linalg.norm(np.stack([x, y], 1) - nose, axis=1)
        assert len(x) > 200
        assert away.max() < 2.2 * across
        assert different[i, y.min() :].any()
        assert np.mean(y) > nose[1]  # below the nose
