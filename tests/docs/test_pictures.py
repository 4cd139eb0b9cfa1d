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
from .nodes import ADVANCED
from .pages import ROOT, pages
from .record import LARGEST, shown

SHOWN = shown()
SCENES = {name: said for name, said in SHOWN.items() if "scene" in said}
PREFIX = "LatentSync"
RESULTS = {"web/docs/img/personalize.jpg"}
"""What a training made, beside the pictures of the product."""
FRONT_END = ("control_after_generate", "upload", "audioUI")
"""Widgets that ComfyUI adds."""


def locale(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "locales" / "en" / f"{name}.json").read_text(encoding="utf-8"))


def described(kind: str) -> tuple[dict[str, str], set[str]]:
    """Defaults of a node's inputs, the engine's where they are settings, and which inputs are folded away.

    As docs/nodes.md has them, which a test holds to the nodes.
    """
    section = pages()["docs/nodes.md"].split(f"\n## {NODES[kind].title}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| \*?(\w+)\*?( \(.*\))? \| .*? \| (?:`(.*?)`)? \| ", section, re.MULTILINE)
    usual = {name: str(getattr(Settings(), name)) if name in SETTINGS else value for name, _, value in rows}
    return usual, {name for name, mark, _ in rows if mark == ADVANCED}


def same(one: Any, other: Any) -> bool:
    """0 and 0.0 are the same to whoever looks."""
    try:
        return float(one) == float(other)
    except (TypeError, ValueError):
        return str(one) == str(other)


def outdated(node: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """What a picture shows of one of our nodes and today's would not. given: values that are not the defaults."""
    words, out = locale("nodeDefs")[node["type"]], []
    usual, folded = described(node["type"])
    seen = {name: label for name, label in node["inputs"].items() if "." not in name and name not in FRONT_END}
    today = {name: said["name"] for name, said in words["inputs"].items() if name not in folded}
    out += [f"input {name}: {label}" for name, label in today.items() - seen.items()]
    out += [f"no input {name}: {label} any more" for name, label in seen.items() - today.items()]
    wanted = usual | {name: value for name, value in given.items() if not isinstance(value, list)}
    for name, value in node["values"].items():
        if name not in FRONT_END and not same(value, wanted.get(name, value)):
            out.append(f"{name} = {wanted[name]}, not {value}")
    if node["fold"] != (locale("main")["latentsync"]["show_advanced"] if folded else None):
        out.append(f"fold {node['fold']}")
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


def workflow(title: str) -> dict[str, Any]:
    return json.loads((ROOT / "example_workflows" / f"{title}.json").read_text(encoding="utf-8"))


def saved(node: dict[str, Any]) -> dict[str, Any]:
    """Values of the inputs of a node in a workflow, by name."""
    names = [slot["widget"]["name"] for slot in node["inputs"] if "widget" in slot]
    if "seed" in names:
        names.insert(names.index("seed") + 1, "control_after_generate")
    return dict(zip(names, node["widgets_values"], strict=True))


def test_a_template_shows_todays_values_and_titles() -> None:
    """As the workflow's JSON has them, node by node; inputs that are newer than it have their defaults."""
    said = SHOWN["docs/screens/template_dark.jpg"]
    drawn = {str(node["id"]): node for node in workflow(said["template"])["nodes"]}
    assert drawn.keys() == said["nodes"].keys()
    for id_, node in drawn.items():
        seen = said["nodes"][id_]
        assert seen["type"] == node["type"]
        assert node.get("title") in (None, seen["title"]), "make pictures"
        if node["type"].startswith(PREFIX):
            assert outdated(seen, saved(node)) == [], "make pictures"
        else:
            values = node.get("widgets_values") or []
            assert all(value in values for name, value in seen["values"].items() if name not in FRONT_END)


def test_the_form_shows_todays_labels_and_values() -> None:
    said = SHOWN["docs/screens/app_mode.jpg"]
    drawn = workflow(said["template"])
    nodes = {str(node["id"]): node for node in drawn["nodes"]}
    labels = {
        (id_, slot["name"]): slot["label"] for id_, node in nodes.items() for slot in node["inputs"] if "label" in slot
    }
    for id_, name in drawn["extra"]["linearData"]["inputs"]:
        if (id_, name) in labels:
            assert {labels[id_, name], str(saved(nodes[id_])[name])} <= set(said["words"]), "make pictures"


@pytest.mark.parametrize("name", ["docs/screens/pick_dark.jpg", "web/docs/img/video.jpg"])
def test_words_of_our_own_panels_are_todays(name: str) -> None:
    ours = [text for text in leaves(locale("main")) if text]
    ours.append(f"{locale('main')['latentsync']['now']} {{choice}}")
    patterns = [re.sub(r"\\\{\w+\\\}", ".*", re.escape(text)) for text in ours]
    words = [line for line in SHOWN[name]["words"] if line]
    unknown = [line for line in words if not any(re.fullmatch(pattern, line) for pattern in (*patterns, r"\d"))]
    assert words
    assert not unknown, "make pictures"


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
