"""`latentsync bench`: how long a lip sync takes on this machine."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError
from ..settings import Settings
from .parameters import option

if TYPE_CHECKING:
    from ..evaluation.bench import Plan

_WHAT = "What is measured"
_OUT = "What is written"
SUFFIXES = (".png", ".svg")


def bench(
    model: Annotated[
        str,
        option(
            _WHAT,
            "--model -c",
            "nano, full (LatentSync 1.5 and 1.6's shape, random weights: speed only), 1.5, 1.6, or a file.",
            "NAME|PATH",
        ),
    ] = "nano",
    resolution: Annotated[
        str,
        option(
            _WHAT, "--resolution", "Sides of the face crop for full, such as 256,512. Else the model's own.", "PX,…"
        ),
    ] = "",
    modes: Annotated[
        str, option(_WHAT, "--modes", "Modes to compare, separated by commas. Empty: the usual one.", "NAME,…")
    ] = "",
    size: Annotated[
        str, option(_WHAT, "--size", "Of the clip: 480p, 720p, 1080p, 1440p, 4k, or like 1080x1920.", "SIZE")
    ] = "1080p",
    seconds: Annotated[
        float,
        option(
            _WHAT,
            "--seconds",
            "Length of the clip. 0: 4 s, or one window of 0.64 s where the published size runs on a CPU.",
        ),
    ] = 0.0,
    steps: Annotated[
        int,
        option(
            _WHAT,
            "--steps",
            "Solver steps. 0: those of the model or mode, but 1 where the published size runs on a CPU.",
        ),
    ] = 0,
    guidance: Annotated[float, option(_WHAT, "--guidance", "0: that of the model or mode.")] = 0.0,
    window_batch: Annotated[
        int, option(_WHAT, "--window-batch", "Windows of 16 frames at once.")
    ] = Settings.window_batch,
    device: Annotated[str, option(_WHAT, "--device", "auto, cpu, cuda or mps.", "NAME")] = "auto",
    dtype: Annotated[str, option(_WHAT, "--dtype", "auto, fp32, fp16 or bf16.", "NAME")] = "auto",
    json: Annotated[
        Path | None, option(_OUT, "--json", "Also write all figures as JSON; - is the screen.", "FILE")
    ] = None,
    chart: Annotated[Path | None, option(_OUT, "--chart", "Also draw bars of the stages (.png, .svg).", "FILE")] = None,
) -> None:
    """Measure how long a lip sync takes here, stage by stage, and how much memory it holds. Needs no files.

    A portrait that sways in a picture of the asked size says the built-in voice; nothing of it is kept. Nothing is
    extrapolated: the table names the windows and the steps that were computed.

    \b
    The built-in model on this machine:
      latentsync bench

    \b
    The published size on a graphics card, with all modes:
      latentsync bench --model full --resolution 256,512 --device cuda --json bench.json --chart bench.png
    """
    from .console import as_json, check_writable, show_json, write_file

    for path in (json, chart):
        check_writable(path)
    if chart is not None and chart.suffix.lower() not in SUFFIXES:
        raise UserError(f"--chart is {chart}; its name must end in .png or .svg.")
    plan = _plan(model, resolution, modes, size, seconds, steps, guidance, window_batch, device, dtype)
    facts = _run(plan)
    on_screen = str(json) == "-"
    if on_screen:
        show_json(facts)
    else:
        _show(facts)
    if json is not None and not on_screen:
        write_file(json, f"{as_json(facts)}\n".encode())
    if chart is not None:
        from ..evaluation.bench_chart import draw_bench

        drawing = draw_bench(facts)
        write_file(chart, drawing.svg() if chart.suffix.lower() == ".svg" else drawing.png())


def _plan(
    model: str,
    resolution: str,
    modes: str,
    size: str,
    seconds: float,
    steps: int,
    guidance: float,
    window_batch: int,
    device: str,
    dtype: str,
) -> "Plan":
    from ..evaluation.bench import Plan, parse_size
    from ..models.device import pick_device, pick_dtype

    device = pick_device(device)
    try:
        sides = tuple(int(side) for side in _listed(resolution))
    except ValueError as error:
        raise UserError(f"--resolution is {resolution!r}; it must be numbers such as 256,512.") from error
    return Plan(
        model,
        sides,
        _listed(modes),
        parse_size(size),
        seconds,
        steps,
        guidance,
        window_batch,
        device,
        pick_dtype(dtype, device),
    )


def _listed(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _run(plan: "Plan") -> dict[str, Any]:
    import torch

    from ..evaluation.bench import run_bench

    try:
        with tempfile.TemporaryDirectory() as folder:
            return run_bench(plan, Path(folder), lambda line: typer.echo(line, err=True))
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
