"""The app in front of a real ComfyUI: what comes out is what the engine here would have made."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from latentsync.media.probe import probe
from latentsync.pipeline import lipsync_file
from latentsync.settings import Settings
from latentsync.timeline import Cut
from latentsync.webapp.backends import ComfyServer as Backend
from latentsync.webapp.backends import LipSyncRequest
from latentsync.webapp.queue import DONE, Queue
from latentsync.weights.bundle import load_models

from ..nodes.server import ComfyServer
from .parts import alike, clip, portrait
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


@pytest.mark.parametrize(("codec", "ending"), [("vp9", ".webm"), ("prores", ".mov"), ("copy-like-source", ".mp4")])
def test_a_part_in_another_kind_of_file(comfy: ComfyServer, tmp_path: Path, codec: str, ending: str) -> None:
    """Save Video of ComfyUI has no kind of file but .mp4; the node's own file comes, with all that was chosen."""
    video, cut = clip(tmp_path / "clip.mp4", 30), Cut(Fraction(8, 25), Fraction(16, 25))
    settings = Settings(steps=1, guidance=1.0, codec=codec, quality=60, strip_metadata=True)
    made, wanted = tmp_path / f"made{ending}", tmp_path / f"wanted{ending}"
    request = LipSyncRequest(video, None, made, "nano", settings, cut=cut)
    queue = Queue()
    job = queue.submit(lambda job: Backend(comfy.url).run(request, job))
    assert wait_until(lambda: job.over, PATIENCE / 1000)
    assert (job.state, job.error) == (DONE, "")
    queue.close()
    with load_models("nano") as models:
        lipsync_file(video, None, wanted, models=models, settings=settings, cut=cut)
    assert alike(made, wanted)
    assert probe(made).frames == 16
    assert probe(made).kind.family == probe(wanted).kind.family


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
