"""Tiny clips in the prepared form, and tiny networks to train on them."""

import dataclasses
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from latentsync.dataset import find_clips
from latentsync.models.syncnet import EncoderConfig, StableSyncNet, SyncNetConfig
from latentsync.models.vae import VAE
from latentsync.training.dataset import ClipDataset, ClipStore, split_clips
from latentsync.training.recipes import UNetRecipe, unet_recipe
from latentsync.training.unet.data import UNetWindows
from latentsync.training.unet.init import initial_unet
from latentsync.training.unet.task import PerceptualNets, UNetTask

from ..tiny import lively, tiny_whisper, write_clip, write_speech

SIDE, FPS = 64, Fraction(25)
SYNC = SyncNetConfig(
    audio=EncoderConfig(1, (32, 32, 32, 128), ((5, 4), (4, 13), (2, 1), (2, 1)), (False,) * 4),
    visual=EncoderConfig(48, (32, 32, 32, 128), ((2, 4), (2, 4), (2, 2), (4, 2)), (False,) * 4),
    size=(32, 64),
)


SHORT = dataclasses.replace(
    SYNC,
    audio=EncoderConfig(1, (32, 32, 32, 128), ((5, 4), (4, 4), (2, 2), (2, 1)), (False,) * 4),
    visual=dataclasses.replace(SYNC.visual, in_channels=30),
    frames=10,
    mels=(80, 32),
)
"""A SyncNet of another window."""


def faces(frames: int, seed: int, side: int = SIDE) -> np.ndarray:
    """Colored noise in the manner of a face, with a dark bar for a mouth that opens and shuts: (F, S, S, 3) uint8."""
    random = np.random.default_rng(seed)
    face = random.integers(90, 190, (8, 8, 3), dtype=np.uint8).repeat(side // 8, 0).repeat(side // 8, 1)
    out = np.stack([face] * frames)
    for i, picture in enumerate(out):
        half = round((1 + np.sin(i / 2 + seed)) * side / 16)
        middle = round(0.72 * side)
        picture[middle - half : middle + half + 1, side // 3 : 2 * side // 3] = 20
    return out


def write_clips(folder: Path, count: int, frames: int = 60, side: int = SIDE) -> Path:
    """A folder as `latentsync prepare` leaves it; each clip is a recording of its own."""
    (folder / "clips").mkdir(parents=True)
    records = []
    for i in range(count):
        sound = write_speech(folder / f"{i}.wav", float(frames / FPS))
        write_clip(folder / "clips" / f"c{i}.mp4", faces(frames, i, side), FPS, audio=sound)
        sound.unlink()
        records.append({"id": f"c{i}", "source": f"film{i}", "status": "kept", "path": f"clips/c{i}.mp4"})
    records.append({"id": "gone", "source": "film0", "status": "dropped", "reason": "two faces"})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def tiny_vae(seed: int = 5) -> VAE:
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    return VAE(lively(model, seed, spread=1.0), scaling=0.5).eval().requires_grad_(False)


def tiny_syncnet(seed: int = 6) -> StableSyncNet:
    net = StableSyncNet(SYNC)
    return lively(net, seed).eval().requires_grad_(False)  # type: ignore[return-value]


class Perceptual(nn.Module):
    """A small random network in the place of LPIPS."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = lively(nn.Conv2d(3, 8, 5, 2), 7)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (self.layer(a) - self.layer(b)).square().mean((1, 2, 3))


def tiny_videomae():
    from transformers import VideoMAEConfig, VideoMAEModel

    config = VideoMAEConfig(
        image_size=224, patch_size=112, num_frames=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(8)
        return VideoMAEModel(config)


def all_nets() -> PerceptualNets:
    from latentsync.models.perceptual import VideoFeatures

    return PerceptualNets(tiny_syncnet(), Perceptual(), VideoFeatures(tiny_videomae()))


BASE = {
    "resolution": SIDE, "precision": "fp32", "workers": 0, "learning_rate": 1e-3, "gradient_checkpointing": False,
    "log_every": 1, "holdout_time": 0.4, "validate_windows": 2, "sample_clips": 1, "sample_frames": 16,
    "sample_steps": 2,
}  # fmt: skip


def recipe(stage: str, **settings) -> UNetRecipe:
    return unet_recipe(stage, None, **{**BASE, **settings})


def tiny_task(data: Path, chosen: UNetRecipe, nets: PerceptualNets | None = None) -> UNetTask:
    split = split_clips(find_clips(data), chosen)
    store = ClipStore(data / "cache", chosen.resolution, tiny_whisper())
    make = UNetWindows(store, mel=SYNC.frames if chosen.sync_weight else 0, pixels=chosen.has_pixel_losses)
    return UNetTask(
        initial_unet("none", chosen, size="tiny").unet,
        tiny_vae(),
        chosen,
        ClipDataset(split.train, make, chosen.seed),
        ClipDataset(split.validation, make, chosen.validate_seed) if split.validation else None,
        nets if nets is not None else all_nets() if chosen.has_pixel_losses else PerceptualNets(),
    )


def write_files(folder: Path) -> dict[str, Path]:
    """A VAE, a Whisper and a SyncNet as files, for runs from the command line."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder as Encoder

    from latentsync.weights.files import write_safetensors
    from latentsync.weights.syncnet_files import save_syncnet

    facts = {"format": "latentsync", "kind": "vae", "vae_groups": "4", "vae_scaling": "0.5"}
    config = WhisperConfig(d_model=64, encoder_layers=1, encoder_attention_heads=1, encoder_ffn_dim=64, num_mel_bins=80)
    return {
        "vae": write_safetensors(folder / "vae.safetensors", tiny_vae().model.state_dict(), facts),
        "whisper": write_safetensors(folder / "whisper.safetensors", lively(Encoder(config), 2).state_dict(), {}),
        "sync_net": save_syncnet(folder / "sync.safetensors", tiny_syncnet(), {}),
    }
