"""The log of a run: JSON lines, trackers, and charts."""

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError, missing_package
from ..files import atomic_path
from .trackers import NO_TRACKERS, Trackers

LOG, EVENTS, CHARTS = "log.jsonl", "events.jsonl", "charts.png"
MEDIA = ".png", ".mp4"
NO_CURVES = ("step", "seconds", "time")
STYLES = {"validation": "--", "true": ":", "people": "--", "other voice": "--"}
"""Of curves where several runs are drawn: those beside the first kind of a panel."""
LOG_SCALE = ("gradient", "scale")
WIDTH, HEIGHT = 5.0, 3.2
"""Inches of a panel."""


class RunLog:
    """Means over steps, one line at a time. Only the main process writes curves; the others only add up.

    Names with a slash share a panel of the chart: "loss/noise" and "validation/noise" go together under "noise".
    """

    def __init__(self, folder: Path, *, main: bool = True, trackers: Trackers = NO_TRACKERS) -> None:
        self.folder, self.main, self.trackers = folder, main, trackers
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """Of what was added since the last call; a value that only some steps have is averaged over those."""
        means = {name: total / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        return means

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if not self.main:
            return
        _append(self.folder / LOG, {"step": step, "time": round(time.time(), 1), **values})
        self.trackers.log(values, step)

    @contextmanager
    def new_media(self, folder: Path, step: int) -> Iterator[None]:
        """Pictures and videos that are written into the folder within it go to the trackers afterwards."""
        before = _changed_at(folder)
        yield
        self.trackers.log_media([path for path, time in _changed_at(folder).items() if before.get(path) != time], step)

    def event(self, step: int, event: str, **details: Any) -> str:
        """Write a skipped step, a bad clip, a rollback, the end; from any process. Returns it as a line to print."""
        _append(self.folder / EVENTS, {"step": step, "time": round(time.time(), 1), "event": event, **details})
        return " ".join([f"step {step}: {event}", *(f"{name}={value}" for name, value in details.items())])

    def truncate(self, step: int) -> None:
        """Drop the lines after this step, from which the run resumes."""
        path = self.folder / LOG
        if not self.main or not path.is_file():
            return
        kept = "".join(f"{json.dumps(line)}\n" for line in read_log(self.folder) if line["step"] <= step)
        with atomic_path(path) as part:
            part.write_text(kept, encoding="utf-8")

    def close(self) -> None:
        self.trackers.finish()


def _changed_at(folder: Path) -> dict[Path, int]:
    """Pictures and videos, and when they were written (ns)."""
    return {path: path.stat().st_mtime_ns for path in sorted(folder.glob("*")) if path.suffix in MEDIA}


def _append(path: Path, line: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    safe = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(safe, ensure_ascii=False) + "\n")


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run, without a last line that was cut off by a kill."""
    if not (folder / LOG).is_file():
        raise UserError(f"{folder} has no {LOG}; give the folder of a run that has begun.")
    lines = []
    for text in (folder / LOG).read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):
            lines.append(json.loads(text))
    return lines


def series(lines: Iterable[Mapping[str, Any]]) -> dict[str, tuple[list[int], list[float]]]:
    """Name → (steps, values). The later of two lines for a step counts."""
    points: dict[str, dict[int, float]] = {}
    for line in lines:
        for name, value in line.items():
            if name not in NO_CURVES and isinstance(value, int | float):
                points.setdefault(name, {})[int(line["step"])] = float(value)
    return {name: ([*sorted(by)], [by[step] for step in sorted(by)]) for name, by in points.items()}


def panels(names: Iterable[str]) -> dict[str, list[str]]:
    """Panel → curves: those with the same word after the slash."""
    out: dict[str, list[str]] = {}
    for name in names:
        out.setdefault(name.rpartition("/")[2], []).append(name)
    return out


def new_figure(**options: Any) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_package("A chart", "matplotlib") from error
    return Figure(**options)


@dataclass(frozen=True)
class Curve:
    """A curve of a panel. noisy: of single batches, so where it is long its running mean is drawn over it."""

    label: str | None
    steps: Sequence[int]
    values: Sequence[float]
    noisy: bool
    color: str | None = None
    style: str = "-"


def draw_charts(folder: Path) -> Path:
    """Draw all curves of a run over steps into charts.png in its folder."""
    curves = series(read_log(folder))
    subjects = {
        subject: [Curve(_kind(name) or None, *curves[name], _is_noisy(name)) for name in names]
        for subject, names in panels(curves).items()
    }
    if not subjects:
        raise UserError(f"{folder} has no curves to draw yet; wait for the first log line.")
    return _draw(subjects, folder.name, folder / CHARTS)


def draw_runs(folders: Sequence[Path], path: Path) -> Path:
    """Draw the curves of several runs over each other: a color for each run, a style for each kind of curve."""
    runs = dict(zip(_short_names(folders), (series(read_log(folder)) for folder in folders), strict=True))
    subjects: dict[str, list[Curve]] = {}
    for number, (run, curves) in enumerate(runs.items()):
        for subject, names in panels(curves).items():
            for name in names:
                kind = name.partition("/")[0] if "/" in name else ""
                curve = Curve(
                    f"{run} {kind}".strip(), *curves[name], _is_noisy(name), f"C{number}", STYLES.get(kind, "-")
                )
                subjects.setdefault(subject, []).append(curve)
    if not subjects:
        raise UserError(f"{', '.join(map(str, folders))} have no curves to draw yet; wait for the first log line.")
    return _draw(subjects, " · ".join(runs), path)


def _kind(name: str) -> str:
    """loss, validation, … or nothing."""
    return name.partition("/")[0] if "/" in name else ""


def _is_noisy(name: str) -> bool:
    return name.startswith("loss/")


def _short_names(folders: Sequence[Path]) -> list[str]:
    """The folders' names, with as many folders above them as it takes to tell them apart."""
    paths = [folder.absolute().parts for folder in folders]
    if len(set(paths)) < len(paths):
        raise UserError("A run is named twice; name each once.")
    for length in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-length:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _draw(subjects: Mapping[str, Sequence[Curve]], title: str, path: Path) -> Path:
    columns = min(3, len(subjects))
    rows = -(-len(subjects) // columns)
    width, height = WIDTH * columns, HEIGHT * rows + 0.4
    figure = new_figure(figsize=(width, height))
    sides = {"left": 0.6 / width, "right": 1 - 0.15 / width, "bottom": 0.5 / height, "top": 1 - 0.7 / height}
    # fixed margins for labels: measuring them takes matplotlib as long as drawing
    grid = figure.subplots(rows, columns, squeeze=False, gridspec_kw=sides | {"wspace": 0.16, "hspace": 0.32}).ravel()
    for axes, (subject, curves) in zip(grid, subjects.items(), strict=False):
        _panel(axes, subject, curves)
    for axes in grid[len(subjects) :]:
        axes.set_axis_off()
    figure.suptitle(title, y=1 - 0.15 / height)
    try:
        with atomic_path(path) as part:
            figure.savefig(part, dpi=110, format="png")
    except OSError as error:
        raise UserError(f"{path} could not be written ({error.strerror}); give another name.") from error
    return path


def _panel(axes: Any, subject: str, curves: Sequence[Curve]) -> None:
    for curve in curves:
        faint = curve.noisy and len(curve.values) > 40
        (line,) = axes.plot(
            curve.steps, curve.values, lw=0.8 if faint else 1.4, alpha=0.35 if faint else 1, color=curve.color,
            ls=curve.style,
        )  # fmt: skip
        if faint:
            axes.plot(
                curve.steps, smoothed(curve.values), lw=1.6, color=line.get_color(), ls=curve.style, label=curve.label
            )
        else:
            line.set(marker="" if len(curve.values) > 30 else ".", label=curve.label)
    if subject in LOG_SCALE and all(value > 0 for curve in curves for value in curve.values):
        axes.set_yscale("log")
    else:
        axes.ticklabel_format(axis="y", scilimits=(-3, 5))  # a learning rate's zeros would not fit beside the panel
    axes.set_title(subject, fontsize=10)
    axes.set_xlabel("step", fontsize=8)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.tick_params(which="both", labelsize=8)
    axes.grid(alpha=0.3)
    if len(curves) > 1:
        axes.legend(fontsize=8)


def smoothed(values: Sequence[float], share: float = 0.05) -> list[float]:
    """Running mean over a share of the curve, shorter at its ends."""
    reach = max(1, round(share * len(values) / 2))
    return [sum(part) / len(part) for part in (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))]
