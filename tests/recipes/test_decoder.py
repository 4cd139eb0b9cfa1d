"""Tuning the autoencoder's decoder: on the true pictures of true latents, and resuming."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from recipes.nano.decoder import DecoderTrainer, DecoderTraining, train_decoder

from .people import floats, number_scenes, plain_vae

SHORT = DecoderTraining(steps=4, batch_size=2, report_every=1, adversarial_from=0.25)


@pytest.fixture(scope="module")
def scenes(speakers_two):
    return [number_scenes(speakers_two, 2), number_scenes(speakers_two, 2, seed=1)]


def off_color():
    vae = plain_vae()
    with torch.no_grad():
        vae.model.decoder.gain.fill_(0.05)
    return vae


def test_latents_are_drawn_with_their_own_mouths(scenes):
    trainer = DecoderTrainer(scenes, SHORT, plain_vae())
    known = [(scene.latents[i, s], scene.mouths[i, s]) for scene in scenes for i in range(2) for s in range(7)]
    drawn = [trainer.batch() for _ in range(20)]
    seen = set()
    for latents, mouths in drawn:
        for one, mouth in zip(latents, mouths, strict=True):
            which = next(i for i, (known_one, _) in enumerate(known) if torch.equal(known_one.float(), one))
            assert torch.equal(known[which][1], mouth)
            seen.add(which)
    assert len(seen) > 12


def test_colors_get_true(scenes):
    vae = off_color()
    trainer = DecoderTrainer(scenes, replace(SHORT, steps=30, learning_rate=0.05, adversarial_from=1.0), vae)
    losses = [floats(trainer.train_step()) for _ in range(24)]
    assert losses[-1]["l1"] < 0.5 * losses[0]["l1"]
    assert trainer.decoder.gain.item() == pytest.approx(0.15, abs=0.04)
    assert 0.05 < trainer.average.module.gain.item() < 0.19
    assert "d_loss" not in losses[-1]


def test_it_goes_on_as_if_it_had_not_stopped_and_its_average_is_taken(scenes, tmp_path):
    """After the critic has joined."""
    for i, part in enumerate(scenes):
        save_file(part.state(), tmp_path / f"0000{i}.safetensors")
    straight, first, second = (DecoderTrainer(scenes, SHORT, off_color()) for _ in range(3))
    wanted = [floats(straight.train_step()) for _ in range(4)]
    assert ["g_loss" in step for step in wanted] == [False, True, True, True]
    assert [floats(first.train_step()) for _ in range(2)] == wanted[:2]
    first.save(tmp_path / "decoder.pt")
    torch.manual_seed(99)
    lines = []
    done = train_decoder(tmp_path, tmp_path, SHORT, off_color(), on_report=lines.append)
    for line, step in zip(lines, wanted[2:], strict=True):
        assert {name: line[name] for name in step} == pytest.approx(step, abs=1e-5)
    second.load(tmp_path / "decoder.pt")
    assert second.step == 4
    for trainer in (done, second):
        assert torch.equal(trainer.decoder.gain, straight.decoder.gain)
        assert torch.equal(trainer.average.module.gain, straight.average.module.gain)
