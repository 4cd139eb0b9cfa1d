"""Files and folders: safe names, files that are complete or absent, and a ComfyUI around us with its models."""

import glob
import json
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import UserError

DEEPEST = 100
"""Levels of lists and objects in JSON that is read."""
_TOO_DEEP = f"it is nested more than {DEEPEST} levels deep"
_HALF = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")
_DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{number}" for port in ("COM", "LPT") for number in range(10))}


def partial_path(final: Path) -> Path:
    """A temporary name beside `final`, for one writer alone."""
    return final.with_name(f"{_part_prefix(final)}{os.getpid()}-{uuid.uuid4().hex[:8]}.part")


def _part_prefix(final: Path) -> str:
    """Of long names only the beginning: file systems take 255 bytes. What is no text in a name is left out."""
    return f".{final.name.encode(errors='ignore')[:180].decode(errors='ignore')}."


@contextmanager
def atomic_path(final: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `final`, for its writer alone; it replaces `final` on success and is removed on failure.

    The temporary name ends in .part: name the format to writers that take it from the suffix.
    """
    final = Path(final)
    part = partial_path(final)
    try:
        yield part
        part.replace(final)
    finally:
        part.unlink(missing_ok=True)


def remove_partial_files(final: Path, pid: int | None) -> None:
    """Remove what atomic_path left behind in a process that was killed."""
    for part in final.parent.glob(f"{glob.escape(_part_prefix(final))}{pid}-*.part"):
        with suppress(OSError):
            part.unlink()


def parse_json(text: str, *, strict: bool = False, **options: Any) -> Any:
    """JSON of unknown origin: ValueError also where it is nested too deeply for what works on it afterwards.

    strict: refuses text that cannot be written as UTF-8 too (half of a surrogate pair, "\\ud800"); names of files may
    hold it.
    """
    try:
        found = json.loads(text, **options)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    level = [found]
    for _ in range(DEEPEST + 1):
        level = [part for one in level if isinstance(one, (dict, list)) for part in _parts(one)]
    if level:
        raise ValueError(_TOO_DEEP)
    if strict and _HALF.search(text):
        try:
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            code = f"\\u{ord(error.object[error.start]):04x}"
            raise ValueError(f"it has half of a character, {code}, in a text") from error
    return found


def _parts(one: Any) -> Any:
    return one.values() if isinstance(one, dict) else one


def safe_name(name: str) -> str:
    """A file name that stays in its folder on any system."""
    last = re.split(r"[/\\]", name)[-1]
    plain = re.sub(r'[\x00-\x1f\x7f<>:"|?*]', "_", last).strip(" .")
    stem, suffix = Path(plain).stem, Path(plain).suffix
    stem += "_" * (stem.upper() in _DEVICES)
    return (stem.encode(errors="ignore")[:180].decode(errors="ignore") + suffix[:20]) or "output"


def make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made a folder ({error.strerror}); give another one.") from error
    return folder


def part_in(folder: Path) -> Path:
    """A name for a file that is not complete yet; makes the folder."""
    return make_folder(folder) / f".{uuid.uuid4().hex}.part"


def claim(part: Path, wanted: Path, *, overwrite: bool) -> Path:
    """Give a complete file its name; name-2, name-3, … where that is taken and may not be replaced."""
    if overwrite:
        part.replace(wanted)
        return wanted
    number, target = 1, wanted
    while not _take(part, target):
        number += 1
        target = wanted.with_name(f"{wanted.stem}-{number}{wanted.suffix}")
    return target


def _take(part: Path, target: Path) -> bool:
    """A link fails where a name is taken, whoever takes it at the same moment; renaming would replace."""
    try:
        os.link(part, target)
    except FileExistsError:
        return False
    except OSError:
        if target.exists():
            return False
        part.rename(target)
    return True


PACK = Path(__file__).absolute().parents[1]
"""Not resolved: a pack may be linked into custom_nodes."""
OUR_MODELS = "latentsync"
_WHERE_MODELS_LIE = (OUR_MODELS, "vae", "vae_approx", "audio_encoders")

in_terminal = False
"""The command line runs: what it advises is typed."""


def comfyui_folder(pack: Path = PACK) -> Path | None:
    """ComfyUI's base folder, which has custom_nodes with this pack in it, and models; None outside ComfyUI."""
    if pack.parent.name.casefold() != "custom_nodes":
        return None
    # ComfyUI may have its models elsewhere than its packs; its manager says where
    named = [os.environ.get(name, "") for name in ("COMFYUI_FOLDERS_BASE_PATH", "COMFYUI_PATH")]
    bases = [pack.parents[1], *(Path(folder).expanduser() for folder in named if folder.strip())]
    return next((base for base in bases if (base / "models").is_dir()), bases[0])


def comfyui_models() -> list[Path]:
    """The folders of a ComfyUI around us in which our weights may lie, our own first; empty outside."""
    base = comfyui_folder()
    return [] if base is None else [base / "models" / name for name in _WHERE_MODELS_LIE]


def command() -> str:
    """How the command line is called here."""
    return "latentsync" if comfyui_folder() is None else "python -m latentsync"


def getting(*names: str) -> str:
    """What to do to get known files."""
    if in_terminal or comfyui_folder() is None:
        return f"type `{command()} download {' '.join(names)}`"
    return f"run the node LatentSync: Download Model with the name {', then with '.join(names)}"
