"""The report of a run: a table for the screen, and report.png."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..dataset import Record
from ..files import atomic_path
from .runner import REPORT, Report
from .settings import STEPS
from .workspace import CHUNG_CONFIDENCE

KEPT, DROPPED, LIMIT, FAINT = "#2f7d5b", "#d9a08c", "#2d3036", "#787c84"
BINS, COLUMNS = 30, 3
REASONS = {
    "unreadable": "the file cannot be decoded, or holds no video",
    "no_sound": "there is no audio track that can be decoded",
    "bad_sound": "the audio is too short, or has samples that are not numbers",
    "short": "the shot, or what is left of it, is shorter than --min-seconds",
    "silent": "the audio is silent (peak below -60 dB)",
    "frozen": "the picture does not change for a second or longer",
    "no_face": "no face in any frame",
    "several_faces": "more than one face",
    "face_lost": "the face is not in every frame",
    "cut": "a cut or a jump inside the clip that the shot detector missed",
    "small_face": "the face is smaller than --min-face",
    "unmeasured": "the SyncNet cannot measure it (silence, too few windows)",
    "low_confidence": "lips and audio match worse than --min-confidence",
    "far_offset": "audio and video are further apart than --max-offset",
    "low_quality": "the image quality is below --min-quality",
    "error": "a step failed for another reason; it is tried again by the next run",
}
"""Why a clip is dropped: the reasons in the manifest and what they mean."""


def rows(report: Report) -> list[tuple[str, str, str, str]]:
    """(what, clips, minutes, why) for a table: what was kept, then what was dropped, the most first."""
    kept = sum(r["stop"] - r["start"] for r in report.kept)
    found = sorted(report.by_reason().items(), key=lambda pair: -pair[1][0])
    dropped = [(reason, str(n), f"{seconds / 60:.2f}", REASONS[reason]) for reason, (n, seconds) in found]
    return [("kept", str(len(report.kept)), f"{kept / 60:.2f}", ""), *dropped]


def timings_line(report: Report, elapsed: float, workers: int) -> str:
    """Seconds of each step; empty if nothing was left to do."""
    if not sum(report.timings.values()):
        return ""
    steps = ", ".join(f"{name} {report.timings[name]:.1f}" for name in STEPS if report.timings.get(name, 0) >= 0.05)
    return f"seconds: {steps}; {elapsed:.1f} in all with {workers} worker{'s' * (workers != 1)}"


def draw_report(report: Report) -> Path:
    """report.png: minutes by reason, and histograms of what was measured."""
    from matplotlib.figure import Figure

    measured = [m for m in _measures(report) if any(_value(r, m[0]) is not None for r in report.records)]
    lines = -(-(1 + len(measured)) // COLUMNS)
    figure = Figure(figsize=(4 * COLUMNS, 0.6 + 3 * lines), dpi=110, layout="constrained")
    minutes = sum(r["stop"] - r["start"] for r in report.kept) / 60
    title = f"{len(report.kept)} clips kept ({minutes:.1f} min), {len(report.records) - len(report.kept)} dropped"
    skipped = ", ".join(name for name in STEPS if name in report.settings.skip)
    figure.suptitle(f"{title}; skipped: {skipped}" if skipped else title, fontsize=13, x=0.01, ha="left")
    panels = figure.subplots(lines, COLUMNS, squeeze=False).flat
    _draw_reasons(next(panels), report)
    for name, title, limits in measured:
        _draw_histogram(next(panels), report.records, name, title, limits)
    for empty in panels:
        empty.set_axis_off()
    path = report.out / REPORT
    with atomic_path(path) as part:
        figure.savefig(part, format="png", metadata={"Software": None})
    return path


def _measures(report: Report) -> list[tuple[str, str, Sequence[float]]]:
    """(field, title, limits to draw)."""
    settings = report.settings
    confidence = CHUNG_CONFIDENCE if settings.min_confidence is None else settings.min_confidence
    limit = settings.max_offset + 0.5
    return [
        ("length", "Length (s)", [settings.min_seconds]),
        ("face_px", "Face, brows to chin (px)", [settings.min_face]),
        ("offset", "Audio after video (frames, before the correction)", [-limit, limit]),
        ("confidence", "Sync confidence", [confidence]),
        ("quality", "Image quality", [settings.min_quality]),
    ]


def _value(record: Record, name: str) -> float | None:
    if name == "length":
        return None if record["stop"] is None else record["stop"] - record["start"]
    return record[name]


def _draw_histogram(panel: Any, records: Sequence[Record], name: str, title: str, limits: Sequence[float]) -> None:
    import numpy as np

    groups = [
        [v for r in records if r["status"] == status and (v := _value(r, name)) is not None]
        for status in ("kept", "dropped")
    ]
    _style(panel, title)
    every = [v for group in groups for v in group]
    low, high = min([*every, *limits]), max([*every, *limits])
    pad = 0.02 * (high - low) + 1e-6
    edges = np.linspace(low - pad, high + pad, BINS + 1)
    if name == "offset":  # a bin for each frame
        edges = np.arange(np.floor(low), np.ceil(high) + 1) - 0.5
    panel.hist(groups, edges, stacked=True, color=[KEPT, DROPPED], label=["kept", "dropped"])
    for limit in limits:
        panel.axvline(limit, color=LIMIT, linewidth=1, linestyle="--")
    panel.set_ylabel("clips")
    panel.yaxis.get_major_locator().set_params(integer=True)
    panel.legend(frameon=False, fontsize=8)


def _draw_reasons(panel: Any, report: Report) -> None:
    _style(panel, "Minutes, and number of clips")
    kept = sum(r["stop"] - r["start"] for r in report.kept)
    found = [("kept", (len(report.kept), kept)), *sorted(report.by_reason().items(), key=lambda p: -p[1][1])][::-1]
    names = [name.replace("_", " ") for name, _ in found]
    minutes = [seconds / 60 for _, (_, seconds) in found]
    bars = panel.barh(names, minutes, color=[KEPT if name == "kept" else DROPPED for name in names])
    panel.bar_label(bars, [str(n) for _, (n, _) in found], padding=3, fontsize=8, color=FAINT)
    panel.set_xlim(0, max([*minutes, 1e-3]) * 1.15)


def _style(panel: Any, title: str) -> None:
    panel.set_title(title, fontsize=10, loc="left")
    panel.tick_params(labelsize=8, colors=FAINT)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
