"""A Score as a picture: above mouth and loudness over time, below how well they match at every lag."""

from dataclasses import dataclass

import cv2
import numpy as np

from .landmark_sync import SHOWN, Score

WIDTH, ASPECT = 960, 0.66
PAPER, INK, FAINT, GRID = (252, 252, 252), (45, 48, 54), (120, 124, 132), (228, 230, 234)
MOUTH, SOUND, SOUND_EDGE, BEST = (206, 52, 46), (190, 211, 236), (110, 150, 205), (24, 128, 84)
SHARP = 2
"""Drawn so many times larger and reduced: OpenCV's letters are thin."""
_FONT = cv2.FONT_HERSHEY_SIMPLEX

Color = tuple[int, int, int]
Point = tuple[float, float]


def draw_chart(score: Score, width: int = WIDTH) -> np.ndarray:
    """(H, width, 3) uint8 RGB. width: pixels, at least 320."""
    width = max(320, width)
    height = round(width * ASPECT)
    paper = _Paper(width, height)
    unit = paper.unit
    left, right = 64 * unit, width - 70 * unit
    _headline(paper, score, left)
    _over_time(paper, score, (left, 118 * unit, right, 0.56 * height))
    _over_lags(paper, score, (left, 0.56 * height + 88 * unit, right, height - 52 * unit))
    return cv2.resize(paper.pixels, (width, height), interpolation=cv2.INTER_AREA)


def verdict(score: Score) -> str:
    """What the numbers say, in a few words."""
    if not score.sure:
        return "No clear match: this much can be an accident"
    if abs(score.offset) <= 1:
        return "In step"
    frames, ms = abs(score.offset), abs(score.offset) / score.fps * 1000
    return f"Sound {frames} frames ({ms:.0f} ms) {'late' if score.offset > 0 else 'early'}"


class _Paper:
    """A picture in units of final pixels; unit: what was one pixel at the usual width."""

    def __init__(self, width: int, height: int) -> None:
        self.pixels = np.full((height * SHARP, width * SHARP, 3), PAPER, np.uint8)
        self.unit = width / WIDTH

    def text(self, words: str, at: Point, color: Color = FAINT, size: float = 13, align: float = 0) -> float:
        """Baseline at `at`; align 0 starts there, 0.5 is centered, 1 ends there. Gives the words' width."""
        scale = size * self.unit * SHARP / 22
        bold = max(1, round(scale * (2.1 if size > 15 else 1.6)))
        wide = cv2.getTextSize(words, _FONT, scale, bold)[0][0]
        place = (round(at[0] * SHARP - align * wide), round(at[1] * SHARP))
        cv2.putText(self.pixels, words, place, _FONT, scale, color, bold, cv2.LINE_AA)
        return wide / SHARP

    def line(self, points: np.ndarray, color: Color, width: float = 1) -> None:
        thick = max(1, round(width * self.unit * SHARP))
        cv2.polylines(self.pixels, [_whole(points)], False, color, thick, cv2.LINE_AA)

    def dashes(self, y: float, x0: float, x1: float, color: Color) -> None:
        step = 8 * self.unit
        for x in np.arange(x0, x1, step):
            self.line(np.array([(x, y), (min(x + step / 2, x1), y)]), color)

    def fill(self, points: np.ndarray, color: Color) -> None:
        cv2.fillPoly(self.pixels, [_whole(points)], color, cv2.LINE_AA)

    def dot(self, at: Point, radius: float, color: Color) -> None:
        center = (round(at[0] * SHARP), round(at[1] * SHARP))
        cv2.circle(self.pixels, center, round(radius * self.unit * SHARP), color, -1, cv2.LINE_AA)


def _whole(points: np.ndarray) -> np.ndarray:
    return np.round(np.asarray(points) * SHARP).astype(np.int32)


@dataclass(frozen=True)
class _Axes:
    """Where values lie on the paper: box x0, y0, x1, y1 and the ranges that it shows."""

    box: tuple[float, float, float, float]
    x: tuple[float, float]
    y: tuple[float, float]

    def across(self, values: np.ndarray | float) -> np.ndarray:
        return self.box[0] + (np.asarray(values) - self.x[0]) / (self.x[1] - self.x[0]) * (self.box[2] - self.box[0])

    def up(self, values: np.ndarray | float) -> np.ndarray:
        share = np.clip((np.asarray(values) - self.y[0]) / (self.y[1] - self.y[0]), 0, 1)
        return self.box[3] - share * (self.box[3] - self.box[1])

    def at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.stack((self.across(x), self.up(y)), -1)


def _headline(paper: _Paper, score: Score, left: float) -> None:
    unit = paper.unit
    paper.text(verdict(score), (left, 40 * unit), INK, 23)
    figures = (
        f"offset {score.offset:+d} frames     confidence {score.confidence:.2f}     "
        f"correlation {score.correlation:.2f}     {score.fps:.5g} frames/s"
    )
    paper.text(figures, (left, 70 * unit), FAINT, 15)


def _over_time(paper: _Paper, score: Score, box: tuple[float, float, float, float]) -> None:
    seconds, unit = len(score.opening) / score.fps, paper.unit
    opening, loudness = (thinned(v, round(box[2] - box[0]) // 2) for v in (score.opening * 100, score.loudness))
    times = (np.arange(len(opening)) + 0.5) * seconds / len(opening)
    top = 10 * np.ceil(np.nanmax(score.loudness) / 10)
    sound = _Axes(box, (0, seconds), (top - SHOWN, top))
    mouth = _Axes(box, (0, seconds), (0, 1.08 * max(5.0, float(np.nanmax(opening)))))
    for part in _runs(loudness):
        curve = sound.at(times[part], loudness[part])
        ends = [(curve[-1, 0], box[3]), (curve[0, 0], box[3])]
        paper.fill(np.concatenate((curve, ends)), SOUND)
    _frame(paper, mouth, _ticks(0, seconds, 8), _ticks(0, mouth.y[1], 4))
    for part in _runs(opening):
        paper.line(mouth.at(times[part], opening[part]), MOUTH, 1.7)
    for value in _ticks(*sound.y, 4):
        paper.text(f"{value:g}", (box[2] + 10 * unit, float(sound.up(value)) + 5 * unit), SOUND_EDGE)
    _legend(paper, box)
    paper.text("seconds", (box[2], box[3] + 38 * unit), FAINT, align=1)


def _legend(paper: _Paper, box: tuple[float, float, float, float]) -> None:
    unit, y = paper.unit, box[1] - 14 * paper.unit
    x = box[0]
    paper.line(np.array([(x, y - 5 * unit), (x + 22 * unit, y - 5 * unit)]), MOUTH, 2.5)
    x += 30 * unit
    x += paper.text("mouth opening, % of the face's height", (x, y), MOUTH) + 34 * unit
    paper.fill(np.array([(x, y - 11 * unit), (x + 22 * unit, y - 11 * unit), (x + 22 * unit, y), (x, y)]), SOUND)
    paper.text("loudness, dB (1.5 to 4.5 kHz)", (x + 30 * unit, y), SOUND_EDGE)


def _over_lags(paper: _Paper, score: Score, box: tuple[float, float, float, float]) -> None:
    unit, best = paper.unit, int(np.argmax(score.lags == score.offset))
    reach = max(1, int(score.lags[-1]))
    low, high = min(-0.3, float(score.by_lag.min())), max(0.5, float(score.by_lag.max()), score.chance)
    axes = _Axes(box, (-reach, reach), (low - 0.05, high + 0.08))
    _frame(paper, axes, _ticks(-reach, reach, 8, whole=True), _ticks(*axes.y, 4), sign="+")
    paper.line(np.array([(axes.across(0.0), box[1]), (axes.across(0.0), box[3])]), FAINT)
    y = float(axes.up(score.chance))
    paper.dashes(y, box[0], box[2], FAINT)
    if score.offset > 0:  # out of the way of the best lag's own label
        paper.text("chance", (box[0] + 6 * unit, y - 6 * unit))
    else:
        paper.text("chance", (box[2] - 6 * unit, y - 6 * unit), align=1)
    curve = axes.at(score.lags, score.by_lag)
    paper.line(curve, INK, 2)
    for point in curve:
        paper.dot((point[0], point[1]), 2.6, INK)
    x, peak = curve[best]
    paper.line(np.array([(x, peak), (x, box[3])]), BEST, 1.5)
    paper.dot((x, peak), 6, BEST)
    side = 1 if score.offset > 0.6 * reach else 0
    paper.text(f"{score.offset:+d}: {score.by_lag[best]:.2f}", (x + (12 - 24 * side) * unit, peak), BEST, 15, side)
    paper.text("correlation, mouth against loudness", (box[0], box[1] - 14 * unit), INK)
    below = box[3] + 40 * unit
    paper.text("sound early", (box[0], below))
    paper.text("lag in frames", ((box[0] + box[2]) / 2, below), align=0.5)
    paper.text("sound late", (box[2], below), align=1)


def _frame(paper: _Paper, axes: _Axes, across: list[float], up: list[float], sign: str = "") -> None:
    """Grid lines with their numbers, below and on the left."""
    unit = paper.unit
    x0, y0, x1, y1 = axes.box
    for value in up:
        y = float(axes.up(value))
        paper.line(np.array([(x0, y), (x1, y)]), GRID)
        paper.text(f"{value:g}", (x0 - 9 * unit, y + 5 * unit), align=1)
    for value in across:
        x = float(axes.across(value))
        paper.line(np.array([(x, y0), (x, y1)]), GRID)
        paper.text(f"{value:{sign}g}" if value else "0", (x, y1 + 19 * unit), align=0.5)
    paper.line(np.array([(x0, y1), (x1, y1)]), FAINT)


def _ticks(low: float, high: float, most: int, *, whole: bool = False) -> list[float]:
    """Round numbers within the range, at most about so many."""
    raw = (high - low) / most
    power = 10.0 ** np.floor(np.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    step = max(1.0, step) if whole else step
    first = int(np.ceil(low / step - 1e-9))
    return [round(k * step, 9) for k in range(first, int(np.floor(high / step + 1e-9)) + 1)]


def thinned(values: np.ndarray, most: int) -> np.ndarray:
    """Means of equal segments, so that there are at most so many; NaN where a stretch knows none."""
    step = -(-len(values) // most)
    if step == 1:
        return values
    table = np.pad(values, (0, -len(values) % step), constant_values=np.nan).reshape(-1, step)
    known = np.isfinite(table)
    count = known.sum(1)
    return np.where(count > 0, np.where(known, table, 0).sum(1) / np.maximum(count, 1), np.nan)


def _runs(values: np.ndarray) -> list[np.ndarray]:
    """Indices of each stretch without NaN."""
    known = np.flatnonzero(np.isfinite(values))
    return [run for run in np.split(known, np.flatnonzero(np.diff(known) > 1) + 1) if len(run)]
