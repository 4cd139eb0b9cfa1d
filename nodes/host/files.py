"""ComfyUI's folders, and its VIDEO, IMAGE and AUDIO as files."""

import itertools
import json
import os
import shutil
import uuid
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
from comfy.cli_args import args
from comfy_api.latest import InputImpl
from PIL import Image
from torch import Tensor

from ...latentsync.errors import UserError
from ...latentsync.settings import Settings
from ...latentsync.weights.download import sha256
from ...latentsync.weights.registry import find, model_folders
from ..images import speech_of
from ..media import picture_size, write_picture, write_sound, write_video

MODEL_FOLDER = "latentsync"
RATE = Fraction(Settings.still_fps)
OLD = 1_000_000_000
"""Seconds; any time will do that is the same each time."""
LONGEST_PREFIX = 200
"""Bytes of a file's name that a user may give; file systems end at 255."""
EXTENSIONS = {".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".task", ".model"}


def register_folders() -> None:
    """models/latentsync beside what extra_model_paths.yaml says; without extensions ComfyUI would list every file."""
    folder_paths.add_model_folder_path(MODEL_FOLDER, str(Path(folder_paths.models_dir) / MODEL_FOLDER))
    paths, extensions = folder_paths.folder_names_and_paths[MODEL_FOLDER]
    folder_paths.folder_names_and_paths[MODEL_FOLDER] = (paths, set(extensions) | EXTENSIONS)


def search_folders() -> list[Path]:
    """Where weights may lie: our folder first, then those where ComfyUI keeps VAEs and audio encoders, then ours."""
    names = (MODEL_FOLDER, "vae", "vae_approx", "audio_encoders")
    known = [folder_paths.get_folder_paths(name) for name in names if name in folder_paths.folder_names_and_paths]
    return [*map(Path, itertools.chain.from_iterable(known)), *model_folders()]


def find_file(name: str) -> Path:
    """A known file ("vae", "tiny.en", "face-landmarker", …) in any of those folders; UserError says how to get it."""
    return find(name, search_folders())


def input_path(name: str) -> Path:
    """The file that a widget or a request names ("clip.mp4", "sub/clip.mp4 [output]"), inside ComfyUI's own folders."""
    plain, base = folder_paths.annotated_filepath(name)
    folder = Path(base or folder_paths.get_input_directory()).resolve()
    path = (folder / plain).resolve()
    if not path.is_relative_to(folder):
        raise UserError(f"{name} is outside ComfyUI's {folder.name} folder; upload the file and take its name there.")
    if not os.path.isfile(path):  # noqa: PTH113 — says no where Path.is_file raises, for a name that is too long
        raise UserError(f"There is no file {name} in ComfyUI's {folder.name} folder; upload it first.")
    return path


def temp_path(suffix: str) -> Path:
    """A new name in ComfyUI's temp folder."""
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"latentsync_{uuid.uuid4().hex}{suffix}"


@contextmanager
def new_video(prefix: str | None, like: Path, ending: str) -> Iterator[Path]:
    """Where to write a video: a numbered name in the output folder (the prefix may hold folders and %date% codes), or
    in the temp folder. like: the video or picture that it is made from, whose size the prefix may name."""
    if prefix is None:
        yield temp_path(ending)
        return
    if not prefix.isprintable() or not prefix.strip() or len(os.fsencode(Path(prefix).name)) > LONGEST_PREFIX:
        raise UserError(f"filename_prefix is {prefix[:40]!r}; give a name of 1 to {LONGEST_PREFIX} plain characters.")
    width, height = picture_size(like)
    base = folder_paths.get_output_directory()
    try:
        folder, name, number, _, _ = folder_paths.get_save_image_path(prefix, base, width, height)
    except Exception as error:  # ComfyUI raises plain Exception for a prefix that leads out of the folder
        raise UserError(
            f"filename_prefix is {prefix!r}, which is not inside the output folder; give a name like video/LatentSync."
        ) from error
    yield Path(folder) / f"{name}_{number:05}_{ending}"


def view_ref(path: Path) -> dict[str, str]:
    """How the browser asks for a file of ours: {filename, subfolder, type}; empty for a file it cannot ask for."""
    folders = {
        "temp": folder_paths.get_temp_directory(),
        "output": folder_paths.get_output_directory(),
        "input": folder_paths.get_input_directory(),
    }
    for kind, folder in folders.items():
        inside = Path(folder).resolve()
        if path.resolve().is_relative_to(inside):
            below = path.resolve().relative_to(inside)
            return {"filename": below.name, "subfolder": below.parent.as_posix().strip("."), "type": kind}
    return {}


def preview_picture(picture: np.ndarray) -> dict[str, str]:
    """Save (H, W, 3) uint8 as a temporary JPEG for the browser."""
    path = temp_path(".jpg")
    Image.fromarray(picture).save(path, quality=85)
    return view_ref(path)


def _whole(video: Any) -> bool:
    """Whether a VIDEO is all of the file that it names: newer ComfyUI lets it carry a trim and a crop."""
    if not isinstance(video, InputImpl.VideoFromFile):
        return False
    plain = InputImpl.VideoFromFile(video.get_stream_source())
    try:
        return plain.get_dimensions() == video.get_dimensions() and plain.get_duration() == video.get_duration()
    except (OSError, ValueError):  # not a video; whoever reads the file says it better
        return True


@contextmanager
def video_file(video: Any) -> Iterator[Path]:
    """A VIDEO as a file to read: its own, if it has one and shows all of it; else a temporary one."""
    if own := _own_file(video):
        yield own
        return
    with temporary(".mp4", "The VIDEO") as path:
        _write(path, video)
        yield path


def _own_file(video: Any) -> Path | None:
    source = video.get_stream_source() if _whole(video) else None
    return Path(source) if isinstance(source, str | os.PathLike) else None


def _write(path: Path, video: Any) -> None:
    source = video.get_stream_source() if _whole(video) else None
    if isinstance(source, BytesIO):
        path.write_bytes(source.getbuffer())
    elif isinstance(video, InputImpl.VideoFromComponents):
        parts = video.get_components()
        with sound_file(parts.audio) as sound:
            write_video(path, parts.images, Fraction(parts.frame_rate), sound)
    else:
        video.save_to(str(path))


@contextmanager
def steady_file(video: Any, images: Any = None, audio: Any = None, rate: Fraction = RATE) -> Iterator[Path]:
    """A VIDEO, or IMAGE and AUDIO where it is None, as a file that is known again another time, by name, size and time:
    its own, or a temporary one whose name its content decides."""
    if video is not None and (own := _own_file(video)):
        yield own
        return
    name = "The IMAGE" if video is None else "The VIDEO"
    with temporary(".mp4", name) as path:
        if video is not None:
            _write(path, video)
        else:
            with sound_file(audio) as sound:
                write_video(path, images, rate, sound)
        with temporary(".mp4", name, of=path) as steady:
            os.utime(steady, (OLD, OLD))
            yield steady


@contextmanager
def sound_file(audio: Any, name: str = "The AUDIO") -> Iterator[Path | None]:
    """An AUDIO as a temporary file; None stays None. name: what error messages call it."""
    if audio is None:
        yield None
        return
    waveform, rate = speech_of(audio)
    with temporary(".wav", name) as path:
        write_sound(path, waveform, rate)
        yield path


@contextmanager
def picture_file(video: Any) -> Iterator[Path]:
    """A VIDEO, or an IMAGE of one picture, as a file to read."""
    if not isinstance(video, Tensor):
        with video_file(video) as path:
            yield path
        return
    if len(video) != 1:
        raise UserError(
            f"The input video got {len(video)} images; connect a VIDEO (Create Video makes one) or a single image."
        )
    with temporary(".png", "The IMAGE") as path:
        write_picture(path, video)
        yield path


@contextmanager
def temporary(suffix: str, name: str, of: Path | None = None) -> Iterator[Path]:
    """A file in ComfyUI's temp folder that is gone afterwards. name: what error messages call it. of: a file that
    becomes this one, under a name of its content."""
    path = temp_path(suffix) if of is None else of.replace(of.with_name(f"latentsync_{sha256(of)[:16]}{suffix}"))
    try:
        yield path
    except UserError as error:
        raise UserError(str(error).replace(str(path), name)) from error
    finally:
        path.unlink(missing_ok=True)


def keep_alive(path: Path) -> Path:
    """A file of the temp folder under one more name, so that it outlives the node that made it; others as they are."""
    if not path.resolve().is_relative_to(Path(folder_paths.get_temp_directory()).resolve()):
        return path
    other = temp_path(path.suffix)
    try:
        other.hardlink_to(path)
    except OSError:  # not every file system has links
        shutil.copyfile(path, other)
    return other


PANELS = 16
"""So many nodes may show temporary files in the browser; those of the node that ran longest ago go first."""
_panels: OrderedDict[str, "Hold"] = OrderedDict()


class Hold:
    """Temporary files, which go when nobody holds them any more."""

    def __init__(self, paths: Sequence[Path]) -> None:
        for path in paths:
            weakref.finalize(self, path.unlink, missing_ok=True).atexit = False


def hold(node_id: str, paths: Sequence[Path]) -> Hold:
    """Hold files for what a node shows in the browser, until it shows others."""
    key = node_id.partition(".")[0]  # a node that another one stands for shows its files there
    _panels[key] = held = Hold(paths)
    _panels.move_to_end(key)
    while len(_panels) > PANELS:
        _panels.popitem(last=False)
    return held


def video_of(path: Path, held: Hold) -> Any:
    """A VIDEO of a finished file, which holds what it needs."""
    video = InputImpl.VideoFromFile(str(path))
    weakref.finalize(video, lambda _: None, held).atexit = False
    return video


def workflow_metadata(hidden: Any) -> dict[str, str]:
    """Prompt and workflow as Save Video writes them into a file; nothing where the user has switched that off."""
    if args.disable_metadata:
        return {}
    facts = {**(hidden.extra_pnginfo or {}), **({"prompt": hidden.prompt} if hidden.prompt else {})}
    return {name: json.dumps(fact) for name, fact in facts.items()}
