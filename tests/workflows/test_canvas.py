"""The workflows on the canvas of the real front end: the same graphs as their API twins, laid out to be read."""

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest

from .api import FOLDER, api
from .browser import as_prompt, front_end, graph_of, load_ui
from .flows import FLOWS

TITLE = 30
"""Height of a node's title, which lies above its position."""


def workflow(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(comfy) -> Iterator[Any]:
    with front_end(comfy) as page:
        yield page


@pytest.fixture(scope="module")
def known(comfy) -> dict[str, Any]:
    return comfy.object_info()


@pytest.mark.parametrize("name", FLOWS)
def test_the_same_graph_as_its_twin(page, known, name):
    """Every node, wire and widget value; the files that it names are not there, and nothing complains of that."""
    load_ui(page, workflow(name))
    assert graph_of(as_prompt(page), known) == graph_of(api(name).prompt, known)
    page.wait_for_timeout(500)
    assert page.locator(".p-dialog:visible, .p-toast-message:visible").count() == 0
    shown = page.evaluate("() => app.graph.nodes.map(n => [n.type, n.has_errors ?? false])")
    assert not [kind for kind, broken in shown if broken]
    assert len(shown) == len(api(name).prompt) + 1  # and the note


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
    assert "Run" in note[0]["widgets_values"][0]
    assert len(note) == 1


def box(node: dict[str, Any]) -> tuple[float, float, float, float]:
    (x, y), (w, h) = node["pos"], node["size"]
    return x, y - TITLE, x + w, y + h
