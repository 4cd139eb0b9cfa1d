"""Small jobs for small models, and workers that die on purpose. Importable by the processes and actors of a pool."""

import os
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np

from latentsync.batch.parallel.worker import BaseWorker
from latentsync.batch.worker import LipSyncWorker, ModelSpec
from latentsync.errors import UserError
from latentsync.files import atomic_path

DIE = "LATENTSYNC_TEST_DIE"
"""Names a file; the worker that can create it dies in the middle of its work."""


class Plain(BaseWorker):
    """A worker without models, for calls that need none."""

    def double(self, number):
        return 2 * number

    def later(self, number):
        time.sleep(0.5)
        return number

    def fail(self):
        raise KeyError("why")

    def refuse(self):
        raise UserError("There is no bread;\nbake some.")

    def die(self):
        os._exit(3)

    def die_once(self, marker: Path, number):
        die_once(marker)
        return number

    def unfinished(self, path: Path):
        with atomic_path(path) as part:
            part.write_bytes(b"half")
            os._exit(3)

    def wait(self, path: Path):
        """Five minutes, or until it is stopped."""
        path.with_suffix(".begun").touch()
        try:
            for _ in range(6000):
                self.check_cancelled()
                time.sleep(0.05)
        finally:
            path.write_text("cleaned up")


class Unready(Plain):
    def setup(self):
        raise ValueError("no such weights")


class Unreadable:
    """Goes through the pipe as something that cannot be made again."""

    def __reduce__(self):
        return __import__, ("not_on_this_machine",)


class Mortal(LipSyncWorker):
    """Dies once, after the first solver step of whatever it is doing."""

    @property
    def place(self):
        ray = sys.modules.get("ray")  # an actor has it
        return ray.get_runtime_context().get_node_id() if ray and ray.is_initialized() else super().place

    def check_cancelled(self, progress=None):
        super().check_cancelled(progress)
        if progress is not None and progress.stage == "sample" and DIE in os.environ:
            die_once(Path(os.environ[DIE]))


def die_once(marker: Path):
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return
    os._exit(3)


def make_models(folder: Path, reference_mode: str | None = None) -> ModelSpec:
    """A tiny checkpoint and a tiny Whisper as files, with the face model beside them."""
    import torch
    from safetensors.torch import save_file

    from ..tiny import tiny_checkpoint, tiny_whisper

    checkpoint = tiny_checkpoint(
        folder / f"tiny-{reference_mode}.safetensors", resolution=32, reference_mode=reference_mode
    )
    whisper = folder / "whisper.safetensors"
    if not whisper.exists():
        state = {f"encoder.{key}": value for key, value in tiny_whisper(layers=1).encoder.state_dict().items()}
        save_file(
            state | {"encoder.layer_norm.weight": torch.ones(384), "encoder.layer_norm.bias": torch.zeros(384)}, whisper
        )
    return ModelSpec(str(checkpoint), whisper=str(whisper), device="cpu")


def scenes():
    """70 frames: a face; a cut to the same face elsewhere; four frames without it."""
    from ..tiny import pan

    moved = np.concatenate([pan(40)[:, :, 30:], 255 - pan(40)[:, :, :30]], 2)
    frames = np.concatenate([pan(30), moved])
    frames[50:54] = 90
    return frames


def make_clip(folder: Path) -> Path:
    """scenes() with sound as long, and a longer speech beside it, long.wav."""
    from ..tiny import write_clip, write_speech

    write_speech(folder / "long.wav", 4.3)
    return write_clip(folder / "scenes.mp4", scenes(), Fraction(25), audio=write_speech(folder / "own.wav", 2.8))


def make_faces(folder: Path) -> None:
    """a.mp4 and b.mp4, 20 frames with sound, face.png, gray.mp4 without a face, say.wav."""
    import cv2

    from ..tiny import pan, write_clip, write_speech

    sound = write_speech(folder / "say.wav", 0.8)
    write_clip(folder / "a.mp4", pan(20), Fraction(25), audio=sound)
    write_clip(folder / "b.mp4", pan(20)[:, :, ::-1], Fraction(25), audio=sound)
    write_clip(folder / "gray.mp4", np.full((8, 64, 96, 3), 120, np.uint8), Fraction(25), audio=sound)
    cv2.imwrite(str(folder / "face.png"), pan(1)[0][..., ::-1])


def frames_of(path: Path):
    from latentsync.media.probe import probe
    from latentsync.media.reader import VideoReader

    info = probe(path)
    with VideoReader(info) as reader:
        return np.stack(list(reader.read(range(info.frames))))
