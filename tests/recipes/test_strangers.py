"""The scores of made faces, on pictures of which the answer is known."""

from fractions import Fraction
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from latentsync.evaluation.image_metrics import lips_region
from latentsync.face.align import face_size, template
from latentsync.face.mask import mouth_mask
from recipes.nano.evaluate import lip_sharpness
from recipes.nano.strangers import (
    StillEvaluation,
    Talk,
    _at_the_lips,
    _skin_difference,
    _strip,
    correlation,
    liveliness,
)

from ..tiny import pan
from .people import a_crowd

WIDTH, HEIGHT = face_size(256)
FRAMES = 7


def test_correlation():
    wave = np.sin(np.arange(30.0))
    assert correlation(wave, 3 * wave + 1) == pytest.approx(1)
    assert correlation(wave, -wave) == pytest.approx(-1)
    assert correlation(wave, np.ones(30)) == 0


def test_liveliness():
    wave = 1 + np.sin(np.arange(60.0) / 3)
    assert liveliness(wave, wave) == pytest.approx((1, 1))
    assert liveliness(wave / 2, wave) == pytest.approx((0.5, 0.5))
    slow = np.interp(np.arange(60) / 2, np.arange(60), wave)  # as wide, half as fast
    assert liveliness(slow, wave) == pytest.approx((1, 0.5), abs=0.05)


def landmarks():
    """(68, 2): lips, nose bridge and chin of an upright face of WIDTH × HEIGHT; the lips are low and to the left."""
    points = np.zeros((68, 2), np.float32)
    points[27], points[8] = (105, 60), (105, 250)
    turn = np.linspace(0, 2 * np.pi, 13)[:12]
    points[48:60] = np.stack([75 + 22 * np.cos(turn), 190 + 12 * np.sin(turn)], 1)
    return points


@pytest.fixture
def upright():
    """A face that fills its picture and does not move."""
    points = np.repeat(template(256)[None], FRAMES, 0)
    return SimpleNamespace(points=points, landmarks=np.repeat(landmarks()[None], FRAMES, 0))


def skin(value=(150, 120, 100)):
    return np.full((HEIGHT, WIDTH, 3), value, np.uint8)


def test_difference_of_the_repainted_skin(upright):
    picture = skin()
    assert _skin_difference(np.stack([picture] * FRAMES), picture, upright) == 0
    redder = np.stack([skin((157, 118, 100))] * FRAMES)
    assert _skin_difference(redder, picture, upright) == pytest.approx(7, abs=0.1)
    repainted = cv2.resize(1 - mouth_mask(256), (WIDTH, HEIGHT)) > 0.5
    elsewhere = np.where(repainted[..., None], picture, 0)
    assert _skin_difference(np.stack([elsewhere] * FRAMES), picture, upright) < 4, "only what is repainted counts"


def test_lips_are_no_skin(upright):
    """They are cut out where they lie in the crop, which is stretched."""
    picture = skin()
    lips = lips_region(landmarks(), max(WIDTH, HEIGHT))[:HEIGHT, :WIDTH]
    lips = cv2.erode(lips.astype(np.uint8), np.ones((7, 7))).astype(bool)
    made = np.stack([np.where(lips[..., None], (255, 0, 0), picture).astype(np.uint8)] * FRAMES)
    assert _skin_difference(made, picture, upright) < 0.2


def test_sharpness_and_likeness_at_the_lips():
    side = 96
    random = np.random.default_rng(0)
    true = np.stack([cv2.GaussianBlur(random.integers(0, 256, (side, side, 3), np.uint8), (3, 3), 0)] * FRAMES)
    points = np.repeat((landmarks() * (side / HEIGHT))[None], FRAMES, 0)
    track, blurred = SimpleNamespace(landmarks=points), np.stack([cv2.GaussianBlur(f, (0, 0), 2) for f in true])
    assert _at_the_lips(true, true, track) == pytest.approx((1, 1))
    sharp, alike = _at_the_lips(blurred, true, track)
    assert sharp < 0.2
    assert alike < 0.7
    region = cv2.dilate(lips_region(points[0], side).astype(np.uint8), np.ones((15, 15))).astype(bool)
    elsewhere = np.where(region[None, :, :, None], true, blurred)
    assert _at_the_lips(elsewhere, true, track) == pytest.approx((1, 1), abs=1e-3)


def test_a_strip_shows_truth_above_made():
    frames = np.full((5, 8, 8, 3), 10, np.uint8)
    picture, true, made = frames[0], frames + 10, frames + 20
    sheet = _strip(picture, true, made, columns=3, side=4)
    assert sheet.shape == (8, 16, 3)
    assert (sheet[:, :4] == 10).all()
    assert (sheet[:4, 4:] == 20).all()
    assert (sheet[4:, 4:] == 30).all()


def test_sharpness_of_lips_tells_sharp_from_blurred():
    frames = pan(6)
    points = np.repeat(np.array([[(46, 50), (72, 50), (59, 66)]], np.float32), 6, 0)
    track = SimpleNamespace(points=points)
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), 2) for frame in frames])
    models = SimpleNamespace(resolution=64)
    assert lip_sharpness(blurred, track, models) < 0.3 * lip_sharpness(frames, track, models)


def test_the_sheet_shows_every_stranger_and_what_they_say(face, speakers_two, monkeypatch):
    """A row is the picture, then moments spread over its speech; then other expressions, then what is added."""
    made = np.stack([np.full((360, 360, 3), 10 * i, np.uint8) for i in range(9)])
    talk = Talk(0, range(24, 32), Fraction(25), torch.zeros(1))
    evaluation = StillEvaluation(a_crowd(face, speakers_two), [talk], None, None)
    told = []
    monkeypatch.setattr(evaluation, "_made", lambda picture, talk, frames: told.append(picture) or made)
    sheet = evaluation.sheet([np.full((200, 200, 3), 250, np.uint8)], columns=1, moments=2, side=60)
    people = len(evaluation.portraits())
    assert sheet.shape == (60 * (2 * people + 1), 180, 3)
    assert (sheet[-60:, :60] == 250).all()
    assert (sheet[:, 60:120] == 30).all()
    assert (sheet[:, 120:] == 60).all()
    for row, picture in enumerate(told):
        assert np.abs(sheet[60 * row : 60 * row + 60, :60].mean((0, 1)) - picture.mean((0, 1))).max() < 1
