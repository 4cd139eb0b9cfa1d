"""Teaching a U-Net that was told shapes to hear speech."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from recipes.nano.audio import Voices
from recipes.nano.hearing import HearingTraining, teach_hearing
from recipes.nano.puppets import Speech
from recipes.nano.unet import UNetTrainer

from .people import UNET, number_scenes, plain_vae, speaker

WAYS = 8
QUICK = HearingTraining(steps=150, batch_size=32, noise=0.1, report_every=50)


@pytest.fixture(scope="module")
def people(face):
    random = np.random.default_rng(1)
    openings = [np.where(np.arange(n) < 4, 0, random.uniform(0, 0.35, n)) for n in (48, 32)]
    return [speaker(face, o, name=n, numbers=WAYS, seed=i) for i, (o, n) in enumerate(zip(openings, "ab", strict=True))]


@pytest.fixture(scope="module")
def told(people, tmp_path_factory):
    """A trainer and its checkpoint."""
    made = UNetTrainer([number_scenes(people, 1)], people, UNET, plain_vae())
    path = tmp_path_factory.mktemp("run") / "unet.pt"
    made.save(path)
    return made, path


def taught(told, people, path, **settings):
    trainer, checkpoint = told
    voices, reports = Voices(people, torch.zeros(50, 384)), []
    hearing = teach_hearing(
        checkpoint, trainer.shapes, voices, path, settings=replace(QUICK, **settings), on_report=reports.append
    )
    return hearing, reports


def test_speech_is_told_as_the_shape_of_its_lips(told, people, tmp_path):
    """The file's U-Net is the averaged one with a projection before it, which makes of plain tokens what the teller
    makes of shapes, enlarged from their mean."""
    hearing, reports = taught(told, people, tmp_path / "heard.pt", gain=2.0)
    trainer = told[0]
    assert [r["step"] for r in reports] == [50, 100, 150]
    assert reports[-1]["error"] < 0.3
    moments = [(p, f) for p in (0, 1) for f in range(4, 22, 3)]
    audio = torch.stack([torch.from_numpy(people[p].audio[f]).float() for p, f in moments])
    shapes = torch.stack([trainer.shapes(*moment) for moment in moments])
    saved = torch.load(tmp_path / "heard.pt", weights_only=True)["unet"]
    before = trainer.average.module.state_dict()
    assert all(torch.equal(saved[name], value) for name, value in before.items())
    added = {name.removeprefix("audio_projection."): saved[name] for name in saved.keys() - before.keys()}
    hearing.projection.out = torch.nn.Linear(hearing.projection.out.in_features, 384)
    hearing.projection.load_state_dict(added)
    with torch.no_grad():
        tokens, wanted = hearing.projection(audio)[:, 0], trainer.teller(2 * shapes)
    assert ((tokens - wanted).square().mean() / wanted.var(0).mean()) < 0.4


def test_silence_and_no_tokens_have_their_shapes(told, people, tmp_path):
    silent, _ = taught(told, people, tmp_path / "heard.pt", steps=0, p_silent=1.0, p_unknown=0.0, noise=0.0)
    tokens, shapes = silent.draw()
    assert torch.equal(shapes, silent.shapes.silent.expand_as(shapes))
    assert torch.equal(tokens[0], silent.voices(Speech.SILENT, 0, np.random.default_rng(0)))
    unknown, _ = taught(told, people, tmp_path / "heard.pt", steps=0, p_unknown=1.0)
    tokens, shapes = unknown.draw()
    assert not tokens.any()
    assert not shapes.any()
