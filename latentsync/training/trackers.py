"""Curves and samples for TensorBoard, Weights & Biases or Trackio, by accelerate's trackers."""

import dataclasses
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..audio.load import load_audio
from ..errors import UserError
from ..files import atomic_path
from .recipes import AUTO, NONE, RunSettings

KINDS = {"tensorboard": "TensorBoardTracker", "wandb": "WandBTracker", "trackio": "TrackioTracker"}
PROJECT, IDENTITY = "latentsync", "tracker.json"

Media = Callable[[Any, str, Path, int], None]
"""Sends a picture, or a video with its audio, to a tracker: (tracker, name, file, step)."""


@dataclass(frozen=True)
class Trackers:
    """Those of a run, by their names. All of them take every value and every sample."""

    trackers: Mapping[str, Any]

    def log(self, values: Mapping[str, float], step: int) -> None:
        for tracker in self.trackers.values():
            tracker.log(dict(values), step=step)

    def log_media(self, paths: Sequence[Path], step: int) -> None:
        for name, tracker in self.trackers.items():
            for path in paths:
                _MEDIA[name](tracker, f"samples/{media_name(path, step)}", path, step)

    def finish(self) -> None:
        for tracker in self.trackers.values():
            tracker.finish()


NO_TRACKERS = Trackers({})


def start_trackers(settings: RunSettings, folder: Path) -> Trackers:
    """Those of the settings; see choose. A run that resumes goes on in the same run of a tracker."""
    recipe = dataclasses.asdict(settings)
    return Trackers({name: _start(name, folder, recipe) for name in choose(settings.trackers)})


def choose(names: Sequence[str]) -> list[str]:
    """The trackers to start. auto: TensorBoard, if it is installed. UserError: one is not installed."""
    if NONE in names:
        return []
    wanted = dict.fromkeys(name for name in names if name != AUTO)
    for name in wanted:
        if find_spec(name) is None:
            raise UserError(f"The tracker {name} is not installed; type: pip install {name}, or leave it out.")
    if AUTO in names and find_spec("tensorboard") is not None:
        wanted.setdefault("tensorboard")
    return list(wanted)


def _start(name: str, folder: Path, recipe: Mapping[str, Any]) -> Any:
    from accelerate import tracking

    kind = getattr(tracking, KINDS[name], None)
    if kind is None:
        raise UserError(f"This accelerate knows no {name}; install a newer accelerate.")
    try:
        if name == "tensorboard":
            tracker = kind(name, str(folder))
        else:
            tracker = kind(PROJECT, **_identity(name, folder))
        if hasattr(tracker, "start"):  # older ones start at once
            tracker.start()
        if name != "tensorboard":  # which would make a run of its own for them
            tracker.store_init_configuration({k: list(v) if isinstance(v, tuple) else v for k, v in recipe.items()})
    except Exception as error:  # each library has its own
        raise UserError(f"The tracker {name} could not start ({str(error).splitlines()[0]}).") from error
    return tracker


def _identity(name: str, folder: Path) -> dict[str, Any]:
    """Of the run, for a tracker that keeps several in one place."""
    path = folder / IDENTITY
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as part:
            part.write_text(json.dumps({"id": uuid.uuid4().hex[:8]}))
    key = json.loads(path.read_text())["id"]
    run = folder.absolute().name
    if name == "wandb":
        return {"name": run, "id": key, "resume": "allow", "dir": str(folder)}
    return {"name": f"{run}-{key}", "resume": "allow"}


def media_name(path: Path, step: int) -> str:
    """The same for all steps: "time" for time.png, "sample" for step-00000010.png, "offsets" for …-offsets.png."""
    return path.stem.replace(f"step-{step:08d}", "").strip("-") or "sample"


def _is_video(path: Path) -> bool:
    return path.suffix == ".mp4"


def _image(path: Path) -> np.ndarray:
    """(H, W, 3) RGB."""
    picture: Any = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    return np.ascontiguousarray(picture[..., ::-1])


def _audio(path: Path) -> tuple[np.ndarray, int]:
    """(samples,) and their rate."""
    waveform, rate = load_audio(path)
    return waveform.numpy(), rate


def _tensorboard(tracker: Any, name: str, path: Path, step: int) -> None:
    if not _is_video(path):
        tracker.log_images({name: _image(path)[None]}, step=step, dataformats="NHWC")
        return
    waveform, rate = _audio(path)
    tracker.tracker.add_audio(name, waveform[None], step, rate)


def _by_module(tracker: Any, name: str, path: Path, step: int) -> None:
    """Weights & Biases and Trackio have the same classes."""
    module = import_module(tracker.name)
    if not _is_video(path):
        tracker.log({name: module.Image(str(path))}, step=step)
        return
    waveform, rate = _audio(path)
    audio = module.Audio(waveform, sample_rate=rate)
    tracker.log({name: module.Video(str(path), format="mp4"), f"{name} audio": audio}, step=step)


_MEDIA: dict[str, Media] = {"tensorboard": _tensorboard, "wandb": _by_module, "trackio": _by_module}
