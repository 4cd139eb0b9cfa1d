"""The arithmetic of tracks: cuts, gaps, steadying, fades and the choice of a face, on made-up numbers."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentsync.errors import UserError
from latentsync.face import track
from latentsync.face.choose import choose
from latentsync.face.cuts import find_cuts
from latentsync.face.detect import face_of_mesh, mouth_opening, overlap, three_points
from latentsync.face.face_net import LENGTH
from latentsync.face.identity import Looks
from latentsync.face.opacity import fade
from latentsync.face.smooth import smooth
from latentsync.face.track import BRIDGE, FaceTrack, Tracks, _track, find_tracks
from latentsync.face.tracklet import CHECK_EVERY, Tracklet, Trail, merge_tracklets

FACE = np.random.default_rng(0).uniform(-1, 1, (68, 2)).astype(np.float32)
"""68 points in a square of 2 x 2: enough for arithmetic."""


def made_up(index, x, y, size, frames=range(50), count=50):
    trail = Tracklet({i: (FACE * size / 2 + (x, y)).astype(np.float32) for i in frames})
    return _track(index, trail, count, (), (1000, 600))


def tracks(*faces):
    return Tracks(tuple(faces), 50, (1000, 600))


SMALL, LARGE, BRIEF = made_up(0, 200, 300, 80), made_up(1, 600, 300, 200), made_up(2, 900, 100, 210, range(10, 15))


@pytest.mark.parametrize(
    ("face", "index"),
    [("largest", 1), ("left", 0), ("right", 2), ("0", 0), ("1", 1), ("2", 2), ("610,310,3", 1), ("205, 300, 49", 0)],
)
def test_choose(face, index):
    assert choose(tracks(SMALL, LARGE, BRIEF), face).index == index


@pytest.mark.parametrize(
    "face", ["3", "-1", "0.5", "nan", "biggest", "", "1,2", "a,b,c", "500,10,0", "900,100,20", "inf,0,0"]
)
def test_a_face_that_is_not_there_is_one_sentence_that_lists_those_that_are(face):
    with pytest.raises(UserError, match=r"0 \(.* px high at .*; 1 \("):
        choose(tracks(SMALL, LARGE, BRIEF), face)


@pytest.mark.parametrize("face", ["600,300,50", "600,300,-1", "600,300,1.5"])
def test_a_point_in_a_frame_that_is_not_there_is_one_sentence(face):
    with pytest.raises(UserError, match="frames 0 to 49"):
        choose(tracks(SMALL, LARGE), face)


def thumbs(*runs):
    """Thumbnails from (seed, frames): each seed is a picture of its own."""
    pictures = {seed: np.random.default_rng(seed).integers(0, 255, (18, 32), dtype=np.uint8) for seed, _ in runs}
    pictures[255] = np.full((18, 32), 255, np.uint8)
    return [pictures[seed] for seed, count in runs for _ in range(count)]


@pytest.mark.parametrize(
    ("runs", "cuts"),
    [
        ([(1, 10)], ()),
        ([(1, 10), (2, 10)], (10,)),
        ([(1, 10), (2, 10), (1, 5)], (10, 20)),
        ([(1, 10), (255, 1), (1, 10)], ()),
        ([(1, 10), (255, 3), (1, 10)], ()),
        ([(1, 10), (255, 4), (1, 10)], (10, 14)),
        ([(1, 10), (255, 2), (2, 10)], (10, 12)),
        ([(1, 1), (2, 1)], (1,)),
        ([(1, 1)], ()),
    ],
)
def test_cuts_are_found_and_flashes_are_none(runs, cuts):
    assert find_cuts(thumbs(*runs)) == cuts


def test_a_change_of_light_is_no_cut():
    (scene,) = thumbs((1, 1))
    assert find_cuts([scene, (scene * 0.4).astype(np.uint8), scene]) == ()


def test_short_gaps_are_bridged_and_long_ones_are_not():
    gap = range(20, 20 + BRIDGE)
    short = made_up(0, 100, 100, 50, [i for i in range(50) if i not in gap])
    assert short.segments == ((0, 50),)
    long = made_up(0, 100, 100, 50, [i for i in range(50) if i not in (*gap, 20 + BRIDGE)])
    assert long.segments == ((0, 20), (26, 50))
    assert not long.present[20:26].any()


def test_a_bridged_gap_lies_on_the_line_between_and_absent_frames_hold_the_last_place():
    trail = Tracklet({i: (FACE * 20 + (100 + 2 * i, 100)).astype(np.float32) for i in [*range(5), *range(8, 20)]})
    track = _track(0, trail, 30, (), (640, 480))
    assert np.allclose(track.landmarks[6], FACE * 20 + (112, 100), atol=1e-3)
    assert np.array_equal(track.landmarks[29], track.landmarks[19])
    assert np.array_equal(track.points[25], track.points[19])


def test_a_gap_with_a_cut_inside_is_not_bridged():
    trail = Tracklet(dict.fromkeys([*range(10), *range(12, 20)], FACE * 20 + 100))
    assert _track(0, trail, 20, (11,), (640, 480)).segments == ((0, 10), (12, 20))


def test_a_sudden_jump_ends_a_segment_and_quick_motion_does_not():
    jump = Tracklet({i: FACE * 50 + (100 if i < 15 else 130) for i in range(30)})
    assert _track(0, jump, 30, (), (640, 480)).segments == ((0, 15), (15, 30))
    quick = Tracklet({i: FACE * 50 + 100 + 20 * i for i in range(30)})
    assert _track(0, quick, 30, (), (2000, 2000)).segments == ((0, 30),)


def points_of(motion, noise=0.0, size=60):
    """(F, 3, 2): three points of a face of this size (brows to nose) that moves by motion (F, 2)."""
    shape = np.array([(-0.6, -0.5), (0.6, -0.5), (0, 0.5)]) * size
    wander = np.random.default_rng(3).normal(0, noise, (len(motion), 1, 2))
    return shape + np.asarray(motion)[:, None] + wander


def test_noise_of_a_still_face_is_taken_away():
    points = points_of(np.zeros((100, 2)), noise=0.4)
    steadied = smooth(points, [(0, 100)])
    assert np.sqrt((np.diff(steadied[:, 0], axis=0) ** 2).sum(1).mean()) < 0.15
    assert np.sqrt((np.diff(points[:, 0], axis=0) ** 2).sum(1).mean()) > 0.7


@pytest.mark.parametrize("period", [20, 30, 60])
def test_motion_is_kept_without_lag(period):
    time = np.arange(120)
    motion = np.stack([40 * np.sin(2 * np.pi * time / period), 10 * np.cos(2 * np.pi * time / period)], 1)
    steadied = smooth(points_of(motion, noise=0.3), [(0, 120)]).mean(1)
    wanted = points_of(motion).mean(1)
    error = np.linalg.norm(steadied - wanted, axis=1)[5:-5]
    assert error.max() < 0.06 * 40
    late = np.linalg.norm(steadied[6:-4] - wanted[5:-5], axis=1).mean()
    early = np.linalg.norm(steadied[4:-6] - wanted[5:-5], axis=1).mean()
    assert error.mean() < min(late, early) / 2


def test_steady_motion_passes_unchanged_up_to_the_ends():
    motion = np.stack([3.0 * np.arange(40), -1.0 * np.arange(40)], 1)
    assert np.abs(smooth(points_of(motion), [(0, 40)]) - points_of(motion)).max() < 1e-3


def test_segments_know_nothing_of_each_other():
    motion = np.repeat([[0.0, 0.0], [100.0, 50.0]], 20, 0)
    points = points_of(motion)
    assert np.abs(smooth(points, [(0, 20), (20, 40)]) - points).max() < 1e-3


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
def test_smoothing_follows_a_shift_of_everything(count, x, y):
    points = points_of(np.random.default_rng(count).normal(0, 5, (count, 2)))
    moved = smooth(points + np.array((x, y)), [(0, count)])
    assert np.allclose(moved, smooth(points, [(0, count)]) + np.array((x, y)), atol=2e-2)


@pytest.mark.parametrize(
    ("segments", "frames", "cuts", "wanted"),
    [
        ([(0, 4)], 4, (), [1, 1, 1, 1]),
        ([(2, 10)], 10, (), [0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        ([(0, 8)], 10, (), [1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0]),
        ([(2, 10)], 10, (2,), [0, 0, 1, 1, 1, 1, 1, 1, 1, 1]),
        ([(0, 5), (5, 10)], 10, (), [1] * 10),
        ([(2, 4)], 6, (), [0, 0, 0.25, 0.25, 0, 0]),
        ([], 3, (), [0, 0, 0]),
    ],
)
def test_fade(segments, frames, cuts, wanted):
    weights = fade(segments, frames, cuts=cuts)
    assert weights.dtype == np.float32
    assert weights.tolist() == wanted


def test_mouth_opening_is_the_inner_lips_over_the_face():
    points = np.zeros((2, 68, 2), np.float32)
    points[:, 27], points[:, 8] = (0, 0), (0, 100)
    points[1, 62], points[1, 66] = (0, 60), (0, 75)
    assert mouth_opening(points).tolist() == [0, pytest.approx(0.15)]


def test_three_points_are_the_means_of_brows_and_nose():
    points = np.arange(136, dtype=float).reshape(68, 2)
    wanted = [points[17:22].mean(0), points[22:27].mean(0), points[27:36].mean(0)]
    assert np.allclose(three_points(points[None])[0], wanted)


@pytest.mark.parametrize(
    ("a", "b", "share"),
    [((0, 0, 2, 2), (0, 0, 2, 2), 1), ((0, 0, 2, 2), (1, 0, 3, 2), 1 / 3), ((0, 0, 1, 1), (1, 0, 2, 1), 0)],
)
def test_overlap(a, b, share):
    assert overlap(a, b) == pytest.approx(share)


def test_a_track_says_its_size():
    assert isinstance(LARGE, FaceTrack)
    assert LARGE.frames == 50
    assert LARGE.height == pytest.approx(200, rel=0.1)


def test_what_is_not_said_to_be_hidden_is_seen_where_it_is_present():
    assert np.array_equal(BRIEF.seen, BRIEF.present)
    hidden = Tracklet(dict.fromkeys([*range(10), *range(12, 20)], FACE * 20 + 100), hidden=[10])
    track = _track(0, hidden, 20, (), (640, 480))
    assert track.present.all()
    assert np.flatnonzero(~track.seen).tolist() == [10]


def test_a_trail_gives_back_what_was_added_and_joins_in_order_of_time():
    points = {i: (FACE + i).astype(np.float32) for i in range(100)}
    early, late = (Trail((i, points[i]) for i in part) for part in (range(40), range(40, 100)))
    both = late.joined(early)
    assert len(both) == 100
    assert both.frames.tolist() == list(range(100))
    assert all(np.array_equal(found, points[i]) for i, found in both.items())


def seen_at(frames, place=None):
    """A tracklet whose looks are so far along one line; None: it was never seen well enough to know."""
    looks = Looks.none()
    if place is not None:
        looks.add(np.array([2.0, place, *[0.0] * (LENGTH - 2)], np.float32))
    return Tracklet(dict.fromkeys(frames, FACE * 20 + 100), looks=looks, end=frames[-1])


@pytest.mark.parametrize(
    ("places", "ranges", "cuts", "people"),
    [
        ((0, 0.48), (range(9), range(60, 70)), (30,), [[0, 1]]),
        ((0, 0.55), (range(9), range(60, 70)), (30,), [[0], [1]]),
        ((0, 0.55), (range(9), range(60, 70)), (), [[0, 1]]),  # in one shot a little less will do
        ((0, 0.6), (range(9), range(60, 70)), (), [[0], [1]]),
        ((0, 0.1), (range(9), range(8, 20)), (), [[0], [1]]),  # seen together
        ((0, 0.3, 0.8), (range(9), range(20, 29), range(40, 49)), (15, 35), [[0, 1], [2]]),  # most alike first
        ((None, None), (range(9), range(20, 29)), (15,), [[0], [1]]),  # nothing is known of them
        ((0, None), (range(9), range(20, 29)), (15,), [[0], [1]]),
    ],
)
def test_who_is_one_person(places, ranges, cuts, people):
    tracklets = [seen_at(frames, place) for frames, place in zip(ranges, places, strict=True)]
    merged = merge_tracklets(tracklets, cuts)
    assert sorted([*map(int, one.seen.frames)] for one in merged) == [
        [f for i in group for f in ranges[i]] for group in people
    ]


class Drawn:
    """A finder of one face that sways, in place of MediaPipe."""

    def __init__(self):
        self.now, self.mesh = 0, np.random.default_rng(0).uniform(40, 80, (478, 2))

    def frames(self, count):
        picture = np.full((120, 160, 3), 130, np.uint8)
        for self.now in range(count):
            yield picture

    def detect(self, frame, *, known=(), thorough=True):
        return [] if list(known) else [self.refine(frame, None)]

    def refine(self, frame, box, tilt=0.0):
        return face_of_mesh(self.mesh + 3 * np.sin(self.now / 9))


class Seen(Drawn):
    """Frames of noise, in which there always is the face."""

    def frames(self, count):
        random = np.random.default_rng(3)
        picture = random.integers(90, 170, (120, 160, 3), np.uint8)
        for self.now in range(count):
            yield picture


@pytest.mark.parametrize(
    ("begin", "end", "most_mixed"),
    [(30, 30, 8), (30, 50, 16), (30, 45, 16)],  # at once, as behind somebody's back; a slow and a quick dissolve
)
def test_a_face_that_becomes_another_ends_a_track_and_the_midst_of_it_is_nobody(monkeypatch, begin, end, most_mixed):
    finder, count = Seen(), 90

    def view(frame, points68):
        """From one person's looks to another's, far apart."""
        share = float(np.interp(finder.now, (begin, end + 1e-6), (0, 1)))
        return np.array([1 - share, share, 1.0, *[0.0] * (LENGTH - 3)], np.float32)

    monkeypatch.setattr(track, "embed", view)
    first, second = find_tracks(finder.frames(count), finder).faces
    assert first.present[: begin + 1].all()
    assert second.present[end + 2 * CHECK_EVERY :].all()
    assert not (first.present & second.present).any()
    assert not second.present[: begin + 1].any()
    assert not first.present[begin + most_mixed :].any()


def test_following_keeps_at_most_600_bytes_a_frame():
    finder, kept, count = Drawn(), {}, 1200
    tracemalloc.start()
    try:
        find_tracks(
            finder.frames(count), finder, on_step=lambda n: kept.update({n: tracemalloc.get_traced_memory()[0]})
        )
    finally:
        tracemalloc.stop()
    assert (kept[count] - kept[count - 1000]) / 1000 < 700  # this test's own notes are about 100
