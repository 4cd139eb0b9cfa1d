"""Training of StableSyncNet: picture and sound of one moment agree, those of other moments of the same clip do not."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...audio.syncnet_mel import RATE
from ...errors import UserError
from ...models.syncnet import PUBLISHED, EncoderConfig, Factor, StableSyncNet, SyncNetConfig, config_from_dict
from ...weights.files import read_tensors, write_safetensors
from ...weights.syncnet_files import save_syncnet
from ...weights.vae_files import load_vae
from ..dataset import FPS, ClipDataset, ClipFile, Sample, find_clips, fingerprint, unit
from ..distributed import make_accelerator
from ..recipes import RunSettings, build, read_yaml, write_recipe
from ..trainer import RECIPE, Say, Trainer
from .data import CropStore, Encode, SyncWindows, held_out, weighted
from .score import FLOOR, draw_scores, score

RESULT, HEADS, PUBLIC = "syncnet.safetensors", "heads.safetensors", "syncnet.pt"
NARROW = 256
"""Below this last width the last normalisation has less than eight numbers a group, and learning fails."""
SHARPEST = 100.0
"""The contrast's scale goes no further (Radford et al. 2021)."""


@dataclass(frozen=True)
class SyncRecipe(RunSettings):
    """How a SyncNet is trained. Defaults: the public recipe's, pairs of which half are shifted within their clip.

    batch: clips at once in each process. windows: of each clip. With 1, each clip gives one pair, in sync or shifted;
    with more, the pictures of a clip meet all its sounds, which teaches more for the same encoding. least_shift: frames
    by which shifted pairs are shifted at least. contrast: weight of finding the own sound among all of the batch (needs
    windows > 1). opening: weight of guessing, from picture and from sound, how far the mouth is open, where the clips
    come with that. augment: strength of the changes to pictures and sounds, 0 for none. flip: mirror half of the clips.
    holdout_time: share of every clip that is never trained on, and holdout_at where it lies, 0 at the beginning, 1 at
    the end (people are often silent at both); holdout_people: recordings whose names begin so. score_windows: held-out
    windows judged at each validation. network: the architecture, where it is not the preset's (network_from).
    """

    batch: int = 64
    windows: int = 1
    least_shift: int = 1
    contrast: float = 0.0
    opening: float = 0.0
    augment: float = 0.0
    flip: bool = False
    holdout_time: float = 0.1
    holdout_at: float = 0.5
    holdout_people: tuple[str, ...] = ()
    score_windows: int = 512
    network: dict = field(default_factory=dict)
    checkpointing: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.windows < 1 or self.least_shift < 1:
            raise UserError(f"windows is {self.windows} and least_shift {self.least_shift}; both must be 1 or more.")
        if self.contrast and self.windows < 2:
            raise UserError("contrast compares the windows of a clip with each other; set windows to 2 or more.")
        if not 0 <= self.holdout_time < 0.9 or not 0 <= self.holdout_at <= 1:
            raise UserError(
                f"holdout_time is {self.holdout_time} and holdout_at {self.holdout_at}; the first must be 0 or more and"
                " below 0.9, the second from 0 to 1."
            )
        for name in ("contrast", "opening", "augment"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be 0 or more.")


# ---- architectures ---------------------------------------------------------------------------------------------------


def _plain(channels: int, widths: tuple[int, ...], factors: tuple[Factor, ...]) -> EncoderConfig:
    return EncoderConfig(channels, widths, factors, (False,) * len(widths))


SMALL = SyncNetConfig(
    audio=_plain(1, (32, 64, 128, 128, 256), ((4, 2), 2, 2, 2, 2)),
    visual=_plain(30, (32, 64, 128, 256), ((4, 4), 2, 2, (1, 3))),
    frames=10,
    size=(24, 48),
    mels=(80, 32),
)
"""For two CPU cores: 0.4 s of a crop 48 pixels wide, shrunk by four at once where most of the work is."""

NETWORKS = {**PUBLISHED, "small": SMALL}

PRESETS: dict[str, dict[str, Any]] = {
    **{name: {} for name in PUBLISHED},
    "small": {
        "batch": 4,
        "windows": 8,
        "least_shift": 2,
        "rate": 3e-4,
        "precision": "bf16",
        "weight_decay": 0.05,
        "average": 0.99,
        "contrast": 1.0,
        "opening": 1.0,
        "augment": 1.0,
        "flip": True,
        "holdout_time": 0.25,
        "steps": 3000,
        "validate_every": 100,
        "save_every": 100,
        "workers": 0,
        "score_windows": 200,
    },
}
"""Differences from SyncRecipe's defaults."""


def sync_recipe(preset: str, config: Path | None = None, **given: Any) -> tuple[SyncNetConfig, SyncRecipe]:
    """Network and recipe: a preset, then a file's differences, then what was said on the command line (None: unsaid).

    config: YAML or JSON of SyncRecipe's settings; or a public configuration, of which the architecture is taken.
    UserError: an unknown name or setting, encoders that do not end in one cell.
    """
    if preset not in NETWORKS:
        raise UserError(f"preset is {preset!r}; it must be one of {', '.join(NETWORKS)}.")
    facts = read_yaml(config) if config else {}
    public = facts.get("model", facts)
    if isinstance(public, Mapping) and "audio_encoder" in public:
        return network_from(public), build(SyncRecipe, PRESETS[preset], None, given)
    recipe = build(SyncRecipe, PRESETS[preset], config, given)
    return network_from(recipe.network) if recipe.network else NETWORKS[preset], recipe


def network_from(facts: Mapping[str, Any]) -> SyncNetConfig:
    """An architecture as written by hand: ours or in the public form. What follows from the rest (channels that go in,
    mel frames, no attention) may be left out. UserError: something else is missing, or SyncNetConfig.check."""
    try:
        config = config_from_dict(facts if "audio_encoder" in facts else _completed(facts))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"The SyncNet's architecture lacks or misnames {error}; give frames, space, size, and widths and factors"
            " for audio and for visual."
        ) from error
    config.check()
    return config


def _completed(facts: Mapping[str, Any]) -> dict[str, Any]:
    known = {part.name for part in dataclasses.fields(SyncNetConfig)}
    if unknown := sorted(set(facts) - known):
        raise KeyError(unknown[0])
    frames = facts.get("frames", SyncNetConfig.frames)
    channels = {"audio": 1, "visual": frames * (4 if facts.get("space") == "latent" else 3)}
    parts = {
        name: {"in_channels": channels[name], "attention": [False] * len(facts[name]["widths"]), **facts[name]}
        for name in channels
    }
    return {"mels": [80, -(-frames * RATE // int(FPS))], **facts, **parts}


# ---- losses ----------------------------------------------------------------------------------------------------------


def cross_entropy(likelihood: Tensor, together: Tensor) -> Tensor:
    """Binary cross-entropy in which both answers count half, however many pairs there are of each.

    likelihood: cosine similarities, 0 … 1. together: bool, the same shape. With as many pairs of each it is that of
    Prajwal et al. 2020.
    """
    p = likelihood.float().clamp(FLOOR, 1 - FLOOR)
    parts = [-p[together].log(), -(1 - p[~together]).log()]
    return torch.stack([part.mean() for part in parts if len(part)]).mean()


def contrast_loss(cosine: Tensor, allowed: Tensor, scale: Tensor) -> Tensor:
    """Each picture finds its sound among all that are allowed, and each sound its picture (InfoNCE, van den Oord et al.
    2018, both ways as in Radford et al. 2021).

    cosine, allowed: (N, N), a row for each picture; the diagonal belongs together.
    """
    logits = (scale * cosine.float()).masked_fill(~allowed, -torch.inf)
    own = torch.arange(len(cosine), device=cosine.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def relations(clip: Tensor, start: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """(N, N) bool each, of N windows: which pairs are shifted within a clip by `least` frames or more; which may be
    contrasted: those, windows of different clips, and the own one."""
    same = clip[:, None] == clip
    far = (start[:, None] - start).abs() >= least
    return same & far, ~same | far | torch.eye(len(clip), dtype=torch.bool, device=clip.device)


# ---- the network while it learns -------------------------------------------------------------------------------------


class Learner(nn.Module):
    """A SyncNet with what helps it learn and is not kept: guesses of the mouth's opening, the scale of the contrast."""

    def __init__(self, config: SyncNetConfig, *, opening: bool = False, contrast: bool = False) -> None:
        super().__init__()
        self.syncnet = StableSyncNet(config)
        width = config.visual.widths[-1]
        self.spread = width**0.5  # unit vectors, brought to numbers around one
        self.see, self.hear = (nn.Linear(width, config.frames) if opening else None for _ in range(2))
        self.sharpness = nn.Parameter(torch.tensor([10.0]).log()) if contrast else None

    def forward(self, picture: Tensor, mel: Tensor) -> dict[str, Tensor]:
        """seen, heard (N, D); with opening: opening seen, opening heard (N, F); with contrast: scale (1,)."""
        seen, heard = self.syncnet(picture, mel)
        out = {"seen": seen.float(), "heard": heard.float()}
        if self.see is not None and self.hear is not None:
            out["opening seen"], out["opening heard"] = self.see(seen * self.spread), self.hear(heard * self.spread)
        if self.sharpness is not None:
            out["scale"] = self.sharpness.exp().clamp(max=SHARPEST)
        return out


@dataclass
class SyncTask:
    """What the Trainer trains. held_time, held_people: stretches of clips that the network is judged on."""

    network: Learner
    recipe: SyncRecipe
    store: CropStore
    data: ClipDataset
    held: ClipDataset | None
    held_time: Sequence[ClipFile]
    held_people: Sequence[ClipFile]
    facts: Mapping[str, object] = field(default_factory=dict)
    result: str = RESULT
    device: torch.device | str = "cpu"

    def to(self, device: torch.device) -> None:
        self.device = device

    def losses(self, network: nn.Module, batch: Sample, *, validating: bool = False) -> dict[str, Tensor]:
        """total and its parts, and the accuracy on the batch's pairs at one half."""
        picture, mel = (batch[name].flatten(0, 1) for name in ("picture", "mel"))
        out = network(unit(picture) if picture.dtype == torch.uint8 else picture, mel)
        likelihood, together, allowed = self._pairs(out["seen"], out["heard"], batch)
        losses = {"bce": cross_entropy(likelihood, together)}
        total = losses["bce"]
        if "scale" in out:
            losses["contrast"] = contrast_loss(out["seen"] @ out["heard"].T, allowed, out["scale"])
            total = total + self.recipe.contrast * losses["contrast"]
        for name in ("opening seen", "opening heard"):
            if name in out:
                losses[name] = F.mse_loss(out[name].float(), batch["opening"].flatten(0, 1))
                total = total + self.recipe.opening * losses[name]
        right = ((likelihood >= 0.5) == together).float()
        accuracy = torch.stack([right[kind].mean() for kind in (together, ~together) if kind.any()]).mean()
        return losses | {"accuracy": accuracy, "total": total}

    def _pairs(self, seen: Tensor, heard: Tensor, batch: Sample) -> tuple[Tensor, Tensor, Tensor]:
        """(P,) likelihoods, (P,) in sync or not, (N, N) what may be contrasted."""
        start: Tensor = batch["start"]
        clip = torch.arange(len(start), device=start.device).repeat_interleave(start.shape[1])
        shifted, allowed = relations(clip, start.flatten(), self.recipe.least_shift)
        if self.recipe.windows == 1:
            return (seen * heard).sum(1), batch["together"].flatten(), allowed
        own = torch.eye(len(seen), dtype=torch.bool, device=seen.device)
        used = shifted | own
        return (seen @ heard.T)[used], own[used], allowed

    def show(self, folder: Path, step: int) -> dict[str, float]:
        """Scores on held-out time and people, with a picture each. The cross-entropy of the first decides which weights
        are the best; on unseen clips it tells more than that of the few pairs that validation draws."""
        values: dict[str, float] = {}
        least, windows = self.recipe.least_shift, self.recipe.score_windows
        for name, clips in (("time", self.held_time), ("people", self.held_people)):
            if clips:
                found = score(self.network.syncnet, self.store, clips, windows, least=least, device=self.device)
                numbers = {f"{name}/{key}": value for key, value in found.numbers().items()}
                draw_scores(found, folder / f"{name}.png", f"held-out {name}, step {step}")
                values = {"validation/total": numbers[f"{name}/bce"]} | values | numbers
        return values

    def save(self, folder: Path, state: dict[str, Tensor], step: int) -> None:
        """The SyncNet as ours, where wanted also as the public code does; and apart what is needed to go on."""
        own = {k.removeprefix("syncnet."): v for k, v in state.items() if k.startswith("syncnet.")}
        with torch.device("meta"):
            net = StableSyncNet(self.network.syncnet.config)
        net.load_state_dict(own, assign=True)
        save_syncnet(folder / RESULT, net, {"step": step, **self.facts})
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
    tell = say if accelerator.is_main_process else (lambda line: None)
    with accelerator.main_process_first():  # it fills the cache, the others find it
        task = sync_task(data, out, config, recipe, cache=cache, encode=encode, say=tell)
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        write_recipe(out / RECIPE, dataclasses.replace(task.recipe, network=_facts(config)))
    accelerator.wait_for_everyone()
    return Trainer(task, task.recipe, out, accelerator, say).fit()


def sync_task(
    data: Path,
    out: Path,
    config: SyncNetConfig,
    recipe: SyncRecipe,
    *,
    cache: Path | None = None,
    encode: Encode | None = None,
    say: Say = lambda line: None,
) -> SyncTask:
    """A new network, and the clips to train and to judge it on; their crops are in the cache then."""
    store = CropStore(cache or (data if data.is_dir() else out) / "cache", config, encode)
    parts = held_out(find_clips(data), recipe.holdout_time, recipe.holdout_people, recipe.holdout_at)
    train, time, people = (_usable(store, clips, say) for clips in parts)
    if recipe.opening and not store.has_openings(train):
        say("The clips come without the mouth's opening (.npz beside them); it is not guessed in training.")
        recipe = dataclasses.replace(recipe, opening=0.0)
    plain = SyncWindows(store, recipe.windows, recipe.least_shift, opening=bool(recipe.opening))
    make = dataclasses.replace(plain, augment=recipe.augment, flip=recipe.flip)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = Learner(config, opening=bool(recipe.opening), contrast=bool(recipe.contrast))
    if (width := config.visual.widths[-1]) < NARROW:
        say(f"The encoders end in {width} channels; such vectors hardly learn, take {NARROW} or more.")
    held = time or people
    say(
        f"{sum(p.numel() for p in network.syncnet.parameters()) / 1e6:.1f} million parameters; stretches of clips:"
        f" {len(train)} to train on, {len(time)} of held-out time, {len(people)} of held-out people"
    )
    return SyncTask(
        network,
        dataclasses.replace(recipe, validate_windows=min(recipe.validate_windows, recipe.batch)),
        store,
        ClipDataset(weighted(train, store), make, recipe.seed),
        ClipDataset(held, plain, recipe.validate_seed) if held else None,
        time,
        people,
        {"seed": recipe.seed, "holdout_people": " ".join(recipe.holdout_people)},
    )


class VaeEncoder:
    """A VAE for a SyncNet on latents, by a known name or a file."""

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        self.vae, self.device = load_vae(name, device=device), device
        self.mark = fingerprint(self.vae.state_dict())

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        return self.vae.encode(pixels.to(self.device))


def _usable(store: CropStore, clips: Sequence[ClipFile], say: Callable[[str], None]) -> list[ClipFile]:
    """Those that can be read and are long enough."""
    kept = []
    for clip in clips:
        try:
            store.starts(clip)
            store.crops(clip)
            kept.append(clip)
        except UserError as error:
            say(f"left out: {error}")
    return kept


def _facts(config: SyncNetConfig) -> dict[str, Any]:
    """As plain lists, for YAML."""
    return json.loads(json.dumps(dataclasses.asdict(config)))
