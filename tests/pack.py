"""The pack's modules without ComfyUI, under a package name of its own, as ComfyUI itself loads them.

The engine inside is a second copy: its UserError is pack_module("latentsync.errors").UserError.
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NAME = "pack_of_tests"


def pack_module(name: str) -> Any:
    """A module by its place in the repository: pack_module("nodes.images"). Neither __init__.py of the doors is run."""
    _package(NAME, ROOT)
    _package(f"{NAME}.nodes", ROOT / "nodes")
    return importlib.import_module(f"{NAME}.{name}")


def _package(name: str, folder: Path) -> None:
    if name not in sys.modules:
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
