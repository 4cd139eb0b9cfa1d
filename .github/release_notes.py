"""Says whether a tag may be released, and prints what CHANGELOG.md has to say about it.

python .github/release_notes.py v1.2.3
"""

import re
import sys
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parents[1]


def notes(tag: str, root: Path = ROOT) -> str:
    """The section of the tag's version; ValueError says what is missing for a release."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = project["version"]
    if tag != f"v{version}":
        raise ValueError(f"The tag is {tag}, pyproject.toml says {version}: tag v{version}, or change the version.")
    if not project.get("urls", {}).get("Repository"):
        raise ValueError("pyproject.toml has no [project.urls] Repository, which ComfyUI's registry wants: add it.")
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    section = re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d\n(.+?)(?=^## |\Z)", text, re.M | re.S)
    if section is None or not section[1].strip():
        raise ValueError(f'CHANGELOG.md has no section "## [{version}] - YEAR-MONTH-DAY": write it.')
    return section[1].strip() + "\n"


if __name__ == "__main__":
    try:
        sys.stdout.write(notes(*sys.argv[1:2] or [""]))
    except ValueError as error:
        sys.exit(str(error))
