"""`latentsync prepare` and `latentsync filelist`: they parse, call prepare/ and print."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError
from ..files import atomic_path
from ..prepare.settings import MAY_BE_SKIPPED, PrepareSettings

if TYPE_CHECKING:
    from ..prepare.runner import OnItem, Report
    from ..prepare.steps import Item, Outcome
    from ..prepare.worker import Plan

INCOMPLETE, INTERRUPTED = 1, 130
"""Exit codes: some items failed for a reason that is not theirs, a second run tries them again; Ctrl-C."""

_WHAT, _CUT, _SYNC, _WHERE = "What goes in", "Pieces and crops", "Sync and quality", "Where it runs"
_STAGES = {"source": "files", "piece": "pieces"}


def _option(panel: str, names: str, help: str, metavar: str | None = None, **rest: Any) -> Any:
    return typer.Option(*names.split(), help=help, metavar=metavar, rich_help_panel=panel, **rest)


def prepare(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A folder of videos, or one video. Only read.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write to.")],
    only: Annotated[
        list[str] | None, _option(_WHAT, "--only", "Only files whose path in IN matches; may be repeated.", "PATTERN")
    ] = None,
    skip: Annotated[
        list[str] | None,
        _option(_WHAT, "--skip", f"Leave a step out ({', '.join(MAY_BE_SKIPPED)}); may be repeated.", "STEP"),
    ] = None,
    resolution: Annotated[
        int, _option(_CUT, "--resolution", "Side of the crops in pixels.")
    ] = PrepareSettings.resolution,
    margin: Annotated[
        float,
        _option(
            _CUT,
            "--margin",
            "Kept around the crops on each side, as a share of them: 0.125 for a trainer that moves and turns.",
        ),
    ] = PrepareSettings.margin,
    min_seconds: Annotated[
        float, _option(_CUT, "--min-seconds", "Shorter shots are dropped.", "SECONDS")
    ] = PrepareSettings.min_seconds,
    max_seconds: Annotated[
        float, _option(_CUT, "--max-seconds", "Longer shots are cut into equal pieces.", "SECONDS")
    ] = PrepareSettings.max_seconds,
    min_face: Annotated[
        float, _option(_CUT, "--min-face", "Least height of the face from brows to chin, in pixels.", "PIXELS")
    ] = PrepareSettings.min_face,
    shot_threshold: Annotated[
        float, _option(_CUT, "--shot-threshold", "Of PySceneDetect's adaptive detector; lower finds more cuts.")
    ] = PrepareSettings.shot_threshold,
    syncnet: Annotated[
        Path | None, _option(_SYNC, "--syncnet", "Chung's syncnet_v2.model, or a StableSyncNet.", "FILE")
    ] = None,
    min_confidence: Annotated[
        float | None,
        _option(_SYNC, "--min-confidence", "Least confidence of sync.", show_default="3 with Chung's network"),
    ] = None,
    max_offset: Annotated[
        int, _option(_SYNC, "--max-offset", "Sound up to so many frames off is put right; more is dropped.", "FRAMES")
    ] = PrepareSettings.max_offset,
    quality: Annotated[
        Path | None,
        _option(_SYNC, "--quality", "TorchScript network: pictures (N, 3, H, W) in 0 … 1 to scores.", "FILE"),
    ] = None,
    min_quality: Annotated[float, _option(_SYNC, "--min-quality", "Least score of it.")] = PrepareSettings.min_quality,
    workers: Annotated[
        int, _option(_WHERE, "--workers", "Processes (with --ray: actors).", min=0, show_default="one for each CPU")
    ] = 0,
    ray: Annotated[bool, _option(_WHERE, "--ray", "Let Ray Data place the work.")] = False,
    ray_address: Annotated[
        str | None, _option(_WHERE, "--ray-address", "A running cluster, say auto; implies --ray.", "ADDRESS")
    ] = None,
    chart: Annotated[bool, _option(_WHERE, "--chart/--no-chart", "Draw OUT/report.png.")] = True,
) -> None:
    """Make footage ready for training: shots of one face, aligned crops in sync with their sound, and a manifest.

    \b
      latentsync prepare videos/ prepared/ --skip sync --skip quality
      latentsync prepare videos/ prepared/ --syncnet syncnet_v2.model --skip quality
      latentsync filelist prepared/ > train.txt

    OUT/manifest.jsonl says for every piece of every video what became of it and why, OUT/report.png shows it.
    A run that was interrupted goes on where it stopped; a second run changes nothing. Sources are only read.
    Exit code 1: something was not finished, a second run tries it again.
    """
    from ..prepare.runner import prepare as run

    settings = PrepareSettings(
        resolution=resolution,
        margin=margin,
        min_seconds=min_seconds,
        max_seconds=max_seconds,
        min_face=min_face,
        shot_threshold=shot_threshold,
        syncnet=syncnet and syncnet.resolve(),
        min_confidence=min_confidence,
        max_offset=max_offset,
        quality=quality and quality.resolve(),
        min_quality=min_quality,
        skip=tuple(sorted(set(skip or ()))),
    )
    if chart:
        _check_chart()
    start = time.perf_counter()
    on_cluster = ray or ray_address is not None
    count = workers or (0 if on_cluster else os.cpu_count() or 1)
    try:
        with _placed(on_cluster, ray_address, count) as execute, _progress() as on_item:
            threads = 1 if on_cluster or count > 1 else 0
            report = run(source, out, settings, execute, only=only or (), threads=threads, on_item=on_item)
    except KeyboardInterrupt as error:
        typer.echo("interrupted; the same command goes on where this one stopped", err=True)
        raise typer.Exit(INTERRUPTED) from error
    _show(report, chart, time.perf_counter() - start, count)
    if report.errors:
        raise typer.Exit(INCOMPLETE)


def _check_chart() -> None:
    """Before the work, not after it."""
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise UserError('The picture needs matplotlib; pip install "latentsync[prepare]" or add --no-chart.')


@contextmanager
def _placed(on_cluster: bool, address: str | None, workers: int) -> Iterator[Any]:
    if not on_cluster:
        from ..prepare.local import run_local

        yield lambda plan, kind, items: run_local(plan, kind, items, workers)
        return
    from ..prepare.ray_data import connected, run_ray

    def execute(plan: "Plan", kind: str, items: Sequence["Item"]) -> Iterator["Outcome"]:
        return run_ray(plan, kind, items, workers, address)

    with connected(address):
        yield execute


@contextmanager
def _progress() -> Iterator["OnItem"]:
    """A bar for each stage on a terminal, a line at every tenth elsewhere."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _tenths()
        return
    tasks: dict[str, Any] = {}
    columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(TextColumn("{task.description:>6}"), *columns, console=console) as bars:

        def on_item(kind: str, done: int, total: int) -> None:
            if kind not in tasks:
                tasks[kind] = bars.add_task(_STAGES[kind], total=total)
            bars.update(tasks[kind], completed=done)

        yield on_item


def _tenths() -> "OnItem":
    said: dict[str, int] = {}

    def on_item(kind: str, done: int, total: int) -> None:
        tenth = 10 * done // total
        if tenth > said.get(kind, 0):
            said[kind] = tenth
            typer.echo(f"{_STAGES[kind]}: {done} of {total}", err=True)

    return on_item


def _show(report: "Report", chart: bool, wall: float, workers: int) -> None:
    from ..dataset import MANIFEST
    from ..prepare.report import draw, rows, times
    from .console import show_table

    show_table(rows(report), ("", "clips", "minutes", ""))
    if report.settings.skip:
        typer.echo(f"not done, by --skip: {', '.join(sorted(report.settings.skip))}")
    if report.other:
        typer.echo(f"not looked at, by their names no videos: {report.other}")
    if report.orphans:
        typer.echo(f"clips in {report.out / 'clips'} of other runs, in no record of this one: {report.orphans}")
    if line := times(report, wall, workers):
        typer.echo(line)
    typer.echo(str(report.out / MANIFEST))
    if chart:
        typer.echo(str(draw(report)))
    if report.errors:
        typer.echo(f"{report.errors} not finished, the manifest says why; run again to try them again", err=True)


def filelist(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="What `latentsync prepare` wrote to.")],
    to: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write there instead of to the screen.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Only clips of these sources; may be repeated.")
    ] = None,
    holdout_sources: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="No clips of these sources; may be repeated.")
    ] = None,
) -> None:
    """List the clips that were kept, one path a line, for the trainer.

    \b
    One person for validation, the others for training:
      latentsync filelist prepared/ --holdout-sources 'anna/*' > train.txt
      latentsync filelist prepared/ --only 'anna/*' > val.txt
    """
    from ..dataset import kept_clips

    def matches(source: str, patterns: Sequence[str] | None) -> bool:
        return any(fnmatch(source, pattern) for pattern in patterns or ())

    clips = [
        c for c in kept_clips(out) if (not only or matches(c.source, only)) and not matches(c.source, holdout_sources)
    ]
    if not clips:
        raise UserError(f"{out} has no kept clip{' of the sources asked for' if only or holdout_sources else ''}.")
    lines = "".join(f"{clip.path.resolve()}\n" for clip in clips)
    if to is None:
        typer.echo(lines, nl=False)
        return
    try:
        with atomic_path(to) as part:
            part.write_text(lines, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{to} could not be written ({error.strerror}); give another name.") from error
    typer.echo(f"{to}: {len(clips)} clips")
