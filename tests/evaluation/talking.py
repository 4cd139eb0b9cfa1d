"""Synthetic talkers: a dark bar on skin color, as high as the voice is loud; and a SyncNet that learns them."""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from latentsync.audio.syncnet_mel import mel_span
from latentsync.dataset import FPS
from latentsync.evaluation.syncnet_sync import StableScorer, mel_rows
from latentsync.models.syncnet import EncoderConfig, StableSyncNet, SyncNetConfig

RATE = 16_000
SIDE = 32
LEARNT = 1.4
"""Running mean of the loss (2.77 is chance) at which training stops."""
TINY = SyncNetConfig(
    audio=EncoderConfig(1, (32, 32, 128), (4, 4, (4, 3)), (False,) * 3),
    visual=EncoderConfig(24, (32, 32, 128), (4, 4, (1, 2)), (False,) * 3),
    frames=8,
    size=(16, 32),
    mels=(80, 26),
)


def opening(frames: int, seed: int) -> np.ndarray:
    """How open the mouth is, 0 to 1: four or five syllables a second, each of its own height."""
    rng = np.random.default_rng(seed)
    knots = rng.uniform(0, 1, frames * 9 // 25 + 3) ** 2
    return np.interp(np.arange(frames) * 9 / 25, np.arange(len(knots)), knots)


def faces(curve: np.ndarray, seed: int, side: int = SIDE) -> np.ndarray:
    """(F, side, side, 3) uint8: the bar sits in the lower half, its place and all colors are the seed's."""
    rng = np.random.default_rng(seed)
    skin, dark = rng.uniform(120, 220, 3), rng.uniform(10, 60, 3)
    y, x = (0.72 + rng.uniform(-0.04, 0.04)) * side, 0.5 * side
    rows, columns = np.mgrid[:side, :side] + 0.5
    out = np.empty((len(curve), side, side, 3), np.float32)
    for i, value in enumerate(curve):
        half = (0.02 + 0.16 * value) * side
        inside = np.clip(half - np.abs(rows - y) + 0.5, 0, 1) * (np.abs(columns - x) < 0.25 * side)
        out[i] = skin + (dark - skin) * inside[..., None]
    return np.clip(out + rng.normal(0, 4, out.shape), 0, 255).astype(np.uint8)


def voice(curve: np.ndarray, seed: int, late: int = 0) -> Tensor:
    """(T,) noise as loud as the mouth is open `late` frames before."""
    length = len(curve) * RATE // 25
    t = np.arange(length) / RATE * 25 - late
    noise = np.random.default_rng(seed).standard_normal(length)
    return torch.from_numpy(0.2 * noise * (0.02 + np.interp(t, np.arange(len(curve)) + 0.5, curve))).float()


@cache
def learnt() -> StableSyncNet:
    """Every picture must find its own sound among others of its talker; some ten seconds of one core."""
    torch.manual_seed(0)
    net, rng, mean = StableSyncNet(TINY), np.random.default_rng(0), 3.0
    talkers = [_talker(net, seed) for seed in range(1000, 1032)]
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    for _ in range(400):
        picture, sound = _windows(*talkers[int(rng.integers(len(talkers)))], rng)
        seen, heard = net(picture, sound)
        alike, own = seen @ heard.T / 0.1, torch.arange(len(picture))
        loss = (F.cross_entropy(alike, own) + F.cross_entropy(alike.T, own)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mean = 0.9 * mean + 0.1 * float(loss.detach())
        if mean < LEARNT:
            return net.eval().requires_grad_(False)
    raise AssertionError(f"the tiny SyncNet did not learn: loss {mean:.3f}")


def _talker(net: StableSyncNet, seed: int, frames: int = 100) -> tuple[Tensor, Tensor]:
    """Frames (F, 3, h, w) in [-1, 1] and the mel window of every place."""
    curve = opening(frames, seed)
    scorer = StableScorer(net, voice(curve, seed), None)
    seen = torch.stack([scorer.frame(face) for face in faces(curve, seed)]) / 127.5 - 1
    mel = mel_rows(scorer.speech, 0, scorer.mels)
    starts = [mel_span(i, FPS, TINY.frames)[0] for i in range(scorer.audio_windows)]
    return seen, torch.stack([mel[:, a : a + scorer.length] for a in starts])


def _windows(seen: Tensor, heard: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """16 windows of one talker, five frames apart."""
    room = min(len(seen) - TINY.frames, len(heard) - 1)
    places = range(int(rng.integers(room - 15 * 5)), room, 5)[:16]
    pictures = torch.stack([seen[i : i + TINY.frames].flatten(0, 1) for i in places])
    return pictures, heard[list(places)][:, None]
