"""Training of StableSyncNet: picture and sound of the same moment agree, those of other moments of the clip do not."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoint import read_tensors, write_safetensors
from ..errors import UserError
from ..models.syncnet import PUBLISHED, EncoderConfig, StableSyncNet, SyncNetConfig, config_from_dict, save_syncnet
from .charts import draw_charts
from .dataset import ClipDataset, ClipFile, Sample, find_clips
from .distributed import make_accelerator
from .stages import RunSettings, build, read_yaml, write_recipe
from .syncdata import CropStore, SyncWindows, held_out, weighted
from .syncscore import draw_scores, score
from .trainer import RECIPE, Trainer

Say = Callable[[str], None]
Encode = Callable[[Tensor], Tensor]
"""Pictures (N, 3, R, R) in [-1, 1] to VAE latents (N, C, h, w)."""

RESULT, HEADS = "syncnet.safetensors", "heads.safetensors"
FLOOR = 1e-4
"""Likelihoods are kept this far from 0 and 1, where the cross-entropy has no end."""


@dataclass(frozen=True)
class SyncRecipe(RunSettings):
    """How a SyncNet is trained. Defaults: the public recipe's, pairs of which half are shifted within their clip.

    batch: clips at once in each process. windows: of each clip. With 1, each clip gives one pair, in sync or shifted;
    with more, all pictures of the batch meet all sounds, which teaches more for the same encoding. least_shift: frames
    by which shifted pairs are shifted at least. contrast: weight of telling the own sound among all (InfoNCE, needs
    windows > 1). opening: weight of guessing, from picture and from sound, how far the mouth is open, where the clips
    come with that. augment: strength of the changes to pictures and sounds, 0 for none. flip: mirror half of the clips.
    holdout_time: share of every clip, from its middle, that is never trained on; holdout_people: recordings whose names
    begin so. score_windows: held-out windows that are judged at each validation.
    """

    windows: int = 1
    least_shift: int = 1
    contrast: float = 0.0
    opening: float = 0.0
    augment: float = 0.0
    flip: bool = False
    holdout_time: float = 0.1
    holdout_people: tuple[str, ...] = ()
    score_windows: int = 512
    batch: int = 64
    average: float = 0.0
    checkpointing: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.windows < 1 or self.least_shift < 1:
            raise UserError(f"windows is {self.windows} and least_shift {self.least_shift}; both must be 1 or more.")
        if self.contrast and self.windows < 2:
            raise UserError("contrast compares the windows of a clip with each other; set windows to 2 or more.")
        if not 0 <= self.holdout_time < 0.9 or min(self.contrast, self.opening, self.augment) < 0:
            raise UserError("holdout_time must lie between 0 and 0.9; contrast, opening and augment must not be below 0.")


def _plain(widths: Sequence[int], factors: Sequence[Any]) -> EncoderConfig:
    return EncoderConfig(1, tuple(widths), tuple(factors), (False,) * len(widths))


SMALL = SyncNetConfig(
    audio=_plain((32, 32, 64, 128, 256, 256), ((2, 2), (2, 2), (2, 2), (2, 2), (2, 2), (2, 1))),
    visual=dataclasses.replace(_plain((32, 64, 128, 128, 256), ((2, 2), (2, 2), (2, 2), (2, 2), (1, 3))), in_channels=30),
    frames=10,
    size=(28, 56),
    mels=(80, 32),
)
"""For two CPU cores: 0.4 s of a mouth 56 pixels wide."""

NETWORKS = {**PUBLISHED, "small": SMALL}

PRESETS: dict[str, dict[str, Any]] = {
    **{name: {} for name in PUBLISHED},
    "small": {
        "batch": 4,
        "windows": 8,
        "least_shift": 2,
        "rate": 1e-3,
        "weight_decay": 0.05,
        "average": 0.99,
        "contrast": 1.0,
        "opening": 1.0,
        "augment": 1.0,
        "flip": True,
        "holdout_time": 0.25,
        "steps": 1500,
        "validate_every": 50,
        "save_every": 50,
        "workers": 0,
        "score_windows": 200,
    },
}
"""Differences from SyncRecipe's defaults."""


def sync_recipe(
    preset: str, config: Path | None = None, **given: Any
) -> tuple[SyncNetConfig, SyncRecipe]:
    """Network and recipe of a preset, a file's differences, and what was said on the command line (None: unsaid).

    config: YAML or JSON. Its `network` (or, in the public form, `model`) is the architecture, the rest are settings.
    """
    if preset not in NETWORKS:
        raise UserError(f"preset is {preset!r}; it must be one of {', '.join(NETWORKS)}.")
    network, facts = NETWORKS[preset], read_yaml(config) if config else {}
    for name in ("network", "model"):
        if name in facts:
            network = network_from(facts.pop(name))
    if "audio_encoder" in facts or "audio" in facts:
        network, facts = network_from(facts), {}
    network.check()
    return network, build(SyncRecipe, PRESETS[preset], None, facts_checked(facts, config) | _said(given))


def _said(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


def facts_checked(facts: Mapping[str, Any], config: Path | None) -> dict[str, Any]:
    """A file's settings as the kinds that the recipe wants."""
    from .stages import _checked

    return _checked(SyncRecipe, facts, config)


def network_from(facts: Mapping[str, Any]) -> SyncNetConfig:
    """An architecture as written by hand: what follows from the rest (channels in, mel frames, no attention) may be left
    out. UserError where something is missing or the encoders do not end in one cell."""
    try:
        config = config_from_dict(_completed(facts))
    except (KeyError, TypeError) as error:
        raise UserError(
            f"The SyncNet's config lacks or misnames {error}; give audio and visual with widths and factors each, and"
            " frames, space and size."
        ) from error
    config.check()
    return config


def _completed(facts: Mapping[str, Any]) -> dict[str, Any]:
    if "audio_encoder" in facts:
        return dict(facts)
    known = {field.name for field in dataclasses.fields(SyncNetConfig)}
    if unknown := sorted(set(facts) - known):
        raise TypeError(unknown[0])
    frames = facts.get("frames", 16)
    channels = {"audio": 1, "visual": frames * (4 if facts.get("space") == "latent" else 3)}
    parts = {
        name: {"in_channels": channels[name], "attention": [False] * len(facts[name]["widths"]), **facts[name]}
        for name in channels
    }
    return {"mels": [80, -(-frames * 80 // 25)], **facts, **parts}


# ---- the network while it learns -------------------------------------------------------------------------------------


class Learner(nn.Module):
    """A SyncNet with what helps it learn and is not kept: guesses of the mouth's opening, a scale for the contrast."""

    def __init__(self, config: SyncNetConfig) -> None:
        super().__init__()
        self.syncnet = StableSyncNet(config)
        self.see, self.hear = (nn.Linear(config.visual.widths[-1], config.frames) for _ in range(2))
        self.sharpness = nn.Parameter(torch.tensor(10.0).log())

    def forward(self, picture: Tensor, mel: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(N, D) seen, (N, D) heard, (N, F) opening guessed from either, and the scale of the contrast."""
        seen, heard = self.syncnet(picture, mel)
        spread = seen.shape[1] ** 0.5  # unit vectors, brought to numbers around one
        return seen, heard, self.see(seen * spread), self.hear(heard * spread), self.sharpness.exp().clamp(max=100)


def cross_entropy(likelihood: Tensor, together: Tensor) -> Tensor:
    """Binary cross-entropy where both answers count half, however many pairs of each there are.

    likelihood: cosine similarities 0 … 1. together: bool, the same shape. (Prajwal et al. 2020, balanced.)
    """
    p = likelihood.float().clamp(FLOOR, 1 - FLOOR)
    parts = [-p[together].log(), -(1 - p[~together]).log()]
    return torch.stack([part.mean() for part in parts if len(part)]).mean()


def contrast_loss(cosine: Tensor, allowed: Tensor, scale: Tensor) -> Tensor:
    """Each picture finds its sound among all allowed ones, and each sound its picture (InfoNCE; Radford et al. 2021).

    cosine, allowed: (N, N), rows pictures; the diagonal belongs together.
    """
    logits = (scale * cosine.float()).masked_fill(~allowed, -torch.inf)
    own = torch.arange(len(cosine), device=cosine.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def relations(clip: Tensor, start: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Which pairs of (N,) windows are shifted within a clip by `least` frames or more, and which may be contrasted:
    those, windows of other clips, and the own one. (N, N) bool each."""
    same = clip[:, None] == clip
    far = (start[:, None] - start).abs() >= least
    return same & far, ~same | far | torch.eye(len(clip), dtype=torch.bool, device=clip.device)


@dataclass
class SyncTask:
    """What the Trainer trains. held: windows of held-out time, people: of held-out people, for score()."""

    network: Learner
    recipe: SyncRecipe
    store: CropStore
    data: ClipDataset
    held: ClipDataset | None
    held_time: Sequence[ClipFile]
    held_people: Sequence[ClipFile]
    facts: Mapping[str, object]
    result: str = RESULT

    def to(self, device: torch.device) -> None:
        self.device = device

    def losses(self, network: nn.Module, batch: Sample, *, validating: bool = False) -> dict[str, Tensor]:
        """total, and its parts; accuracy at one half of the pairs that the batch has."""
        picture, mel = (batch[name].flatten(0, 1) for name in ("picture", "mel"))
        picture = picture.float() / 127.5 - 1 if picture.dtype == torch.uint8 else picture
        seen, heard, opening_seen, opening_heard, scale = network(picture, mel)
        likelihood, together, allowed = self._pairs(seen.float(), heard.float(), batch)
        out = {"bce": cross_entropy(likelihood, together)}
        total = out["bce"]
        if self.recipe.contrast:
            out["contrast"] = contrast_loss(seen.float() @ heard.float().T, allowed, scale)
            total = total + self.recipe.contrast * out["contrast"]
        if self.recipe.opening:
            wanted = batch["opening"].flatten(0, 1)
            out["opening seen"], out["opening heard"] = (
                F.mse_loss(guess.float(), wanted) for guess in (opening_seen, opening_heard)
            )
            total = total + self.recipe.opening * (out["opening seen"] + out["opening heard"])
        right = ((likelihood >= 0.5) == together).float()
        out["accuracy"] = torch.stack([right[t].mean() for t in (together, ~together) if t.any()]).mean()
        return out | {"total": total}

    def _pairs(self, seen: Tensor, heard: Tensor, batch: Sample) -> tuple[Tensor, Tensor, Tensor]:
        """(P,) likelihoods, (P,) in sync or not, (N, N) what may be contrasted."""
        start = batch["start"].flatten()
        clip = torch.arange(len(batch["start"]), device=start.device).repeat_interleave(batch["start"].shape[1])
        shifted, allowed = relations(clip, start, self.recipe.least_shift)
        if self.recipe.windows == 1:
            return (seen * heard).sum(1), batch["together"].flatten(), allowed
        cosine, own = seen @ heard.T, torch.eye(len(seen), dtype=torch.bool, device=seen.device)
        used = shifted | own
        return cosine[used], own[used], allowed

    def show(self, folder: Path, step: int) -> dict[str, float]:
        """Scores on held-out time and people; what decides about the best weights is the cross-entropy on the first."""
        values: dict[str, float] = {}
        for name, clips in (("time", self.held_time), ("people", self.held_people)):
            if not clips:
                continue
            found = score(
                self.network.syncnet,
                self.store,
                clips,
                self.recipe.score_windows,
                least=self.recipe.least_shift,
                device=self.device,
            )
            values |= {f"{name}/{key}": value for key, value in found.numbers().items()}
            draw_scores(found, folder / f"{name}-{step:08d}.png", f"held-out {name}, step {step}")
        if "time/bce" in values:
            values["validation/total"] = values["time/bce"]
        return values

    def save(self, folder: Path, state: dict[str, Tensor], step: int) -> None:
        """The SyncNet as ours, and in the public .pt form where wanted; the heads apart, for going on."""
        inner = {k.removeprefix("syncnet."): v for k, v in state.items() if k.startswith("syncnet.")}
        metadata = {"step": step, **self.facts}
        net = StableSyncNet(self.network.syncnet.config)
        net.load_state_dict(inner)
        save_syncnet(folder / RESULT, net, metadata)
        rest = {k: v.reshape(-1) if v.ndim == 0 else v for k, v in state.items() if not k.startswith("syncnet.")}
        write_safetensors(folder / HEADS, rest, {"kind": "syncnet heads"})
        if self.recipe.public_form:
            torch.save({"state_dict": inner, "global_step": step}, folder / "syncnet.pt")

    def load(self, folder: Path) -> None:
        inner = {f"syncnet.{k}": v for k, v in read_tensors(folder / RESULT).items()}
        state = inner | dict(read_tensors(folder / HEADS))
        own = self.network.state_dict()
        self.network.load_state_dict({k: v.reshape(own[k].shape) for k, v in state.items()})


# ---- a run -----------------------------------------------------------------------------------------------------------


def run_syncnet(
    data: Path,
    out: Path,
    config: SyncNetConfig,
    recipe: SyncRecipe,
    *,
    cache: Path | None = None,
    encode: Encode | None = None,
    cpu: bool = False,
    say: Say = lambda line: None,
) -> str:
    """Train, or go on where out stopped; gives the reason for its end. out/syncnet.safetensors is the result.

    encode: the VAE, for a SyncNet on latents.
    """
    accelerator = make_accelerator(recipe.precision, recipe.accumulate, cpu=cpu)
    say = say if accelerator.is_main_process else (lambda line: None)
    store = CropStore(cache or (data if data.is_dir() else out) / "cache", config, encode)
    train, time, people = held_out(find_clips(data), recipe.holdout_time, recipe.holdout_people)
    train, time, people = (_usable(store, clips, say) for clips in (train, time, people))
    if recipe.opening and not store.has_openings(train):
        say("The clips come without mouth openings (.npz): training without guessing them.")
        recipe = dataclasses.replace(recipe, opening=0.0)
    make = SyncWindows(store, recipe.windows, recipe.least_shift, recipe.augment, recipe.flip, bool(recipe.opening))
    plain = dataclasses.replace(make, augment=0.0, flip=False)
    torch.manual_seed(recipe.seed)
    network = Learner(config)
    facts = {"preset_steps": recipe.steps, "seed": recipe.seed, "holdout_people": json.dumps(recipe.holdout_people)}
    task = SyncTask(
        network,
        dataclasses.replace(recipe, validate_windows=min(recipe.validate_windows, recipe.batch)),
        store,
        ClipDataset(weighted(train, store), make, recipe.seed),
        ClipDataset(time, plain, recipe.validate_seed) if time else None,
        time,
        people,
        facts,
    )
    say(
        f"{sum(p.numel() for p in network.syncnet.parameters()) / 1e6:.1f} M parameters; {len(train)} stretches of"
        f" clips to train on, {len(time)} held out in time, {len(people)} of held-out people"
    )
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        write_recipe(out / RECIPE, recipe, network=json.dumps(dataclasses.asdict(config)))
    accelerator.wait_for_everyone()
    return Trainer(task, task.recipe, out, accelerator, say).fit()


def _usable(store: CropStore, clips: Sequence[ClipFile], say: Say) -> list[ClipFile]:
    """Those that can be read and are long enough; the crops of all are in the cache then."""
    kept = []
    for clip in clips:
        try:
            store.starts(clip)
            store.crops(clip)
            kept.append(clip)
        except UserError as error:
            say(f"left out: {error}")
    return kept


__all__ = ["NETWORKS", "PRESETS", "SyncRecipe", "SyncTask", "draw_charts", "network_from", "run_syncnet", "sync_recipe"]
