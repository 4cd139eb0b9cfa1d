"""A fresh install in a real browser: every template opens readable and complete, and runs at the first click."""

import itertools
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from ..nodes.server import ROOT, ComfyServer, Installation
from .blueprints import BLUEPRINTS
from .browser import fetch_template, front_end, load_ui, open_template
from .flows import APPS, FACE, FLOWS, LEFT, PORTRAIT, RIGHT, TWO, VOICE
from .layout import TITLE

if TYPE_CHECKING:
    from playwright.sync_api import Page

PACK = "ComfyUI-LatentSync"
"""Without a blank: of such a folder ComfyUI serves neither templates nor web files."""
TITLES = [flow().title for flow in FLOWS.values()]
LEAST = 0.6
"""Scale at which titles and values can be read."""
ROOM = """() => {
  const { width, height } = app.canvas.canvas.getBoundingClientRect(), { scale, offset } = app.canvas.ds
  return { scale, room: [-offset[0], -offset[1], width / scale - offset[0], height / scale - offset[1]] }
}"""
BOXES = """title => app.graph.nodes.map(({ id, type, pos, size }) => {
  const element = document.querySelector(`[data-node-id="${id}"]`)?.getBoundingClientRect(), { scale } = app.canvas.ds
  const [width, height] = element?.height ? [element.width / scale, element.height / scale - title] : size
  return [String(id), type, [pos[0], pos[1] - title, pos[0] + width, pos[1] + height]]
})"""
NOTE = """() => {
  const text = document.querySelector('.comfy-markdown, .widget-markdown')
  const parts = [text, ...text.querySelectorAll('*')].filter((one) => one.clientHeight && !one.matches('textarea'))
  return [text.innerText, Math.max(...parts.map((one) => one.scrollHeight - one.clientHeight))]
}"""

TALL = """() => {
  for (const node of app.graph.nodes) if (node.type === 'LoadVideo') node.setSize([node.size[0], 700])
}"""
"""What a 9 : 16 video does to the node that loads it."""


@dataclass
class Fresh:
    server: ComfyServer
    page: "Page"

    def open(self, title: str) -> None:
        open_template(self.page, PACK, title)

    @contextmanager
    def nodes_2(self) -> Iterator[None]:
        """The loaded workflow, drawn by Vue."""
        switch = "on => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)"
        self.page.evaluate(switch, True)
        self.page.locator("[data-node-id]").first.wait_for()
        self.page.wait_for_timeout(700)  # every node has its height
        yield
        self.page.evaluate(switch, False)

    def complaints(self) -> list[str]:
        """Dialogs, toasts and nodes with a red frame."""
        said = self.page.locator(".p-dialog:visible, .p-toast-message:visible, [data-testid=error-overlay]:visible")
        broken = "() => app.graph.nodes.filter((node) => node.has_errors).map((node) => node.title)"
        return said.all_inner_texts() + self.page.evaluate(broken)

    def boxes(self) -> list[tuple[str, str, list[float]]]:
        return self.page.evaluate(BOXES, TITLE)

    def shorter(self) -> None:
        """The shortest of the samples as the speech: the longest takes a busy computer minutes."""
        self.page.evaluate(
            "name => { for (const n of app.graph.nodes) if (n.type === 'LoadAudio') n.widgets[0].value = name }", RIGHT
        )

    def run(self) -> dict[str, Any]:
        """Press Run and wait for the end: what /history says of it."""
        before = set(self.server.get("/history"))
        form = self.page.locator("canvas#graph-canvas").is_hidden()
        (self.page.get_by_text("Run", exact=True).last if form else self.page.get_by_test_id("queue-button")).click()
        end = time.monotonic() + 400
        while not (done := [one for key, one in self.server.get("/history").items() if key not in before]):
            assert time.monotonic() < end, "the run did not end"
            self.page.wait_for_timeout(300)
        assert done[0]["status"]["status_str"] == "success", done[0]["status"]["messages"][-1]
        return done[0]


@pytest.fixture(scope="module")
def fresh(comfyui: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fresh]:
    with (
        ComfyServer(comfyui, tmp_path_factory.mktemp("fresh"), packs={PACK: ROOT}) as server,
        front_end(server, 1600, 1000) as page,
    ):
        yield Fresh(server, page)


@pytest.fixture
def current(comfyui: Installation) -> None:
    """Forms, blueprints and Nodes 2.0, for which the layouts are made, came with subgraphs of packs."""
    if not (comfyui.path / "app" / "subgraph_manager.py").is_file():
        pytest.skip("This ComfyUI has neither app mode nor blueprints nor Nodes 2.0.")


def apart(boxes: list[tuple[str, str, list[float]]]) -> list[tuple[str, str]]:
    """Pairs that overlap."""
    return [
        (f"{a} {one}", f"{b} {two}")
        for (a, one, p), (b, two, q) in itertools.combinations(boxes, 2)
        if p[0] < q[2] and q[0] < p[2] and p[1] < q[3] and q[1] < p[3]
    ]


@pytest.mark.parametrize("title", TITLES)
def test_opens_readable(current, fresh, title):
    """Large enough, in view, nothing missing; nothing over anything, in the classic canvas and in Nodes 2.0."""
    fetch_template(fresh.page, PACK, title)
    assert fresh.complaints() == []
    seen, boxes = fresh.page.evaluate(ROOM), fresh.boxes()
    assert seen["scale"] >= LEAST
    left, top, right, bottom = seen["room"]
    for _, kind, (x0, y0, x1, y1) in boxes:
        assert left <= x0, kind
        assert top <= y0, kind
        assert x1 <= right, kind
        assert y1 <= bottom, kind
    assert apart(boxes) == []
    text, hidden = fresh.page.evaluate(NOTE)
    assert "Press Run to try it" in text
    assert hidden <= 0  # pixels of the note that would have to be scrolled to
    with fresh.nodes_2():
        assert apart(fresh.boxes()) == []
        assert fresh.page.evaluate(NOTE)[1] <= 0
    fresh.page.evaluate(TALL)
    assert apart(fresh.boxes()) == []


@pytest.mark.parametrize("title", ["1 Lip sync a video", "5 Score a video"])
def test_runs_at_the_first_click(fresh, title):
    fresh.open(title)
    fresh.shorter()
    done = fresh.run()
    kind = "latentsync_score" if "Score" in title else "images"
    assert any(kind in shown for shown in done["outputs"].values())


@pytest.mark.parametrize("title", APPS)
def test_opens_as_a_form(current, fresh, title):
    """App mode: the labels that people read, the samples as values, and no graph."""
    page = fresh.page
    fresh.open(title)
    assert fresh.complaints() == []
    source, name = ("Picture", PORTRAIT) if "portrait" in title else ("Video", FACE)
    for text in (source, name, "Speech", VOICE, "Who speaks", "Pick a face…", "Model", "nano"):
        assert page.get_by_text(text, exact=True).filter(visible=True).count() == 1, text
    assert page.locator("canvas#graph-canvas").is_hidden()


def test_a_form_runs_at_the_first_click(current, fresh):
    test_opens_as_a_form(current, fresh, "2 Talking portrait.app")
    fresh.shorter()
    fresh.run()


def test_blueprints_are_in_the_node_library(current, fresh):
    listed = fresh.server.get("/global_subgraphs")
    ours = {key: one for key, one in listed.items() if one["info"]["node_pack"].endswith(PACK)}
    assert {one["name"] for one in ours.values()} == {make().title for make in BLUEPRINTS}
    for key, one in ours.items():
        held = json.loads(fresh.server.get(f"/global_subgraphs/{key}")["data"])
        assert held["nodes"][0]["title"] == one["name"]
        assert held["definitions"]["subgraphs"][0]["id"] == held["nodes"][0]["type"]


FILES = {"video": ("LoadVideo", FACE), "image": ("LoadImage", PORTRAIT), "speech": ("LoadAudio", RIGHT)}
FILES |= {"voice_left": ("LoadAudio", LEFT), "voice_right": ("LoadAudio", RIGHT)}
WIRE = """([files]) => {
  const node = app.graph.nodes.find((one) => one.subgraph)
  const made = node.inputs.filter((slot) => !slot.widget).map((slot) => {
    const [kind, file] = files[slot.label ?? slot.name], source = LiteGraph.createNode(kind)
    app.graph.add(source)
    source.pos = [node.pos[0] - 400, node.pos[1]]
    source.widgets[0].value = file
    source.connect(0, node, node.inputs.indexOf(slot))
    return slot.label
  })
  const save = LiteGraph.createNode('SaveVideo')
  app.graph.add(save)
  node.connect(0, save, 0)
  return [made, node.inputs.filter((slot) => slot.widget).map((slot) => slot.name)]
}"""


@pytest.mark.parametrize("make", BLUEPRINTS, ids=lambda make: make.__name__)
def test_a_blueprint_runs_as_one_node(current, fresh, make):
    """Added from the node library, wired to files; its widgets reach what is inside."""
    page, title = fresh.page, make().title
    load_ui(page, {"version": 0.4, "nodes": [], "links": [], "last_node_id": 0, "last_link_id": 0})
    page.evaluate("() => app.extensionManager.sidebarTab.toggleSidebarTab('node-library')")
    page.get_by_placeholder("Search").first.fill(title)
    page.get_by_text(title, exact=True).last.click()
    page.mouse.click(1000, 500)
    page.evaluate("() => app.extensionManager.sidebarTab.toggleSidebarTab('node-library')")
    page.wait_for_function("() => app.graph.nodes.some((node) => node.subgraph)")
    files = FILES | ({"video": ("LoadVideo", TWO)} if title == "Two people" else {})
    sockets, widgets = page.evaluate(WIRE, [files])
    assert set(sockets) <= set(files)
    assert "checkpoint" in widgets
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    kinds = {node["class_type"] for node in prompt.values()}
    inside = {"LatentSyncSpeakers"} if title == "Two people" else {"LatentSyncLoader", "CreateVideo"}
    assert kinds >= inside | {"SaveVideo"}
    page.evaluate(
        "() => { app.graph.nodes.find((one) => one.subgraph).widgets.find((w) => w.name === 'seed').value = 77 }"
    )
    seeds = [
        n["inputs"]["seed"]
        for n in page.evaluate("async () => (await app.graphToPrompt()).output").values()
        if "seed" in n["inputs"]
    ]
    assert set(seeds) == {77}
    if title == "Two people":
        (made,) = (node for node in prompt.values() if node["class_type"] == "LatentSyncSpeakers")
        voices = [prompt[made["inputs"][f"speakers.voice_{n}"][0]]["inputs"]["audio"] for n in (1, 2)]
        assert voices == [LEFT, RIGHT]
    else:
        fresh.run()
