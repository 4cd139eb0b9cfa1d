"""The figures of a bench as bars: seconds of compute for a second of video, stage by stage. PNG or SVG."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import cv2
import numpy as np

from .bench import RANDOM, name_of
from .canvas import GRAY, INK, LEFT, PAPER, RIGHT, SCALE, TOP, WIDTH, Chart, Color, ticks
from .meters import machine_line

BAR, ROW = 26, 58
"""Pixels: height of a bar, and from one to the next."""
COLORS: dict[str, Color] = {
    "read": (150, 160, 176),
    "track": (110, 150, 205),
    "crop": (170, 200, 232),
    "encode": (236, 176, 84),
    "hear": (150, 110, 180),
    "sample": (206, 52, 46),
    "decode": (228, 128, 60),
    "paste": (24, 128, 84),
    "write": (120, 188, 150),
    "other": (206, 210, 216),
}
LINE_AT_MOST = 118
"""Letters of the machine's line that fit on the chart."""
LETTERS = 80
"""The legend is spaced as for so many letters at least, so that few stages do not stand far apart."""


class _Sheet(Chart):
    """A chart without panels, of any height."""

    def __init__(self, height: int) -> None:
        self._height = height
        self._pixels = np.full((height * SCALE, WIDTH * SCALE, 3), PAPER, np.uint8)

    def box(self, x: float, y: float, width: float, height: float, color: Color) -> None:
        first, last = (x * SCALE, y * SCALE), ((x + width) * SCALE, (y + height) * SCALE)
        corners = [(round(across), round(down)) for across, down in (first, last)]
        cv2.rectangle(self._pixels, corners[0], corners[1], color, -1)


@dataclass
class Drawing:
    """Rectangles and words in pixels of a picture WIDTH wide, whatever file they become."""

    height: float
    boxes: list[tuple[float, float, float, float, Color]] = field(default_factory=list)
    words: list[tuple[str, float, float, Color, float, float]] = field(default_factory=list)

    def text(self, text: str, x: float, y: float, color: Color = GRAY, size: float = 13, align: float = 0) -> None:
        self.words.append((text, x, y, color, size, align))

    def png(self) -> bytes:
        sheet = _Sheet(round(self.height))
        for box in self.boxes:
            sheet.box(*box)
        for words in self.words:
            sheet.text(*words)
        return cv2.imencode(".png", sheet.picture()[..., ::-1])[1].tobytes()

    def svg(self) -> bytes:
        anchors = {0: "start", 0.5: "middle", 1: "end"}
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height:g}" font-family="sans-serif">',
            f'<rect width="{WIDTH}" height="{self.height:g}" fill="rgb{PAPER}"/>',
        ]
        for x, y, width, height, color in self.boxes:
            lines.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:g}" fill="rgb{color}"/>')
        for text, x, y, color, size, align in self.words:
            place = f'x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" text-anchor="{anchors[align]}"'
            lines.append(f'<text {place} fill="rgb{color}">{escape(text)}</text>')
        return "\n".join([*lines, "</svg>\n"]).encode()


def draw_bench(facts: dict[str, Any]) -> Drawing:
    """A bar for each run, in the parts of its stages; what is not in the bar of a run is 0 there."""
    runs: Sequence[dict[str, Any]] = facts["runs"]
    top = TOP + 34
    drawing = Drawing(top + len(runs) * ROW + 44)
    width, height = facts["clip"]["size"]
    weights = f", {RANDOM}" if facts["weights"] == RANDOM else ""
    drawing.text(f"{facts['model']}{weights}: {width} x {height}, {facts['clip']['frames']} frames", LEFT, 36, INK, 21)
    line = machine_line(facts["machine"], facts["device"], facts["dtype"])
    drawing.text(line if len(line) <= LINE_AT_MOST else f"{line[: LINE_AT_MOST - 3]}...", LEFT, 60)
    shown = list(dict.fromkeys(stage for run in runs for stage in run["stages"]))
    letters = [len(stage) + 4 for stage in shown]  # and the square before them
    for i, stage in enumerate(shown):
        x = LEFT + (RIGHT - LEFT) * sum(letters[:i]) / max(LETTERS, sum(letters))
        drawing.boxes.append((x, TOP - 8, 12, 12, COLORS.get(stage, GRAY)))
        drawing.text(stage, x + 17, TOP + 3, INK)
    longest = max(_seconds(run, "all") for run in runs) or 1.0
    scale = (RIGHT - LEFT) / (longest * 1.02)
    for value in ticks(0, longest, 6):
        drawing.boxes.append((LEFT + value * scale, top, 1, len(runs) * ROW, (228, 230, 234)))
        drawing.text(f"{value:g}", LEFT + value * scale, top + len(runs) * ROW + 16, align=0.5)
    drawing.text("seconds of compute for a second of video", (LEFT + RIGHT) / 2, drawing.height - 8, align=0.5)
    for i, run in enumerate(runs):
        x, y = float(LEFT), top + i * ROW + 22
        steps = f"{run['steps']:g} step{'' if run['steps'] == 1 else 's'}, guidance {run['guidance']:g}"
        drawing.text(f"{name_of(run)}, {steps}: {run['seconds_per_second']:.2f} s", LEFT, y - 6, INK)
        for stage in shown:
            length = _seconds(run, stage) * scale
            drawing.boxes.append((x, y, length, BAR, COLORS.get(stage, GRAY)))
            x += length
    return drawing


def _seconds(run: dict[str, Any], stage: str) -> float:
    """For a second of video; "all": of all stages together."""
    spent = sum(run["stages"].values()) if stage == "all" else run["stages"].get(stage, 0.0)
    return spent * run["seconds_per_second"] / run["seconds"] if run["seconds"] else 0.0
