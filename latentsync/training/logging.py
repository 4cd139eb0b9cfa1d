"""The log of a run: JSON lines, TensorBoard where it is installed, and charts."""

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import UserError, missing_package
from ..files import atomic_path

LOG, EVENTS, CHARTS = "log.jsonl", "events.jsonl", "charts.png"
NO_CURVES = ("step", "seconds", "time")
LOG_SCALE = ("gradient", "scale")
WIDTH, HEIGHT = 5.0, 3.2
"""Inches of a panel."""


class RunLog:
    """Means over steps, one line at a time. Only the main process writes curves; the others only add up.

    Names with a slash share a panel of the chart: "loss/noise" and "validation/noise" go together under "noise".
    """

    def __init__(self, folder: Path, *, main: bool = True, tensorboard: bool = True) -> None:
        self.folder, self.main = folder, main
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self._tensorboard: Any = None
        if main and tensorboard:
            with suppress(ImportError):
                from torch.utils.tensorboard import SummaryWriter

                self._tensorboard = SummaryWriter(str(folder / "tensorboard"))

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
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)
            self._tensorboard.flush()

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
        if self._tensorboard is not None:
            self._tensorboard.close()


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


def draw_charts(folder: Path) -> Path:
    """Draw all curves of a run over steps into charts.png in its folder."""
    curves = series(read_log(folder))
    subjects = panels(curves)
    if not subjects:
        raise UserError(f"{folder} has no curves to draw yet; wait for the first log line.")
    columns = min(3, len(subjects))
    rows = -(-len(subjects) // columns)
    width, height = WIDTH * columns, HEIGHT * rows + 0.4
    figure = new_figure(figsize=(width, height))
    sides = {"left": 0.6 / width, "right": 1 - 0.15 / width, "bottom": 0.5 / height, "top": 1 - 0.7 / height}
    # fixed margins for labels: measuring them takes matplotlib as long as drawing
    grid = figure.subplots(rows, columns, squeeze=False, gridspec_kw=sides | {"wspace": 0.16, "hspace": 0.32}).ravel()
    for axes, (subject, names) in zip(grid, subjects.items(), strict=False):
        _panel(axes, subject, [(name, *curves[name]) for name in names])
    for axes in grid[len(subjects) :]:
        axes.set_axis_off()
    figure.suptitle(folder.name, y=1 - 0.15 / height)
    path = folder / CHARTS
    with atomic_path(path) as part:
        figure.savefig(part, dpi=110, format="png")
    return path


def _panel(axes: Any, subject: str, curves: Sequence[tuple[str, list[int], list[float]]]) -> None:
    for name, steps, values in curves:
        faint = name.startswith("loss/") and len(values) > 40
        (line,) = axes.plot(steps, values, lw=0.8 if faint else 1.4, alpha=0.35 if faint else 1, label=None)
        if faint:
            axes.plot(steps, smoothed(values), lw=1.6, color=line.get_color(), label=name.partition("/")[0])
        else:
            line.set(marker="" if len(values) > 30 else ".", label=name.partition("/")[0] if "/" in name else None)
    if subject in LOG_SCALE and all(value > 0 for _, _, values in curves for value in values):
        axes.set_yscale("log")
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
