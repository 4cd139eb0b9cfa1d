"""What `make docs` does beside MkDocs: links that leave this folder go to the repository."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUTWARD = re.compile(r"\]\(\.\./([^)\s]+)\)")


def on_config(config: Any) -> Any:
    """The repository's address stands in pyproject.toml alone."""
    found = re.search(r'^Repository = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    config.repo_url, config.repo_name = found[1] if found else None, "ComfyUI-LatentSync"
    return config


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    return OUTWARD.sub(lambda link: f"]({config.repo_url}/blob/main/{link[1]})", markdown)
