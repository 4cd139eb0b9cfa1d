"""The pictures of the app in docs/screens, and what stands on the page in each; make pictures calls it."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..docs.record import RECORD, keep
from ..nodes.clips import VOICE
from ..workflows.samples import SAMPLES
from .stage import NARROW, PATIENCE, WIDE, App, Visitor, chromium, spoken

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SECOND = 0.8
"""Seconds of the second voice."""
MOUTH_OPEN = 0.4
"""Second of the result."""
MOMENT = "at => { for (const video of document.querySelectorAll('video')) video.currentTime = at }"
HEIGHT = """() => {
  const main = document.querySelector('[data-testid=stMain]')
  main.scrollTo(0, 0)
  return Math.ceil(main.querySelector('[data-testid=stVerticalBlock]').getBoundingClientRect().bottom + 48)
}"""
WORDS = """() => {
  const style = document.head.appendChild(document.createElement('style'))
  const left_out = ['[data-testid=stIconMaterial]', '[data-testid=stFileUploaderDropzone]', '[role=slider] *']
  style.textContent = left_out.join(', ') + ' { display: none !important }'
  const text = document.querySelector('[data-testid=stMain]').innerText
  style.remove()
  return text.split('\\n').map(line => line.trim()).filter(Boolean)
}"""
"""The lines of text on the page, without the symbols of fonts and without Streamlit's own about uploads."""
FIELDS = """() => Object.fromEntries(
  [...document.querySelectorAll('.stNumberInput, .stSelectbox, .stSlider, .stRadio, .stTextInput, .stCheckbox')]
    .filter(one => one.checkVisibility({ visibilityProperty: true })).map(one => {
      const label = one.querySelector('[data-testid=stWidgetLabel]')?.innerText.trim()
      const find = selector => one.querySelector(selector)
      const chosen = find('input:checked')?.closest('label') ?? find('[data-baseweb=select]')
      const typed = find('[role=slider]')?.getAttribute('aria-valuenow') ?? find('input')?.value
      if (one.matches('.stCheckbox')) return [label, String(find('input').checked)]
      return [label, (chosen?.innerText ?? typed ?? '').trim()]
    })
)"""
"""Label and value of what can be filled in and is seen."""


def words(visitor: Visitor) -> dict[str, Any]:
    return {"text": visitor.page.evaluate(WORDS), "fields": visitor.page.evaluate(FIELDS)}


def height(page: "Page") -> int:
    """Of all that is on it, when nothing unfolds any more."""
    found = [0]
    while len(found) < 2 or found[-1] != found[-2]:
        page.wait_for_timeout(1000)
        found.append(page.evaluate(HEIGHT))
    return found[-1]


def take(visitor: Visitor, name: str, *, whole: bool = True) -> None:
    """whole: the page down to its end, from its beginning; else what the window shows."""
    page = visitor.page
    before = page.viewport_size or WIDE
    if whole:
        page.set_viewport_size({"width": before["width"], "height": height(page)})
    page.mouse.move(0, 0)
    page.wait_for_timeout(2000)
    shot, said = page.screenshot(), words(visitor)
    keep(RECORD.parent / f"app_{name}.jpg", shot, {"page": name, **said})
    page.set_viewport_size(before)


def one_voice(browser: "Browser", app: App, clip: Path, voice: Path) -> None:
    """Two files given, a face chosen, the run and its result, wide and narrow."""
    with Visitor(browser, app) as me:
        me.give(clip, voice)
        me.faces.nth(1).click()
        me.page.locator(".stage button[data-face='1'][aria-pressed=true]").wait_for()
        me.settle()
        take(me, "ready")
        me.start()
        me.page.get_by_text(re.compile(r"making the mouth · [1-9]")).wait_for(timeout=PATIENCE)
        take(me, "running")
        me.watch()
        me.page.get_by_text("Do the lips follow the voice?").click(timeout=PATIENCE)
        me.page.get_by_alt_text("A chart of mouth opening and loudness").wait_for(timeout=PATIENCE)
        me.settle()
        me.page.evaluate(MOMENT, MOUTH_OPEN)
        take(me, "result")
        me.page.set_viewport_size(NARROW)
        me.page.get_by_role("heading", name="Your video").evaluate("one => one.scrollIntoView()")
        take(me, "narrow", whole=False)


def two_voices(browser: "Browser", app: App, clip: Path, voice: Path, other: Path) -> None:
    """What nobody needs to open: the settings of the mouth, and a second voice."""
    with Visitor(browser, app) as me:
        me.give(clip, voice)
        me.settle()
        me.more("Mouth")
        take(me, "advanced")
        me.more("More voices")
        me.upload("other", other)
        me.page.get_by_role("spinbutton", name="Begins at second").wait_for()
        me.settle()
        take(me, "voices")


def main(folder: Path) -> None:
    """folder: for what is uploaded and made."""
    (folder / "app").mkdir()
    clip, voice = SAMPLES / "two_people.mp4", VOICE
    other = spoken(folder / "second.wav", SECOND)
    with chromium() as browser, App(folder / "app") as app:
        one_voice(browser, app, clip, voice)
        two_voices(browser, app, clip, voice, other)
