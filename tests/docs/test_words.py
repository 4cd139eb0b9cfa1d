"""What the pages say of messages, settings and figures is what the program says."""

import re
from dataclasses import fields

import pytest

from latentsync.settings import FITS, SOLVERS, WATERMARKS, Settings
from latentsync.weights import load as weights

from .pages import ROOT, pages

MESSAGES = re.findall(r"^\| `([^`]+)` \|", pages()["docs/troubleshooting.md"].split("## Messages")[1], re.MULTILINE)


def source() -> str:
    """All code, with strings that go on in the next line joined."""
    files = [path for top in ("latentsync", "nodes") for path in sorted((ROOT / top).rglob("*.py"))]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    return re.sub(r"[\"']\s*\n\s*f?[\"']", "", text)


def test_messages_that_are_explained_are_raised():
    said = source()
    assert len(MESSAGES) > 15
    for message in MESSAGES:
        for part in (part.strip(" ;") for part in message.split("…")):
            assert part in said, f"nothing says {part!r}"


@pytest.mark.parametrize("field", fields(Settings), ids=lambda field: field.name)
def test_every_setting_is_explained_with_its_default(field):
    """A row of the table in docs/settings.md: | `--name` | default | …"""
    option = f"--{field.name.replace('_', '-')}"
    shown = f"`{field.default}`" if isinstance(field.default, str) else f"{field.default}"
    if field.default is False:
        shown = "no"
    if field.name in ("steps", "guidance"):
        shown = "0: the checkpoint's"
    assert f"| `{option}` | {shown} |" in pages()["docs/settings.md"]


def test_every_choice_is_explained():
    page = pages()["docs/settings.md"]
    assert not [word for word in (*FITS, *WATERMARKS, *SOLVERS) if f"`{word}`" not in page]


def test_all_metadata_of_weight_files_are_explained():
    """The table of docs/weights.md and the list in the module that reads them."""
    table = pages()["docs/weights.md"].split("## Metadata")[1]
    rows = re.findall(r"^\| (`.+?) \|", table, re.MULTILINE)
    read = re.findall(r"^    (\w+)(?: {2,}|$)", weights.__doc__ or "", re.MULTILINE)
    assert sorted(name for row in rows for name in re.findall(r"`(\w+)`", row)) == sorted(read)
