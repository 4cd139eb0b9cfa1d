"""Accuracy of a SyncNet on pairs of frames and audio of prepared clips, half of them shifted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..audio.load import load_audio
from ..dataset import FPS, ClipFile
from ..errors import UserError
from ..media.probe import VideoInfo, probe
from ..media.reader import VideoReader
from ..models.syncnet import ChungSyncNet, StableSyncNet
from ..models.vae import VAE
from ..settings import Progress, ProgressCallback
from .syncnet_sync import StableScorer

THRESHOLD = 0.5
PAIRS = 8
"""Pairs of a clip, half of them in sync."""


@dataclass(frozen=True)
class Accuracy:
    """pairs: how many, half of them in sync. at_half: share classified correctly at THRESHOLD. threshold: the best one
    on every second clip; at_threshold: accuracy with it on the others (nan if there is one clip only). auc: area under
    the ROC curve. likelihood: mean of pairs in sync, of shifted ones. likelihoods, in_sync, clips (N,): every pair.
    skipped: clip to reason.
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
    skipped: dict[str, str]

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
        return {"pairs": self.pairs, "clips": len(set(self.clips.tolist()))} | plain | {"skipped": self.skipped}


def syncnet_accuracy(
    net: StableSyncNet | ChungSyncNet,
    clips: Sequence[ClipFile],
    *,
    seed: int = 1247,
    pairs: int = PAIRS,
    min_shift: int = 1,
    vae: VAE | None = None,
    on_progress: ProgressCallback | None = None,
) -> Accuracy:
    """On aligned clips of 25 frames a second. Deterministic: the same seed and clips give the same pairs.

    clips: windows lie within the part of each, its audio included. pairs: of each clip. min_shift: smallest shift of
    a shifted pair, in frames. UserError: Chung's SyncNet, which has no likelihood; no clip is long enough.
    """
    if isinstance(net, ChungSyncNet):
        raise UserError("Accuracy at a threshold needs a StableSyncNet; Chung's gives distances: use `eval sync`.")
    found, skipped = [], {}
    for n, clip in enumerate(clips):
        random = np.random.default_rng((seed, n))
        try:
            found.append(_measure_pairs(net, clip, random, pairs, min_shift, vae))
        except UserError as error:
            skipped[clip.path.stem] = str(error)
        if on_progress:
            on_progress(Progress("clips", n + 1, len(clips)))
    if not found:
        raise UserError(f"None of the {len(clips)} clips can be measured: {next(iter(skipped.values()))}")
    return _summarize(found, skipped)


@torch.no_grad()
def _measure_pairs(
    net: StableSyncNet, clip: ClipFile, random: np.random.Generator, pairs: int, min_shift: int, vae: VAE | None
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) likelihoods, (N,) bool in sync."""
    info = probe(clip.file())
    if not info.has_audio or info.fps != FPS:
        raise UserError(f"{clip.path} is not a prepared clip: 25 frames per second with audio are needed.")
    scorer = StableScorer(net, load_audio(info.path, info.start).waveform, vae)
    first, end = clip.span(info.frames)
    stop = min(end - scorer.window + 1, scorer.audio_windows)
    if stop - first <= min_shift:
        count = max(0, stop - first)
        raise UserError(f"{clip.path} has {count} windows to draw from; at least {min_shift + 1} are needed.")
    frames = random.integers(first, stop, pairs)
    audio = np.array(
        [i if n % 2 == 0 else _draw_shifted(random, first, stop, i, min_shift) for n, i in enumerate(frames)]
    )
    pictures = _embed_windows(scorer, clip, info, set(frames.tolist()))
    likelihoods = [
        1 - float(scorer.distance(pictures[a], scorer.embed_audio(b, b + 1)))
        for a, b in zip(frames.tolist(), audio.tolist(), strict=True)
    ]
    return np.array(likelihoods), frames == audio


def _embed_windows(scorer: StableScorer, clip: ClipFile, info: VideoInfo, starts: set[int]) -> dict[int, Tensor]:
    """Vectors (1, D) of the windows that begin at these frames; every frame is read once."""
    frames: dict[int, Tensor] = {}
    vectors = {}
    with VideoReader(info) as reader:
        for start in sorted(starts):
            frames = {i: frame for i, frame in frames.items() if i >= start}
            missing = [i for i in range(start, start + scorer.window) if i not in frames]
            frames |= zip(missing, (scorer.frame(clip.crop(f)) for f in reader.read(missing)), strict=True)
            vectors[start] = scorer.embed_video(torch.stack([frames[start + i] for i in range(scorer.window)]))
    return vectors


def _draw_shifted(random: np.random.Generator, first: int, stop: int, here: int, min_shift: int) -> int:
    """Another start, min_shift frames away or more; the farther end where there is none so far."""
    starts = [i for i in range(first, stop) if abs(i - here) >= min_shift]
    return int(random.choice(starts)) if starts else max((first, stop - 1), key=lambda i: abs(i - here))


def _summarize(found: Sequence[tuple[np.ndarray, np.ndarray]], skipped: dict[str, str]) -> Accuracy:
    likely, truth = (np.concatenate([pair[i] for pair in found]) for i in (0, 1))
    clips = np.concatenate([np.full(len(pair[0]), n) for n, pair in enumerate(found)])
    choosing = clips % 2 == 1  # every second clip chooses the threshold, the others are measured with it
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
        skipped=skipped,
    )


def best_threshold(likely: np.ndarray, truth: np.ndarray) -> float:
    """The threshold of highest accuracy; the median of equally good ones."""
    ordered = np.unique(likely)
    middles = np.concatenate(([ordered[0] - 1e-3], (ordered[1:] + ordered[:-1]) / 2, [ordered[-1] + 1e-3]))
    right = ((likely >= middles[:, None]) == truth).mean(1)
    return float(np.median(middles[right == right.max()]))
