"""The scores of made faces, on pictures of which the answer is known."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from latentsync.evaluation.image_metrics import lips_region
from latentsync.face.align import face_size, template
from latentsync.face.mask import mouth_mask
from recipes.nano.evaluate import lip_sharpness
from recipes.nano.strangers import _at_the_lips, _skin_difference, _strip, correlation

from ..tiny import pan

WIDTH, HEIGHT = face_size(256)
FRAMES = 7


def test_correlation():
    wave = np.sin(np.arange(30.0))
    assert correlation(wave, 3 * wave + 1) == pytest.approx(1)
    assert correlation(wave, -wave) == pytest.approx(-1)
    assert correlation(wave, np.ones(30)) == 0


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
