"""Reading what `latentsync prepare` writes: the manifest, and clips of aligned crops from a folder or a file list."""

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
    (0, 1) for all. margin: pixels that `prepare` kept around the crop on each side of a frame.
    """

    path: Path
    source: str
    part: tuple[float, float] = (0.0, 1.0)
    margin: int = 0

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
    return isinstance(margin, int) and (is_path or (path is None and record.get("status") != "kept"))


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
    return ClipFile(path, str(record.get("source", path.stem)), margin=int(record.get("margin") or 0))
