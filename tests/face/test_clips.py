"""Faces in real clips: found, kept apart, steadied, lost and found again. Needs the clips and the landmark model."""

import os
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from latentsync.errors import UserError
from latentsync.face.align import align_matrices, crop_face, face_size
from latentsync.face.choose import choose
from latentsync.face.composite import paste
from latentsync.face.detect import FaceFinder, mouth_opening, three_points
from latentsync.face.track import find_tracks


@pytest.fixture(scope="module")
def finder(media):
    model = Path(os.environ.get("LATENTSYNC_MODELS", media.parent / "models")) / "face_landmarker.task"
    if not model.is_file():
        pytest.skip(f"LATENTSYNC_MODELS: no face_landmarker.task in {model.parent}; this test needs it")
    with FaceFinder(model) as finder:
        yield finder


def frames(path, start=0, stop=None, step=1):
    with av.open(str(path)) as container:
        for frame in islice(container.decode(video=0), start, stop, step):
            yield np.ascontiguousarray(frame.to_ndarray(format="rgb24"))


def picture(path):
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def crop_centres(points, resolution=256):
    """Where in the frame the middle of the crop lies, (F, 2)."""
    width, height = face_size(resolution)
    return np.stack(
        [np.linalg.solve(m[:, :2], (width / 2, height / 2) - m[:, 2]) for m in align_matrices(points, resolution)]
    )


def step_of_stillest_second(centers, length=25):
    """Root mean square of the way per frame in the stretch of 25 frames that ranges least."""
    starts = range(len(centers) - length + 1)
    calm = min(starts, key=lambda a: np.ptp(centers[a : a + length], axis=0).max())
    return np.sqrt((np.diff(centers[calm : calm + length], axis=0) ** 2).sum(1).mean())


STILLS = {
    "woman_glasses_1000x664.jpg": [274],
    "man_sofa_1000x667.jpg": [159],
    "elderly_man_293x363.jpg": [210],
    "elderly_woman_316x464.jpg": [211],
    "two_faces_800x532.jpg": [135, 125],
    "cafe_front_and_small_faces_1000x750.jpg": [273, 109, 102],
    "nasa_astronaut_512.png": [106],
    "nvidia_portrait_1820x1024.png": [362],
}


@pytest.mark.parametrize("name", STILLS)
def test_every_face_of_a_still_is_found_small_ones_too(media, finder, name):
    found = [face.height for face in finder.detect(picture(media / "stills" / name))]
    assert len(found) == len(STILLS[name])
    assert np.allclose(found, STILLS[name], rtol=0.1)


def test_a_still_is_a_track_of_one_frame(media, finder):
    track = choose(find_tracks([picture(media / "stills" / "nasa_astronaut_512.png")], finder), "largest")
    assert (track.frames, track.segments, track.present.all()) == (1, ((0, 1),), True)
    assert track.points.shape == (1, 3, 2)


def test_landmarks_are_the_same_whatever_the_size_of_the_frame(media, finder):
    small = picture(media / "stills" / "nasa_astronaut_512.png")
    large = np.zeros((1920, 1080, 3), np.uint8)
    large[900 : 900 + 512, 300 : 300 + 512] = small
    alone, within = finder.detect(small)[0], finder.detect(large)[0]
    assert np.abs(within.points68 - (300, 900) - alone.points68).mean() < 1


def test_a_frame_that_is_not_contiguous_is_read_right(media, finder):
    frame = picture(media / "stills" / "nasa_astronaut_512.png")
    padded = np.concatenate([frame, np.zeros((512, 40, 3), np.uint8)], 1)[:, :512]
    assert not padded.flags.c_contiguous
    assert np.abs(finder.detect(padded)[0].points68 - finder.detect(frame)[0].points68).max() < 0.01


def test_detection_gives_the_same_twice(media, finder):
    frame = picture(media / "stills" / "two_faces_800x532.jpg")
    once, twice = finder.detect(frame), finder.detect(frame)
    assert all(np.array_equal(a.points68, b.points68) for a, b in zip(once, twice, strict=True))


@pytest.mark.parametrize("shape", [(1, 1, 3), (4, 4, 3), (67, 101, 3), (16, 2000, 3)])
def test_pictures_of_odd_sizes_have_no_face(finder, shape):
    assert finder.detect(np.zeros(shape, np.uint8)) == []


def test_a_missing_or_wrong_model_is_one_sentence(tmp_path, finder):
    with pytest.raises(UserError, match="no face model"):
        FaceFinder(tmp_path / "face_landmarker.task")
    (tmp_path / "other.task").write_bytes(b"not a model")
    with pytest.raises(UserError, match="face_landmarker"):
        FaceFinder(tmp_path / "other.task")


TALKING = ["latentsync_demo1.mp4", "latentsync_demo2.mp4", "latentsync_demo3.mp4", "hdtf_wda_aoc.mp4"]
TALKING += ["hdtf_wda_katiehill.mp4", "hdtf_wda_bobmenendez.mp4", "videoretalking_face2.mp4"]
TALKING += ["edtalk_pose_source2_60s.mp4", "obama_a_20s.mp4", "obama_b_30s.mov", "reagan_26s.mov"]
TALKING += [f"grid/{n}.mpg" for n in ("s2_swwp2s", "pA_brbk7n", "pB_lbax4n", "pC_lbbc2a", "pD_lwbsza", "pE_sbia1a")]
EDGE = ["tiny_face_270x480.mp4", "small_face_noaudio_noduration.mkv", "head_turn_sideways_12fps.mp4"]
EDGE += ["hand_over_mouth_23.976fps.mp4", "looking_down_not_speaking_720p30.mp4", "odd_size_333x301_yuv444.mp4"]
EDGE += ["rotation_metadata_portrait.mp4", "two_faces_big_and_small.mp4", "five_frames.mp4", "vp9_opus.webm"]


@pytest.mark.parametrize("name", [f"clips/{n}" for n in TALKING] + [f"edge/{n}" for n in EDGE])
def test_pixels_outside_the_mask_are_identical_on_every_clip(media, finder, name):
    clip = list(frames(media / name, stop=24, step=8))
    track = choose(find_tracks(clip, finder), "largest")
    assert track.present.all()
    for frame, matrix in zip(clip, align_matrices(track.points, 128), strict=True):
        generated = 255 - crop_face(frame, matrix, 128)
        out, mask = paste(frame, generated, matrix, resolution=128)
        assert np.array_equal(out[mask == 0], frame[mask == 0])
        assert (mask == 1).any()
        assert (out[mask == 1] != frame[mask == 1]).any()
        assert (mask > 0).mean() < 0.5


@pytest.mark.parametrize(
    "name", ["clips/grid/s2_swwp2s.mpg", "clips/reagan_26s.mov", "edge/face_not_speaking_2.4s.mp4"]
)
def test_the_crop_of_a_still_head_does_not_jitter(media, finder, name):
    track = choose(find_tracks(frames(media / name, stop=60), finder), "largest")
    steadied, raw = (crop_centres(p) for p in (track.points, three_points(track.landmarks)))
    assert step_of_stillest_second(steadied) < 0.3
    assert step_of_stillest_second(steadied) < 0.75 * step_of_stillest_second(raw)


def test_a_moving_head_is_followed_without_lag(media, finder):
    track = choose(find_tracks(frames(media / "clips/hdtf_wda_aoc.mp4", stop=75), finder), "largest")
    steadied, raw = (crop_centres(p)[10:-10] for p in (track.points, three_points(track.landmarks)))
    assert np.ptp(raw, axis=0).max() > 20
    shifts = {k: np.abs(np.roll(raw, k, 0)[5:-5] - steadied[5:-5]).mean() for k in range(-3, 4)}
    assert min(shifts, key=lambda k: shifts[k]) == 0
    assert np.abs(steadied - raw).max() < 0.03 * track.height


def test_two_people_are_kept_apart(media, finder):
    tracks = find_tracks(frames(media / "edge/two_faces_left_speaks.mp4", stop=50), finder)
    left, right = choose(tracks, "left"), choose(tracks, "right")
    assert len(tracks.faces) == 2
    assert left.present.all()
    assert right.present.all()
    assert left.points[..., 0].max() < 512 < right.points[..., 0].min()
    assert choose(tracks, "730,230,20") is right
    assert np.std(mouth_opening(left.landmarks)) > 0


def test_the_larger_of_two_is_chosen_and_the_small_one_is_there(media, finder):
    tracks = find_tracks(frames(media / "edge/two_faces_big_and_small.mp4", stop=26, step=2), finder)
    assert choose(tracks, "largest").height > 1.5 * choose(tracks, "right").height
    assert choose(tracks, "0") is choose(tracks, "largest")


def test_a_cut_between_two_people_starts_another_track(media, finder):
    tracks = find_tracks(frames(media / "edge/cut_at_4s_two_people.mp4", 80, 125), finder)
    assert tracks.cuts == (20,)
    assert [track.segments for track in tracks.faces] == [((0, 20),), ((20, 45),)]


def test_black_between_is_a_gap_of_one_track(media, finder):
    tracks = find_tracks(frames(media / "edge/black_3s_to_4s.mp4", 60, 120), finder)
    assert [track.segments for track in tracks.faces] == [((0, 15), (41, 60))]


def test_a_face_that_leaves_and_comes_back_is_one_track_with_a_gap(media, finder):
    tracks = find_tracks(frames(media / "edge/face_slides_out_3s_to_7s_and_back.mp4", 50, 200), finder)
    (track,) = tracks.faces
    (start, left), (back, stop) = track.segments
    assert (start, stop) == (0, 150)
    assert abs(left - 25) < 6
    assert abs(back - 125) < 6


def test_a_face_that_scrolls_out_leaves_no_false_face_behind(media, finder):
    (track,) = find_tracks(frames(media / "edge/face_scrolls_up_and_out_30fps.mp4", 140, 250), finder).faces
    ((start, stop),) = track.segments
    assert start == 0
    assert 20 < stop < 45


def test_a_face_before_or_after_another_picture_starts_and_ends_at_the_cut(media, finder):
    (before,) = find_tracks(frames(media / "edge/face_then_noface_vfr_hevc.mov", 50, 100), finder).faces
    assert before.segments == ((0, 22),)
    (after,) = find_tracks(frames(media / "edge/noface_then_face_vfr_hevc.mov", 80, 120), finder).faces
    assert after.segments == ((16, 40),)


def test_a_jump_cut_in_the_same_room_ends_a_segment(media, finder):
    (track,) = find_tracks(frames(media / "clips/latentsync_demo3.mp4", 255, 285), finder).faces
    assert track.segments == ((0, 16), (16, 30))


@pytest.mark.parametrize("name", ["noface_cars_12.5fps.mp4", "noface_cartoon_4s.mp4"])
def test_no_face_anywhere_is_one_sentence(media, finder, name):
    with pytest.raises(UserError, match="No face"):
        find_tracks(frames(media / "edge" / name, step=4), finder)


def test_no_frames_at_all_is_one_sentence(finder):
    with pytest.raises(UserError, match="no frames"):
        find_tracks([], finder)


def test_progress_is_told_after_every_frame(media, finder):
    told = []
    find_tracks(frames(media / "edge/five_frames.mp4"), finder, on_step=told.append)
    assert told == [1, 2, 3, 4, 5]


def test_two_people_who_cross_stay_who_they_are_and_their_crossing_is_no_cut(media, finder):
    tracks = find_tracks(frames(media / "reports/two_people_cross_false_cut.mp4"), finder)
    assert tracks.cuts == ()
    woman, man = tracks.faces
    assert woman.present.all()
    assert woman.landmarks[0, :, 0].mean() < 320 < woman.landmarks[75, :, 0].mean()
    assert man.landmarks[75, :, 0].mean() < 320 < man.landmarks[0, :, 0].mean()
    assert man.present.sum() > 55


ALIKE = [("hdtf_wda_katiehill.mp4", "hdtf_wda_bobmenendez.mp4"), ("grid/pE_sbia1a.mpg", "grid/s2_pwij3p.mpg"),
         ("grid/pF_sbwe5n.mpg", "grid_s1/s1_bbas3a.mpg"), ("grid/pB_lbax4n.mpg", "grid/pF_sbwe5n.mpg")]  # fmt: skip


def two_people(media, names, count):
    """The same number of frames of each, faces about alike in size and place; of GRID also in looks."""
    return [list(frames(media / "clips" / name, stop=count)) for name in names]


@pytest.mark.parametrize("names", ALIKE)
def test_shots_and_reverse_shots_show_two_people(media, finder, names):
    first, second = two_people(media, names, 72)
    tracks = find_tracks([*first[:24], *second[:24], *first[48:], *second[48:]], finder)
    for track, shots in zip(tracks.faces, ((0, 48), (24, 72)), strict=True):
        theirs = np.isin(np.arange(96), [i for start in shots for i in range(start, start + 24)])
        assert (track.present == theirs).mean() >= 0.98


@pytest.mark.parametrize("names", ALIKE)
def test_a_dissolve_to_another_person_ends_a_track(media, finder, names):
    first, second = two_people(media, names, 60)
    shares = np.clip((np.arange(60) - 20) / 20, 0, 1)
    mixed = [((1 - w) * a + w * b).astype(np.uint8) for a, b, w in zip(first, second, shares, strict=True)]
    before, after = find_tracks(mixed, finder).faces
    assert before.present[:23].all()
    assert not before.present[38:].any()
    assert after.present[38:].all()
    assert not after.present[:23].any()


@pytest.mark.parametrize(("color", "count"), [(0, 1), (0, 3), (255, 2)])
def test_a_flash_is_bridged_and_the_face_is_not_seen_in_it(media, finder, color, count):
    clip = list(frames(media / "clips/hdtf_wda_aoc.mp4", stop=30))
    flash = range(12, 12 + count)
    for i in flash:
        clip[i] = np.full_like(clip[i], color)
    (track,) = find_tracks(clip, finder).faces
    assert (track.cuts, track.segments) == ((), ((0, 30),))
    assert np.flatnonzero(~track.seen).tolist() == list(flash)


def test_a_face_that_is_only_blurred_is_seen(media, finder):
    clip = list(frames(media / "clips/hdtf_wda_aoc.mp4", stop=30))
    for i in (12, 13):
        clip[i] = cv2.blur(clip[i], (61, 9))
    (track,) = find_tracks(clip, finder).faces
    assert track.seen.all()


def test_a_man_who_is_gone_for_a_while_is_the_same_man_nearer_and_darker(media, finder):
    clip = list(frames(media / "clips/hdtf_wda_bobmenendez.mp4", stop=100, step=2))
    near = [cv2.resize(frame[60:400, 90:430], (512, 512)) // 2 for frame in clip[25:]]
    (track,) = find_tracks([*clip[:25], *[np.zeros_like(clip[0])] * 38, *near], finder).faces
    assert track.segments == ((0, 25), (63, 88))
