"""silence on the nodes: what a mouth does in the pauses of a speech."""

import wave

import numpy as np
import pytest
import torch

from latentsync.audio.load import load_audio
from latentsync.pipeline import lipsync
from latentsync.settings import Settings
from latentsync.weights.bundle import load_models

from .clips import VOICE, frames_of, portrait
from .graphs import Graph
from .parts import QUICK, in_one, loaded

FRAMES = 32
PAUSE = slice(10, 15)
"""Frames in which lips are at rest; the sound pauses from 0.18 s to 0.9 s."""


@pytest.fixture(scope="module")
def files(comfy, tmp_path_factory):
    """In the input folder: a portrait of 32 frames, and speech with half a second of hum in it."""
    folder = tmp_path_factory.mktemp("silence")
    speech = load_audio(VOICE).waveform.numpy()[8000:28480].copy()
    hum = 0.002 * np.sin(2 * np.pi * 100 * np.arange(8000) / 16000)
    speech[6400:14400] = hum
    with wave.open(str(folder / "paused.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes((speech * 32767).astype("<i2").tobytes())
    return comfy.put(portrait(folder / "thirty.mp4", FRAMES)), comfy.put(folder / "paused.wav")


@pytest.fixture(scope="module")
def made(comfy, files):
    """Frames of Lip Sync by silence, in RGB."""
    out = {}
    for silence in ("keep", "relax", "close"):
        g = Graph()
        sound = g.node("LoadAudio", audio=files[1])
        whole = in_one(g, loaded(g, files[0]), sound, silence=silence)
        shown = g.node("SaveImage", images=whole, filename_prefix=silence)
        run = comfy.queue(g).check()
        out[silence] = np.stack([read(comfy.path(one)) for one in run.outputs[shown.id]["images"]])
    return out


def read(path):
    from PIL import Image

    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def difference(a, b):
    """The largest one of each frame."""
    return np.abs(a - b).max((1, 2, 3))


def test_lips_are_closed_in_the_pause_only(made):
    changed = difference(made["relax"], made["close"])
    assert changed[PAUSE].min() > 10
    assert not changed[:6].any()
    assert not changed[19:].any()


def test_hum_moves_no_lips(made):
    assert difference(made["keep"], made["relax"])[PAUSE].min() > 5


def test_the_same_as_the_engine(comfy, files, made):
    waveform, rate = load_audio(comfy.input / files[1])
    how = {name: value for name, value in QUICK.items() if name != "solver"}
    with load_models("nano") as models, torch.inference_mode():
        wanted = lipsync(
            frames_of(comfy.input / files[0]),
            waveform,
            rate,
            25,
            models=models,
            settings=Settings(**how, silence="close"),
        )
    where = wanted.mask > 0.5
    assert np.abs(made["close"][where] - wanted.frames[where]).mean() <= 2
    rows = np.flatnonzero(where[PAUSE].any((0, 2)))
    others = {name: made[name][PAUSE][:, rows[0] : rows[-1]] for name in made}
    off = {name: np.abs(one - wanted.frames[PAUSE][:, rows[0] : rows[-1]]).mean() for name, one in others.items()}
    assert min(off, key=lambda name: off[name]) == "close", off
