"""A narrower decoder taught by the tuned one: what it starts from, what it sees, and the file that has it."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentsync.models.tiny_vae import TinyAutoencoder, TinyConfig, TinyVAE
from latentsync.weights.convert import save_model
from latentsync.weights.files import our_metadata
from latentsync.weights.load import load_unet
from latentsync.weights.vae_files import load_vae
from recipes.nano.data import RESOLUTION
from recipes.nano.slim import SlimTrainer, SlimTraining, narrowed, train_slim

from ..tiny import tiny_checkpoint
from .people import floats, number_scenes

WIDTHS = (8, 8, 6, 4)
SHORT = SlimTraining(widths=WIDTHS, steps=4, batch_size=4, report_every=1, adversarial_from=0.5)


@pytest.fixture(scope="module")
def scenes(speakers_two):
    return [number_scenes(speakers_two, 4)]


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    return load_unet(tiny_checkpoint(tmp_path_factory.mktemp("slim") / "tiny.safetensors", motion="none"))


def teacher():
    torch.manual_seed(0)
    return TinyVAE(TinyAutoencoder(TinyConfig((1,) * 4, (1,) * 4, 8, (8,) * 4))).eval().requires_grad_(False)


def test_it_starts_with_the_first_channels():
    wide = teacher()
    latents, pixels = torch.randn(1, 4, 6, 6), torch.rand(1, 3, 48, 48) * 2 - 1
    same, slim = narrowed(wide, (8,) * 4), narrowed(wide, WIDTHS)
    assert torch.equal(same.decode(latents), wide.decode(latents))
    assert slim.decode(latents).shape == (1, 3, 48, 48)
    assert torch.equal(slim.encode(pixels), wide.encode(pixels))
    last, whole = (list(vae.model.decoder.state_dict().values())[-2] for vae in (slim, wide))
    assert torch.equal(last, whole[:, :4])


def test_half_of_what_it_sees_is_what_the_unet_makes_of_what_is_said(scenes, unet, speakers_two):
    trainer = SlimTrainer(scenes, replace(SHORT, batch_size=40), teacher(), unet, speakers_two)
    calls = []
    trainer.unet = lambda *inputs: calls.append(inputs) or unet(*inputs)
    drawn = trainer.latents()
    sample, step, tokens = calls[0]
    made = len(sample)
    assert (step, len(drawn)) == (999, 40)
    assert 10 <= made <= 20  # of silent states there is nothing to hear
    assert torch.equal(drawn[:made], unet(sample, 999, tokens)[:, :, 0])
    scene = scenes[0]
    states = scene.latents.float().flatten(0, 1)
    assert all((states == one).flatten(1).all(1).any() for one in drawn[made:])
    keep = sample[0, 4, 0]
    for one, heard in zip(sample[:, :, 0], tokens[:, 0], strict=True):
        which = next(i for i in range(len(scene)) if torch.equal(scene.masked[i].float(), one[5:9]))
        assert torch.equal(one[4], keep)
        assert any(torch.equal(scene.latents[which, s].float(), one[9:]) for s in range(7))
        said = zip(scene.person[which].tolist(), scene.frame[which].tolist(), strict=True)
        assert any((torch.from_numpy(speakers_two[p].audio[f]).float() == heard).all() for p, f in said if p >= 0)


def test_tiles_lie_everywhere_and_most_at_the_mouth(scenes, unet, speakers_two):
    trainer = SlimTrainer(scenes, SHORT, teacher(), unet, speakers_two)
    tiles = [trainer._tile() for _ in range(4000)]
    seen = torch.zeros(RESOLUTION // 8, RESOLUTION // 8)
    for rows, columns in tiles:
        seen[rows, columns] += 1
    assert (seen[1:-1, 1:-1] > 0).all()
    assert seen[13:17, 9:15].min() > 2400


def test_it_comes_near_to_its_teacher(scenes, unet, speakers_two):
    settings = replace(SHORT, steps=30, learning_rate=1e-2, adversarial_from=1.0)
    trainer = SlimTrainer(scenes, settings, teacher(), unet, speakers_two)
    losses = [floats(trainer.train_step())["l1"] for _ in range(30)]
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])


def test_the_file_gets_the_narrower_decoder_and_keeps_the_rest(scenes, unet, speakers_two, tmp_path):
    vae = teacher().model.state_dict()
    facts = {"version": "nano", "resolution": 64, "prediction_type": "sample", "vae_scaling": 1.0}
    file = save_model(tmp_path / "wide.safetensors", unet.state_dict(), vae_state=vae, metadata=facts)
    (tmp_path / "scenes").mkdir()
    save_file(scenes[0].state(), tmp_path / "scenes" / "00000.safetensors")
    settings = replace(SHORT, steps=2)
    paths = file, tmp_path / "scenes", speakers_two, tmp_path, tmp_path / "slim.safetensors"
    train_slim(*paths, replace(settings, steps=1))
    trainer = train_slim(*paths, settings)
    assert trainer.step == 2
    old, new = load_file(file), load_file(paths[-1])
    kept = [name for name in old if not name.startswith("vae.decoder.")]
    assert all(torch.equal(old[name], new[name]) for name in kept)
    average = trainer.average.module.state_dict()
    assert {name: value.shape for name, value in new.items() if name not in kept} == {
        f"vae.decoder.{name}": value.shape for name, value in average.items()
    }
    assert our_metadata(paths[-1]) == our_metadata(file)
    vae, latents = load_vae(paths[-1]), torch.randn(1, 4, 6, 6)
    assert vae.model.config.decoder_widths == settings.widths
    with torch.no_grad():
        wanted = trainer.average.module(latents)
    assert torch.allclose(vae.decode(latents), wanted, atol=0.01)
