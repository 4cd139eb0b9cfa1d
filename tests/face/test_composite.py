"""Pasting the mouth back: what is outside the mask stays, what is inside has no seam, the reference is matched."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from latentsync.evaluation.image_metrics import sharpness, ssim_map
from latentsync.face import composite
from latentsync.face.align import align_matrices, crop_face, crop_matrix, template
from latentsync.face.composite import face_outline, feather, first_row_read, match_color, match_texture, paste
from latentsync.face.mask import mouth_mask
from latentsync.face.points import CANONICAL
from latentsync.media.image import read_image

ASSETS = Path(__file__).parents[2] / "latentsync" / "assets"


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


@pytest.mark.parametrize(("enlarged", "sharp", "alike"), [(1.0, 0.8, 0.9969), (1.5, 0.8, 0.994), (2.0, 0.55, 0.991)])
def test_a_portrait_cut_out_and_put_back_keeps_its_sharpness(enlarged, sharp, alike):
    """A perfect network would return the crop; what is lost then is lost with every model."""
    picture = read_image(ASSETS / "portrait.jpg")
    matrix = placed(128, enlarged / 2, 0.1, 120, 130)  # over its face
    out, mask = paste(picture, crop_face(picture, matrix, 128), matrix, resolution=128, match=False)
    assert sharp < sharpness(out, mask == 1) / sharpness(picture, mask == 1) < 1
    assert ssim_map(out, picture)[mask == 1].mean() > alike


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


# ---- the face's outline, the source's texture and color, what lies over the face ------------------------------------


def face_in(resolution, turn=0.0, wide=1.0):
    """(68, 2) the mean face as it lies in a crop; turn: degrees; wide: of the jaw against the mean."""
    three = template(resolution)
    points = CANONICAL.copy()
    points[:17, 0] *= wide
    angle = np.radians(turn)
    points = (points - (0, 0.5)) @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) + (
        0,
        0.5,
    )
    # a crop is stretched: the mean face's brows and nose come to lie on the template's
    across = three[1, 0] - three[0, 0]
    down = (three[2, 1] - three[0, 1]) / (CANONICAL[27:36, 1].mean() - CANONICAL[17:27, 1].mean())
    return points * (across, down) + three[:2].mean(0)


def beyond(points68, number, share, resolution):
    """A point so far (share of the crop) outside the jaw's landmark, away from the nose."""
    center = points68[27:36].mean(0)
    away = points68[number] - center
    return points68[number] + away / np.linalg.norm(away) * share * resolution


def at(picture, place):
    x, y = np.round(place).astype(int).clip(0, len(picture) - 1)
    return float(picture[y, x])


@pytest.mark.parametrize("resolution", [128, 256, 512])
@pytest.mark.parametrize(("turn", "wide"), [(0, 1), (0, 0.8), (20, 0.8), (-20, 0.8)])
def test_the_outline_is_the_face_with_more_room_below_the_chin_than_beside(resolution, turn, wide):
    points = face_in(resolution, turn, wide)
    outline = face_outline(points, resolution)
    assert (outline.shape, outline.dtype) == ((resolution, resolution), np.float32)
    assert (outline.min(), outline.max()) == (0, 1)
    assert min(at(outline, points[n]) for n in range(27, 68)) > 0.999  # nose, eyes, mouth
    sides = [n for n in (0, 1, 2, 14, 15, 16) if 0 < beyond(points, n, 0.07, resolution)[0] < resolution]
    assert max((at(outline, beyond(points, n, 0.07, resolution)) for n in sides), default=0) == 0
    assert max((at(outline, beyond(points, n, 0.035, resolution)) for n in sides), default=0) < 0.1
    assert at(outline, beyond(points, 8, 0.025, resolution)) > 0.85
    below = beyond(points, 8, 0.12, resolution)
    assert below[1] >= resolution or at(outline, below) == 0
    assert at(outline, (points[27, 0], 1)) == 1  # upwards it is open: the mask ends there


def test_a_face_turned_to_a_side_keeps_its_near_cheek_and_loses_the_background_behind_the_far_one():
    points = face_in(256)
    far = points.copy()
    far[:8, 0] += 0.8 * (points[27:36, 0].mean() - far[:8, 0])  # the left half of the jaw is hidden behind the nose
    front, turned = face_outline(points, 256), face_outline(far, 256)
    row = int(points[3, 1])
    assert turned[row, : int(far[3, 0]) - 15].max() == 0
    assert front[row, int(points[3, 0]) + 12] > 0.5
    assert np.array_equal(turned[row, 140:], front[row, 140:])


def grain(shape, strength, seed=0):
    return np.random.default_rng(seed).normal(0, strength, (*shape, 1)).repeat(3, -1).astype(np.float32)


def fineness(picture, where):
    """Standard deviation of what is finer than some pixels, of the gray picture."""
    picture = picture.astype(np.float32)
    return float((picture - cv2.GaussianBlur(picture, (0, 0), 1.5)).mean(-1)[where].std())


@pytest.mark.parametrize("strength", [2.0, 5.0, 9.0])
@pytest.mark.parametrize("own", [0.0, 0.5, 1.0, 2.0])
def test_a_made_face_gets_the_strength_of_the_source_s_grain(strength, own):
    """own: grain that the made picture has already, as a share of the source's."""
    area = 128 + grain((120, 120), strength, 1)
    made = 128 + grain((120, 120), own * strength, 2)
    out = match_texture(made, area, np.ones((120, 120), np.float32))
    inner = np.s_[10:-10, 10:-10]
    assert fineness(out, inner) == pytest.approx(fineness(area, inner), rel=0.15)
    assert out.mean() == pytest.approx(128, abs=0.3)


def test_texture_is_added_by_how_much_is_skin_and_only_there():
    area, made = 128 + grain((120, 120), 6.0), np.full((120, 120, 3), 128, np.float32)
    skin = np.zeros((120, 120), np.float32)
    skin[:, :60] = 1
    out = match_texture(made, area, skin)
    assert np.array_equal(out[:, 60:], made[:, 60:])
    assert np.std(out[:, :60] - made[:, :60]) > 3
    assert np.array_equal(match_texture(made, area, np.zeros_like(skin)), made)
    assert np.array_equal(match_texture(made, area, skin * (np.arange(120) < 7) * (np.arange(120)[:, None] < 8)), made)


def test_edges_of_the_old_picture_are_no_texture():
    """A dark line in the source, an old lip, is not carried over beyond what grain has."""
    area = 128 + grain((120, 120), 2.0)
    area[58:62] -= 90
    out = match_texture(np.full((120, 120, 3), 128, np.float32), area, np.ones((120, 120), np.float32))
    assert np.abs(out[50:70] - 128).max() < 5 * 2.0
    assert np.abs(out[58:62].mean() - 128) < 8


def test_the_old_mouth_s_texture_is_not_taken_over():
    """In the pasted frame: grain on the cheeks, none where lips are or may come to lie."""
    frame = np.full((360, 480, 3), 128, np.float32) + grain((360, 480), 6.0)
    frame = frame.round().clip(0, 255).astype(np.uint8)
    matrix = placed(256)
    to_crop = crop_matrix(matrix, 256)
    points = (face_in(256) - to_crop[:, 2]) @ np.linalg.inv(to_crop[:, :2]).T
    smooth = np.full((256, 256, 3), 128, np.uint8)
    out, mask = paste(frame, smooth, matrix, resolution=256, points68=points)
    x, y = points[48:60].mean(0).round().astype(int)
    mouth = np.s_[y - 8 : y + 12, x - 12 : x + 12]
    assert (mask[mouth] > 0.99).all()
    assert fineness(out, mouth) < 1
    cheek = (mask > 0.99) & (np.abs(np.arange(480) - x) > 45)[None] & (np.arange(360) < y)[:, None]
    assert cheek.sum() > 150
    assert fineness(out, cheek) == pytest.approx(fineness(frame, cheek), rel=0.15)


def test_color_is_matched_along_the_edge_where_the_difference_changes():
    """A cast that goes from red to blue along the mask's edge: one slow pass alone leaves a good part of it."""
    matrix = placed(256)
    to_crop = crop_matrix(matrix, 256)
    crop = crop_face(FRAME, matrix, 256).astype(np.float32)
    x = np.linspace(0, 3 * np.pi, 256)[None, :, None]
    cast = 12 * np.sin(x) * np.array([1, 0, -1])
    matched = match_color((crop + cast).astype(np.float32), FRAME, to_crop)
    depth = cv2.distanceTransform((1 - mouth_mask(256)).astype(np.uint8), cv2.DIST_L2, 5)
    edge = (depth > 1) & (depth < 9)
    edge[-12:] = False
    before, after = np.abs(cast * np.ones_like(crop))[edge].mean(), np.abs(matched - crop)[edge].mean()
    assert before > 4
    assert after < 0.3 * before
    middle = np.s_[175:195, 110:146]
    added = matched - (crop + cast)
    assert np.abs(added[middle]).max() < 12  # the second pass does not reach the mouth


def test_the_second_pass_does_not_reach_the_mouth(monkeypatch):
    matrix = placed(256)
    crop = crop_face(FRAME, matrix, 256).astype(np.float32)
    rng = np.random.default_rng(0)
    noisy = crop + cv2.resize(rng.normal(0, 12, (24, 24, 3)).astype(np.float32), (256, 256))
    both = match_color(noisy, FRAME, crop_matrix(matrix, 256))
    monkeypatch.setattr(composite, "MATCH_NEAR", composite.MATCH_REACH)
    assert not np.allclose(both, match_color(noisy, FRAME, crop_matrix(matrix, 256)), atol=1)
    flat = match_color(np.full_like(crop, 128), np.full_like(FRAME, 120), crop_matrix(matrix, 256))
    middle = np.s_[170:200, 100:156]
    assert np.abs(flat[middle] - 120).max() < 0.5  # a cast that is everywhere the same is gone everywhere


@settings(max_examples=30, deadline=None)
@given(places, st.integers(0, 2**32 - 1), st.booleans(), st.booleans())
def test_what_lies_over_the_face_stays_as_it_is(place, seed, match, with_points):
    """Wherever all the mask around a pixel is 255, its frame is bit-identical."""
    resolution, matrix = place[0], placed(*place)
    to_crop = crop_matrix(matrix, resolution)
    rng = np.random.default_rng(seed)
    covered = (cv2.resize(rng.random((6, 6), np.float32), (96, 96)) > 0.5).astype(np.uint8) * 255
    points = (face_in(resolution) - to_crop[:, 2]) @ np.linalg.inv(to_crop[:, :2]).T if with_points else None
    crop = rng.integers(0, 255, (resolution, resolution, 3), dtype=np.uint8)
    out, mask = paste(FRAME, crop, matrix, resolution=resolution, match=match, covered=covered, points68=points)
    # a pixel of the frame is made of those of the crop beside its place, and more where the crop is the finer one
    reach = int(np.ceil(2 * np.sqrt(abs(np.linalg.det(to_crop[:, :2]))))) + 2
    whole = cv2.erode(cv2.resize(covered, (resolution, resolution)) // 255, np.ones((2 * reach + 1,) * 2))
    y, x = np.mgrid[: FRAME.shape[0], : FRAME.shape[1]]
    u, v = (np.stack([x, y], -1) @ to_crop[:, :2].T + to_crop[:, 2]).round().astype(int).transpose(2, 0, 1)
    over = (u >= 0) & (u < resolution) & (v >= 0) & (v < resolution)
    over &= whole[v.clip(0, resolution - 1), u.clip(0, resolution - 1)] > 0
    assert np.array_equal(out[over], FRAME[over])
    assert not mask[over].any()


def test_a_half_covered_mouth_is_painted_in_the_other_half():
    matrix = placed(256)
    covered = np.zeros((96, 96), np.uint8)
    covered[:, :48] = 255
    crop = np.zeros((256, 256, 3), np.uint8)
    _, whole = paste(FRAME, crop, matrix, resolution=256, match=False)
    out, mask = paste(FRAME, crop, matrix, resolution=256, match=False, covered=covered)
    to_crop = crop_matrix(matrix, 256)
    y, x = np.nonzero(whole > 0)
    u = (np.stack([x, y], 1) @ to_crop[:, :2].T + to_crop[:, 2])[:, 0]
    assert not mask[y, x][u < 120].any()
    assert np.array_equal(mask[y, x][u > 136], whole[y, x][u > 136])
    assert np.array_equal(out[mask == 0], FRAME[mask == 0])
