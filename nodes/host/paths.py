"""Paths in messages, as a ComfyUI user knows them: "input/clip.mp4" rather than where that lies on this machine.

Error reports are pasted into public threads; a home folder's name is nobody's business there.
"""

import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import folder_paths

_CASE = re.IGNORECASE if os.name == "nt" else 0


def short_text(text: str) -> str:
    """The text with each path of this machine cut down to what its reader knows."""
    for pattern, name in _patterns(tuple(_places())):
        text = pattern.sub(name, text)
    return text


@contextmanager
def short_paths() -> Iterator[None]:
    """Around work for a user: whatever it raises says only short paths."""
    try:
        yield
    except Exception as error:
        error.args = tuple(short_text(arg) if isinstance(arg, str) else arg for arg in error.args)
        if isinstance(error, OSError):
            for name in ("filename", "filename2"):
                if isinstance(getattr(error, name), str):
                    setattr(error, name, short_text(getattr(error, name)))
        raise


def with_short_paths(node: Any) -> Any:
    """A node whose execute is inside short_paths(); the same class, so that ComfyUI finds what it looks for."""
    plain: Callable[..., Any] = node.execute.__func__
    if not hasattr(plain, "__wrapped__"):

        @functools.wraps(plain)
        def execute(cls: Any, *args: Any, **inputs: Any) -> Any:
            with short_paths():
                return plain(cls, *args, **inputs)

        node.execute = classmethod(execute)
    return node


def _places() -> Iterable[tuple[str, str]]:
    """(folder of this machine, its name), those inside others first."""
    models, base = folder_paths.models_dir, folder_paths.base_path
    known = [
        (folder_paths.get_input_directory(), "input"),
        (folder_paths.get_output_directory(), "output"),
        (folder_paths.get_temp_directory(), "temp"),
        (models, "models"),
        (base, "ComfyUI"),
        (str(Path(str(folder_paths.__file__)).parent), "ComfyUI"),
        (str(Path.home()), "~"),
    ]
    for kind, (folders, _) in folder_paths.folder_names_and_paths.items():
        # what extra_model_paths.yaml adds; ComfyUI's own are named by where they lie
        more = [folder for folder in folders if not _inside(folder, models) and not _inside(folder, base)]
        known += [(folder, kind if kind == "custom_nodes" else f"models/{kind}") for folder in more]
    known += [(str(Path(base) / "custom_nodes"), "custom_nodes")]
    forms = {(str(form), name) for folder, name in known for form in (Path(folder).absolute(), Path(folder).resolve())}
    return sorted((pair for pair in forms if len(Path(pair[0]).parts) > 1), key=lambda pair: (-len(pair[0]), pair))


def _inside(path: str, folder: str) -> bool:
    return Path(path).absolute().is_relative_to(Path(folder).absolute())


@functools.lru_cache(maxsize=4)
def _patterns(places: tuple[tuple[str, str], ...]) -> list[tuple[re.Pattern[str], str]]:
    """For a whole folder name, not the beginning of a longer one nor the end of another path."""
    step = r"[\\/]{1,2}"  # repr() doubles the backslashes of Windows
    made = []
    for folder, name in places:
        drive, *parts = Path(folder).parts
        there = re.escape(drive.rstrip("\\/")) + "".join(step + re.escape(part) for part in parts)
        made.append((re.compile(rf"(?<![\w.~-]){there}(?![\w-]|\.\w)", _CASE), name))
    return made
