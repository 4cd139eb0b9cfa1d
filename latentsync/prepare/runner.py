"""A run of `latentsync prepare`: which files, which steps, and the manifest of what became of them."""

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ..dataset import FPS, MANIFEST, VIDEO_SUFFIXES, Record
from ..errors import UserError
from ..files import make_folder
from ..settings import Progress, ProgressCallback
from ..weights.download import sha256
from ..weights.registry import find
from .io import remove_stale, write_json, write_text
from .settings import PrepareSettings
from .steps import Outcome, StepData
from .workspace import Item, Kind, Plan, Workspace, source_id

log = logging.getLogger(__name__)

NETWORKS = {
    "sync": "--syncnet FILE (Chung's syncnet_v2.model, or a StableSyncNet)",
    "quality": "--quality FILE (TorchScript: images (N, 3, H, W) in 0 … 1 to scores)",
}
"""The option of each step that needs a network."""
SUMMARY, REPORT, ERRORS = "summary.json", "report.png", "errors.log"
CLIP_FIELDS = ("path", "fps", "frames", "resolution", "margin", "face_px", "offset", "confidence", "quality")

Execute = Callable[[Plan, Kind, Sequence[Item]], Iterator[Outcome]]
"""Takes items of one kind through their steps, in any order."""


@dataclass
class Report:
    """records: of the manifest. timings: seconds of each step in this run, all workers together. other_files: files
    without a video's suffix. orphans: clips in the folder that no record names. tracebacks: of failed items, by id.
    """

    out: Path
    settings: PrepareSettings
    records: list[Record]
    timings: dict[str, float] = field(default_factory=dict)
    other_files: int = 0
    orphans: int = 0
    tracebacks: dict[str, str] = field(default_factory=dict)

    @property
    def kept(self) -> list[Record]:
        return [r for r in self.records if r["status"] == "kept"]

    @property
    def errors(self) -> int:
        return sum(r["reason"] == "error" for r in self.records)

    def by_reason(self) -> dict[str, tuple[int, float]]:
        """Number and total seconds of dropped clips."""
        reasons = sorted({r["reason"] for r in self.records if r["reason"]})
        groups = {reason: [r for r in self.records if r["reason"] == reason] for reason in reasons}
        return {reason: (len(found), _seconds(found)) for reason, found in groups.items()}

    def summary(self) -> dict[str, Any]:
        """The content of summary.json: nothing that differs between two runs over the same files."""
        return {
            "settings": self.settings.as_dict(),
            "skipped": list(self.settings.skip),
            "sources": len({r["source"] for r in self.records}),
            "kept": {"clips": len(self.kept), "seconds": round(_seconds(self.kept), 2)},
            "dropped": {reason: {"clips": n, "seconds": round(s, 2)} for reason, (n, s) in self.by_reason().items()},
            "other_files": self.other_files,
        }


def _seconds(records: Iterable[Record]) -> float:
    return sum((r["stop"] or 0) - r["start"] for r in records)


def prepare(
    source: Path,
    out: Path,
    settings: PrepareSettings,
    execute: Execute,
    *,
    only: Sequence[str] = (),
    threads: int = 0,
    device: str = "cpu",
    on_progress: ProgressCallback | None = None,
) -> Report:
    """Take every video of a folder (or one file) through all steps; writes manifest.jsonl and summary.json into out.

    only: patterns of paths below source. device: of the networks for sync and quality. Sources are read, never
    changed. UserError, before any work is done, if something that the steps need is missing.
    """
    root, files, other_files = list_sources(source, out, only)
    plan = make_plan(root, out, settings, threads, device)
    for name in ("", "clips", "work/source", "work/clip", "work/audio", "work/faces"):
        remove_stale(make_folder(out / name))
    report = Report(out, settings, [], other_files=other_files)
    clips: list[Item] = []
    for outcome in _run(execute, plan, "source", [Item(source_id(name), name) for name in files], report, on_progress):
        records, found = source_records(outcome, settings)
        report.records += records
        clips += found
    for outcome in _run(execute, plan, "clip", clips, report, on_progress):
        report.records.append(_record(outcome.item, settings, _dropped(outcome), outcome.data))
    report.records.sort(key=lambda r: (r["source"], r["start"], r["id"]))
    kept = {record["id"] for record in report.kept}
    report.orphans = sum(path.stem not in kept for path in (out / "clips").glob("[!.]*.mp4"))
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in report.records)
    write_text(out / MANIFEST, "".join(lines))
    write_json(out / SUMMARY, report.summary())
    if report.tracebacks:
        write_text(out / ERRORS, "\n".join(f"{name}\n{text}" for name, text in sorted(report.tracebacks.items())))
    else:
        (out / ERRORS).unlink(missing_ok=True)
    return report


def list_sources(source: Path, out: Path, only: Sequence[str] = ()) -> tuple[Path, list[str], int]:
    """(folder, paths of videos below it with slashes, number of other files)."""
    if not source.exists():
        raise UserError(f"There is no {source}; give a folder of videos, or one video.")
    root, here = source.resolve(), out.resolve()
    if root == here or here in root.parents:
        raise UserError(f"{source} is in the output folder {out}; give another folder for the results.")
    if root.is_file():
        return root.parent, [root.name], 0
    paths: list[str] = []
    for folder, folders, found in os.walk(root):
        below = Path(folder)
        folders[:] = [f for f in folders if not f.startswith(".") and below / f != here]
        paths += [(below / name).relative_to(root).as_posix() for name in found if not name.startswith(".")]
    paths = [path for path in paths if not only or any(fnmatch(path, pattern) for pattern in only)]
    names = sorted(path for path in paths if Path(path).suffix.lower() in VIDEO_SUFFIXES)
    if not names:
        raise UserError(f"There is no video in {source}{' that --only names' if only else ''}; nothing was done.")
    return root, names, len(paths) - len(names)


def make_plan(root: Path, out: Path, settings: PrepareSettings, threads: int, device: str) -> Plan:
    """Loads all models once, to check that everything the steps need is here."""
    syncnet, quality = settings.syncnet, settings.quality
    _check_networks({"sync": syncnet, "quality": quality}, settings.skip)
    settings = replace(settings, syncnet=syncnet and syncnet.resolve(), quality=quality and quality.resolve())
    Workspace(Plan(root, out, settings, Path())).load("source")
    face_model = find("face_landmarker.task").resolve()
    hashes = ("" if path is None else sha256(path)[:16] for path in (settings.syncnet, settings.quality))
    plan = Plan(root, out.resolve(), settings, face_model, *hashes, threads=threads, device=device)
    with closing(Workspace(plan)) as workspace:
        workspace.load("clip")
    return plan


def _check_networks(files: dict[str, Path | None], skip: Sequence[str]) -> None:
    missing = [name for name, file in files.items() if file is None and name not in skip]
    if missing:
        options = " and ".join(NETWORKS[name] for name in missing)
        skipping = " ".join(f"--skip {name}" for name in missing)
        steps = f"The step{'s' * (len(missing) > 1)} {' and '.join(missing)}"
        raise UserError(f"{steps} cannot run without a network; give {options}, or add {skipping}.")
    for file in filter(None, files.values()):
        if not file.is_file():
            raise UserError(f"There is no file {file}; give the path of a network, or add --skip for its step.")


def _run(
    execute: Execute,
    plan: Plan,
    kind: Kind,
    items: Sequence[Item],
    report: Report,
    on_progress: ProgressCallback | None,
) -> list[Outcome]:
    outcomes = []
    for outcome in execute(plan, kind, items):
        if outcome.fatal:
            raise UserError(outcome.fatal)
        outcomes.append(outcome)
        for name, seconds in outcome.timings.items():
            report.timings[name] = report.timings.get(name, 0.0) + seconds
        if outcome.error:
            report.tracebacks[outcome.item.id] = outcome.traceback or f"{outcome.error}\n"
            log.debug("%s: %s", outcome.item.source, outcome.traceback or outcome.error)
        if on_progress:
            on_progress(Progress(kind, len(outcomes), len(items)))
    return sorted(outcomes, key=lambda outcome: (outcome.item.source, outcome.item.start))


def source_records(outcome: Outcome, settings: PrepareSettings) -> tuple[list[Record], list[Item]]:
    """Records of what was dropped, and the clips that go on."""
    item, data = outcome.item, outcome.data
    if dropped := _dropped(outcome):
        return [_record(item, settings, dropped) | {"stop": data.get("seconds")}], []
    records, clips = [], []
    key = next(
        s["key"] for s in outcome.steps if s["step"] == "rate"
    )  # how shots were found does not change what is in a clip
    for start, stop, reason, detail in data["clips"]:
        clip = Item(f"{item.id}-{start:06d}-{stop:06d}", item.source, start, stop, key)
        if reason is None:
            clips.append(clip)
        else:
            records.append(_record(clip, settings, ("clips", reason, detail)))
    return records, clips


def _dropped(outcome: Outcome) -> tuple[str | None, str, str] | None:
    """(step, reason, detail)."""
    return (None, "error", outcome.error) if outcome.error else outcome.rejected


def _record(
    item: Item, settings: PrepareSettings, dropped: tuple[str | None, str, str] | None, data: StepData | None = None
) -> Record:
    step, reason, detail = dropped or (None, None, None)
    fields = {name: (data or {}).get(name) for name in CLIP_FIELDS} | ({"path": None} if dropped else {})
    return {
        "id": item.id,
        "source": item.source,
        "start": item.start / int(FPS),
        "stop": item.stop / int(FPS),
        "status": "dropped" if dropped else "kept",
        "step": step,
        "reason": reason,
        "detail": detail,
        **fields,
        "skipped": list(settings.skip),
    }
