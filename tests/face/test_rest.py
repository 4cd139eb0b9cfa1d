"""Lips that are closed in the picture: a drawn mouth of known size, and two real faces."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from latentsync.face.align import align_matrices, crop_face, face_size
from latentsync.face.detect import FaceFinder, mouth_opening, three_points
from latentsync.face.points import CANONICAL
from latentsync.face.rest import ARCH, LOWER, NOSE, PRESS, UPPER, close_lips, rested

from ..tiny import face_model

ASSETS = Path(__file__).parents[2] / "latentsync" / "assets"
SIDE, TOP, GAP = 256, 160.0, 20
LEFT, RIGHT = 88.0, 168.0
SKIN, DARK, LIP = 200, 20, 120


def drawn(gap=GAP, side=SIDE):
    """A crop with a dark gap as a lens between lips, and its points: the upper lip's edge is a straight line."""
    scale = side / SIDE
    points = CANONICAL * 70 * scale + (128 * scale, 90 * scale)
    for part, bend in ((UPPER, 0.0), (LOWER, gap)):
        x = np.linspace(LEFT, RIGHT, 5)
        high = TOP + bend * np.sin(np.pi * (x - LEFT) / (RIGHT - LEFT))
        points[list(part)] = np.stack([x, high], 1) * scale
    points[8] = (128 * scale, 215 * scale)
    picture = np.full((side, side, 3), SKIN, np.uint8)
    x = np.arange(side)
    y = np.arange(side)[:, None]
    lower = np.interp(x, points[list(LOWER), 0][::1], points[list(LOWER), 1])
    inside = (x > LEFT * scale) & (x < RIGHT * scale)
    picture[(y > lower) & (y < lower + 12 * scale) & inside] = LIP
    picture[(y < TOP * scale) & (y > (TOP - 10) * scale) & inside] = LIP
    picture[(y >= TOP * scale) & (y <= lower) & inside] = DARK
    return picture, points


def dark_rows(picture, column=128):
    """Height of the dark part in a column, the soft edges counted by their share."""
    values = picture[:, column].astype(float).mean(-1)
    return ((LIP - values) / (LIP - DARK)).clip(0, 1).sum()


@pytest.mark.parametrize("side", [128, 256, 512])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_the_gap_closes_by_the_amount(side, kind):
    picture, points = drawn(side=side)
    before = dark_rows(picture, side // 2)
    assert before == pytest.approx(GAP * side / SIDE, abs=1.6)
    closed = close_lips(picture.astype(kind), points, 1.0)
    assert (closed.dtype, closed.shape) == (kind, picture.shape)
    assert max(dark_rows(closed, x) for x in range(side)) <= 1  # a pixel at the corners
    half = close_lips(picture.astype(kind), points, 0.5)
    assert dark_rows(half, side // 2) == pytest.approx(before / 2, abs=0.015 * side)


def test_more_of_an_amount_leaves_less_of_the_gap():
    picture, points = drawn()
    left = [dark_rows(close_lips(picture, points, amount)) for amount in np.linspace(0, 1, 9)]
    assert (np.diff(left[:-1]) < 0).all()
    assert left[-1] <= left[-2]


def test_no_amount_changes_nothing():
    picture, points = drawn()
    noise = np.random.default_rng(0).integers(0, 255, picture.shape, dtype=np.uint8)
    assert np.array_equal(close_lips(noise, points, 0.0), noise)


@pytest.mark.parametrize("amount", [0.3, 1.0])
def test_nothing_above_the_upper_lip_nor_below_the_chin_changes(amount):
    _, points = drawn()
    noise = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    out = close_lips(noise, points, amount)
    hidden = int(np.ceil(PRESS * SIDE))
    assert np.array_equal(out[: int(TOP) - hidden], noise[: int(TOP) - hidden])
    assert np.array_equal(out[216:], noise[216:])
    assert not np.array_equal(out[170:200, 110:150], noise[170:200, 110:150])
    assert np.array_equal(out[:, :75], noise[:, :75])  # beside the mouth, too
    assert np.array_equal(out[:, 181:], noise[:, 181:])


def test_lips_keep_their_thickness():
    """Of a gap three times as high as the lip below it."""
    picture, points = drawn(gap=36)
    points[57, 1] = points[66, 1] + 12
    closed = close_lips(picture, points, 1.0)[..., 0].astype(int)
    assert (np.abs(closed[:, 128] - LIP) < 20).sum() == pytest.approx(10 + 12 - PRESS * SIDE, abs=3)


def test_an_arched_lip_comes_down_to_meet_the_other():
    _, points = drawn()
    points[list(UPPER), 1] -= np.array([0, 10, 14, 10, 0])
    rows = np.repeat(np.repeat(np.arange(SIDE, dtype=np.float32)[:, None, None], SIDE, 1), 3, 2)
    column = close_lips(rows, points, 1.0)[:, 128, 0]
    seam = int(np.argmax(np.diff(column)))
    assert seam == pytest.approx(TOP - ARCH * 14 - PRESS * SIDE, abs=2)
    assert column[seam] == pytest.approx(TOP - 14, abs=3)
    assert column[seam + 1] == pytest.approx(TOP + GAP, abs=5)


def test_closed_lips_stay_as_they_are():
    picture, points = drawn(gap=0)
    assert np.array_equal(close_lips(picture, points, 1.0), picture)


def test_skin_below_moves_up_without_a_fold():
    """Gray that grows downwards still does, from the lower lip to the chin."""
    _, points = drawn()
    slope = np.repeat(np.repeat(np.arange(SIDE, dtype=np.float32)[:, None, None], SIDE, 1), 3, 2)
    out = close_lips(slope, points, 1.0)[..., 0]
    assert (np.diff(out[int(TOP) + 2 :], axis=0) >= -1e-3).all()
    assert out[162, 128] == pytest.approx(162 + GAP + 2 * PRESS * SIDE, abs=3)


@pytest.fixture(scope="module")
def finder():
    with FaceFinder(face_model()) as finder:
        yield finder


def opened(crop, points, share):
    """A real crop whose mouth is torn open by a share of its width, dark within: the lips' line parts as a lens."""
    side = len(crop)
    line = points[list(UPPER)]
    columns, rows = np.meshgrid(np.arange(side, dtype=np.float32), np.arange(side, dtype=np.float32))
    height = np.interp(columns[0], line[:, 0], (line[:, 1] + points[list(LOWER)][:, 1]) / 2)
    x0, x1 = line[0, 0], line[-1, 0]
    gap = share * (x1 - x0) * np.sin(np.pi * ((columns[0] - x0) / (x1 - x0)).clip(0, 1))
    fade = (1 - (rows - height - gap) / (0.9 * side - height)).clip(0, 1)
    source = np.where(rows > height + gap, rows - gap * fade, rows).astype(np.float32)
    out = cv2.remap(crop, columns, source, cv2.INTER_LINEAR)
    out[(rows > height) & (rows < height + gap)] = (50, 20, 20)
    return out


def points_in(crop, finder):
    side = len(crop)
    width, height = face_size(side)
    found = finder.refine(cv2.resize(crop, (width, height)), (0.0, 0.0, float(width), float(height)))
    assert found is not None
    return (found.points68 + 0.5) * (side / width, side / height) - 0.5


@pytest.fixture(scope="module", params=["astronaut.jpg", "portrait.jpg"])
def real(request, finder):
    picture = cv2.cvtColor(cv2.imread(str(ASSETS / request.param)), cv2.COLOR_BGR2RGB)
    return crop_face(picture, align_matrices(three_points(finder.detect(picture)[0].points68)[None], SIDE)[0], SIDE)


def test_a_real_mouth_that_is_a_little_open_is_closed(real, finder):
    """One smiles and shows teeth, the other's lips are just apart. Of these the landmarker makes no gap of 0."""
    half, closed = (rested(real, finder, amount) for amount in (0.5, 1.0))
    before, between, after = (mouth_opening(points_in(crop, finder)) for crop in (real, half, closed))
    assert before > 0.05
    assert after < 0.55 * before
    assert after < between < 0.8 * before
    nose = int(points_in(real, finder)[NOSE, 1]) - 2
    assert np.array_equal(closed[:nose], real[:nose])
    assert rested(real, finder, 0.0) is real


def test_a_dark_gap_in_a_real_face_is_gone(real, finder):
    wide = opened(real, points_in(real, finder), 0.15)
    torn = wide[..., 1] < 25
    assert torn[130:190, 90:170].sum() > 200
    gone, half = (rested(wide, finder, amount)[..., 1] < 25 for amount in (1.0, 0.5))
    assert gone[130:190, 90:170].sum() < 0.05 * torn[130:190, 90:170].sum()
    assert 0.3 < half[130:190, 90:170].sum() / torn[130:190, 90:170].sum() < 0.7


def test_a_crop_without_a_face_stays_as_it_is(finder):
    crop = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    assert rested(crop, finder, 1.0) is crop
