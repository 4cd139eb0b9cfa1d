"""Says whether a tag may be released, and prints what CHANGELOG.md has to say about it.

python .github/release_notes.py v1.2.3
"""

import re
import sys
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parents[1]
OWNER, REPOSITORY = "OWNER", "<this repository>"
"""What a person replaces before the first release: in two tables of pyproject.toml, and on pages that say git clone."""


def placeholders(root: Path = ROOT) -> list[str]:
    """Files that still have one, and what to do there."""
    said = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    tables = {"urls": said["project"].get("urls"), "comfy": said.get("tool", {}).get("comfy")}
    pages = [page for page in (root / "README.md", *sorted((root / "docs").glob("*.md"))) if page.is_file()]
    blank = [page.relative_to(root).as_posix() for page in pages if REPOSITORY in page.read_text(encoding="utf-8")]
    found = [f"{page}: put the repository's address in place of {REPOSITORY}" for page in blank]
    if OWNER in str(tables):
        found.insert(0, f"pyproject.toml: put the owner's name in place of {OWNER}")
    return found


def notes(tag: str, root: Path = ROOT) -> str:
    """The section of the tag's version; ValueError says what is missing for a release."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = project["version"]
    if tag != f"v{version}":
        raise ValueError(f"The tag is {tag}, pyproject.toml says {version}: tag v{version}, or change the version.")
    if found := placeholders(root):
        raise ValueError(f"There are placeholders left. {'; '.join(found)}.")
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
