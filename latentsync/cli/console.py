"""What the command line shows: progress and summaries, which --quiet leaves out, and results on stdout."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich import progress
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..errors import UserError
from ..files import atomic_path

if TYPE_CHECKING:
    from ..pipeline import Report
    from ..settings import Progress as Done
    from ..settings import ProgressCallback

quiet = False
"""Whether `latentsync --quiet` was given."""
MARKS = {"ok": "[green]ok[/green]", "note": "[yellow]note[/yellow]", "missing": "[red]missing[/red]"}
MOST_PARTS = 8
"""Parts of a clip that the result names."""
LARGE = 1_000_000_000
"""Bytes of a file whose transfer is worth a word in a log."""


@contextmanager
def stages(logged: Sequence[str] = ("sample",), *, title: str = "", keep: bool = True) -> Iterator["ProgressCallback"]:
    """A bar per stage on a terminal; elsewhere (logs, notebooks) a line at each quarter of the `logged` stages.

    title: before the stage. keep: whether the bars stay when all is done.
    """
    if quiet or not _terminal():
        lines = {stage: _quarters(stage) for stage in logged}
        yield lambda step: lines[step.stage](step.done, step.total) if step.stage in lines else None
        return
    tasks: dict[str, Any] = {}
    with _bars(progress.MofNCompleteColumn(), progress.TimeElapsedColumn(), keep=keep) as bars:

        def on_step(step: "Done") -> None:
            if step.stage not in tasks:
                tasks[step.stage] = bars.add_task(escape(f"{title} {step.stage}".strip()), total=step.total or None)
            bars.update(tasks[step.stage], completed=step.done)

        yield on_step


@contextmanager
def transfer(name: str, size: int | None = None) -> Iterator[Callable[[int, int], None]]:
    """A bar of bytes on a terminal, elsewhere a line at each quarter of a large file; told (done, total)."""
    if quiet or not _terminal():
        yield _quarters(name) if (size or 0) >= LARGE else lambda done, total: None
        return
    with _bars(progress.DownloadColumn(), progress.TransferSpeedColumn()) as bars:
        task = bars.add_task(name, total=size)
        yield lambda done, total: bars.update(task, completed=done, total=total or None)


class LinesAndBar:
    """Lines on stderr; on a terminal also a bar below them, in the main one of several processes.

    Drawn by hand, without the thread that rich would take: training forks processes that load data.
    """

    WIDTH, PAUSE = 24, 0.2

    def __init__(self) -> None:
        self._bar, self._drawn = "", 0.0

    def __call__(self, line: str) -> None:
        if quiet:
            return
        clear = "\r\033[K" if self._bar else ""
        typer.echo(f"{clear}{line}", err=True, color=bool(clear) or None)
        typer.echo(self._bar, err=True, nl=False)

    def draw(self, share: float, text: str) -> None:
        """share: 0 to 1; at 1 the bar goes away."""
        if quiet or os.environ.get("RANK", "0") != "0" or not _terminal():
            return
        now = time.monotonic()
        if share < 1 and now - self._drawn < self.PAUSE:
            return
        filled = int(share * self.WIDTH)
        self._drawn, self._bar = now, f"{'█' * filled}{'░' * (self.WIDTH - filled)} {text}" if share < 1 else ""
        width = Console(stderr=True).width - 1  # a line that wraps could not be cleared
        self._bar = self._bar[:width]
        typer.echo(f"\r\033[K{self._bar}", err=True, nl=False, color=True)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    with Console(stderr=True, quiet=quiet).status(what):
        yield


def note(text: str) -> None:
    """Something beside the result, on stderr."""
    if not quiet:
        typer.echo(text, err=True)


def _terminal() -> bool:
    """Whether bars can be drawn: not where the cursor cannot be moved (TERM=dumb)."""
    return Console(stderr=True).is_interactive


def _bars(*columns: progress.ProgressColumn, keep: bool = False) -> progress.Progress:
    described = (
        progress.TextColumn("{task.description:>6}"),
        progress.BarColumn(),
        *columns,
        progress.TimeRemainingColumn(),
    )
    return progress.Progress(*described, console=Console(stderr=True), transient=not keep)


def _quarters(name: str) -> Callable[[int, int], None]:
    printed: set[int] = set()

    def on_progress(done: int, total: int) -> None:
        quarter = 4 * done // max(total, 1)
        if quarter and quarter not in printed:
            printed.add(quarter)
            note(f"{name}: {25 * quarter} %")

    return on_progress


def show_result(report: "Report", facts: Mapping[str, Any], sheet: Path | None, *, to_stderr: bool) -> None:
    if quiet:
        return
    width, height = report.size
    lines = [
        f"{report.out}: {report.frames} frames of {width} × {height} at {float(report.fps):g} fps,"
        f" the mouth repainted in {report.repainted} of them ({report.checkpoint}, {facts['device']}, {facts['dtype']})"
    ]
    lines += [f"{facts['video']} is {note}" for note in report.notes]
    lines += _not_synced(report)
    if sheet is not None:
        lines.append(f"{sheet}: contact sheet")
    lines.append("seconds: " + ", ".join(f"{stage} {value:.1f}" for stage, value in facts["timings"].items()))
    typer.echo("\n".join(lines), err=to_stderr)


def _not_synced(report: "Report") -> list[str]:
    """A line for each part that was not plainly synced, the longest first where there are many."""
    from ..face.spans import SYNCED

    parts = sorted((s for s in report.spans if s.state != SYNCED), key=lambda s: s.start - s.stop)[:MOST_PARTS]
    return [
        f"{float(s.start / report.fps):.2f} to {float(s.stop / report.fps):.2f} s: {s.state}; {s.reason}"
        for s in sorted(parts, key=lambda s: s.start)
    ]


def show_table(rows: Sequence[Sequence[str]], titles: Sequence[str] = ()) -> None:
    """Columns; long cells wrap on a terminal and stay whole in a pipe."""
    table = Table(*titles, box=None, show_header=bool(titles), padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*row)
    Console(width=None if Console().is_terminal else 300).print(table)


def show_json(facts: Any) -> None:
    typer.echo(as_json(facts))


def as_json(facts: Any) -> str:
    return json.dumps(facts, indent=2, ensure_ascii=False, default=str)


def write_json(path: Path, facts: Any) -> None:
    # names that are no text keep their bytes as escapes, which JSON allows
    write_file(path, f"{as_json(facts)}\n".encode(errors="backslashreplace"), "the video is complete")


def write_file(path: str | Path, content: bytes, advice: str = "give another name") -> None:
    try:
        with atomic_path(path) as part:
            part.write_bytes(content)
    except OSError as error:
        raise UserError(f"{path} could not be written ({error.strerror}); {advice}.") from error


def check_writable(path: Path | None) -> None:
    """Before the work: a file can be written there. - prints it."""
    if path is None or str(path) == "-":
        return
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"{path} cannot be written there; name a file in a folder that can be written to.")
