"""Validation by landmarks: mouths that follow, or do not, and what cannot be measured is said while the run goes on."""

from dataclasses import replace

import numpy as np
import pytest

from latentsync.errors import UserError
from latentsync.face.align import align_matrices, crop_face
from latentsync.face.detect import Face, FaceFinder, mouth_opening
from latentsync.face.track import find_tracks
from latentsync.media.probe import probe
from latentsync.media.reader import VideoReader
from latentsync.training.distributed import make_accelerator
from latentsync.training.logging import EVENTS, read_log
from latentsync.training.public_config import read_public
from latentsync.training.recipes import Files
from latentsync.training.trainer import Trainer
from latentsync.training.unet.lip_sync import OTHER, OWN, GivenVideo, Openings, given_video, opening_correlation
from latentsync.training.unet.samples import SampleWriter, shifted

from ..tiny import face_model, tiny_whisper, write_clip, write_speech
from .parts import FPS, faces, recipe, tiny_task

SIDE, FRAMES = 64, 40
PEOPLE = "clips/grid/pA_brbk7n.mpg", "clips/grid/pB_lbax4n.mpg"
TALK = np.random.default_rng(1).uniform(0, 1, (2, FRAMES))
"""Openings of two who say different things."""


class DrawnFaces:
    """Finds the face that `drawn` draws: its mouth is as open as the first pixel is bright; a black one is no face."""

    def detect(self, frame, *, known=(), thorough=True):
        face = self.refine(frame, (0.0, 0.0, SIDE, SIDE))
        return [face] if face and not list(known) else []

    def refine(self, frame, box, tilt=0.0):
        if not frame[0, 0, 0]:
            return None
        points = np.zeros((68, 2), np.float32)
        points[17:22], points[22:27], points[27:36], points[8] = (16, 16), (48, 16), (32, 32), (32, 60)
        points[36:42], points[42:48], points[62], points[66] = (20, 24), (44, 24), (32, 44), (32, 44)
        points[27], points[66, 1] = (32, 20), 44 + frame[0, 0, 0] / 20
        return Face(points, (4.0, 4.0, 60.0, 62.0), 1.0)


def drawn(talk):
    frames = np.full((len(talk), SIDE, SIDE, 3), 120, np.uint8)
    frames[:, 0, 0] = (20 + 200 * talk).round().astype(np.uint8)[:, None]
    return frames


def test_a_mouth_that_follows_and_one_that_does_not():
    openings = Openings(DrawnFaces())  # type: ignore[arg-type]
    openings.add(OWN, "a", drawn(0.5 * TALK[0]), drawn(TALK[0]))  # half as wide, at the same times
    openings.add(OTHER, "a", drawn(TALK[0]), drawn(TALK[1]))
    events = []
    values = openings.values(lambda *words, **_: events.append(words))
    assert values["own voice/opening correlation"] > 0.99
    assert values["other voice/opening correlation"] == pytest.approx(np.corrcoef(*TALK)[0, 1], abs=0.02)
    assert abs(values["other voice/opening correlation"]) < 0.4
    assert not events


def test_values_are_means_over_what_could_be_measured():
    openings, events = Openings(DrawnFaces()), []  # type: ignore[arg-type]
    nobody = np.zeros((FRAMES, SIDE, SIDE, 3), np.uint8)
    half = drawn(TALK[0])
    half[: FRAMES // 2] = 0
    openings.add(OWN, "follows", half, drawn(TALK[0]))  # where there is a face
    openings.add(OWN, "against", drawn(1 - TALK[0]), drawn(TALK[0]))
    openings.add(OWN, "nobody", nobody, drawn(TALK[0]))
    openings.add(OTHER, "still", drawn(0 * TALK[0]), drawn(TALK[0]))
    values = openings.values(lambda what, **details: events.append((what, details)))
    assert values == {"own voice/opening correlation": pytest.approx(0, abs=0.01)}
    ((what, details),) = events
    assert what == "no opening correlation"
    assert details["samples"] == 2
    assert "nobody, own voice: No face" in details["why"]
    assert "never moves" in openings.problems[1]


def test_true_frames_are_looked_at_once():
    class Counting(DrawnFaces):
        looks = 0

        def refine(self, frame, box, tilt=0.0):
            Counting.looks += 1
            return super().refine(frame, box, tilt)

    known = {}
    for made, more in ((TALK[0], 2), (TALK[1], 1)):
        before = Counting.looks
        Openings(Counting(), known).add(OWN, "a", drawn(made), drawn(TALK[0]))  # type: ignore[arg-type]
        assert FRAMES * more <= Counting.looks - before < FRAMES * (more + 1)


@pytest.mark.parametrize("made", [np.full(8, np.nan), np.ones(8), np.array([0.1, 0.9] + [np.nan] * 6)])
def test_too_little_tells_nothing(made):
    with pytest.raises(UserError, match="never moves"):
        opening_correlation(made, np.linspace(0, 1, 8))


# ---- in a run --------------------------------------------------------------------------------------------------------


def run_of(data, folder, given=None, **settings):
    """A validation with the face landmarker between two steps; the log's last line and the events."""
    chosen = recipe("1", steps=2, validate_every=1, other_voices=0, **settings)
    task = tiny_task(data, chosen)
    task.landmarker, task.given, evaluate = face_model(), given, task.evaluate
    task.evaluate = lambda folder, step, event: evaluate(folder, step, event) if step == 1 else {}  # type: ignore[method-assign]
    assert Trainer(task, chosen, folder, make_accelerator("fp32", 1, cpu=True)).fit() == "2 steps are done"
    (line,) = (line for line in read_log(folder) if line["step"] == 1 and "validation/total" in line)
    return line, (folder / EVENTS).read_text()


def test_clips_without_a_face_are_said_and_the_run_goes_on(clips, tmp_path):
    line, events = run_of(clips, tmp_path)
    assert not any("opening correlation" in name for name in line)
    assert events.count('"no opening correlation"') == 1
    assert "No face was found" in events


def test_a_given_video_without_a_face_is_said_and_the_run_goes_on(clips, tmp_path):
    sound = write_speech(tmp_path / "speech.wav", 1.2)
    video = write_clip(tmp_path / "nobody.mp4", faces(30, 3), FPS, audio=sound)
    given = given_video(Files(validate_video=video, validate_audio=sound), tiny_whisper())
    _, events = run_of(clips, tmp_path / "run", given, sample_clips=0)
    assert events.count('"no score of the given video"') == 1
    assert "No face was found" in events
    sound.unlink()  # nor does a file that is gone end the run
    _, events = run_of(clips, tmp_path / "again", GivenVideo(video, sound, tiny_whisper()), sample_clips=0)
    assert events.count('"no score of the given video"') == 1


@pytest.mark.media
def test_a_given_video_says_another_speech(clips, tmp_path, media):
    video = write_clip(tmp_path / "face.mp4", frames_of(media / PEOPLE[0], 30), FPS)
    audio = write_speech(tmp_path / "speech.wav", 1.2)
    given = given_video(Files(validate_video=video, validate_audio=audio), tiny_whisper())
    line, events = run_of(clips, tmp_path / "run", given, sample_clips=0)
    assert -1 <= line["given video/speech correlation"] <= 1
    assert "given video" not in events
    made = probe(tmp_path / "run" / "samples" / "step-00000001-given.mp4")
    assert (made.width, made.height, made.frames, made.has_audio) == (360, 288, 30, True)


def test_given_files_are_checked_before_the_run(tmp_path):
    sound = write_speech(tmp_path / "speech.wav", 1.2)
    silent = write_clip(tmp_path / "silent.mp4", faces(30, 3), FPS)
    assert given_video(Files(), tiny_whisper()) is None
    with pytest.raises(UserError, match="give --validate-video"):
        given_video(Files(validate_audio=sound), tiny_whisper())
    with pytest.raises(UserError, match="give --validate-audio"):
        given_video(Files(validate_video=silent), tiny_whisper())
    with pytest.raises(UserError, match=r"gone\.mp4"):
        given_video(Files(validate_video=tmp_path / "gone.mp4"), tiny_whisper())
    with pytest.raises(UserError, match=r"gone\.wav"):
        given_video(Files(validate_video=silent, validate_audio=tmp_path / "gone.wav"), tiny_whisper())


def test_the_public_files_for_validation_are_used_if_they_are_here(tmp_path):
    video = tmp_path / "v.mp4"
    video.touch()
    content = {"data": {"val_video_path": "v.mp4", "val_audio_path": "a.wav"}, "model": {}}
    public = read_public(content, tmp_path / "configs" / "stage2.yaml")
    assert public.files == {"validate_video": str(video)}
    assert "--validate-audio" in {line.key: line.why for line in public.lines}["data.val_audio_path"]


# ---- other voices ----------------------------------------------------------------------------------------------------


class Recording:
    """In the place of Openings: what is compared."""

    def __init__(self):
        self.pairs = []

    def add(self, voice, clip, made, true):
        self.pairs.append((voice, clip, made, true))

    def values(self, event):
        return {}


@pytest.mark.parametrize("count", [1, 3])
def test_another_voice_is_that_of_another_clip(clips, tmp_path, monkeypatch, count):
    chosen = recipe("1", sample_clips=count, other_voices=2)
    task, judge, sampled = tiny_task(clips, chosen), Recording(), []
    writer = SampleWriter(task.network, task.codec, chosen, task.validation, None, judge)  # type: ignore[arg-type]
    segments = [replace(segment, audio=segment.audio + i) for i, segment in enumerate(writer._segments())]
    monkeypatch.setattr(SampleWriter, "_segments", lambda self: segments)
    monkeypatch.setattr(SampleWriter, "sample", lambda self, segment: sampled.append(segment) or segment.true)
    writer.write(tmp_path, 1)
    voices = [OWN, OTHER] * min(count, 2) + [OWN] * (count - 2)
    assert [voice for voice, *_ in judge.pairs] == voices
    for (voice, clip, _, true), spoken in zip(judge.pairs, sampled, strict=True):
        number = next(i for i, segment in enumerate(segments) if segment.clip.path.name == clip)
        speaker = segments[number]
        if voice == OTHER:
            speaker = shifted(speaker) if count == 1 else segments[number - 1]
        assert (spoken.true == segments[number].true).all()  # the face of the clip
        assert (spoken.audio == speaker.audio).all()
        assert np.array_equal(true, ((speaker.true + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())


def test_the_shifted_half_of_an_only_clip(clips):
    chosen = recipe("1")
    task = tiny_task(clips, chosen)
    (segment,) = SampleWriter(task.network, task.codec, chosen, task.validation)._segments()  # type: ignore[arg-type]
    moved = shifted(segment)
    half = len(segment.true) // 2
    assert (moved.true[:half] == segment.true[half:]).all()
    assert (moved.audio[half:] == segment.audio[:half]).all()


# ---- real mouths -----------------------------------------------------------------------------------------------------


@pytest.mark.media
def test_real_mouths_in_crops(media):
    """Landmarks on crops as small as nano's follow those on the source; two sentences have little in common."""
    with FaceFinder(face_model()) as finder:
        crops, truth = zip(*(crops_of(media / person, finder) for person in PEOPLE), strict=True)
        openings = Openings(finder)
        for number in (0, 1):
            openings.add(OWN, str(number), crops[number], crops[number])
            openings.add(OTHER, str(number), crops[number], crops[1 - number])
            assert opening_correlation(next(iter(openings.known.values())), truth[0]) > 0.9
    assert np.mean(openings.found[OWN]) == pytest.approx(1)
    assert abs(np.mean(openings.found[OTHER])) < 0.5
    assert not openings.problems


def crops_of(path, finder, side=192):
    """(F, side, side, 3) aligned crops, and the openings (F,) on the source."""
    frames = frames_of(path, FRAMES)
    (track,) = find_tracks(frames, finder).faces
    matrices = align_matrices(track.points, side)
    crops = [crop_face(frame, matrix, side) for frame, matrix in zip(frames, matrices, strict=True)]
    return np.stack(crops), mouth_opening(track.landmarks)


def frames_of(path, count):
    with VideoReader(probe(path)) as reader:
        return np.stack(list(reader.read(range(count))))
