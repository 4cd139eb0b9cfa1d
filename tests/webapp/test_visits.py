"""Visits that do not go straight, in a real browser: reloads, a phone, the dark, two at once; and who cannot see."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest

from .parts import portrait
from .stage import PATIENCE, PHONE, App, Visitor, chromium, spoken

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, browser: "Browser") -> Iterator[App]:
    with App(tmp_path_factory.mktemp("visits")) as app:
        yield app


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small portrait and a second of speech."""
    folder = tmp_path_factory.mktemp("given")
    return portrait(folder / "portrait.png"), spoken(folder / "voice.wav", 1.2)


def key_of(visitor: Visitor) -> str:
    return parse_qs(urlsplit(visitor.page.url).query)["s"][0]


def top(visitor: Visitor, selector: str) -> float:
    box = visitor.page.locator(selector).first.bounding_box()
    assert box is not None, selector
    return box["y"]


def reload(visitor: Visitor) -> None:
    visitor.page.reload()
    visitor.page.get_by_role("heading", name="3 · Model and quality").wait_for()
    visitor.settle()


def in_view(visitor: Visitor, selector: str) -> bool:
    size = visitor.page.viewport_size
    assert size is not None
    return 0 <= top(visitor, selector) < size["height"]


def dark_share(visitor: Visitor, alt: str) -> float:
    """Of the pixels of a picture on the page."""
    return visitor.page.get_by_alt_text(alt).evaluate("""image => {
      const canvas = Object.assign(document.createElement('canvas'), { width: image.naturalWidth, height: 300 })
      const context = canvas.getContext('2d')
      context.drawImage(image, 0, 0)
      const data = context.getImageData(0, 0, canvas.width, canvas.height).data
      let dark = 0
      for (let i = 0; i < data.length; i += 4) dark += data[i] < 60
      return (4 * dark) / data.length
    }""")


def test_a_phone_in_the_dark_that_drops_the_page(browser: "Browser", app: App, given: tuple[Path, Path]) -> None:
    with Visitor(browser, app, viewport=PHONE, color_scheme="dark") as me:
        assert not me.faults()
        me.give(*given)
        me.more("File")
        me.page.get_by_role("checkbox", name="Remove the source's title").check(force=True)
        me.settle()
        assert not me.faults()
        key = key_of(me)
        reload(me)
        assert key_of(me) == key
        me.page.get_by_text("portrait.png").wait_for()
        me.page.get_by_text("voice.wav").wait_for()
        me.more("File")
        assert me.page.get_by_role("checkbox", name="Remove the source's title").is_checked(), "settings stay too"
        me.start()
        assert not me.faults()
        me.page.reload()
        me.progress.or_(me.page.get_by_role("heading", name="Your video")).first.wait_for()
        assert key_of(me) == key
        me.watch()
        me.page.wait_for_timeout(1500)
        assert in_view(me, ".st-key-result h2"), "the result came into view by itself"
        assert top(me, ".st-key-after video") < top(me, ".st-key-before img")
        assert top(me, ".st-key-after [data-testid=stDownloadButton]") < top(me, ".st-key-before img")
        assert in_view(me, ".st-key-after [data-testid=stDownloadButton]")
        assert me.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        chart = me.page.get_by_text("Do the lips follow the voice?")
        chart.wait_for(timeout=PATIENCE)
        picture = "A chart of mouth opening and loudness"
        assert not me.page.get_by_alt_text(picture).is_visible(), "behind one line"
        if me.page.get_by_text("could not be measured").count() == 0:
            chart.click()
            me.page.get_by_alt_text(picture).wait_for()
            assert dark_share(me, picture) > 0.8
        assert not me.faults()
        reload(me)
        me.page.get_by_role("heading", name="Your video").wait_for()
        assert not me.page.get_by_text("Your video is ready.").count(), "said once"
        assert "Your video is ready" in me.page.title()


def test_the_end_of_a_run_is_said_to_those_who_look_and_those_who_listen(
    browser: "Browser", app: App, given: tuple[Path, Path]
) -> None:
    with Visitor(browser, app) as me:
        me.give(*given)
        assert not me.faults()
        me.start()
        status = me.page.locator(".st-key-progress [role=status]")
        status.wait_for(state="attached")
        me.page.wait_for_function(
            "() => [...document.querySelectorAll('[data-testid=stBidiComponentRegular], .st-key-progress *')]"
            ".some(one => /percent/.test((one.shadowRoot ?? one).textContent))",
            timeout=PATIENCE,
        )
        assert not me.faults()
        me.page.get_by_text("Your video is ready.").wait_for(timeout=PATIENCE)
        assert me.page.evaluate("document.activeElement.textContent") == "Your video"
        me.page.wait_for_timeout(1000)
        assert in_view(me, ".st-key-after video")
        assert me.page.locator(".st-key-after video").get_attribute("aria-label") == "Your video, after"
        assert not me.faults()


def test_two_visitors_know_nothing_of_each_other(browser: "Browser", app: App, given: tuple[Path, Path]) -> None:
    with Visitor(browser, app) as anna, Visitor(browser, app) as ben:
        anna.upload("face", given[0])
        anna.faces.first.wait_for()
        assert key_of(anna) != key_of(ben)
        assert all(re.fullmatch(r"[\w-]{22}", key_of(one)) for one in (anna, ben))
        ben.page.goto(f"{app.url}/?s={key_of(anna)[:-1]}x")
        ben.page.get_by_text("Your earlier files and result are gone").wait_for()
        assert key_of(ben) != key_of(anna)
        assert "portrait.png" not in ben.page.content()
        reload(anna)
        anna.page.get_by_text("portrait.png").wait_for()


def test_without_files_an_example_is_one_click_away_and_a_keyboard_will_do(browser: "Browser", app: App) -> None:
    with Visitor(browser, app) as me:
        example = me.page.get_by_role("button", name="Try it with an example face and voice")
        me.settle()
        example.focus()
        outline = "(one => one.outlineStyle + one.outlineWidth)(getComputedStyle(document.activeElement))"
        me.page.keyboard.press("Shift+Tab")
        me.page.keyboard.press("Tab")
        assert me.page.evaluate("document.activeElement.innerText") == "Try it with an example face and voice"
        assert me.page.evaluate(outline) == "solid3px", "one sees where one is"
        me.page.keyboard.press("Enter")
        me.faces.first.wait_for()
        me.page.locator("audio").wait_for()
        levels = me.page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4,h5')].map(one => +one.tagName[1])")
        assert levels[0] == 1
        assert all(after - before <= 1 for before, after in pairwise(levels))
        names = [name.strip() for name in me.page.get_by_role("button").all_inner_texts() if name.strip()]
        assert len(set(names)) == len(names), names
        assert me.page.evaluate("[...document.images].every(image => image.alt)")
        assert me.page.get_by_role("button", name="Make the video").is_enabled()
