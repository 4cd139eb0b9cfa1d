"""`latentsync prepare` and `latentsync filelist`."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError, missing_package
from ..prepare.settings import STEPS_PANEL, PrepareSettings
from .console import show_json, show_table, stages, write_file, write_json
from .parameters import choice, expand_options, option

if TYPE_CHECKING:
    from ..prepare.runner import Execute, Report
    from ..prepare.steps import Outcome
    from ..prepare.workspace import Item, Kind, Plan

INCOMPLETE = 1
"""Exit code: some items failed, and a second run tries them again."""

_WHERE = "Where it runs"


@dataclass(frozen=True)
class RunOptions:
    only: list[str] | None = choice(
        STEPS_PANEL, "", None, "Only files with a matching path in IN; can be repeated.", "PATTERN"
    )
    workers: int = choice(_WHERE, "", 0, "Processes (with --ray: actors).", min=0, show_default="one for each CPU")
    device: str = choice(
        _WHERE, "", "cpu", "Of the networks for sync and quality: cpu, cuda, mps or auto; not with --ray.", "NAME"
    )
    ray: bool = choice(_WHERE, "--ray", False, "Distribute the work with Ray Data.")
    ray_address: str | None = choice(_WHERE, "", None, "A running cluster, say auto; implies --ray.", "ADDRESS")
    shards: int = choice(
        _WHERE, "", 0, "Also pack the kept clips into tar files of this size, in OUT/shards.", "MB", min=0
    )
    chart: bool = choice(_WHERE, "", True, "Draw OUT/report.png.")
    json: Path | None = choice(_WHERE, "", None, "Also write counts and timings as JSON; - prints it.", "REPORT")

    def __post_init__(self) -> None:
        object.__setattr__(self, "ray", self.ray or self.ray_address is not None)


@expand_options
def prepare(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A folder of videos, or one video. Only read.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write to.")],
    settings: PrepareSettings,
    options: RunOptions,
) -> None:
    """Prepare footage for training: shots of one face, aligned crops in sync with their audio, and a manifest.

    \b
      latentsync prepare videos/ prepared/ --skip sync --skip quality
      latentsync prepare videos/ prepared/ --skip quality \\
          --syncnet syncnet_v2.model
      latentsync filelist prepared/ > train.txt

    OUT/manifest.jsonl says for every clip of every video whether it was kept and why, OUT/report.png shows it;
    OUT/statistics.html sums up the data set and suggests limits.
    An interrupted run continues where it stopped; a second run changes nothing. Sources are only read.
    Exit code 1: something was not finished; run the command again to retry.
    """
    from ..prepare.runner import prepare as run

    if options.chart and find_spec("matplotlib") is None:  # said before the work, not after it
        raise missing_package("The chart", "matplotlib", instead="add --no-chart")
    start, device = time.perf_counter(), _device(options)
    workers = options.workers or (0 if options.ray else os.cpu_count() or 1)
    threads = 1 if options.ray or workers > 1 else 0
    with _executor(options, workers) as execute, stages(("source", "clip")) as show:
        report = run(
            source,
            out,
            settings,
            execute,
            only=options.only or (),
            threads=threads,
            device=device,
            on_progress=show,
        )
    if options.shards:
        from ..prepare.shards import write_shards

        made = write_shards(out, report.kept, options.shards)
        typer.echo(f"{len(made)} tar file{'s' * (len(made) != 1)} in {out / 'shards'}", err=True)
    _show(report, options, time.perf_counter() - start, workers)
    if report.errors:
        raise typer.Exit(INCOMPLETE)


def _device(options: RunOptions) -> str:
    if options.device == "cpu":
        return "cpu"
    from ..models.device import pick_device

    if options.ray:
        raise UserError(f"--device {options.device} does not go with --ray, where workers use CPUs; leave one out.")
    return pick_device(options.device)


@contextmanager
def _executor(options: RunOptions, workers: int) -> "Iterator[Execute]":
    if not options.ray:
        from ..prepare.local import run_local

        yield lambda plan, kind, items: run_local(plan, kind, items, workers)
        return
    from ..prepare.ray_data import connected, run_ray

    def execute(plan: "Plan", kind: "Kind", items: Sequence["Item"]) -> Iterator["Outcome"]:
        return run_ray(plan, kind, items, workers, options.ray_address)

    with connected(options.ray_address):
        yield execute


def _show(report: "Report", options: RunOptions, elapsed: float, workers: int) -> None:
    from ..dataset import MANIFEST
    from ..prepare.report import draw_report, rows, timings_line
    from ..prepare.runner import ERRORS
    from ..prepare.statistics import write_statistics

    chart = draw_report(report) if options.chart else None
    page = write_statistics(report)
    if options.json is not None:
        timings = {name: round(seconds, 3) for name, seconds in report.timings.items()}
        content = report.summary() | {"errors": report.errors, "timings": timings, "elapsed_s": round(elapsed, 3)}
        if str(options.json) == "-":
            return show_json(content)
        write_json(options.json, content)
    show_table(rows(report), ("", "clips", "minutes", ""))
    if report.settings.skip:
        typer.echo(f"skipped with --skip: {', '.join(report.settings.skip)}")
    if report.other_files:
        typer.echo(f"files that are not videos, by their names: {report.other_files}")
    if report.orphans:
        typer.echo(f"clips in {report.out / 'clips'} of other runs, in no record of this one: {report.orphans}")
    if line := timings_line(report, elapsed, workers):
        typer.echo(line)
    typer.echo(str(report.out / MANIFEST))
    if chart:
        typer.echo(str(chart))
    typer.echo(str(page))
    if report.errors:
        typer.echo(f"{report.errors} not finished: see {report.out / ERRORS}; run again to try them again", err=True)


Patterns = list[str] | None


def filelist(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="What `latentsync prepare` wrote to.")],
    to: Annotated[Path | None, option(None, "--out -o", "Write there instead of to the screen.", "FILE")] = None,
    only: Annotated[Patterns, option(None, "", "Only clips of these sources; can be repeated.", "PATTERN")] = None,
    holdout_sources: Annotated[
        Patterns, option(None, "", "No clips of these sources; can be repeated.", "PATTERN")
    ] = None,
) -> None:
    """List the clips that were kept, one path per line, for the trainer.

    \b
    One person for validation, the others for training:
      latentsync filelist prepared/ --holdout-sources 'anna/*' > train.txt
      latentsync filelist prepared/ --only 'anna/*' > val.txt
    """
    from ..dataset import kept_clips

    def matches(source: str, patterns: Sequence[str] | None) -> bool:
        return any(fnmatch(source, pattern) for pattern in patterns or ())

    clips = [c for c in kept_clips(out) if not only or matches(c.source, only)]
    clips = [c for c in clips if not matches(c.source, holdout_sources)]
    if not clips:
        raise UserError(f"{out} has no kept clip{' of the sources asked for' if only or holdout_sources else ''}.")
    lines = "".join(f"{clip.path.resolve()}\n" for clip in clips)
    if to is None:
        typer.echo(lines, nl=False)
        return
    write_file(to, lines.encode())
    typer.echo(f"{to}: {len(clips)} clips")
