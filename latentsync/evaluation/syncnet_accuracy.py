"""How often a SyncNet is right: on pairs of picture and sound of prepared clips, half of them shifted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..audio.load import load_audio
from ..errors import UserError
from ..media.probe import VideoInfo, probe
from ..media.reader import VideoReader
from ..models.syncnet import ChungSyncNet, StableSyncNet
from .clips import margin_of
from .syncnet_sync import FPS, StableJudge, Vae

THRESHOLD = 0.5
PAIRS = 8
"""Pairs of a clip, half of them in sync."""

OnClip = Callable[[int, int], None]


@dataclass(frozen=True)
class Accuracy:
    """pairs: how many, half of them in sync. at_half: share judged rightly at THRESHOLD. threshold: the best one on the
    clips set aside for choosing it; at_threshold: the share judged rightly with it on the others (nan where there is
    one clip only). auc: the share of (in sync, shifted) couples of which the first is the likelier. likelihood: mean of
    pairs in sync, of shifted ones. likelihoods, in_sync, clips (N,): every pair. left_out: clip -> why.
    """

    pairs: int
    at_half: float
    threshold: float
    at_threshold: float
    auc: float
    likelihood: tuple[float, float]
    likelihoods: np.ndarray
    in_sync: np.ndarray
    clips: np.ndarray
    left_out: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        facts = {
            "accuracy_at_0.5": self.at_half,
            "threshold": self.threshold,
            "accuracy_at_threshold": self.at_threshold,
            "auc": self.auc,
            "likelihood_in_sync": self.likelihood[0],
            "likelihood_shifted": self.likelihood[1],
        }
        plain = {k: round(v, 4) if np.isfinite(v) else None for k, v in facts.items()}
        return {"pairs": self.pairs, "clips": len(set(self.clips.tolist()))} | plain | {"left_out": self.left_out}


def syncnet_accuracy(
    net: StableSyncNet | ChungSyncNet,
    paths: Sequence[Path],
    *,
    seed: int = 1247,
    pairs: int = PAIRS,
    held_out: float = 1.0,
    held_at: float = 0.5,
    least: int = 1,
    vae: Vae | None = None,
    on_clip: OnClip | None = None,
) -> Accuracy:
    """On aligned clips of 25 frames a second. Deterministic: the same seed and clips give the same pairs.

    pairs: of each clip. held_out: only this share of every clip is asked about, the sound included; held_at: where it
    lies, 0 at the clip's beginning, 1 at its end (as training.syncdata.held_out). least: frames by which shifted pairs
    are shifted at least; where to is drawn among all these places. UserError: Chung's SyncNet (it has no likelihood),
    no clip that is long enough.
    """
    if isinstance(net, ChungSyncNet):
        raise UserError(
            "Accuracy at a threshold is asked of a StableSyncNet; Chung's gives distances: use `eval sync`."
        )
    low = held_at * (1 - held_out)
    found, left_out = [], {}
    for n, path in enumerate(paths):
        random = np.random.default_rng((seed, n))
        try:
            found.append(_pairs(net, path, random, pairs, (low, low + held_out), least, vae))
        except UserError as error:
            left_out[path.stem] = str(error)
        if on_clip:
            on_clip(n + 1, len(paths))
    if not found:
        raise UserError(f"None of the {len(paths)} clips can be asked about: {next(iter(left_out.values()))}")
    return _judged(found, left_out)


@torch.no_grad()
def _pairs(
    net: StableSyncNet,
    path: Path,
    random: np.random.Generator,
    pairs: int,
    part: tuple[float, float],
    least: int,
    vae: Vae | None,
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) likelihoods, (N,) bool in sync. part: shares of the clip between which windows lie."""
    info = probe(path)
    if not info.has_audio or info.fps != FPS:
        raise UserError(f"{path} is no prepared clip: 25 frames a second with sound are needed.")
    judge = StableJudge(net, load_audio(path, info.start).waveform, vae)
    first, end = (round(share * info.frames) for share in part)
    stop = min(end - judge.window + 1, judge.sounds)
    if stop - first <= least:
        raise UserError(f"{path} has {max(0, stop - first)} windows to draw from; at least {least + 1} are needed.")
    seen = random.integers(first, stop, pairs)
    heard = np.array([i if n % 2 == 0 else _elsewhere(random, first, stop, i, least) for n, i in enumerate(seen)])
    pictures = _seen(judge, info, set(seen.tolist()))
    likely = [
        1 - float(judge.distance(pictures[a], judge.hear(b, b + 1)))
        for a, b in zip(seen.tolist(), heard.tolist(), strict=True)
    ]
    return np.array(likely), seen == heard


def _seen(judge: StableJudge, info: VideoInfo, places: set[int]) -> dict[int, Tensor]:
    """Vectors (1, D) of the windows that begin there; every frame is read once."""
    margin = margin_of(info.path)
    inner = slice(margin, -margin or None)
    held: dict[int, Tensor] = {}
    vectors = {}
    with VideoReader(info) as reader:
        for place in sorted(places):
            held = {i: frame for i, frame in held.items() if i >= place}
            missing = [i for i in range(place, place + judge.window) if i not in held]
            held |= zip(missing, (judge.frame(f[inner, inner]) for f in reader.read(missing)), strict=True)
            vectors[place] = judge.see(torch.stack([held[place + i] for i in range(judge.window)]))
    return vectors


def _elsewhere(random: np.random.Generator, first: int, stop: int, here: int, least: int) -> int:
    """Another place, `least` frames away or more; the farther end where there is none so far."""
    places = [i for i in range(first, stop) if abs(i - here) >= least]
    return int(random.choice(places)) if places else max((first, stop - 1), key=lambda i: abs(i - here))


def _judged(found: Sequence[tuple[np.ndarray, np.ndarray]], left_out: dict[str, str]) -> Accuracy:
    likely, truth = (np.concatenate([pair[i] for pair in found]) for i in (0, 1))
    clips = np.concatenate([np.full(len(pair[0]), n) for n, pair in enumerate(found)])
    choosing = clips % 2 == 1  # every second clip chooses the threshold, the others are judged by it
    threshold, at_threshold = float("nan"), float("nan")
    if choosing.any():
        threshold = best_threshold(likely[choosing], truth[choosing])
        at_threshold = float(((likely >= threshold) == truth)[~choosing].mean())
    above = likely[truth][:, None] - likely[~truth]
    return Accuracy(
        pairs=len(likely),
        at_half=float(((likely >= THRESHOLD) == truth).mean()),
        threshold=threshold,
        at_threshold=at_threshold,
        auc=float(((above > 0) + 0.5 * (above == 0)).mean()),
        likelihood=(float(likely[truth].mean()), float(likely[~truth].mean())),
        likelihoods=likely,
        in_sync=truth,
        clips=clips,
        left_out=left_out,
    )


def best_threshold(likely: np.ndarray, truth: np.ndarray) -> float:
    """What parts the two best; of equally good ones the middle."""
    ordered = np.unique(likely)
    middles = np.concatenate(([ordered[0] - 1e-3], (ordered[1:] + ordered[:-1]) / 2, [ordered[-1] + 1e-3]))
    right = ((likely >= middles[:, None]) == truth).mean(1)
    return float(np.median(middles[right == right.max()]))
