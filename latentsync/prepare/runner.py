"""`latentsync prepare` without its door: which files, which steps, where; the manifest and what it says."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ..dataset import FPS, MANIFEST, VIDEO_SUFFIXES
from ..errors import UserError
from ..weights.registry import find
from .settings import PrepareSettings
from .steps import Item, Outcome
from .worker import Plan, Shop, mark, source_id
from .workspace import sweep, write_json, write_text

NETWORKS = {
    "sync": "--syncnet FILE (Chung's syncnet_v2.model, or a StableSyncNet)",
    "quality": "--quality FILE (TorchScript: pictures (N, 3, H, W) in 0 … 1 to scores)",
}
"""What the steps that cannot do without one are given."""
SUMMARY, REPORT = "summary.json", "report.png"

FIELDS = ("path", "fps", "frames", "resolution", "margin", "face_px", "offset", "confidence", "quality")

Execute = Callable[[Plan, str, Sequence[Item]], Iterator[Outcome]]
"""Takes items of one kind through their steps, in any order."""
OnItem = Callable[[str, int, int], None]
"""Called with the kind of items ("source", "piece"), how many are done, of how many."""


@dataclass
class Report:
    """records: of the manifest. seconds: what each step took in this run, all workers together. other: files that are
    no videos by their names. orphans: clips in the folder that no record names."""

    out: Path
    settings: PrepareSettings
    records: list[dict[str, Any]]
    seconds: dict[str, float] = field(default_factory=dict)
    other: int = 0
    orphans: int = 0

    @property
    def kept(self) -> list[dict[str, Any]]:
        return [r for r in self.records if r["status"] == "kept"]

    @property
    def errors(self) -> int:
        return sum(r["reason"] == "error" for r in self.records)

    def by_reason(self) -> dict[str, tuple[int, float]]:
        """Reason → clips, seconds of what was dropped."""
        counts = Counter(r["reason"] for r in self.records if r["reason"])
        return {
            reason: (n, _seconds(r for r in self.records if r["reason"] == reason))
            for reason, n in sorted(counts.items())
        }

    def summary(self) -> dict[str, Any]:
        """What summary.json holds: nothing that differs between two runs over the same files."""
        return {
            "settings": self.settings.as_dict(),
            "skipped": sorted(self.settings.skip),
            "sources": len({r["source"] for r in self.records}),
            "kept": {"clips": len(self.kept), "seconds": round(_seconds(self.kept), 2)},
            "dropped": {reason: {"clips": n, "seconds": round(s, 2)} for reason, (n, s) in self.by_reason().items()},
            "other_files": self.other,
        }


def _seconds(records: Iterable[dict[str, Any]]) -> float:
    return sum((r["stop"] or 0) - r["start"] for r in records)


def prepare(
    source: Path,
    out: Path,
    settings: PrepareSettings,
    execute: Execute,
    *,
    only: Sequence[str] = (),
    threads: int = 0,
    on_item: OnItem | None = None,
) -> Report:
    """Every video of a folder (or one file) through all steps; writes manifest.jsonl and summary.json into out.

    only: patterns of paths below source. Sources are read, never changed. UserError where something is missing that the
    steps need, before any work is done.
    """
    root, files, other = list_sources(source, out, only)
    plan = make_plan(root, out, settings, threads)
    make_folders(out)
    report = Report(out, settings, [], other=other)
    done = _run(execute, plan, "source", [Item(source_id(name), name) for name in files], report, on_item)
    pieces: list[Item] = []
    for outcome in done:
        records, found = of_source(outcome, settings)
        report.records += records
        pieces += found
    for outcome in _run(execute, plan, "piece", pieces, report, on_item):
        report.records.append(of_piece(outcome, settings))
    report.records.sort(key=lambda r: (r["source"], r["start"], r["id"]))
    report.orphans = _orphans(out, report.kept)
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in report.records)
    write_text(out / MANIFEST, "".join(lines))
    write_json(out / SUMMARY, report.summary())
    return report


def list_sources(source: Path, out: Path, only: Sequence[str] = ()) -> tuple[Path, list[str], int]:
    """(folder, paths of videos below it with slashes, number of other files)."""
    if not source.exists():
        raise UserError(f"There is no {source}; give a folder of videos, or one video.")
    root, here = source.resolve(), out.resolve()
    if root == here or here in root.parents:
        raise UserError(f"{source} lies in the output folder {out}; give another folder for the results.")
    if root.is_file():
        return root.parent, [root.name], 0
    names, other = [], 0
    for folder, folders, found in os.walk(root, followlinks=False):
        below = Path(folder)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and below / f != here)
        for name in sorted(found):
            if name.startswith("."):
                continue
            relative = (below / name).relative_to(root).as_posix()
            if only and not any(fnmatch(relative, pattern) for pattern in only):
                continue
            if Path(name).suffix.lower() in VIDEO_SUFFIXES:
                names.append(relative)
            else:
                other += 1
    if not names:
        raise UserError(f"There is no video in {source}{' that --only names' if only else ''}; nothing was done.")
    return root, sorted(names), other


def make_plan(root: Path, out: Path, settings: PrepareSettings, threads: int = 0) -> Plan:
    """Checks that everything the steps need is here, by loading it once."""
    _check_networks({"sync": settings.syncnet, "quality": settings.quality}, settings.skip)
    Shop(Plan(root, out, settings, Path())).load("source")
    face_model = find("face_landmarker.task").resolve()
    marks = [mark(settings.syncnet), mark(settings.quality)]
    plan = Plan(root, out.resolve(), settings, face_model, *marks, threads=threads)
    shop = Shop(plan)
    try:
        shop.load("piece")
    finally:
        shop.close()
    return plan


def _check_networks(given: dict[str, Path | None], skip: Sequence[str]) -> None:
    missing = [name for name, file in given.items() if file is None and name not in skip]
    if missing:
        wanted = " and ".join(NETWORKS[name] for name in missing)
        left_out = " ".join(f"--skip {name}" for name in missing)
        which = f"The step{'s' * (len(missing) > 1)} {' and '.join(missing)} cannot judge without a network"
        raise UserError(f"{which}; give {wanted}, or add {left_out}.")
    for file in filter(None, given.values()):
        if not file.is_file():
            raise UserError(f"There is no file {file}; give the path of a network, or leave its step out by --skip.")


def make_folders(out: Path) -> None:
    for name in ("clips", "work/source", "work/piece", "work/sound", "work/faces"):
        folder = out / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder} cannot be made ({error.strerror}); give another output folder.") from error
        sweep(folder)


def _run(
    execute: Execute, plan: Plan, kind: str, items: Sequence[Item], report: Report, on_item: OnItem | None
) -> list[Outcome]:
    outcomes = []
    for outcome in execute(plan, kind, items):
        if outcome.stop:
            raise UserError(outcome.stop)
        outcomes.append(outcome)
        for name, seconds in outcome.seconds.items():
            report.seconds[name] = report.seconds.get(name, 0.0) + seconds
        if on_item:
            on_item(kind, len(outcomes), len(items))
    return sorted(outcomes, key=lambda outcome: (outcome.item.source, outcome.item.start))


def of_source(outcome: Outcome, settings: PrepareSettings) -> tuple[list[dict[str, Any]], list[Item]]:
    """(records of what ends here, pieces that go on)."""
    item, facts = outcome.item, outcome.facts
    whole = facts.get("seconds")
    if outcome.error:
        return [_record(item, settings, 0.0, whole, drop=("", "error", outcome.error))], []
    if outcome.drop:
        return [_record(item, settings, 0.0, whole, drop=outcome.drop)], []
    records, pieces = [], []
    key = outcome.key("rate")  # how shots were found does not change what is in a piece
    for start, stop, reason, detail in facts["pieces"]:
        piece = Item(f"{item.id}-{start:06d}-{stop:06d}", item.source, start, stop, key)
        if reason is None:
            pieces.append(piece)
        else:
            records.append(_record(piece, settings, *_span(piece), drop=("pieces", reason, detail)))
    return records, pieces


def of_piece(outcome: Outcome, settings: PrepareSettings) -> dict[str, Any]:
    drop = ("", "error", outcome.error) if outcome.error else outcome.drop
    return _record(outcome.item, settings, *_span(outcome.item), drop=drop, facts=outcome.facts)


def _span(item: Item) -> tuple[float, float]:
    return item.start / int(FPS), item.stop / int(FPS)


def _record(
    item: Item,
    settings: PrepareSettings,
    start: float,
    stop: float | None,
    *,
    drop: tuple[str, str, str] | None,
    facts: dict[str, Any] | None = None,
) -> dict[str, Any]:
    step, reason, detail = drop or (None, None, None)
    known = {name: (facts or {}).get(name) for name in FIELDS}
    if drop:
        known["path"] = None
    return {
        "id": item.id,
        "source": item.source,
        "start": start,
        "stop": stop,
        "status": "dropped" if drop else "kept",
        "step": step or None,
        "reason": reason,
        "detail": detail,
        **known,
        "skipped": sorted(settings.skip),
    }


def _orphans(out: Path, kept: Sequence[dict[str, Any]]) -> int:
    named = {record["id"] for record in kept}
    return sum(path.stem not in named for path in (out / "clips").glob("[!.]*.mp4"))
