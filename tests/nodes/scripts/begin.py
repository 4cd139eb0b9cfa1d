"""Run by ComfyUI's Python in ComfyUI's folder, first of all: makes its modules and our pack importable, as `pack`."""

import json
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

JOB = json.loads(sys.argv[1])
"""What the test asks for."""


def start(flags: list[str]) -> None:
    """ComfyUI reads its command line when comfy.options is told to; then it decides on memory for good."""
    sys.argv[1:] = flags
    sys.path[0] = str(Path.cwd())
    import comfy.options

    comfy.options.enable_args_parsing()
    import utils.extra_config  # noqa: F401 — before any library brings a `utils` of its own
    from server import PromptServer

    class Silent:
        client_id = None

        def send_progress_text(self, *_: Any) -> None: ...

    PromptServer.instance = Silent()
    for name, path in (("pack", "."), ("pack.nodes", "nodes")):
        package = ModuleType(name)
        package.__path__ = [str(Path(JOB["root"]) / path)]
        sys.modules[name] = package
    import_module("pack.nodes.host").register_folders()


def pack(name: str) -> Any:
    return import_module(f"pack.{name}")


def run(node: Any, **inputs: Any) -> tuple[Any, ...]:
    """A node's outputs, without the server round it."""
    return node.execute.__func__(node.PREPARE_CLASS_CLONE({}), **inputs).args


def answer(**facts: Any) -> None:
    sys.stdout.write(f"\nANSWER {json.dumps(facts)}\n")
