"""The workflows on the canvas of the real front end: the same graphs as their API twins, laid out to be read."""

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest

from .api import FOLDER, as_shipped
from .browser import as_prompt, front_end, graph_of, load_ui
from .flows import APPS, FLOWS

TITLE = 30
"""Height of a node's title, which lies above its position."""


def workflow(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{FLOWS[name]().title}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(comfy) -> Iterator[Any]:
    with front_end(comfy) as page:
        yield page


@pytest.mark.parametrize("name", FLOWS)
def test_the_same_graph_as_its_twin(page, name):
    """Every node, wire and widget value, and nothing complains."""
    load_ui(page, workflow(name))
    twin = as_shipped(name).prompt
    assert graph_of(as_prompt(page), twin) == graph_of(twin, twin)
    page.wait_for_timeout(500)
    assert page.locator(".p-dialog:visible, .p-toast-message:visible").count() == 0
    shown = page.evaluate("() => app.graph.nodes.map(n => [n.type, n.has_errors ?? false])")
    assert not [kind for kind, broken in shown if broken]
    assert len(shown) == len(twin) + 1  # and the note


GROW = {"LoadVideo", "LoadImage", "PreviewImage", "SaveVideo", "KSampler"} | {
    f"LatentSync{name}" for name in ("Sampler", "FindFaces", "LipSync", "Video", "Speakers", "Score")
}
"""Nodes that get taller: for the file that they show, or for what a run shows."""


@pytest.mark.parametrize("name", FLOWS)
def test_nothing_lies_below_what_grows(name):
    boxes = [(n["type"], box(n)) for n in workflow(name)["nodes"]]
    for kind, one in boxes:
        if kind not in GROW:
            continue
        below = [other for other, two in boxes if two[1] >= one[3] and two[0] < one[2] and one[0] < two[2]]
        assert not below, (name, kind)


@pytest.mark.parametrize("title", APPS)
def test_a_form_asks_for_what_there_is(title):
    """Of every widget that it shows there is one, and a label that reads well."""
    sheet = json.loads((FOLDER / f"{title}.json").read_text(encoding="utf-8"))
    nodes = {str(node["id"]): node for node in sheet["nodes"]}
    assert sheet["extra"]["linearMode"] is True
    data = sheet["extra"]["linearData"]
    for node, name in data["inputs"]:
        slots = {slot["widget"]["name"]: slot for slot in nodes[node]["inputs"] if "widget" in slot}
        if name != "pick_face":  # a button of ours, which is no input
            assert slots[name]["label"][0].isupper()
    assert [nodes[node]["type"] for node in data["outputs"]] == ["SaveVideo"]


@pytest.mark.parametrize("name", FLOWS)
def test_layout(name):
    """Nothing overlaps, every node lies in a titled group, no wire runs to a column further left."""
    sheet = workflow(name)
    boxes = {n["id"]: box(n) for n in sheet["nodes"]}
    for (a, one), (b, two) in itertools.combinations(boxes.items(), 2):
        assert one[2] <= two[0] or two[2] <= one[0] or one[3] <= two[1] or two[3] <= one[1], (name, a, b)
    frames = [(x, y, x + w, y + h) for x, y, w, h in (group["bounding"] for group in sheet["groups"])]
    note = [n for n in sheet["nodes"] if n["type"] == "MarkdownNote"]
    for node, (x0, y0, x1, y1) in boxes.items():
        inside = [f for f in frames if f[0] <= x0 and f[1] <= y0 and x1 <= f[2] and y1 <= f[3]]
        assert len(inside) == (0 if node == note[0]["id"] else 1), (name, node)
    for _, source, _, target, *_ in sheet["links"]:
        assert boxes[source][0] <= boxes[target][0], (name, source, target)
    assert all(group["title"] for group in sheet["groups"])
    assert "**Run**" in note[0]["widgets_values"][0]
    assert len(note) == 1


def box(node: dict[str, Any]) -> tuple[float, float, float, float]:
    (x, y), (w, h) = node["pos"], node["size"]
    return x, y - TITLE, x + w, y + h
