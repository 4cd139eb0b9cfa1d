"""Words: every language says all that the schemas and the extension say, and every node has a help page."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ..nodes.server import ROOT, ComfyServer
from ..nodes.table import NODES

LANGUAGES = ("en", "zh")
SAY = re.compile(r'\bsay\(\s*"(\w+)",\s*"((?:[^"\\]|\\.)*)"')
"""say("key", "English") in web/js."""
SYNTAX = re.compile(r"[{}|]|@[.:]")
"""What vue-i18n does not take for plain text."""
PICTURE = re.compile(r"!\[([^\]]+)\]\(([^)]+)\)")


def locale(language: str, name: str) -> dict[str, Any]:
    return json.loads((ROOT / "locales" / language / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def schemas(comfy: ComfyServer) -> dict[str, Any]:
    """Our nodes in /object_info."""
    return {name: said for name, said in comfy.object_info().items() if name.startswith("LatentSync")}


def in_english(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema's words, as nodeDefs.json has them."""
    named = [pair for kind in ("required", "optional") for pair in schema["input"].get(kind, {}).items()]
    named = [(key, spec) for key, spec in named if "." not in key]  # older ComfyUI has those of a count beside it
    outputs = zip(schema["output_name"], schema["output_tooltips"], strict=True)
    return {
        "display_name": schema["display_name"],
        "description": schema["description"],
        "inputs": {
            key: {"name": spec[1].get("display_name") or key, "tooltip": spec[1]["tooltip"]} for key, spec in named
        },
        "outputs": {str(i): {"name": name, "tooltip": tip} for i, (name, tip) in enumerate(outputs)},
    }


def leaves(words: Any, path: str = "") -> dict[str, str]:
    if isinstance(words, str):
        return {path: words}
    return {key: text for name, below in words.items() for key, text in leaves(below, f"{path}/{name}").items()}


def test_english_is_what_the_schemas_say(schemas: dict[str, Any]) -> None:
    """LATENTSYNC_WRITE=1 writes the file anew."""
    said = {name: in_english(schema) for name, schema in schemas.items()}
    if os.environ.get("LATENTSYNC_WRITE") == "1":
        text = json.dumps(said, indent=2, ensure_ascii=False) + "\n"
        (ROOT / "locales" / "en" / "nodeDefs.json").write_text(text, encoding="utf-8")
    assert len(said) == len(NODES)
    assert locale("en", "nodeDefs") == said


@pytest.mark.parametrize("name", ["nodeDefs", "main", "commands"])
def test_chinese_is_complete(name: str) -> None:
    english, chinese = leaves(locale("en", name)), leaves(locale("zh", name))
    assert chinese.keys() == english.keys()
    assert all(chinese.values())
    for key in english:
        assert sorted(re.findall(r"\{\w+\}", chinese[key])) == sorted(re.findall(r"\{\w+\}", english[key])), key


def test_chinese_follows_the_english_numbers() -> None:
    """Sizes, limits and codes stand in both; a text that was changed in one language only shows here."""
    english, chinese = leaves(locale("en", "nodeDefs")), leaves(locale("zh", "nodeDefs"))
    numbers = re.compile(r"\d+(?:\.\d+)+|\d{2,}")
    for key in english:
        assert set(numbers.findall(chinese[key])) == set(numbers.findall(english[key])), key


@pytest.mark.parametrize("language", LANGUAGES)
def test_texts_are_plain_for_the_front_end(language: str) -> None:
    bad = {key: text for key, text in leaves(locale(language, "nodeDefs")).items() if SYNTAX.search(text)}
    assert not bad


def test_the_extension_says_nothing_untranslated() -> None:
    found: dict[str, str] = {}
    for path in sorted((ROOT / "web" / "js").glob("*.js")):
        text = path.read_text(encoding="utf-8")
        said = SAY.findall(text)
        calls = len(re.findall(r"\bsay\(", text)) - text.count("function say(")
        assert len(said) == calls, f"a say() in {path.name} that this test cannot read"
        for key, english in said:
            assert found.setdefault(key, english) == english, f"two texts for {key}"
    assert found == locale("en", "main")["latentsync"]


def test_every_node_has_a_help_page(schemas: dict[str, Any]) -> None:
    for name, schema in schemas.items():
        page = (ROOT / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {schema['display_name']}\n"), name
        inputs = [key for kind in ("required", "optional") for key in schema["input"].get(kind, {}) if "." not in key]
        missing = [key for key in (*inputs, *schema["output_name"]) if f"**{key}**" not in page]
        assert not missing, (name, missing)
        pictures = PICTURE.findall(page)
        assert pictures, name
        for _, source in pictures:
            check_picture(ROOT / "web" / "docs" / source)


def check_picture(path: Path) -> None:
    assert path.stat().st_size < 150_000, path.name
    with Image.open(path) as picture:
        assert min(picture.size) >= 100, path.name
