"""The built-in model's U-Net trainer on two synthetic clips: what a window is made of, who teaches what, resuming."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from latentsync.models.unet import UNet
from latentsync.weights.identify import identify
from recipes.nano import data
from recipes.nano.data import audio_whitening, fold_whitening, plain
from recipes.nano.export import export, trained_vae
from recipes.nano.unet import (
    UNetTrainer,
    UNetTraining,
    cell_weights,
    start_from,
    train_unet,
)
from recipes.nano.vae import train_vae

from .tiny_nano import SIDE, UNET, VAE, encode, encode_variants, floats, tiny_vae, two_clips


@pytest.fixture(scope="module")
def clips():
    return two_clips()


@pytest.fixture(scope="module")
def variants(clips):
    return encode_variants(clips)


def test_encode_clips(clips, variants):
    assert len(variants) == UNET.variants
    for variant in variants:
        for clip, latents in zip(clips, variant, strict=True):
            assert latents.name == clip.name
            assert latents.clean.shape == latents.masked.shape == (clip.train_frames, 4, SIDE // 8, SIDE // 8)
            assert latents.audio.shape == (clip.train_frames, 50, 384)
            assert latents.mouth.shape == (clip.train_frames, 3, 19, 22)
            assert (latents.clean != latents.masked).any()
    pixels = plain(SIDE)(clips[0].crops[:3], SIDE)
    assert torch.equal(variants[0][0].clean[:3], encode(pixels).half())
    assert not torch.equal(variants[1][0].clean, variants[0][0].clean)


def test_cells_of_the_lips_weigh_most():
    weights = cell_weights(UNetTraining())
    assert weights.shape == (20, 20)
    assert weights.mean() == pytest.approx(1)
    y, x = divmod(int(weights.argmax()), 20)
    assert 10 <= y <= 16
    assert 4 <= x <= 15
    assert weights[0, 0] == weights.min()


def test_windows(clips, variants):
    trainer = UNetTrainer(variants, clips, UNET, tiny_vae())
    for _ in range(10):
        window = trainer.window()
        frames = window["clean"].shape[1]
        assert window["clean"].shape == window["noise"].shape == (4, frames, SIDE // 8, SIDE // 8)
        assert window["masked"].shape == window["reference"].shape == window["clean"].shape
        assert window["audio"].shape == (frames, 50, 384)
        assert 0.4 < window["noise"].std() < 1.6


def test_how_a_window_is_heard(clips, variants):
    """As it was spoken or in another voice of the same clip, with noise of up to the given strength."""
    loud = [[dataclasses.replace(c, audio=c.audio + i) for c in variant] for i, variant in enumerate(variants)]
    heard = {}
    for own in (0.0, 1.0):
        quiet = dataclasses.replace(UNET, drop_audio=0, p_own_voice=own, audio_noise=0)
        trainer = UNetTrainer(loud, clips, quiet, tiny_vae())
        trainer.whitening = torch.eye(384)
        known = {(i, float(c.audio.float().mean())) for i, variant in enumerate(loud) for c in variant}
        means = [float(trainer.window()["audio"].mean()) for _ in range(20)]
        heard[own] = {min(known, key=lambda k: abs(k[1] - mean))[0] for mean in means}
    assert heard == {0.0: set(range(len(loud))), 1.0: {0}}
    trainer.settings = dataclasses.replace(trainer.settings, audio_noise=100.0)
    spreads = [float(trainer.window()["audio"].std()) for _ in range(20)]
    assert min(spreads) < 30 < 70 < max(spreads) <= 101


@pytest.mark.parametrize("held", [0.0, 1.0])
def test_the_masked_picture_may_be_held(clips, variants, held):
    moving = [[dataclasses.replace(c, masked=c.clean) for c in variant] for variant in variants]
    trainer = UNetTrainer(moving, clips, dataclasses.replace(UNET, p_static_masked=held, latent_augment=0), tiny_vae())
    for _ in range(10):
        window = trainer.window()
        moves = (window["masked"] - window["masked"][:, :1]).abs().amax()
        assert (moves == 0) == bool(held)
        assert (window["clean"] - window["clean"][:, :1]).abs().amax() > 0


def test_a_disguise_is_taken_off_again(clips, variants):
    """It changes all latents of a window alike, but not the gray of the mask."""
    masked = [[dataclasses.replace(c, masked=c.clean) for c in variant] for variant in variants]
    bare, worn = (
        UNetTrainer(
            masked,
            clips,
            dataclasses.replace(UNET, latent_augment=strength, p_static_masked=0, p_static_reference=0),
            tiny_vae(),
        )
        for strength in (0.0, 0.5)
    )
    for seed in range(5):
        windows = []
        for trainer in (bare, worn):
            trainer.random = np.random.default_rng(seed)
            windows.append(trainer.window())
        plain, other = windows
        assert not torch.allclose(other["clean"], plain["clean"], atol=0.1)
        for name in ("clean", "reference"):
            assert torch.allclose((other[name] - other["offset"]) / other["gain"], plain[name], atol=1e-5)
        change = (other["masked"] - plain["masked"]).abs().amax((0, 1))
        assert ((change > 0) == (worn.mask > 0.5)).float().mean() > 0.9
        assert (change[worn.mask < 0.5] == 0).all()


@pytest.mark.parametrize("held", [0.0, 1.0])
def test_a_reference_is_of_another_time(clips, variants, held):
    def numbered(clip):
        count = torch.arange(len(clip.clean)).view(-1, 1, 1, 1)
        return dataclasses.replace(clip, clean=count.expand_as(clip.clean).half())

    settings = dataclasses.replace(UNET, p_static_reference=held, latent_augment=0)
    trainer = UNetTrainer([[numbered(c) for c in variant] for variant in variants], clips, settings, tiny_vae())
    seen = set()
    for _ in range(40):
        window = trainer.window()
        shown, reference = (window[name][0, :, 0, 0] for name in ("clean", "reference"))
        if held:
            assert len(set(reference.tolist())) == 1
        else:
            lags = set((reference - shown).tolist())
            assert len(lags) == 1
            assert 5 <= abs(lags.pop()) <= 30
        seen |= set((reference - shown).sign().tolist())
    assert {-1.0, 1.0} <= seen


def test_whitening_can_be_folded_into_the_weights(clips, variants):
    """What the trainer feeds whitened, the finished file hears plain."""
    whitening = audio_whitening(variants)
    torch.manual_seed(0)
    unet = UNet(UNET.config).eval()
    sample, audio = torch.randn(1, 13, 2, 4, 4), variants[0][0].audio[:2][None].float()
    whitened = unet(sample, 500, audio @ whitening.T)
    folded = UNet(UNET.config).eval()
    folded.load_state_dict(fold_whitening(unet.state_dict(), whitening))
    assert torch.allclose(folded(sample, 500, audio), whitened, atol=1e-4)
    tokens = torch.cat([clip.audio[::4].float()[:, 25:30] for clip in variants[0]]) @ whitening.T
    assert tokens.mean(0).abs().max() < 0.01 * tokens.std()


def test_the_whitening_of_a_run_stays_its_own(clips, variants, tmp_path):
    first = UNetTrainer(variants, clips, UNET, tiny_vae())
    first.save(tmp_path / "unet.pt")
    other = [[dataclasses.replace(c, audio=c.audio.flip(0) * 2 + 1) for c in variant] for variant in variants]
    second = UNetTrainer(other, clips, UNET, tiny_vae())
    assert not torch.allclose(second.whitening, first.whitening)
    second.load(tmp_path / "unet.pt")
    assert torch.equal(second.whitening, first.whitening)
    short = dataclasses.replace(UNET, steps=1)
    third = train_unet(other, clips, tmp_path / "new", short, tiny_vae(), init=tmp_path / "unet.pt")
    assert torch.equal(third.whitening, first.whitening)


def test_unet_learns(clips, variants):
    trainer = UNetTrainer(variants, clips, dataclasses.replace(UNET, pixel_losses_from=1), tiny_vae())
    losses = [floats(trainer.train_step()) for _ in range(40)]
    assert np.mean([x["clean"] for x in losses[-10:]]) < 0.5 * np.mean([x["clean"] for x in losses[:3]])
    assert all(math.isfinite(v) for x in losses for v in x.values())


def test_the_decoder_learns_once_mouths_are_judged(clips, variants):
    trainer = UNetTrainer(variants, clips, dataclasses.replace(UNET, steps=2), tiny_vae())
    gains = [trainer.decoder.gain.item()]
    for _ in range(2):
        trainer.train_step()
        gains.append(trainer.decoder.gain.item())
    assert gains[0] == gains[1] != gains[2]
    assert float(trainer.average_decoder.module.gain) != gains[0]


def test_only_the_lips_are_judged(clips, variants):
    """Elsewhere the network shows the reference, which is of another moment."""
    trainer = UNetTrainer(variants, clips, dataclasses.replace(UNET, decoded_frames=4, frames=2), tiny_vae())
    clean, mouth = (torch.stack([trainer.window()[name] for _ in range(2)]) for name in ("clean", "mouth"))
    judged = []
    for rows, columns in (((0, 0), (0, 0)), ((0, 1), (0, 4)), ((2, 3), (1, 3))):
        latents = clean.clone()
        latents[..., slice(*rows), slice(*columns)] += 5
        judged.append(trainer.pixel_losses(latents, mouth)["l1"].item())
    assert judged[0] == pytest.approx(judged[1], rel=1e-5)
    assert judged[0] != pytest.approx(judged[2], rel=1e-2)


def test_decoded_mouths_are_judged_in_the_second_half(clips, variants):
    """And what the judges say reaches every layer, so that a network which they alone teach gets nearer the truth."""
    trainer = UNetTrainer(variants, clips, dataclasses.replace(UNET, steps=4), tiny_vae())
    losses = [trainer.train_step() for _ in range(4)]
    assert ["l1" in step for step in losses] == [False, False, True, True]
    assert all(math.isfinite(v) for step in losses for v in step.values())

    data = torch.stack([trainer.window()["clean"] for _ in range(2)]).requires_grad_()
    mouths = torch.stack([trainer.window()["mouth"] for _ in range(2)])
    judged = trainer.pixel_losses(data, mouths)
    trainer._pixel_total(judged, data).backward()
    assert (data.grad != 0).any()
    exact = [trainer.pixel_losses(latents, seen)["l1"] for latents, seen in _own_and_other_mouths(trainer)]
    assert exact[0] < 0.8 * exact[1]


def _own_and_other_mouths(trainer):
    windows = [trainer.window() for _ in range(2)]
    clean, mouth, gain, offset = (
        torch.stack([w[name] for w in windows]) for name in ("clean", "mouth", "gain", "offset")
    )
    clean = (clean - offset) / gain
    return (clean, mouth), (clean, 255 - mouth)


def test_more_latent_channels_start_from_few(variants, clips):
    """The new ones count for nothing at first: the wider network says what the narrow one says."""
    torch.manual_seed(0)
    narrow = UNet(UNET.config).eval()
    wide = UNet(dataclasses.replace(UNET, latent_channels=6).config).eval()
    start_from(wide, narrow.state_dict())
    parts = [torch.randn(1, 6, 2, 4, 4), torch.randn(1, 1, 2, 4, 4), *torch.randn(2, 1, 6, 2, 4, 4)]
    few = [part[:, :4] for part in parts]
    audio = torch.randn(1, 2, 50, 384)
    made = wide(torch.cat(parts, 1), 500, audio)
    assert torch.allclose(made[:, :4], narrow(torch.cat(few, 1), 500, audio), atol=1e-5)
    assert torch.equal(made[:, 4:], parts[-1][:, 4:]), "the reference, to which nothing is added"


def test_other_voices_say_the_same_at_the_same_time():
    pytest.importorskip("librosa")
    rate, time = 16000, torch.arange(16000) / 16000
    sound = torch.sin(2 * torch.pi * 220 * time) * (time > 0.5)
    for name, voice in data.other_voices(sound, rate).items():
        assert voice.shape == sound.shape
        assert not torch.equal(voice, sound)
        early, late = voice[:7000].std(), voice[9000:].std()
        assert late > 5 * early, name


def test_unet_goes_on_as_if_it_had_not_stopped(clips, variants, tmp_path):
    """Across the moment when the judges join."""
    short = dataclasses.replace(UNET, steps=6)
    straight = UNetTrainer(variants, clips, short, tiny_vae())
    wanted = [floats(straight.train_step()) for _ in range(6)]
    first = UNetTrainer(variants, clips, short, tiny_vae())
    assert [floats(first.train_step()) for _ in range(2)] == wanted[:2]
    first.save(tmp_path / "unet.pt")
    second = UNetTrainer(variants, clips, short, tiny_vae())
    torch.manual_seed(99)  # whatever happened in between
    second.load(tmp_path / "unet.pt")
    assert [floats(second.train_step()) for _ in range(4)] == wanted[2:]
    assert torch.equal(second.average_decoder.module.gain, straight.average_decoder.module.gain)


def test_train_unet_stopped_and_started_ends_the_same(clips, variants, tmp_path):
    class Stopped(Exception):
        pass

    def stop(line):
        if line["step"] == 6:
            raise Stopped

    short = dataclasses.replace(UNET, steps=7, report_every=1)
    whole = train_unet(variants, clips, tmp_path / "whole", short, tiny_vae())
    with pytest.raises(Stopped):
        train_unet(variants, clips, tmp_path / "parts", short, tiny_vae(), on_report=stop)
    parts = train_unet(variants, clips, tmp_path / "parts", short, tiny_vae())
    assert parts.step == whole.step == 7
    for key, value in whole.unet.state_dict().items():
        assert torch.equal(parts.unet.state_dict()[key], value), key


def test_a_finished_run_becomes_a_file_that_loads(clips, variants, tmp_path):
    from latentsync.weights.load import load_unet
    from latentsync.weights.vae_files import load_vae

    train_vae(clips, tmp_path, dataclasses.replace(VAE, steps=2))
    learning = trained_vae(tmp_path / "vae.pt", clips)
    train_unet(variants, clips, tmp_path, dataclasses.replace(UNET, steps=2, pixel_losses_from=0), learning)
    vae = trained_vae(tmp_path / "vae.pt", clips)
    path = export(vae, tmp_path / "unet.pt", tmp_path / "nano.safetensors", clips)
    unet, again = load_unet(path), load_vae(path)
    stated = {"prediction_type": "sample", "resolution": SIDE, "default_steps": 1, "default_guidance": 2.0}
    assert unet.config == dataclasses.replace(UNET.config, **stated)
    assert again.scaling == pytest.approx(vae.scaling)
    pixels = torch.rand(1, 3, SIDE, SIDE) * 2 - 1
    assert torch.allclose(again.encode(pixels), vae.encode(pixels), atol=0.02)
    latents = vae.encode(pixels)
    before = trained_vae(tmp_path / "vae.pt", clips).decode(latents)
    learnt = vae.decode(latents)
    assert (again.decode(latents) - learnt).abs().mean() < 0.1 * (before - learnt).abs().mean(), "the U-Net's decoder"
    assert path.stat().st_size < 24e6
    rows = json.loads(identify(path).metadata["latent_rgb"])
    assert [len(row) for row in rows] == [3] * (unet.config.latent_channels + 1)
