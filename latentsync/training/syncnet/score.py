"""Scores of a SyncNet in training on held-out clips: the images of each window against the audio of its neighbors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...dataset import ClipFile
from ...errors import UserError
from ...files import atomic_path
from ...models.syncnet import StableSyncNet
from ..dataset import to_signed
from ..logging import new_figure
from .data import CropStore

EPSILON = 1e-4
"""Likelihoods are kept this far from 0 and 1, where the cross-entropy is infinite."""
GROUP = 12
"""Neighboring windows that are scored together, at most."""


@dataclass(frozen=True)
class Score:
    """likelihood, shift, clip (P,): of all pairs of images and audio; shift 0 is in sync. min_shift: smaller shifts do
    not count as out of sync; they are in the charts only. top1: share of windows whose own audio is the likeliest."""

    likelihood: np.ndarray
    shift: np.ndarray
    clip: np.ndarray
    min_shift: int
    top1: float

    @property
    def in_sync(self) -> np.ndarray:
        return self.likelihood[self.shift == 0]

    @property
    def shifted(self) -> np.ndarray:
        return self.likelihood[np.abs(self.shift) >= self.min_shift]

    def accuracy(self, threshold: float = 0.5) -> float:
        """Pairs in sync and shifted pairs count half each: chance is 0.5."""
        return float(((self.in_sync >= threshold).mean() + (self.shifted < threshold).mean()) / 2)

    def best_threshold(self) -> float:
        thresholds = np.unique(np.round(self.likelihood, 3))
        return float(thresholds[int(np.argmax([self.accuracy(t) for t in thresholds]))])

    def tuned_accuracy(self) -> float:
        """With the threshold that is best on the other half of the clips."""
        parts = []
        for half in (0, 1):
            masks = (self.clip % 2 == side for side in (half, 1 - half))
            tuned, tested = (
                replace(self, likelihood=self.likelihood[m], shift=self.shift[m], clip=self.clip[m]) for m in masks
            )
            if len(tuned.in_sync) and len(tested.in_sync):
                parts.append(tested.accuracy(tuned.best_threshold()))
        return float(np.mean(parts)) if parts else self.accuracy(self.best_threshold())

    def auc(self) -> float:
        """Probability that a pair in sync has a higher likelihood than a shifted one."""
        ordered = np.sort(self.shifted)
        low, high = (np.searchsorted(ordered, self.in_sync, side) for side in ("left", "right"))
        return float(((low + high) / 2).mean() / len(ordered))

    def bce(self) -> float:
        a, b = (np.clip(v, EPSILON, 1 - EPSILON) for v in (self.in_sync, self.shifted))
        return float((-np.log(a).mean() - np.log(1 - b).mean()) / 2)

    def numbers(self) -> dict[str, float]:
        return {
            "bce": self.bce(),
            "accuracy": self.accuracy(),
            "accuracy at threshold": self.tuned_accuracy(),
            "auc": self.auc(),
            "in sync": float(self.in_sync.mean()),
            "shifted": float(self.shifted.mean()),
            "top-1 accuracy": self.top1,
        }


@torch.no_grad()
def score(
    net: StableSyncNet,
    store: CropStore,
    clips: Sequence[ClipFile],
    windows: int,
    *,
    min_shift: int = 1,
    device: torch.device | str = "cpu",
) -> Score:
    """Of up to this many windows, in groups of neighbors spread evenly over the clips. Deterministic."""
    training = net.training
    net.eval()
    likelihood, shift, clip_of, top1 = [], [], [], []
    for n, (clip, starts) in enumerate(_groups(store, clips, windows)):
        images, mel = read_windows(store, clip, starts)
        visual, audio = net(images.to(device), mel.to(device))
        table = (visual.float() @ audio.float().T).cpu().numpy()
        shift.append(np.subtract.outer(starts, starts).ravel())
        likelihood.append(table.ravel())
        clip_of.append(np.full(table.size, n))
        top1.append(table.argmax(1) == np.arange(len(starts)))
    net.train(training)
    if not likelihood:
        raise UserError("No held-out clip is long enough to be scored; hold out more.")
    parts = (np.concatenate(part) for part in (likelihood, shift, clip_of))
    return Score(*parts, min_shift=min_shift, top1=float(np.concatenate(top1).mean()))


def _groups(store: CropStore, clips: Sequence[ClipFile], windows: int) -> list[tuple[ClipFile, np.ndarray]]:
    groups = []
    for clip in clips:
        starts = np.array(store.starts(clip))
        groups += [(clip, part) for part in np.array_split(starts, -(-len(starts) // GROUP))]
    picked = np.linspace(0, len(groups) - 1, max(1, min(len(groups), windows // GROUP))).round().astype(int)
    return [groups[i] for i in sorted(set(picked.tolist()))]


def read_windows(store: CropStore, clip: ClipFile, starts: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
    """(N, frames · C, h, w) in [-1, 1] and (N, 1, 80, T), without augmentation."""
    frames, border = store.config.frames, store.border
    crops = store.crops(clip)
    inner = crops[:, border:-border, border:-border] if border else crops
    images = torch.stack([torch.from_numpy(inner[s : s + frames].astype(np.float32)) for s in starts])
    if crops.dtype == np.uint8:
        images = to_signed(images).permute(0, 1, 4, 2, 3)
    return images.flatten(1, 2), torch.stack([store.mel(clip, int(s), frames) for s in starts])


def draw_scores(scores: Score, path: Path, title: str) -> Path:
    """Histograms of the likelihoods in sync and shifted, and the mean over shifts."""
    figure = new_figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    bins = np.linspace(0, 1, 41).tolist()
    for values, name in ((scores.shifted, "shifted"), (scores.in_sync, "in sync")):
        left.hist(values, bins, density=True, alpha=0.6, label=f"{name} ({len(values)})")
    left.axvline(0.5, color="0.4", lw=1, ls=":")
    left.set(xlabel="likelihood of sync", title=f"accuracy {scores.accuracy():.1%}, AUC {scores.auc():.3f}")
    left.legend(fontsize=8)
    shifts = np.unique(scores.shift)
    means = [scores.likelihood[scores.shift == s].mean() for s in shifts]
    right.plot(shifts, means, marker=".")
    right.axvline(0, color="0.4", lw=1, ls=":")
    right.set(xlabel="images later than audio (frames)", title="mean likelihood")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as part:
        figure.savefig(part, dpi=100, format="png")
    return path
