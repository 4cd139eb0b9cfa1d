"""Synthetic talkers: a dark bar on skin colour, as high as the voice is loud; and a SyncNet that learns them."""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from latentsync.evaluation.lse import FPS, StableJudge, mel_rows
from latentsync.models.syncnet import EncoderConfig, StableSyncNet, SyncNetConfig
from latentsync.syncmel import mel_span

RATE = 16_000
SIDE = 32
LEARNT = 0.5
"""Running mean of the loss (0.69 is chance) at which training stops."""
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
    """(F, side, side, 3) uint8: the bar sits in the lower half, its place and all colours are the seed's."""
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
    """BCE on the cosine as the spec says, half of the pairs shifted within the clip; half a minute of one core."""
    torch.manual_seed(0)
    net, rng, mean = StableSyncNet(TINY), np.random.default_rng(0), 0.7
    talkers = [_talker(net, seed) for seed in range(1000, 1032)]
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    for _ in range(400):
        picture, sound, target = _batch(talkers, rng, 32)
        seen, heard = net(picture, sound)
        likely = (seen * heard).sum(1).clamp(1e-4, 1 - 1e-4)
        loss = torch.nn.functional.binary_cross_entropy(likely, target)
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
    judge = StableJudge(net, voice(curve, seed), None)
    seen = torch.stack([judge.frame(face) for face in faces(curve, seed)]) / 127.5 - 1
    mel = mel_rows(judge.speech, 0, judge.mels)
    starts = [mel_span(i, FPS, TINY.frames)[0] for i in range(judge.sounds)]
    return seen, torch.stack([mel[:, a : a + judge.length] for a in starts])


def _batch(talkers: list[tuple[Tensor, Tensor]], rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor, Tensor]:
    pictures, sounds = [], []
    for k in range(size):
        seen, heard = talkers[int(rng.integers(len(talkers)))]
        last = min(len(seen) - TINY.frames, len(heard) - 1)
        here = int(rng.integers(last))
        there = here if k % 2 == 0 else (here + int(rng.integers(3, last - 3))) % last
        pictures.append(seen[here : here + TINY.frames].flatten(0, 1))
        sounds.append(heard[there])
    target = (torch.arange(size) % 2 == 0).float()
    return torch.stack(pictures), torch.stack(sounds)[:, None], target
