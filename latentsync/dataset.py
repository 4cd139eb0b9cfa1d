"""Reading what `latentsync prepare` writes: the manifest, and clips of aligned crops from a folder, a file list or tar
files (shards)."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from .errors import UserError
from .files import parse_json

if TYPE_CHECKING:
    import numpy as np

FPS = Fraction(25)
"""Frame rate of prepared clips: all published LatentSync weights and both SyncNets were trained at it."""
MANIFEST = "manifest.jsonl"
# fmt: off
VIDEO_SUFFIXES = frozenset((
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".mpe", ".ts", ".mts", ".m2ts", ".flv", ".wmv",
    ".asf", ".ogv", ".3gp", ".vob", ".mxf",
))
# fmt: on

Record = dict[str, Any]
"""One line of the manifest, see docs/data.md."""


@dataclass(frozen=True)
class ClipFile:
    """A clip of aligned crops with audio.

    source: the recording it was cut from, as a path with slashes. part: the share of its frames that may be used,
    (0, 1) for all. margin: pixels that `prepare` kept around the crop on each side of a frame. members: for a clip in a
    tar file, whose path is then tar/name, offset and size of its files by their suffix.
    """

    path: Path
    source: str
    part: tuple[float, float] = (0.0, 1.0)
    margin: int = 0
    members: tuple[tuple[str, int, int], ...] = ()

    def file(self, suffix: str = "") -> Path:
        """The file to open, or the one beside it with another suffix, which need not be there. Out of a tar file it is
        copied to the temporary folder, where the latest ones stay."""
        wanted = self.path.with_suffix(suffix) if suffix else self.path
        return _unpacked.file(self, wanted) if self.members else wanted

    def identity(self) -> str:
        """A text that is another one for another file, and for the same file after a change."""
        stat = (self.path.parent if self.members else self.path).stat()
        return f"{self.path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"

    def span(self, frames: int) -> tuple[int, int]:
        """The first usable frame, and the one after the last."""
        return round(self.part[0] * frames), round(self.part[1] * frames)

    def crop(self, frame: "np.ndarray") -> "np.ndarray":
        """(S, S, 3) to (S - 2 · margin, S - 2 · margin, 3): the aligned crop itself."""
        inner = slice(self.margin, -self.margin or None)
        return frame[inner, inner]

    def is_of(self, names: Sequence[str]) -> bool:
        """Whether the recording, or a folder that it lies in, has a name that begins with one of these."""
        return any(part.startswith(tuple(names)) for part in PurePosixPath(self.source).parts)


class _Unpacked:
    """Files out of tar files, in a temporary folder that ends with the process that read the manifest. Its forked
    workers have theirs within it. The oldest files are deleted first."""

    KEPT = 64

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.process, self.count = 0, 0
        self.files: dict[tuple[Path, int, int], Path] = {}

    def open(self) -> Path:
        if self.folder is None:
            self.folder = Path(tempfile.mkdtemp(prefix="latentsync-shards-"))
            atexit.register(shutil.rmtree, self.folder, ignore_errors=True)
        return self.folder

    def file(self, clip: ClipFile, wanted: Path) -> Path:
        place = next(((offset, size) for suffix, offset, size in clip.members if suffix == wanted.suffix), None)
        if place is None:
            return wanted  # there is none
        if self.process != os.getpid():
            self.process, self.files = os.getpid(), {}
        key = (wanted, *place)
        if key in self.files:
            self.files[key] = self.files.pop(key)  # the newest now
            return self.files[key]
        while len(self.files) >= self.KEPT:
            self.files.pop(next(iter(self.files))).unlink(missing_ok=True)
        with wanted.parent.open("rb") as tar:
            tar.seek(place[0])
            data = tar.read(place[1])
        if len(data) < place[1]:
            raise UserError(f"{wanted.parent} is shorter than its {MANIFEST} says; copy it again.")
        self.count += 1
        path = self.open() / str(self.process) / f"{self.count}-{wanted.name}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        self.files[key] = path
        return path


_unpacked = _Unpacked()


def holdout_part(share: float, at: float = 0.5) -> tuple[float, float]:
    """The part of every clip that is held out: this share of it, at 0 at its beginning, at 1 at its end."""
    start = at * (1 - share)
    return start, start + share


def read_manifest(folder: Path) -> list[Record]:
    """The records of a prepared folder, one for each clip that was kept or dropped."""
    path = folder / MANIFEST
    try:
        records = [parse_json(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError as error:
        raise UserError(f"{folder} has no {MANIFEST}; make it by `latentsync prepare IN {folder}`.") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); run `latentsync prepare` again.") from error
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict) or not _is_record(record):
            raise UserError(f"{path} is damaged (record {number} is none of a clip); run `latentsync prepare` again.")
    return records


def _is_record(record: Record) -> bool:
    path, margin = record.get("path"), record.get("margin") or 0
    is_path = isinstance(path, str) and path != "" and "\0" not in path
    members = record.get("members", {})
    places = isinstance(members, dict) and all(_is_place(place) for place in members.values())
    return isinstance(margin, int) and places and (is_path or (path is None and record.get("status") != "kept"))


def _is_place(place: Any) -> bool:
    """Offset and size in a tar file."""
    return isinstance(place, list) and len(place) == 2 and all(isinstance(n, int) and n >= 0 for n in place)


def kept_clips(folder: Path) -> list[ClipFile]:
    """The clips of a prepared folder, in the manifest's order. UserError: it is none."""
    kept = [record for record in read_manifest(folder) if record.get("status") == "kept"]
    return [_clip(folder / record["path"], record) for record in kept]


def find_clips(place: str | Path) -> list[ClipFile]:
    """The kept clips of a prepared folder, a file list or any folder, in a fixed order. UserError: there are none."""
    place = Path(place)
    if (place / MANIFEST).is_file():
        clips = kept_clips(place)
    elif place.is_dir():
        clips = clip_files(find_videos(place))
    elif place.is_file():
        clips = clip_files(read_filelist(place))
    else:
        raise UserError(f"There is no {place}; give a folder made by `latentsync prepare`, or a file list of clips.")
    if not clips:
        raise UserError(f"{place} names no clip that was kept; see the report of `latentsync prepare`.")
    return clips


def find_videos(folder: Path) -> list[Path]:
    """All videos below a folder, sorted; hidden files are not looked at."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES and not p.name.startswith("."))


def read_filelist(path: Path) -> list[Path]:
    """The files of a list: a path a line, seen from its folder; # begins a comment. UserError: one is missing."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    paths = [path.parent / line for line in lines if line and not line.startswith("#")]
    missing = [p for p in paths if not p.is_file()]
    if missing:
        raise UserError(
            f"{path} lists {len(paths)} clips, {len(missing)} of which are not there (the first is {missing[0]});"
            " give absolute paths, or paths seen from the list's folder."
        )
    return paths


def clip_files(paths: Iterable[Path]) -> list[ClipFile]:
    """With what their prepared folder's manifest says; it is read each time: `prepare` may have run again."""
    folders: dict[Path, dict[str, Record]] = {}
    clips = []
    for path in paths:
        folder = path.absolute().parent.parent
        if folder not in folders:
            records = read_manifest(folder) if (folder / MANIFEST).is_file() else []
            folders[folder] = {Path(record["path"]).name: record for record in records if record.get("path")}
        clips.append(_clip(path, folders[folder].get(path.name, {})))
    return clips


def _clip(path: Path, record: Record) -> ClipFile:
    members = tuple((suffix, offset, size) for suffix, (offset, size) in record.get("members", {}).items())
    if members:
        _unpacked.open()
    return ClipFile(path, str(record.get("source", path.stem)), margin=int(record.get("margin") or 0), members=members)
