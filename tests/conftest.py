"""Where the real material lies; tests that need it skip, saying so, where it is absent."""

import os
from pathlib import Path

import pytest

from .nodes.fixtures import comfy, comfyui, portrait_clip, pytest_runtest_makereport, real_clip, voice

__all__ = ["comfy", "comfyui", "portrait_clip", "pytest_runtest_makereport", "real_clip", "voice"]

ROOT = Path(__file__).resolve().parents[1]


def _folder(variable: str, name: str) -> Path:
    folder = Path(os.environ.get(variable, ROOT.parent / "shared" / name))
    if not folder.is_dir():
        pytest.skip(f"{variable}: no {name} folder at {folder}; this test needs material that is not in the repository")
    return folder


def pytest_configure() -> None:
    """Test processes that run side by side share the cores; with all of them in each, torch is several times slower."""
    if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
        import torch

        threads = max(1, (os.cpu_count() or 1) // workers)
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def media() -> Path:
    return _folder("LATENTSYNC_MEDIA", "media")


@pytest.fixture(scope="session")
def golden() -> Path:
    return _folder("LATENTSYNC_GOLDEN", "golden")


@pytest.fixture(scope="session")
def spec() -> Path:
    return _folder("LATENTSYNC_SPEC", "spec")


@pytest.fixture(scope="session")
def golden_portable() -> Path:
    return ROOT / "tests" / "data" / "portable"
