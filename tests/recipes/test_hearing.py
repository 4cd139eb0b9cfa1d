"""Teaching a U-Net that was told shapes to hear speech."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from recipes.nano.audio import Voices
from recipes.nano.hearing import HearingTraining, teach_hearing
from recipes.nano.puppets import Speech
from recipes.nano.unet import UNetTrainer

from .people import UNET, followed, number_scenes, plain_vae, speaker

WAYS = 8
QUICK = HearingTraining(steps=150, batch_size=16, noise=0.1, files=1, gain=1.0, report_every=50)


@pytest.fixture(scope="module")
def people(face):
    random = np.random.default_rng(1)
    openings = [np.where(np.arange(n) < 4, 0, random.uniform(0, 0.35, n)) for n in (48, 32)]
    return [speaker(face, o, name=n, numbers=WAYS, seed=i) for i, (o, n) in enumerate(zip(openings, "ab", strict=True))]


@pytest.fixture(scope="module")
def told(people, tmp_path_factory):
    """A trainer that learned to show what it is told, and its checkpoint."""
    made = UNetTrainer([number_scenes(people, 6)], people, replace(UNET, p_natural=1, p_static=1), plain_vae())
    made.schedule.base_lrs = [rate * 3 for rate in made.schedule.base_lrs]  # warm-up takes a while
    for _ in range(40):
        made.train_step()
    made.average.module.load_state_dict(made.unet.state_dict())
    path = tmp_path_factory.mktemp("run") / "unet.pt"
    made.save(path)
    return made, path


def taught(told, people, path, **settings):
    trainer, checkpoint = told
    voices, reports = Voices(people, torch.zeros(50, 384)), []
    hearing = teach_hearing(
        checkpoint, trainer.shapes, voices, trainer.scenes, path,
        settings=replace(QUICK, **settings), on_report=reports.append,
    )  # fmt: skip
    return hearing, reports


def test_what_was_told_is_heard(told, people, tmp_path):
    """Only the attention to the audio changes, and the file holds it."""
    hearing, reports = taught(told, people, tmp_path / "heard.pt")
    assert [r["step"] for r in reports] == [50, 100, 150]
    assert reports[-1]["error"] < 0.3
    moments = [(p, f) for p in (0, 1) for f in range(4, 22, 3)]
    audio = [torch.from_numpy(people[p].audio[f]).float() @ hearing.voices.whitening.T for p, f in moments]
    trainer = told[0]
    with torch.no_grad():
        shapes = [trainer.teller(trainer.shapes(*moment)).expand(50, -1) for moment in moments]
    assert followed(trainer.unet, trainer.scenes[0], people, moments, shapes) > 0.5
    assert followed(hearing.unet, trainer.scenes[0], people, moments, audio) > 0.5
    saved = torch.load(tmp_path / "heard.pt", weights_only=True)
    before = trainer.average.module.state_dict()
    changed = [name for name, value in saved["average"].items() if not torch.equal(value, before[name])]
    assert changed
    assert all(".attn2." in name for name in changed)
    assert torch.equal(saved["whitening"], hearing.voices.whitening)


def test_answers_are_those_of_the_network_that_was_told(told, people, tmp_path):
    """Wherever in the picture, and linear in the shape."""
    hearing, _ = taught(told, people, tmp_path / "heard.pt", steps=0)
    shapes = torch.randn(3, hearing.teller.in_features)
    with torch.no_grad():
        for name, module in hearing.modules.items():
            directions, middle = hearing.answers[name]
            pixels = hearing.pixels[name][:3]
            answer = module(pixels, hearing.teller(shapes)[:, None].expand(-1, 50, -1))
            assert torch.allclose(answer, (middle + shapes @ directions)[:, None].expand_as(answer), atol=1e-3)


def test_the_gain_enlarges_what_differs_from_the_middle(told, people, tmp_path):
    plain, _ = taught(told, people, tmp_path / "a.pt", steps=3)
    twice, _ = taught(told, people, tmp_path / "b.pt", steps=3, gain=2.0)
    tokens = torch.randn(4, 50, 384)
    with torch.no_grad():
        for name, module in plain.modules.items():
            middle, pixels = plain.answers[name][1], plain.pixels[name][:4]
            a, b = module(pixels, tokens) - middle, twice.modules[name](pixels, tokens) - middle
            assert torch.allclose(b, 2 * a, atol=1e-3)


def test_silence_and_no_tokens_have_their_shapes(told, people, tmp_path):
    silent, _ = taught(told, people, tmp_path / "heard.pt", steps=0, p_silent=1.0, p_unknown=0.0, noise=0.0)
    tokens, shapes = silent.draw()
    assert torch.equal(shapes, silent.shapes.silent.expand_as(shapes))
    assert torch.equal(tokens[0], silent.voices(Speech.SILENT, 0, np.random.default_rng(0)))
    unknown, _ = taught(told, people, tmp_path / "heard.pt", steps=0, p_unknown=1.0)
    tokens, shapes = unknown.draw()
    assert not tokens.any()
    assert not shapes.any()
