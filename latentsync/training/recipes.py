"""The recipes. A preset states only what differs from the defaults; so does the YAML file that a user may give."""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

from ..errors import UserError
from ..models.unet import Motion, UNetConfig
from ..settings import WINDOW

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
OPTIMIZERS = ("adamw", "adamw8bit")


@dataclass(frozen=True)
class RunSettings:
    """How any network is trained.

    batch: samples for each process at once; accumulate: such parts for one step. average: decay of the moving average
    of the weights, 0 for none. clip: largest norm of the gradient. patience: validations without a better one after
    which the run ends, 0 for never. keep: newest checkpoints that stay, beside the best. hold_out, held_share: see
    dataset.split. bad_steps: steps in a row with numbers that are none, after which the run goes back to its last
    checkpoint. workers: processes that load data ahead, 0 for none. precision "auto": bf16 on cards that have it, fp16
    with a gradient scaler (the public recipe's) on others, fp32 without a card.
    """

    resolution: int = 256
    steps: int = 100_000
    rate: float = 1e-5
    batch: int = 1
    accumulate: int = 1
    precision: str = "auto"
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    clip: float = 1.0
    average: float = 0.0
    checkpointing: bool = True
    seed: int = 1247
    workers: int = 4
    log_every: int = 10
    save_every: int = 1000
    keep: int = 3
    public_form: bool = False
    validate_every: int = 1000
    validate_windows: int = 8
    validate_seed: int = 1247
    hold_out: str = "auto"
    held_share: float = 0.1
    patience: int = 0
    bad_steps: int = 5

    def __post_init__(self) -> None:
        for name in ("resolution", "steps", "batch", "accumulate", "log_every", "save_every", "keep", "bad_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be 1 or more.")
        if not 0 < self.rate < 1 or not 0 <= self.average < 1 or self.clip <= 0:
            raise UserError(f"rate {self.rate}, average {self.average} or clip {self.clip} is out of range.")
        for name, known in (("precision", PRECISIONS), ("optimizer", OPTIMIZERS)):
            if getattr(self, name) not in known:
                raise UserError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}.")


@dataclass(frozen=True)
class UNetRecipe(RunSettings):
    """How a U-Net is trained. Defaults are stage 1's.

    motion: where motion modules are. trains: a parameter is trained when its name contains one of these. The weights
    are those of the losses; of the pixel losses (all but noise) each costs a decoding of the window, so 0 saves much.
    decoded: frames of the window that LPIPS sees, spread evenly; fewer than 16 save memory, and only LPIPS takes them.
    drop_audio: chance that a window hears nothing, which guidance above 1 at sampling builds on. alpha: of the mixed
    noise. lora: rank of low-rank additions that are trained instead, 0 for none. cache_latents: encode all clips once.
    first_frame_reference: one frame, from elsewhere in the clip, serves all of a window as its reference; a
    file that was trained so goes on so.
    sample_clips, sample_frames, sample_steps: held-out clips that are made at each validation, how much of each, and
    with how many solver steps; the first one is kept as a video.
    """

    motion: Motion = "none"
    trains: tuple[str, ...] = ("",)
    noise_weight: float = 1.0
    sync_weight: float = 0.0
    lpips_weight: float = 0.0
    trepa_weight: float = 0.0
    frames: int = WINDOW
    decoded: int = WINDOW
    alpha: float = 1.0
    drop_audio: float = 0.0
    prediction_type: str = "epsilon"
    first_frame_reference: bool = False
    lora: int = 0
    lora_alpha: float = 0.0
    lpips: str = "vgg"
    cache_latents: bool = False
    sample_clips: int = 4
    sample_frames: int = 3 * WINDOW
    sample_steps: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lpips == "off":
            object.__setattr__(self, "lpips_weight", 0.0)
        if not 1 <= self.decoded <= self.frames:
            raise UserError(f"decoded is {self.decoded}; it must lie between 1 and the window's {self.frames} frames.")
        if self.decoded < self.frames and (self.sync_weight or self.trepa_weight):
            raise UserError(
                f"decoded is {self.decoded}, but SyncNet and TREPA judge all {self.frames} frames; leave it, or set"
                " sync_weight and trepa_weight to 0."
            )

    @property
    def supervises_pixels(self) -> bool:
        return bool(self.sync_weight or self.lpips_weight or self.trepa_weight)


STAGES: dict[str, dict[str, Any]] = {
    "1": {},
    "2": {
        "motion": "all",
        "trains": ("motion_modules.", "attentions."),
        "sync_weight": 0.05,
        "lpips_weight": 0.1,
        "trepa_weight": 10.0,
    },
    "2-efficient": {
        "motion": "decoder",
        "trains": ("motion_modules.", "attn2"),
        "sync_weight": 0.05,
        "lpips_weight": 0.1,
    },
}
"""The public recipe's three stages, as differences from the defaults. At 512 px only the resolution differs."""

SIZES: dict[str, dict[str, Any]] = {
    "full": {},
    "small": {"widths": (64, 128, 256, 256)},
    "tiny": {"widths": (32, 32), "layers": 1, "cross": (True, True)},
}
"""Networks as differences from LatentSync's own (UNetConfig): for machines and tests that cannot hold it."""

Recipe = TypeVar("Recipe", bound=RunSettings)


def unet_recipe(stage: str, config: Path | None = None, **given: Any) -> UNetRecipe:
    """A stage's preset, then a YAML file's differences, then what was said on the command line (None: unsaid)."""
    if stage not in STAGES:
        raise UserError(f"stage is {stage!r}; it must be one of {', '.join(STAGES)}.")
    return build(UNetRecipe, STAGES[stage], config, given)


def build(kind: type[Recipe], preset: Mapping[str, Any], config: Path | None, given: Mapping[str, Any]) -> Recipe:
    """The recipe of these differences, the later ones first. UserError for an unknown name or a wrong kind of value."""
    said = {name: value for name, value in given.items() if value is not None}
    return kind(**{**preset, **(_checked(kind, read_yaml(config), config) if config else {}), **said})


def unet_config(size: str, motion: Motion, audio_dim: int = 384, latent_channels: int = 4) -> UNetConfig:
    if size not in SIZES:
        raise UserError(f"size is {size!r}; it must be one of {', '.join(SIZES)}.")
    return UNetConfig(**SIZES[size], motion=motion, audio_dim=audio_dim, latent_channels=latent_channels)


def read_yaml(path: Path) -> dict[str, Any]:
    yaml = _yaml()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML ({str(error).splitlines()[0]}).") from error
    if content is not None and not isinstance(content, dict):
        raise UserError(f"{path} is no list of settings; write one `name: value` a line.")
    return {str(key): value for key, value in (content or {}).items()}


def write_recipe(path: Path, recipe: RunSettings, **also: Any) -> None:
    """What differs from the defaults, as the YAML that --config takes, with everything else as remarks."""
    yaml, facts = _yaml(), _plain(dataclasses.asdict(recipe))
    defaults = _plain(dataclasses.asdict(type(recipe)()))
    own = {name: value for name, value in facts.items() if value != defaults[name]}
    rest = {name: value for name, value in facts.items() if name not in own}
    text = [yaml.safe_dump(own, sort_keys=False, allow_unicode=True) if own else "# nothing but defaults\n"]
    text += [_remark(yaml.safe_dump(part, sort_keys=False, allow_unicode=True)) for part in (also, rest) if part]
    path.write_text("\n".join(text), encoding="utf-8")


def _remark(text: str) -> str:
    return "".join(f"# {line}\n" for line in text.splitlines())


def _plain(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in facts.items()}


def _checked(kind: type[RunSettings], said: Mapping[str, Any], path: Path | None) -> dict[str, Any]:
    hints = get_type_hints(kind)
    out = {}
    for name, value in said.items():
        if name not in hints:
            near = difflib.get_close_matches(name, hints, 1)
            advice = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(hints))}."
            raise UserError(f"{path} sets {name}, which is no setting; {advice}")
        try:
            out[name] = _as(hints[name], value)
        except (TypeError, ValueError) as error:
            raise UserError(f"{path} sets {name} to {value!r}; {_kind(hints[name])} is needed.") from error
    return out


def _as(hint: Any, value: Any) -> Any:
    """A YAML value as the kind that a field wants; 1e-5 is a text to YAML 1.1."""
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        return float(value)
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise TypeError(value)
        return tuple(map(str, value))
    plain = hint if isinstance(hint, type) else str
    if plain is str:
        return str(value)
    if type(value) is not plain:
        raise TypeError(value)
    return value


def _kind(hint: Any) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(hint, "a text or a list of texts")


def _yaml() -> Any:
    try:
        import yaml
    except ImportError as error:
        raise UserError('Reading YAML needs pyyaml; type: pip install "latentsync[train]".') from error
    return yaml
