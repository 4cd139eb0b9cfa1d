"""The SyncNet's task: images and audio of one moment are in sync, those of other moments of the same clip are not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...dataset import ClipFile
from ...errors import UserError
from ...models.syncnet import StableSyncNet, SyncNetConfig
from ...weights.files import read_tensors, write_safetensors
from ...weights.syncnet_files import save_syncnet
from ..dataset import ClipDataset, Sample, to_signed
from ..recipes import SyncNetRecipe
from ..task import Event
from .data import CropStore
from .score import EPSILON, draw_scores, score

RESULT, HEADS, PUBLIC = "syncnet.safetensors", "heads.safetensors", "syncnet.pt"
MAX_SCALE = 100.0
"""Of the contrastive loss (Radford et al. 2021)."""


def cross_entropy(likelihood: Tensor, in_sync: Tensor) -> Tensor:
    """Binary cross-entropy in which pairs in sync and shifted pairs count half each, however many there are.

    likelihood: cosine similarities, 0 to 1. in_sync: bool of the same shape. With as many pairs of each kind it is the
    loss of Prajwal et al. 2020.
    """
    p = likelihood.float().clamp(EPSILON, 1 - EPSILON)
    parts = [-p[in_sync].log(), -(1 - p[~in_sync]).log()]
    return torch.stack([part.mean() for part in parts if len(part)]).mean()


def contrastive_loss(cosine: Tensor, allowed: Tensor, scale: Tensor) -> Tensor:
    """InfoNCE (van den Oord et al. 2018) both ways, as in Radford et al. 2021, over the allowed pairs.

    cosine, allowed: (N, N), a row for each window's images; the diagonal is in sync.
    """
    logits = (scale * cosine.float()).masked_fill(~allowed, -torch.inf)
    targets = torch.arange(len(cosine), device=cosine.device)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def pair_masks(clip: Tensor, start: Tensor, min_shift: int) -> tuple[Tensor, Tensor]:
    """(N, N) bool each, of N windows: pairs shifted within a clip by min_shift frames or more; pairs that may be
    contrasted: those, windows of different clips, and the diagonal."""
    same = clip[:, None] == clip
    far = (start[:, None] - start).abs() >= min_shift
    return same & far, ~same | far | torch.eye(len(clip), dtype=torch.bool, device=clip.device)


class SyncNetTrainingModule(nn.Module):
    """A SyncNet with parts for training only: heads that predict the mouth opening, and the contrast's scale."""

    def __init__(self, config: SyncNetConfig, *, opening: bool = False, contrast: bool = False) -> None:
        super().__init__()
        self.syncnet = StableSyncNet(config)
        width = config.visual.widths[-1]
        self.head_scale = width**0.5  # unit vectors to numbers around one
        self.visual_head, self.audio_head = (nn.Linear(width, config.frames) if opening else None for _ in range(2))
        self.log_scale = nn.Parameter(torch.tensor([10.0]).log()) if contrast else None

    def forward(self, images: Tensor, mel: Tensor) -> dict[str, Tensor]:
        """visual, audio (N, D); with opening: opening_visual, opening_audio (N, F); with contrast: scale (1,)."""
        visual, audio = self.syncnet(images, mel)
        out = {"visual": visual.float(), "audio": audio.float()}
        if self.visual_head is not None and self.audio_head is not None:
            out["opening_visual"] = self.visual_head(visual * self.head_scale)
            out["opening_audio"] = self.audio_head(audio * self.head_scale)
        if self.log_scale is not None:
            out["scale"] = self.log_scale.exp().clamp(max=MAX_SCALE)
        return out


@dataclass
class SyncNetTask:
    """See Task. time, people: held-out clips to score."""

    network: SyncNetTrainingModule
    recipe: SyncNetRecipe
    store: CropStore
    data: ClipDataset
    validation: ClipDataset | None
    time: Sequence[ClipFile]
    people: Sequence[ClipFile]
    metadata: Mapping[str, object] = field(default_factory=dict)
    result: str = RESULT
    device: torch.device | str = "cpu"

    @property
    def frozen(self) -> list[nn.Module]:
        return []

    @property
    def result_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.network.syncnet.state_dict().values())

    def dry_loss(self, network: Any, batch: Sample) -> Tensor:
        """The losses pick pairs by their values; those pairs are few numbers."""
        images, mel = (batch[name].flatten(0, 1) for name in ("images", "mel"))
        out = network(to_signed(images) if images.dtype == torch.uint8 else images, mel)
        return torch.stack([values.float().sum() for values in out.values()]).sum()

    def to(self, device: torch.device) -> None:
        self.device = device

    @property
    def criterion(self) -> str:
        """The cross-entropy on held-out clips, which says more than that of the few pairs of a validation. A sharded
        network has the latter only."""
        return "time/bce" if self.time else "people/bce"

    def losses(self, network: nn.Module, batch: Sample, *, validating: bool = False) -> dict[str, Tensor]:
        """total and its parts, and the accuracy on the batch's pairs at a threshold of 0.5."""
        images, mel = (batch[name].flatten(0, 1) for name in ("images", "mel"))
        out = network(to_signed(images) if images.dtype == torch.uint8 else images, mel)
        likelihood, in_sync, allowed = self._pairs(out["visual"], out["audio"], batch)
        losses = {"bce": cross_entropy(likelihood, in_sync)}
        total = losses["bce"]
        if "scale" in out:
            losses["contrast"] = contrastive_loss(out["visual"] @ out["audio"].T, allowed, out["scale"])
            total = total + self.recipe.contrast * losses["contrast"]
        for name in ("opening_visual", "opening_audio"):
            if name in out:
                losses[name] = F.mse_loss(out[name].float(), batch["opening"].flatten(0, 1))
                total = total + self.recipe.opening * losses[name]
        correct = ((likelihood >= 0.5) == in_sync).float()
        accuracy = torch.stack([correct[kind].mean() for kind in (in_sync, ~in_sync) if kind.any()]).mean()
        return losses | {"accuracy": accuracy, "total": total}

    def _pairs(self, visual: Tensor, audio: Tensor, batch: Sample) -> tuple[Tensor, Tensor, Tensor]:
        """(P,) likelihoods, (P,) in sync or not, (N, N) pairs that may be contrasted."""
        start: Tensor = batch["start"]
        clip = torch.arange(len(start), device=start.device).repeat_interleave(start.shape[1])
        shifted, allowed = pair_masks(clip, start.flatten(), self.recipe.min_shift)
        if self.recipe.windows == 1:
            return (visual * audio).sum(1), batch["in_sync"].flatten(), allowed
        diagonal = torch.eye(len(visual), dtype=torch.bool, device=visual.device)
        used = shifted | diagonal
        return (visual @ audio.T)[used], diagonal[used], allowed

    def evaluate(self, folder: Path, step: int, event: Event) -> dict[str, float]:
        """Scores on held-out time and people, with a chart each."""
        values: dict[str, float] = {}
        for name, clips in (("time", self.time), ("people", self.people)):
            if clips:
                windows, options = (
                    self.recipe.score_windows,
                    {"min_shift": self.recipe.min_shift, "device": self.device},
                )
                scores = score(self.network.syncnet, self.store, clips, windows, **options)
                draw_scores(scores, folder / f"{name}.png", f"held-out {name}, step {step}")
                values |= {f"{name}/{key}": value for key, value in scores.numbers().items()}
        return values

    def save(self, folder: Path, state: dict[str, Tensor], step: int) -> None:
        """The SyncNet, also in the public form if the recipe says so; the other parts in a file of their own."""
        own = {k.removeprefix("syncnet."): v for k, v in state.items() if k.startswith("syncnet.")}
        with torch.device("meta"):
            net = StableSyncNet(self.network.syncnet.config)
        net.load_state_dict(own, assign=True)
        save_syncnet(folder / RESULT, net, {"step": step, **self.metadata})
        heads = {key: value for key, value in state.items() if not key.startswith("syncnet.")}
        if heads:
            write_safetensors(folder / HEADS, heads, {"kind": "heads of a SyncNet in training"})
        if self.recipe.public_form:
            plain = {key: tensor.detach().cpu() for key, tensor in own.items()}
            torch.save({"global_step": step, "state_dict": plain}, folder / PUBLIC)

    def load(self, folder: Path) -> None:
        state = {f"syncnet.{key}": value for key, value in read_tensors(folder / RESULT).items()}
        if (folder / HEADS).is_file():
            state |= read_tensors(folder / HEADS)
        try:
            self.network.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(
                f"{folder} is of another network or recipe; give the same --preset and --config, or another --out."
            ) from error
