"""docs/nodes.md says what the nodes' schemas say."""

import json

from ..nodes.server import ComfyServer
from ..nodes.table import NODES
from .nodes import ADVANCED, PAGE, reference
from .pages import ROOT


def test_the_page_is_up_to_date(comfy: ComfyServer) -> None:
    """Where it is not: python -m tests.docs.nodes"""
    page, today = PAGE.read_text(encoding="utf-8"), reference(comfy.object_info())
    assert today == (page if f"{ADVANCED} |" in today else page.replace(f"{ADVANCED} |", " |"))


def test_it_has_all_the_words() -> None:
    """Without ComfyUI too: what the schemas say is also in locales/en."""
    page = PAGE.read_text(encoding="utf-8").replace("\\|", "|")
    words = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    assert set(words) == set(NODES)
    for name, node in words.items():
        assert f"## {NODES[name].title}\n\n{node['description']}" in page
        for told in (*node["inputs"].values(), *node["outputs"].values()):
            assert told["tooltip"] in page, (name, told)
