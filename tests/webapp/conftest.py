"""What the tests of the web app share: small models as files, and small things to send."""

import pytest

from ..tiny import face_model, link, tiny_checkpoint, tiny_whisper, write_speech
from .parts import clip, couple, portrait


@pytest.fixture(scope="session")
def material(tmp_path_factory):
    """A folder: tiny.safetensors with a Whisper and the face model; clip.mp4, face.png, couple.png, say.wav."""
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("app")
    tiny_checkpoint(folder / "tiny.safetensors", resolution=32)
    state = {f"encoder.{key}": value for key, value in tiny_whisper(layers=1).encoder.state_dict().items()}
    norm = {"encoder.layer_norm.weight": torch.ones(384), "encoder.layer_norm.bias": torch.zeros(384)}
    save_file(state | norm, folder / "whisper-tiny.en.safetensors")
    link(folder / "face_landmarker.task", face_model())
    clip(folder / "clip.mp4", 30)
    portrait(folder / "face.png", width=160, height=140)
    couple(folder / "couple.png")
    write_speech(folder / "say.wav", 1.3)
    return folder


@pytest.fixture
def tiny(material, monkeypatch):
    """The path of the tiny checkpoint; what it needs beside it is found in its folder."""
    monkeypatch.setenv("LATENTSYNC_MODELS", str(material))
    return str(material / "tiny.safetensors")
