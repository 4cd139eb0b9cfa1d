"""Tuning the autoencoder's decoder: on the true pictures of true latents, and resuming."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from latentsync.models.tiny_vae import TinyAutoencoder, TinyConfig, TinyVAE
from recipes.nano import decoder
from recipes.nano.decoder import DecoderTrainer, DecoderTraining, narrowed, train_decoder

from .people import CELLS, floats, number_scenes, plain_vae

SHORT = DecoderTraining(steps=4, batch_size=2, report_every=1, adversarial_from=0.25)


@pytest.fixture(scope="module")
def scenes(speakers_two):
    return [number_scenes(speakers_two, 2), number_scenes(speakers_two, 2, seed=1)]


def test_it_starts_with_the_first_channels():
    torch.manual_seed(0)
    wide = TinyVAE(TinyAutoencoder(TinyConfig((1,) * 4, (1,) * 4, 8, (8,) * 4))).eval().requires_grad_(False)
    latents, pixels = torch.randn(1, 4, 6, 6), torch.rand(1, 3, 48, 48) * 2 - 1
    same, slim = narrowed(wide, (8,) * 4), narrowed(wide, (8, 8, 6, 4))
    assert torch.equal(same.decode(latents), wide.decode(latents))
    assert slim.decode(latents).shape == (1, 3, 48, 48)
    assert torch.equal(slim.encode(pixels), wide.encode(pixels))
    last, whole = (list(vae.model.decoder.state_dict().values())[-2] for vae in (slim, wide))
    assert torch.equal(last, whole[:, :4])


def off_color():
    vae = plain_vae()
    with torch.no_grad():
        vae.model.decoder.gain.fill_(0.05)
    return vae


@pytest.mark.parametrize("mouth", [True, False])
def test_latents_are_drawn_with_their_own_pictures(scenes, mouth):
    trainer = DecoderTrainer(scenes, SHORT, plain_vae())
    states = range(7) if mouth else [0]
    known = [
        (scene.latents[i, s], scene.mouths[i, s] if mouth else scene.picture[i])
        for scene in scenes
        for i in range(2)
        for s in states
    ]
    seen = set()
    for latents, pictures in (trainer.batch(mouth) for _ in range(20)):
        for one, picture in zip(latents, pictures, strict=True):
            which = next(i for i, (known_one, _) in enumerate(known) if torch.equal(known_one.float(), one))
            assert torch.equal(known[which][1], picture)
            seen.add(which)
    assert len(seen) > (12 if mouth else 3)


def test_tiles_lie_everywhere_and_most_at_the_mouth(scenes, monkeypatch):
    """And each is compared with the same part of the picture."""
    trainer, seen = DecoderTrainer(scenes, SHORT, plain_vae()), torch.zeros(CELLS, CELLS)

    def decoded(vae, latents, tile):
        seen[tile] += 1
        return vae.decode(latents)[:, :, 8 * tile[0].start : 8 * tile[0].stop, 8 * tile[1].start : 8 * tile[1].stop]

    monkeypatch.setattr(decoder, "decode_tile", decoded)
    for _ in range(3000):
        made, true = trainer.pictures()
        assert torch.allclose(made, true, atol=0.01)
    assert (seen[1:-1, 1:-1] > 0).all()
    assert seen[13:17, 9:15].min() > 2000


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
