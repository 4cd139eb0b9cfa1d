"""`latentsync train`: it parses, calls training/ and prints."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

_WHAT = "Train networks of your own from prepared clips: the U-Net in its stages, and the SyncNet that judges it."

train = typer.Typer(no_args_is_help=True, help=_WHAT, rich_markup_mode="rich")

_RUN, _STEP, _LOSS, _CHECK = "The run", "How it learns", "What judges the mouths", "Checkpoints and validation"
_PRESET = "the recipe's"


def _option(panel: str, help: str, metavar: str | None = None, names: str = "", **rest: Any) -> Any:
    return typer.Option(*names.split(), help=help, metavar=metavar, rich_help_panel=panel, **rest)


def _setting(panel: str, help: str, metavar: str | None = None, names: str = "") -> Any:
    """One whose default the recipe has."""
    return _option(panel, help, metavar, names, show_default=_PRESET)


Data = Annotated[
    Path, typer.Argument(metavar="DATA", help="A folder of `latentsync prepare`, a list of clips, or a folder of them.")
]
Out = Annotated[Path, _option(_RUN, "The run's folder. A run that is there goes on.", "FOLDER", "--out -o")]
Stage = Annotated[str, _option(_RUN, "1: pictures. 2: with motion modules. 2-efficient: in the decoder only.", "STAGE")]
Init = Annotated[str, _option(_RUN, "sd15, 1.5, 1.6, nano, a file, or none.", "NAME|FILE")]
Size = Annotated[str, _option(_RUN, "full, small or tiny: only where --init is none.", "NAME")]
Config = Annotated[Path | None, _option(_RUN, "Settings that differ, as YAML.", "FILE")]
Resolution = Annotated[int | None, _setting(_RUN, "Side of the crops: 256 or 512.")]
Lora = Annotated[int | None, _setting(_RUN, "Train a LoRA of this rank on the attention to speech and time.", "RANK")]
Vae = Annotated[str | None, _option(_RUN, "Another VAE.", "NAME|FILE", show_default="init's")]
Whisper = Annotated[str | None, _option(_RUN, "Another Whisper.", "NAME|FILE", show_default="init's")]
Cache = Annotated[Path | None, _option(_RUN, "For features and latents.", "FOLDER", show_default="DATA/cache")]
Cpu = Annotated[bool, _option(_RUN, "Leave the GPU alone.", names="--cpu")]

Steps = Annotated[int | None, _setting(_STEP, "Steps in all.")]
Rate = Annotated[float | None, _setting(_STEP, "Learning rate; it stays the same.")]
Batch = Annotated[int | None, _setting(_STEP, "Windows of 16 frames at once on each GPU.")]
Accumulate = Annotated[int | None, _setting(_STEP, "So many batches for one step.")]
Precision = Annotated[str | None, _setting(_STEP, "auto, fp32, bf16 or fp16.", "NAME")]
Checkpointing = Annotated[
    bool | None, _setting(_STEP, "Less memory, a third more time.", names="--checkpointing/--no-checkpointing")
]
Ema = Annotated[float | None, _setting(_STEP, "Also keep a moving average with this decay, as 0.999.", "DECAY")]
Optimizer = Annotated[str | None, _setting(_STEP, "adamw, or adamw8bit (bitsandbytes).", "NAME")]
DropAudio = Annotated[float | None, _setting(_STEP, "Share of windows without speech, for guidance above 1.")]
CacheLatents = Annotated[
    bool | None, _setting(_STEP, "Encode every clip once.", names="--cache-latents/--no-cache-latents")
]
Workers = Annotated[int | None, _setting(_STEP, "Processes that load data ahead.")]
Seed = Annotated[int | None, _setting(_STEP, "Of the initial weights, the order of clips and the noise.")]

SyncNet = Annotated[Path | None, _option(_LOSS, "A StableSyncNet: loss, and confidence in samples.", "NAME|FILE")]
SyncWeight = Annotated[float | None, _setting(_LOSS, "Weight of the SyncNet's loss.")]
Lpips = Annotated[str | None, _setting(_LOSS, "vgg, alex, squeeze or off.", "NAME")]
LpipsWeight = Annotated[float | None, _setting(_LOSS, "Weight of LPIPS.")]
VideoMae = Annotated[Path | None, _option(_LOSS, "VideoMAE, as transformers saves it, for TREPA.", "FOLDER")]
TrepaWeight = Annotated[float | None, _setting(_LOSS, "Weight of TREPA.")]
Decoded = Annotated[int | None, _setting(_LOSS, "Frames of a window that LPIPS sees.", "FRAMES")]

ValidateEvery = Annotated[int | None, _setting(_CHECK, "Steps between validations.")]
SaveEvery = Annotated[int | None, _setting(_CHECK, "Steps between checkpoints.")]
Keep = Annotated[int | None, _setting(_CHECK, "Newest checkpoints that stay, beside the best.")]
LogEvery = Annotated[int | None, _setting(_CHECK, "Steps between lines of the log.")]
Patience = Annotated[int | None, _setting(_CHECK, "End after so many validations without a better one; 0: never.")]
HoldOut = Annotated[str | None, _setting(_CHECK, "For validation: source (recordings), time (ends) or auto.", "NAME")]
PublicForm = Annotated[
    bool | None, _setting(_CHECK, "Also write unet.pt as the public code does.", names="--public-form/--no-public-form")
]


@train.command()
def unet(
    data: Data,
    stage: Stage = "1",
    out: Out = Path("run"),
    init: Init = "none",
    size: Size = "full",
    config: Config = None,
    resolution: Resolution = None,
    lora: Lora = None,
    vae: Vae = None,
    whisper: Whisper = None,
    cache: Cache = None,
    cpu: Cpu = False,
    steps: Steps = None,
    rate: Rate = None,
    batch: Batch = None,
    accumulate: Accumulate = None,
    precision: Precision = None,
    checkpointing: Checkpointing = None,
    ema: Ema = None,
    optimizer: Optimizer = None,
    drop_audio: DropAudio = None,
    cache_latents: CacheLatents = None,
    workers: Workers = None,
    seed: Seed = None,
    sync_net: SyncNet = None,
    sync_weight: SyncWeight = None,
    lpips: Lpips = None,
    lpips_weight: LpipsWeight = None,
    videomae: VideoMae = None,
    trepa_weight: TrepaWeight = None,
    decoded: Decoded = None,
    validate_every: ValidateEvery = None,
    save_every: SaveEvery = None,
    keep: Keep = None,
    log_every: LogEvery = None,
    patience: Patience = None,
    hold_out: HoldOut = None,
    public_form: PublicForm = None,
) -> None:
    """Train the network that paints mouths, or go on where a run stopped.

    \b
    The cheap way, a LoRA on LatentSync 1.5, one GPU:
      latentsync train unet data --stage 2 --init 1.5 --lora 16 --sync-weight 0 --lpips off --trepa-weight 0 -o mine

    \b
    The public recipe, 8 GPUs:
      accelerate launch --num_processes 8 -m latentsync train unet data --stage 1 --init sd15 -o stage1
      accelerate launch --num_processes 8 -m latentsync train unet data --stage 2 --init stage1/unet.safetensors \\
          --sync-net stable_syncnet.pt --videomae videomae/ -o stage2

    Ctrl-C stops after a checkpoint; the same command goes on. The result is unet.safetensors in the run's folder.
    """
    from ..training.recipes import read_yaml, unet_recipe
    from ..training.unet.run import Files, run_unet

    said = {name: value for name, value in locals().items() if name in _SETTINGS and value is not None}
    recipe = unet_recipe(stage, config, average=ema, **said)
    own = resolution is not None or (config is not None and "resolution" in read_yaml(config))
    files = Files(init, size, vae, whisper, sync_net, videomae, cache)
    run_unet(data, out, recipe, files, own_resolution=own, cpu=cpu, say=lambda line: typer.echo(line, err=True))
    _tell_result(out / ("lora.safetensors" if recipe.lora else "unet.safetensors"))


def _tell_result(path: Path) -> None:
    """Once, however many processes there are."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(str(path))


_SETTINGS = (
    *("resolution", "lora", "steps", "rate", "batch", "accumulate", "precision", "checkpointing", "optimizer"),
    *("drop_audio", "cache_latents", "workers", "seed", "sync_weight", "lpips", "lpips_weight", "trepa_weight"),
    *("decoded", "validate_every", "save_every", "keep", "log_every", "patience", "hold_out", "public_form"),
)
"""Options that are settings of the recipe, by its names."""


@train.command()
def charts(run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]) -> None:
    """Draw the curves of a run (charts.png), also while it runs."""
    from ..training.logging import draw_charts

    typer.echo(str(draw_charts(run)))


@train.command("merge-lora")
def merge_lora(
    base: Annotated[str, typer.Argument(help="The U-Net that the LoRA was trained on: a file or a known name.")],
    lora: Annotated[Path, typer.Argument(help="lora.safetensors of a run.")],
    out: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    strength: Annotated[float, typer.Option(help="1: as trained; less is weaker.")] = 1.0,
) -> None:
    """Make one U-Net of a U-Net and its LoRA."""
    from ..training.unet.merge import merge_files

    typer.echo(str(merge_files(base, lora, out, strength)))


_NETWORK, _HELD = "What it is", "What it is judged on"
Preset = Annotated[
    str, _option(_NETWORK, "16_pixel, 16_pixel_attn, 16_latent (the public ones), or small (two CPU cores).", "NAME")
]
SyncConfig = Annotated[
    Path | None, _option(_NETWORK, "Settings that differ, as YAML or JSON: docs/syncnet.md.", "FILE")
]
SyncVae = Annotated[str | None, _option(_NETWORK, "The VAE, for a SyncNet on latents.", "NAME|FILE")]
Pairs = Annotated[int | None, _setting(_STEP, "Clips at once on each GPU.", names="--batch")]
Windows = Annotated[int | None, _setting(_STEP, "Windows of each clip; 1: a pair, in sync or shifted.")]
LeastShift = Annotated[int | None, _setting(_STEP, "Frames by which shifted pairs are shifted at least.")]
Contrast = Annotated[float | None, _setting(_STEP, "Weight of finding the own sound among all of the batch.")]
Opening = Annotated[float | None, _setting(_STEP, "Weight of guessing how far the mouth is open.")]
Augment = Annotated[float | None, _setting(_STEP, "Changes to pictures and sounds; 1 is usual, 0 none.")]
Flip = Annotated[bool | None, _setting(_STEP, "Mirror half of the clips.", names="--flip/--no-flip")]
HoldoutPeople = Annotated[
    str | None, _setting(_HELD, "Recordings whose names begin so, never trained on.", "NAME,NAME…")
]
HoldoutTime = Annotated[float | None, _setting(_HELD, "Share of every clip that is never trained on.")]
HoldoutAt = Annotated[float | None, _setting(_HELD, "Where that lies in the clip: 0 its beginning, 1 its end.")]
ScoreWindows = Annotated[int | None, _setting(_HELD, "Held-out windows judged at each validation.")]


@train.command()
def syncnet(
    data: Data,
    preset: Preset = "16_pixel_attn",
    out: Out = Path("syncnet"),
    config: SyncConfig = None,
    vae: SyncVae = None,
    cache: Cache = None,
    cpu: Cpu = False,
    steps: Steps = None,
    rate: Rate = None,
    batch: Pairs = None,
    accumulate: Accumulate = None,
    windows: Windows = None,
    least_shift: LeastShift = None,
    contrast: Contrast = None,
    opening: Opening = None,
    augment: Augment = None,
    flip: Flip = None,
    precision: Precision = None,
    ema: Ema = None,
    optimizer: Optimizer = None,
    workers: Workers = None,
    seed: Seed = None,
    holdout_people: HoldoutPeople = None,
    holdout_time: HoldoutTime = None,
    holdout_at: HoldoutAt = None,
    score_windows: ScoreWindows = None,
    validate_every: ValidateEvery = None,
    save_every: SaveEvery = None,
    keep: Keep = None,
    log_every: LogEvery = None,
    patience: Patience = None,
    public_form: Annotated[
        bool | None, _setting(_CHECK, "Also write syncnet.pt as the public code does.", names="--public-form")
    ] = None,
) -> None:
    """Train a judge of lip sync, or go on where a run stopped.

    \b
    A small one, on two CPU cores:
      latentsync train syncnet data --preset small --holdout-people anna,ben -o judge

    \b
    The public architecture, 8 GPUs:
      accelerate launch --num_processes 8 -m latentsync train syncnet data --preset 16_pixel_attn -o judge

    Ctrl-C stops after a checkpoint; the same command goes on. The result is syncnet.safetensors in the run's folder.
    """
    from ..models.device import pick_device
    from ..training.syncnet.task import RESULT, VaeEncoder, run_syncnet, sync_recipe

    given = {name: value for name, value in locals().items() if name in _SYNC_SETTINGS and value is not None}
    if holdout_people is not None:
        given["holdout_people"] = tuple(name.strip() for name in holdout_people.split(",") if name.strip())
    network, recipe = sync_recipe(preset, config, average=ema, **given)
    encode = VaeEncoder(vae, pick_device("cpu" if cpu else "auto")) if vae else None
    run_syncnet(
        data, out, network, recipe, cache=cache, encode=encode, cpu=cpu, say=lambda line: typer.echo(line, err=True)
    )
    _tell_result(out / RESULT)


_SYNC_SETTINGS = (
    *("steps", "rate", "batch", "accumulate", "windows", "least_shift", "contrast", "opening", "augment", "flip"),
    *("precision", "optimizer", "workers", "seed", "holdout_time", "holdout_at", "score_windows"),
    *("validate_every", "save_every", "keep", "log_every", "patience", "public_form"),
)
"""Options that are settings of the SyncNet's recipe, by its names."""
