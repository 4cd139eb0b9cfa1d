"""`latentsync bench`: how long a lip sync takes on this machine."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..errors import UserError
from ..settings import Settings
from .options import DEVICE, DTYPE
from .parameters import choice, expand_options

if TYPE_CHECKING:
    from ..evaluation.bench import Plan

_WHAT = "What is measured"
_OUT = "What is written"
SUFFIXES = (".png", ".svg")


# fmt: off


@dataclass(frozen=True)
class BenchOptions:
    """What is measured, and what is written."""

    model: str = choice(
        _WHAT, "--model -c", "nano", "nano, full (LatentSync 1.5 and 1.6's shape, random weights: speed only), 1.5,"
        " 1.6, or a file.", "NAME|PATH",
    )
    resolution: str = choice(
        _WHAT, "", "", "Sides of the face crop for full, such as 256,512. Else the model's own.", "PX,…"
    )
    modes: str = choice(_WHAT, "", "", "Modes to compare, separated by commas. Empty: the default mode.", "NAME,…")
    size: str = choice(_WHAT, "", "1080p", "Of the clip: 480p, 720p, 1080p, 1440p, 4k, or like 1080x1920.", "SIZE")
    seconds: float = choice(
        _WHAT, "", 0.0, "Length of the clip. 0: 4 s, or one window of 0.64 s where the published size runs on a CPU."
    )
    steps: int = choice(
        _WHAT, "", 0, "Solver steps. 0: those of the model or mode, but 1 where the published size runs on a CPU."
    )
    guidance: float = choice(_WHAT, "", 0.0, "0: that of the model or mode.")
    window_batch: int = choice(_WHAT, "", Settings.window_batch, "Windows of 16 frames at once.")
    device: str = DEVICE
    dtype: str = DTYPE
    json: Path | None = choice(_OUT, "", None, "Also write all figures as JSON; - prints it.", "FILE")
    chart: Path | None = choice(_OUT, "", None, "Also draw bars of the stages (.png, .svg).", "PICTURE")


# fmt: on
@expand_options
def bench(options: BenchOptions) -> None:
    """Measure how long lip sync takes on this machine, stage by stage, and how much memory it uses.

    Needs no files. A swaying portrait of the requested size speaks with the
    built-in voice; no video is kept. Nothing is extrapolated: the table names
    the windows and the steps that were computed.

    \b
    The built-in model on this machine:
      latentsync bench

    \b
    The published size on a graphics card:
      latentsync bench --model full --resolution 256,512 --device cuda \\
          --json bench.json --chart bench.png
    """
    from .console import as_json, check_writable, show_json, write_file

    for path in (options.json, options.chart):
        check_writable(path)
    if options.chart is not None and options.chart.suffix.lower() not in SUFFIXES:
        raise UserError(f"--chart is {options.chart}; its name must end in .png or .svg.")
    facts = _run(_plan(options))
    if str(options.json) == "-":
        show_json(facts)
    else:
        _show(facts)
        if options.json is not None:
            write_file(options.json, f"{as_json(facts)}\n".encode())
    if options.chart is not None:
        from ..evaluation.bench_chart import draw_bench

        drawing = draw_bench(facts)
        write_file(options.chart, drawing.svg() if options.chart.suffix.lower() == ".svg" else drawing.png())


def _plan(options: BenchOptions) -> "Plan":
    from ..evaluation.bench import Plan, parse_size
    from ..models.device import pick_device, pick_dtype

    device = pick_device(options.device)
    try:
        sides = tuple(int(side) for side in _listed(options.resolution))
    except ValueError as error:
        raise UserError(f"--resolution is {options.resolution!r}; it must be numbers such as 256,512.") from error
    return Plan(
        model=options.model,
        resolutions=sides,
        modes=_listed(options.modes),
        size=parse_size(options.size),
        seconds=options.seconds,
        steps=options.steps,
        guidance=options.guidance,
        window_batch=options.window_batch,
        device=device,
        dtype=pick_dtype(options.dtype, device),
    )


def _listed(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _run(plan: "Plan") -> dict[str, Any]:
    import torch

    from ..evaluation.bench import run_bench
    from .console import note

    try:
        with tempfile.TemporaryDirectory() as folder:
            return run_bench(plan, Path(folder), note)
    except torch.OutOfMemoryError as error:
        raise UserError(
            "The graphics card ran out of memory; lower --window-batch or --resolution, or use --dtype fp16."
        ) from error


def _show(facts: dict[str, Any]) -> None:
    from ..evaluation.bench import RANDOM, tables
    from ..evaluation.meters import machine_line
    from .console import show_table

    clip, load = facts["clip"], facts["load"]
    weights, how = (f" ({RANDOM})", "made") if facts["weights"] == RANDOM else ("", "loaded")
    typer.echo(machine_line(facts["machine"], facts["device"], facts["dtype"]))
    typer.echo(
        f"{facts['model']}{weights}, {load['unet_numbers'] / 1e6:,.1f} million numbers in the U-Net; {clip['frames']}"
        f" frames of {clip['size'][0]} × {clip['size'][1]}; {how} in {load['seconds']:.1f} s"
    )
    for titles, *rows in tables(facts):
        typer.echo()
        show_table(rows, titles)
