"""Measurements as table rows and JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..dataset import FPS
from .image_metrics import Frechet
from .landmark_sync import Score
from .measure import METRICS, Result
from .syncnet_accuracy import Accuracy
from .syncnet_sync import SyncScore


@dataclass(frozen=True)
class Summary:
    """values: metric to mean, sample standard deviation and number of clips. in_sync: offset metric to the number of
    clips within one frame. frechet: distance and samples. skipped: clip or metric to reason."""

    clips: int
    values: dict[str, tuple[float, float, int]]
    in_sync: dict[str, int]
    frechet: dict[str, tuple[float, int]]
    skipped: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        values: dict[str, dict[str, float]] = {
            k: {"mean": round(m, 6), "sd": round(s, 6), "clips": n} for k, (m, s, n) in self.values.items()
        }
        for key, count in self.in_sync.items():
            values[key]["within_1_frame"] = count
        frechet = {k: {"value": round(v, 6), "samples": n} for k, (v, n) in self.frechet.items()}
        return {"clips": self.clips, "values": values, **frechet, "skipped": self.skipped}


def summarize(
    results: Sequence[Result], skipped: Mapping[str, str], frechets: Mapping[str, Frechet] | None = None
) -> Summary:
    """frechets: "fid" and "fvd" to their features; one with fewer than two samples is skipped."""
    values, in_sync = {}, {}
    for key in METRICS:
        found = np.array([r.values[key] for r in results if key in r.values and np.isfinite(r.values[key])])
        if len(found):
            values[key] = (float(found.mean()), float(found.std(ddof=1)) if len(found) > 1 else 0.0, len(found))
        if len(found) and key.endswith("_offset"):
            in_sync[key] = int((abs(found) <= 1).sum())
    skipped, distances = dict(skipped), {}
    for key, frechet in (frechets or {}).items():
        if frechet.samples > 1:
            distances[key] = (frechet.distance(), frechet.samples)
        else:
            skipped[key] = f"{frechet.samples} samples; two or more are needed"
    return Summary(len(results), values, in_sync, distances, skipped)


def format_value(key: str, value: float) -> str:
    metric = METRICS[key]
    sign = "+" if key.endswith("_offset") else ""
    return f"{value:{sign}.{metric.digits}f}" + (f" {metric.unit}" if metric.unit else "")


def rows(result: Result) -> list[tuple[str, str, str]]:
    """(title, value, better), in the order of METRICS."""
    return [
        (metric.title, format_value(key, result.values[key]), metric.better)
        for key, metric in METRICS.items()
        if key in result.values
    ]


def skipped_rows(results: Sequence[Result]) -> list[tuple[str, str]]:
    """(title, reason) of what was not measured; the same reason once for all clips."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for result in results:
        for key, reason in result.skipped.items():
            reasons.setdefault((METRICS[key].title, reason), []).append(result.name)
    return [
        (title, reason if len(names) == len(results) else f"{', '.join(names)}: {reason}")
        for (title, reason), names in reasons.items()
    ]


def summary_rows(summary: Summary) -> list[tuple[str, str, str, str]]:
    """(title, mean ± deviation, better, number of clips)."""
    out = []
    for key, metric in METRICS.items():
        if key in summary.values:
            mean, spread, count = summary.values[key]
            plain = f"{mean:.{max(1, metric.digits)}f} ± {spread:.{max(1, metric.digits)}f} {metric.unit}".rstrip()
            over = f", {summary.in_sync[key]} within 1 frame" if key in summary.in_sync else ""
            out.append((metric.title, plain, metric.better, f"{count} clips{over}"))
        if key in summary.frechet:
            value, samples = summary.frechet[key]
            out.append((metric.title, f"{value:.{metric.digits}f}", metric.better, f"{samples} samples a side"))
    return out


def frechet_rows(summary: Summary) -> list[tuple[str, str, str]]:
    """(title, value and number of samples, better)."""
    return [
        (METRICS[key].title, f"{value:.{METRICS[key].digits}f} ({samples} samples a side)", METRICS[key].better)
        for key, (value, samples) in summary.frechet.items()
    ]


def sync_rows(score: SyncScore) -> list[tuple[str, str, str]]:
    name = "Chung and Zisserman's" if score.network == "chung" else "StableSyncNet"
    return [
        ("LSE-C (SyncNet confidence)", f"{score.confidence:.3f}", "higher"),
        ("LSE-D (SyncNet distance)", f"{score.distance:.3f}", "lower"),
        ("distance without a shift", f"{score.distance_at_zero:.3f}", "lower"),
        ("offset by SyncNet", f"{score.offset:+d} frames ({1000 * score.offset / float(FPS):+.0f} ms)", ""),
        ("measured on", f"{score.windows} windows by {name}", ""),
    ]


def landmark_rows(score: Score) -> list[tuple[str, str, str]]:
    note = "" if score.significant else ", not significant"
    return [
        ("offset by landmarks", f"{score.offset:+d} frames ({1000 * score.offset / score.fps:+.0f} ms){note}", ""),
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
