"""docs/nodes.md from the nodes' own schemas, as ComfyUI tells them: python -m tests.docs.nodes (needs ComfyUI)."""

import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..nodes.server import ROOT, ComfyServer, find_comfyui
from ..nodes.table import NODES

PAGE = ROOT / "docs" / "nodes.md"
HEAD = """# The nodes

*Made from the nodes' schemas by `python -m tests.docs.nodes`; a test holds it to them. What each node is for, with
pictures: its help page, linked below and shown in ComfyUI by the ⓘ above a selected node. What the settings do, with
pictures: [settings.md](settings.md).*

Sockets are in capitals. An input in *italics* may stay unconnected. All sockets but FACE_TRACK are ComfyUI's own.
"""
FILE = re.compile(r"\\.(safetensors|pt|pth|ckpt|bin|task|model)$")


def reference(schemas: dict[str, Any]) -> str:
    """The page. schemas: our nodes of /object_info."""
    index = "\n".join(f"- [{NODES[name].title}](#{_anchor(name)})" for name in NODES)
    return "\n".join([HEAD, index, "", *(_node(name, schemas[name]) for name in NODES)])


def _anchor(name: str) -> str:
    return NODES[name].title.lower().replace(" ", "-")


def _node(name: str, said: dict[str, Any]) -> str:
    outputs = zip(said["output_name"], said["output"], said["output_tooltips"], strict=True)
    return "\n".join(
        [
            f"## {NODES[name].title}",
            "",
            f"{said['description']} [Help page](../web/docs/{name}.md)",
            "",
            "| input | takes | usual | |",
            "|---|---|---|---|",
            *(_input(key, spec, optional) for key, spec, optional in _inputs(said)),
            "",
            "| output | gives | |",
            "|---|---|---|",
            *(f"| {key} | {kind} | {_cell(tip)} |" for key, kind, tip in outputs),
            "",
        ]
    )


def _inputs(said: dict[str, Any]) -> Iterator[tuple[str, list[Any], bool]]:
    for part in ("required", "optional"):
        yield from ((key, spec, part == "optional") for key, spec in said["input"].get(part, {}).items())


def _input(key: str, spec: list[Any], optional: bool) -> str:
    kind, options = spec[0], spec[1] if len(spec) > 1 else {}
    usual = options.get("default", "")
    shown = "" if usual == "" else f"`{usual}`"
    return f"| {f'*{key}*' if optional else key} | {_takes(kind, options)} | {shown} | {_cell(options['tooltip'])} |"


def _takes(kind: Any, options: dict[str, Any]) -> str:
    choices = kind if isinstance(kind, list) else options.get("options", []) if kind == "COMBO" else None
    if choices is not None:
        known = [f"`{choice}`" for choice in choices if not FILE.search(str(choice))]
        return ", ".join(known)
    if kind in ("INT", "FLOAT"):
        high = options["max"]
        return f"{options['min']:g} to {'2⁶³ − 1' if high == 2**63 - 1 else f'{high:g}'}"
    return "text" if kind == "STRING" else str(kind).replace(",", " or ")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> None:
    found = find_comfyui()
    if found is None:
        sys.exit("No ComfyUI here: COMFYUI_PATH names its folder, COMFYUI_PYTHON the Python that has its packages.")
    with tempfile.TemporaryDirectory() as folder, ComfyServer(found, Path(folder)) as server:
        PAGE.write_text(reference(server.object_info()), encoding="utf-8")


if __name__ == "__main__":
    main()
