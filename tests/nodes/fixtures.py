"""Fixtures of all tests that need the real ComfyUI; tests/conftest.py hands them to every folder."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .clips import VOICE, cut, portrait
from .server import PACK, ROOT, ComfyServer, Installation, find_comfyui

SHORT = 20
"""Frames of the small clips: two windows of 16."""


@pytest.fixture(scope="session")
def comfyui() -> Installation:
    """Where ComfyUI is; for servers of a test's own: with ComfyServer(comfyui, tmp_path, args=[…]) as server."""
    found = find_comfyui()
    if found is not None:
        return found
    say = "No ComfyUI here: COMFYUI_PATH names its folder, COMFYUI_PYTHON the Python that has its packages."
    if os.environ.get("LATENTSYNC_REQUIRE_COMFYUI") == "1":
        pytest.fail(say)
    pytest.skip(say)


@pytest.fixture(scope="session")
def comfy(comfyui: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """The one server that all tests share: --cpu, our pack under an odd name, one of odd nodes, folders of its own."""
    packs = {PACK: ROOT, "odd": Path(__file__).parent / "odd"}
    args = ("--preview-method", "latent2rgb")  # at every step; true pictures may leave some out
    with ComfyServer(comfyui, tmp_path_factory.mktemp("comfyui"), packs=packs, args=args) as server:
        yield server


@pytest.fixture(scope="session")
def portrait_clip(comfy: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """In the input folder: 20 frames of a portrait (320 x 280, 25 fps) with the sample voice."""
    return comfy.put(portrait(tmp_path_factory.mktemp("clips") / "portrait.mp4", SHORT))


@pytest.fixture(scope="session")
def real_clip(comfy: ComfyServer, media: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """In the input folder: 20 frames of a real speaker (512 x 512, 25 fps) with her own sound."""
    source = media / "clips" / "hdtf_wda_katiehill.mp4"
    return comfy.put(cut(source, tmp_path_factory.mktemp("clips") / "speaker.mp4", SHORT, start=25))


@pytest.fixture(scope="session")
def voice(comfy: ComfyServer) -> str:
    """In the input folder: the sample voice, four seconds of it."""
    return comfy.put(VOICE, "voice.flac")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A failure brings along what the server printed last."""
    report = yield
    if report.failed:
        values: list[Any] = list(getattr(item, "funcargs", {}).values())
        for server in (value for value in values if isinstance(value, ComfyServer)):
            report.sections.append((f"ComfyUI on port {server.port}", server.log[-6000:]))
    return report
