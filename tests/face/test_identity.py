"""Who a face is: the arithmetic of looks on a drawn face, and on one portrait that many environments have."""

import cv2
import numpy as np
import pytest

from latentsync.face import identity
from latentsync.face.detect import FaceFinder
from latentsync.face.identity import LENGTH, SAME, Looks, embed, turned

from ..tiny import face_model

MEAN_POINTS = {**{identity._MIRRORED[n]: (-x, y) for n, (x, y) in identity._RIGHT_HALF.items()}, **identity._RIGHT_HALF}
SHAPE = np.array([MEAN_POINTS.get(n, (0.0, 0.6)) for n in range(68)], np.float32)
"""The mean face as 68 points; those that it does not use lie in its middle."""


def drawn(seed: int, size: float = 60.0, gain: float = 1.0, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """A frame with a face of made-up features that lie where its points are; seed says who it is."""
    random = np.random.default_rng(seed)
    unit = cv2.resize(
        random.uniform(40, 200, (14, 14, 3)).astype(np.float32), (300, 300), interpolation=cv2.INTER_CUBIC
    )
    side = round(5 * size)
    picture = cv2.resize(unit, (side, side), interpolation=cv2.INTER_AREA) * gain
    picture += np.random.default_rng(99).normal(0, noise, picture.shape)
    return picture.clip(0, 255).astype(np.uint8), SHAPE * size + side / 2 - 0.5


def likeness(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
    return float(embed(*a) @ embed(*b))


def test_looks_have_length_one():
    looks = embed(*drawn(1))
    assert (looks.shape, looks.dtype) == ((LENGTH,), np.float32)
    assert np.linalg.norm(looks) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("change", [{"size": 25.0}, {"size": 140.0}, {"gain": 0.5}, {"noise": 4.0}])
def test_size_light_and_noise_do_not_change_who_it_is(change):
    assert likeness(drawn(1), drawn(1, **change)) > 0.75


def test_another_face_is_unlike():
    assert max(likeness(drawn(1), drawn(n)) for n in range(2, 8)) < SAME


def test_a_face_that_is_tilted_is_the_same():
    frame, points = drawn(1)
    turn = cv2.getRotationMatrix2D((150, 150), 25, 1.0)
    tilted = cv2.warpAffine(frame, turn, frame.shape[1::-1]), points @ turn[:, :2].T + turn[:, 2]
    assert likeness((frame, points), tilted) > 0.75


def test_the_far_half_of_a_turned_face_does_not_count():
    frame, points = drawn(1)
    beside = points.copy()
    beside[30, 0] += 0.3 * np.ptp(points[:17, 0])  # the nose to the right: the left half is near
    other = drawn(2)[0]
    spoiled = frame.copy()
    spoiled[:, 170:] = other[:, 170:]
    assert turned(points) == pytest.approx(0, abs=0.02)
    assert turned(beside) == pytest.approx(0.3, abs=0.03)
    assert likeness((frame, beside), (spoiled, beside)) > 0.9
    assert likeness((frame, points), (spoiled, points)) < 0.9


@pytest.mark.parametrize("place", [(-150.0, 0.0), (1e4, 1e4)])
def test_a_face_that_is_partly_or_wholly_outside_the_frame_is_no_error(place):
    frame, points = drawn(1)
    assert np.isfinite(embed(frame, points + np.array(place, np.float32))).all()


def test_a_plain_picture_says_nothing():
    points = drawn(1)[1]
    nothing = embed(np.full((300, 300, 3), 90, np.uint8), points)
    assert not nothing.any()
    looks = Looks.none()
    looks.add(nothing)
    assert looks.count == 0
    assert not looks.mean.any()


def looks_of(*views: np.ndarray) -> Looks:
    looks = Looks.none()
    for view in views:
        looks.add(view)
    return looks


def views_around(spread: float, count: int) -> list[np.ndarray]:
    """Unit vectors around one, of which each two have a product of about 1 / (1 + spread ** 2)."""
    random = np.random.default_rng(0)
    center = np.eye(LENGTH, dtype=np.float32)[0]
    noise = random.normal(0, spread / np.sqrt(LENGTH), (count, LENGTH)).astype(np.float32)
    return [(center + one) / np.linalg.norm(center + one) for one in noise]


def test_a_face_that_is_always_like_itself_must_be_more_alike_and_few_views_say_nothing_of_it():
    still, lively = looks_of(*views_around(0.3, 8)), looks_of(*views_around(1.0, 8))
    assert still.limit == pytest.approx(SAME + identity.RISE * (1 / 1.09 - identity.STEADY), abs=0.02)
    assert lively.limit == SAME
    assert looks_of(*views_around(0.3, identity.SPREAD - 1)).limit == SAME


def test_looks_that_are_joined_are_those_of_all_views():
    views = views_around(0.5, 6)
    joined = looks_of(*views[:2]).joined(looks_of(*views[2:]))
    assert joined.count == 6
    assert np.allclose(joined.mean, looks_of(*views).mean, atol=1e-5)


def test_a_real_portrait_is_itself_and_not_its_neighbor_in_another_light_and_size():
    data = pytest.importorskip("skimage.data", reason="scikit-image brings the portrait")
    portrait = data.astronaut()
    changed = (255 * (cv2.resize(portrait, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA) / 255) ** 1.5).astype(
        np.uint8
    )
    with FaceFinder(face_model()) as finder:
        views = [embed(picture, finder.detect(picture, thorough=False)[0].points68) for picture in (portrait, changed)]
    assert views[0] @ views[1] > 0.7
