"""Boxes, masks and landmarks of other packs: they choose the face that they mean, and ours are right in pixels."""

from collections import namedtuple

import numpy as np
import pytest
import torch

from ..pack import pack_module
from ..tiny import face_model
from .graphs import Graph
from .parts import find, loaded

regions = pack_module("nodes.regions")
track = pack_module("latentsync.face.track")
clips = pack_module("latentsync.face.aligned")
UserError = pack_module("latentsync.errors").UserError

FRAMES, SIZE = 6, (200, 100)
SEG = namedtuple("SEG", "bbox")


def a_track(index, left, frames=range(FRAMES)):
    """A face of 40 x 50 px at (left, 20), seen in these frames."""
    mean = pack_module("latentsync.face.points").CANONICAL
    face = (mean - mean.min(0)) / np.ptp(mean, axis=0) * (40, 50) + (left, 20)
    landmarks = np.repeat(face[None], FRAMES, 0).astype(np.float32)
    present = np.isin(np.arange(FRAMES), list(frames))
    points = pack_module("latentsync.face.detect").three_points(landmarks)
    return track.FaceTrack(index, points, landmarks, present, ((min(frames), max(frames) + 1),), SIZE)


TRACKS = track.Tracks((a_track(0, 10), a_track(1, 120, range(2, 5))), FRAMES, SIZE)
RIGHT = (115, 15, 50, 60)
"""x, y, width, height around the second face."""


def mask(frames=None, scale=1):
    x, y, width, height = (value * scale for value in RIGHT)
    one = torch.zeros(SIZE[1] * scale, SIZE[0] * scale)
    one[y : y + height, x : x + width] = 1
    return one if frames is None else one.repeat(frames, 1, 1)


def core(x, y, width, height):
    return {"x": x, "y": y, "width": width, "height": height, "label": "face"}


CORNERS = (RIGHT[0], RIGHT[1], RIGHT[0] + RIGHT[2], RIGHT[1] + RIGHT[3])


@pytest.mark.parametrize(
    "region",
    [
        mask(),
        mask(1),
        mask(FRAMES),
        mask(1, scale=2),
        core(*RIGHT),
        [core(*RIGHT)],
        [[core(*RIGHT)]],
        [[core(*RIGHT)] if 2 <= i < 5 else [] for i in range(FRAMES)],
        RIGHT,
        [RIGHT],
        [list(RIGHT)] * FRAMES,
        np.array(RIGHT),
        torch.tensor([RIGHT]),
        ((100, 200), [SEG(CORNERS)]),
        ((100, 200), [SEG((0, 80, 5, 90)), SEG(np.array(CORNERS))]),
    ],
    ids=lambda region: type(region).__name__,
)
def test_a_region_chooses_its_face(region):
    assert [face.index for face in regions.within(TRACKS, region).faces] == [1]


def test_a_region_around_both_keeps_both():
    assert len(regions.within(TRACKS, (0, 0, *SIZE)).faces) == 2


@pytest.mark.parametrize(
    ("region", "words"),
    [
        ((0, 80, 5, 5), "No face is in the connected region; the faces found are 0 .*; 1 "),
        (torch.zeros(1, 100, 200), "No face is in the connected region"),
        (torch.zeros(3, 100, 200), "for 3 frames and there are 6"),
        ("left", "a str that cannot be read"),
        ({"left": 3}, "a dict that cannot be read"),
    ],
)
def test_other_regions_are_refused_with_the_faces_that_there_are(region, words):
    with pytest.raises(UserError, match=words):
        regions.within(TRACKS, region)


def test_boxes_and_masks_of_a_track():
    clip = clips.AlignedFace.from_track(TRACKS.faces[1], 64)
    boxes = regions.as_boxes(clip)
    assert [box is None for box in boxes] == [True, True, False, False, False, True]
    assert boxes[2] == pytest.approx((120, 20, 40, 50))
    assert regions.held(boxes) == [boxes[2]] * FRAMES
    face = regions.as_masks(clip, "face")
    assert face.shape == (FRAMES, 100, 200)
    assert not face[[0, 1, 5]].any()
    assert face[2, 30:60, 130:150].all()
    assert not face[2, :, :115].any()
    mouth = regions.as_masks(clip, "mouth")
    assert not mouth[[0, 1, 5]].any()
    assert 0 < mouth.max() <= 1
    assert mouth[3].sum() > 0


def test_landmarks_of_another_number_of_frames_are_refused():
    with pytest.raises(UserError, match="for 2 frames and 6 images"):
        regions.GivenFaces({"frames": [[], []]}, 6)
    with pytest.raises(UserError, match="frame by frame"):
        regions.GivenFaces([1, 2], 6)


# on the real server


def two(comfy, tmp_path):
    from ..workflows.inputs import two_portraits

    return comfy.put(two_portraits(tmp_path / "two.mp4", 6), "regions.mp4")


def boxes_of(run, node):
    import ast

    return ast.literal_eval(run.shown("PreviewAny", "text")[0]) if node else None


@pytest.mark.parametrize("output", [0, 1, 2], ids=["BBOX", "SEGS", "BOUNDING_BOX"])
def test_a_box_of_another_pack_chooses(comfy, tmp_path, output):
    """And Face Regions says where it is: the right one of two faces."""
    g = Graph()
    box = g.node("OddRegion", x=320, y=0, width=320, height=280)
    found = find(g, loaded(g, two(comfy, tmp_path)), resolution=160, region=box[output])
    where = g.node("LatentSyncFaceRegions", face_track=found[1], part="mouth")
    g.node("PreviewAny", source=where[1])
    g.node("PreviewImage", images=g.node("MaskToImage", mask=where[2]))
    boxes = boxes_of(comfy.queue(g).check(), where)
    assert len(boxes) == 6
    assert all(x > 320 and x + width <= 640 for x, _, width, _ in boxes)


def test_a_mask_chooses(comfy, tmp_path):
    g = Graph()
    left = g.node("SolidMask", value=1.0, width=640, height=280)
    left = g.node("CropMask", mask=left, x=0, y=0, width=320, height=280)
    blank = g.node("SolidMask", value=0.0, width=640, height=280)
    mask = g.node("MaskComposite", destination=blank, source=left, x=0, y=0, operation="add")
    found = find(g, loaded(g, two(comfy, tmp_path)), resolution=160, region=mask, face="right")
    g.node("PreviewAny", source=g.node("LatentSyncFaceRegions", face_track=found[1], part="face")[1])
    assert all(x + width < 320 for x, _, width, _ in boxes_of(comfy.queue(g).check(), found))


def test_landmarks_of_the_host_are_followed(comfy, portrait_clip):
    """The same crops as with our own search, up to what the two measure differently."""
    g = Graph()
    source = loaded(g, portrait_clip)
    marks = g.node("OddLandmarks", image=source, model=str(face_model()))
    own = find(g, source, resolution=160)
    given = g.node(
        "LatentSyncFindFaces", images=source, face="largest", resolution=160, preview_frame=0, landmarks=marks
    )
    for name, found in (("own", own), ("given", given)):
        g.node("SaveImage", name, images=found, filename_prefix=name)
    run = comfy.queue(g).check()
    own, given = (pictures(comfy, run, name) for name in ("own", "given"))
    assert len(own) == 20
    assert np.abs(own - given).mean() < 6


def pictures(comfy, run, node):
    from PIL import Image

    return np.stack([np.asarray(Image.open(comfy.path(one)), float)[..., :3] for one in run.outputs[node]["images"]])


def test_comfyuis_own_nodes_take_our_boxes(comfy, portrait_clip):
    if "DrawBBoxes" not in comfy.object_info():
        pytest.skip("This ComfyUI has no node for BOUNDING_BOX.")
    g = Graph()
    source = loaded(g, portrait_clip)
    boxes = g.node("LatentSyncFaceRegions", face_track=find(g, source, resolution=160)[1], part="face")
    g.node("SaveImage", "drawn", images=g.node("DrawBBoxes", image=source, bboxes=boxes), filename_prefix="boxes")
    g.node("SaveImage", "plain", images=source, filename_prefix="plain")
    run = comfy.queue(g).check()
    drawn, plain = pictures(comfy, run, "drawn"), pictures(comfy, run, "plain")
    changed = np.abs(drawn - plain).max(-1) > 60
    assert changed.any(axis=(1, 2)).all()  # a box in every frame
    rows, columns = np.nonzero(changed[0])
    assert np.ptp(rows) > 50
    assert np.ptp(columns) > 40
