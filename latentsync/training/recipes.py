"""Training recipes. A preset states only what differs from the defaults, and so does a YAML file for --config."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from ..errors import UserError
from ..settings import WINDOW
from .config import Config, read_config
from .public_config import is_public, read_public
from .yaml_files import load_yaml

RUN, TRAINING, LOSSES, CHECKS, HOLDOUT = "Run", "Training", "Losses", "Checkpoints and validation", "Held-out data"
"""Panels of the options in `latentsync train … --help`."""

SCHEDULERS = "constant", "linear", "cosine", "cosine_with_restarts", "polynomial"
"""Of diffusers.optimization, which the public project uses."""
AUTO, NONE = "auto", "none"
TRACKERS = "tensorboard", "wandb", "trackio"
AT_LEAST = {
    "steps": 1, "epochs": 0, "warmup_steps": 0, "batch_size": 1, "gradient_accumulation_steps": 1, "log_every": 1,
    "save_every": 1, "keep": 1, "validate_every": 1, "validate_windows": 1, "max_bad_steps": 1, "resolution": 1,
    "windows": 1, "min_shift": 1, "sample_steps": 0, "other_voices": 0, "threads": 0, "workers": 0,
    "contrast": 0, "opening": 0, "augment": 0,
}  # fmt: skip


def setting(default: Any, help: str, panel: str = "", choices: tuple[str, ...] = ()) -> Any:
    """A field of a recipe. With a panel it is an option of the command as well; without, a key for --config only."""
    kind: Any = {"default_factory": dict} if default == {} else {"default": default}
    return dataclasses.field(**kind, metadata={"help": help, "panel": panel, "choices": choices})


@dataclass(frozen=True)
class RunSettings:
    """How any network is trained."""

    network_kind: ClassVar[str] = ""

    steps: int = setting(100_000, "Training steps.", TRAINING)
    epochs: int = setting(0, "Train until every clip was seen this often, instead of --steps.", TRAINING)
    learning_rate: float = setting(1e-5, "Learning rate, after the warm-up.", TRAINING)
    lr_scheduler: str = setting(
        "constant", f"What the learning rate does after the warm-up: {', '.join(SCHEDULERS)}.", TRAINING, SCHEDULERS
    )
    warmup_steps: int = setting(0, "Steps in which the learning rate rises from 0.", TRAINING)
    scale_lr: bool = setting(False, "Multiply the learning rate by the number of processes.", TRAINING)
    batch_size: int = setting(1, "Clips per batch on each GPU.", TRAINING)
    gradient_accumulation_steps: int = setting(1, "Batches per training step.", TRAINING)
    precision: str = setting(
        "auto", "auto, fp32, bf16 or fp16. auto: bf16 or fp16 on a GPU.", TRAINING, ("auto", "fp32", "bf16", "fp16")
    )
    optimizer: str = setting("adamw", "adamw, or adamw8bit (bitsandbytes).", TRAINING, ("adamw", "adamw8bit"))
    weight_decay: float = setting(0.01, "Weight decay of AdamW.")
    max_grad_norm: float = setting(1.0, "Gradients are clipped to this norm.")
    ema_decay: float = setting(0.0, "Also average the weights with this decay, such as 0.999. 0: no average.", TRAINING)
    upsample: bool = setting(False, "Also train on crops that are smaller than the resolution, enlarged.")
    workers: int = setting(4, "Processes that load data, at most one for each core. 0: the training process.", TRAINING)
    threads: int = setting(0, "CPU threads. 0: those cores that are free when the run starts.", TRAINING)
    seed: int = setting(1247, "Seed of the initial weights, the order of clips and the noise.", TRAINING)
    trackers: tuple[str, ...] = setting(
        (AUTO,),
        f"Also send curves and samples to {', '.join(TRACKERS)}. auto: TensorBoard if installed; none.",
        CHECKS,
    )
    log_every: int = setting(10, "Steps between log lines.", CHECKS)
    save_every: int = setting(1000, "Steps between checkpoints.", CHECKS)
    keep: int = setting(3, "Newest checkpoints to keep, besides the best.", CHECKS)
    public_form: bool = setting(False, "Also write the .pt file that the public code reads.", CHECKS)
    validate_every: int = setting(1000, "Steps between validations.", CHECKS)
    validate_windows: int = setting(8, "Windows in a validation.")
    validate_seed: int = setting(1247, "Seed of the windows and the noise of a validation.")
    patience: int = setting(0, "Stop after this many validations without improvement. 0: never.", CHECKS)
    max_bad_steps: int = setting(5, "Non-finite steps in a row before a rollback to the last checkpoint.")
    holdout_recordings: float = setting(
        0.1, "Share of the recordings to hold out. Unused below 8 recordings, unless --holdout-time is 0.", HOLDOUT
    )
    holdout_time: float = setting(
        0.1, "Share of every clip to hold out, where no share of the recordings is held out.", HOLDOUT
    )
    holdout_people: tuple[str, ...] = setting((), "Hold out recordings with names that start like this.", HOLDOUT)

    def __post_init__(self) -> None:
        for name, least in AT_LEAST.items():
            if getattr(self, name, least) < least:
                raise UserError(f"{name} is {getattr(self, name):g}; it must be {least} or more.")
        if not 0 < self.learning_rate < 1:
            raise UserError(f"learning_rate is {self.learning_rate:g}; it must be above 0 and below 1.")
        if not 0 <= self.ema_decay < 1 or self.max_grad_norm <= 0:
            raise UserError(f"ema_decay {self.ema_decay:g} or max_grad_norm {self.max_grad_norm:g} is out of range.")
        if unknown := sorted({*self.trackers} - {AUTO, NONE, *TRACKERS}):
            raise UserError(f"trackers has {unknown[0]!r}; known are {', '.join([AUTO, NONE, *TRACKERS])}.")
        for name in ("holdout_recordings", "holdout_time"):
            if not 0 <= getattr(self, name) < 0.9:
                raise UserError(f"{name} is {getattr(self, name):g}; it must be 0 or more and below 0.9.")
        for field in dataclasses.fields(self):
            choices, value = field.metadata["choices"], getattr(self, field.name)
            if choices and value not in choices:
                raise UserError(f"{field.name} is {value!r}; it must be one of {', '.join(choices)}.")


@dataclass(frozen=True)
class UNetRecipe(RunSettings):
    """How a U-Net is trained. The defaults are stage 1's. Every pixel loss (all but noise) decodes the window, so a
    weight of 0 saves time and memory."""

    network_kind: ClassVar[str] = "U-Net"

    resolution: int = setting(256, "Side of the crops, 256 or 512, if not that of the initial weights.", RUN)
    lora: int = setting(0, "Train a LoRA of this rank on the attention to speech and time. 0: no LoRA.", RUN)
    lora_alpha: float = setting(0.0, "LoRA alpha. 0: the rank.")
    motion: Literal["none", "all", "decoder"] = setting("none", "Where the motion modules are: none, all or decoder.")
    trainable: tuple[str, ...] = setting(("",), "Parameters are trained if their name contains one of these.")
    gradient_checkpointing: bool = setting(True, "Save memory for a third more time.", TRAINING)
    drop_audio: float = setting(0.0, "Share of windows without speech, for guidance above 1.", TRAINING)
    cache_latents: bool = setting(False, "Encode every clip once, before training.", TRAINING)
    noise_weight: float = setting(1.0, "Weight of the noise loss.")
    sync_weight: float = setting(0.0, "Weight of the SyncNet loss.", LOSSES)
    lpips: str = setting("vgg", "vgg, alex, squeeze or off.", LOSSES, ("vgg", "alex", "squeeze", "off"))
    lpips_weight: float = setting(0.0, "Weight of LPIPS.", LOSSES)
    trepa_weight: float = setting(0.0, "Weight of TREPA.", LOSSES)
    decoded_frames: int = setting(
        WINDOW, "Frames of a window that LPIPS sees. Fewer than 16 only without the SyncNet and TREPA losses.", LOSSES
    )
    frames: int = setting(WINDOW, "Frames of a window.")
    alpha: float = setting(1.0, "Share of the noise that all frames have in common (mixed_noise).")
    prediction_type: str = setting("epsilon", "What the network predicts: epsilon, sample or v_prediction.")
    reference_mode: str = setting(
        "per_frame", "per_frame, or first_frame: one reference for the whole window.", "", ("per_frame", "first_frame")
    )
    sample_clips: int = setting(4, "Held-out clips to sample at each validation.")
    sample_frames: int = setting(3 * WINDOW, "Frames of each sample.")
    other_voices: int = setting(1, "How many of these clips are also sampled with the speech of another one.")
    sample_steps: int = setting(0, "Solver steps of each sample. 0: the initial weights' own.")
    sample_guidance: float = setting(0.0, "Guidance of each sample. 0: the initial weights' own.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lpips == "off":
            object.__setattr__(self, "lpips_weight", 0.0)
        if not 1 <= self.decoded_frames <= self.frames:
            raise UserError(f"decoded_frames is {self.decoded_frames}; it must be 1 to {self.frames}.")
        if self.decoded_frames < self.frames and (self.sync_weight or self.trepa_weight):
            raise UserError(
                f"decoded_frames is {self.decoded_frames}, but SyncNet and TREPA need all {self.frames} frames; leave"
                " it, or set sync_weight and trepa_weight to 0."
            )

    @property
    def has_pixel_losses(self) -> bool:
        return bool(self.sync_weight or self.lpips_weight or self.trepa_weight)

    @property
    def needs_pixels(self) -> bool:
        """Whether a sample must hold the images, besides their latents."""
        return self.has_pixel_losses


@dataclass(frozen=True)
class DistillRecipe(UNetRecipe):
    """How a teacher's many steps become a student's few. noise_weight has no effect."""

    steps: int = setting(10_000, "Training steps.", TRAINING)
    student_steps: int = setting(2, "Solver steps of the student.", RUN)
    teacher_steps: int = setting(20, "Solver steps of the teacher, a multiple of the student's.", RUN)
    teacher_guidance: float = setting(0.0, "Guidance of the teacher. 0: its own.", RUN)
    solve: int = setting(
        1,
        "Teacher steps in a training step; with fewer than it has, the student foresees the rest.",
        TRAINING,
    )
    critic_weight: float = setting(0.5, "Gradient of the critic over that of the teacher's answer. 0: off.", LOSSES)
    decoded_frames: int = setting(4, "Frames of a window that the critic and LPIPS see.", LOSSES)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.student_steps < 1 or self.teacher_steps % self.student_steps or not 1 <= self.teacher_steps <= 1000:
            raise UserError(
                f"The student has {self.student_steps} steps and the teacher {self.teacher_steps}; the teacher's must"
                " be a multiple of the student's, up to 1000, so that it passes the same points."
            )
        if self.solve < 1 or self.critic_weight < 0 or not 0 <= self.teacher_guidance <= 20:
            raise UserError(
                f"solve {self.solve}, critic_weight {self.critic_weight:g} or teacher_guidance"
                f" {self.teacher_guidance:g} is out of range (1 or more, 0 or more, 0 to 20)."
            )
        object.__setattr__(self, "sample_steps", self.student_steps)

    @property
    def needs_pixels(self) -> bool:
        return self.has_pixel_losses or self.critic_weight > 0


@dataclass(frozen=True)
class SyncNetRecipe(RunSettings):
    """How a SyncNet is trained. The defaults are the public recipe's: pairs, half of them shifted within their clip."""

    network_kind: ClassVar[str] = "SyncNet"

    batch_size: int = setting(64, "Clips per batch on each GPU.", TRAINING)
    windows: int = setting(
        1, "Windows of each clip. 1: one pair, in sync or shifted; more: every image meets every sound.", TRAINING
    )
    min_shift: int = setting(1, "Frames by which shifted pairs are shifted at least.", TRAINING)
    augment: float = setting(0.0, "Strength of the augmentation of images and audio. 0: none.", TRAINING)
    flip: bool = setting(False, "Mirror half of the clips.", TRAINING)
    contrast: float = setting(0.0, "Weight of the contrastive loss over the batch. Needs --windows 2 or more.", LOSSES)
    opening: float = setting(0.0, "Weight of predicting the mouth opening, if the clips have .npz files.", LOSSES)
    holdout_recordings: float = setting(0.0, "Share of the recordings to hold out.", HOLDOUT)
    holdout_at: float = setting(0.5, "Where the held-out time is: 0 at the start of a clip, 1 at its end.", HOLDOUT)
    score_windows: int = setting(512, "Held-out windows that a validation scores.", CHECKS)
    network: dict = setting({}, "The architecture, if it is not the preset's.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.contrast and self.windows < 2:
            raise UserError("contrast compares the windows of a clip with each other; set windows to 2 or more.")
        if not 0 <= self.holdout_at <= 1:
            raise UserError(f"holdout_at is {self.holdout_at:g}; it must be 0 to 1.")


def _file(default: str | None, help: str, metavar: str, panel: str = RUN, **rest: Any) -> Any:
    """A field that is an option of the command; rest: of typer.Option."""
    details = {"help": help, "metavar": metavar, "rich_help_panel": panel, **rest}
    return dataclasses.field(default=default, metadata=details)


@dataclass(frozen=True)
class Files:
    """Inputs of a run besides its clips. init: see initial_unet. None: what belongs to init, or unused."""

    init: str = _file("none", "Initial weights: sd15, 1.5, 1.6, nano, a file, or none.", "NAME|FILE")
    size: str = _file("full", "full, small or tiny, for --init none.", "NAME")
    vae: str | None = _file(None, "Another VAE.", "NAME|FILE", show_default="init's")
    whisper: str | None = _file(None, "Another Whisper.", "NAME|FILE", show_default="init's")
    sync_net: Path | None = _file(
        None, "A StableSyncNet, for its loss and its confidence in samples.", "NAME|FILE", LOSSES
    )
    videomae: Path | None = _file(None, "VideoMAE as transformers saves it, for TREPA.", "FOLDER", LOSSES)
    validate_video: Path | None = _file(None, "A video to lip-sync at each validation.", "FILE", CHECKS)
    validate_audio: Path | None = _file(None, "The speech for it.", "FILE", CHECKS, show_default="the video's own")
    cache: Path | None = _file(None, "Cache of features and latents.", "FOLDER", show_default="DATA/cache")


STAGES: dict[str, dict[str, Any]] = {
    "1": {},
    "2": {
        "motion": "all", "trainable": ("motion_modules.", "attentions."),
        "sync_weight": 0.05, "lpips_weight": 0.1, "trepa_weight": 10.0,
    },
    "2-efficient": {
        "motion": "decoder", "trainable": ("motion_modules.", "attn2"), "sync_weight": 0.05, "lpips_weight": 0.1,
    },
}  # fmt: skip
"""The public recipe's three stages. At 512 px only the resolution differs."""

SYNCNET_PRESETS: dict[str, dict[str, Any]] = {
    "small": {
        "batch_size": 4, "windows": 8, "min_shift": 2, "augment": 1.0, "flip": True, "holdout_time": 0.25, "workers": 0,
        "learning_rate": 3e-4, "precision": "bf16", "weight_decay": 0.05, "ema_decay": 0.99, "contrast": 1.0,
        "opening": 1.0, "steps": 3000, "validate_every": 100, "save_every": 100, "score_windows": 200,
    },
}  # fmt: skip
"""The public architectures take the defaults."""

Recipe = TypeVar("Recipe", bound=RunSettings)


def unet_recipe(stage: str, config: Path | Config | None = None, **given: Any) -> UNetRecipe:
    if stage not in STAGES:
        raise UserError(f"stage is {stage!r}; it must be one of {', '.join(STAGES)}.")
    return build(UNetRecipe, STAGES[stage], config, given)


def build(
    kind: type[Recipe], preset: Mapping[str, Any], config: Path | Config | None, given: Mapping[str, Any]
) -> Recipe:
    """A recipe from a preset, then a YAML file, then the given values (None: not given)."""
    if not isinstance(config, Config):
        config = read_config(kind, config)
    out: dict[str, Any] = {}
    for part in (preset, config.settings, {name: value for name, value in given.items() if value is not None}):
        if part.get("epochs") and "steps" in part:
            raise UserError(f"Both steps ({part['steps']}) and epochs ({part['epochs']}) are set; set one of them.")
        out |= {"epochs": 0, **part} if "steps" in part else part
    return kind(**out)


def is_syncnet(content: Mapping[str, Any]) -> bool:
    """Whether a file's settings are of a SyncNet: of the public project, or with names that only its recipe has."""
    if is_public(content):
        return read_public(content).network == SyncNetRecipe.network_kind
    unet, syncnet = ({part.name for part in dataclasses.fields(kind)} for kind in (UNetRecipe, SyncNetRecipe))
    return bool(set(content) & (syncnet - unet))


def count_steps(settings: Recipe, clips: int, samples_per_step: int) -> Recipe:
    """The recipe with the steps that its epochs take, if it counts in epochs."""
    if not settings.epochs:
        return settings
    return dataclasses.replace(settings, steps=-(-settings.epochs * clips // samples_per_step))


def write_recipe(path: Path, recipe: RunSettings, **also: Any) -> None:
    path.write_text(recipe_text(recipe, **also), encoding="utf-8")


def recipe_text(recipe: RunSettings, **also: Any) -> str:
    """The settings that differ from the defaults as YAML for --config, all others as comments."""
    yaml, defaults = load_yaml(), dataclasses.asdict(type(recipe)())
    changed, rest = {}, {}
    for name, value in dataclasses.asdict(recipe).items():
        part = rest if value == defaults[name] else changed
        part[name] = list(value) if isinstance(value, tuple) else value
    dump = partial(yaml.safe_dump, sort_keys=False, allow_unicode=True)
    text = dump(changed) if changed else "# only defaults\n"
    for part in filter(None, (also, rest)):
        text += "\n" + "".join(f"# {line}\n" for line in dump(part).splitlines())
    return text
