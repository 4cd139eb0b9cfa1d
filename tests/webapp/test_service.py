"""The whole app without its page: two sessions, their files, their runs, what is refused."""

import dataclasses
from fractions import Fraction

import numpy as np
import pytest

from latentsync.errors import UserError
from latentsync.media.probe import probe
from latentsync.pipeline import lipsync_file
from latentsync.settings import Settings
from latentsync.timeline import Cut
from latentsync.webapp.config import VARIABLE, AppSettings, Limits
from latentsync.webapp.faces import first_look, look, shown_frames
from latentsync.webapp.queue import CANCELLED, DONE, FAILED
from latentsync.webapp.service import AppService, FormValues
from latentsync.webapp.uploads import plays_in_browsers, take_face, take_voice
from latentsync.weights.bundle import load_models

from ..nodes.clips import frames_of
from .parts import FPS, alike, clip
from .test_queue import Gate, wait_until

LIMITS = Limits(steps=30, waiting=3, keep=0.2)


class Hall:
    """A studio with the tiny checkpoint, whose sessions are here as long as a test says."""

    def __init__(self, tiny, folder, **rest):
        self.here = {"anna", "ben"}
        usual = {"limits": LIMITS, "device": "cpu", "dtype": "fp32"}
        settings = AppSettings(**usual, folder=str(folder), checkpoints=(tiny,), **rest)
        self.service = AppService(settings, self.here.__contains__)
        self.tiny = tiny

    def come(self, name, face, voice=None):
        session = self.service.sessions.get(name)
        with face.open("rb") as stream:
            session.face = take_face(stream, face.name, session.folder, LIMITS)
        if voice is not None:
            with voice.open("rb") as stream:
                session.voice = take_voice(stream, voice.name, session.folder, LIMITS)
        return session

    def form(self, settings=None, checkpoint=None, *, own_sound=False, backend="local"):
        return FormValues(backend, checkpoint or self.tiny, settings or Settings(steps=1, guidance=1.0), own_sound)


@pytest.fixture
def hall(tiny, tmp_path):
    folder = tmp_path / "app"
    folder.mkdir()
    hall = Hall(tiny, folder)
    yield hall
    hall.service.close()
    assert not list(folder.iterdir()), "nothing is left when the app ends"


def ended(job):
    assert wait_until(lambda: job.over, 240)
    return job


def test_two_visitors_get_what_the_engine_makes_and_nothing_of_each_other(hall, material, tmp_path):
    anna = hall.come("anna", material / "clip.mp4")
    ben = hall.come("ben", material / "face.png", material / "say.wav")
    how = Settings(steps=1, guidance=1.0, seed=3)
    hall.service.start(anna, hall.form(how, own_sound=True))
    hall.service.start(ben, hall.form(how))
    assert {ended(session.run).state for session in (anna, ben)} == {DONE}
    with load_models(hall.tiny) as models:
        for session, face, voice in ((anna, "clip.mp4", None), (ben, "face.png", "say.wav")):
            wanted = tmp_path / f"{face}.mp4"
            lipsync_file(material / face, voice and material / voice, wanted, models=models, settings=how)
            assert alike(session.run.value.video, wanted)
    assert set(anna.folder.iterdir()).isdisjoint(ben.folder.iterdir())
    assert anna.run.value.before != anna.face.path, "a copy that browsers play"
    assert ben.run.value.before == ben.face.path
    ended(anna.score)
    assert ended(ben.score).state == DONE
    assert len(ben.score.value.opening) == 33
    hall.here.clear()
    assert wait_until(lambda: not list(hall.service.folder.iterdir()))


def test_a_run_of_somebody_who_left_is_stopped(hall, material):
    anna = hall.come("anna", material / "clip.mp4")
    ben = hall.come("ben", material / "clip.mp4")
    hall.service.start(anna, hall.form(Settings(steps=30), own_sound=True))
    hall.service.start(ben, hall.form(own_sound=True))
    assert hall.service.ahead(ben.run) == 1
    hall.here.discard("anna")
    assert ended(anna.run).state == CANCELLED
    assert ended(ben.run).state == DONE
    assert wait_until(lambda: list(hall.service.folder.iterdir()) == [ben.folder])


def test_a_second_run_takes_the_place_of_the_first(hall, material):
    anna = hall.come("anna", material / "clip.mp4")
    files = []
    for _ in range(2):
        hall.service.start(anna, hall.form(own_sound=True))
        with pytest.raises(UserError, match="still being made"):
            hall.service.start(anna, hall.form(own_sound=True))
        assert ended(anna.run).state == DONE
        ended(anna.score)
        files.append(set(anna.folder.iterdir()))
    assert len(files[1]) == len(files[0]) == 4, "clip and result, and a copy of each for browsers"
    assert files[0] & files[1] == {anna.face.path}


def test_a_part_is_what_the_engine_makes_of_it_beside_the_same_part(hall, material, tmp_path):
    anna, cut = hall.come("anna", material / "clip.mp4"), Cut(Fraction(10, 25), Fraction(14, 25))
    how = Settings(steps=1, guidance=1.0, codec="prores", strip_metadata=True)
    form = dataclasses.replace(hall.form(how, own_sound=True), cut=cut)
    hall.service.start(anna, form)
    assert (ended(anna.run).state, anna.run.error) == (DONE, "")
    result, wanted = anna.run.value, tmp_path / "wanted.mov"
    with load_models(hall.tiny) as models:
        lipsync_file(anna.face.path, None, wanted, models=models, settings=how, cut=cut)
    assert result.video.suffix == ".mov"
    assert alike(result.video, wanted)
    assert plays_in_browsers(result.preview)
    assert [probe(path).frames for path in (result.video, result.preview, result.before)] == [14, 14, 14]
    difference = np.abs(frames_of(result.before).astype(int) - frames_of(anna.face.path)[10:24].astype(int))
    assert difference.mean() < 4, "and no other part"
    assert result.report.frames == 14
    assert (result.report.spans[0].start, result.report.spans[-1].stop) == (0, 14)
    ended(anna.score)


def test_a_result_that_browsers_play_has_no_copy_and_its_notes_are_kept(hall, material, tmp_path):
    import cv2

    cv2.imwrite(str(tmp_path / "large.png"), cv2.resize(cv2.imread(str(material / "face.png")), (320, 280)))
    anna = hall.come("anna", tmp_path / "large.png", material / "say.wav")
    settings = Settings(steps=1, guidance=1.0, codec="h264", max_side=160, face="180,150,0")
    form = dataclasses.replace(hall.form(settings), cut=Cut(Fraction(5)))
    hall.service.start(anna, form)
    assert (ended(anna.run).state, anna.run.error) == (DONE, "")
    assert anna.run.value.preview is None
    assert any("320 × 280" in note for note in anna.run.value.report.notes)
    assert anna.run.value.request.cut == Cut(), "a picture has no parts"
    assert (ended(anna.score).state, anna.score.error) == (DONE, ""), "the point is scaled as the picture is"


def test_a_part_that_is_not_there_is_refused_at_once(hall, material):
    anna = hall.come("anna", material / "clip.mp4")
    with pytest.raises(UserError, match="start earlier"):
        hall.service.start(anna, dataclasses.replace(hall.form(own_sound=True), cut=Cut(Fraction(3))))
    assert anna.run is None


def test_nobody_waits_for_a_measurement_to_make_another(hall, material):
    anna, gate = hall.come("anna", material / "clip.mp4"), Gate()
    hall.service._score_queue.submit(gate)
    hall.service.start(anna, hall.form(own_sound=True))
    assert ended(anna.run).state == DONE
    first = anna.score
    assert not first.over
    assert not anna.busy
    hall.service.start(anna, hall.form(own_sound=True))
    assert ended(anna.run).state == DONE
    gate.go.set()
    assert ended(first).state == CANCELLED
    assert ended(anna.score).state == DONE


def test_what_is_missing_or_too_much_is_said(hall, material):
    anna = hall.service.sessions.get("anna")
    with pytest.raises(UserError, match="no face yet"):
        hall.service.start(anna, hall.form())
    hall.come("anna", material / "face.png")
    with pytest.raises(UserError, match="no voice yet"):
        hall.service.start(anna, hall.form())
    with pytest.raises(UserError, match="no sound of its own"):
        hall.service.start(anna, hall.form(own_sound=True))
    hall.come("anna", material / "face.png", material / "say.wav")
    with pytest.raises(UserError, match="at most 30 are allowed"):
        hall.service.start(anna, hall.form(Settings(steps=31)))
    for name in ("/etc/passwd", "../../tiny.safetensors", "1.5"):
        with pytest.raises(UserError, match="not available here; choose one"):
            hall.service.start(anna, hall.form(checkpoint=name))
    with pytest.raises(UserError, match="not available here; choose one"):
        hall.service.start(anna, hall.form(backend="elsewhere"))
    hall.service.settings = dataclasses.replace(hall.service.settings, watermark="metadata")
    with pytest.raises(UserError, match="gets a watermark here"):
        hall.service.start(anna, hall.form(Settings(steps=1)))
    assert anna.run is None


def test_a_failure_speaks_of_the_visitors_own_names(hall, material, tmp_path):
    anna = hall.come("anna", clip(tmp_path / "night.mp4", faces=False))
    hall.service.start(anna, hall.form(own_sound=True))
    assert ended(anna.run).state == FAILED
    assert "No face was found" in anna.run.error
    anna.voice = anna.face
    anna.face.path.write_bytes(b"gone bad")
    hall.service.start(anna, hall.form(own_sound=True))
    assert ended(anna.run).state == FAILED
    assert "night.mp4" in anna.run.error
    assert str(hall.service.folder) not in anna.run.error
    anna.voice = None


def test_a_clip_too_short_to_be_measured_is_no_failure(hall, material, tmp_path):
    anna = hall.come("anna", clip(tmp_path / "short.mp4", 12))
    hall.service.start(anna, hall.form(own_sound=True))
    assert ended(anna.run).state == DONE
    assert ended(anna.score).state == FAILED
    assert "s are needed" in anna.score.error
    assert str(hall.service.folder) not in anna.score.error


def test_faces_are_found_where_they_are(hall, material):
    anna = hall.come("anna", material / "couple.png")
    shot = look(anna.face)
    left, right = shot.boxes
    assert left[2] < right[0]
    assert shot.jpeg[:2] == b"\xff\xd8"
    x, y, frame = map(int, shot.point(1).split(","))
    assert right[0] < x < right[2]
    assert right[1] < y < right[3]
    assert frame == 0
    assert all(0 <= value <= 100 for box in shot.percentages() for value in box)


def test_the_earliest_moment_with_a_face_is_shown_first(hall, tmp_path):
    import numpy as np

    from ..tiny import pan, write_clip, write_speech

    frames = np.concatenate((np.zeros((12, 140, 160, 3), np.uint8), pan(28, 160, 140)))
    sound = write_speech(tmp_path / "s.wav", 1.6)
    anna = hall.come("anna", write_clip(tmp_path / "late.mp4", frames, FPS, audio=sound))
    assert not look(anna.face, 0).boxes
    shot = first_look(anna.face, 40)
    assert shot.boxes
    assert shot.frame == 19
    assert not first_look(anna.face, 5).boxes
    shot = first_look(anna.face, 10, 14)
    assert (shot.frame, shot.point(0, 14).split(",")[2], shot.point(0).split(",")[2]) == (14, "0", "14")
    with pytest.raises(UserError, match="no frame 40"):
        look(anna.face, 40)


def test_a_face_is_picked_among_the_frames_of_the_result(hall, material):
    face = hall.come("anna", material / "clip.mp4").face
    assert shown_frames(face, None, "pingpong") == 30
    assert shown_frames(face, face.seconds / 2, "pingpong") == 15
    assert shown_frames(face, face.seconds / 2, "silence") == 30
    assert shown_frames(face, face.seconds * 3, "loop") == 30
    assert shown_frames(face, None, "pingpong", 12) == 12
    assert shown_frames(face, Fraction(8, 25), "pingpong", 12) == 8
    assert shown_frames(face, face.seconds, "pingpong", 12) == 12


def test_settings_travel_as_text(monkeypatch):
    said = AppSettings(
        limits=Limits(megabytes=7, keep=1.5),
        checkpoints=("a", "b"),
        server="http://x:1",
        headers={"Authorization": "Bearer y"},
    )
    monkeypatch.setenv(VARIABLE, said.to_text())
    assert AppSettings.from_environment() == said
    monkeypatch.delenv(VARIABLE)
    assert AppSettings.from_environment() == AppSettings()


def test_somebody_must_compute(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(UserError, match="No backend is enabled"):
        AppService(AppSettings(local=False), lambda session: True)
    assert not list(tmp_path.iterdir())
