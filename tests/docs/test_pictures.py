"""Pictures of the product show the product of today; where they do not: make pictures.

docs/screens/pictures.json says what each one shows. Those of the app: tests/webapp/test_pictures.py.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from latentsync.settings import Settings

from ..nodes.table import NODES
from ..nodes.test_schema import SETTINGS
from ..web import pictures as scenes
from ..workflows.thumbnails import PICTURES, made_with
from .pages import ROOT, pages
from .record import LARGEST, shown

SHOWN = shown()
SCENES = {name: said for name, said in SHOWN.items() if "scene" in said}
TEMPLATES = {name: said for name, said in SHOWN.items() if "template" in said}
PREFIX = "LatentSync"
RESULTS = {"web/docs/img/personalize.jpg"}
"""What a training made, beside the pictures of the product."""
FRONT_END = ("control_after_generate", "upload", "audioUI")
"""Widgets that ComfyUI adds."""


def locale(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "locales" / "en" / f"{name}.json").read_text(encoding="utf-8"))


def defaults(kind: str) -> dict[str, str]:
    """Input: default, as docs/nodes.md says, which a test holds to the nodes; the engine's where it is a setting."""
    section = pages()["docs/nodes.md"].split(f"\n## {NODES[kind].title}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| \*?(\w+)\*? \| .*? \| (?:`(.*?)`)? \| ", section, re.MULTILINE)
    return {name: str(getattr(Settings(), name)) if name in SETTINGS else usual for name, usual in rows}


def same(one: Any, other: Any) -> bool:
    """0 and 0.0 are the same to whoever looks."""
    try:
        return float(one) == float(other)
    except (TypeError, ValueError):
        return str(one) == str(other)


def outdated(node: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """What a picture shows of one of our nodes and today's would not. given: the inputs that the scene names."""
    words, out = locale("nodeDefs")[node["type"]], []
    seen = {name: label for name, label in node["inputs"].items() if "." not in name and name not in FRONT_END}
    today = {name: said["name"] for name, said in words["inputs"].items()}
    out += [f"input {name}: {label}" for name, label in today.items() - seen.items()]
    out += [f"no input {name}: {label} any more" for name, label in seen.items() - today.items()]
    wanted = defaults(node["type"]) | {name: value for name, value in given.items() if not isinstance(value, list)}
    for name, value in node["values"].items():
        if name not in FRONT_END and not same(value, wanted.get(name, value)):
            out.append(f"{name} = {wanted[name]}, not {value}")
    outputs = [said["name"] for said in words["outputs"].values()]
    return out + ([] if outputs == node["outputs"] else [f"outputs {outputs}"])


@pytest.mark.parametrize("name", SCENES)
def test_nodes_show_todays_inputs_and_defaults(name: str) -> None:
    said = SCENES[name]
    graph, *_ = getattr(scenes, said["scene"])("clip.mp4")
    ours = {id_: node for id_, node in said["nodes"].items() if node["type"].startswith(PREFIX)}
    assert ours
    for id_, node in ours.items():
        now = graph.prompt[id_]
        assert (node["type"], node["title"]) == (now["class_type"], locale("nodeDefs")[node["type"]]["display_name"])
        assert outdated(node, now["inputs"]) == [], "make pictures"


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_show_todays_values_and_titles(name: str) -> None:
    """As the workflow's JSON has them, node by node; inputs that are newer than it have their defaults."""
    path = ROOT / "example_workflows" / f"{TEMPLATES[name]['template']}.json"
    drawn = json.loads(path.read_text(encoding="utf-8"))
    nodes = TEMPLATES[name]["nodes"]
    assert {str(node["id"]) for node in drawn["nodes"]} == set(nodes)
    for node in drawn["nodes"]:
        said = nodes[str(node["id"])]
        assert said["type"] == node["type"]
        assert node.get("title") in (None, said["title"]), "make pictures"
        saved = node.get("widgets_values") or []
        if not node["type"].startswith(PREFIX):
            assert all(value in saved for name, value in said["values"].items() if name not in FRONT_END)
            continue
        assert list(said["values"].values())[: len(saved)] == saved, "make pictures"
        labels = {slot["name"]: slot["label"] for slot in node["inputs"] if "label" in slot}
        words = {key: one["name"] for key, one in locale("nodeDefs")[node["type"]]["inputs"].items()}
        seen = said["inputs"] | {key: words[key] for key in labels}
        given = dict(zip(said["values"], saved, strict=False))
        assert outdated({**said, "inputs": seen}, given) == [], "make pictures"


def test_words_of_dialogs_are_todays() -> None:
    """Of our own dialog, and of the form that app mode makes of a workflow."""
    ours = [text for text in leaves(locale("main")) if text]
    ours.append(f"{locale('main')['latentsync']['now']} {{choice}}")
    patterns = [re.sub(r"\\\{\w+\\\}", ".*", re.escape(text)) for text in ours]
    picked = SHOWN["docs/screens/pick_dark.jpg"]["words"]
    unknown = [line for line in picked if not any(re.fullmatch(pattern, line) for pattern in (*patterns, r"\d"))]
    assert not unknown, "make pictures"
    form = SHOWN["docs/screens/app_mode.jpg"]
    path = ROOT / "example_workflows" / f"{form['template']}.json"
    nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
    asked = {slot["label"] for node in nodes for slot in node.get("inputs", []) if slot.get("label")}
    assert asked <= set(form["words"]), "make pictures"


def leaves(words: Any) -> list[str]:
    return [words] if isinstance(words, str) else [text for below in words.values() for text in leaves(below)]


def test_pictures_of_templates_are_made_by_todays_model_and_settings() -> None:
    for title in PICTURES:
        assert SHOWN[f"example_workflows/{title}.jpg"] == {"made with": made_with()}, "make pictures"


def test_every_picture_is_in_the_record_and_on_a_page() -> None:
    folders = ("docs/screens", "web/docs/img", "example_workflows")
    found = {path.relative_to(ROOT).as_posix() for folder in folders for path in (ROOT / folder).glob("*.jpg")}
    assert found - RESULTS == set(SHOWN)
    written = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "web" / "docs").glob("*.md"))
    written += "\n".join(pages().values())
    assert not [
        name for name in found if Path(name).parts[0] in ("docs", "web") and f"/{Path(name).name})" not in written
    ]
    assert all((ROOT / name).stat().st_size < LARGEST for name in found)


def test_another_default_or_input_is_noticed() -> None:
    found = [node for said in SCENES.values() for node in said["nodes"].values() if node["type"].startswith(PREFIX)]
    node = next(one for one in found if "seed" in one["values"])
    assert outdated(node, node["values"]) == []
    assert outdated(node, node["values"] | {"seed": 5}) == [f"seed = 5, not {node['values']['seed']}"]
    less = {name: label for name, label in node["inputs"].items() if name != "seed"}
    assert outdated({**node, "inputs": less}, node["values"]) == ["input seed: seed"]
