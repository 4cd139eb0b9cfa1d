"""Write example_workflows/ anew: python -m tests.workflows.build [name …]

The API files come from flows.py, the others from ComfyUI's own front end; needs ComfyUI, playwright and a browser.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..nodes.server import ROOT, ComfyServer, find_comfyui
from .browser import arrange, front_end, load_api
from .flows import APPS, FLOWS, Form, Sheet, filled
from .layout import TITLE, Sizes, lay_out

if TYPE_CHECKING:
    from playwright.sync_api import Page

FOLDER = ROOT / "example_workflows"
NARROW = 270
WIDTH = {
    "LatentSyncLipSync": 340,
    "LatentSyncVideo": 360,
    "LatentSyncSpeakers": 360,
    "LatentSyncScore": 420,
    "LatentSyncFindFaces": 340,
}
"""What is wider than the others: what has a panel of ours after a run."""
FIXED = {
    "LoadImage": (NARROW, 380),
    "LoadVideo": (NARROW, 370),
    "LoadAudio": (NARROW, 136),
    "PreviewImage": (460, 460),
    "SaveVideo": (300, 420),
}
"""Sizes that do not depend on the file that is shown."""


def build(names: list[str]) -> None:
    with front_end_of_a_new_server() as (page, known):
        for name in names:
            sheet = (FLOWS | APPS)[name]()
            prompt = filled(sheet.flow.prompt, known)
            if name in FLOWS:
                save(FOLDER / "api" / f"{name}.json", prompt)
                save(FOLDER / f"{sheet.title}.json", drawn(page, sheet, prompt))
            else:
                save(FOLDER / f"{name}.json", as_app(drawn(page, sheet, prompt), sheet.form))


@contextmanager
def front_end_of_a_new_server() -> "Iterator[tuple[Page, dict[str, Any]]]":
    """A page, and what /object_info says."""
    found = find_comfyui()
    if found is None:
        sys.exit("No ComfyUI here: COMFYUI_PATH names its folder, COMFYUI_PYTHON the Python that has its packages.")
    with (
        tempfile.TemporaryDirectory() as folder,
        ComfyServer(found, Path(folder), packs={"ComfyUI-LatentSync": ROOT}) as server,
        front_end(server) as page,
    ):
        yield page, server.object_info()


def drawn(page: "Page", sheet: Sheet, prompt: dict[str, Any]) -> dict[str, Any]:
    """The workflow as the front end saves it."""
    sizes = measured(page, prompt)
    load_api(page, prompt, sheet.title)
    placed = lay_out(sheet.layout, sizes)
    drawing = {"nodes": placed.nodes, "groups": placed.groups, "note": placed.note, "text": sheet.note}
    return json.loads(arrange(page, "place", drawing))


def measured(page: "Page", prompt: dict[str, Any]) -> Sizes:
    """Of every node, in the classic canvas and in Nodes 2.0."""
    nodes_2(page, on=True)
    load_api(page, prompt, "measured")
    page.wait_for_timeout(2000)
    high = dict(arrange(page, "heights"))
    nodes_2(page, on=False)
    load_api(page, prompt, "measured")
    page.wait_for_timeout(1000)
    out: Sizes = {}
    for node, (width, height) in arrange(page, "sizes"):
        kind = prompt[node]["class_type"]
        width, height = FIXED.get(kind, (max(WIDTH.get(kind, NARROW), width), height))
        out[node] = (width, height, max(height + TITLE, high[node]))
    return out


def nodes_2(page: "Page", *, on: bool) -> None:
    page.evaluate("on => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", on)


def as_app(workflow: dict[str, Any], form: Form | None) -> dict[str, Any]:
    """The same, opening as a form (extra.linearMode); an older front end shows the graph."""
    if form is None:
        raise ValueError("This workflow has no form.")
    nodes = {str(node["id"]): node for node in workflow["nodes"]}
    for node, widget, label in form.asked:
        for slot in nodes[node.id].get("inputs", []):
            if slot.get("widget", {}).get("name") == widget:
                slot["label"] = label
    asked = [[node.id, widget] for node, widget, _ in form.asked]
    extra = {"linearMode": True, "linearData": {"inputs": asked, "outputs": [form.result.id]}}
    return workflow | {"extra": workflow.get("extra", {}) | extra}


def save(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    build(sys.argv[1:] or [*FLOWS, *APPS])
