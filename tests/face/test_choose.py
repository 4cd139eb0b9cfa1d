"""Who is meant: the one who speaks, by made-up mouths and voices, and the one in a photo."""

import os
from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch

from latentsync.audio.clues import clues_for
from latentsync.audio.load import load_audio
from latentsync.errors import UserError
from latentsync.face.choose import ALIKE, Clues, best_frames, choose, looks_in
from latentsync.face.detect import Face, FaceFinder
from latentsync.face.speaker import RATE, openness, speaking
from latentsync.face.track import Tracklet, Tracks, Trail, _track, find_tracks
from latentsync.media.probe import probe
from latentsync.media.reader import VideoReader
from latentsync.media.source import ArraySource, Part

from .test_identity import SHAPE, changed, portrait

FPS, SECONDS = 25, 6
FRAMES = FPS * SECONDS
UPPER, LOWER = [50, 51, 52, 61, 62, 63], [56, 57, 58, 65, 66, 67]


def syllables(seed, frames=FRAMES):
    """How open a mouth is that says about four syllables a second: 0 to 1, closed in between."""
    random, opening = np.random.default_rng(seed), np.zeros(frames)
    at = 0.0
    while at < frames:
        length = random.uniform(4, 9)
        span = np.arange(int(at), min(frames, int(at + length)))
        opening[span] = np.sin(np.pi * (span - at) / length).clip(0) * random.uniform(0.5, 1)
        at += length + random.choice([0, 0, 6])
    return opening


def voice(opening, late=0.0, seed=0):
    """A hum, over which noise of the upper formants is heard as far as the mouth is open. late: seconds."""
    count = len(opening) * RATE // FPS
    time = np.arange(count) / RATE
    noise = np.fft.rfft(np.random.default_rng(seed).normal(size=count))
    hertz = np.fft.rfftfreq(count, 1 / RATE)
    noise[(hertz < 1200) | (hertz > 4000)] = 0
    wide = np.interp((time - late) * FPS - 0.5, np.arange(len(opening)), opening)
    hum = 0.02 * np.sin(2 * np.pi * 140 * time)
    return (hum + 0.3 * wide**2 * np.fft.irfft(noise, count) + 1e-4).astype(np.float32)


def person(index, opening, x=200.0, size=60.0, frames=None, shake=0.0):
    """A track whose lips are opened so far; frames: those in which it is seen. shake: pixels that a head moves."""
    frames = range(len(opening)) if frames is None else frames
    random = np.random.default_rng(index)
    moves = np.cumsum(random.normal(0, shake, (len(opening), 2)), 0)
    rows = []
    for i in frames:
        points = (SHAPE * size + (x, 150) + moves[i] + random.normal(0, 0.1, SHAPE.shape)).astype(np.float32)
        points[UPPER, 1] -= 0.08 * size * opening[i]
        points[LOWER, 1] += 0.08 * size * opening[i]
        rows.append((i, points))
    return _track(index, Tracklet(Trail(rows)), len(opening), (), (800, 400))


def among(*faces):
    return Tracks(faces, FRAMES, (800, 400))


STILL = np.zeros(FRAMES)
SMILE = np.interp(np.arange(FRAMES), [40, 44, 110, 114], [0, 1, 1, 0])


@pytest.mark.parametrize("late", [-0.06, 0.0, 0.1, 0.2])
@pytest.mark.parametrize("seed", range(4))
def test_auto_is_whose_mouth_goes_with_the_sound(seed, late):
    mine, others = syllables(seed), syllables(seed + 100)
    faces = among(person(0, others, 150, 90), person(1, mine, 500, 40))
    assert choose(faces, "auto", Clues(FPS, voice(mine, late))).index == 1
    assert choose(faces, "auto", Clues(FPS, voice(others, late))).index == 0


@pytest.mark.parametrize("rest", [STILL, SMILE], ids=["still", "smile"])
@pytest.mark.parametrize("speech", [None, voice(syllables(7))], ids=["no sound", "another's sound"])
def test_without_its_sound_auto_is_whose_mouth_moves(rest, speech):
    faces = among(person(0, rest, 150, 90, shake=2.0), person(1, syllables(1), 500, 40), person(2, rest, 700, 60))
    assert choose(faces, "auto", Clues(FPS, speech)).index == 1


def test_auto_is_the_largest_where_nobody_can_be_told_to_speak():
    brief = among(person(0, STILL, 150, 50, range(20)), person(1, STILL, 500, 90, range(20)))
    assert choose(brief, "auto").index == 1


def test_who_speaks_longer_is_the_one():
    mine = syllables(3)
    heard = voice(mine)
    part, whole = person(0, mine, frames=range(40)), person(1, mine)
    sound = openness(heard, FPS, FRAMES)
    assert speaking(whole, FPS, sound) > 1.3 * speaking(part, FPS, sound) > 0


def test_neither_a_smile_nor_a_face_at_rest_speaks():
    sound = openness(voice(syllables(3)), FPS, FRAMES)
    assert 15 * speaking(person(0, SMILE), FPS) < speaking(person(1, syllables(4)), FPS)
    assert max(speaking(person(n, STILL), FPS, sound) for n in range(4)) < 0.3


def test_the_end_of_a_short_sound_is_not_known():
    curve = openness(voice(syllables(1))[: 2 * RATE], FPS, FRAMES)
    assert np.isfinite(curve[: 2 * FPS]).all()
    assert np.isnan(curve[2 * FPS :]).all()
    assert np.isnan(openness(np.zeros(0, np.float32), FPS, FRAMES)).all()


def test_best_frames_are_spread_and_straight():
    rows = [(i, (SHAPE * 60 + 200).astype(np.float32)) for i in range(60)]
    for i, points in rows:
        points[30, 0] += 0 if i % 20 == 7 else 25
    assert best_frames(_track(0, Tracklet(Trail(rows)), 60, (), (800, 400)), 3) == [7, 27, 47]


class Drawn:
    """Finds the faces that are told."""

    def __init__(self, *points):
        self.faces = [Face(p, (*p.min(0).tolist(), *p.max(0).tolist()), 1.0) for p in points]

    def detect(self, frame, **_):
        return self.faces


PEOPLE = ("astronaut", "portrait")


def shown(*people):
    """A frame with people side by side, and their tracks of one second."""
    pictures = [changed(portrait(who), noise=3.0) for who in people]
    frame = np.concatenate([picture for picture, _ in pictures], 1)
    width = pictures[0][0].shape[1]
    faces = []
    for n, (_, points) in enumerate(pictures):
        rows = [(i, (points + np.array([n * width, 0])).astype(np.float32)) for i in range(25)]
        faces.append(_track(n, Tracklet(Trail(rows)), 25, (), frame.shape[1::-1]))
    return [frame] * 25, Tracks(tuple(faces), 25, frame.shape[1::-1])


def photo(who):
    picture, points = changed(portrait(who), size=0.8, gain=0.8)
    return looks_in(picture, Drawn(points), "photo.png")


@pytest.mark.parametrize("who", [0, 1])
def test_a_photo_chooses_who_looks_like_it(who):
    frames, tracks = shown(*PEOPLE)
    clues = Clues(wanted=photo(PEOPLE[who]), name="photo.png", read=ArraySource(frames).read)
    assert choose(tracks, "photo.png", clues).index == who


def test_a_photo_of_somebody_else_is_one_sentence_that_lists_the_faces_and_how_alike_they_are():
    frames, tracks = shown("portrait", "portrait")
    clues = Clues(wanted=photo("astronaut"), name="photo.png", read=ArraySource(frames).read)
    words = rf"^No face is like the one in photo.png: .* {ALIKE:g} .* -?0\.\d\d for 0 \(.*; -?0\.\d\d for 1 \(.*\.$"
    with pytest.raises(UserError, match=words):
        choose(tracks, "photo.png", clues)


def test_a_photo_without_a_face_or_with_two_is_one_sentence():
    picture, points = portrait("portrait")
    with pytest.raises(UserError, match=r"^There is no face in a\.png; "):
        looks_in(picture, Drawn(), "a.png")
    with pytest.raises(UserError, match=r"^There are 2 faces in a\.png; "):
        looks_in(picture, Drawn(points, points * 0.8), "a.png")
    assert looks_in(picture, Drawn(points, points * 0.5), "a.png").any()


def test_a_photo_is_looked_at_before_anything_else(tmp_path):
    text = tmp_path / "words.txt"
    text.write_text("no picture")
    with pytest.raises(UserError, match=r"words\.txt is not an image"):
        clues_for(str(text), ArraySource([]), 1, Fraction(25), lambda: Drawn())
    picture, points = portrait("portrait")
    cv2.imwrite(str(tmp_path / "a,b,0.png"), picture[..., ::-1])
    clues = clues_for(str(tmp_path / "a,b,0.png"), ArraySource([]), 1, Fraction(25), lambda: Drawn(points))
    assert clues.wanted is not None
    assert clues.wanted.any()


@pytest.mark.parametrize(("speech", "heard"), [(None, None), (torch.zeros(RATE), None), (torch.ones(RATE) / 9, RATE)])
def test_the_given_speech_counts_where_the_source_has_no_sound(speech, heard):
    clues = clues_for("auto", ArraySource([]), 25, Fraction(25), lambda: Drawn(), speech)
    assert heard == (None if clues.speech is None else len(clues.speech))


@pytest.fixture(scope="module")
def finder(media):
    model = os.environ.get("LATENTSYNC_MODELS", str(media.parent / "models"))
    if not os.path.isfile(f"{model}/face_landmarker.task"):  # noqa: PTH113
        pytest.skip(f"LATENTSYNC_MODELS: no face_landmarker.task in {model}; this test needs it")
    with FaceFinder(f"{model}/face_landmarker.task") as finder:
        yield finder


@pytest.mark.parametrize("name", ["two_faces_left_speaks.mp4", "two_faces_big_and_small.mp4"])
def test_of_two_real_people_the_one_on_the_left_speaks_and_each_is_known_by_a_photo(media, finder, name, tmp_path):
    path = media / "edge" / name
    with VideoReader.open(path) as reader:
        tracks = find_tracks(reader.read(range(reader.info.frames)), finder)
        clues = clues_for("auto", reader, tracks.frames, reader.info.fps, lambda: finder)
        left, right = choose(tracks, "left"), choose(tracks, "right")
        assert choose(tracks, "auto", clues) is left
        men = media / "clips" / "hdtf_wda_bobmenendez.mp4"
        with VideoReader.open(men) as other:
            cv2.imwrite(str(tmp_path / "man.png"), next(iter(other.read([190])))[..., ::-1])
        clues = clues_for(str(tmp_path / "man.png"), reader, tracks.frames, reader.info.fps, lambda: finder)
        assert choose(tracks, str(tmp_path / "man.png"), clues) is right
        clues = clues_for(str(media / "stills/nasa_astronaut_512.png"), reader, 1, Fraction(25), lambda: finder)
        with pytest.raises(UserError, match="No face is like"):
            choose(tracks, "", clues)


def test_the_sound_of_a_part_begins_with_its_first_frame(media):
    path = media / "edge" / "two_faces_left_speaks.mp4"
    info = probe(path)
    with VideoReader(info) as reader:
        clues = clues_for("auto", Part(reader, 50), 75, info.fps, lambda: Drawn())
    whole = load_audio(path, info.start).waveform.numpy()
    assert clues.speech is not None
    assert len(clues.speech) == 3 * RATE
    inner = slice(RATE // 10, 3 * RATE - RATE // 10)
    assert np.abs(clues.speech[inner] - whole[2 * RATE :][inner]).max() < 1e-3
