"""`latentsync train`: it parses, calls training/ and prints."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..training.recipes import (
    RUN,
    STAGES,
    SYNCNET_PRESETS,
    DistillRecipe,
    Files,
    RunSettings,
    SyncNetRecipe,
    UNetRecipe,
)
from .console import LinesAndBar
from .dry_run import print_dry_run
from .group import Commands
from .parameters import expand_options, option
from .train_ray import RayOptions, start

train = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    help="Train your own networks on prepared clips: the U-Net, and the SyncNet that scores lip sync.",
    rich_markup_mode="rich",
)


def recipe_options(
    recipe: type[RunSettings], presets: Mapping[str, Mapping[str, Any]], names: Mapping[str, str] | None = None
) -> type:
    """A dataclass of one option for every field of the recipe that has a panel; None: not given. names: of options that
    are not called like their field."""
    names = names or {}
    options, preset = [], {name for settings in presets.values() for name in settings}
    for field in dataclasses.fields(recipe):
        if panel := field.metadata["panel"]:
            listed = isinstance(field.default, tuple)
            metavar = "NAME,NAME…" if listed else "NAME" if field.metadata["choices"] else None
            name = names.get(field.name, field.name).replace("_", "-")
            flags = f"--{name}/--no-{name}" if field.type is bool else f"--{name}"
            default = "the preset's" if field.name in preset else str(field.default) if not listed else False
            own = option(panel, flags, field.metadata["help"], metavar, show_default=default)
            options.append((field.name, Annotated[(str if listed else field.type) | None, own], None))
    return dataclasses.make_dataclass(f"{recipe.__name__}Options", options)


def _given(options: Any) -> dict[str, Any]:
    """The settings that were given, by the recipe's names."""
    given = {name: value for name, value in vars(options).items() if value is not None}
    for name in ("holdout_people", "trackers"):
        if name in given:
            given[name] = tuple(part.strip() for part in given[name].split(",") if part.strip())
    return given


_report = LinesAndBar()
UNetOptions = recipe_options(UNetRecipe, STAGES)
SyncNetOptions = recipe_options(SyncNetRecipe, SYNCNET_PRESETS)
DistillOptions = recipe_options(DistillRecipe, {}, {"steps": "training_steps", "student_steps": "steps"})

Data = Annotated[
    Path, typer.Argument(metavar="DATA", help="A folder of `latentsync prepare`, a file list, or a folder of clips.")
]
Out = Annotated[Path, option(RUN, "--out -o", "The run's folder. An existing run resumes.", "FOLDER")]
Config = Annotated[
    Path | None,
    option(
        RUN, "", "Settings that differ from the recipe, as YAML; or an unchanged YAML of the public project.", "FILE"
    ),
]
Set = Annotated[
    list[str] | None,
    option(RUN, "--set", "Any setting, also one of the file: a=1, or a.b=1 for a part. Repeatable.", "NAME=VALUE"),
]
Cache = Annotated[Path | None, option(RUN, "", "Cache of features and latents.", "FOLDER", show_default="DATA/cache")]
DryRun = Annotated[
    bool, option(RUN, "--dry-run", "Print the memory, the speed and the disk space of this run, and write nothing.")
]
Device = Annotated[str, option(RUN, "--device", "auto, cpu, cuda or mps. auto takes a GPU where there is one.", "NAME")]


def _on_cpu(device: str) -> bool:
    """Whether to keep off GPUs; which of them a process takes is decided by its launcher."""
    from ..models.device import pick_device

    return pick_device(device) == "cpu"


@train.command()
@expand_options
def unet(
    data: Data,
    stage: Annotated[
        str, option(RUN, "", "1: images. 2: with motion modules. 2-efficient: in the decoder only.", "STAGE")
    ] = "1",
    out: Out = Path("run"),
    config: Config = None,
    set_: Set = None,
    device: Device = "auto",
    dry_run: DryRun = False,
    *,
    files: Files,
    ray: RayOptions,
    options: UNetOptions,  # pyright: ignore[reportInvalidTypeForm]
) -> None:
    """Train the U-Net, or resume a run.

    \b
    A LoRA on LatentSync 1.5, one GPU:
      latentsync train unet data --stage 2 --init 1.5 --lora 16 -o mine \\
          --sync-weight 0 --lpips off --trepa-weight 0

    \b
    The public recipe, 8 GPUs:
      accelerate launch --num_processes 8 -m latentsync \\
          train unet data --stage 1 --init sd15 -o stage1
      accelerate launch --num_processes 8 -m latentsync \\
          train unet data --stage 2 --init stage1/unet.safetensors \\
          --sync-net stable_syncnet.pt --videomae videomae/ -o stage2

    Ctrl-C stops after a checkpoint; the same command resumes. The result is unet.safetensors in the run's folder.
    """
    from ..training.config import fill_files, read_config
    from ..training.recipes import unet_recipe
    from ..training.unet.run import run_unet, try_unet

    settings, stated = _given(options), read_config(UNetRecipe, config, set_ or ())
    recipe, files = unet_recipe(stage, stated, **settings), fill_files(files, stated)
    keep_resolution = not {"resolution"} & {*settings, *stated.settings}
    if ray.on and not dry_run:
        start(run_unet, ray, device, _report, data, out, recipe, files, keep_resolution=keep_resolution)
        return _print_result(out / ("lora.safetensors" if recipe.lora else "unet.safetensors"))
    cpu = _on_cpu(device)
    _use_free_cores(recipe.threads, cpu=cpu)
    common = {"keep_resolution": keep_resolution, "cpu": cpu, "report": _report}
    if dry_run:
        print_dry_run(try_unet(data, out, recipe, files, **common))
        return
    run_unet(data, out, recipe, files, **common)
    _print_result(out / ("lora.safetensors" if recipe.lora else "unet.safetensors"))


@train.command()
@expand_options
def syncnet(
    data: Data,
    preset: Annotated[
        str, option(RUN, "", "16_pixel, 16_pixel_attn, 16_latent (the public ones), or small (two CPU cores).", "NAME")
    ] = "16_pixel_attn",
    out: Out = Path("syncnet"),
    config: Config = None,
    set_: Set = None,
    vae: Annotated[str | None, option(RUN, "", "The VAE, for a SyncNet on latents.", "NAME|FILE")] = None,
    cache: Cache = None,
    device: Device = "auto",
    dry_run: DryRun = False,
    *,
    ray: RayOptions,
    options: SyncNetOptions,  # pyright: ignore[reportInvalidTypeForm]
) -> None:
    """Train a SyncNet, or resume a run.

    \b
    A small one, on two CPU cores:
      latentsync train syncnet data --preset small -o syncnet \\
          --holdout-people anna,ben

    \b
    The public architecture, 8 GPUs:
      accelerate launch --num_processes 8 -m latentsync \\
          train syncnet data --preset 16_pixel_attn -o syncnet

    Ctrl-C stops after a checkpoint; the same command resumes. The result is syncnet.safetensors in the run's folder.
    """
    from ..models.device import pick_device
    from ..training.config import read_config
    from ..training.syncnet.architecture import syncnet_recipe
    from ..training.syncnet.data import VaeEncoder
    from ..training.syncnet.run import run_syncnet, train_syncnet, try_syncnet
    from ..training.syncnet.task import RESULT

    network, recipe = syncnet_recipe(preset, read_config(SyncNetRecipe, config, set_ or ()), **_given(options))
    if ray.on and not dry_run:
        start(train_syncnet, ray, device, _report, data, out, network, recipe, cache=cache, vae=vae)
        return _print_result(out / RESULT)
    cpu = _on_cpu(device)
    _use_free_cores(recipe.threads, cpu=cpu)
    encode = VaeEncoder(vae, pick_device(device)) if vae else None
    if dry_run:
        print_dry_run(try_syncnet(data, out, network, recipe, encode=encode, cpu=cpu, report=_report))
        return
    run_syncnet(data, out, network, recipe, cache=cache, encode=encode, cpu=cpu, report=_report)
    _print_result(out / RESULT)


@train.command()
@expand_options
def distill(
    data: Data,
    teacher: Annotated[str, option(RUN, "", "The network to distill: 1.5, 1.6, nano, or a file.", "NAME|FILE")],
    out: Out = Path("distilled"),
    config: Config = None,
    device: Device = "auto",
    dry_run: DryRun = False,
    *,
    files: Files,
    ray: RayOptions,
    options: DistillOptions,  # pyright: ignore[reportInvalidTypeForm]
) -> None:
    """Distill a network: train it to do in a few steps what it does in many.

    \b
    LatentSync 1.5 in 2 steps instead of 20 with guidance (40 evaluations):
      latentsync train distill data --teacher 1.5 --steps 2 -o fast

    The result states its steps and that it needs no guidance, and is then used that way everywhere. Ctrl-C stops after
    a checkpoint; the same command resumes.
    """
    from ..training.recipes import build
    from ..training.unet.distill import run_distill, try_distill

    recipe = build(DistillRecipe, {}, config, _given(options))
    if ray.on and not dry_run:
        start(run_distill, ray, device, _report, data, out, teacher, recipe, files)
        return _print_result(out / ("lora.safetensors" if recipe.lora else "unet.safetensors"))
    cpu = _on_cpu(device)
    _use_free_cores(recipe.threads, cpu=cpu)
    if dry_run:
        print_dry_run(try_distill(data, out, teacher, recipe, files, cpu=cpu, report=_report))
        return
    run_distill(data, out, teacher, recipe, files, cpu=cpu, report=_report)
    _print_result(out / ("lora.safetensors" if recipe.lora else "unet.safetensors"))


@train.command()
@expand_options
def charts(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="The folder of a run, or of several to compare.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture of several runs.")] = Path("runs.png"),
) -> None:
    """Draw the curves of a run (charts.png in its folder), even while it runs; or of several runs in one chart."""
    from ..training.logging import draw_charts, draw_runs

    typer.echo(str(draw_charts(runs[0]) if len(runs) == 1 else draw_runs(runs, out)))


@train.command("merge-lora")
@expand_options
def merge_lora(
    base: Annotated[str, typer.Argument(help="The U-Net that the LoRA was trained on: a file or a name.")],
    lora: Annotated[Path, typer.Argument(help="lora.safetensors of a run.")],
    out: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    strength: Annotated[float, typer.Option(help="1: as trained; less is weaker.")] = 1.0,
) -> None:
    """Merge a U-Net and its LoRA into one file."""
    from ..training.unet.lora import merge_files

    typer.echo(str(merge_files(base, lora, out, strength)))


def _use_free_cores(threads: int, *, cpu: bool) -> None:
    """Where the CPU trains: one thread that waits for a busy core holds up all others."""
    import torch

    from ..models.device import free_cores, pick_device

    if threads:
        torch.set_num_threads(threads)
    elif "OMP_NUM_THREADS" not in os.environ and pick_device("cpu" if cpu else "auto") == "cpu":
        before, free = torch.get_num_threads(), free_cores()
        if free < before:
            torch.set_num_threads(free)
            _report(f"{free} of {before} threads, as other programs are running; --threads sets them")


def _print_result(path: Path) -> None:
    """Once, however many processes there are."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(str(path))
