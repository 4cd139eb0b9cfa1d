"""Pasting the mouth back: what is outside the mask stays, what is inside has no seam, the reference is matched."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from latentsync.face.align import align_matrices, crop_face, crop_matrix, template
from latentsync.face.composite import feather, first_row_read, paste
from latentsync.face.mask import mouth_mask


def synthetic_frame(height=360, width=480):
    y, x = np.mgrid[0:height, 0:width].astype(float)
    red = 127.5 + 80 * np.sin(x / 37) + 40 * np.cos(y / 23)
    green = 127.5 + 90 * np.cos((x + 2 * y) / 61)
    blue = 127.5 + 60 * np.sin(x * y / 9000) + 50 * np.sin(y / 41)
    return np.stack([red, green, blue], -1).round().clip(0, 255).astype(np.uint8)


FRAME = synthetic_frame()


def placed(resolution, scale=1.0, angle=0.0, x=150.0, y=60.0):
    """The matrix of a face turned by angle whose template lies scale times as large (at 256) at (x, y)."""
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return align_matrices((template(256) @ turn.T + (x, y))[None], resolution)[0]


places = st.tuples(
    st.sampled_from([128, 192, 256]), st.floats(0.2, 2.5), st.floats(-1, 1), st.floats(-600, 700), st.floats(-600, 500)
)


def half_dark(crop):
    """What the reference cases do to a crop: the lower half of the [-1, 1] tensor is halved."""
    signed = crop.astype(np.float32) / 127.5 - 1
    signed[len(crop) // 2 :] *= 0.5
    return (signed + 1) * 127.5


@pytest.mark.parametrize("resolution", [256, 512])
def test_reference_paste_matches_the_reference_cases(golden_portable, resolution):
    case = load_file(golden_portable / "align" / f"align{resolution}.safetensors")
    matrix = case["matrices"][0].astype(float)
    crop = half_dark(crop_face(FRAME, matrix, resolution, reference=True))
    ours, _ = paste(FRAME, crop, matrix, resolution=resolution, reference=True)
    assert np.abs(ours.astype(int) - case["restored_0"]).mean() < 0.1


def test_reference_paste_matches_the_reference_on_a_real_frame(golden):
    folder = golden / "full" / "align256"
    frame, wanted = (
        cv2.cvtColor(cv2.imread(str(folder / name)), cv2.COLOR_BGR2RGB) for name in ("frame_0.png", "restored_0.png")
    )
    points = load_file(folder / "align.safetensors")["landmarks3"]
    matrix = align_matrices(points, 256, reference=True)[0]
    crop = half_dark(crop_face(frame, matrix, 256, reference=True))
    ours, _ = paste(frame, crop, matrix, resolution=256, reference=True)
    assert np.abs(ours.astype(int) - wanted).mean() < 0.1


@settings(max_examples=40, deadline=None)
@given(places, st.integers(0, 255), st.floats(0, 1), st.booleans())
def test_pixels_outside_the_mask_are_identical_and_the_input_is_untouched(place, value, weight, match):
    resolution = place[0]
    before = FRAME.copy()
    crop = np.full((resolution, resolution, 3), value, np.uint8)
    out, mask = paste(FRAME, crop, placed(*place), resolution=resolution, weight=weight, match=match)
    assert np.array_equal(FRAME, before)
    assert out.dtype == np.uint8
    assert mask.dtype == np.float32
    assert out.shape[:2] == mask.shape == FRAME.shape[:2]
    assert np.array_equal(out[mask == 0], FRAME[mask == 0])
    assert mask.min() >= 0
    assert mask.max() <= weight


@settings(max_examples=40, deadline=None)
@given(places)
def test_mask_lies_within_the_repainted_part_of_the_crop(place):
    resolution = place[0]
    matrix = placed(*place)
    _, mask = paste(FRAME, np.zeros((resolution, resolution, 3), np.uint8), matrix, resolution=resolution)
    y, x = np.nonzero(mask > 0.01)
    to_crop = crop_matrix(matrix, resolution)
    column, row = (to_crop @ np.stack([x, y, np.ones_like(x)])).round().astype(int).clip(0, resolution - 1)
    one_pixel = 2 * int(np.ceil(np.linalg.norm(to_crop[0, :2]))) + 1  # of the frame, measured in the crop, either side
    kept = cv2.erode(mouth_mask(resolution), np.ones((one_pixel, one_pixel)), borderValue=1)
    assert (kept[row, column] == 0).all()


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([128, 256]), st.floats(0.4, 1.4), st.floats(-0.6, 0.6), st.booleans())
def test_a_crop_pasted_where_it_came_from_changes_next_to_nothing(resolution, scale, angle, match):
    matrix = placed(resolution, scale, angle)
    crop = crop_face(FRAME, matrix, resolution)
    out, mask = paste(FRAME, crop, matrix, resolution=resolution, match=match)
    assert (mask == 1).any()
    assert np.abs(out.astype(int) - FRAME)[mask > 0].mean() < 1


@pytest.mark.parametrize("resolution", [64, 128, 192, 256, 512])
def test_feather_rises_from_nothing_inside_the_mask_to_one_at_the_mouth(resolution):
    alpha = feather(resolution)
    assert (alpha[mouth_mask(resolution) == 1] == 0).all()
    assert np.abs(np.diff(alpha, axis=0)).max() < 0.2 * 256 / resolution
    assert np.abs(np.diff(alpha, axis=1)).max() < 0.2 * 256 / resolution
    mouth = alpha[int(0.57 * resolution) : int(0.8 * resolution), int(0.3 * resolution) : int(0.7 * resolution)]
    assert (mouth == 1).all()


def test_float_and_uint8_crops_give_the_same():
    matrix = placed(128)
    crop = crop_face(FRAME, matrix, 128)
    whole, _ = paste(FRAME, crop, matrix, resolution=128)
    real, _ = paste(FRAME, crop.astype(np.float32), matrix, resolution=128)
    assert np.abs(whole.astype(int) - real).max() <= 1


def test_a_colour_cast_is_taken_away_but_a_new_mouth_is_not():
    matrix = placed(256)
    crop = crop_face(FRAME, matrix, 256).astype(np.float32)
    cast = crop + (10, -6, 7) + np.linspace(-6, 6, 256)[:, None, None]
    cast[175:200, 100:155] = 20  # the new mouth
    plain, mask = paste(FRAME, cast.astype(np.float32), matrix, resolution=256, match=False)
    matched, _ = paste(FRAME, cast.astype(np.float32), matrix, resolution=256)
    rim = (mask > 0.2) & (mask < 0.95)
    assert np.abs(plain.astype(int) - FRAME)[rim].mean() > 4
    assert np.abs(matched.astype(int) - FRAME)[rim].mean() < 1
    x, y = np.linalg.solve((m := crop_matrix(matrix, 256))[:, :2], (127, 187) - m[:, 2]).round().astype(int)
    assert np.abs(matched[y, x].astype(int) - 20).max() < 20


def test_weight_scales_the_change():
    matrix = placed(128)
    crop = np.zeros((128, 128, 3), np.uint8)
    none, empty = paste(FRAME, crop, matrix, resolution=128, weight=0)
    assert np.array_equal(none, FRAME)
    assert not empty.any()
    full, mask = paste(FRAME, crop, matrix, resolution=128, match=False)
    half, half_mask = paste(FRAME, crop, matrix, resolution=128, weight=0.5, match=False)
    assert np.allclose(half_mask, mask / 2)
    middle = (FRAME.astype(float) + full) / 2
    assert np.abs(half - middle).max() <= 1


def test_a_face_outside_the_frame_changes_nothing():
    out, mask = paste(FRAME, np.zeros((128, 128, 3), np.uint8), placed(128, x=5000.0), resolution=128)
    assert np.array_equal(out, FRAME)
    assert not mask.any()


def test_a_crop_finer_than_the_frame_is_averaged_down():
    matrix = placed(512, scale=0.25)
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[::2] = 255
    out, mask = paste(np.full_like(FRAME, 128), stripes, matrix, resolution=512, match=False)
    assert np.abs(out[mask == 1].astype(int) - 128).max() < 20


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([128, 256, 512]), st.floats(0.25, 3.0), st.floats(-1, 1))
def test_what_lies_above_the_first_row_that_is_read_does_not_matter(resolution, scale, angle):
    """The decoder leaves these rows out."""
    matrix = placed(resolution, scale, angle)
    crop = crop_face(FRAME, matrix, resolution).astype(np.float32)
    other, top = crop.copy(), first_row_read(resolution)
    assert resolution * 0.3 < top < resolution * 0.37  # where the mask begins
    other[:top] = np.random.default_rng(0).uniform(0, 255, other[:top].shape)
    wanted, got = (paste(FRAME, one, matrix, resolution=resolution)[0] for one in (crop, other))
    assert np.array_equal(wanted, got)
