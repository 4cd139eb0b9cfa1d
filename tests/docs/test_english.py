"""The English of everything a user reads: pages, help, messages, tooltips, the app, notes in workflows.

The list has words and turns over which a native reader stumbles; each has what to write instead."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import typer

from latentsync.cli import main as cli

from .pages import INLINE, ROOT, pages, split

WORDS = {
    r"shall": "should, will",
    r"usual(?! (?:LSE|way))": "default, ordinary",
    r"(?:go|goes|going|went|gone) on": "continue, resume",
    r"lies?|lay": "is, are",
    r"doors?": "ways, interfaces",
    r"anew": "again, from scratch",
    r"whose": "which has, of which, the person",
    r"which then": "and then it",
    r"so[- ]many(?:-th)?": "this number of, every Nth",
    r"as (?:it|they) (?:is|are|was|were)(?! (?:written|stored|read|made|trained|published|ready|used))": "unchanged",
    r"(?:broken?|breaks?)[ -]off": "was interrupted",
    r"before (?:the|a|its|their|his|her) (?:new )?(?:mouth|face|lips)": "in front of",
    r"make people say": "only with consent",
    r"pictures? (?:a|per) second|\d+ pictures": "frames per second, frames",
    r"pictures in a row": "image sequence",
    r"(?:sound and pictures?|pictures? and sound)": "audio and video",
    r"sound tracks?|sound streams?": "audio track",
    r"(?:the|its|own|this|that|their|of|any|clean|new|other) sound(?! (?:there|of the room))": "audio",
    r"to the bit": "bit for bit",
    r"at hand": "available",
    r"blanks?": "spaces",
    r"in vain|for ever|lest|hence|thus|whence|thereof|therein|amongst|upon|naught|withal|oft|ere": "plain words",
    r"the ears of": "audio encoder",
    r"withdraws?|withdrawn": "cancel",
    r"anybody|somebody|everybody": "anyone, someone, everyone",
    r"(?<!there )(?<!if )(?:is|are) no (?!longer|more|less|better|slower|faster)": "is not a",
    r"made whole": "deinterlaced",
    r"the like": "and similar",
    r"when absent|where absent": "if missing",
    r"made for the eye|for the eye": "to look at",
    r"one hopes for|what one": "you",
    r"by (?:nature|itself alone)": "alone",
    r"serves? for|serves? as well": "works for",
    r"nothing of it": "none of it",
    r"(?:takes?|took|taken) away": "remove",
    r"is heard|are heard|hears?": "is used, listens to",
    r"(?:frames|samples|steps|clips|rows|\d+) a second": "per second",
    r"bec(?:a|o)mes? of": "how it is handled",
    r"learnt|colour\w*|grey\w*|neighbour\w*|towards|afterwards": "American spelling",
    r"to and fro|ought|(?:is|are) here|demonstrator": "back and forth, should, is installed, for demonstration",
    r"may be (?:repeated|given)": "can be",
    r"is asked|was asked (?!for)|are asked": "is run",
}
RULES = [(re.compile(rf"\b(?:{word})\b", re.IGNORECASE), instead) for word, instead in WORDS.items()]
IN_NODES = re.compile(r"\b(?<!with )pictures\b", re.IGNORECASE)
"""ComfyUI calls them images, and those of a video frames."""
OPTION = re.compile(r"\bby \[?`?--[a-z]")
"""An option is something one does things with, not by."""
NODES = re.compile(r"nodes/|web/docs/|docs/nodes|locales/en/nodeDefs")
TOPS = ("latentsync", "nodes", "install.py", "notebooks")


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every string that can be shown: what is not a docstring; what is filled in later is {}."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in node.values}
            parts = [str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values]
            yield node.lineno, "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.lineno, node.value


def leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for below in value.values() if isinstance(value, dict) else value:
            yield from leaves(below)


def helps(command: click.Command, name: str) -> Iterator[tuple[str, str]]:
    yield f"{name} --help", command.help or ""
    for below, child in getattr(command, "commands", {}).items():
        yield from helps(child, f"{name} {below}")


def texts() -> Iterator[tuple[str, str]]:
    """(where, text) of everything."""
    for page in pages():
        yield from ((f"{page}:{i}", line) for i, line in enumerate(split(page)[0].splitlines(), 1))
    for top in TOPS:
        path = ROOT / top
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            name = file.relative_to(ROOT).as_posix()
            yield from ((f"{name}:{line}", text) for line, text in strings(file) if " " in text)
    yield from helps(typer.main.get_command(cli.app), "latentsync")
    found = [*(ROOT / "locales" / "en").glob("*.json"), *(ROOT / "subgraphs").glob("*.json")]
    for file in [*found, *(ROOT / "example_workflows").rglob("*.json")]:
        words = leaves(json.loads(file.read_text(encoding="utf-8")))
        yield from ((file.relative_to(ROOT).as_posix(), text) for text in words if " " in text)


def stumbles(where: str, text: str) -> list[str]:
    """What the list finds in a text, without its code and links."""
    plain = re.sub(r"\]\([^)]*\)", "]", INLINE.sub("`", text))
    found = [f"{m[0]!r}: {instead}" for word, instead in RULES for m in word.finditer(plain)]
    found += [f"{m[0]!r}: images, frames" for m in IN_NODES.finditer(plain) if NODES.match(where)]
    return found + [f"{m[0]!r}: with" for m in OPTION.finditer(text)]


def test_nothing_that_a_native_reader_stumbles_over():
    said = list(texts())
    found = [f"{where}: {what}\n    {text.strip()[:160]}" for where, text in said for what in stumbles(where, text)]
    assert len(said) > 6000, "whole places are not read"
    assert not found, f"{len(found)}\n" + "\n".join(found)


def test_what_stumbles_is_found():
    assert stumbles("docs/a.md", "The video whose face shall speak lies here, as it is: `shall` may stand in code.")
    assert len(stumbles("docs/a.md", "Three doors; by `--server` the run goes on, with the usual sound track.")) == 5
    assert not stumbles("docs/a.md", "A video with sound, and its audio: [this](shall.md), `lies`.")
    assert stumbles("nodes/x.py", "The pictures.")
    assert not stumbles("docs/x.md", "The pictures.")


def test_every_place_is_read():
    """Each kind of place gives texts, and a message, a help, a tooltip, a note and a page's line are among them."""
    read = {}
    for where, text in texts():
        read.setdefault(re.split(r"[:.]", where)[0].split("/")[0].split(" ")[0], set()).add(text)
    for top in ("README", "CHANGELOG", "docs", "web", "notebooks", "latentsync", "nodes", "install", "locales"):
        assert read[top], top
    assert any("Then choose your own" in text for text in read["example_workflows"])
    assert "Print the version and stop." in read["latentsync"]
