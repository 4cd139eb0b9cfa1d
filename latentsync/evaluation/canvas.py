"""Line charts by OpenCV: the charts of the ComfyUI node and the web app, where matplotlib is not installed."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

WIDTH, LEFT, RIGHT = 960, 64, 890
TOP, PANEL, GAP = 86, 190, 78
"""Pixels: above the first panel, height of a panel, and below each."""
PAPER, INK, GRAY, GRID = (252, 252, 252), (45, 48, 54), (120, 124, 132), (228, 230, 234)
SCALE = 2
"""Charts are drawn this much larger and reduced, because OpenCV's letters are thin."""
LOWEST, LIFT = 0.02, 0.6
"""Lightness of what was white, and how much lighter than its opposite a color becomes: on black, lines look dim."""
_FONT = cv2.FONT_HERSHEY_SIMPLEX

Color = tuple[int, int, int]
Range = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """x, y (N,): NaN breaks the line. fill: the area below it instead."""

    x: np.ndarray
    y: np.ndarray
    color: Color = INK
    label: str = ""
    width: float = 1.8
    dots: bool = False
    fill: bool = False


class Chart:
    """Panels below each other, as (H, 960, 3) uint8 RGB."""

    def __init__(self, panels: int, title: str, subtitle: str) -> None:
        self._height = TOP + panels * (PANEL + GAP)
        self._pixels = np.full((self._height * SCALE, WIDTH * SCALE, 3), PAPER, np.uint8)
        self._next = TOP
        self.text(title, LEFT, 38, INK, 21)
        self.text(subtitle, LEFT, 62, GRAY, 14)

    def picture(self) -> np.ndarray:
        return cv2.resize(self._pixels, (WIDTH, self._height), interpolation=cv2.INTER_AREA)

    def panel(
        self,
        lines: Sequence[Line],
        captions: tuple[str, str, str],
        *,
        x: Range,
        y: Range | None = None,
        sign: str = "",
        whole: bool = False,
    ) -> "Panel":
        """captions: below the left end, the middle and the right end. y: from the lines if None.

        sign: "+" to show it in the labels. whole: no fractions in the labels of x.
        """
        panel = Panel(self, self._next + 24, x, y or value_range([line.y for line in lines]))
        self._next += PANEL + GAP
        filled = [line for line in lines if line.fill]
        for line in filled:
            panel.fill(line)
        panel.grid(sign, whole)
        for line in lines:
            if not line.fill:
                panel.line(line)
        at = LEFT
        for line in lines:
            if line.label:
                at += self.text(line.label, at, panel.top - 10, line.color) + 26
        for caption, place, align in zip(captions, (LEFT, (LEFT + RIGHT) / 2, RIGHT), (0, 0.5, 1), strict=True):
            self.text(caption, place, panel.bottom + 40, align=align)
        return panel

    def text(self, text: str, x: float, y: float, color: Color = GRAY, size: float = 13, align: float = 0) -> float:
        """Baseline at y; align 0 starts at x, 0.5 is centered, 1 ends there. Returns the width."""
        scale = size * SCALE / 22
        bold = max(1, round(scale * (2.1 if size > 15 else 1.6)))
        width = cv2.getTextSize(text, _FONT, scale, bold)[0][0]
        place = (round(x * SCALE - align * width), round(y * SCALE))
        cv2.putText(self._pixels, text, place, _FONT, scale, color, bold, cv2.LINE_AA)
        return width / SCALE

    def _polyline(self, points: np.ndarray, color: Color, width: float = 1) -> None:
        thickness = max(1, round(width * SCALE))
        cv2.polylines(self._pixels, [_to_pixels(points)], False, color, thickness, cv2.LINE_AA)


class Panel:
    """The axes of one panel, to draw in values instead of pixels."""

    def __init__(self, chart: Chart, top: float, x: Range, y: Range) -> None:
        self.chart, self.top, self.bottom, self.x, self.y = chart, top, top + PANEL, x, y

    def at(self, x: np.ndarray | float, y: np.ndarray | float) -> np.ndarray:
        """(…, 2) in pixels; y is clipped to the panel."""
        across = (np.asarray(x) - self.x[0]) / (self.x[1] - self.x[0])
        up = np.clip((np.asarray(y) - self.y[0]) / (self.y[1] - self.y[0]), 0, 1)
        pixels = LEFT + across * (RIGHT - LEFT), self.bottom - up * PANEL
        return np.stack(np.broadcast_arrays(*pixels), -1)

    def line(self, line: Line) -> None:
        for run in runs(line.y):
            points = self.at(line.x[run], line.y[run])
            self.chart._polyline(points, line.color, line.width)
            for point in points if line.dots else ():
                self.dot(point, 2.6, line.color)

    def fill(self, line: Line) -> None:
        for run in runs(line.y):
            points = self.at(line.x[run], line.y[run])
            ends = [(points[-1, 0], self.bottom), (points[0, 0], self.bottom)]
            cv2.fillPoly(self.chart._pixels, [_to_pixels(np.concatenate((points, ends)))], line.color, cv2.LINE_AA)

    def dot(self, pixel: np.ndarray, radius: float, color: Color) -> None:
        center = (round(pixel[0] * SCALE), round(pixel[1] * SCALE))
        cv2.circle(self.chart._pixels, center, round(radius * SCALE), color, -1, cv2.LINE_AA)

    def vertical(self, x: float, color: Color = GRAY, width: float = 1) -> None:
        at = float(self.at(x, 0)[0])
        self.chart._polyline(np.array([(at, self.top), (at, self.bottom)]), color, width)

    def dashed(self, y: float, color: Color = GRAY) -> None:
        at = float(self.at(0, y)[1])
        for x in range(LEFT, RIGHT, 8):
            self.chart._polyline(np.array([(x, at), (min(x + 4, RIGHT), at)]), color)

    def grid(self, sign: str, whole: bool) -> None:
        """Grid lines with their labels, and the axis of x."""
        for value in ticks(*self.y, 4):
            y = float(self.at(0, value)[1])
            self.chart._polyline(np.array([(LEFT, y), (RIGHT, y)]), GRID)
            self.chart.text(f"{value:g}", LEFT - 9, y + 5, align=1)
        for value in ticks(*self.x, 9, whole=whole):
            self.vertical(value, GRID)
            self.chart.text(
                f"{value:{sign}g}" if value else "0", float(self.at(value, 0)[0]), self.bottom + 19, align=0.5
            )
        self.chart._polyline(np.array([(LEFT, self.bottom), (RIGHT, self.bottom)]), GRAY)


def _to_pixels(points: np.ndarray) -> np.ndarray:
    return np.round(np.asarray(points) * SCALE).astype(np.int32)


def for_dark_pages(picture: np.ndarray) -> np.ndarray:
    """A chart, (H, W, 3) uint8, with dark and light exchanged and its hues kept."""
    hue = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2HLS)
    hue[..., 1] = LOWEST + (1 - LOWEST) * (1 - hue[..., 1]) ** LIFT
    return np.round(255 * cv2.cvtColor(hue, cv2.COLOR_HLS2RGB)).clip(0, 255).astype(np.uint8)


def ticks(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """Round numbers within the range, about `count` of them at most."""
    raw = (high - low) / count
    power = 10.0 ** np.floor(np.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    step = max(1.0, step) if whole else step
    first = int(np.ceil(low / step - 1e-9))
    return [round(k * step, 9) for k in range(first, int(np.floor(high / step + 1e-9)) + 1)]


def value_range(curves: Sequence[np.ndarray]) -> Range:
    """Smallest and largest value, with some space around them."""
    known = np.concatenate([c[np.isfinite(c)] for c in curves])
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    space = 0.08 * (high - low) or 0.1 * (abs(high) or 1.0)
    return low - space, high + space


def thinned(values: np.ndarray, count: int) -> np.ndarray:
    """At most `count` values, each the mean of equally many, NaN where all of them are."""
    step = -(-len(values) // count)
    if step == 1:
        return values
    table = np.pad(values, (0, -len(values) % step), constant_values=np.nan).reshape(-1, step)
    known = np.isfinite(table)
    counts = known.sum(1)
    return np.where(counts > 0, np.where(known, table, 0).sum(1) / np.maximum(counts, 1), np.nan)


def runs(values: np.ndarray) -> list[np.ndarray]:
    """Indices of each run without NaN."""
    known = np.flatnonzero(np.isfinite(values))
    return [run for run in np.split(known, np.flatnonzero(np.diff(known) > 1) + 1) if len(run)]
