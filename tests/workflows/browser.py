"""ComfyUI's front end in a headless browser: workflows loaded, laid out and read back as a user would have them."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ..nodes.server import ComfyServer

if TYPE_CHECKING:
    from playwright.sync_api import Page

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.UseNewMenu": "Top",
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Graph.CanvasMenu": False,
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.LinkMarkers": 0,
    "LiteGraph.Canvas.LowQualityRenderingZoomThreshold": 0.1,
}
"""No welcome, and text that can be read in a picture of the whole graph."""
READY = "() => !!(window.app?.graph && window.app.extensionManager && LiteGraph.registered_node_types.LatentSyncScore)"


def find_browser() -> str | None:
    """What BROWSER_PATH names, else a Chromium or Chrome of this machine."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("BROWSER_PATH") or next(filter(None, map(shutil.which, names)), None)


@contextmanager
def front_end(
    server: ComfyServer, width: int = 1600, height: int = 900, *, patience: int = 120_000
) -> "Iterator[Page]":
    """A page with the front end, ready; the test is skipped, saying so, without playwright and a browser.

    patience: milliseconds until it must be ready.
    """
    api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    browser = find_browser()
    if browser is None:
        pytest.skip("No Chromium or Chrome here; BROWSER_PATH names one.")
    server.post("/settings", SETTINGS)
    with api.sync_playwright() as play:
        running = play.chromium.launch(executable_path=browser, args=ARGUMENTS)
        page = running.new_page(viewport={"width": width, "height": height})
        page.goto(server.url, timeout=patience)
        page.wait_for_function(READY, timeout=patience)
        yield page
        running.close()


def load_api(page: "Page", prompt: dict[str, Any], name: str) -> None:
    page.evaluate("async ([p, n]) => { await app.loadApiJson(p, n) }", [prompt, name])


def load_ui(page: "Page", workflow: dict[str, Any]) -> None:
    page.evaluate("async (w) => { await app.loadGraphData(w) }", workflow)


def as_prompt(page: "Page") -> dict[str, Any]:
    """What Run would send."""
    return page.evaluate("async () => (await app.graphToPrompt()).output")


def open_template(page: "Page", pack: str, title: str) -> None:
    """As a user does: the template browser, the pack, the card."""
    page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    dialog = page.get_by_role("dialog").last
    dialog.get_by_text(pack, exact=True).first.click()
    dialog.get_by_text(title, exact=True).first.click()
    page.wait_for_function("title => document.title.includes(title)", arg=title.removesuffix(".app"))
    page.wait_for_timeout(1500)  # previews have their sizes, and what is missing has been looked for
    tour = page.get_by_test_id("coach-landing")
    if tour.count():  # the front end's own, of app mode
        tour.get_by_text("Skip", exact=True).click()
        tour.wait_for(state="hidden")


def fetch_template(page: "Page", pack: str, title: str) -> None:
    """What the template browser does for a click on a card, without drawing its hundreds of cards."""
    page.evaluate(
        """async ([pack, title]) => {
          const address = `/api/workflow_templates/${pack}/${encodeURIComponent(title)}.json`
          const workflow = await (await fetch(address)).json()
          await app.loadGraphData(workflow, true, true, title, { openSource: 'template' })
        }""",
        [pack, title],
    )
    page.wait_for_timeout(1500)


def arrange(page: "Page", what: str, *values: Any) -> Any:
    """Call one of the functions of arrange.js."""
    script = (Path(__file__).parent / "arrange.js").read_text(encoding="utf-8")
    return page.evaluate(f"values => ({script})['{what}'](...values)", list(values))


def graph_of(prompt: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    """A prompt as its nodes' kinds, titles and the inputs that its twin names; hosts add some of their own."""
    out = {}
    for node, said in prompt.items():
        named = like.get(node, {}).get("inputs", {})
        own = {name: value for name, value in said["inputs"].items() if name in named}
        out[node] = (said["class_type"], said["_meta"]["title"], own)
    return out
