"""Synthetic talkers: a dark bar on a face-coloured square, as high as the voice is loud; and a SyncNet that learns them."""

import numpy as np
import torch
from torch import Tensor

from latentsync.models.syncnet import EncoderConfig, StableSyncNet, SyncNetConfig

RATE, FPS = 16_000, 25
SIDE = 32
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
    knots = rng.uniform(0, 1, frames * 9 // FPS + 3) ** 2
    return np.interp(np.arange(frames) * 9 / FPS, np.arange(len(knots)), knots)


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
    length = len(curve) * RATE // FPS
    t = np.arange(length) / RATE * FPS - late
    noise = np.random.default_rng(seed).standard_normal(length)
    return torch.from_numpy(0.2 * noise * (0.02 + np.interp(t, np.arange(len(curve)) + 0.5, curve))).float()


def learn(steps: int = 120, batch: int = 32, seed: int = 0, frames: int = 100) -> StableSyncNet:
    """BCE on the cosine, as the spec says; pairs of one talker, half of them shifted within the clip."""
    from latentsync.evaluation.lse import StableJudge

    torch.manual_seed(seed)
    net = StableSyncNet(TINY)
    talkers = [(opening(frames, n), n) for n in range(1000, 1032)]
    judges = [StableJudge(net, voice(curve, n), None) for curve, n in talkers]
    mels = [sound(judge) for judge in judges]
    seen = [torch.stack([judge.frame(f) for f in faces(curve, n)]) for judge, (curve, n) in zip(judges, talkers, strict=True)]
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    mean = 0.7
    for step in range(steps):
        pictures, sounds, targets = [], [], []
        for k in range(batch):
            n = int(rng.integers(len(talkers)))
            last = min(frames - TINY.frames, len(mels[n]) - 1)
            i = int(rng.integers(last))
            j = i if k % 2 == 0 else (i + int(rng.integers(3, last - 3))) % last
            pictures.append(seen[n][i : i + TINY.frames].flatten(0, 1).float() / 127.5 - 1)
            sounds.append(mels[n][j])
            targets.append(float(i == j))
        a, b = net(torch.stack(pictures), torch.stack(sounds)[:, None])
        likely = (a * b).sum(1).clamp(1e-4, 1 - 1e-4)
        loss = torch.nn.functional.binary_cross_entropy(likely, torch.tensor(targets))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mean = 0.9 * mean + 0.1 * float(loss.detach())
        if mean < 0.5:
            print('stop', step); break
        if step % 25 == 24:
            right = ((likely > 0.5) == (torch.tensor(targets) > 0.5)).float().mean()
            print(step, round(float(loss.detach()), 3), round(float(right), 3))
    return net.eval().requires_grad_(False)


def sound(judge) -> Tensor:
    from latentsync.evaluation.lse import FPS as RATE_25
    from latentsync.evaluation.lse import mel_rows
    from latentsync.syncmel import mel_span

    starts = [mel_span(i, RATE_25, TINY.frames)[0] for i in range(judge.sounds)]
    mel = mel_rows(judge.speech, 0, judge.mels)
    return torch.stack([mel[:, a : a + judge.length] for a in starts])
