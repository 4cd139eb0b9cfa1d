"""One face finder in a process of somebody else: threads share it, and the process's stderr stays as it is."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from latentsync import files
from latentsync.face import detect
from latentsync.face.detect import FaceFinder

from ..tiny import face_model, pan


def test_threads_that_share_one_find_what_each_would_alone():
    frames = pan(6)
    with FaceFinder(face_model()) as finder:
        alone = [finder.detect(frame) for frame in frames]
        with ThreadPoolExecutor(4) as pool:
            shared = list(pool.map(finder.detect, [*frames] * 4))
    assert all(len(faces) == 1 for faces in alone)
    for expected, found in zip(alone * 4, shared, strict=True):
        assert np.array_equal(found[0].points68, expected[0].points68)


@pytest.mark.parametrize("in_terminal", [False, True])
def test_only_our_own_command_line_hides_what_is_written_to_stderr(monkeypatch, capfd, in_terminal):
    """A host's process may write there from any thread while MediaPipe starts."""
    monkeypatch.setattr(files, "in_terminal", in_terminal)
    with detect._quiet():
        os.write(2, b"from another thread")
    os.write(2, b"afterwards")
    assert capfd.readouterr().err == ("" if in_terminal else "from another thread") + "afterwards"
