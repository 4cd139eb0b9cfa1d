"""Who a face is: two real portraits, changed as footage changes them."""

from functools import cache

import cv2
import numpy as np
import pytest
import torch

from latentsync.face.detect import FaceFinder
from latentsync.face.face_net import ASSET, LENGTH, SIDE, face_net
from latentsync.face.identity import SAME, Looks, embed, likeness, likenesses, turned

from ..tiny import face_model

# fmt: off
RIGHT_HALF = {  # right as seen, x and y; 68-point number: 0 is between the eyes, 1 the distance of their centers
    8: (0.00, 1.84), 9: (0.21, 1.82), 10: (0.51, 1.69), 11: (0.79, 1.47), 12: (0.91, 1.31), 13: (1.01, 1.10),
    14: (1.12, 0.56), 15: (1.14, 0.31), 16: (1.13, -0.18), 22: (0.25, -0.37), 23: (0.48, -0.40), 24: (0.69, -0.41),
    25: (0.85, -0.36), 26: (1.01, -0.32), 27: (0.00, -0.08), 28: (0.00, 0.16), 29: (0.00, 0.37), 30: (0.00, 0.50),
    33: (0.00, 0.71), 34: (0.13, 0.71), 35: (0.20, 0.66), 42: (0.28, 0.01), 43: (0.45, -0.10), 44: (0.62, -0.09),
    45: (0.72, -0.01), 46: (0.60, 0.05), 47: (0.43, 0.04), 51: (0.00, 0.95), 52: (0.13, 0.93), 53: (0.25, 0.96),
    54: (0.43, 1.06), 55: (0.24, 1.21), 56: (0.13, 1.25), 57: (0.00, 1.26),
}
MIRRORED = {8: 8, 9: 7, 10: 6, 11: 5, 12: 4, 13: 3, 14: 2, 15: 1, 16: 0, 22: 21, 23: 20, 24: 19, 25: 18, 26: 17,
             27: 27, 28: 28, 29: 29, 30: 30, 33: 33, 34: 32, 35: 31, 42: 39, 43: 38, 44: 37, 45: 36, 46: 41, 47: 40,
             51: 51, 52: 50, 53: 49, 54: 48, 55: 59, 56: 58, 57: 57}
# fmt: on
"""The mean of the neutral and smiling portraits of 126 people (Face Research Lab London, Young Adult White Faces)."""
MEAN_POINTS = {**{MIRRORED[n]: (-x, y) for n, (x, y) in RIGHT_HALF.items()}, **RIGHT_HALF}
SHAPE = np.array([MEAN_POINTS.get(n, (0.0, 0.6)) for n in range(68)], np.float32)
"""The mean face as 68 points; those that it does not use lie in its middle."""


DLIB = (-0.1475, -0.1503, -0.2088, 0.0434, 0.1831, -0.1416, -0.1220, 0.1474)


@cache
def portrait(who: str) -> tuple[np.ndarray, np.ndarray]:
    """ "astronaut" or "portrait", and 68 points: those of the mean face, laid onto the eyes."""
    scale, middle = {"astronaut": (89, (256.5, 205)), "portrait": (77, (258.5, 198))}[who]
    return cv2.cvtColor(cv2.imread(str(ASSET.with_name(f"{who}.jpg"))), cv2.COLOR_BGR2RGB), SHAPE * scale + middle


def changed(face, *, size=1.0, gain=1.0, noise=0.0, turn=0.0, quality=0):
    """The face in another size (of 1), light, with noise of so many gray values, tilted by degrees, as a JPEG."""
    picture, points = face
    height, width = picture.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), turn, 1) * size
    frame = cv2.warpAffine(picture, matrix, (round(width * size), round(height * size)), flags=cv2.INTER_AREA)
    frame = frame * gain + np.random.default_rng(99).normal(0, noise, frame.shape)
    frame = frame.clip(0, 255).astype(np.uint8)
    if quality:
        frame = cv2.imdecode(cv2.imencode(".jpg", frame, (cv2.IMWRITE_JPEG_QUALITY, quality))[1], cv2.IMREAD_COLOR)
    return frame, points @ matrix[:, :2].T + matrix[:, 2]


def alike(a, b) -> float:
    return float(likeness(embed(*a), embed(*b)))


def test_the_network_is_dlibs():
    """dlib 20.0.1, compute_face_descriptor of the same picture: every 16th of its numbers."""
    face = cv2.resize(portrait("astronaut")[0][100:300, 160:360], (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    with torch.inference_mode():
        made = face_net()(torch.from_numpy(face).permute(2, 0, 1)[None].float())[0]
    assert made[::16].tolist() == pytest.approx(DLIB, abs=2e-3)


@pytest.mark.parametrize("who", ["astronaut", "portrait"])
@pytest.mark.parametrize(
    "change",
    [{"size": 0.3}, {"size": 2.5}, {"gain": 0.5}, {"gain": 1.3}, {"noise": 12.0}, {"turn": 25.0}, {"turn": 180.0},
     {"quality": 15}],
)  # fmt: skip
def test_size_light_noise_tilt_and_compression_do_not_change_who_it_is(who, change):
    other = portrait({"astronaut": "portrait", "portrait": "astronaut"}[who])
    assert alike(portrait(who), changed(portrait(who), **change)) > SAME + 0.2
    assert alike(other, changed(portrait(who), **change)) < SAME - 0.2


def test_the_nose_tells_how_far_a_head_is_turned():
    points = SHAPE * 60 + 150
    beside = points.copy()
    beside[30, 0] += 0.3 * np.ptp(points[:17, 0])
    assert turned(points) == pytest.approx(0, abs=0.02)
    assert turned(beside) == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("place", [(-250.0, 0.0), (1e4, 1e4)])
def test_a_face_that_is_partly_or_wholly_outside_the_frame_is_no_error(place):
    frame, points = portrait("astronaut")
    assert np.isfinite(embed(frame, points + np.array(place, np.float32))).all()


def test_a_plain_picture_says_nothing():
    points = SHAPE * 60 + 150
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


def test_each_with_each_is_as_one_by_one():
    views = np.random.default_rng(0).normal(0, 0.2, (5, LENGTH)).astype(np.float32)
    assert np.allclose(likenesses(views), likeness(views[:, None], views[None]), atol=1e-3)


def test_looks_that_are_joined_are_those_of_all_views():
    views = np.random.default_rng(0).normal(0, 0.2, (6, LENGTH)).astype(np.float32)
    joined = looks_of(*views[:2]).joined(looks_of(*views[2:]))
    assert joined.count == 6
    assert np.allclose(joined.mean, views.mean(0), atol=1e-5)


def test_a_face_that_was_found_is_itself_in_another_light_and_size_and_not_somebody_else():
    mine, dark = portrait("astronaut"), changed(portrait("astronaut"), size=0.6, gain=0.6)
    with FaceFinder(face_model()) as finder:
        views = [
            embed(picture, finder.detect(picture, thorough=False)[0].points68)
            for picture, _ in (mine, dark, portrait("portrait"))
        ]
    assert likeness(views[0], views[1]) > 0.75
    assert likeness(views[0], views[2]) < 0.25
