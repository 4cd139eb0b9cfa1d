"""Alignment, crops and the mouth mask against the reference's cases, the spec's rows and plain geometry."""

import json

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from latentsync.errors import UserError
from latentsync.face.align import FILL, align_matrices, crop_face, crop_matrix, face_size, template
from latentsync.face.mask import latent_mask, mouth_mask


def synthetic_frame(i):
    """The picture that golden/portable/align/README.txt defines."""
    y, x = np.mgrid[0:360, 0:480].astype(float)
    red = 127.5 + 80 * np.sin(x / 37 + 0.3 * i) + 40 * np.cos(y / 23)
    green = 127.5 + 90 * np.cos((x + 2 * y) / 61 + 0.2 * i)
    blue = 127.5 + 60 * np.sin(x * y / 9000) + 50 * np.sin(y / 41 - 0.1 * i)
    return np.stack([red, green, blue], -1).round().clip(0, 255).astype(np.uint8)


def corner_error(ours, theirs, resolution):
    """Largest distance in crop pixels between where two transforms put the crop's corners."""
    width, height = face_size(resolution)
    corners = np.array([(0, 0), (width, 0), (0, height), (width, height)], float)
    errors = []
    for a, b in zip(ours, theirs.astype(float), strict=True):
        in_frame = np.linalg.solve(b[:, :2], (corners - b[:, 2]).T)
        errors.append(np.abs(a[:, :2] @ in_frame + a[:, 2:] - corners.T).max())
    return max(errors)


@pytest.mark.parametrize(("resolution", "size"), [(128, (105, 140)), (256, (210, 280)), (512, (420, 560))])
def test_face_size_and_template_are_those_of_the_published_weights(resolution, size):
    assert face_size(resolution) == size
    expected = np.array([(17, 20), (58, 20), (37.5, 40)]) * 2.8 * resolution / 256
    assert np.allclose(template(resolution), expected)


@pytest.mark.parametrize("resolution", [256, 512])
def test_matrices_match_the_reference_cases(golden_portable, resolution):
    case = load_file(golden_portable / "align" / f"align{resolution}.safetensors")
    ours = align_matrices(case["landmarks3"], resolution, reference=True)
    assert corner_error(ours, case["matrices"], resolution) < 1e-3


@pytest.mark.parametrize("resolution", [256, 512])
def test_matrices_and_crops_match_the_reference_on_a_real_clip(golden, resolution):
    case = load_file(golden / "full" / f"align{resolution}" / "align.safetensors")
    ours = align_matrices(case["landmarks3"], resolution, reference=True)
    assert corner_error(ours, case["matrices"], resolution) < 1e-3


def test_crop_matches_the_reference_on_a_real_frame(golden):
    folder = golden / "full" / "align256"
    frame = cv2.cvtColor(cv2.imread(str(folder / "frame_0.png")), cv2.COLOR_BGR2RGB)
    case = load_file(folder / "align.safetensors")
    matrix = align_matrices(case["landmarks3"], 256, reference=True)[0]
    wanted = case["aligned"][0].astype(int)
    assert np.abs(crop_face(frame, matrix, 256, reference=True) - wanted).mean() < 0.1
    assert np.abs(crop_face(frame, matrix, 256) - wanted).mean() < 2  # the one-resampling crop shows the same place


@pytest.mark.parametrize("resolution", [256, 512])
def test_upright_face_matches_the_reference_case(golden_portable, resolution):
    case = load_file(golden_portable / "align" / f"align{resolution}.safetensors")
    wanted = cv2.resize(case["aligned_0"], (resolution, resolution), interpolation=cv2.INTER_LANCZOS4)
    ours = crop_face(synthetic_frame(0), case["matrices"][0].astype(float), resolution, reference=True)
    assert np.abs(ours.astype(int) - wanted).mean() < 1


@pytest.mark.parametrize("shape", [(3, 2), (4, 2, 3), (4, 68, 2)])
def test_other_shapes_of_points_are_refused(shape):
    with pytest.raises(UserError, match="frames, 3, 2"):
        align_matrices(np.zeros(shape), 256)


similarities = st.tuples(
    st.floats(0.2, 5),
    st.floats(-np.pi, np.pi),
    st.floats(-500, 500),
    st.floats(-500, 500),
    st.sampled_from([128, 192, 256, 512]),
)


@settings(max_examples=60, deadline=None)
@given(similarities)
def test_a_similarity_of_the_template_is_found_again(case):
    scale, angle, x, y, resolution = case
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = template(resolution) @ turn.T + (x, y)
    matrix = align_matrices(points[None], resolution)[0]
    assert np.allclose(points @ matrix[:, :2].T + matrix[:, 2], template(resolution), atol=1e-6)
    assert np.allclose(matrix[:, :2] @ turn, np.eye(2), atol=1e-8)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 500), min_size=6, max_size=6), st.sampled_from([128, 256]))
def test_a_face_is_never_mirrored_and_keeps_its_angles(numbers, resolution):
    points = np.array(numbers).reshape(1, 3, 2)
    if np.linalg.norm(points - points.mean(1), axis=-1).max() < 1:
        return  # three points in one place have no direction
    (a, b), (c, d) = align_matrices(points, resolution)[0][:, :2]
    assert a * d - b * c > 0
    assert np.allclose((a, b), (d, -c), atol=1e-9)


def test_points_are_not_rounded_by_default_but_in_reference_mode():
    points = template(256)[None] + 0.4
    assert np.allclose(align_matrices(points, 256)[0][:, 2], -0.4)
    assert np.allclose(align_matrices(points.round(), 256, reference=True), align_matrices(points, 256, reference=True))


def test_crop_keeps_pixel_edges_in_place():
    matrix = np.array([[1.0, 0, 0], [0, 1, 0]])
    width, height = face_size(256)
    square = crop_matrix(matrix, 256)
    assert np.allclose(square @ (-0.5, -0.5, 1), (-0.5, -0.5))
    assert np.allclose(square @ (width - 0.5, height - 0.5, 1), (255.5, 255.5))


@pytest.mark.parametrize("resolution", [128, 192, 256, 512])
def test_crops_at_every_resolution_show_the_same(resolution):
    frame = synthetic_frame(0)
    points = np.array([[(201.3, 118.2), (294.1, 123.7), (245.5, 187.4)]])
    small = [
        cv2.resize(crop_face(frame, align_matrices(points, r)[0], r), (64, 64), interpolation=cv2.INTER_AREA).astype(
            int
        )
        for r in (256, resolution)
    ]
    assert np.abs(small[0] - small[1]).mean() < 1.5


def test_a_large_face_is_averaged_down_not_picked_at():
    stripes = np.zeros((1600, 1600, 3), np.uint8)
    stripes[:, ::2] = 255
    points = template(128)[None] * 11.3 + 7
    crop = crop_face(stripes, align_matrices(points, 128)[0], 128)
    assert crop.std() < 10  # picking single pixels gives 127
    assert abs(crop.mean() - 127.5) < 3


def test_outside_the_frame_is_grey():
    points = template(128)[None] - 1000
    assert (crop_face(np.zeros((50, 60, 3), np.uint8), align_matrices(points, 128)[0], 128) == FILL).all()


def test_mask_has_exactly_the_rows_of_the_spec(spec):
    rows = json.loads((spec / "mask_rows.json").read_text())["rows"]
    wanted = np.ones((256, 256), np.float32)
    for y, runs in enumerate(rows):
        for left, right in runs:
            wanted[y, left:right] = 0
    assert np.array_equal(mouth_mask(256), wanted)


def test_mask_repaints_the_share_that_the_spec_gives():
    assert round(100 * (1 - mouth_mask(256).mean()), 1) == 40.7


@pytest.mark.parametrize("resolution", [64, 128, 192, 256, 512])
def test_mask_at_other_sizes_is_the_nearest_neighbour(resolution):
    nearest = cv2.resize(mouth_mask(256), (resolution, resolution), interpolation=cv2.INTER_NEAREST)
    assert np.array_equal(mouth_mask(resolution), nearest)
    assert mouth_mask(resolution).dtype == np.float32


@pytest.mark.parametrize(("resolution", "factor"), [(256, 8), (512, 8), (128, 8), (128, 4), (192, 8)])
def test_latent_mask_is_the_nearest_neighbour_of_the_mask(resolution, factor):
    side = resolution // factor
    wanted = cv2.resize(mouth_mask(resolution), (side, side), interpolation=cv2.INTER_NEAREST)
    assert np.array_equal(latent_mask(resolution, factor), wanted)


def test_a_resolution_that_the_vae_cannot_take_is_refused():
    with pytest.raises(UserError, match="multiple"):
        latent_mask(130, 8)
