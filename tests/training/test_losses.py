"""Every loss against its formula."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from latentsync.errors import UserError
from latentsync.models.perceptual import VideoFeatures, load_lpips, load_videomae, videomae_input
from latentsync.models.syncnet import StableSyncNet
from latentsync.sampling import alphas_cumprod
from latentsync.training.unet.losses import (
    add_noise,
    lower_half,
    mixed_noise,
    perceptual_loss,
    predict_clean,
    similarities,
    similarity,
    sub_windows,
    sync_loss,
    syncnet_input,
    target,
    trepa_loss,
)

from ..tiny import lively
from .parts import SHORT, tiny_syncnet, tiny_videomae

BARS = alphas_cumprod().float()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_mixed_noise_is_half_shared():
    """sqrt(1/2) · shared + sqrt(1/2) · each frame's own: variance 1, correlation between frames 1/2."""
    noise = mixed_noise((4, 16, 64, 64), generator())
    assert noise.shape == (4, 16, 64, 64)
    assert abs(noise.var() - 1) < 0.03
    frames = noise.transpose(0, 1).flatten(1)
    correlation = torch.corrcoef(frames)
    off = correlation[~torch.eye(16, dtype=torch.bool)]
    assert (off - 0.5).abs().max() < 0.05


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
def test_alpha_sets_the_share(alpha):
    frames = mixed_noise((4, 8, 64, 64), generator(), alpha).transpose(0, 1).flatten(1)
    assert abs(frames.var() - 1) < 0.05
    assert abs(torch.corrcoef(frames)[0, 1] - alpha**2 / (1 + alpha**2)) < 0.05


def test_mixed_noise_hangs_on_the_generator_alone():
    assert torch.equal(mixed_noise((2, 3, 4, 4), generator(7)), mixed_noise((2, 3, 4, 4), generator(7)))


@given(st.sampled_from(("epsilon", "sample", "v_prediction")), st.integers(0, 999), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_a_perfect_answer_leads_back_to_the_clean_latents(prediction, step, seed):
    clean, noise = torch.randn((2, 2, 4, 3, 8, 8), generator=generator(seed))
    bar = BARS[[step, 500]]
    noisy = add_noise(clean, noise, bar)
    answer = target(clean, noise, bar, prediction)
    assert torch.allclose(predict_clean(answer, noisy, bar, prediction), clean, atol=2e-4 / float(BARS[step]) ** 0.5)


def test_noise_is_added_for_each_window_by_its_own_step():
    clean, noise = torch.ones(2, 1, 1, 2, 2), torch.full((2, 1, 1, 2, 2), 3.0)
    noisy = add_noise(clean, noise, torch.tensor([0.64, 0.36]))
    assert torch.allclose(noisy[0], torch.tensor(0.8 + 3 * 0.6))
    assert torch.allclose(noisy[1], torch.tensor(0.6 + 3 * 0.8))
    with pytest.raises(UserError, match="prediction_type is 'x'"):
        target(clean, noise, BARS[:2], "x")


@pytest.mark.parametrize("cosine", [0.1, 0.5, 0.9])
def test_sync_loss_is_cross_entropy_with_target_one(cosine):
    got = sync_loss(torch.tensor([cosine, cosine]))
    assert math.isclose(got, F.binary_cross_entropy(torch.tensor([cosine]), torch.ones(1)), rel_tol=1e-6)


def test_sync_loss_at_the_ends():
    assert sync_loss(torch.tensor([1.0])) == 0
    assert torch.isfinite(sync_loss(torch.tensor([0.0])))


def fake_net(**config):
    return SimpleNamespace(config=SimpleNamespace(**{"space": "pixel", "frames": 4, "size": (8, 16), **config}))


def test_the_syncnet_sees_the_lower_half_frame_after_frame():
    pixels = torch.arange(2 * 4 * 3 * 16 * 16, dtype=torch.float32).reshape(2, 4, 3, 16, 16)
    seen = syncnet_input(pixels, None, fake_net())
    assert seen.shape == (2, 12, 8, 16)
    assert torch.equal(seen[1, 5], pixels[1, 1, 2, 8:])


def test_larger_pictures_are_scaled_for_the_syncnet():
    pixels = torch.rand(1, 4, 3, 16, 16).repeat_interleave(2, -1).repeat_interleave(2, -2)
    seen = syncnet_input(pixels, None, fake_net())
    assert seen.shape == (1, 12, 8, 16)
    assert abs(seen.mean() - pixels[..., 16:, :].mean()) < 0.02


def test_a_syncnet_of_latents_sees_latents():
    latents = torch.rand(2, 4, 5, 8, 8)
    seen = syncnet_input(None, latents, fake_net(space="latent", size=(8, 8)))
    assert torch.equal(seen, latents.flatten(1, 2))


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (fake_net(frames=5), (1, 4, 3, 16, 16)),
        (fake_net(space="latent", size=(4, 4)), (1, 4, 3, 8, 8)),
        (fake_net(size=(24, 16)), (1, 4, 3, 16, 16)),
    ],
)
def test_a_syncnet_for_something_else_is_refused(net, shape):
    value = torch.rand(shape)
    with pytest.raises(UserError, match="The SyncNet"):
        syncnet_input(value, value, net)


@pytest.mark.parametrize(
    ("frames", "window", "starts"),
    [(16, 16, [0]), (16, 10, [0, 6]), (16, 5, [0, 4, 7, 11]), (16, 1, [*range(16)]), (20, 10, [0, 10]), (1, 1, [0])],
)
def test_smaller_windows_cover_all_frames(frames, window, starts):
    assert sub_windows(frames, window) == starts
    assert {f for s in starts for f in range(s, s + window)} == {*range(frames)}


def test_a_syncnet_of_ten_frames_judges_sixteen_in_two_windows():
    """Each with the mel of its own frames; a network of sixteen judges them at once."""
    short = StableSyncNet(SHORT)
    lively(short, 6).eval().requires_grad_(False)
    pixels, mel = torch.rand(2, 16, 3, 64, 64), torch.rand(2, 2, 1, 80, 32)
    got = similarities(short, pixels, torch.empty(2, 16, 4, 8, 8), mel)
    for window, start in enumerate((0, 6)):
        images = syncnet_input(pixels[:, start : start + 10], None, short)
        assert torch.allclose(got[:, window], similarity(short, images, mel[:, window]), atol=1e-6)
    net, mel = tiny_syncnet(), torch.rand(2, 1, 1, 80, 52)
    whole = similarity(net, syncnet_input(pixels, None, net), mel[:, 0])
    assert torch.allclose(similarities(net, pixels, torch.empty(2, 16, 4, 8, 8), mel)[:, 0], whole, atol=1e-6)


def test_the_syncnets_loss_reaches_the_picture():
    net = tiny_syncnet()
    pixels = torch.rand(2, 16, 3, 64, 64, requires_grad=True)
    cosine = similarity(net, syncnet_input(pixels, None, net), torch.rand(2, 1, 80, 52))
    assert cosine.shape == (2,)
    assert ((cosine >= 0) & (cosine <= 1 + 1e-6)).all()
    sync_loss(cosine).backward()
    assert pixels.grad[..., 32:, :].abs().sum() > 0
    assert pixels.grad[..., :30, :].abs().sum() == 0


def test_perceptual_loss_looks_at_the_lower_half():
    a, b = torch.rand(2, 3, 3, 16, 16), torch.rand(2, 3, 3, 16, 16)
    calls = []

    def network(x, y):
        calls.append(x.shape)
        return (x - y).square().mean((1, 2, 3))

    got = perceptual_loss(a, b, network)
    assert calls == [(6, 3, 8, 16)]
    assert torch.allclose(got, (lower_half(a) - lower_half(b)).square().mean())
    b[..., 8:, :] = a[..., 8:, :]
    assert perceptual_loss(a, b, network) == 0


def test_trepa_compares_directions_of_features():
    def features(clips):
        return clips.flatten(1)[:, ::5000]

    def direction(pixels):
        values = features(videomae_input(pixels))
        return values / values.norm(dim=1, keepdim=True)

    a, b = torch.rand(2, 16, 3, 224, 224), torch.rand(2, 16, 3, 224, 224)
    assert torch.allclose(trepa_loss(a, b, features), (direction(a) - direction(b)).square().mean())
    assert trepa_loss(a, a, features) < 1e-12
    assert torch.allclose(trepa_loss(a, b, lambda c: 7 * features(c)), trepa_loss(a, b, features))


def test_videomae_gets_normalised_pictures():
    white = videomae_input(torch.ones(1, 2, 3, 64, 64))
    assert white.shape == (1, 2, 3, 224, 224)
    for channel, (mean, spread) in enumerate(((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))):
        assert torch.allclose(white[0, :, channel], torch.tensor((1 - mean) / spread), atol=1e-5)


@pytest.fixture(scope="module")
def videomae_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videomae")
    tiny_videomae().save_pretrained(folder)
    return folder


def test_trepa_with_a_real_videomae(videomae_folder):
    features = load_videomae(videomae_folder, "cpu", 16)
    made = torch.rand(1, 16, 3, 64, 64, requires_grad=True)
    true = torch.rand(1, 16, 3, 64, 64)
    assert isinstance(features, VideoFeatures)
    assert features(videomae_input(true)).shape == (1, 16)
    trepa_loss(made, true, features).backward()
    assert made.grad.abs().sum() > 0
    assert all(p.grad is None for p in features.parameters())


def test_a_videomae_must_be_whole_and_fit(videomae_folder, tmp_path):
    with pytest.raises(UserError, match="8 of 224 are needed"):
        load_videomae(videomae_folder, "cpu", 8)
    with pytest.raises(UserError, match="no VideoMAE"):
        load_videomae(tmp_path, "cpu", 16)
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.json").write_text((videomae_folder / "config.json").read_text())
    state = load_file(videomae_folder / "model.safetensors")
    state.pop(next(key for key in state if "layer.0" in key))
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="lacks weights"):
        load_videomae(tmp_path, "cpu", 16)


def test_lpips_without_its_weights_says_what_to_do():
    with pytest.raises(UserError, match="lpips is 'none'"):
        load_lpips("none", "cpu")
