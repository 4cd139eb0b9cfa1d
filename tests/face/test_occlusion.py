"""What lies over a face: found, kept steady over time, and nothing marked where there is nothing."""

from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from latentsync.face.align import align_matrices, crop_matrix
from latentsync.face.detect import FaceFinder, three_points
from latentsync.face.mask import mouth_mask
from latentsync.face.occlusion import PAUSE, RAMP, SIDE, CoverMasks, Covers, find_runs

from ..tiny import face_model

ASSETS = Path(__file__).parents[2] / "latentsync" / "assets"
REPAINTED = mouth_mask(SIDE) == 0


@pytest.fixture(scope="module", params=["astronaut.jpg", "portrait.jpg"])
def face(request):
    """A picture of a face, 256 pixels high, and its 68 points."""
    picture = cv2.cvtColor(cv2.imread(str(ASSETS / request.param)), cv2.COLOR_BGR2RGB)
    with FaceFinder(face_model()) as finder:
        return picture, finder.detect(picture)[0].points68


def to_crop(points68):
    return crop_matrix(align_matrices(three_points(points68)[None], SIDE)[0], SIDE)


def draw(face, kind):
    """The picture with something over it, and where, (SIDE, SIDE) bool in the aligned crop."""
    picture, points68 = face
    mouth, size = points68[48:68].mean(0), np.ptp(points68[:, 1])
    over = np.zeros(picture.shape[:2], np.uint8)
    x, y = mouth.tolist()
    if kind == "microphone":
        cv2.circle(over, (int(x), int(y)), int(0.2 * size), 255, -1)
        cv2.line(over, (int(x), int(y)), (int(x - 0.1 * size), int(y + 2 * size)), 255, int(0.12 * size))
        painted = np.full_like(picture, 25)
    elif kind == "cup":
        width = 0.2 * size
        corners = [(x - width, y), (x + width, y), (x + 0.8 * width, y + size), (x - 0.8 * width, y + size)]
        cv2.fillPoly(over, [np.array(corners, np.int32)], 255)
        shade = 1 - 0.4 * np.abs(np.arange(picture.shape[1]) - x) / width
        painted = (235 * shade.clip(0.5, 1)[None, :, None] * np.ones_like(picture)).astype(np.uint8)
    elif kind == "pen":
        cv2.line(over, (int(x), int(y)), (int(x + size), int(y + 0.8 * size)), 255, int(0.05 * size))
        painted = np.full_like(picture, (20, 40, 150))
    else:
        skin = np.median(picture[tuple(points68[[29, 30, 31, 35]].astype(int).T[::-1])], 0)
        painted = np.zeros_like(picture)
        painted[:] = (0.9 * skin).astype(np.uint8)
        for k in range(4):
            tip = (x - 0.1 * size, y - 0.15 * size + 0.11 * size * k)
            ends = (int(tip[0]), int(tip[1])), (int(x + size), int(tip[1] + 0.25 * size))
            cv2.line(over, *ends, 255, int(0.1 * size), cv2.LINE_AA)
            cv2.line(painted, *[(a, b + int(0.055 * size)) for a, b in ends], (0.5 * skin).tolist(), 2, cv2.LINE_AA)
    alpha = cv2.GaussianBlur(over, (0, 0), 1)[..., None] / 255
    truth = cv2.warpAffine(over, to_crop(points68), (SIDE, SIDE), flags=cv2.INTER_LINEAR) > 127
    return np.rint(picture + alpha * (painted.astype(float) - picture)).astype(np.uint8), truth


def watched(frames, points68, steady=None):
    covers = Covers()
    for i, frame in enumerate(frames):
        covers.watch(i, frame, points68)
    return covers.finish(steady)


@pytest.mark.parametrize(("kind", "kept"), [("microphone", 0.85), ("cup", 0.85), ("pen", 0.75), ("hand", 0.6)])
def test_what_lies_over_the_mouth_is_marked_and_hardly_more(face, kind, kept):
    covered, truth = draw(face, kind)
    masks = watched([face[0]] * 20 + [covered] * 20 + [face[0]] * 20, face[1])
    assert set(masks) == set(range(20 - RAMP, 40 + RAMP))
    mask = masks[30] > 127
    assert mask[truth & REPAINTED].mean() > kept
    if 30 not in masks.hidden:
        assert mask[~truth & REPAINTED].mean() < 0.15


def test_a_clip_that_is_covered_from_end_to_end_needs_no_clean_view(face):
    covered, truth = draw(face, "microphone")
    masks = watched([covered] * 20, face[1])
    assert set(masks) == set(range(20)) | set(range(20, 20 + RAMP))
    assert min((masks[i] > 127)[truth & REPAINTED].mean() for i in range(20)) > 0.85


def test_a_covered_mouth_is_passed_through_whole(face):
    covered, _ = draw(face, "microphone")
    masks = watched([covered] * 8, face[1])
    assert masks.hidden == set(range(8))
    assert (masks[4][REPAINTED] == 255).all()


def test_a_single_covered_picture_is_seen(face):
    assert 0 in watched([draw(face, "cup")[0]], face[1])


def test_nothing_is_marked_on_a_face_as_it_is(face):
    picture, points68 = face
    dim = (picture * 0.4).astype(np.uint8)
    gray = np.repeat(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None], 3, 2)
    soft = cv2.GaussianBlur(picture, (0, 0), 3)
    for frame in (picture, dim, gray, soft):
        assert len(watched([frame] * 16, points68)) == 0


def test_what_flashes_up_for_two_frames_is_no_cover(face):
    covered, _ = draw(face, "cup")
    assert len(watched([face[0]] * 10 + [covered] * 2 + [face[0]] * 10, face[1])) == 0


def test_masks_come_in_and_go_out_slowly_and_stay_equal_between(face):
    covered, _ = draw(face, "cup")
    masks = watched([face[0]] * 10 + [covered] * 20 + [face[0]] * 10, face[1])
    strength = np.array([masks[i].max() / 255 if i in masks else 0 for i in range(40)])
    assert np.allclose(strength[6:11], [0, 0.25, 0.5, 0.75, 1], atol=0.01)
    assert np.allclose(strength[29:34], [1, 0.75, 0.5, 0.25, 0], atol=0.01)
    assert np.ptp(np.stack([masks[i] for i in range(13, 27)]), axis=0).max() == 0


def test_masks_lie_in_the_crops_of_the_steadied_points(face):
    covered, _ = draw(face, "pen")
    points68 = face[1]
    across = 3 / float(np.linalg.norm(to_crop(points68)[0, :2]))  # what shows is then three pixels further left
    steady = np.repeat(three_points(points68 + np.array([across, 0]))[None], 8, 0)
    raw, moved = watched([covered] * 8, points68), watched([covered] * 8, points68, steady)
    assert set(moved) == set(range(8))
    assert not raw.hidden
    assert np.abs(moved[4][:, :-6].astype(int) - raw[4][:, 3:-3]).mean() < 2
    assert np.abs(moved[4].astype(int) - raw[4]).mean() > 5


def test_a_pause_is_bridged_and_shows_the_cover_as_it_was_last_seen():
    share = dict.fromkeys([*range(10), *range(10 + PAUSE - 1, 30)], 0.2)
    assert find_runs(share) == [(0, 30)]
    assert find_runs(dict.fromkeys([*range(10), *range(10 + PAUSE, 30)], 0.2)) == [(0, 10), (10 + PAUSE, 30)]
    assert find_runs(dict.fromkeys(range(100), 0.02)) == []


def test_frames_without_a_cover_cost_no_memory(face):
    covers = Covers()
    for i in range(64):
        covers.watch(i, *face)
    assert not covers._waiting
    assert not covers._likely
    assert not covers._points
    assert isinstance(covers.finish(), CoverMasks)


CLEAN = ["clips/hdtf_wda_katiehill.mp4", "clips/edtalk_pose_source2_60s.mp4", "edge/head_turn_sideways_12fps.mp4"]
CLEAN += ["edge/looking_down_not_speaking_720p30.mp4", "edge/face_not_speaking_2.4s.mp4"]


@pytest.fixture(scope="module")
def finder():
    with FaceFinder(face_model()) as finder:
        yield finder


def followed(path, finder, start, stop):
    covers, box = Covers(), None
    with av.open(str(path)) as container:
        for i, frame in enumerate(islice(container.decode(video=0), start, stop)):
            picture = np.ascontiguousarray(frame.to_ndarray(format="rgb24"))
            found = finder.refine(picture, box) if box else (finder.detect(picture) or [None])[0]
            if found:
                box = found.box
                covers.watch(start + i, picture, found.points68)
    return covers.finish()


def test_a_real_hand_is_found_in_just_the_frames_that_show_it(media, finder):
    """By eye: the hand is over the repainted part of the face in frames 58 to 228."""
    masks = followed(media / "edge/hand_over_mouth_23.976fps.mp4", finder, 40, 260)
    whole = [i for i in masks if masks[i].max() == 255]
    assert 57 <= min(whole) <= 60
    assert 226 <= max(whole) <= 232
    assert set(range(60, 227)) <= set(whole)


@pytest.mark.parametrize("name", CLEAN)
def test_no_cover_is_seen_on_real_faces_without_one(media, finder, name):
    assert len(followed(media / name, finder, 0, 60)) == 0
