"""What the training hears: which voice, whitened, and that the whitening can be folded into the weights."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from latentsync.models.unet_blocks import AudioProjection
from recipes.nano import data
from recipes.nano.audio import P_OWN_VOICE, Voices, audio_whitening, fold_whitening, silent_tokens
from recipes.nano.data import Person
from recipes.nano.puppets import Speech

from ..tiny import tiny_whisper

DIM = 24
LAYERS = 5


def heard(name="anna_1", frames=40, seed=0):
    """A person whose audio has what Whisper's has: a constant for each layer, and one direction far too strong."""
    random = np.random.default_rng(seed)
    tokens = random.normal(0, 1, (frames, 10, LAYERS, DIM)) + 20 * np.random.default_rng(5).normal(0, 1, (LAYERS, DIM))
    tokens[..., 0] += 50 * random.normal(0, 1, (frames, 10, LAYERS))
    empty = np.zeros((frames, 1, 1, 3), np.uint8)
    return Person(name, empty, np.zeros((frames, 468, 3), np.float32), tokens.reshape(frames, 50, DIM).astype("f2"))


@pytest.fixture(scope="module")
def people():
    return [heard(), heard("ben_1", 32, 1)]


def test_whitened_audio_has_no_constant_and_no_ruling_direction(people):
    whitening = audio_whitening(people)
    plain = torch.cat([torch.from_numpy(p.audio[: p.train_frames : 4]).float() for p in people])
    plain, tokens = (t.unflatten(1, (10, LAYERS))[:, 5] for t in (plain, plain @ whitening.T))
    assert plain.mean(0).abs().max() > 10
    assert tokens.mean(0).abs().max() < 0.02
    assert tokens.std() == pytest.approx(1, abs=0.05)
    powers = [torch.linalg.eigvalsh(torch.cov((t - t.mean(0)).flatten(0, 1).T)) for t in (plain, tokens)]
    before, after = (float(p[-1] / p[-2]) for p in powers)
    assert before > 1000
    assert after < before / 10


def test_whitening_does_not_hear_held_out_time(people):
    other = [replace(p, audio=p.audio.copy()) for p in people]
    for person in other:
        person.audio[person.train_frames :] = np.nan
    assert torch.equal(audio_whitening(other), audio_whitening(people))


def test_whitening_can_be_folded_into_the_weights(people):
    """What is trained on whitened tokens, the finished file hears of plain ones."""
    whitening = audio_whitening(people)
    torch.manual_seed(0)
    trained, folded = (AudioProjection(DIM, 4, 7, nn) for _ in range(2))
    audio = torch.from_numpy(people[0].audio[:2]).float()
    folded.load_state_dict(trained.state_dict() | {"mix.weight": fold_whitening(trained.mix.weight, whitening)})
    with torch.no_grad():
        whitened, plain, wrong = trained(audio @ whitening.T), folded(audio), folded(audio @ whitening.T)
    assert torch.allclose(plain, whitened, atol=2e-4)
    assert not torch.allclose(wrong, whitened, atol=2e-2)


def test_voices(people):
    """The own one, or any of the others; always of the moment that is asked for."""
    frames = np.arange(40.0).repeat(50 * DIM).reshape(40, 50, DIM).astype("f2")
    anna = replace(people[0], audio=frames, voices=(frames + 100, frames + 200))
    ben = replace(people[1], audio=frames + 300)
    voices = Voices(people, torch.zeros(50, DIM))
    voices.people, voices.whitening = [anna, ben], torch.eye(DIM)
    random = np.random.default_rng(0)
    drawn = [float(voices(0, 7, random)[0, 0]) for _ in range(400)]
    shares = {value: drawn.count(value) / 400 for value in set(drawn)}
    other = (1 - P_OWN_VOICE) / 2
    assert shares == {
        7.0: pytest.approx(P_OWN_VOICE, abs=0.08),
        **{v: pytest.approx(other, abs=0.08) for v in (107, 207)},
    }
    assert {float(voices(1, 3, random)[4, 2]) for _ in range(20)} == {303.0}
    assert voices(0, 7, random).shape == (50, DIM)
    assert voices(0, 7, random).dtype == torch.float32


def test_silence_is_whitened_silence(people):
    silence = torch.randn(50, DIM, generator=torch.Generator().manual_seed(0))
    voices = Voices(people, silence)
    said = voices(Speech.SILENT, 0, np.random.default_rng(0))
    assert torch.equal(said, silence @ audio_whitening(people).T)


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


def test_other_voices_say_the_same_at_the_same_time():
    pytest.importorskip("librosa")
    rate, time = 16000, torch.arange(8000) / 16000
    sound = torch.sin(2 * torch.pi * 220 * time) * (time > 0.25)
    for name, voice in data.other_voices(sound, rate).items():
        assert name.startswith("voice")
        assert voice.shape == sound.shape
        assert not torch.equal(voice, sound)
        early, late = voice[:3500].std(), voice[4500:].std()
        assert late > 5 * early, name
