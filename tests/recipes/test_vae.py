"""The trainers on two synthetic clips: losses fall, runs resume as if never stopped, held-out time stays unseen."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentsync.errors import UserError
from latentsync.training.logging import read_log
from latentsync.training.optim import averaged_model
from recipes.nano import data, vae
from recipes.nano.critic import adversarial_weight, texture_loss
from recipes.nano.data import HELD_OUT, MARGIN, load_clips, plain, random_augmentation
from recipes.nano.evaluate import lip_sharpness
from recipes.nano.export import CLIPS, clip_paths
from recipes.nano.loop import cosine_schedule, save_checkpoint
from recipes.nano.unet import UNetTrainer
from recipes.nano.vae import VAETrainer, build_vae, clip_chances, latent_scale, train_vae

from ..tiny import pan
from .tiny_nano import SIDE, UNET, VAE, encode_variants, floats, make_clip, tiny_vae, two_clips


@pytest.fixture(scope="module")
def clips():
    return two_clips()


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
    assert said[0].startswith("text.mp4: skipped, ")
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
    variants = encode_variants(clips)
    for clip in clips:
        assert clip.crops.used == set(range(clip.train_frames))
        assert clip.train_frames == int(len(clip.crops) * (1 - HELD_OUT))
    unet = UNetTrainer(variants, clips, UNET, tiny_vae())
    assert all(unet.window()["audio"].isfinite().all() for _ in range(60))


# ---- VAE -----------------------------------------------------------------------------------------------------------


def test_vae_learns_and_the_critic_joins(clips):
    many = dataclasses.replace(VAE, steps=40, batch_size=4, adversarial_from=0.75)
    trainer = VAETrainer(clips, many)
    losses = [floats(trainer.train_step()) for _ in range(34)]
    assert np.mean([x["l1"] for x in losses[-8:]]) < 0.7 * np.mean([x["l1"] for x in losses[:4]])
    assert "d_loss" not in losses[29]
    assert {"d_loss", "g_loss", "features"} <= losses[30].keys()
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
        factor = adversarial_weight(total, {"g_loss": fool, "d_loss": torch.tensor(hinge)}, made, max_weight=1e6)
        pulls = [torch.autograd.grad(loss, made, retain_graph=True)[0].norm() for loss in (total, factor * fool)]
        assert float(pulls[1]) == pytest.approx(share * float(pulls[0]), rel=0.01)


def test_vae_encoder_is_frozen_once_the_critic_joins(clips):
    trainer = VAETrainer(clips, dataclasses.replace(VAE, adversarial_from=0.0))
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
    for key, value in straight.average.module.state_dict().items():
        assert torch.equal(second.average.module.state_dict()[key], value)


def test_train_vae_writes_checkpoint_and_log_and_does_not_repeat(clips, tmp_path):
    lines = []
    short = dataclasses.replace(VAE, steps=4)
    train_vae(clips, tmp_path, short, on_report=lines.append)
    assert [line["step"] for line in lines] == [2, 4]
    assert [line["l1"] for line in read_log(tmp_path / "vae")] == [line["l1"] for line in lines]
    assert train_vae(clips, tmp_path, short, on_report=lines.append).step == 4
    assert len(lines) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["vae", "vae.pt"]


# ---- the recipe ------------------------------------------------------------------------------------------------------


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


def test_the_schedule_is_the_formula_also_when_resumed():
    """Linear over 50 steps, then a half cosine to 5 %; each group keeps its own peak."""
    layer = torch.nn.Linear(1, 1)
    groups = [{"params": [layer.weight], "lr": 1e-3}, {"params": [layer.bias], "lr": 3e-3}]
    optimizer = torch.optim.AdamW(groups)
    schedule, rates = cosine_schedule(optimizer, 1000), []
    for step in range(1000):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
        if step == 400:
            saved, optimizer = optimizer.state_dict(), torch.optim.AdamW([dict(group) for group in groups])
            optimizer.load_state_dict(saved)
            schedule = cosine_schedule(optimizer, 1000, step=401)
    for step, (rate, other) in enumerate(rates):
        share = (step - 50) / 950
        wanted = (step + 1) / 50 if step < 50 else 0.05 + 0.95 * (1 + math.cos(math.pi * share)) / 2
        assert rate == pytest.approx(1e-3 * wanted)
        assert other == pytest.approx(3e-3 * wanted)


def test_the_average_follows_fast_then_slowly():
    """The decay of update n is n / (n + 10), at most the given one."""
    layer = torch.nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(0.0)
    average, wanted = averaged_model(layer, 0.9), 0.0
    for n in range(1, 200):
        with torch.no_grad():
            layer.weight.fill_(math.sin(n))
        average.update_parameters(layer)
        decay = min(0.9, n / (n + 10))
        wanted = decay * wanted + (1 - decay) * math.sin(n)
        assert float(average.module.weight) == pytest.approx(wanted, abs=1e-6)


def test_a_resumed_average_goes_on(tmp_path):
    layer = torch.nn.Linear(2, 2)
    straight, first = averaged_model(layer, 0.9), averaged_model(layer, 0.9)
    for n in range(6):
        with torch.no_grad():
            layer.weight.fill_(float(n))
        straight.update_parameters(layer)
        if n == 3:
            second = averaged_model(torch.nn.Linear(2, 2), 0.9)
            second.load_state_dict(first.state_dict())
            first = second
        first.update_parameters(layer)
    assert torch.equal(first.module.weight, straight.module.weight)


def test_a_checkpoint_is_complete_or_the_one_before(tmp_path):
    path = tmp_path / "new" / "run.pt"
    save_checkpoint(path, step=1)
    with pytest.raises(AttributeError):
        save_checkpoint(path, step=lambda: None)  # cannot be pickled
    assert torch.load(path, weights_only=True) == {"step": 1}
