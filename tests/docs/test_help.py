"""The help of the command line: its examples can be typed, and the tables of options in docs say what it says."""

import json
import re
import shlex
from collections.abc import Iterator

import pytest
import typer

from latentsync.cli import main as cli
from latentsync.weights.registry import is_registered

from .pages import ROOT, pages
from .test_commands import parse, told

TABLES = {
    "run": ("docs/cli.md", "run"),
    "batch": ("docs/cli.md", "batch"),
    "personalize": ("docs/cli.md", "personalize"),
    "queue": ("docs/queue.md", "Options"),
    "app": ("docs/app.md", "Options"),
}
"""Command: the page and the section that have all its options. `train`, `prepare` and `eval` have too many for a table;
of what their pages say of options test_commands.py checks that they exist."""
APP = typer.main.get_command(cli.app)


def section(page: str, title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", pages()[page], re.MULTILINE | re.DOTALL)
    assert found, f"{page} has no section {title}"
    return found[1]


def rows(text: str) -> list[tuple[list[str], str]]:
    """(options, usual value) of every row of the section's table."""
    cells = [re.split(r"(?<!\\)\|", line)[1:3] for line in text.splitlines() if re.match(r"\| *`-", line)]
    return [(re.findall(r"`(--?[a-z][\w-]*)", names), usual.replace("`", "").strip()) for names, usual in cells]


def parameters(command: str) -> dict[str, typer.core.TyperOption]:
    found = APP.commands[command].params
    return {name: p for p in found for name in [*p.opts, *p.secondary_opts] if name.startswith("--")}


@pytest.mark.parametrize("command", TABLES)
def test_every_option_is_explained(command):
    """Of a switch such as --browser, --no-browser one of the two is enough."""
    said = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", section(*TABLES[command])))
    ours = {name: {*p.opts, *p.secondary_opts} for name, p in parameters(command).items() if name != "--help"}
    assert [name for name, names in ours.items() if not names & said] == []


@pytest.mark.parametrize("command", TABLES)
def test_every_row_is_an_option_with_its_usual_value(command):
    known, table = parameters(command), rows(section(*TABLES[command]))
    assert len(table) >= 8
    for names, usual in table:
        for name in (name for name in names if name.startswith("--")):
            assert name in known, f"{command} has no {name}"
            default, words = known[name].default, known[name].show_default
            assert not isinstance(words, str) or words in usual, f"{command} {name}: {usual!r}, in the help {words!r}"
            if isinstance(default, str | int | float) and not isinstance(default, bool):
                shown = default if isinstance(default, str) else f"{default:g}"
                assert usual == shown or usual.startswith((f"{shown}; ", f"{shown}: ")), (
                    f"{command} {name}: {usual!r}, really {default!r}"
                )


@pytest.mark.parametrize("command", TABLES)
def test_short_forms_are_right(command):
    known = parameters(command)
    for names, _ in rows(section(*TABLES[command])):
        short = {name for name in names if not name.startswith("--")}
        real = {name for long in names if long in known for name in known[long].opts if not name.startswith("--")}
        assert short == real, names


def examples(command: typer.core.TyperCommand | typer.core.TyperGroup) -> Iterator[str]:
    """Every command that stands in the help of a command or of those below it, less the remarks beside it."""
    text = re.sub(r"\\\n\s*", "", re.sub(r"\[/?bold\]", "", command.help or ""))
    for line in text.splitlines():
        if found := re.search(r"(?:^|: +)((?:latentsync|accelerate launch) .*)", line.strip()):
            yield re.split(r" {4,}", found[1])[0].rstrip("):")
    for below in getattr(command, "commands", {}).values():
        yield from examples(below)


EXAMPLES = dict.fromkeys(examples(APP))


def test_every_command_but_the_plain_ones_shows_an_example():
    shown = {context.info_name for context in (parse(told(shlex.split(example))) for example in map(plain, EXAMPLES))}
    assert shown >= {
        "run",
        "batch",
        "queue",
        "app",
        "prepare",
        "filelist",
        "unet",
        "syncnet",
        "sync",
        "compare",
        "convert",
    }


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_of_the_help_can_be_typed(example):
    context = parse(told(shlex.split(plain(example))))
    if context.info_name == "queue":
        prompt = json.loads((ROOT / context.params["workflow"]).read_text(encoding="utf-8"))
        inputs = {node["_meta"]["title"]: node["inputs"] for node in prompt.values()}
        for place in (*context.params["inputs"], *context.params["values"]):
            node, _, name = place.split("=")[0].rpartition(".")
            assert name in inputs[node], place
    if context.info_name == "download":
        assert all(map(is_registered, context.params["names"]))


def plain(example: str) -> str:
    """Without where its output is led."""
    return re.sub(r" > \S+$", "", example)
