"""The kept clips of a prepared folder as tar files in WebDataset's form, for storage that dislikes many small files."""

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..dataset import MANIFEST, Record
from ..errors import UserError
from ..files import atomic_path, make_folder
from .io import write_text

FOLDER = "shards"
_BLOCK = tarfile.BLOCKSIZE


def write_shards(folder: Path, records: Sequence[Record], megabytes: int) -> list[Path]:
    """Pack kept clips, in the records' order, into folder/shards; returns the tar files. Their bytes depend on the
    clips and on the size alone; a manifest beside them says where each clip is. Older tar files there are removed.

    Every clip is a sample: <id>.mp4, <id>.npz (face measurements, if there are any) and <id>.json (its record).
    """
    if megabytes < 1:
        raise UserError(f"--shards is {megabytes}; give the size of a tar file in MB, 1 or more, such as 500.")
    target, made, lines = make_folder(folder / FOLDER), [], []
    for number, group in enumerate(_groups(folder, records, megabytes * 10**6)):
        path = target / f"clips-{number:06}.tar"
        with atomic_path(path) as part, tarfile.open(part, "w", format=tarfile.PAX_FORMAT) as tar:
            for record in group:
                members = _add(tar, folder, record)
                packed = record | {"path": f"{path.name}/{record['id']}.mp4", "members": members}
                lines.append(json.dumps(packed, ensure_ascii=False) + "\n")
        made.append(path)
    write_text(target / MANIFEST, "".join(lines))
    for old in set(target.glob("clips-*.tar")) - set(made):
        old.unlink()
    return made


def _files(folder: Path, record: Record) -> list[Path]:
    clip = folder / record["path"]
    return [path for path in (clip, clip.with_suffix(".npz")) if path.is_file()]


def _groups(folder: Path, records: Sequence[Record], size: int) -> Iterator[list[Record]]:
    """Of about that many bytes; a clip is never divided."""
    group: list[Record] = []
    filled = 0
    for record in records:
        added = sum(path.stat().st_size for path in _files(folder, record))
        if group and filled + added > size:
            yield group
            group, filled = [], 0
        group.append(record)
        filled += added
    if group:
        yield group


def _add(tar: tarfile.TarFile, folder: Path, record: Record) -> dict[str, list[int]]:
    """Suffix to [offset, size] of each file of the sample."""
    places = {}
    described = json.dumps(record, ensure_ascii=False).encode()
    for suffix, data in [(p.suffix, p.read_bytes()) for p in _files(folder, record)] + [(".json", described)]:
        member = tarfile.TarInfo(f"{record['id']}{suffix}")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
        end = tar.offset  # after the data, rounded up to whole blocks
        places[suffix] = [end - -(-len(data) // _BLOCK) * _BLOCK, len(data)]
    return places
