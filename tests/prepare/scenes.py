"""Small talking videos made for tests, and runs over them."""

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from latentsync.prepare.local import run_local
from latentsync.prepare.runner import prepare
from latentsync.prepare.settings import PrepareSettings
from latentsync.prepare.workspace import Kind, Plan

from ..tiny import pan, write_clip, write_speech

SETTINGS = {"min_seconds": 0.6, "max_seconds": 1.2, "min_face": 40.0, "resolution": 64}
UNMEASURED = SETTINGS | {"skip": ("quality", "sync")}
WORDS = [word for name, value in SETTINGS.items() for word in (f"--{name.replace('_', '-')}", str(value))]
WORDS += ["--skip", "sync", "--skip", "quality"]
"""The same for the command."""


def inline(plan: Plan, kind: Kind, items):
    return run_local(plan, kind, items, 1)


def run(source: Path, out: Path, execute=inline, **changes):
    return prepare(source, out, PrepareSettings(**(UNMEASURED | changes)), execute)


def results(out: Path) -> dict[str, bytes]:
    """All that later programs read, but no partial files, which killed runs leave."""
    paths = [out / "manifest.jsonl", out / "summary.json", *sorted((out / "clips").glob("[!.]*"))]
    return {path.name: path.read_bytes() for path in paths}


def moved(picture: np.ndarray, frames: int) -> np.ndarray:
    """A picture that shifts by a pixel in every frame, so that no two are alike."""
    return np.stack([np.roll(picture, i, axis=1) for i in range(frames)])


def noise(frames: int, width: int, height: int, seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return moved(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), frames)


def footage(folder: Path) -> Path:
    """A folder with what a pipeline meets. Names tell what is in the file."""
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    sound = write_speech(folder / "speech.wav", 2.0)
    face = pan(45, 256, 224)
    rate = Fraction(25)
    write_clip(folder / "a" / "x.mp4", face[:20], rate, audio=sound)
    write_clip(folder / "b" / "x.mp4", face[::-1][:18], Fraction(24), audio=sound)
    cut = np.concatenate([face[:20], noise(20, 256, 224, 1)])
    write_clip(folder / "b" / "face then none.mp4", cut, rate, audio=sound)
    write_clip(folder / "long.mp4", face, rate, audio=sound)
    write_clip(folder / "mute.mp4", face[:20], rate)
    write_clip(folder / "brief.mp4", face[:9], rate, audio=sound)
    (folder / "text.mp4").write_text("not a video", encoding="utf-8")
    (folder / "notes.txt").write_text("not looked at", encoding="utf-8")
    return folder
