"""What a run did, for people: a table for the screen and report.png."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from .reasons import REASONS
from .runner import REPORT, Report
from .settings import STEPS
from .worker import CHUNG_CONFIDENCE

KEPT, DROPPED, LIMIT, FAINT = "#2f7d5b", "#d9a08c", "#2d3036", "#787c84"
BINS, COLUMNS = 30, 3

Record = dict[str, Any]


def rows(report: Report) -> list[tuple[str, str, str, str]]:
    """(what, clips, minutes, why) for a table: what was kept, then what was dropped, the most first."""
    kept = sum(r["stop"] - r["start"] for r in report.kept)
    found = sorted(report.by_reason().items(), key=lambda pair: -pair[1][0])
    out = [("kept", str(len(report.kept)), f"{kept / 60:.2f}", "")]
    out += [(reason, str(n), f"{seconds / 60:.2f}", REASONS[reason]) for reason, (n, seconds) in found]
    return out


def times(report: Report, wall: float, workers: int) -> str:
    """Where the time went; empty where nothing was left to do."""
    busy = sum(report.seconds.values())
    if not busy:
        return ""
    parts = ", ".join(f"{name} {report.seconds[name]:.1f}" for name in STEPS if report.seconds.get(name, 0) >= 0.05)
    return f"seconds: {parts}; {wall:.1f} in all with {workers} worker{'s' * (workers != 1)}"


def draw(report: Report) -> Path:
    """report.png: minutes by reason, and histograms of what was measured. UserError where matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError('The picture needs matplotlib; pip install "latentsync[prepare]" or add --no-chart.') from error
    measured = [m for m in _measures(report) if any(_value(r, m[0]) is not None for r in report.records)]
    lines = -(-(1 + len(measured)) // COLUMNS)
    figure = Figure(figsize=(4 * COLUMNS, 0.6 + 3 * lines), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_headline(report), fontsize=13, x=0.01, ha="left")
    panels = figure.subplots(lines, COLUMNS, squeeze=False).flat
    _reasons(next(panels), report)
    for name, title, limits in measured:
        _histogram(next(panels), report.records, name, title, limits)
    for empty in panels:
        empty.set_axis_off()
    path = report.out / REPORT
    part = path.with_name(f".{path.name}.part.png")
    figure.savefig(part, metadata={"Software": None})
    part.replace(path)
    return path


def _headline(report: Report) -> str:
    minutes = sum(r["stop"] - r["start"] for r in report.kept) / 60
    said = f"{len(report.kept)} clips kept ({minutes:.1f} min), {len(report.records) - len(report.kept)} dropped"
    left_out = ", ".join(name for name in STEPS if name in report.settings.skip)
    return f"{said}; left out: {left_out}" if left_out else said


def _measures(report: Report) -> list[tuple[str, str, Sequence[float]]]:
    """(field, title, limits drawn)."""
    settings = report.settings
    confidence = CHUNG_CONFIDENCE if settings.min_confidence is None else settings.min_confidence
    reach = settings.max_offset + 0.5
    return [
        ("length", "Length (s)", [settings.min_seconds]),
        ("face_px", "Face, brows to chin (px)", [settings.min_face]),
        ("offset", "Sound after picture (frames, before it was put right)", [-reach, reach]),
        ("confidence", "Confidence of sync", [confidence]),
        ("quality", "Quality of the picture", [settings.min_quality]),
    ]


def _value(record: Record, name: str) -> float | None:
    if name == "length":
        return None if record["stop"] is None else record["stop"] - record["start"]
    return record[name]


def _histogram(panel: Any, records: Sequence[Record], name: str, title: str, limits: Sequence[float]) -> None:
    import numpy as np

    groups = [
        [v for r in records if r["status"] == status and (v := _value(r, name)) is not None]
        for status in ("kept", "dropped")
    ]
    _plain(panel, title)
    every = [v for group in groups for v in group]
    low, high = min([*every, *limits]), max([*every, *limits])
    whole = name == "offset"
    room = 0.5 if whole else 0.02 * (high - low) + 1e-6
    edges = np.arange(np.floor(low), np.ceil(high) + 1) if whole else np.linspace(low - room, high + room, BINS + 1)
    edges = edges - 0.5 if whole else edges
    panel.hist(groups, edges, stacked=True, color=[KEPT, DROPPED], label=["kept", "dropped"])
    for limit in limits:
        panel.axvline(limit, color=LIMIT, linewidth=1, linestyle="--")
    panel.set_ylabel("clips")
    panel.yaxis.get_major_locator().set_params(integer=True)
    panel.legend(frameon=False, fontsize=8)


def _reasons(panel: Any, report: Report) -> None:
    _plain(panel, "Minutes, and number of clips")
    kept = sum(r["stop"] - r["start"] for r in report.kept)
    found = [("kept", (len(report.kept), kept)), *sorted(report.by_reason().items(), key=lambda p: -p[1][1])][::-1]
    names = [name.replace("_", " ") for name, _ in found]
    minutes = [seconds / 60 for _, (_, seconds) in found]
    bars = panel.barh(names, minutes, color=[KEPT if name == "kept" else DROPPED for name in names])
    panel.bar_label(bars, [str(n) for _, (n, _) in found], padding=3, fontsize=8, color=FAINT)
    panel.set_xlim(0, max([*minutes, 1e-3]) * 1.15)


def _plain(panel: Any, title: str) -> None:
    panel.set_title(title, fontsize=10, loc="left")
    panel.tick_params(labelsize=8, colors=FAINT)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
