"""Lists of jobs: read from CSV or JSON lines and checked, all of them, before anything runs."""

import csv
import dataclasses
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..media.writer import FORMATS
from ..settings import Settings

FILES = ("video", "audio", "out")
SETTINGS = {field.name: type(field.default) for field in fields(Settings)}
COLUMNS = (*FILES, *SETTINGS)
SHOWN = 5
"""Faults of a list that are told at once."""
KINDS = {int: "a whole number", float: "a number", str: "text"}


@dataclass(frozen=True)
class Job:
    """One lip sync. line: where it stands in its list. video may be a picture; audio None is the video's own sound."""

    line: int
    video: Path
    audio: Path | None
    out: Path
    settings: Settings

    @property
    def inputs(self) -> tuple[Path, ...]:
        return (self.video,) if self.audio is None else (self.video, self.audio)

    def key(self, models: Mapping[str, Any]) -> str:
        """Says whether two runs are the same job: inputs (path, size, time of change), settings, and the models."""
        seen = [(str(path), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in self.inputs]
        facts = [seen, str(self.out), dataclasses.asdict(self.settings), sorted(models.items())]
        return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:16]


def read_jobs(path: Path, out: Path | None = None, usual: Settings | None = None) -> list[Job]:
    """The jobs of a .csv (with a header) or .jsonl file, checked.

    Relative inputs are seen from the list's folder, relative outputs from `out` (without it, from there too). A job
    without an output is named after its video, .mp4. usual: what a job does not say. UserError tells up to five
    faults, with their lines.
    """
    rows = list(_rows(path))
    if not rows:
        raise UserError(f"{path} holds no job; a line needs at least a video and a speech (video, audio, out).")
    _known_columns(path, {column for _, row in rows for column in row})
    folder = path.resolve().parent
    jobs, faults = [], []
    for line, row in rows:
        try:
            jobs.append(_job(line, row, folder, folder if out is None else out.resolve(), usual or Settings()))
        except UserError as error:
            faults.append((line, str(error)))
    faults += _faults(jobs, out)
    if faults:
        faults.sort(key=lambda fault: fault[0])
        told = " ".join(f"Line {line}: {said}" for line, said in faults[:SHOWN])
        rest = f" And {len(faults) - SHOWN} more." if len(faults) > SHOWN else ""
        raise UserError(f"{path} cannot run as it is. {told}{rest}")
    return jobs


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, column -> value) of every job."""
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise UserError(f"{path} is no list of jobs; give a .csv with a header line or a .jsonl file.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserError(f"{path} cannot be read ({said}); give a list of jobs.") from error
    return _csv_rows(path, text) if path.suffix.lower() == ".csv" else _json_rows(path, text)


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    for row in reader:
        if None in row:
            raise UserError(f"{path} has more cells in line {reader.line_num} than its header names; quote commas.")
        cells = {(name or "").strip(): (value or "").strip() for name, value in row.items()}
        if any(cells.values()):
            yield reader.line_num, cells


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path} is no JSON in line {number} ({error.msg}); one job is one object.") from error
        if not isinstance(row, dict):
            raise UserError(f"{path} holds a {type(row).__name__} in line {number}; one job is one object: {{…}}.")
        yield number, row


def _known_columns(path: Path, named: set[str]) -> None:
    unknown = sorted(named - set(COLUMNS))
    if unknown:
        raise UserError(f"{path} has a column {unknown[0]!r}, which is not known; known are {', '.join(COLUMNS)}.")


def _job(line: int, row: Mapping[str, Any], folder: Path, out: Path, usual: Settings) -> Job:
    given = {name: value for name, value in row.items() if value not in (None, "")}
    for name in FILES:
        if not isinstance(given.get(name, ""), str):
            raise UserError(f"{name} is {given[name]!r}; it must be a path.")
    if "video" not in given:
        raise UserError("there is no video; name a video or a picture.")
    video = folder / given["video"]
    audio = folder / given["audio"] if "audio" in given else None
    settings = {name: _value(name, given[name]) for name in SETTINGS if name in given}
    return Job(
        line,
        video,
        audio,
        out / given.get("out", f"{video.stem}.mp4"),
        dataclasses.replace(usual, **settings).resolved(usual),
    )


def _value(name: str, value: Any) -> Any:
    """A cell as its setting's type."""
    kind = SETTINGS[name]
    fits = isinstance(value, str) or (not isinstance(value, bool) and isinstance(value, int | float))
    if kind is int and isinstance(value, float):
        fits = value.is_integer()
    try:
        if fits:
            return kind(value)
    except ValueError:
        pass
    raise UserError(f"{name} is {value!r}; it must be {KINDS[kind]}.")


def _faults(jobs: Iterable[Job], out: Path | None) -> Iterator[tuple[int, str]]:
    """(line, sentence) for each thing that the file system says against the jobs."""
    jobs = list(jobs)
    writers: dict[Path, int] = {}
    inputs = {path.resolve(): job.line for job in reversed(jobs) for path in job.inputs}
    for job in jobs:
        yield from ((job.line, f"there is no file {path}.") for path in job.inputs if not path.is_file())
        place = job.out.resolve()
        if place in inputs:
            yield job.line, f"{job.out} would be written over, but line {inputs[place]} reads it; name another out."
        if place in writers:
            yield job.line, f"{job.out} is the output of line {writers[place]} too; name another out."
        writers.setdefault(place, job.line)
        if said := _unwritable(job.out, out):
            yield job.line, said


def _unwritable(path: Path, out: Path | None) -> str | None:
    if path.suffix.lower() not in FORMATS:
        return f"{path.name} ends in {path.suffix!r}; a video can be written as {', '.join(FORMATS)}."
    if path.is_dir():
        return f"{path} is a folder; name a file."
    made = out is not None and path.parent == out.resolve()  # the folder of --out is made when it is not there
    if not made and not path.parent.is_dir():
        return f"there is no folder {path.parent}; make it first."
    return None
