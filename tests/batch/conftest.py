"""What the tests of batches share: small models as files, a clip with a cut and a gap, some jobs."""

import pytest

from ..tiny import face_model, link
from .parts import make_clip, make_faces, make_models


@pytest.fixture(scope="session")
def material(tmp_path_factory):
    """A folder: scenes.mp4, long.wav, a.mp4, b.mp4, face.png, gray.mp4, say.wav; the face model beside them."""
    folder = tmp_path_factory.mktemp("material")
    link(folder / "face_landmarker.task", face_model())
    make_clip(folder)
    make_faces(folder)
    return folder


@pytest.fixture(scope="session")
def spec(material):
    return make_models(material)


@pytest.fixture(scope="session")
def still_spec(material):
    return make_models(material, reference_mode="first_frame")


@pytest.fixture(autouse=True)
def models_folder(request, monkeypatch):
    """Where workers, here or in other processes, find the face model."""
    if {"spec", "still_spec"} & set(request.fixturenames):
        monkeypatch.setenv("LATENTSYNC_MODELS", str(request.getfixturevalue("material")))
