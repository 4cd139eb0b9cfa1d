"""The mesh: poses, pictures that are carried along, and what lies between the lips."""

import cv2
import numpy as np
import pytest

from recipes.nano import mesh as geometry
from recipes.nano.data import MARGIN, RESOLUTION
from recipes.nano.mesh import inner_mask, movement_weight, pose, triangles, warp_maps

from .people import in_crop, turned

BORDER = np.full(2, RESOLUTION // MARGIN)
WIDE = RESOLUTION + 2 * (RESOLUTION // MARGIN)


def moved(mesh, degrees, scale, shift):
    return turned(mesh, degrees) * scale + shift


@pytest.mark.parametrize("degrees", [(0, 0, 0), (15, 0, 0), (-5, 25, 10), (0, 0, 180)])
def test_pose_is_found_exactly(face, degrees):
    target = moved(face.mesh, degrees, 1.3, (40, -20, 7))
    found = pose(face.mesh, target)
    assert np.allclose(found.apply(face.mesh), target, atol=1e-9)
    assert np.cbrt(np.linalg.det(found.turn)) == pytest.approx(1.3)
    assert geometry.opening(target) == pytest.approx(geometry.opening(face.mesh))


def test_pose_is_not_fooled_by_speech(face):
    target = moved(face.opened(0.6), (5, -10, 3), 0.8, (1, 2, 3))
    still = moved(face.closed, (5, -10, 3), 0.8, (1, 2, 3))
    assert np.allclose(pose(face.closed, target).apply(face.closed), still, atol=1e-9)


def test_a_pose_never_mirrors(face):
    mirrored = face.mesh * (-1, 1, 1)
    assert np.linalg.det(pose(face.mesh, mirrored).turn) > 0


def test_opening_is_over_the_width(face):
    assert geometry.opening(face.closed) == pytest.approx(0, abs=1e-6)
    assert geometry.opening(np.stack([face.opened(x) for x in (0.1, 0.5)])) == pytest.approx([0.1, 0.5])


def test_what_does_not_move_stays_as_it_is(face):
    """Also where the mesh is: with nothing moved, the maps are the background's."""
    points = in_crop(face.mesh)
    background = np.array([[0.9, 0.1, 30], [-0.1, 1.1, 20]])
    maps = warp_maps(points, points, points, background, RESOLUTION)
    y, x = np.mgrid[:RESOLUTION, :RESOLUTION].astype(np.float32)
    wanted = np.tensordot(background.astype(np.float32), np.stack([x, y, np.ones_like(x)]), 1)
    assert np.allclose(maps, wanted, atol=1e-3)


@pytest.mark.parametrize(("point", "follows"), [(18, True), (199, True), (6, False), (9, False), (None, False)])
def test_a_picture_is_carried_along(face, point, follows):
    """A spot below the lip goes where the mesh goes; one between the eyes and one in a corner stay."""
    source = in_crop(face.mesh)
    still = source - BORDER
    lower = face.mesh[:, [1]] > face.mesh[geometry.LOWER, 1]
    shift = np.array([5.0, 9.0])
    spot = np.array([0.14, 0.84]) * WIDE if point is None else source[point]
    y, x = np.mgrid[:WIDE, :WIDE]
    picture = np.exp(-((x - spot[0]) ** 2 + (y - spot[1]) ** 2) / 8).astype(np.float32)
    background = np.c_[np.eye(2), BORDER]
    maps = warp_maps(source, still + lower * shift, still, background, RESOLUTION)
    shown = cv2.remap(picture, maps[0], maps[1], cv2.INTER_LINEAR)
    y, x = np.mgrid[:RESOLUTION, :RESOLUTION]
    center = np.array([(shown * x).sum(), (shown * y).sum()]) / shown.sum()
    assert np.abs(center - (spot - BORDER + follows * shift)).max() < 0.5


def covered(points, mesh):
    """How many triangles hold each of the points, (N,)."""
    a, b, c = (mesh[triangles()[:, i]][None] for i in range(3))
    p = points[:, None]
    cross = lambda u, v: u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]  # noqa: E731
    sides = np.stack([cross(b - a, p - a), cross(c - b, p - b), cross(a - c, p - c)])
    return ((sides > 0).all(0) | (sides < 0).all(0)).sum(1)


def test_triangles_leave_the_mouth_open_and_cover_the_rest(face):
    mesh = face.opened(0.5)
    points = in_crop(mesh)
    with_ring = geometry._with_ring(points, points)
    middle = (points[geometry.UPPER] + points[geometry.LOWER])[None] / 2
    assert covered(middle, with_ring) == 0
    oval = points[list(geometry._loop())].astype(np.float32)
    mouth = points[list(geometry.INNER)].astype(np.float32)
    random = np.random.default_rng(0)
    lower = random.uniform((oval[:, 0].min(), points[geometry.NOSE_BASE, 1]), oval.max(0), (400, 2))
    in_mouth, in_face = ([cv2.pointPolygonTest(o, p, True) for p in lower] for o in (mouth, oval))
    skin, between = (np.array(in_face) > 1) & (np.array(in_mouth) < -0.5), np.array(in_mouth) > 0.5
    assert skin.sum() > 150
    assert between.sum() > 10
    assert (covered(lower[skin], with_ring) > 0).all()
    assert (covered(lower[between], with_ring) == 0).all()


def test_the_ring_around_the_face_gives_way(face):
    points = in_crop(face.mesh)
    chin, center = points[152], points[list(geometry._loop())].mean(0)
    beyond = center + (chin - center) * np.array([[1.2], [1.4], [1.5]])
    assert covered(beyond, geometry._with_ring(points, points)).astype(bool).tolist() == [True, True, False]


def test_speech_moves_what_lies_below_the_nose(face):
    weight = movement_weight(face.mesh)
    assert weight.shape == (geometry.POINTS, 1)
    height = face.mesh[:, 1]
    assert (weight[height <= height[geometry.NOSE_BASE]] == 0).all()
    assert (weight[height >= height[geometry.UPPER]] == 1).all()
    between = (height > height[geometry.NOSE_BASE] + 1) & (height < height[geometry.UPPER] - 12)
    assert ((weight[between] > 0) & (weight[between] < 1)).all()


@pytest.mark.parametrize("opening", [0.1, 0.5])
def test_inner_mask_is_what_lies_between_the_lips(face, opening):
    """And half a pixel around it, which OpenCV's smooth edge takes."""
    target = in_crop(face.opened(opening))
    mask = inner_mask(target, WIDE)[..., 0]
    outline = target[list(geometry.INNER)].astype(np.float32)
    wanted = cv2.contourArea(outline) + 0.6 * cv2.arcLength(outline, True)
    assert mask.sum() == pytest.approx(wanted, rel=0.06)
    y, x = np.mgrid[:WIDE, :WIDE]
    center = np.array([(mask * x).sum(), (mask * y).sum()]) / mask.sum()
    moments = cv2.moments(outline)
    assert center == pytest.approx([moments["m10"] / moments["m00"], moments["m01"] / moments["m00"]], abs=0.3)
    assert 0 <= mask.min() < mask.max() <= 1
