"""The recipe of covers: what is drawn is what the mask says, training learns it, and the judge counts right."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from latentsync.face.mask import mouth_mask
from latentsync.face.occlusion import ASSET, SIDE, TOP, CoverNet, cover_net
from recipes.covers import draw
from recipes.covers.data import STATES, make_faces, samples
from recipes.covers.draw import KINDS, Canvas, Faces
from recipes.covers.judge import COMES, GOES, THINGS, Clip, compared, covered_frames, network
from recipes.covers.train import HELD_OUT, Round, batch, export, measure, train

from .people import a_crowd

GRAY = Faces(np.full((2, draw.SIDE, draw.SIDE, 3), 128, np.uint8), np.full((1, draw.SIDE, draw.SIDE), 255, np.uint8))


@pytest.fixture(scope="module")
def crowd(face, speakers_two):
    return a_crowd(face, speakers_two)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_is_not_covered_is_changed_by_shadows_alone(kind):
    for seed in range(4):
        canvas = Canvas(np.full((draw.SIDE, draw.SIDE, 3), 128, np.float32), GRAY, np.random.default_rng(seed))
        kind(canvas)
        free = canvas.picture[canvas.covered == 0]
        assert canvas.covered.min() >= 0
        assert canvas.covered.max() <= 1
        assert (free <= 128.01).all(), "a shadow makes darker"
        assert np.ptp(free, axis=1).max() < 0.01, "and has no color"
    assert canvas.covered.max() > 0.9


def test_samples_depend_on_the_seed_alone():
    first, again, other = (samples(GRAY, seed, 4) for seed in ((1, 0), (1, 0), (1, 1)))
    assert first[0].shape == (4, SIDE - TOP, SIDE, 3)
    assert first[1].shape == (4, SIDE - TOP, SIDE)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert (first[0] != other[0]).any()


def test_nobody_is_drawn_who_is_held_out(crowd):
    marked = [replace(p, crops=np.full_like(p.crops, 255)) if p.name in ("p0", "p8") else p for p in crowd]
    faces = make_faces(marked, scenes=1, seed=1)
    assert faces.pictures.shape[1:] == (draw.SIDE, draw.SIDE, 3)
    assert len(faces.pictures) == len(faces.outlines) + len(STATES)
    assert faces.pictures.min((1, 2, 3)).max() < 255
    assert all(outline[100, 80] == 255 and outline[0, 0] == 0 for outline in faces.outlines)


def test_half_of_a_batch_is_mirrored_with_its_masks():
    pixels = torch.zeros(3, 48, 64, 3, dtype=torch.uint8)
    pixels[:, :, :32] = 255
    x, m = batch(pixels, pixels[..., 0], 4, torch.Generator().manual_seed(0))
    left = (x[..., :32].mean((1, 2, 3)) > x[..., 32:].mean((1, 2, 3))).tolist()
    assert left == (m[..., :32].mean((1, 2)) > 0.5).tolist() == [True, True, False, False]


def test_a_network_learns_where_a_square_is():
    random = np.random.default_rng(0)
    pixels = random.integers(100, 120, (HELD_OUT + 64, 24, 32, 3), np.uint8)
    masks = np.zeros(pixels.shape[:3], np.uint8)
    for picture, mask in zip(pixels[::2], masks[::2], strict=True):
        y, x = random.integers(0, 14, 2)
        picture[y : y + 10, x : x + 10], mask[y : y + 10, x : x + 10] = 255, 255
    torch.manual_seed(0)
    reports = []
    settings = Round(60, 1e-2)
    trained = train(CoverNet(), pixels, masks, settings, seed=0, size=16, report_every=60, on_report=reports.append)
    assert [report["step"] for report in reports] == [60]
    assert not trained.training
    assert measure(trained, torch.from_numpy(pixels[:32]), torch.from_numpy(masks[:32]))["iou"] > 0.7


def test_the_file_is_the_mean_and_is_loaded_as_the_built_in_one(tmp_path):
    nets = [CoverNet().eval() for _ in range(2)]
    path = export(nets, tmp_path / "covers.safetensors")
    name = "whole.weight"
    mean = (nets[0].state_dict()[name] + nets[1].state_dict()[name]) / 2
    assert load_file(path).keys() == load_file(ASSET).keys()
    with network(path):
        assert torch.allclose(cover_net().state_dict()[name], mean, atol=1e-3)
    assert not torch.allclose(cover_net().state_dict()[name], mean, atol=1e-3)


# ---- the judge -------------------------------------------------------------------------------------------------------


class Masks(dict):
    hidden = frozenset({0})

    def _mask(self, i):
        return self[i][TOP:].astype(np.float32)


def test_pixels_are_counted_within_what_is_repainted():
    repainted = mouth_mask(SIDE) == 0
    left = np.arange(SIDE)[None] < SIDE // 2
    half, lips = repainted & left, repainted & (np.arange(SIDE)[:, None] > 50)
    everything, nothing = np.ones((SIDE, SIDE), bool), np.zeros((SIDE, SIDE), bool)
    count = compared(Masks({0: half, 1: everything, 3: half}), [everything, lips, nothing, nothing])
    assert count.both == half.sum() + lips.sum()
    assert count.missed == (repainted & ~left).sum()
    assert count.marked == (repainted & ~lips).sum() != count.missed
    assert (count.neither, count.frames, count.hidden, count.alarms) == (0, 2, 1, 1)


@pytest.mark.parametrize("thing", THINGS.values(), ids=THINGS)
def test_a_thing_is_where_it_is_said_to_be(face_clip, thing):
    for frame, (seen, where) in zip(face_clip.frames, covered_frames(face_clip, thing, still=True), strict=True):
        assert (seen[where == 0] == frame[where == 0]).all()
        assert 0.002 < where.mean() < 0.5


def test_a_thing_that_moves_comes_and_goes(face_clip):
    frames, points = (np.repeat(values[:1], 48, 0) for values in (face_clip.frames, face_clip.points))
    clip = replace(face_clip, frames=frames, points=points)
    areas = [float(where.sum()) for _, where in covered_frames(clip, THINGS["cup"], still=False)]
    assert max(areas[:COMES] + areas[GOES:]) == 0
    assert areas[COMES + 1] < areas[COMES + 4] < areas[24]


@pytest.fixture(scope="module")
def face_clip(finder):
    picture = cv2.cvtColor(cv2.imread(str(ASSET.with_name("portrait.jpg"))), cv2.COLOR_BGR2RGB)
    points = finder.detect(picture)[0].points68
    return Clip("portrait", np.stack([picture] * 2), np.stack([points] * 2))
