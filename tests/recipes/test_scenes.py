"""Scenes: what they show and say, that held-out people and times never appear, and how they are encoded and kept."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from latentsync.face.mask import mouth_mask
from latentsync.models.unet import lips_window
from recipes.nano import scenes
from recipes.nano.data import RESOLUTION, held_out_portraits
from recipes.nano.puppets import Speech
from recipes.nano.scenes import STATES, SceneMaker, encode_states, load_scenes, make_scenes, mouth_box, write_scenes

from .people import CELLS, a_crowd, encode


@pytest.fixture(scope="module")
def crowd(face, speakers_two):
    return a_crowd(face, speakers_two)


@pytest.fixture(scope="module")
def made(crowd):
    return make_scenes(SceneMaker(crowd, 3), encode, 2)


def test_a_scene_is_one_picture_in_several_states(made, crowd):
    rows, columns = mouth_box(RESOLUTION)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    assert len(made) == 2
    assert made.latents.shape == (2, STATES, 4, CELLS, CELLS)
    assert made.masked.shape == (2, 4, CELLS, CELLS)
    assert made.mouths.shape == (2, STATES, 3, height, width)
    assert made.person.shape == made.frame.shape == made.opening.shape == (2, STATES)
    assert made.latents.dtype == made.masked.dtype == torch.float16
    assert made.mouths.dtype == torch.uint8
    assert (made.latents[:, :, :, :6] == made.latents[:, :1, :, :6]).all(), "above the mouth all is alike"
    assert (made.latents[:, 1:] != made.latents[:, :1]).any()


def test_what_is_repainted_is_masked(made):
    keep = encode(torch.from_numpy(mouth_mask(RESOLUTION)).expand(1, 3, -1, -1))[0, 0]
    assert (made.masked[:, :, keep == 0] == 0).all()
    assert torch.equal(made.masked[:, :, keep == 1], made.latents[:, 0][:, :, keep == 1])


def test_mouths_are_the_pictures_of_the_latents(made):
    """Both show the same part of the same states."""
    mouths = encode(made.mouths.flatten(0, 1).float() / 127.5 - 1).unflatten(0, (2, STATES))
    rows, columns = (slice(part.start // 8, part.stop // 8) for part in mouth_box(RESOLUTION))
    assert torch.allclose(made.latents[:, :, :, rows, columns].float(), mouths, atol=2e-3)


def test_openings_are_those_of_what_is_said(crowd):
    maker = SceneMaker(crowd, 11)
    pictures, said, openings = maker.scene()
    assert pictures.shape == (STATES, RESOLUTION, RESOLUTION, 3)
    silent = [opening for speech, opening in zip(said, openings, strict=True) if speech.person == Speech.SILENT]
    assert silent == pytest.approx([0] * len(silent), abs=1e-5)
    spoken = {s.person: [] for s in said if s.person >= 0}
    for speech, opening in zip(said[1:], openings[1:], strict=True):
        if speech.person >= 0:
            spoken[speech.person].append((crowd[speech.person].mesh[speech.frame, 152, 1], opening))
    for pairs in spoken.values():  # the chin goes down with the opening
        assert sorted(pairs) == sorted(pairs, key=lambda pair: pair[1])


def test_the_same_seed_makes_the_same_scenes(crowd):
    first, again, other = (SceneMaker(crowd, seed).scene() for seed in (5, 5, 6))
    assert np.array_equal(first[0], again[0])
    assert first[1:] == again[1:]
    assert not np.array_equal(first[0], other[0])


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_held_out_people_and_times_are_never_drawn(crowd, seed):
    maker = SceneMaker(crowd, seed)
    never = {p.name for p in held_out_portraits(crowd)}
    puppet, clip = maker.puppet()
    assert puppet.person.name not in never
    assert puppet.frame < puppet.person.train_frames
    assert puppet.person is crowd[clip] if clip >= 0 else not puppet.person.speaks
    assert puppet.inside == (clip if clip in maker.speakers.sharp else None)
    for _ in range(3):
        said = maker.speeches(clip)
        assert len(said) == STATES
        assert said[0].person == Speech.NATURAL
        for speech in said[1:]:
            assert speech.person == Speech.SILENT or speech.frame < crowd[speech.person].train_frames
            assert speech.person == Speech.SILENT or crowd[speech.person].speaks


def test_many_draws_show_everybody_else(crowd):
    maker, shown, heard, portraits = SceneMaker(crowd, 0), set(), [], 0
    for _ in range(120):
        puppet, clip = maker.puppet()
        shown.add(puppet.person.name)
        heard += [speech.person for speech in maker.speeches(clip)[1:]]
        portraits += clip < 0
    assert shown == {p.name for p in crowd} - {"p0", "p8"}
    assert portraits / 120 == pytest.approx(scenes.P_PORTRAIT, abs=0.13)
    assert heard.count(Speech.SILENT) / len(heard) == pytest.approx(scenes.P_SILENT, abs=0.04)
    assert {0, 1} <= set(heard)


def test_a_clips_own_frame_says_its_own(crowd):
    maker = SceneMaker(crowd, 0)
    while (drawn := maker.puppet())[1] < 0:
        pass
    maker.puppet = lambda: drawn
    _, said, openings = maker.scene()
    assert said[0] == Speech(drawn[1], drawn[0].frame)
    assert openings[0] == drawn[0].opening(Speech(Speech.NATURAL))


# ---- encoding --------------------------------------------------------------------------------------------------------

REPAINTED = lips_window(CELLS, CELLS, "jaw") > 0
"""What a residual network can change."""


def all_different(count=3):
    return torch.rand(count, 3, RESOLUTION, RESOLUTION, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_a_pooling_encoder_sees_no_edge_of_a_part():
    pixels = all_different()
    made, whole = encode_states(encode, pixels), encode(pixels)
    assert torch.equal(made[:, :, REPAINTED], whole[:, :, REPAINTED])
    assert torch.equal(made[0], whole[0])
    assert torch.equal(made[1, :, :6], whole[0, :, :6]), "what speech does not move is the first picture's"


def test_an_encoder_that_sees_15_pixels_far_makes_the_same_of_a_part():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 3, 2, 1)]
    net = nn.Sequential(*layers, nn.Conv2d(4, 4, 3, 1, 1)).requires_grad_(False)
    pixels = all_different()
    made, whole = encode_states(net, pixels), net(pixels)
    assert torch.allclose(made[:, :, REPAINTED], whole[:, :, REPAINTED], atol=1e-5)


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(scenes, "PER_FILE", 1)


def test_scenes_are_written_once_by_several_and_read_up_to_a_gap(crowd, tmp_path, short):
    assert list(write_scenes(crowd, encode, tmp_path, first=0, last=3, stride=2, seed=9)) == [0, 2]
    assert len(load_scenes(tmp_path)) == 1
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert list(write_scenes(crowd, encode, tmp_path, first=0, last=3, stride=1, seed=9)) == [1]
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"0000{i}.safetensors" for i in range(3)]
    found = load_scenes(tmp_path)
    assert [len(part) for part in found] == [1, 1, 1]
    assert torch.equal(load_scenes(tmp_path, 1)[0].latents, found[1].latents)
    again = make_scenes(SceneMaker(crowd, 9 + 1), encode, 1)
    assert torch.equal(found[1].latents, again.latents)
    assert torch.equal(found[1].mouths, again.mouths)
    assert not torch.equal(found[1].latents, found[2].latents)


def test_a_file_of_scenes_is_whole_or_absent(crowd, tmp_path, short, monkeypatch):
    def full(state, path):
        path.write_bytes(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr(scenes, "save_file", full)
    with pytest.raises(OSError, match="full"):
        next(write_scenes(crowd, encode, tmp_path, first=0, last=1, stride=1, seed=9))
    assert not list(tmp_path.iterdir())
