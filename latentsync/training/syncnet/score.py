"""How well a SyncNet in training knows sync on clips that it was not shown: each window against the others' sound."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...errors import UserError
from ...models.syncnet import StableSyncNet
from ..dataset import ClipFile
from .data import CropStore

FLOOR = 1e-4
"""Likelihoods are kept this far from 0 and 1, where the cross-entropy has no end."""
RUN = 12
"""Windows in a row that are judged together, at most."""


@dataclass(frozen=True)
class Score:
    """likelihood, shift (P,): of all pairs of picture and sound; shift 0 is in sync. least: of the shifts that count as
    out of sync; nearer ones are in the curves only. ranks: share of windows whose own sound is the likeliest."""

    likelihood: np.ndarray
    shift: np.ndarray
    clip: np.ndarray
    least: int
    first: float

    @property
    def together(self) -> np.ndarray:
        return self.likelihood[self.shift == 0]

    @property
    def apart(self) -> np.ndarray:
        return self.likelihood[np.abs(self.shift) >= self.least]

    def accuracy(self, threshold: float = 0.5) -> float:
        """Share judged rightly, pairs in sync and shifted ones counting half each: chance is 0.5."""
        return float(((self.together >= threshold).mean() + (self.apart < threshold).mean()) / 2)

    def best_threshold(self) -> float:
        places = np.unique(np.round(self.likelihood, 3))
        return float(places[int(np.argmax([self.accuracy(t) for t in places]))])

    def accuracy_chosen(self) -> float:
        """With the threshold that is best on the other half of the clips, not fitted to what it judges."""
        parts = []
        for half in (0, 1):
            chooses, judged = (self._of(self.clip % 2 == side) for side in (half, 1 - half))
            if len(chooses.together) and len(judged.together):
                parts.append(judged.accuracy(chooses.best_threshold()))
        return float(np.mean(parts)) if parts else self.accuracy(self.best_threshold())

    def _of(self, mask: np.ndarray) -> "Score":
        return Score(self.likelihood[mask], self.shift[mask], self.clip[mask], self.least, self.first)

    def auc(self) -> float:
        """Chance that a pair in sync is likelier than a shifted one."""
        ordered = np.sort(self.apart)
        low, high = (np.searchsorted(ordered, self.together, side) for side in ("left", "right"))
        return float(((low + high) / 2).mean() / len(ordered))

    def bce(self) -> float:
        a, b = (np.clip(v, FLOOR, 1 - FLOOR) for v in (self.together, self.apart))
        return float((-np.log(a).mean() - np.log(1 - b).mean()) / 2)

    def numbers(self) -> dict[str, float]:
        return {
            "bce": self.bce(),
            "accuracy": self.accuracy(),
            "accuracy at threshold": self.accuracy_chosen(),
            "auc": self.auc(),
            "in sync": float(self.together.mean()),
            "shifted": float(self.apart.mean()),
            "own sound first": self.first,
        }


@torch.no_grad()
def score(
    net: StableSyncNet,
    store: CropStore,
    clips: Sequence[ClipFile],
    windows: int,
    *,
    least: int = 1,
    device: torch.device | str = "cpu",
) -> Score:
    """Of up to so many windows, in runs of neighbours spread evenly over the clips. Deterministic."""
    training = net.training
    net.eval()
    likelihood, shift, names, firsts = [], [], [], []
    for n, (clip, starts) in enumerate(_runs(store, clips, windows)):
        picture, mel = windows_of(store, clip, starts)
        seen, heard = net(picture.to(device), mel.to(device))
        table = (seen.float() @ heard.float().T).cpu().numpy()
        shift.append(np.subtract.outer(starts, starts).ravel())
        likelihood.append(table.ravel())
        names.append(np.full(table.size, n))
        firsts.append(table.argmax(1) == np.arange(len(starts)))
    net.train(training)
    if not likelihood:
        raise UserError("No held-out clip is long enough to be judged.")
    parts = (np.concatenate(part) for part in (likelihood, shift, names))
    return Score(*parts, least=least, first=float(np.concatenate(firsts).mean()))


def _runs(store: CropStore, clips: Sequence[ClipFile], windows: int) -> list[tuple[ClipFile, np.ndarray]]:
    runs = []
    for clip in clips:
        starts = np.array(store.starts(clip))
        runs += [(clip, part) for part in np.array_split(starts, -(-len(starts) // RUN))]
    picked = np.linspace(0, len(runs) - 1, max(1, min(len(runs), windows // RUN))).round().astype(int)
    return [runs[i] for i in sorted(set(picked.tolist()))]


def windows_of(store: CropStore, clip: ClipFile, starts: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
    """(N, frames · C, h, w) in [-1, 1], (N, 1, 80, T), unchanged."""
    frames, ring = store.config.frames, store.ring
    crops = store.crops(clip)
    inner = crops[:, ring:-ring, ring:-ring] if ring else crops
    pictures = torch.stack([_stacked(inner[int(s) : int(s) + frames]) for s in starts])
    return pictures, torch.stack([store.mel(clip, int(s), frames) for s in starts])


def _stacked(frames: np.ndarray) -> Tensor:
    if frames.dtype != np.uint8:
        return torch.from_numpy(frames.astype(np.float32)).flatten(0, 1)
    return (torch.from_numpy(frames.astype(np.float32)) / 127.5 - 1).permute(0, 3, 1, 2).flatten(0, 1)


def draw_scores(found: Score, path: Path, title: str) -> Path:
    """Likelihoods of pairs in sync and shifted, and the mean over shifts."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError('Charts need matplotlib; type: pip install "latentsync[train]".') from error
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    bins = np.linspace(0, 1, 41).tolist()
    for values, name in ((found.apart, "shifted"), (found.together, "in sync")):
        left.hist(values, bins, density=True, alpha=0.6, label=f"{name} ({len(values)})")
    left.axvline(0.5, color="0.4", lw=1, ls=":")
    left.set(xlabel="likelihood of sync", title=f"accuracy {found.accuracy():.1%}, AUC {found.auc():.3f}")
    left.legend(fontsize=8)
    shifts = np.unique(found.shift)
    means = [found.likelihood[found.shift == s].mean() for s in shifts]
    right.plot(shifts, means, marker=".")
    right.axvline(0, color="0.4", lw=1, ls=":")
    right.set(xlabel="picture later than sound (frames)", title="mean likelihood")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    return path
