"""What `--dry-run` prints."""

import os
from typing import TYPE_CHECKING

import typer

from .console import show_table

if TYPE_CHECKING:
    from ..training.dry_run import DryRun

GB = 1e9
SECONDS_IN_HOUR = 3600


def print_dry_run(run: "DryRun") -> None:
    """Once, however many processes there are."""
    if os.environ.get("RANK", "0") != "0":
        return
    typer.echo(f"Memory of a step on {run.device} in {run.precision}, computed:")
    show_table(memory_rows(run))
    typer.echo("\n" + speed_text(run))
    typer.echo(f"\nWould be written to {run.disk.out}, besides logs and samples:")
    rows = [(name, size(number)) for name, number in run.disk.parts.items()]
    show_table([*rows, ("free there", size(run.disk.free))])


def memory_rows(run: "DryRun") -> list[tuple[str, str]]:
    memory = run.memory
    itself = "CUDA itself, about" if run.device.startswith("cuda") else "Python and its libraries, now"
    parts = {
        "the network that is trained": memory.weights,
        "the other networks": memory.frozen,
        "the optimizer": memory.optimizer,
        "the moving average": memory.average,
        "gradients between processes": memory.buckets,
        "gradients and activations": memory.step,
        itself: memory.itself,
    }
    rows = [(name, size(number)) for name, number in parts.items() if number]
    verdict = "fits" if memory.total <= run.free else "does not fit"
    rows.append(("together", f"{size(memory.total)} of {size(run.available)}, {size(run.free)} free: {verdict}"))
    if run.speed is not None and run.speed.peak:
        rows.append(("measured, without CUDA itself", size(run.speed.peak)))
    return rows


def speed_text(run: "DryRun") -> str:
    speed, an_hour = run.speed, run.steps_an_hour
    if speed is None or an_hour is None:
        return "Speed: not measured, because a step would not fit into the free memory."
    hours = run.steps / an_hour
    loading = f"a batch is loaded in {speed.loading:.2g} s, in {run.workers or 'no'} extra processes"
    return (
        f"Speed: {an_hour:.3g} steps an hour, {run.steps} steps in {hours:.3g} hours"
        f" (measured: {speed.seconds:.2g} s for a step; {loading})"
    )


def size(number: float) -> str:
    return f"{number / GB:.2f} GB" if number >= GB / 10 else f"{number / 1e6:.1f} MB"
