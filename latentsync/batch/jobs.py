"""Lists of jobs: read from CSV or JSON lines, and checked before anything runs."""

import csv
import dataclasses
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from operator import itemgetter
from pathlib import Path
from typing import Any

from ..audio.speakers import Speaker
from ..errors import UserError
from ..files import parse_json
from ..media.encoding import ENDINGS
from ..settings import Settings, check_face, is_photo

FILES = ("video", "audio", "out")
SPEAKERS = "speakers"
SETTINGS = {field.name: type(field.default) for field in fields(Settings)}
COLUMNS = (*FILES, SPEAKERS, *SETTINGS)
MAX_FAULTS = 5  # faults of a list that are reported at once
KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
BOOLS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class Job:
    """One lip sync. line: in its list. video: a video or a picture. audio None: the video's own sound, or what the
    speakers say, if there are any."""

    line: int
    video: Path
    audio: Path | None
    out: Path
    settings: Settings
    speakers: tuple[Speaker, ...] = ()

    @property
    def inputs(self) -> tuple[Path, ...]:
        voices = () if self.audio is None else (self.audio,)
        return (self.video, *voices, *(Path(speaker.voice) for speaker in self.speakers))

    def key(self, models: Mapping[str, Any]) -> str:
        """Equal for the same inputs (path, size, modification time), output, settings and models."""
        files = [(str(path), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in self.inputs]
        content = [files, str(self.out), dataclasses.asdict(self.settings), sorted(models.items())]
        content += [(speaker.face, speaker.start) for speaker in self.speakers]
        return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:16]


def read_jobs(path: Path, out: Path | None = None, defaults: Settings | None = None) -> list[Job]:
    """The jobs of a .csv (with a header) or .jsonl file, checked. Inputs are relative to the list's folder, outputs to
    `out` or else the same folder. A job without an output is named after its video, .mp4. defaults: for settings that a
    job leaves out. UserError has up to MAX_FAULTS faults."""
    rows = list(_rows(path))
    if not rows:
        raise UserError(f"{path} has no job; a line needs at least a video and a speech (video, audio, out).")
    if unknown := sorted({column for _, row in rows for column in row} - set(COLUMNS)):
        raise UserError(f"{path} has an unknown column {unknown[0]!r}; known are {', '.join(COLUMNS)}.")
    folder = path.resolve().parent
    jobs, faults = [], []
    for line, row in rows:
        try:
            jobs.append(_job(line, row, folder, folder if out is None else out.resolve(), defaults or Settings()))
        except UserError as error:
            faults.append((line, str(error)))
    if faults := sorted([*faults, *_faults(jobs, out)], key=itemgetter(0)):
        first = " ".join(f"Line {line}: {fault}" for line, fault in faults[:MAX_FAULTS])
        more = f" And {len(faults) - MAX_FAULTS} more." if len(faults) > MAX_FAULTS else ""
        raise UserError(f"{path} cannot be run. {first}{more}")
    return jobs


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, column -> value) of every job."""
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise UserError(f"{path} is not a list of jobs; give a .csv with a header line or a .jsonl file.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserError(f"{path} cannot be read ({reason}); give a list of jobs.") from error
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
            row = parse_json(line, strict=True)
        except ValueError as error:
            why = getattr(error, "msg", error)
            raise UserError(f"{path} is not JSON in line {number} ({why}); one job is one object.") from error
        if not isinstance(row, dict):
            raise UserError(f"{path} has a {type(row).__name__} in line {number}; one job is one object: {{…}}.")
        yield number, row


def _job(line: int, row: Mapping[str, Any], folder: Path, out: Path, defaults: Settings) -> Job:
    given = {name: value for name, value in row.items() if value not in (None, "")}
    for name in FILES:
        if not isinstance(given.get(name, ""), str):
            raise UserError(f"{name} is {given[name]!r}; it must be a path.")
        if "\0" in given.get(name, ""):
            raise UserError(f"{name} is {given[name]!r}; a path cannot hold a zero byte.")
    if "video" not in given:
        raise UserError("there is no video; name a video or a picture.")
    video, audio = folder / given["video"], folder / given["audio"] if "audio" in given else None
    settings = {name: _setting(name, given[name]) for name in SETTINGS if name in given}
    if is_photo(settings.get("face", ""), folder):
        settings["face"] = str((folder / settings["face"]).absolute())  # workers may stand in another folder
    resolved = dataclasses.replace(defaults, **settings).resolved(defaults)
    speakers = _speakers(given.get(SPEAKERS, ""), folder)
    if speakers and audio is not None:
        raise UserError("there are both audio and speakers; give one of them, as each speaker names a voice.")
    job = Job(line, video, audio, out / given.get("out", f"{video.stem}.mp4"), resolved, speakers)
    for path in (*job.inputs, job.out):
        try:
            path.is_file()
        except OSError as error:
            raise UserError(f"{str(path)[:200]} cannot be a file here ({error.strerror}); name another.") from error
    return job


def _speakers(given: Any, folder: Path) -> tuple[Speaker, ...]:
    """From a list of "face=voice@seconds", or a text with ";" between them. Files are relative to the folder."""
    texts = given.split(";") if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(text, str) and "\0" not in text for text in texts):
        raise UserError(f'speakers is {given!r}; give a list such as ["left=anna.wav", "right=ben.wav@3.5"].')
    return tuple(_speaker(text, folder) for text in texts if text.strip())


def _speaker(text: str, folder: Path) -> Speaker:
    speaker = Speaker.parse(text)
    whole = folder / text.partition("=")[2].strip()
    if whole.is_file():  # an @ in its name is part of it
        speaker = Speaker(speaker.face, whole)
    if is_photo(speaker.face, folder):
        speaker = dataclasses.replace(speaker, face=str((folder / speaker.face).absolute()))
    check_face(speaker.face)
    return dataclasses.replace(speaker, voice=folder / speaker.voice)


def _setting(name: str, value: Any) -> Any:
    kind = SETTINGS[name]
    if kind is bool and str(value).lower() in BOOLS:
        return BOOLS[str(value).lower()]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    with suppress(ValueError, OverflowError):
        usable = isinstance(value, str) or (is_number and not (kind is int and value != int(value)))
        if usable and kind is not bool:
            return kind(value)
    raise UserError(f"{name} is {value!r}; it must be {KINDS[kind]}.")


def _faults(jobs: Sequence[Job], out: Path | None) -> Iterator[tuple[int, str]]:
    """(line, sentence) for each path that cannot be used."""
    writers: dict[Path, int] = {}
    inputs = {path.resolve(): job.line for job in reversed(jobs) for path in job.inputs}
    for job in jobs:
        yield from ((job.line, f"there is no file {path}.") for path in job.inputs if not path.is_file())
        place = job.out.resolve()
        if place in inputs:
            yield job.line, f"{job.out} would be overwritten, but line {inputs[place]} reads it; name another out."
        if place in writers:
            yield job.line, f"{job.out} is the output of line {writers[place]} too; name another out."
        writers.setdefault(place, job.line)
        if job.out.suffix.lower() not in ENDINGS:
            yield (
                job.line,
                f"{job.out.name} ends in {job.out.suffix!r}; a video can be written as {', '.join(ENDINGS)}.",
            )
        elif job.out.is_dir():
            yield job.line, f"{job.out} is a folder; name a file."
        # the folder of --out is made when it is not there
        elif not job.out.parent.is_dir() and (out is None or job.out.parent != out.resolve()):
            yield job.line, f"there is no folder {job.out.parent}; make it first."
