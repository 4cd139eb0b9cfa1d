"""How strongly a face is painted: by its turn, and at the ends of what is painted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentsync.face.opacity import NOSE, PROFILE, facing, fade, turned_away
from latentsync.face.points import CANONICAL, NOSE_TIP
from latentsync.face.track import _track
from latentsync.face.tracklet import Tracklet

HALF = 0.85  # of CANONICAL's jaw


def head(yaw, pitch=0.0, roll=0.0, size=80.0, place=(160.0, 100.0)):
    """(68, 2) CANONICAL with a depth, turned by degrees: ears at depth 0, cheeks round, the nose before them."""
    x, y = CANONICAL.T
    z = 0.9 * np.sqrt((1 - (x / 0.87) ** 2).clip(0))
    z[[0, 16]] = 0
    z[NOSE_TIP] = NOSE * HALF
    yaw, pitch, roll = np.radians([yaw, pitch, roll])
    x, z = x * np.cos(yaw) + z * np.sin(yaw), z * np.cos(yaw) - x * np.sin(yaw)
    y = (y - 0.6) * np.cos(pitch) - z * np.sin(pitch)
    x, y = x * np.cos(roll) - y * np.sin(roll), x * np.sin(roll) + y * np.cos(roll)
    return np.stack([x, y], 1) * size + place


@pytest.mark.parametrize("yaw", [-75, -58, -42, -20, -5, 0, 5, 20, 42, 58, 75])
def test_the_angle_of_a_turned_head(yaw):
    assert turned_away(head(yaw)[None]) == pytest.approx([abs(yaw)], abs=0.1)


@settings(max_examples=60, deadline=None)
@given(
    st.floats(-70, 70), st.floats(-180, 180), st.floats(5, 400), st.tuples(st.floats(-900, 900), st.floats(-900, 900))
)
def test_size_place_and_tilt_do_not_matter(yaw, roll, size, place):
    assert turned_away(head(yaw, 0, roll, size, place)[None]) == pytest.approx([abs(yaw)], abs=0.1)


@pytest.mark.parametrize("pitch", [-15, 15])
@pytest.mark.parametrize("yaw", [0, 20, 40])
def test_a_nod_matters_little(yaw, pitch):
    assert turned_away(head(yaw, pitch)[None]) == pytest.approx([abs(yaw)], abs=8)


def test_many_at_once_and_a_face_of_no_size():
    assert turned_away(np.stack([head(yaw) for yaw in (0, 30, -50)])) == pytest.approx([0, 30, 50], abs=0.1)
    assert np.isfinite(turned_away(np.zeros((2, 68, 2), np.float32))).all()


def track(yaws, cuts=()):
    """A head turned by so many degrees in each frame; None: not there."""
    points = {i: head(yaw).astype(np.float32) for i, yaw in enumerate(yaws) if yaw is not None}
    return _track(0, Tracklet(points), len(yaws), tuple(cuts), (320, 240))


@pytest.mark.parametrize(
    ("yaw", "weight"), [(0, 1), (PROFILE[0] - 1, 1), (50, 0.5), (-50, 0.5), (46, 0.75), (PROFILE[1] + 1, 0), (80, 0)]
)
def test_a_face_fades_out_towards_its_profile(yaw, weight):
    assert facing(track([yaw] * 9)) == pytest.approx(np.full(9, weight), abs=0.01)


def test_a_head_that_turns_fades_over_frames_not_at_once():
    weights = facing(track([41] * 10 + [50] * 5 + [59] * 10))
    steps = [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    assert weights == pytest.approx([1] * 7 + steps + [0] * 8, abs=1e-3)


def test_turns_of_other_shots_and_before_a_gap_do_not_count():
    weights = facing(track([0] * 10 + [80] * 10 + [None] * 8 + [0] * 5, cuts=[10]))
    assert weights == pytest.approx([1] * 10 + [0] * 18 + [1] * 5, abs=1e-6)


def test_a_long_clip_is_read_in_parts():
    yaws = [0] * 4095 + [80] * 20
    assert facing(track(yaws))[[0, 4090, 4099, 4114]].tolist() == [1, 1, 0, 0]


Q = [0.25, 0.5, 0.75]


@pytest.mark.parametrize(
    ("segments", "cuts", "wanted"),
    [
        ([], (), [0] * 12),
        ([(0, 12)], (), [1] * 12),
        ([(0, 7)], (), [1, 1, 1, 1, *Q[::-1], 0, 0, 0, 0, 0]),
        ([(4, 12)], (), [0, 0, 0, 0, *Q, 1, 1, 1, 1, 1]),
        ([(4, 12)], (4,), [0] * 4 + [1] * 8),
        ([(0, 7)], (7,), [1] * 7 + [0] * 5),
        ([(0, 5), (5, 12)], (), [1] * 12),
        ([(2, 10)], (), [0, 0, *Q, 1, 1, *Q[::-1], 0, 0]),
        ([(2, 5), (7, 9)], (), [0, 0, 0.25, 0.5, 0.25, 0, 0, 0.25, 0.25, 0, 0, 0]),
        ([(3, 4)], (), [0, 0, 0, 0.25] + [0] * 8),
    ],
)
def test_fade_table(segments, cuts, wanted):
    found = fade(segments, 12, cuts=cuts)
    assert found.dtype == np.float32
    assert found.tolist() == wanted
    assert fade(iter(segments), 12, cuts=iter(cuts)).tolist() == wanted


def test_a_ramp_of_another_length():
    assert fade([(1, 9)], 9, length=1).tolist() == [0, 0.5, 1, 1, 1, 1, 1, 1, 1]
    assert fade([(1, 9)], 9, length=0).tolist() == [0] + [1] * 8
