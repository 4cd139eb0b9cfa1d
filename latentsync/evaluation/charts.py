"""Charts of scores, as (H, 960, 3) uint8 RGB."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..dataset import FPS
from .canvas import GRAY, INK, RIGHT, Chart, Color, Line, Panel, for_dark_pages, thinned, ticks, value_range
from .landmark_sync import SHOWN_DB, Score
from .syncnet_sync import SyncScore
from .verdict import verdict

if TYPE_CHECKING:
    from .measure import Result
    from .syncnet_accuracy import Accuracy

MOUTH, SOUND, SOUND_EDGE, BEST, PALE = (206, 52, 46), (190, 211, 236), (64, 106, 166), (24, 128, 84), (196, 200, 208)
POINTS = 413
"""Most points of a curve over time."""
BINS = 20
SHIFTS = ("audio early", "shift in frames", "audio late")
TIME = ("", "seconds", "")


def _over_time(values: np.ndarray, seconds: float, label: str, color: Color = INK, fill: bool = False) -> Line:
    thin = thinned(values, POINTS)
    return Line((np.arange(len(thin)) + 0.5) * seconds / len(thin), thin, color, label, fill=fill)


def draw_chart(score: Score, dark: bool = False) -> np.ndarray:
    """Mouth opening and loudness over time, and their correlation at every lag. dark: light lines on a dark ground."""
    seconds = len(score.opening) / score.fps
    subtitle = (
        f"offset {score.offset:+d} frame{'s' * (abs(score.offset) != 1)}     confidence {score.confidence:.2f}     "
        f"correlation {score.correlation:.2f}     {score.fps:.5g} frames/s"
    )
    chart = Chart(2, verdict(score), subtitle)
    highest = 1.08 * max(5.0, 100 * float(np.nanmax(score.opening)))
    top = 10 * float(np.ceil(np.nanmax(score.loudness) / 10))
    scale = highest / SHOWN_DB  # loudness has an axis of its own, on the right
    loudness = (score.loudness - top + SHOWN_DB) * scale
    lines = [
        _over_time(score.opening * 100, seconds, "mouth opening, % of the face's height", MOUTH),
        _over_time(loudness, seconds, "", SOUND, fill=True),
        Line(np.zeros(0), np.zeros(0), SOUND_EDGE, "loudness, dB (1.5 to 4.5 kHz)"),
    ]
    panel = chart.panel(lines, TIME, x=(0, seconds), y=(0, highest))
    for value in ticks(top - SHOWN_DB, top, 4):
        _, y = panel.at(0, (value - top + SHOWN_DB) * scale)
        panel.chart.text(f"{value:g}", RIGHT + 10, y + 5, SOUND_EDGE)
    values, threshold = score.correlation_by_lag, score.significance_threshold
    limits = min(-0.3, float(values.min())) - 0.05, max(0.5, float(values.max()), threshold) + 0.08
    line = Line(
        score.lags, values, INK, "correlation of mouth and loudness, by lag; dashed: significance", 2, dots=True
    )
    max_lag = max(1, int(score.lags[-1]))
    panel = chart.panel([line], SHIFTS, x=(-max_lag, max_lag), y=limits, sign="+", whole=True)
    panel.vertical(0)
    panel.dashed(threshold)
    peak = float(values[score.lags == score.offset][0])
    _mark_best(panel, score.offset, peak, f"{score.offset:+d}: {peak:.2f}")
    return for_dark_pages(chart.picture()) if dark else chart.picture()


def _mark_best(panel: Panel, x: float, y: float, label: str = "") -> None:
    panel.vertical(x, BEST, 1.5)
    pixel = panel.at(x, y)
    panel.dot(pixel, 6, BEST)
    side = 1 if x > 0.6 * panel.x[1] else 0
    panel.chart.text(label, pixel[0] + 12 - 24 * side, pixel[1], BEST, 15, side)


def draw_sync(score: SyncScore, name: str = "") -> np.ndarray:
    """The distance at every shift, and the confidence over time."""
    network = "SyncNet of Chung and Zisserman" if score.network == "chung" else "StableSyncNet"
    title = f"offset {score.offset:+d} frames, LSE-C {score.confidence:.2f}, LSE-D {score.distance:.2f}"
    chart = Chart(2, title, f"{name}   {network}, {score.windows} windows".strip())
    max_shift = max(abs(int(score.shifts[0])), abs(int(score.shifts[-1])), 1)
    line = Line(score.shifts, score.distances, INK, "mean distance of video and audio, by shift", dots=True)
    panel = chart.panel([line], SHIFTS, x=(-max_shift, max_shift), sign="+")
    _mark_best(panel, score.offset, score.distance)
    seconds = score.frames / float(FPS)
    curve = _over_time(score.per_frame, seconds, "confidence around each moment, at that offset", BEST)
    low, high = value_range([curve.y])
    chart.panel([curve], TIME, x=(0, seconds), y=(min(0.0, low), high))
    return chart.picture()


def draw_comparison(result: "Result") -> np.ndarray:
    """Openings of both mouths, and the measures of each frame."""
    from .measure import METRICS
    from .report import format_value

    seconds = result.frames / result.fps
    shown = [key for key in ("psnr_mouth", "ssim_mouth", "lip_distance", "lpips", "identity") if key in result.curves]
    numbers = [key for key in ("opening_correlation", "lip_distance") if key in result.values]
    subtitle = ", ".join(f"{METRICS[key].title} {format_value(key, result.values[key])}" for key in numbers)
    chart = Chart(1 + len(shown), result.name, subtitle)
    openings = [
        _over_time(result.curves["opening_true"] * 100, seconds, "true mouth opening, % of face height", SOUND_EDGE),
        _over_time(result.curves["opening"] * 100, seconds, "generated", MOUTH),
    ]
    chart.panel(openings, TIME, x=(0, seconds))
    for key in shown:
        unit = f" ({METRICS[key].unit})" if METRICS[key].unit else ""
        chart.panel([_over_time(result.curves[key], seconds, f"{METRICS[key].title}{unit}")], TIME, x=(0, seconds))
    return chart.picture()


def draw_many(results: "Sequence[Result]") -> np.ndarray:
    """Every clip's curve over the shifts, and their mean: by SyncNet if there was one, and by landmarks."""
    by_net = [(r.sync.shifts, r.sync.distances) for r in results if r.sync]
    by_landmarks = [(r.score.lags, r.score.correlation_by_lag) for r in results if r.score]
    groups = [(by_net, "distance by SyncNet"), (by_landmarks, "correlation of mouth and loudness, by landmarks")]
    panels = [(curves, label) for curves, label in groups if curves]
    chart = Chart(max(1, len(panels)), f"{len(results)} clips", "thin: each clip; thick: their mean")
    for curves, label in panels:
        max_shift = max(int(np.abs(x).max()) for x, _ in curves)
        grid = np.arange(-max_shift, max_shift + 1)
        table = np.full((len(curves), len(grid)), np.nan)
        for row, (x, y) in zip(table, curves, strict=True):
            row[np.asarray(x) + max_shift] = y
        known = np.isfinite(table).all(0)
        mean = Line(grid[known], table[:, known].mean(0), INK, f"{label}, by shift", 2.6)
        lines = [*(Line(grid, row, PALE, width=1) for row in table), mean]
        chart.panel(lines, SHIFTS, x=(-max_shift, max_shift), sign="+")
    return chart.picture()


def draw_accuracy(found: "Accuracy", name: str = "") -> np.ndarray:
    """Histograms of the likelihood of pairs in sync and of shifted ones."""
    title = f"{100 * found.at_half:.1f} % correct at threshold 0.5"
    chart = Chart(1, title, f"{name}   {found.pairs} pairs, half of them in sync".strip())
    edges = np.linspace(0, 1, BINS + 1)
    lines = []
    for in_sync, label, color in ((True, "in sync", BEST), (False, "shifted", MOUTH)):
        counts = np.histogram(found.likelihoods[found.in_sync == in_sync].clip(0, 1), edges)[0]
        x, y = np.repeat(edges, 2), np.concatenate(([0], np.repeat(counts, 2), [0])).astype(float)
        lines.append(Line(x, y, color, f"{label} (pairs for each likelihood)", 2.2))
    top = 1.1 * max(1.0, *(float(line.y.max()) for line in lines))
    panel = chart.panel(lines, ("0: not in sync", "likelihood", "1: in sync"), x=(0, 1), y=(0, top))
    for threshold in (0.5, found.threshold):
        if np.isfinite(threshold):
            panel.vertical(threshold, GRAY, 1.2)
    return chart.picture()
