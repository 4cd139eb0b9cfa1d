"""What does not go together is refused before a run writes anything."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from latentsync.dataset import find_clips
from latentsync.errors import UserError
from latentsync.models.syncnet import StableSyncNet
from latentsync.models.unet_config import UNetConfig
from latentsync.training.dataset import ClipStore
from latentsync.training.recipes import Files
from latentsync.training.syncnet.architecture import SMALL, network_from
from latentsync.training.syncnet.run import run_syncnet
from latentsync.training.unet import codec
from latentsync.training.unet.checks import check_clips, check_networks
from latentsync.training.unet.data import UNetWindows
from latentsync.training.unet.run import run_unet
from latentsync.training.unet.task import PerceptualNets
from latentsync.weights.syncnet_files import save_syncnet

from ..tiny import lively, tiny_whisper
from .parts import SHORT, SYNC, Perceptual, recipe, tiny_task, tiny_vae, write_clips, write_files
from .test_syncnet_training import TINY, tiny_recipe

LATENT = replace(SYNC, space="latent", size=(8, 8), visual=replace(SYNC.visual, in_channels=64))
JUDGES = {
    "frames": (replace(SYNC, frames=24, mels=(80, 77)), "24 frames together, and the U-Net's windows have 16"),
    "channels": (
        replace(LATENT, visual=replace(SYNC.visual, in_channels=48)),
        "48 channels, and 16 frames here have 64",
    ),
    "latents": (replace(LATENT, size=(32, 32)), "latents of 32×32, and those of 64 px are 8×8"),
    "shape": (replace(SYNC, size=(64, 32)), "pictures of 64×32, higher than wide"),
    "mel": (replace(SYNC, mels=(80, 50)), "50 mel frames, and 16 frames at 25 fps have 52"),
}


@pytest.mark.parametrize(("config", "says"), JUDGES.values(), ids=JUDGES)
def test_a_syncnet_that_cannot_judge_is_refused(config, says):
    chosen = recipe("2", motion="all")
    with pytest.raises(UserError, match=says):
        check_networks(networks().unet, tiny_vae(), chosen, SimpleNamespace(config=config))


@pytest.mark.parametrize("config", [SYNC, SHORT, SMALL, LATENT, replace(SYNC, size=(48, 64))])
def test_a_syncnet_of_another_window_or_size_is_welcome(config):
    check_networks(networks().unet, tiny_vae(), recipe("2"), SimpleNamespace(config=config))


def test_without_a_weight_a_long_window_is_only_measured():
    long = replace(SYNC, frames=25, mels=(80, 80), visual=replace(SYNC.visual, in_channels=75))
    check_networks(networks().unet, tiny_vae(), recipe("1"), SimpleNamespace(config=long))


def networks(**config):
    facts = {"widths": (32, 32), "layers": 1, "cross": (True, True), "motion": "all", **config}
    return SimpleNamespace(unet=SimpleNamespace(config=UNetConfig(**facts)))


@pytest.mark.parametrize(
    ("config", "settings", "says"),
    [
        ({"latent_channels": 16}, {}, "4 latent channels and the U-Net 16"),
        ({}, {"resolution": 72}, "resolution is 72; VAE and U-Net together take multiples of 16"),
        ({}, {"frames": 25, "decoded_frames": 25}, "windows have 25 frames; motion modules take at most 24"),
    ],
)
def test_networks_that_do_not_go_together(config, settings, says):
    with pytest.raises(UserError, match=says):
        check_networks(networks(**config).unet, tiny_vae(), recipe("2", **settings))


def test_a_syncnet_of_ten_frames_trains_a_unet(clips):
    """Its loss is the mean over both windows, and it has a gradient."""
    net = lively(StableSyncNet(SHORT), 6).eval().requires_grad_(False)
    chosen = recipe("2", trepa_weight=0.0)
    task = tiny_task(clips, chosen, PerceptualNets(net, Perceptual()))
    task.data.make = replace(task.data.make, mel=10)
    losses = task.losses(task.network, default_collate([task.data[0], task.data[1]]))
    assert set(losses) == {"total", "noise", "sync", "lpips"}
    losses["sync"].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in task.network.parameters())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    long = replace(SYNC, frames=20, mels=(80, 64), visual=replace(SYNC.visual, in_channels=60))
    long = replace(long, audio=replace(SYNC.audio, factors=((5, 4), (4, 16), (2, 1), (2, 1))))
    return write_files(folder) | {"long": save_syncnet(folder / "long.safetensors", StableSyncNet(long), {})}


NO_JUDGES = {"sync_weight": 0.0, "lpips": "off", "trepa_weight": 0.0}
NO_END = {"holdout_time": 0.0, "holdout_recordings": 0.0}
REFUSED = {
    "SyncNet": ("2", {**NO_JUDGES, "sync_weight": 0.1}, "20 frames together, and the U-Net's windows have 16"),
    "crops": ("1", {"resolution": 128}, "3 of 3 clips .* crops of 64 px, below .* 128; take --resolution 64"),
    "windows": ("1", {**NO_END, "frames": 32, "decoded_frames": 32}, "No clip has two windows of 32 frames"),
    "optimizer": ("1", {"optimizer": "adamw8bit"}, "bitsandbytes"),
    "parameters": ("1", {"trainable": ("nothing",)}, "nothing to train"),
}


@pytest.mark.parametrize(("stage", "settings", "says"), REFUSED.values(), ids=REFUSED)
def test_nothing_is_written_by_a_run_that_cannot_begin(clips, files, tmp_path, stage, settings, says):
    given = Files("none", "tiny", str(files["vae"]), str(files["whisper"]), files["long"], cache=tmp_path / "cache")
    with pytest.raises(UserError, match=says):
        run_unet(clips, tmp_path / "run", recipe(stage, steps=1, **settings), given, cpu=True)
    assert not list(tmp_path.iterdir())


def test_a_syncnet_is_not_trained_on_enlarged_crops(clips, tmp_path):
    """64 px for a network of 128."""
    big = network_from({**TINY, "size": [64, 128], "visual": {**TINY["visual"], "factors": [4, 4, [4, 8]]}})
    told = []
    given = {"cache": tmp_path / "cache", "cpu": True, "report": told.append}
    with pytest.raises(UserError, match="no clips to train on"):
        run_syncnet(clips, tmp_path / "run", big, tiny_recipe(steps=1), **given)
    assert "has crops of 64 px, smaller than 128" in told[0]
    assert not (tmp_path / "run").exists()


# ---- crops and resolution -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_sizes(tmp_path_factory):
    """Two clips of 64 px, and one of 32 px."""
    folder = write_clips(tmp_path_factory.mktemp("sizes") / "data", 3)
    small = write_clips(tmp_path_factory.mktemp("small") / "data", 1, side=32)
    (folder / "clips" / "c2.mp4").write_bytes((small / "clips" / "c0.mp4").read_bytes())
    return folder


def test_smaller_crops_are_named_replaced_or_enlarged(two_sizes):
    clips = find_clips(two_sizes)
    store = ClipStore(two_sizes / "cache", 64, tiny_whisper(), upsample=False)
    assert "1 of 3 clips that were looked at have crops of 32 px" in check_clips(store, clips, 16)
    with pytest.raises(UserError, match=r"c2\.mp4 has crops of 32 px, smaller than 64; .* upsample: true"):
        UNetWindows(store)(clips[2], np.random.default_rng(0))
    enlarging = ClipStore(two_sizes / "cache", 64, tiny_whisper(), upsample=True)
    assert check_clips(enlarging, clips, 16) == ""
    assert enlarging.pixels(clips[2], 0).shape == (16, 3, 64, 64)
    below = ClipStore(two_sizes / "cache", 32, tiny_whisper(), upsample=False)
    assert check_clips(below, clips, 16) == ""


@pytest.mark.parametrize(("side", "frames"), [(256, 4), (512, 1), (384, 1), (192, 7), (1024, 1)])
def test_frames_are_decoded_by_their_area(monkeypatch, side, frames):
    """Four of 256 px at a time: at 512 px one has as many pixels."""
    vae, sizes = tiny_vae(), []
    monkeypatch.setattr(vae, "decode", lambda latents: sizes.append(len(latents)) or latents[:, :3])
    latents = torch.zeros(2, 16, 4, side // 8, side // 8)
    codec.Codec(vae, 256).decode(latents)
    assert max(sizes) == frames
    assert sum(sizes) == 32
