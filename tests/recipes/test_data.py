"""Prepared people: what is read back, what is held out, how often who is drawn; and what may be shipped."""

import math

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from latentsync.errors import UserError
from recipes.nano import data
from recipes.nano.data import CLIPS, Person, clip_paths, load_people, portrait_paths
from recipes.nano.scenes import clip_chances

from .people import portrait, turned


def spoken(name, frames):
    return Person(name, np.zeros((frames, 1, 1, 3), np.uint8), np.zeros((frames, 468, 3)), np.zeros((frames, 50, 4)))


def test_prepared_people_are_read_back(face, speakers_two, tmp_path):
    with pytest.raises(UserError, match="nobody prepared"):
        load_people(tmp_path)
    clip = speakers_two[1]
    heard = {
        "crops": np.ascontiguousarray(clip.crops),
        "mesh": clip.mesh,
        "audio": clip.audio,
        "pauses": clip.audio[:3],
    }
    still = portrait(face)
    save_file({"crops": still.crops, "mesh": still.mesh}, tmp_path / "still.safetensors", {"name": "still"})
    save_file(heard, tmp_path / "ben_1.safetensors", {"name": "ben_1"})
    ben, again = load_people(tmp_path)
    assert (ben.name, ben.identity, ben.speaks, ben.train_frames) == ("ben_1", "ben", True, 18)
    assert (again.name, again.speaks, again.train_frames) == ("still", False, 2)
    assert np.array_equal(again.crops, still.crops)
    assert np.array_equal(ben.mesh, clip.mesh)
    assert np.array_equal(ben.audio, clip.audio)
    assert np.array_equal(ben.pauses, clip.audio[:3])


def test_the_mouth_at_rest_is_the_one_that_opens_least(face, speakers_two):
    assert np.allclose(speakers_two[0].rest, face.closed, atol=1e-3)
    assert np.allclose(portrait(face).rest, face.closed, atol=1e-3)


def test_movement_is_without_the_pose_of_the_head(face):
    shift = np.array([3, 4, 5])
    meshes = np.stack([face.closed, turned(face.opened(0.3), (8, -12, 5)) + shift])
    meshes = np.repeat(meshes, (12, 6), 0).astype(np.float32)
    clip = Person("ben_1", np.zeros((18, 1, 1, 3), np.uint8), meshes, np.zeros((18, 50, 4)))
    assert np.allclose(clip.movement[-1], face.opened(0.3) - face.closed, atol=1e-3)
    assert np.allclose(clip.movement[0], 0, atol=1e-3)
    posed = turned(face.closed, (8, -12, 5)) + shift
    assert np.allclose(clip.closed(17), posed, atol=1e-3)


def test_people_with_much_footage_count_less_than_in_proportion():
    chances = clip_chances([spoken("anna_1", 400), spoken("ben_1", 100), spoken("ben_2", 100)])
    assert chances.sum() == pytest.approx(1)
    assert chances[0] / (chances[1] + chances[2]) == pytest.approx(math.sqrt(300 / 150))
    assert chances[1] == chances[2]


def test_recipe_names_only_what_may_be_shipped(media):
    names = [path.name for path in clip_paths(media)]
    assert len(names) == len(set(names)) > 70
    assert all(name.startswith(("latentsync_demo", "obama_", "reagan_", "s1_", "s2_", "p")) for name in names)
    assert not any(part in pattern for pattern in CLIPS for part in ("hdtf", "edtalk", "videoretalking"))


def test_portraits_are_neutral_first(media):
    people = portrait_paths(media)
    if not people:
        pytest.skip("LATENTSYNC_MEDIA: no portraits folder; this test needs it")
    for name, paths in people.items():
        assert name.startswith(("london-", "canada-", "cc0-"))
        assert all(path.is_file() for path in paths)
        assert not name.startswith("london-") or [path.stem[-3:] for path in paths] in (["_03"], ["_03", "_08"])


def test_what_is_heard_in_pauses_is_heard_in_pauses_alone(monkeypatch):
    """Of an audio whose tokens are its loudness: no moment hears the speech before or after."""
    said = torch.ones(10 * 16000)

    def loudness(waveform, rate, whisper):
        rows = waveform[: len(waveform) // 320 * 320].unflatten(0, (-1, 320)).abs().amax(1)
        return rows[:, None, None].expand(-1, 5, 1)

    monkeypatch.setattr(data, "encode_audio", loudness)
    heard = data.heard_in_pauses(said, 16000, None)
    assert heard.shape[1:] == (50, 1)
    assert 25 < len(heard) < 400
    assert heard.max() < 0.2
    monkeypatch.setattr(data, "CLOSING", 0.0)
    assert data.heard_in_pauses(said, 16000, None).max() == 1
