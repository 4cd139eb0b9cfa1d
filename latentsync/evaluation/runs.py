"""Several runs side by side: the means of their measures over the clips that all of them have, as a table and chart."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError, missing_package
from .measure import METRICS

Values = Mapping[str, float]
"""Metric to number, of one clip."""
COLUMNS, WIDTH, HEIGHT = 3, 4.2, 2.6
"""Of the chart: panels in a row, inches of a panel."""


@dataclass(frozen=True)
class Comparison:
    """runs: name to clip to values, of the same clips. skipped: clip to the reason why it does not count."""

    runs: Mapping[str, Mapping[str, Values]]
    skipped: Mapping[str, str]

    @property
    def clips(self) -> list[str]:
        return sorted(next(iter(self.runs.values())))

    def metrics(self) -> list[str]:
        """Those that every run has of at least one clip that they share."""
        return [key for key in METRICS if all(len(found) for found in self.values(key).values())]

    def values(self, key: str) -> dict[str, np.ndarray]:
        """(n,) of each run: a metric of the clips of which all runs have it."""
        shared = [clip for clip in self.clips if all(key in clips[clip] for clips in self.runs.values())]
        return {name: np.array([clips[clip][key] for clip in shared]) for name, clips in self.runs.items()}

    def best(self, key: str) -> str | None:
        """The run with the best mean; None where better has no direction, or two are equal."""
        sign = {"higher": 1, "lower": -1}.get(METRICS[key].better)
        means = {name: float(found.mean()) for name, found in self.values(key).items()}
        if sign is None or len({round(mean, METRICS[key].digits) for mean in means.values()}) < len(means):
            return None
        return max(means, key=lambda name: sign * means[name])

    def rows(self) -> list[tuple[str, ...]]:
        """(title, better, value of each run …, clips); * marks the best."""
        out = []
        for key in self.metrics():
            values, best = self.values(key), self.best(key)
            cells = [_cell(key, found) + (" *" if name == best else "") for name, found in values.items()]
            count = len(next(iter(values.values())))
            out.append((METRICS[key].title, METRICS[key].better, *cells, str(count)))
        return out

    def as_dict(self) -> dict[str, Any]:
        means = {
            key: {name: {"mean": round(float(v.mean()), 6), "sd": round(float(v.std(ddof=1)), 6) if len(v) > 1 else 0.0,
                         "clips": len(v)} for name, v in self.values(key).items()}
            for key in self.metrics()
        }  # fmt: skip
        best = {key: self.best(key) for key in means}
        return {"clips": self.clips, "means": means, "best": best, "runs": self.runs, "skipped": self.skipped}

    def as_csv(self) -> str:
        """A line for each clip of each run."""
        keys, text = self.metrics(), io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("run", "clip", *keys))
        for name, clips in self.runs.items():
            writer.writerows((name, clip, *(clips[clip].get(key, "") for key in keys)) for clip in self.clips)
        return text.getvalue()


def _cell(key: str, found: np.ndarray) -> str:
    """Mean, and standard deviation where there are several clips."""
    digits, unit = max(1, METRICS[key].digits), METRICS[key].unit
    spread = f" ± {found.std(ddof=1):.{digits}f}" if len(found) > 1 else ""
    return f"{found.mean():.{digits}f}{spread} {unit}".rstrip()


def side_by_side(runs: Mapping[str, Mapping[str, Values]], skipped: Mapping[str, str] | None = None) -> Comparison:
    """runs: name to clip to values. UserError: they have no clip in common."""
    common = set.intersection(*map(set, runs.values()))
    if not common:
        raise UserError(
            f"{' and '.join(runs)} have no clip of the same name; make them of the same list of pairs, so that they can"
            " be compared."
        )
    alone = {
        f"{name}: {clip}": "not in every run" for name, clips in runs.items() for clip in sorted(set(clips) - common)
    }
    kept = {name: {clip: clips[clip] for clip in sorted(common)} for name, clips in runs.items()}
    return Comparison(kept, {**(skipped or {}), **alone})


def read_report(path: Path) -> dict[str, Values]:
    """Clips and their values of a report by `eval measure` or `eval compare` of a folder. UserError: it is none."""
    try:
        clips = json.loads(path.read_text(encoding="utf-8"))["clips"]
        return {
            clip["name"]: {key: float(v) for key, v in clip["values"].items() if key in METRICS and v is not None}
            for clip in clips
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a report from `eval measure` or `eval compare`; give one, or a folder."
        ) from error


def run_names(places: Sequence[Path]) -> list[str]:
    """Of each place the last part of its path, with as many folders above as it takes to tell them apart."""
    parts = [place.absolute().with_suffix("").parts if place.is_file() else place.absolute().parts for place in places]
    if len(set(parts)) < len(parts):
        raise UserError("A run is named twice; name each once.")
    length = next(n for n in range(1, max(map(len, parts)) + 1) if len({p[-n:] for p in parts}) == len(parts))
    return ["/".join(p[-length:]) for p in parts]


def draw_side_by_side(found: Comparison) -> np.ndarray:
    """(H, W, 3) uint8 RGB: a panel for each measure; bars are means, dots are clips, the best bar is dark."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_package("A chart of several runs", "matplotlib") from error
    keys, names = found.metrics(), list(found.runs)
    columns = min(COLUMNS, len(keys))
    lines = -(-len(keys) // columns)
    figure = Figure(figsize=(WIDTH * columns, (HEIGHT + 0.2 * len(names)) * lines + 0.4), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, key in zip(grid, keys, strict=False):
        values, best, metric = found.values(key), found.best(key), METRICS[key]
        for place, name in enumerate(names):
            axes.barh(place, values[name].mean(), color="C0" if name == best else "0.78")
            axes.plot(values[name], np.full(len(values[name]), place), ".", color="0.25", ms=4, alpha=0.6)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.invert_yaxis()
        axes.tick_params(axis="x", labelsize=8)
        axes.set_title(metric.title + (f", {metric.unit}" if metric.unit else ""), fontsize=9)
        axes.set_xlabel({"higher": "higher is better", "lower": "lower is better"}.get(metric.better, ""), fontsize=8)
        axes.grid(axis="x", alpha=0.3)
    for axes in grid[len(keys) :]:
        axes.set_axis_off()
    figure.suptitle(f"{len(found.clips)} clips; bars: means, dots: clips, blue: best")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])
