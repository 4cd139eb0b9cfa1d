"""Heads that lie or hang upside down, and small faces in large pictures, found in real pictures. Needs the clips and
the landmark model."""

import cv2
import numpy as np
import pytest

from latentsync.face.detect import tilt_of
from latentsync.face.track import find_tracks

from .test_clips import finder, frames, picture  # noqa: F401

TURNS = [45, 90, 135, 180, -90]
STILLS = ["woman_glasses_1000x664.jpg", "elderly_man_293x363.jpg", "nasa_astronaut_512.png", "two_faces_800x532.jpg"]


def turned(frame, degrees):
    """A picture turned clockwise, with room for its corners, and the transform of its points."""
    height, width = frame.shape[:2]
    side = int(np.hypot(height, width))
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -degrees, 1)
    matrix[:, 2] += ((side - width) / 2, (side - height) / 2)
    return cv2.warpAffine(frame, matrix, (side, side)), matrix


def moved(points, matrix):
    return points @ matrix[:, :2].T + matrix[:, 2]


def height(points68):
    return np.linalg.norm(points68[8] - points68[27])


@pytest.mark.parametrize("degrees", TURNS)
@pytest.mark.parametrize("name", STILLS)
def test_faces_of_a_turned_still_are_those_of_the_upright_one(media, finder, name, degrees):  # noqa: F811
    upright = picture(media / "stills" / name)
    wanted = finder.detect(upright)
    other, matrix = turned(upright, degrees)
    found = finder.detect(other)
    assert len(found) == len(wanted)
    for face in wanted:
        place = moved(face.points68, matrix)
        errors = [np.linalg.norm(other.points68 - place, axis=1).mean() / height(place) for other in found]
        nearest = found[int(np.argmin(errors))]
        assert min(errors) < 0.06
        assert abs((nearest.tilt - face.tilt - degrees + 180) % 360 - 180) < 10


@pytest.mark.parametrize("name", ["clips/latentsync_demo1.mp4", "clips/grid/pC_lbbc2a.mpg"])
def test_an_upside_down_clip_is_followed(media, finder, name):  # noqa: F811
    (track,) = find_tracks([frame[::-1, ::-1] for frame in frames(media / name, stop=15)], finder).faces
    assert track.present.all()
    assert all(abs(abs(tilt_of(points)) - 180) < 25 for points in track.landmarks)


def test_a_head_that_turns_all_around_is_followed(media, finder):  # noqa: F811
    upright = list(frames(media / "clips/grid/pC_lbbc2a.mpg", stop=40))
    (wanted,) = find_tracks(upright, finder).faces
    pairs = [turned(frame, 9 * i) for i, frame in enumerate(upright)]
    (track,) = find_tracks([frame for frame, _ in pairs], finder).faces
    assert track.present.all()
    for points, place, (_, matrix) in zip(track.landmarks, wanted.landmarks, pairs, strict=True):
        assert np.linalg.norm(points - moved(place, matrix), axis=1).mean() < 0.06 * height(place)


def test_an_upright_face_is_measured_where_it_was_without_turning(media, finder):  # noqa: F811
    frame = picture(media / "stills" / "nasa_astronaut_512.png")
    (face,) = finder.detect(frame)
    assert np.array_equal(finder.refine(frame, face.box, 25.0).points68, finder.refine(frame, face.box).points68)
    assert not np.array_equal(finder.refine(frame, face.box, 35.0).points68, finder.refine(frame, face.box).points68)


@pytest.mark.parametrize(("size", "place"), [(45, (2600, 1500)), (80, (700, 900))])
def test_a_small_face_in_a_4k_picture_is_found_and_held(media, finder, size, place):  # noqa: F811
    head = picture(media / "stills" / "nasa_astronaut_512.png")[20:240, 100:350]
    head = cv2.resize(head, None, fx=size / 135, fy=size / 135, interpolation=cv2.INTER_AREA)
    scene = next(frames(media / "edge/noface_cars_12.5fps.mp4"))
    scene = cv2.resize(scene, (3840, 2160), interpolation=cv2.INTER_CUBIC)
    shots = []
    for i in range(4):
        shot = scene.copy()
        x, y = place[0] + 3 * i, place[1] + i
        shot[y : y + len(head), x : x + head.shape[1]] = head
        shots.append(shot)
    (track,) = find_tracks(shots, finder).faces
    assert track.present.all()
    x, y = track.landmarks[-1].mean(0) - place
    assert 0 < x < head.shape[1] + 9
    assert 0 < y < len(head) + 3


@pytest.mark.parametrize("turn", [0, 1, 2, 3])
def test_there_is_no_face_in_turned_letters_and_cars(media, finder, turn):  # noqa: F811
    for name, start in (("noface_cartoon_4s.mp4", 12), ("noface_cartoon_4s.mp4", 36), ("noface_cars_12.5fps.mp4", 100)):
        (frame,) = frames(media / "edge" / name, start, start + 1)
        assert finder.detect(np.ascontiguousarray(np.rot90(frame, turn))) == []
