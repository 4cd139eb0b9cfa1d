"""statistics.html: what a prepared data set holds, and limits that its own numbers suggest."""

import html
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from ..dataset import Record
from .io import write_text
from .runner import REPORT, Report

STATISTICS = "statistics.html"
FEW_RECORDINGS = 8
"""With fewer, the trainer holds out time of every clip in place of recordings (training.dataset.MIN_RECORDINGS)."""
FACE_SHARE = 96 / 256
"""Height of a face from brows to chin over the side of the crop, below which crops are enlarged visibly: the default
--min-face at 256 px."""
NEAR = 2
"""Frames. Recordings are in sync within a frame or two of each other; a false match can have any offset."""
MEASURES = (
    ("length", "Length", "s"), ("face_px", "Face, brows to chin", "px"), ("offset", "Audio after video", "frames"),
    ("confidence", "Sync confidence", ""), ("quality", "Image quality", ""),
)  # fmt: skip

Row = Sequence[str]


def totals(report: Report) -> list[Row]:
    kept = report.kept
    seconds = Counter()
    for record in kept:
        seconds[record["source"]] += record["stop"] - record["start"]
    hours, people = sum(seconds.values()) / 3600, {PurePosixPath(name).parts[0] for name in seconds if "/" in name}
    rows = [("Hours", f"{hours:.2f}"), ("Clips", str(len(kept))), ("Recordings", str(len(seconds)))]
    if people:
        rows.append(("Folders of the input (people, if there is one for each)", str(len(people))))
    if seconds:
        name, most = seconds.most_common(1)[0]
        rows.append(("Largest recording", f"{name}, {most / 36 / hours:.0f} % of the time"))
    return [*rows, ("Languages", "not measured")]


def spread(report: Report) -> list[Row]:
    """A row for each measured quantity of the kept clips: name, clips, least, 5 %, median, 95 %, most."""
    rows = []
    for name, title, unit in MEASURES:
        values = _values(report.kept, name)
        if len(values):
            numbers = [f"{n:.4g}" for n in np.percentile(values, (0, 5, 50, 95, 100))]
            rows.append((f"{title} ({unit})" if unit else title, str(len(values)), *numbers))
    return rows


def suggestions(report: Report) -> list[Row]:
    """(option, why it is suggested), from what was kept and what was dropped."""
    found, settings = [], report.settings
    faces, least = _values(report.kept, "face_px"), FACE_SHARE * settings.resolution
    if small := int((faces < least).sum()):
        found.append((
            f"--min-face {least:.0f}",
            f"{small} of {len(faces)} kept clips have smaller faces: crops of {settings.resolution} px are enlarged"
            " and soft. Without these clips there is less to train on, but mouths are sharper. Or choose a smaller"
            " --resolution.",
        ))  # fmt: skip
    if (confidence := _chance(report)) is not None and confidence > (settings.min_confidence or 0):
        lost = int((_values(report.kept, "confidence") < confidence).sum())
        found.append((
            f"--min-confidence {confidence:.1f}",
            f"clips more than {NEAR} frames from the most common offset are false matches, and nine of ten of them"
            " stay below"
            f" it; {lost} kept clips would go.",
        ))  # fmt: skip
    recordings = len({record["source"] for record in report.kept})
    if 0 < recordings < FEW_RECORDINGS:
        found.append((
            "more recordings",
            f"there are {recordings}; from {FEW_RECORDINGS} on the trainer holds out whole recordings, and validation"
            " then says how the network does on people and rooms that it does not know.",
        ))  # fmt: skip
    return found


def write_statistics(report: Report) -> Path:
    """The page, beside report.png, which it shows if it is there."""
    chart = f'<p><img src="{REPORT}" alt="Histograms of what was measured">' if (report.out / REPORT).is_file() else ""
    heads = ("", "clips", "least", "5 %", "median", "95 %", "most")
    body = (
        f"<h1>Data set</h1>{_table(totals(report))}<h2>Measured, kept clips</h2>{_table(spread(report), heads)}"
        f"<h2>Suggested limits</h2>{_table(suggestions(report)) or '<p>None: the limits fit.'}{chart}"
    )
    style = "body{font:15px sans-serif;margin:2em auto;max-width:72em}td,th{padding:.2em 1em .2em 0;text-align:left}"
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>Data set</title>'
    path = report.out / STATISTICS
    write_text(path, f"{head}<style>{style}img{{width:100%}}</style><body>{body}</body></html>\n")
    return path


def _chance(report: Report) -> float | None:
    """The confidence below which nine of ten false matches lie; None where there are too few to say."""
    pairs = [(r["offset"], r["confidence"]) for r in report.records if None not in (r["offset"], r["confidence"])]
    if not pairs:
        return None
    usual = float(np.median([offset for offset, _ in pairs]))
    false = [confidence for offset, confidence in pairs if abs(offset - usual) > NEAR]
    return float(np.percentile(false, 90)) if len(false) >= 10 else None


def _values(records: Sequence[Record], name: str) -> np.ndarray:
    if name == "length":
        return np.array([r["stop"] - r["start"] for r in records])
    return np.array([r[name] for r in records if r[name] is not None], float)


def _table(rows: Sequence[Row], heads: Row = ()) -> str:
    lines = [f"<tr>{''.join(f'<th>{html.escape(h)}' for h in heads)}"] if heads else []
    lines += [f"<tr>{''.join(f'<td>{html.escape(cell)}' for cell in row)}" for row in rows]
    return f"<table>{''.join(lines)}</table>" if rows else ""
