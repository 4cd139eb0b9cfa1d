"""What the tests of the web app share: small models as files, and small things to send."""

import sys

import pytest

from latentsync.webapp import streamlit_session
from latentsync.webapp.config import AppSettings
from latentsync.webapp.service import AppService

from ..tiny import face_model, link, tiny_checkpoint, tiny_whisper, write_speech
from .drawn import LIMITS, page
from .parts import clip, couple, portrait


@pytest.fixture(autouse=True)
def own_main(monkeypatch):
    """Streamlit's AppTest leaves its script as __main__, which processes that are started later would import."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])


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


@pytest.fixture
def settings(tiny, tmp_path):
    """Of the service."""
    samples = tmp_path / "samples"
    samples.mkdir()
    return AppSettings(
        limits=LIMITS, folder=str(tmp_path / "app"), checkpoints=(tiny,), device="cpu", samples=str(samples)
    )


@pytest.fixture
def service(settings, tmp_path, monkeypatch):
    (tmp_path / "app").mkdir()
    service = AppService(settings, lambda session: True)
    streamlit_session.service.cache_clear()
    monkeypatch.setattr(streamlit_session, "service", lambda: service)
    monkeypatch.setattr(streamlit_session, "current_session", lambda st, sessions: sessions.get("anna"))
    yield service
    service.close()


@pytest.fixture
def screen(service):
    testing = pytest.importorskip("streamlit.testing.v1", reason="Streamlit draws the page: pip install streamlit")
    return testing.AppTest.from_function(page, default_timeout=120)


@pytest.fixture
def forms(service, monkeypatch):
    """What the page asks the service to start."""
    forms = []
    monkeypatch.setattr(service, "start", lambda session, form: forms.append(form))
    return forms
