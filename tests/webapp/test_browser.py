"""The app in a real browser, as its visitors have it: one, two at once, and some who send what they should not."""

import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from latentsync.media.probe import probe

from .parts import alike, portrait
from .stage import NARROW, PATIENCE, STEPS, App, Visitor, chromium, couple_clip, made_by_the_command, point, spoken
from .test_queue import wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Request

pytestmark = pytest.mark.slow
SECONDS = 1.2
KEEP = 4


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, browser: "Browser") -> Iterator[App]:
    folder = tmp_path_factory.mktemp("app")
    with App(folder, "--keep", str(KEEP)) as app:
        yield app
    assert not list(folder.glob("latentsync-app-*")), "nothing is left when the app ends"


@pytest.fixture(autouse=True)
def alone(app: App) -> None:
    """Those of the test before have gone."""
    assert wait_until(lambda: not app.visitors(), 60)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A clip with two people, and a voice of a little more than a second."""
    folder = tmp_path_factory.mktemp("given")
    return couple_clip(folder / "two people.mp4"), spoken(folder / "voice.wav", SECONDS)


PLAYS = """() => {
  const videos = ['before', 'after'].map(place => document.querySelector(`.st-key-${place} video`))
  return videos.every(video => video && video.currentTime > 0.1 && video.videoWidth > 0)
}"""


def test_from_two_files_to_a_video(browser: "Browser", app: App, given: tuple[Path, Path], tmp_path: Path) -> None:
    clip, voice = given
    with Visitor(browser, app) as me:
        me.give(clip, voice)
        assert me.faces.count() == 2
        chosen = me.page.locator(".stage button[aria-pressed=true]")
        first = chosen.get_attribute("data-face")
        other = 1 - int(first or 0)
        me.faces.nth(other).click()
        me.page.locator(f".stage button[data-face='{other}'][aria-pressed=true]").wait_for()
        me.steps(STEPS)
        me.start()
        me.page.get_by_text("making the mouth").first.wait_for(timeout=PATIENCE)
        said = " ".join(me.watch())
        assert re.search(r"making the mouth · \d+ % · \d+ s so far", said), said
        me.page.get_by_role("button", name="Play both in sync").click()
        me.page.wait_for_function(PLAYS, timeout=60_000)
        muted = "['before', 'after'].map(place => document.querySelector(`.st-key-${place} video`).muted)"
        assert me.page.evaluate(muted) == [True, False], "heard is the result"
        got = me.download(tmp_path / "got.mp4")
        how = ["--steps", str(STEPS), "--face", point(clip, other, tmp_path)]
        assert alike(got, made_by_the_command(tmp_path, clip, voice, *how))
        assert not alike(got, made_by_the_command(tmp_path, clip, voice, *how[:3], point(clip, 1 - other, tmp_path)))
        assert probe(got).frames == 30
        me.page.get_by_text("Do the lips follow the voice?").click(timeout=PATIENCE)
        chart = me.page.get_by_alt_text("A chart of mouth opening and loudness")
        chart.wait_for(timeout=PATIENCE)
        assert chart.evaluate("image => image.naturalWidth") == 960
        me.page.set_viewport_size(NARROW)
        me.page.wait_for_timeout(1000)
        assert me.page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"], (
            "nothing hangs over the side"
        )


def test_a_part_stored_for_editing(browser: "Browser", app: App, given: tuple[Path, Path], tmp_path: Path) -> None:
    """The part, as a ProRes file to download; what is played beside the same part is a copy."""
    with Visitor(browser, app) as me:
        me.give(given[0], None)
        me.settle()
        me.more("Length and sound")
        me.page.get_by_role("slider", name="Part of the video that is used").first.focus()
        for _ in range(10):
            me.page.keyboard.press("ArrowRight")
        me.settle()
        me.more("File")
        me.page.get_by_role("combobox", name="Stored as").click()
        me.page.get_by_role("option", name="ProRes").click()
        me.start()
        me.watch()
        me.page.get_by_text("Not every browser plays this .mov file").wait_for()
        me.page.get_by_role("button", name="Play both in sync").click()
        me.page.wait_for_function(PLAYS, timeout=60_000)
        lengths = "['before', 'after'].map(place => document.querySelector(`.st-key-${place} video`).duration)"
        assert me.page.evaluate(lengths) == pytest.approx([0.8, 0.8], abs=0.05)
        got = probe(me.download(tmp_path / "got.mov"))
        assert (got.kind.family, got.frames) == ("prores", 20)


LATE = """() => {
  const send = WebSocket.prototype.send
  WebSocket.prototype.send = function (data) { setTimeout(() => send.call(this, data), 3000) }
}"""
"""What the page says reaches the app three seconds later, when it may no longer be so."""


def test_cancelling_on_a_slow_line(browser: "Browser", app: App, given: tuple[Path, Path]) -> None:
    clip, _ = given
    with Visitor(browser, app) as me:
        me.give(clip, None)
        me.steps(60)
        me.start()
        me.page.get_by_text("making the mouth").first.wait_for(timeout=PATIENCE)
        me.page.evaluate(LATE)
        me.page.get_by_role("button", name="Cancel").click()
        cancelled, lost = (me.page.get_by_text(said) for said in ("Cancelled; nothing was kept.", "Connection error"))
        cancelled.or_(lost).first.wait_for(timeout=PATIENCE)
        assert cancelled.count()
        assert me.page.get_by_role("button", name="Make the video").is_enabled()
        assert [len(files) for files in app.visitors().values() if files] == [1], "what was given, and no more"
    assert wait_until(lambda: not app.visitors(), 60)


def test_two_at_once(browser: "Browser", app: App, given: tuple[Path, Path], tmp_path: Path) -> None:
    clip, voice = given
    face = portrait(tmp_path / "face.png")
    with Visitor(browser, app) as anna, Visitor(browser, app) as ben:
        anna.give(clip, None)
        ben.give(face, voice)
        for one in (anna, ben):
            one.steps(2)
        anna.start()
        ben.start()
        ben.page.get_by_text("1 run is before yours").wait_for()
        for one in (anna, ben):
            one.watch()
        hers, his = anna.download(tmp_path / "hers.mp4"), ben.download(tmp_path / "his.mp4")
        folder = tmp_path / "look"
        folder.mkdir()
        picked = point(clip, None, folder), point(face, 0, folder)
        assert alike(hers, made_by_the_command(tmp_path, clip, None, "--steps", "2", "--face", picked[0]))
        assert alike(his, made_by_the_command(tmp_path, face, voice, "--steps", "2", "--face", picked[1]))
        sources = "[...document.querySelectorAll('video, audio, img')].map(media => media.currentSrc || media.src)"
        seen = [{link for link in one.page.evaluate(sources) if "/media/" in link} for one in (anna, ben)]
        assert all(seen)
        assert seen[0].isdisjoint(seen[1])
        files = list(app.visitors().values())
        assert len(files) == 2
        assert files[0].isdisjoint(files[1])
        assert "face.png" not in anna.page.content()
        assert clip.name not in ben.page.content()
    assert wait_until(lambda: not app.visitors(), 60), "their files go with them"


def test_what_is_too_large_or_not_what_it_says_is_refused(browser: "Browser", app: App, tmp_path: Path) -> None:
    large, notes = tmp_path / "large.mp4", tmp_path / "notes.mp4"
    with large.open("wb") as file:
        file.truncate(500 << 20)
    notes.write_text("Dear diary, " * 1000)
    with Visitor(browser, app) as me:
        me.upload("face", large)
        me.page.get_by_text("This file was not accepted: at most 200 MB").first.wait_for()
        me.upload("face", notes)
        me.page.get_by_text("notes.mp4 could not be read as a video or a picture").wait_for()
        me.upload("voice", notes)
        me.page.get_by_text("notes.mp4 could not be read as a recording").wait_for()
        assert not any(app.visitors().values()), "nothing was kept"
        assert app.url in me.page.url


def test_who_asks_past_the_page_is_refused_too(browser: "Browser", app: App) -> None:
    """The limit is not only in the page's own script: a request like the page's, once small and once too large."""
    with Visitor(browser, app) as me:
        with me.page.expect_request("**/_stcore/upload_file/**") as waiting:
            me.upload("voice", spoken(app.folder / "short.wav", 0.6))
        assert send(waiting.value, 1000) in (200, 204)
        assert send(waiting.value, 202 << 20) in (413, None)


def send(asked: "Request", size: int) -> int | None:
    """The status of the answer; None where the server hangs up on what is too much."""
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="../../x.mp4"\r\n\r\n'
    said = {key: value for key, value in asked.all_headers().items() if key in ("cookie", "x-xsrftoken")}
    said["Content-Type"] = "multipart/form-data; boundary=x"
    request = urllib.request.Request(asked.url, head + bytes(size) + b"\r\n--x--\r\n", said, method="PUT")
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=120) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except (urllib.error.URLError, ConnectionError):
        return None


def test_a_voice_is_recorded(browser: "Browser", app: App) -> None:
    with Visitor(browser, app) as me:
        me.choose("Where the voice comes from", "Record")
        me.page.get_by_role("button", name="Record").click()
        me.page.wait_for_timeout(2500)
        me.page.get_by_role("button", name="Stop recording").click()
        me.page.get_by_text("your recording").wait_for()
        assert me.page.locator("audio").evaluate("audio => audio.duration") > 1


def test_a_face_is_picked_by_the_keyboard(browser: "Browser", app: App, given: tuple[Path, Path]) -> None:
    with Visitor(browser, app) as me:
        me.upload("face", given[0])
        me.faces.first.wait_for()
        other = 1 - int(me.page.locator(".stage button[aria-pressed=true]").get_attribute("data-face") or 0)
        me.faces.nth(other).focus()
        me.page.keyboard.press("Enter")
        me.page.locator(f".stage button[data-face='{other}'][aria-pressed=true]").wait_for()
        label = me.faces.nth(other).get_attribute("aria-label") or ""
        assert label.startswith(f"Face {other}")
        primary = me.page.get_by_test_id("stBaseButton-primary").filter(has_text="Face").text_content()
        assert primary == label, "the buttons say the same"


def test_a_face_that_is_not_found_is_pointed_out_by_clicks(browser: "Browser", app: App, tmp_path: Path) -> None:
    import cv2
    import numpy as np

    cv2.imwrite(str(tmp_path / "drawing.png"), np.random.default_rng(0).integers(90, 130, (280, 320, 3), np.uint8))
    wanted = [(120, 100), (200, 100), (160, 160)]
    with Visitor(browser, app) as me:
        me.upload("face", tmp_path / "drawing.png")
        picture = me.page.locator(".stage.pointing img")
        picture.wait_for()
        me.upload("voice", spoken(tmp_path / "voice.wav", SECONDS))
        me.page.locator("audio").wait_for()
        for count, (x, y) in enumerate(wanted, 1):
            me.settle()
            picture.wait_for()  # drawn anew after each click
            scale = picture.evaluate("image => image.getBoundingClientRect().width") / 320
            picture.click(position={"x": x * scale, "y": y * scale})
            me.page.locator(".stage i").nth(count - 1).wait_for()
        me.settle()
        field = me.page.get_by_role("textbox", name="Or a face that cannot be found")
        said = [float(number) for number in field.input_value().split(",")]
        assert all(abs(a - b) <= 1 for a, b in zip(said, sum(wanted, ()), strict=True)), said
        assert me.page.get_by_role("button", name="Make the video").is_enabled()


def test_two_people_with_a_voice_each(browser: "Browser", app: App, given: tuple[Path, Path], tmp_path: Path) -> None:
    with Visitor(browser, app) as me:
        me.give(*given)
        me.settle()
        me.more("More voices")
        me.upload("other", spoken(tmp_path / "second.wav", 0.8))
        me.page.get_by_role("spinbutton", name="Begins at second").wait_for()
        me.settle()
        me.start()
        me.watch()
        got = me.download(tmp_path / "got.mp4")
        assert probe(got).frames == round(25 * (SECONDS + 0.8))
