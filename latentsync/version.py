"""The version. pyproject.toml says it, and nothing else does: ComfyUI's registry reads that file as text."""

import re
from pathlib import Path


def read_version(package: Path = Path(__file__).parent) -> str:
    """From the pyproject.toml beside the package (a checkout, a pack in ComfyUI), else from what pip installed.

    The file goes first: ComfyUI's Python may have another version installed than the pack that it loads.
    """
    project = package.parent / "pyproject.toml"
    text = project.read_text(encoding="utf-8") if project.is_file() else ""
    # tomllib came with Python 3.11 only
    if said := re.search(r'^\[project\]\nname = "latentsync"\nversion = "(.+)"', text, re.MULTILINE):
        return said[1]
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("latentsync")
    except PackageNotFoundError:
        return "unknown"


__version__ = read_version()
