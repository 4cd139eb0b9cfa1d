"""One thread: the machine may have few cores, and these networks are tiny."""

import numpy as np
import pytest
import torch

from latentsync.face.detect import FaceFinder

from ..tiny import face_model
from .people import Face, detected_face, speaker


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def finder():
    with FaceFinder(face_model()) as finder:
        yield finder


@pytest.fixture(scope="session")
def face(finder) -> Face:
    return detected_face(finder)


@pytest.fixture(scope="session")
def speakers_two(face):
    """Two clips in which the portrait's jaw goes up and down, in two rhythms, and the audio says how far."""
    return [speaker(face, rhythm(32, 3.0)), speaker(face, rhythm(24, 2.0), name="ben_1")]


def rhythm(frames, pace):
    openings = 0.16 - 0.16 * np.cos(np.arange(frames) / pace)
    openings[:4] = 0
    return openings
