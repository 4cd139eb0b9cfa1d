"""Clips shared by the tests of training, and one thread: the machine may have few cores, and sums must not change."""

import pytest
import torch

from .parts import write_clips


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("prepared") / "data", 3)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
