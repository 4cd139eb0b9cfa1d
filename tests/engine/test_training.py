"""The trainers on two synthetic clips: losses fall, runs resume as if never stopped, held-out time stays unseen."""

import dataclasses
import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentsync.errors import UserError
from latentsync.models.unet import UNet
from latentsync.training import data, vae
from latentsync.training.data import HELD_OUT, MARGIN, Clip, load_clips, plain, random_augmentation
from latentsync.training.evaluate import lip_sharpness
from latentsync.training.loop import Log, MovingAverage, learning_rate, save_checkpoint
from latentsync.training.nano import CLIPS, clip_paths, export, trained_vae
from latentsync.training.pictures import balance, texture_loss
from latentsync.training.unet import (
    UNetTrainer,
    UNetTraining,
    audio_whitening,
    cell_weights,
    encode_clips,
    fold_whitening,
    start_from,
    train_unet,
)
from latentsync.training.vae import VAETrainer, VAETraining, build_vae, clip_chances, latent_scale, train_vae

from ..tiny import pan

SIDE = 32
VAE = VAETraining(
    resolution=SIDE, widths=(16, 16, 16, 16), latent_channels=4, steps=8, batch=2, tile=32, report_every=2, rate=3e-3
)
UNET = UNetTraining(
    resolution=SIDE, widths=(32, 32), cross=(False, True), latent_channels=4, steps=60, batch=2, variants=2,
    report_every=5, rate=3e-3,
)  # fmt: skip


def make_clip(name, frames=64, seed=0):
    """A grey face whose mouth is a dark bar that opens with the sound's first number."""
    random = np.random.default_rng(seed)
    side = SIDE + 2 * (SIDE // MARGIN)
    opening = (np.sin(np.arange(frames) / 3 + seed) * 0.5 + 0.5).astype(np.float32)
    crops = np.full((frames, side, side, 3), 150, np.uint8)
    crops[:, ::8] = 120
    for crop, value in zip(crops, opening, strict=True):
        middle, half = round(0.7 * side), round(1 + 4 * value)
        crop[middle - half : middle + half, side // 3 : 2 * side // 3] = 30
    audio = 0.1 * random.standard_normal((frames, 50, 384)).astype(np.float16)
    audio[:, :, :8] = opening[:, None, None]
    return Clip(name, 25.0, crops, audio, opening)


@pytest.fixture(scope="module")
def clips():
    return [make_clip("anna_1"), make_clip("ben_1", frames=48, seed=1)]


def encode(pixels):
    """Any fixed map from pixels to a grid of a factor 8 will do for the U-Net."""
    return torch.nn.functional.avg_pool2d(pixels, 8)[:, [0, 1, 2, 0]]


@pytest.fixture(scope="module")
def variants(clips):
    return encode_clips(clips, encode, UNET)


def decode(latents):
    """The way back, blurred."""
    return torch.nn.functional.interpolate(latents[:, :3], scale_factor=8, mode="bilinear")


def floats(losses):
    return {name: float(value) for name, value in losses.items()}


# ---- data ----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.sampled_from((32, 64, 160)))
@settings(max_examples=20, deadline=None)
def test_augmentation_keeps_shape_and_range(seed, side):
    wide = side + 2 * (side // MARGIN)
    crops = np.random.default_rng(0).integers(0, 256, (2, wide, wide, 3), dtype=np.uint8)
    pixels = random_augmentation(np.random.default_rng(seed), side)(crops, side)
    assert pixels.shape == (2, 3, side, side)
    assert pixels.dtype == torch.float32
    assert pixels.is_contiguous()
    assert -1 <= pixels.min() < pixels.max() <= 1


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_augmentation_stays_within_the_margin(seed):
    """A white picture must come out without a black corner, and the mouth near its place."""
    wide = 160 + 2 * (160 // MARGIN)
    white = np.full((1, wide, wide, 3), 255, np.uint8)
    spot = np.zeros((1, wide, wide, 3), np.uint8)
    spot[:, wide // 2 - 4 : wide // 2 + 4, wide // 2 - 4 : wide // 2 + 4] = 255
    change = random_augmentation(np.random.default_rng(seed), 160)
    still = dataclasses.replace(change, gain=np.eye(3, dtype=np.float32), offset=np.zeros(3, np.float32))
    assert (still(white, 160) > -1).float().mean() > 0.99
    bright = (still(spot, 160)[0].mean(0) + 1).numpy()
    y, x = (np.average(np.arange(160), weights=bright.sum(axis)) for axis in (1, 0))
    assert abs(x - 79.5) < 8
    assert abs(y - 79.5) < 8


def test_plain_cuts_the_margin_off():
    wide, margin = 40, 4
    crops = np.random.default_rng(0).integers(0, 256, (1, wide, wide, 3), dtype=np.uint8)
    expected = crops[0, margin:-margin, margin:-margin].transpose(2, 0, 1) / 127.5 - 1
    assert np.allclose(plain(32)(crops, 32)[0].numpy(), expected, atol=1e-6)


def test_the_same_change_for_every_frame_of_a_window(clips):
    change = random_augmentation(np.random.default_rng(3), SIDE)
    both = change(np.repeat(clips[0].crops[:1], 2, 0), SIDE)
    assert torch.equal(both[0], both[1])


def test_prepared_clips_are_read_back(clips, tmp_path):
    from safetensors.numpy import save_file

    with pytest.raises(UserError, match="no prepared clips"):
        load_clips(tmp_path)
    for clip in reversed(clips):
        tensors = {"crops": clip.crops, "audio": clip.audio, "opening": clip.opening}
        save_file(tensors, tmp_path / f"{clip.name}.safetensors", {"name": clip.name, "fps": str(clip.fps)})
    again = load_clips(tmp_path)
    assert [clip.name for clip in again] == ["anna_1", "ben_1"]
    assert np.array_equal(again[0].crops, clips[0].crops)
    assert again[1].person == "ben"
    assert again[1].train_frames == 36


def test_a_clip_that_cannot_be_used_is_left_out(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    said = []
    data.prepare([tmp_path / "text.mp4"], tmp_path / "out", None, None, resolution=32, on_clip=said.append)
    assert len(said) == 1
    assert said[0].startswith("text.mp4: left out, ")
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_people_with_much_footage_count_less_than_in_proportion():
    clips = [make_clip("anna_1", 400), make_clip("ben_1", 100), make_clip("ben_2", 100)]
    chances = clip_chances(clips)
    assert chances.sum() == pytest.approx(1)
    assert chances[0] / (chances[1] + chances[2]) == pytest.approx(math.sqrt(300 / 150))
    assert chances[1] == chances[2]


# ---- held-out time -------------------------------------------------------------------------------------------------


class Watched(np.ndarray):
    """Crops that remember which of them were looked at."""

    def __getitem__(self, key):
        if self.ndim == 4 and hasattr(self, "used"):
            self.used.update(np.atleast_1d(np.arange(len(self))[key]).tolist())
        return np.asarray(super().__getitem__(key))


def watched(clip):
    crops = clip.crops.copy().view(Watched)
    crops.used = set()
    audio = clip.audio.copy()
    audio[clip.train_frames :] = np.nan
    return dataclasses.replace(clip, crops=crops, audio=audio)


def test_held_out_frames_are_never_used(clips):
    clips = [watched(clip) for clip in clips]
    trainer = VAETrainer(clips, VAE)
    for _ in range(60):
        trainer.batch()
    latent_scale(trainer.vae, clips, VAE)
    assert [max(clip.crops.used) for clip in clips] <= [47, 35]
    assert all(len(clip.crops.used) > 0.8 * clip.train_frames for clip in clips)
    variants = encode_clips(clips, encode, UNET)
    for clip in clips:
        assert clip.crops.used == set(range(clip.train_frames))
        assert clip.train_frames == int(len(clip.crops) * (1 - HELD_OUT))
    unet = UNetTrainer(variants, clips, UNET, decode)
    assert all(unet.window()["audio"].isfinite().all() for _ in range(60))


# ---- VAE -----------------------------------------------------------------------------------------------------------


def test_vae_learns_and_the_critic_joins(clips):
    many = dataclasses.replace(VAE, steps=40, batch=4, critic_from=0.75)
    trainer = VAETrainer(clips, many)
    losses = [floats(trainer.train_step()) for _ in range(34)]
    assert np.mean([x["l1"] for x in losses[-8:]]) < 0.7 * np.mean([x["l1"] for x in losses[:4]])
    assert "critic" not in losses[29]
    assert {"critic", "fool", "features"} <= losses[30].keys()
    assert all(math.isfinite(v) for x in losses for v in x.values())


def test_a_vae_with_more_channels_starts_from_one_with_few():
    few, many = (build_vae(dataclasses.replace(VAE, latent_channels=n)) for n in (4, 6))
    vae.start_from(many, few.state_dict())
    assert torch.equal(many.encoder.conv_out.weight[:4], few.encoder.conv_out.weight[:4])
    assert torch.equal(many.encoder.conv_out.weight[6:10], few.encoder.conv_out.weight[4:])
    assert torch.equal(many.decoder.conv_in.weight[:, :4], few.decoder.conv_in.weight)
    assert torch.equal(many.decoder.conv_out.weight, few.decoder.conv_out.weight)


def test_texture_is_compared_whatever_its_place():
    """A picture blurred is worse by texture than one whose grain lies elsewhere; by plain difference it is better."""
    torch.manual_seed(0)
    grain, other = torch.randn(2, 1, 3, 64, 64) * 0.2
    blurred = torch.nn.functional.avg_pool2d(grain, 5, 1, 2)
    assert texture_loss(blurred, grain) > 3 * texture_loss(other, grain)
    assert (blurred - grain).abs().mean() < (other - grain).abs().mean()


def test_the_critic_pulls_as_hard_as_the_rest_once_it_can_tell():
    made = torch.randn(2, 3, 8, 8, requires_grad=True)
    total, fool = (made * 3).square().sum(), -made.mean()
    for hinge, share in ((0.0, 1.0), (1.0, 0.5), (2.0, 0.0), (2.5, 0.0)):
        factor = balance(total, {"fool": fool, "critic": torch.tensor(hinge)}, made, most=1e6)
        pulls = [torch.autograd.grad(loss, made, retain_graph=True)[0].norm() for loss in (total, factor * fool)]
        assert float(pulls[1]) == pytest.approx(share * float(pulls[0]), rel=0.01)


def test_vae_encoder_is_frozen_once_the_critic_joins(clips):
    trainer = VAETrainer(clips, dataclasses.replace(VAE, critic_from=0.0))
    before = {k: v.clone() for k, v in trainer.vae.state_dict().items()}
    trainer.train_step()
    moved = {k.split(".")[0] for k, v in trainer.vae.state_dict().items() if not torch.equal(v, before[k])}
    assert "decoder" in moved
    assert "encoder" not in moved


def test_vae_goes_on_as_if_it_had_not_stopped(clips, tmp_path):
    """Across the moment when the critic joins."""
    straight = VAETrainer(clips, VAE)
    wanted = [floats(straight.train_step()) for _ in range(6)]
    first = VAETrainer(clips, VAE)
    assert [floats(first.train_step()) for _ in range(3)] == wanted[:3]
    first.save(tmp_path / "vae.pt")
    second = VAETrainer(clips, VAE)
    second.load(tmp_path / "vae.pt")
    assert second.step == 3
    assert [floats(second.train_step()) for _ in range(3)] == wanted[3:]
    for key, value in straight.average.state.items():
        assert torch.equal(second.average.state[key], value)


def test_train_vae_writes_checkpoint_and_log_and_does_not_repeat(clips, tmp_path):
    lines = []
    short = dataclasses.replace(VAE, steps=4)
    train_vae(clips, tmp_path, short, on_report=lines.append)
    assert [json.loads(line)["step"] for line in lines] == [2, 4]
    assert (tmp_path / "vae.jsonl").read_text().splitlines() == lines
    assert train_vae(clips, tmp_path, short, on_report=lines.append).step == 4
    assert len(lines) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["vae.jsonl", "vae.pt"]


# ---- U-Net ---------------------------------------------------------------------------------------------------------


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
    trainer = UNetTrainer(variants, clips, UNET, decode)
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
        quiet = dataclasses.replace(UNET, drop_audio=0, own_voice=own, audio_noise=0)
        trainer = UNetTrainer(loud, clips, quiet, decode)
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
    trainer = UNetTrainer(moving, clips, dataclasses.replace(UNET, held_picture=held, disguise=0), decode)
    for _ in range(10):
        window = trainer.window()
        moves = (window["masked"] - window["masked"][:, :1]).abs().amax()
        assert (moves == 0) == bool(held)
        assert (window["clean"] - window["clean"][:, :1]).abs().amax() > 0


def test_a_disguise_is_taken_off_again(clips, variants):
    """It changes all latents of a window alike, but not the grey of the mask."""
    masked = [[dataclasses.replace(c, masked=c.clean) for c in variant] for variant in variants]
    bare, worn = (
        UNetTrainer(masked, clips, dataclasses.replace(UNET, disguise=how, held_picture=0, held_reference=0), decode)
        for how in (0.0, 0.5)
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

    settings = dataclasses.replace(UNET, held_reference=held, disguise=0)
    trainer = UNetTrainer([[numbered(c) for c in variant] for variant in variants], clips, settings, decode)
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
    first = UNetTrainer(variants, clips, UNET, decode)
    first.save(tmp_path / "unet.pt")
    other = [[dataclasses.replace(c, audio=c.audio.flip(0) * 2 + 1) for c in variant] for variant in variants]
    second = UNetTrainer(other, clips, UNET, decode)
    assert not torch.allclose(second.whitening, first.whitening)
    second.load(tmp_path / "unet.pt")
    assert torch.equal(second.whitening, first.whitening)
    short = dataclasses.replace(UNET, steps=1)
    third = train_unet(other, clips, tmp_path / "new", short, decode, init=tmp_path / "unet.pt")
    assert torch.equal(third.whitening, first.whitening)


def test_unet_learns(clips, variants):
    trainer = UNetTrainer(variants, clips, UNET, decode)
    losses = [floats(trainer.train_step()) for _ in range(40)]
    assert np.mean([x["clean"] for x in losses[-10:]]) < 0.5 * np.mean([x["clean"] for x in losses[:3]])
    assert all(math.isfinite(v) for x in losses for v in x.values())


def test_decoded_mouths_are_judged_in_the_second_half(clips, variants):
    """And what the judges say reaches every layer, so that a network which they alone teach gets nearer the truth."""
    trainer = UNetTrainer(variants, clips, dataclasses.replace(UNET, steps=4), decode)
    losses = [trainer.train_step() for _ in range(4)]
    assert ["l1" in step for step in losses] == [False, False, True, True]
    assert all(math.isfinite(v) for step in losses for v in step.values())

    data = torch.stack([trainer.window()["clean"] for _ in range(2)]).requires_grad_()
    mouths = torch.stack([trainer.window()["mouth"] for _ in range(2)])
    judged = trainer.judged(data, mouths)
    trainer._verdict(judged, data).backward()
    assert (data.grad != 0).any()
    exact = [trainer.judged(latents, seen)["l1"] for latents, seen in _own_and_other_mouths(trainer)]
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
    straight = UNetTrainer(variants, clips, UNET, decode)
    wanted = [floats(straight.train_step()) for _ in range(4)]
    first = UNetTrainer(variants, clips, UNET, decode)
    assert [floats(first.train_step()) for _ in range(2)] == wanted[:2]
    first.save(tmp_path / "unet.pt")
    second = UNetTrainer(variants, clips, UNET, decode)
    torch.manual_seed(99)  # whatever happened in between
    second.load(tmp_path / "unet.pt")
    assert [floats(second.train_step()) for _ in range(2)] == wanted[2:]


def test_train_unet_stopped_and_started_ends_the_same(clips, variants, tmp_path):
    class Stopped(Exception):
        pass

    def stop(line):
        if json.loads(line)["step"] == 6:
            raise Stopped

    short = dataclasses.replace(UNET, steps=7, report_every=1)
    whole = train_unet(variants, clips, tmp_path / "whole", short, decode)
    with pytest.raises(Stopped):
        train_unet(variants, clips, tmp_path / "parts", short, decode, on_report=stop)
    parts = train_unet(variants, clips, tmp_path / "parts", short, decode)
    assert parts.step == whole.step == 7
    for key, value in whole.unet.state_dict().items():
        assert torch.equal(parts.unet.state_dict()[key], value), key


def test_a_finished_run_becomes_a_file_that_loads(clips, variants, tmp_path):
    from latentsync.models.vae import load_vae
    from latentsync.weights import load_unet

    train_vae(clips, tmp_path, dataclasses.replace(VAE, steps=2))
    train_unet(variants, clips, tmp_path, dataclasses.replace(UNET, steps=2), decode)
    vae = trained_vae(tmp_path / "vae.pt", clips)
    path = export(vae, tmp_path / "unet.pt", tmp_path / "nano.safetensors", clips)
    unet, again = load_unet(path), load_vae(path)
    assert unet.info.prediction_type == "sample"
    assert unet.info.resolution == SIDE
    assert unet.config == UNET.config
    assert again.scaling == pytest.approx(vae.scaling)
    pixels = torch.rand(1, 3, SIDE, SIDE) * 2 - 1
    assert torch.allclose(again.encode(pixels), vae.encode(pixels), atol=0.02)
    assert path.stat().st_size < 24e6
    rows = json.loads(unet.info.metadata["latent_rgb"])
    assert [len(row) for row in rows] == [3] * (unet.config.latent_channels + 1)


def test_recipe_names_only_what_may_be_shipped(media):
    names = [path.name for path in clip_paths(media)]
    assert len(names) == len(set(names)) > 70
    assert all(name.startswith(("latentsync_demo", "obama_", "reagan_", "s1_", "s2_", "p")) for name in names)
    assert not any(part in pattern for pattern in CLIPS for part in ("hdtf", "edtalk", "videoretalking"))


def test_sharpness_of_lips_tells_sharp_from_blurred():
    import cv2

    frames = pan(6)
    points = np.repeat(np.array([[(46, 50), (72, 50), (59, 66)]], np.float32), 6, 0)
    track = SimpleNamespace(points=points)
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), 2) for frame in frames])
    models = SimpleNamespace(resolution=64)
    assert lip_sharpness(blurred, track, models) < 0.3 * lip_sharpness(frames, track, models)


# ---- loop ----------------------------------------------------------------------------------------------------------


def test_learning_rate():
    rates = [learning_rate(step, 1000, 1e-3) for step in range(1000)]
    assert rates[0] == pytest.approx(2e-5)
    assert rates[49] == pytest.approx(1e-3)
    assert max(rates) == pytest.approx(1e-3)
    assert all(a >= b for a, b in itertools.pairwise(rates[49:]))
    assert rates[-1] == pytest.approx(5e-5, rel=0.01)
    assert learning_rate(5000, 1000, 1e-3) == pytest.approx(5e-5)


def test_moving_average_follows_fast_then_slowly():
    layer = torch.nn.Linear(1, 1)
    average = MovingAverage(layer, decay=0.9)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        average.state["weight"].fill_(0.0)
    average.update(layer)
    assert float(average.state["weight"]) == pytest.approx(1 - 1 / 11)
    for _ in range(200):
        average.update(layer)
    assert float(average.state["weight"]) == pytest.approx(1.0, abs=1e-3)


def test_a_checkpoint_is_whole_or_the_one_before(tmp_path):
    path = tmp_path / "new" / "run.pt"
    save_checkpoint(path, step=1)
    with pytest.raises(AttributeError):
        save_checkpoint(path, step=lambda: None)  # cannot be pickled
    assert torch.load(path, weights_only=True) == {"step": 1}


def test_log_means_since_the_last_report(tmp_path):
    log = Log(tmp_path / "run.jsonl")
    log.add(loss=1.0)
    log.add(loss=torch.tensor(2.0))
    assert json.loads(log.write(2))["loss"] == 1.5
    log.add(loss=5.0)
    assert json.loads(log.write(3))["loss"] == 5.0
    assert len((tmp_path / "run.jsonl").read_text().splitlines()) == 2
