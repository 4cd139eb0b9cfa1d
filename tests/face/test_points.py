"""A face pointed out by hand and followed by its picture: a drawing that moves as told."""

import cv2
import numpy as np
import pytest

from latentsync.errors import UserError
from latentsync.face import points as by_hand
from latentsync.face.detect import three_points
from latentsync.face.points import CANONICAL, NOSE_TIP, Points, track_points

WIDTH, HEIGHT, COUNT = 480, 360, 50
PLACES = ((-22.0, -20.0), (22.0, -20.0), (0.0, 14.0))
"""Left brow, right brow and nose tip of the drawing, from its center."""


def drawing(mouth=6):
    """A face drawn in few plain colors, 200 x 200, with its center in the middle."""
    picture = np.full((200, 200, 3), (120, 170, 90), np.uint8)
    cv2.ellipse(picture, (100, 105), (55, 70), 0, 0, 360, (240, 200, 60), -1, cv2.LINE_AA)
    for x in (78, 122):
        cv2.ellipse(picture, (x, 92), (9, 12), 0, 0, 360, (255, 255, 255), -1, cv2.LINE_AA)
        cv2.circle(picture, (x + 2, 94), 4, (20, 20, 20), -1, cv2.LINE_AA)
        cv2.line(picture, (x - 10, 80), (x + 10, 80), (90, 50, 20), 4, cv2.LINE_AA)
    cv2.fillPoly(picture, [np.array([(100, 98), (93, 116), (107, 116)])], (200, 140, 40), cv2.LINE_AA)
    cv2.ellipse(picture, (100, 140), (20, mouth), 0, 0, 360, (130, 20, 30), -1, cv2.LINE_AA)
    return picture


def pose(i):
    """Drawing -> frame: it wanders, turns by 40 degrees and grows by half."""
    matrix = cv2.getRotationMatrix2D((100, 100), -0.8 * i, 1 + 0.01 * i)
    matrix[:, 2] += (60 + 3 * i, 70 + 12 * np.sin(i / 6))
    return matrix


def frame(i):
    rng = np.random.default_rng(3)
    scene = cv2.resize(
        rng.integers(60, 200, (9, 12, 3), dtype=np.uint8), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC
    )
    shape = cv2.ellipse(np.zeros((200, 200), np.uint8), (100, 105), (62, 80), 0, 0, 360, 255, -1)
    over = cv2.warpAffine(drawing(4 + int(8 * abs(np.sin(i / 3)))), pose(i), (WIDTH, HEIGHT))
    return np.where(cv2.warpAffine(shape, pose(i), (WIDTH, HEIGHT))[..., None] > 127, over, scene)


def places(i):
    return (np.array(PLACES) + 100) @ pose(i)[:, :2].T + pose(i)[:, 2]


def read(numbers):
    return (frame(i) for i in numbers)


def pointed_out(i):
    return Points(tuple(map(tuple, places(i).tolist())), i)


@pytest.mark.parametrize("start", [0, 25, 49])
def test_a_drawing_is_followed_to_both_ends(start, monkeypatch):
    monkeypatch.setattr(by_hand, "BLOCK_BYTES", 7 * WIDTH * HEIGHT)
    told = []
    track = track_points(read, COUNT, pointed_out(start), on_step=told.append)
    assert track.present.all()
    assert track.segments == ((0, COUNT),)
    assert told == list(range(2, COUNT + 1))
    wanted = np.stack([three_points(pointed_out(i).landmarks) for i in range(COUNT)])
    assert np.linalg.norm(three_points(track.landmarks) - wanted, axis=-1).max() < 2
    assert np.linalg.norm(track.points - wanted, axis=-1).max() < 3
    assert (track.size, track.landmarks.shape) == ((WIDTH, HEIGHT), (COUNT, 68, 2))


def test_the_face_is_lost_where_another_picture_comes():
    other = np.random.default_rng(1).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    track = track_points(
        lambda numbers: (other if i < 5 or i >= 20 else frame(i) for i in numbers), 30, pointed_out(12)
    )
    assert track.segments == ((5, 20),)
    assert track.present.tolist() == [5 <= i < 20 for i in range(30)]
    assert np.array_equal(track.landmarks[0], track.landmarks[5])
    assert np.array_equal(track.points[29], track.points[19])


def test_a_still_is_a_track_of_one_frame():
    track = track_points(read, 1, pointed_out(0))
    assert (track.frames, track.segments, track.points.shape) == (1, ((0, 1),), (1, 3, 2))


def test_a_plain_picture_is_lost_at_once():
    plain = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    assert track_points(lambda numbers: (plain for _ in numbers), 3, pointed_out(1)).segments == ((1, 2),)


def test_the_mean_face_lies_on_the_points():
    face = Points(((100, 50), (140, 50), (120, 77.2)), 0).landmarks
    assert np.allclose(face[17:22].mean(0), (100, 50), atol=0.3)
    assert np.allclose(face[NOSE_TIP], (120, 77.2), atol=0.3)
    assert face[8, 1] > face[57, 1] > face[NOSE_TIP, 1]
    assert np.allclose(CANONICAL[17:27].mean(0), 0, atol=0.01)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_head_upside_down_has_its_mouth_above_whichever_brow_came_first(swapped):
    brows = [(100, 100), (140, 100)]
    face = Points((*(brows[::-1] if swapped else brows), (120, 73)), 0).landmarks
    assert face[57, 1] < face[NOSE_TIP, 1] < 100
    assert face[0, 0] > face[16, 0]


@pytest.mark.parametrize(
    ("text", "frame"),
    [("1,2,3,4,5.5,6", 0), ("1,2 3,4 5.5,6", 0), ("1, 2; 3, 4; 5.5, 6; 7", 7), (" 1 2 3 4 5.5 6 7 ", 7)],
)
def test_points_are_read_from_text(text, frame):
    assert Points.parse(text) == Points(((1, 2), (3, 4), (5.5, 6)), frame)


@pytest.mark.parametrize(
    "text", ["", "1,2,3", "1,2,3,4,5,6,7,8", "1,2,3,4,5,nose", "1,2,3,4,5,nan", "1,2,3,4,5,6,-1", "1,2,3,4,5,6,1.5"]
)
def test_other_text_is_one_sentence(text):
    with pytest.raises(UserError, match=r"give \"x1,y1,x2,y2,x3,y3,frame\""):
        Points.parse(text)


@pytest.mark.parametrize("places", ["1,1,50,50,100,100", "9,9,9,9,9,9", "10,10,60,10,35,11"])
def test_points_on_a_line_make_no_face(places):
    with pytest.raises(UserError, match="make no face"):
        track_points(read, 3, Points.parse(places))


def test_points_outside_the_clip_are_one_sentence():
    with pytest.raises(UserError, match="frames 0 to 2"):
        track_points(read, 3, Points.parse("10,10,60,10,35,40,3"))
    with pytest.raises(UserError, match="480 x 360"):
        track_points(read, 3, Points.parse("10,10,600,10,305,400"))
