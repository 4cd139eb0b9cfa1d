"""One face over the frames that are worked on: which frames belong together, where crops lie, how they come back."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentsync.face.align import align_matrices, crop_face, crop_matrix, template
from latentsync.face.aligned import AlignedFace
from latentsync.face.composite import paste
from latentsync.face.detect import LEFT_BROW, NOSE, RIGHT_BROW
from latentsync.face.mask import mouth_mask
from latentsync.face.points import CANONICAL
from latentsync.face.track import _segments, _track
from latentsync.face.tracklet import Tracklet
from latentsync.settings import FITS
from latentsync.timeline import Timeline, fit_timeline

FPS = Fraction(25)
WIDTH, HEIGHT = 320, 260


def landmarks(x, y, size):
    """The mean face with brows and nose as in the template, size times as large."""
    three = template(256) * size + (x, y)
    points = CANONICAL * (three[1, 0] - three[0, 0]) + (three[0] + three[1]) / 2
    for part, place in zip((LEFT_BROW, RIGHT_BROW, NOSE), three, strict=True):
        points[part] = place
    return points.astype(np.float32)


def track(frames=30, gaps=(), cuts=(), wobble=0.0):
    """A face that drifts to the right; absent in the gaps (start, stop)."""
    rng = np.random.default_rng(0)
    seen = [i for i in range(frames) if not any(a <= i < b for a, b in gaps)]
    points = {i: landmarks(70 + 0.8 * i, 60, 0.5) + rng.normal(0, wobble, (68, 2)).astype(np.float32) for i in seen}
    return _track(0, Tracklet(points), frames, tuple(cuts), (WIDTH, HEIGHT))


def picture(seed=1):
    """Smooth noise: nothing in it is flat, nothing aliases."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] / 23.0
    waves = [np.sin(x * a + seed) + np.cos(y * b - seed) for a, b in ((1, 2), (2, 1), (1.5, 0.7))]
    return (127 + 50 * np.stack(waves, -1)).clip(0, 255).astype(np.uint8)


GAP = track(30, gaps=[(12, 20)], cuts=[5])


def test_frames_that_belong_together():
    clip = AlignedFace.from_track(GAP, 64)
    assert clip.frames == 30
    assert clip.size == (WIDTH, HEIGHT)
    assert clip.segments == [(0, 5), (5, 12), (20, 30)]
    assert clip.segment_index.tolist() == [0] * 5 + [1] * 7 + [-1] * 8 + [2] * 10
    assert clip.first_of.tolist() == [0] * 5 + [5] * 7 + list(range(12, 20)) + [20] * 10
    assert clip.source_indices.tolist() == list(range(30))


def test_weights_rise_after_a_gap_and_not_at_a_cut():
    clip = AlignedFace.from_track(GAP, 64)
    assert [clip.opacity[i] for i in (0, 4, 5, 8, 9, 10, 11, 12, 19, 20, 21, 22, 23, 29)] == [
        *(1, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0, 0.25, 0.5, 0.75, 1, 1)
    ]


def test_a_face_that_goes_with_a_cut_does_not_fade():
    clip = AlignedFace.from_track(track(30, gaps=[(12, 20)], cuts=[12]), 64)
    assert [clip.opacity[i] for i in (11, 12, 20)] == [1, 0, 0.25]


def test_in_another_order():
    clip = AlignedFace(GAP, Timeline(FPS, 42, 30, "loop"), 64)
    assert clip.frames == 42
    assert clip.segments == [(0, 5), (5, 12), (20, 30), (30, 35), (35, 42)]
    assert clip.first_of[[34, 35, 41]].tolist() == [30, 35, 35]
    assert np.array_equal(clip.opacity[30:], clip.opacity[:12])
    assert np.array_equal(clip.matrices()[30:], clip.matrices()[:12])


@pytest.mark.parametrize("side", [64, 96, 256])
def test_matrices_of_any_side(side):
    clip = AlignedFace.from_track(GAP, 64)
    assert np.array_equal(clip.matrices(side), align_matrices(GAP.points, side))
    assert np.array_equal(clip.matrix(7, side), clip.matrices(side)[7])
    assert np.array_equal(clip.matrices(), clip.matrices(64))
    placed = GAP.points[7] @ clip.matrix(7, side)[:, :2].T + clip.matrix(7, side)[:, 2]
    assert placed == pytest.approx(template(side), abs=1e-3 * side)


def test_the_place_is_held_where_there_is_no_face():
    matrices = AlignedFace.from_track(GAP, 64).matrices()
    assert all(np.array_equal(matrices[i], matrices[11]) for i in range(12, 20))
    assert not np.array_equal(matrices[20], matrices[11])


def test_the_reference_aligns_by_unsteadied_points():
    shaky = track(30, wobble=0.6)
    clip = AlignedFace(shaky, Timeline(FPS, 30, 30, "trim"), 64, reference=True)
    measured = np.stack([shaky.landmarks[:, part].mean(1) for part in (LEFT_BROW, RIGHT_BROW, NOSE)], 1)
    assert np.array_equal(clip.matrices(), align_matrices(measured, 64, reference=True))
    frame = picture()
    assert np.array_equal(clip.crop(frame, 9), crop_face(frame, clip.matrix(9), 64, reference=True))


def test_crops_are_the_faces_of_their_frames():
    clip = AlignedFace(GAP, Timeline(FPS, 8, 30, "trim"), 64)
    frames = [picture(seed) for seed in range(8)]
    crops = list(clip.crops(frames))
    assert [crop.shape for crop in crops] == [(64, 64, 3)] * 8
    assert all(crop.dtype == np.uint8 for crop in crops)
    for i, crop in enumerate(crops):
        assert np.array_equal(crop, crop_face(frames[i], align_matrices(GAP.points, 64)[i], 64))
    assert all(np.array_equal(a, b) for a, b in zip(clip.crops(frames[3:], 3), crops[3:], strict=True))


@pytest.mark.parametrize("side", [64, 128, 200])
def test_paste_touches_the_mouth_only_and_takes_crops_of_any_side(side):
    clip, frame = AlignedFace.from_track(GAP, 64), picture()
    new = np.full((side, side, 3), (250, 20, 20), np.float32)
    out, mask = clip.paste(frame, new, 3)
    assert np.array_equal(out[mask == 0], frame[mask == 0])
    assert mask.max() == pytest.approx(1, abs=0.02)
    assert np.abs(out[mask > 0.9].astype(int) - frame[mask > 0.9]).mean() > 20
    to_crop = crop_matrix(clip.matrix(3, side), side)
    y, x = np.nonzero(mask > 0)
    u, v = (np.stack([x, y], 1) @ to_crop[:, :2].T + to_crop[:, 2]).T.round().astype(int).clip(0, side - 1)
    assert (mouth_mask(side)[v, u] == 0).mean() > 0.96  # rounding at the edge


def test_an_enlarged_crop_lands_where_the_small_one_does():
    clip, frame = AlignedFace.from_track(GAP, 64), picture()
    masks = [clip.paste(frame, clip.crop(frame, 3, side), 3)[1] for side in (64, 128)]
    assert np.abs(masks[0] - masks[1]).mean() < 0.004
    same, mask = clip.paste(frame, clip.crop(frame, 3, 128), 3)
    assert np.abs(same[mask > 0].astype(int) - frame[mask > 0]).mean() < 2


def test_paste_follows_the_weights():
    clip, frame = AlignedFace.from_track(GAP, 64), picture()
    new = np.zeros((64, 64, 3), np.uint8)
    for i in (3, 9, 10, 20):
        out, mask = clip.paste(frame, new, i)
        points, weight = clip.outline(i), clip.opacity[i]
        wanted = paste(frame, new, align_matrices(GAP.points, 64)[i], resolution=64, weight=weight, points68=points)
        assert np.array_equal(out, wanted[0])
        assert np.array_equal(mask, wanted[1])
        assert mask.max() == pytest.approx(clip.opacity[i], abs=0.02)


@pytest.mark.parametrize("reference", [False, True])
def test_frames_without_the_face_are_left_alone(reference):
    clip, frame = AlignedFace.from_track(GAP, 64), picture()
    out, mask = clip.paste(frame, np.zeros((64, 64, 3), np.uint8), 15, reference=reference)
    assert np.array_equal(out, frame)
    assert not mask.any()


def test_the_reference_s_seam_knows_no_fades_and_keeps_all_but_the_mouth():
    timeline = Timeline(FPS, 30, 30, "trim")
    clip, frame = AlignedFace(GAP, timeline, 64, reference=True), picture()
    new = np.full((64, 64, 3), 255.0, np.float32)
    out, mask = clip.paste(frame, new, 11, reference=True)
    assert clip.opacity[11] == 0.25
    assert mask.max() > 0.99
    mixed = np.where(mouth_mask(64)[..., None] > 0.5, clip.crop(frame, 11), new)
    wanted, _ = paste(frame, mixed, clip.matrix(11), resolution=64, reference=True)
    assert np.array_equal(out, wanted)


def test_fitted_is_the_same_face_in_another_order():
    clip = AlignedFace.from_track(GAP, 64)
    timeline = fit_timeline(FPS, 30, Fraction(3), "pingpong")
    fitted = clip.retimed(timeline)
    assert fitted.timeline == timeline
    assert fitted.frames == 75
    assert fitted.track is GAP
    assert fitted.resolution == 64
    assert clip.frames == 30


def test_fitted_to_a_timeline_of_another_clip_is_a_programmer_s_error():
    with pytest.raises(ValueError, match="31 frames for a clip of 30"):
        AlignedFace.from_track(GAP, 64).retimed(Timeline(FPS, 31, 31, "trim"))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FITS), st.sampled_from(FITS), st.integers(24, 70), st.integers(24, 150), st.booleans())
def test_fitted_twice_is_the_order_of_the_order(first, second, frames, more, cut):
    """Each frame keeps its place, what belongs together still does, and the face fades where it did."""
    source = track(24, gaps=[(9, 16)], cuts=[20] if cut else [])
    once = AlignedFace.from_track(source, 64).retimed(fit_timeline(FPS, 24, frames / FPS, first))
    timeline = fit_timeline(FPS, once.frames, more / FPS, second)
    twice = once.retimed(timeline)
    order = np.array(list(timeline.source_indices()))
    assert np.array_equal(twice.matrices(), once.matrices()[order])
    assert np.array_equal(twice.segment_index < 0, once.segment_index[order] < 0)
    jumps = np.flatnonzero(np.diff(once.source_indices[order]) ** 2 > 1) + 1
    assert not any(a < jump < b for a, b in twice.segments for jump in jumps)
    # a fade towards a gap that the first order does not reach is gone
    assert (twice.opacity >= once.opacity[order]).all()
    assert first in ("loop", "pingpong") or np.array_equal(twice.opacity, once.opacity[order])
    assert np.array_equal(twice.opacity > 0, once.opacity[order] > 0)


def test_a_clip_can_be_told_from_another_and_kept_in_a_set():
    a, b = AlignedFace.from_track(GAP, 64), AlignedFace.from_track(GAP, 64)
    assert len({a, b, a}) == 2
    assert a != b


def test_segments_of_the_made_up_track():
    assert GAP.segments == _segments(GAP.present, [5]) == ((0, 5), (5, 12), (20, 30))
