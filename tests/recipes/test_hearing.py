"""Teaching a U-Net that was told shapes to hear speech."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from recipes.nano.data import Person
from recipes.nano.hearing import Hearing, HearingTraining, audio_directions, ridge, silent_tokens, teach_hearing
from recipes.nano.unet import Shapes, UNetTrainer

from ..tiny import tiny_whisper
from .people import UNET, number_scenes, plain_vae, speaker

WAYS = 14  # more than the components of a shape, so that all can be heard
FEW = HearingTraining(directions=WAYS, ridge=0.01, closed=0.75)
SILENCE = torch.zeros(50, 384)


@pytest.fixture(scope="module")
def people(face):
    random = np.random.default_rng(1)
    openings = [np.where(np.arange(n) < 4, 0, random.uniform(0, 0.35, n)) for n in (48, 32)]
    return [speaker(face, o, name=n, numbers=WAYS, seed=i) for i, (o, n) in enumerate(zip(openings, "ab", strict=True))]


def test_speech_is_told_as_the_shape_of_its_lips(people, tmp_path):
    """The file's U-Net is the averaged one with a projection before it, which makes of plain tokens what the teller
    makes of shapes, enlarged from their mean."""
    trainer = UNetTrainer([number_scenes(people, 1)], people, UNET, plain_vae())
    trainer.save(tmp_path / "unet.pt")
    hearing = Hearing(people, trainer.shapes, SILENCE, replace(FEW, gain=2.0))
    teach_hearing(tmp_path / "unet.pt", hearing, tmp_path / "heard.pt")
    saved = torch.load(tmp_path / "heard.pt", weights_only=True)["unet"]
    before = trainer.average.module.state_dict()
    assert all(torch.equal(saved[name], value) for name, value in before.items())
    hearing.projection.out = torch.nn.Linear(hearing.projection.out.in_features, 384)
    added = {name.removeprefix("audio_projection."): saved[name] for name in saved.keys() - before.keys()}
    hearing.projection.load_state_dict(added)
    for person, frames in ((0, range(4, 36, 3)), (1, range(4, 24, 3))):
        audio = torch.from_numpy(people[person].audio[list(frames)]).float()
        shapes = torch.stack([trainer.shapes(person, frame) for frame in frames])
        with torch.no_grad():
            tokens, wanted = hearing.projection(audio)[:, 0], trainer.teller(2 * shapes)
        assert ((tokens - wanted).square().mean() / wanted.var(0).mean()) < 0.3  # each hears their own loudness


def test_silence_and_no_tokens_have_their_shapes(people):
    shapes, silence = Shapes(people), torch.randn(50, 384, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        heard = Hearing(people, shapes, silence, replace(FEW, silence=1e3)).projection(silence[None])[0, 0]
        nothing = Hearing(people, shapes, silence, replace(FEW, nothing=1e3)).projection(torch.zeros(1, 50, 384))
    assert shapes.silent.norm() > 1
    assert torch.allclose(heard, 0.75 * shapes.silent, atol=0.02)
    assert nothing.abs().max() < 0.02


def test_pauses_amid_speech_are_closed(people):
    """Their tokens are neither those of speech nor those of silence."""
    tokens = np.random.default_rng(3).normal(0, 1, (1, 50, 384)).astype(np.float16).repeat(6, 0)
    paused = [replace(people[0], pauses=tokens), people[1]]
    shapes = Shapes(people)
    with torch.no_grad():
        without, heard = (
            Hearing(who, shapes, SILENCE, replace(FEW, pauses=1e3)).projection(torch.from_numpy(tokens).float())[:, 0]
            for who in (people, paused)
        )
    assert not torch.allclose(without, 0.75 * shapes.silent, atol=0.5)
    assert torch.allclose(heard, 0.75 * shapes.silent.expand(6, -1), atol=0.02)


def test_people_count_by_the_root_of_their_time(people):
    """Two hear the same and show opposite shapes: the one with four times the time counts twice."""
    said = np.tile(np.random.default_rng(0).normal(0, 1, (3, 50, 384)), (16, 1, 1)).astype(np.float16)
    much = replace(people[0], name="a", audio=said)
    little = replace(people[0], name="b", **{part: getattr(much, part)[:12] for part in ("crops", "mesh", "audio")})
    shapes = Shapes(people)
    shapes.spoken = {0: torch.full((36, 12), 1.0), 1: torch.full((9, 12), -1.0)}
    hearing = Hearing([much, little], shapes, SILENCE, replace(FEW, silence=0, nothing=0))
    with torch.no_grad():
        heard = hearing.projection(torch.from_numpy(said[:3]).float())[:, 0]
    assert torch.allclose(heard, torch.full((3, 12), 1 / 3), atol=1e-5)


def test_a_lower_rank_is_as_close_as_it_can_be(people):
    """Each further rank leaves less out, and enough of them nothing."""
    shapes, audio = Shapes(people), torch.from_numpy(people[0].audio).float()
    made = {rank: Hearing(people, shapes, SILENCE, replace(FEW, rank=rank)).projection for rank in (2, 8, 13, WAYS, 99)}
    assert [p.mix.out_features for p in made.values()] == [2, 8, 13, WAYS, WAYS]
    with torch.no_grad():
        full = made[99](audio)
        left_out = [float((p(audio) - full).square().mean() / full.var(0).mean()) for p in made.values()]
    assert left_out[0] > 2 * left_out[1] > 10 * left_out[2] > 0
    assert left_out[3] < 1e-9


# ---- arithmetic ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("strength", "slope"), [(0.0, 2.0), (1.0, 1.0), (3.0, 0.5)])
def test_ridge(strength, slope):
    """y = 2x + 5 at x = ±1, power 1: 2 / (1 + strength); the bias is not held back."""
    inputs, wanted = torch.tensor([[-1.0], [1.0]]), torch.tensor([[3.0], [7.0]])
    solution, bias = ridge(inputs, wanted, torch.ones(2), strength)
    assert float(solution) == pytest.approx(slope)
    assert float(bias) == pytest.approx(5)


def test_ridge_takes_a_weight_as_so_many_copies():
    random = torch.Generator().manual_seed(0)
    inputs, wanted = (torch.randn(6, n, generator=random, dtype=torch.float64) for n in (3, 2))
    weighted = ridge(inputs, wanted, torch.tensor([1.0, 1, 1, 1, 1, 3]), 0.1)
    copied = ridge(inputs[[0, 1, 2, 3, 4, 5, 5, 5]], wanted[[0, 1, 2, 3, 4, 5, 5, 5]], torch.ones(8), 0.1)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(weighted, copied, strict=True))


# ---- what is listened to ---------------------------------------------------------------------------------------------

DIM, LAYERS = 24, 5


def whispered(name, frames, seed):
    """A person whose audio has what Whisper's has: a constant for each layer, and one direction far too strong."""
    random = np.random.default_rng(seed)
    tokens = random.normal(0, 1, (frames, 10, LAYERS, DIM)) + 20 * np.random.default_rng(5).normal(0, 1, (LAYERS, DIM))
    tokens[..., 0] += 50 * random.normal(0, 1, (frames, 10, LAYERS))
    empty = np.zeros((frames, 1, 1, 3), np.uint8)
    return Person(name, empty, np.zeros((frames, 468, 3), np.float32), tokens.reshape(frames, 50, DIM).astype("f2"))


@pytest.fixture(scope="module")
def whisperers():
    return [whispered("anna_1", 400, 0), whispered("ben_1", 320, 1)]


def test_directions_have_no_constant_and_no_ruler(whisperers):
    directions = audio_directions(whisperers, 12)
    plain = torch.cat([torch.from_numpy(p.audio[: p.train_frames : 4]).float() for p in whisperers])
    plain = plain.unflatten(1, (10, LAYERS))[:, 5].flatten(1)
    listened = plain @ directions.T
    assert listened.shape[1] == 12
    assert plain.mean(0).abs().max() > 10
    assert listened.mean(0).abs().max() < 1e-3
    before, after = (torch.linalg.eigvalsh(torch.cov(t.T)).flip(0) for t in (plain, listened))
    assert before[0] / before[11] > 1000
    assert after[0] / after[11] < 100


def test_held_out_time_is_not_listened_to(whisperers):
    other = [replace(p, audio=p.audio.copy()) for p in whisperers]
    for person in other:
        person.audio[person.train_frames :] = np.nan
    assert torch.equal(audio_directions(other, 12), audio_directions(whisperers, 12))


def test_silent_tokens_are_those_of_a_moment_without_sound():
    from latentsync.audio.whisper_features import audio_windows, encode_audio

    whisper = tiny_whisper(layers=4)
    tokens = silent_tokens(whisper)
    assert tokens.shape == (50, 384)
    sound = torch.cat((torch.zeros(4 * 16000), 0.1 * torch.randn(16000, generator=torch.Generator().manual_seed(0))))
    features = encode_audio(sound, 16000, whisper)
    windows = audio_windows(features, Fraction(25), 125)
    apart = (windows - tokens).square().mean((1, 2))
    assert apart[50] < 0.1 * apart[110:120].min()
