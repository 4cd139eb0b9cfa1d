"""The file of a finished run: what it says of itself, and that it is the averaged network, for plain tokens."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from latentsync.models.tiny_vae import TinyAutoencoder, TinyConfig, TinyVAE
from latentsync.models.unet_blocks import AUDIO_TIMES
from latentsync.weights.convert import save_model
from latentsync.weights.files import our_metadata
from latentsync.weights.identify import identify
from latentsync.weights.load import load_unet
from latentsync.weights.registry import ASSETS, find
from latentsync.weights.vae_files import load_vae
from recipes.nano.again import start_again
from recipes.nano.data import MARGIN, RESOLUTION, prepare_stills
from recipes.nano.decoder import narrowed, with_decoder, with_tuned_decoder
from recipes.nano.export import DEFAULT_GUIDANCE, DEFAULT_STEPS, exchange_decoder, export, latent_rgb
from recipes.nano.hearing import Hearing, HearingTraining, teach_hearing
from recipes.nano.unet import UNetTrainer, settings_of

from ..tiny import tiny_checkpoint
from .people import UNET, number_scenes, portrait, speaker

NARROW = (8, 8, 6, 4)


def tiny_vae(seed=0):
    """An autoencoder of TAESD's kind with few channels."""
    torch.manual_seed(seed)
    blocks = (1,) * 4
    return TinyVAE(TinyAutoencoder(TinyConfig(blocks, blocks, 8, (8,) * 4))).eval().requires_grad_(False)


def test_a_finished_run_becomes_a_file_that_loads(face, tmp_path):
    openings = np.random.default_rng(1).uniform(0, 0.35, 48)
    people = [speaker(face, openings, name="ann_1", numbers=14), portrait(face)]
    learning = narrowed(tiny_vae(), NARROW)
    trainer = UNetTrainer([number_scenes(people, 2)], people, UNET, learning)
    for parameter in (*trainer.unet.parameters(), *trainer.decoder.parameters()):
        parameter.data += 0.02 * torch.randn_like(parameter)
    trainer.average.update_parameters(trainer.unet)
    trainer.average_decoder.update_parameters(trainer.decoder)
    trainer.step = 7
    trainer.save(tmp_path / "unet.pt")
    settings = HearingTraining(directions=20, rank=9)
    hearing = Hearing(people, trainer.shapes, torch.zeros(50, 384), settings)
    teach_hearing(tmp_path / "unet.pt", hearing, tmp_path / "heard.pt")

    vae = tiny_vae()
    path = export(vae, tmp_path / "heard.pt", tmp_path / "nano.safetensors", people)
    info, unet = identify(path), load_unet(path)
    assert info.problem is None
    assert (info.kind, info.version, info.resolution, info.prediction_type) == ("nano", "nano", RESOLUTION, "sample")
    stated = (unet.config.residual, unet.config.default_steps, unet.config.default_guidance)
    assert stated == ("jaw", DEFAULT_STEPS, DEFAULT_GUIDANCE)
    assert (unet.config.widths, unet.config.cross, unet.config.groups) == ((16, 32), (False, True), 8)
    assert unet.config.audio_rank == settings.rank
    assert [len(row) for row in json.loads(info.metadata["latent_rgb"])] == [3] * 5
    assert (info.metadata["vae_scaling"], info.metadata["steps"], info.metadata["license"]) == (
        "1.0",
        "7",
        "Apache-2.0",
    )

    sample, audio = torch.randn(1, 13, 2, 8, 8), torch.from_numpy(people[0].audio[5:7])[None].float()
    average = trainer.average.module.eval()
    with torch.no_grad():
        shapes = settings.gain * hearing.projection(audio[0])
        told = trainer.teller(shapes).expand(-1, 50, -1)[None]
        assert torch.allclose(unet(sample, 999, audio), average(sample, 999, told), atol=0.02)
        assert not torch.allclose(trainer.unet(sample, 999, told), average(sample, 999, told), atol=0.05)

    signs = (-1.0) ** torch.arange(settings.rank)  # as another machine's linear algebra may choose them
    hearing.projection.mix.weight.data *= signs[:, None]
    hearing.projection.out.weight.data *= signs.repeat(AUDIO_TIMES)
    goes_on = start_again(path, [number_scenes(people, 1)], people, hearing, tmp_path / "again.pt", UNET)
    for part, wanted in (("teller", trainer.teller), ("unet", average), ("average", average)):
        for name, value in goes_on.parts()[part].state_dict().items():
            assert torch.allclose(value, wanted.state_dict()[name], atol=6e-3), f"{part}.{name}"
    assert settings_of(tmp_path / "again.pt") == UNET

    inside = {key.removeprefix("vae."): v for key, v in load_file(path).items() if key.startswith("vae.")}
    wanted = trainer.average_decoder.module.state_dict()
    assert load_vae(path).model.config.decoder_widths == NARROW
    assert all(torch.equal(inside[f"decoder.{key}"], value.half()) for key, value in wanted.items())
    encoder = tiny_vae().model.encoder.state_dict()
    assert all(torch.equal(inside[f"encoder.{key}"], value.half()) for key, value in encoder.items())
    assert len(inside) == len(wanted) + len(encoder)
    latents, pixels = torch.randn(1, 4, 4, 4), torch.rand(1, 3, 32, 32) * 2 - 1
    again, made = load_vae(path), with_decoder(vae, wanted)
    with torch.no_grad():
        assert torch.allclose(again.decode(latents), made.decode(latents), atol=0.01)
        assert torch.allclose(again.encode(pixels), vae.encode(pixels), atol=0.01)


def test_a_finished_model_takes_the_decoder_of_another_run(tmp_path):
    old, new = tiny_vae(1), narrowed(tiny_vae(2), NARROW)
    facts = {"version": "nano", "resolution": 64, "prediction_type": "sample", "vae_scaling": 1.0}
    unet = load_unet(tiny_checkpoint(tmp_path / "tiny.safetensors", motion="none")).state_dict()
    file = save_model(tmp_path / "old.safetensors", unet, vae_state=old.model.state_dict(), metadata=facts)
    torch.save({"average_decoder": new.model.decoder.state_dict()}, tmp_path / "unet.pt")
    path = exchange_decoder(file, tmp_path / "unet.pt", tmp_path / "new.safetensors")
    before, after = load_file(file), load_file(path)
    kept = [name for name in before if not name.startswith("vae.decoder.")]
    assert all(torch.equal(before[name], after[name]) for name in kept)
    assert our_metadata(path) == our_metadata(file)
    latents, pixels = torch.randn(1, 4, 6, 6), torch.rand(1, 3, 48, 48) * 2 - 1
    made = load_vae(path)
    assert made.model.config.decoder_widths == NARROW
    assert torch.allclose(made.decode(latents), new.decode(latents), atol=0.01)
    assert torch.allclose(made.encode(pixels), load_vae(file).encode(pixels))


@pytest.mark.parametrize(("picture", "eyes", "mouth"), [("portrait.jpg", 30.7, 37), ("astronaut.jpg", 25.3, 28)])
def test_the_shipped_autoencoder_shows_eyes_as_well_as_mouths(finder, picture, eyes, mouth):
    """PSNR in dB. A decoder that was trained at the mouth alone let people squint: 29.7 and 24.2 at the eyes."""
    inner = slice(RESOLUTION // MARGIN, RESOLUTION // MARGIN + RESOLUTION)
    crop = prepare_stills([ASSETS / picture], finder)["crops"][0][inner, inner]
    vae, true = load_vae(find("nano")), torch.from_numpy(crop).permute(2, 0, 1)[None] / 127.5 - 1
    error = (vae.decode(vae.encode(true)).clamp(-1, 1) - true).square()
    parts = {eyes: (slice(45, 75), slice(40, 152)), mouth: (slice(100, 180), slice(45, 147))}
    for least, (rows, columns) in parts.items():
        assert 10 * torch.log10(4 / error[..., rows, columns].mean()) > least


def test_previews_are_the_colors_that_latents_stand_for():
    """Least squares find a map that is known, and its bias."""
    colors = torch.tensor([[0.5, 0.0, 0.1], [0.0, 2.0, 0.0], [0.3, 0.0, -1.0]])
    pool = torch.nn.functional.avg_pool2d

    def encode(pixels):
        return torch.einsum("nchw,cd->ndhw", pool(pixels, 8) - 0.25, torch.linalg.inv(colors))

    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    rows = latent_rgb(SimpleNamespace(encode=encode, factor=8), images)
    assert torch.tensor(rows[:3]) == pytest.approx(colors, abs=1e-3)
    assert rows[3] == pytest.approx([0.25] * 3, abs=1e-3)


def test_the_decoder_of_the_stage_before_goes_on(tmp_path):
    """That of the U-Net's training once it has begun, whatever its widths; the encoder stays."""
    tuned, later = tiny_vae(1), narrowed(tiny_vae(2), NARROW)
    torch.save({"average": tuned.model.decoder.state_dict()}, tmp_path / "decoder.pt")
    latents, pixels = torch.randn(1, 4, 6, 6), torch.rand(1, 3, 48, 48) * 2 - 1
    for wanted in (tuned, later):
        found = with_tuned_decoder(tiny_vae(), tmp_path)
        assert torch.allclose(found.decode(latents), wanted.decode(latents), atol=1e-5)
        assert torch.allclose(found.encode(pixels), tiny_vae().encode(pixels), atol=1e-5)
        torch.save({"average_decoder": later.model.decoder.state_dict()}, tmp_path / "unet.pt")
