"""Measurements as rows for the screen, plain numbers for JSON, and pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from ..dataset import FPS
from .charts import BEST, FAINT, INK, MOUTH, SOUND_EDGE, WIDTH, _Axes, _frame, _Paper, _runs, _ticks, thinned
from .image_metrics import Frechet
from .landmark_sync import Score
from .measure import METRICS, Result
from .syncnet_accuracy import Accuracy
from .syncnet_sync import SyncScore

PANEL, TOP, GAP = 190.0, 86.0, 78.0
"""Heights in units of chart.py: of one panel, above the first, and below each."""
BINS = 20
PALE = (196, 200, 208)


@dataclass(frozen=True)
class Summary:
    """Several results together: metric to mean, sample standard deviation, clips that have it. in_step: of an offset,
    clips whose one is at most a frame."""

    clips: int
    values: dict[str, tuple[float, float, int]]
    in_step: dict[str, int]
    frechet: dict[str, tuple[float, int]]
    left_out: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        values: dict[str, dict[str, float]] = {
            k: {"mean": round(m, 6), "sd": round(s, 6), "clips": n} for k, (m, s, n) in self.values.items()
        }
        for key, count in self.in_step.items():
            values[key]["within_1_frame"] = count
        frechet = {k: {"value": round(v, 6), "samples": n} for k, (v, n) in self.frechet.items()}
        return {"clips": self.clips, "values": values, **frechet, "left_out": self.left_out}


def summarise(
    results: Sequence[Result], left_out: Mapping[str, str], frechets: Mapping[str, Frechet | None] | None = None
) -> Summary:
    """frechets: "fid" and "fvd" to what gathered features; one with fewer than two samples is left out, saying so."""
    values, in_step = {}, {}
    for key in METRICS:
        found = np.array([r.values[key] for r in results if key in r.values and np.isfinite(r.values[key])])
        if len(found):
            values[key] = (float(found.mean()), float(found.std(ddof=1)) if len(found) > 1 else 0.0, len(found))
        if len(found) and key.endswith("_offset"):
            in_step[key] = int((abs(found) <= 1).sum())
    absent = dict(left_out)
    distances = {}
    for key, gathered in (frechets or {}).items():
        if gathered and gathered.samples > 1:
            distances[key] = (gathered.distance(), gathered.samples)
        elif gathered:
            absent[key] = f"{gathered.samples} samples; two or more are needed"
    return Summary(len(results), values, in_step, distances, absent)


def number(key: str, value: float) -> str:
    metric = METRICS[key]
    sign = "+" if key.endswith("_offset") else ""
    return f"{value:{sign}.{metric.digits}f}" + (f" {metric.unit}" if metric.unit else "")


def rows(result: Result) -> list[tuple[str, str, str]]:
    """(title, value, which way is better), in the order of METRICS."""
    return [
        (metric.title, number(key, result.values[key]), metric.better)
        for key, metric in METRICS.items()
        if key in result.values
    ]


def skipped_rows(results: Sequence[Result]) -> list[tuple[str, str]]:
    """(title, why) of what was not measured; the same reason once for all clips."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for result in results:
        for key, why in result.skipped.items():
            reasons.setdefault((METRICS[key].title, why), []).append(result.name)
    everywhere = len(results)
    return [
        (title, why if len(names) == everywhere else f"{', '.join(names)}: {why}")
        for (title, why), names in reasons.items()
    ]


def summary_rows(summary: Summary) -> list[tuple[str, str, str, str]]:
    """(title, mean ± deviation, which way is better, over how many)."""
    out = []
    for key, metric in METRICS.items():
        if key in summary.values:
            mean, spread, count = summary.values[key]
            plain = f"{mean:.{max(1, metric.digits)}f} ± {spread:.{max(1, metric.digits)}f} {metric.unit}".rstrip()
            over = f", {summary.in_step[key]} within 1 frame" if key in summary.in_step else ""
            out.append((metric.title, plain, metric.better, f"{count} clips{over}"))
        if key in summary.frechet:
            value, samples = summary.frechet[key]
            out.append((metric.title, f"{value:.{metric.digits}f}", metric.better, f"{samples} samples a side"))
    return out


def frechet_rows(summary: Summary) -> list[tuple[str, str, str]]:
    """(title, value and over how many samples, which way is better)."""
    return [
        (METRICS[key].title, f"{value:.{METRICS[key].digits}f} ({samples} samples a side)", METRICS[key].better)
        for key, (value, samples) in summary.frechet.items()
    ]


def sync_rows(score: SyncScore) -> list[tuple[str, str, str]]:
    name = "Chung and Zisserman's" if score.network == "chung" else "StableSyncNet"
    return [
        ("LSE-C (SyncNet confidence)", f"{score.confidence:.3f}", "higher"),
        ("LSE-D (SyncNet distance)", f"{score.distance:.3f}", "lower"),
        ("distance without a shift", f"{score.at_zero:.3f}", "lower"),
        ("offset by SyncNet", f"{score.offset:+d} frames ({1000 * score.offset / float(FPS):+.0f} ms)", ""),
        ("judged", f"{score.windows} windows by {name}", ""),
    ]


def landmark_rows(score: Score) -> list[tuple[str, str, str]]:
    sure = "" if score.sure else ", may be an accident"
    return [
        ("offset by landmarks", f"{score.offset:+d} frames ({1000 * score.offset / score.fps:+.0f} ms){sure}", ""),
        ("confidence by landmarks", f"{score.confidence:.3f}", "higher"),
        ("correlation without a shift", f"{score.correlation:.3f}", "higher"),
    ]


def accuracy_rows(found: Accuracy) -> list[tuple[str, str]]:
    def share(value: float) -> str:
        return f"{100 * value:.1f} %" if np.isfinite(value) else "needs two clips"

    return [
        ("pairs, half of them in sync", f"{found.pairs} of {len(set(found.clips.tolist()))} clips"),
        ("accuracy at threshold 0.5", share(found.at_half)),
        (f"accuracy at {found.threshold:.3f}, chosen on every second clip", share(found.at_threshold)),
        ("area under the ROC curve", f"{found.auc:.3f}"),
        ("likelihood in sync, shifted", f"{found.likelihood[0]:.3f}, {found.likelihood[1]:.3f}"),
    ]


@dataclass(frozen=True)
class Line:
    """x, y (N,): NaN breaks it."""

    x: np.ndarray
    y: np.ndarray
    color: tuple[int, int, int] = INK
    label: str = ""
    width: float = 1.8
    dots: bool = False


class Sheet:
    """Panels below each other on white. The picture is (H, width, 3) uint8 RGB."""

    def __init__(self, panels: int, title: str, subtitle: str, width: int = WIDTH) -> None:
        self.width, self.unit = width, width / WIDTH
        self.height = round((TOP + panels * (PANEL + GAP)) * self.unit)
        self.paper = _Paper(width, self.height)
        self.next = TOP
        self.paper.text(title, (64 * self.unit, 38 * self.unit), INK, 21)
        self.paper.text(subtitle, (64 * self.unit, 62 * self.unit), FAINT, 14)

    def panel(
        self,
        lines: Sequence[Line],
        across: tuple[str, str, str],
        *,
        x: tuple[float, float],
        y: tuple[float, float] | None = None,
        sign: str = "",
    ) -> _Axes:
        """across: words below its left end, middle and right end. y: from the lines where None."""
        u, paper = self.unit, self.paper
        box = (64 * u, (self.next + 24) * u, self.width - 40 * u, (self.next + 24 + PANEL) * u)
        axes = _Axes(box, x, y or _range([line.y for line in lines]))
        _frame(paper, axes, _ticks(*x, 9), _ticks(*axes.y, 4), sign)
        at = box[0]
        for line in lines:
            for run in _runs(line.y):
                curve = axes.at(line.x[run], line.y[run])
                paper.line(curve, line.color, line.width)
                for point in curve if line.dots else ():
                    paper.dot((point[0], point[1]), 2.6, line.color)
            if line.label:
                at += paper.text(line.label, (at, box[1] - 10 * u), line.color, 13) + 26 * u
        places = ((box[0], 0.0), ((box[0] + box[2]) / 2, 0.5), (box[2], 1.0))
        for words, (place, align) in zip(across, places, strict=True):
            paper.text(words, (place, box[3] + 40 * u), FAINT, align=align)
        self.next += PANEL + GAP
        return axes

    @property
    def picture(self) -> np.ndarray:
        return cv2.resize(self.paper.pixels, (self.width, self.height), interpolation=cv2.INTER_AREA)


def _range(curves: Sequence[np.ndarray]) -> tuple[float, float]:
    known = np.concatenate([c[np.isfinite(c)] for c in curves])
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    room = 0.08 * (high - low) or 0.1 * (abs(high) or 1.0)
    return low - room, high + room


def draw_sync(score: SyncScore, name: str = "", width: int = WIDTH) -> np.ndarray:
    """The distance at every shift, and below it the confidence over time."""
    net = "SyncNet of Chung and Zisserman" if score.network == "chung" else "StableSyncNet"
    title = f"offset {score.offset:+d} frames, LSE-C {score.confidence:.2f}, LSE-D {score.distance:.2f}"
    sheet = Sheet(2, title, f"{name}   {net}, {score.windows} windows".strip(), width)
    reach = max(abs(int(score.shifts[0])), abs(int(score.shifts[-1])), 1)
    line = Line(score.shifts, score.distances, INK, "mean distance of picture and sound, by shift", dots=True)
    words = ("sound early", "shift in frames", "sound late")
    axes = sheet.panel([line], words, x=(-reach, reach), sign="+")
    _mark(sheet, axes, score.offset, score.distance)
    seconds = score.frames / float(FPS)
    curve = _over_time(score.per_frame, seconds, "confidence around each moment, at that offset", BEST)
    low, high = _range([curve.y])
    sheet.panel([curve], ("", "seconds", ""), x=(0, seconds), y=(min(0.0, low), high))
    return sheet.picture


def _mark(sheet: Sheet, axes: _Axes, x: float, y: float) -> None:
    at = axes.at(np.array([x]), np.array([y]))[0]
    sheet.paper.line(np.array([(at[0], axes.box[1]), (at[0], axes.box[3])]), BEST, 1.2)
    sheet.paper.dot((float(at[0]), float(at[1])), 6, BEST)


def _over_time(values: np.ndarray, seconds: float, label: str, color: tuple[int, int, int] = INK) -> Line:
    thin = thinned(values, 400)
    return Line((np.arange(len(thin)) + 0.5) * seconds / len(thin), thin, color, label)


def draw_comparison(result: Result, width: int = WIDTH) -> np.ndarray:
    """Openings of both mouths, and what differs from frame to frame."""
    seconds = result.frames / result.fps
    shown = [key for key in ("psnr_mouth", "ssim_mouth", "lip_distance", "lpips", "identity") if key in result.curves]
    head = ", ".join(
        f"{METRICS[k].title} {number(k, result.values[k])}"
        for k in ("opening_correlation", "lip_distance")
        if k in result.values
    )
    sheet = Sheet(1 + len(shown), result.name, head, width)
    openings = [
        _over_time(result.curves["opening_true"] * 100, seconds, "true mouth opening, % of face height", SOUND_EDGE),
        _over_time(result.curves["opening"] * 100, seconds, "made", MOUTH),
    ]
    sheet.panel(openings, ("", "seconds", ""), x=(0, seconds))
    for key in shown:
        unit = f" ({METRICS[key].unit})" if METRICS[key].unit else ""
        line = _over_time(result.curves[key], seconds, f"{METRICS[key].title}{unit}")
        sheet.panel([line], ("", "seconds", ""), x=(0, seconds))
    return sheet.picture


def draw_many(results: Sequence[Result], width: int = WIDTH) -> np.ndarray:
    """Every clip's curve over the shifts, and their mean: by SyncNet where there was one, and by landmarks."""
    nets = [(r.sync.shifts, r.sync.distances) for r in results if r.sync]
    marks = [(r.score.lags, r.score.by_lag) for r in results if r.score]
    both = [(nets, "distance by SyncNet"), (marks, "correlation of mouth and loudness, by landmarks")]
    panels = [(curves, words) for curves, words in both if curves]
    sheet = Sheet(max(1, len(panels)), f"{len(results)} clips", "thin: each clip; thick: their mean", width)
    for curves, words in panels:
        reach = max(int(np.abs(x).max()) for x, _ in curves)
        grid = np.arange(-reach, reach + 1)
        table = np.full((len(curves), len(grid)), np.nan)
        for row, (x, y) in zip(table, curves, strict=True):
            row[np.asarray(x) + reach] = y
        known = np.isfinite(table).all(0)
        lines = [Line(grid, row, PALE, width=1) for row in table]
        mean = Line(grid[known], table[:, known].mean(0), INK, f"{words}, by shift", 2.6)
        sheet.panel([*lines, mean], ("sound early", "shift in frames", "sound late"), x=(-reach, reach), sign="+")
    return sheet.picture


def draw_accuracy(found: Accuracy, name: str = "", width: int = WIDTH) -> np.ndarray:
    """How likely pairs in sync and shifted ones were held to be."""
    title = f"{100 * found.at_half:.1f} % right at threshold 0.5"
    sheet = Sheet(1, title, f"{name}   {found.pairs} pairs, half of them in sync".strip(), width)
    edges = np.linspace(0, 1, BINS + 1)
    lines = []
    for wanted, label, color in ((True, "in sync", BEST), (False, "shifted", MOUTH)):
        counts = np.histogram(found.likelihoods[found.in_sync == wanted].clip(0, 1), edges)[0]
        x, y = np.repeat(edges, 2), np.concatenate(([0], np.repeat(counts, 2), [0])).astype(float)
        lines.append(Line(x, y, color, f"{label} (pairs for each likelihood)", 2.2))
    top = 1.1 * max(1.0, *(float(line.y.max()) for line in lines))
    axes = sheet.panel(lines, ("0: not in sync", "likelihood", "1: in sync"), x=(0, 1), y=(0, top))
    for x in (0.5, found.threshold):
        if np.isfinite(x):
            at = float(axes.across(x))
            sheet.paper.line(np.array([(at, axes.box[1]), (at, axes.box[3])]), FAINT, 1.2)
    return sheet.picture
