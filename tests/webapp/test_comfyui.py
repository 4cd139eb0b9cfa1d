"""The app in front of a real ComfyUI: what comes out is what the engine here would have made."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ..nodes.server import ComfyServer
from .parts import alike, portrait
from .stage import PATIENCE, App, Visitor, chromium, couple_clip, made_by_the_command, point, spoken
from .test_queue import wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow
HOW = ("--steps", "2", "--dtype", "fp32")
"""ComfyUI computes so on a CPU, whatever the engine prefers there."""


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def app(comfy: ComfyServer, browser: "Browser", tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    with App(tmp_path_factory.mktemp("app"), "--server", comfy.url, "--no-local", "--keep", "4") as app:
        yield app


def test_a_clip_made_by_comfyui(browser: "Browser", app: App, comfy: ComfyServer, tmp_path: Path) -> None:
    clip, voice = couple_clip(tmp_path / "two.mp4", 20), spoken(tmp_path / "voice.wav", 0.8)
    with Visitor(browser, app) as me:
        me.give(clip, voice)
        me.faces.nth(1).click()
        me.page.locator(".stage button[data-face='1'][aria-pressed=true]").wait_for()
        me.steps(2)
        me.start()
        said = " ".join(me.watch())
        assert "sampling the mouth" in said, said
        got = me.download(tmp_path / "got.mp4")
        wanted = made_by_the_command(tmp_path, clip, voice, *HOW, "--face", point(clip, 1, tmp_path))
        assert alike(got, wanted)
        assert "on ComfyUI" in me.page.content()
    assert wait_until(lambda: not app.visitors(), 60)


def test_a_picture_made_by_comfyui(browser: "Browser", app: App, tmp_path: Path) -> None:
    face, voice = portrait(tmp_path / "face.png"), spoken(tmp_path / "voice.wav", 0.7)
    with Visitor(browser, app) as me:
        me.give(face, voice)
        me.steps(2)
        me.start()
        me.watch()
        got = me.download(tmp_path / "got.mp4")
        wanted = made_by_the_command(tmp_path, face, voice, *HOW, "--face", point(face, 0, tmp_path))
        assert alike(got, wanted)


def test_cancelling_withdraws_the_run(browser: "Browser", app: App, comfy: ComfyServer, tmp_path: Path) -> None:
    clip = couple_clip(tmp_path / "two.mp4", 20)
    with Visitor(browser, app) as me:
        me.give(clip, None)
        me.steps(60)
        me.start()
        me.page.get_by_text("sampling the mouth").wait_for(timeout=PATIENCE)
        me.page.get_by_role("button", name="Cancel").click()
        me.page.get_by_text("Cancelled; nothing was kept.").wait_for(timeout=PATIENCE)
        assert wait_until(comfy.idle, 120)
