"""README is short and begins with a result; every page has one kind of reader; the site builds without a warning."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from .pages import ROOT, links, pages

yaml = pytest.importorskip("yaml")
MOST_WORDS, LARGEST = 700, 3_000_000
READERS = ("Users", "Developers", "Researchers")


class Loader(yaml.SafeLoader):
    """Bears with the one Python object that mkdocs.yml names."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def nav() -> dict[str, list[str]]:
    """Reader: pages, of the sections of mkdocs.yml."""
    entries = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)["nav"]
    sections = [item for entry in entries for item in entry.items() if isinstance(item[1], list)]
    return {title: [path for one in found for path in one.values()] for title, found in sections}


def test_readme_is_short():
    assert len(pages()["README.md"].split()) < MOST_WORDS


def test_readme_begins_with_a_result():
    """An animated picture before anything else, small enough to load at once; the same with sound beside it."""
    first = next(line for line in pages()["README.md"].splitlines()[1:] if line)
    path = ROOT / re.fullmatch(r"!\[[^\]]+\]\(([^)]+)\)", first)[1]
    assert path.stat().st_size < LARGEST
    with Image.open(path) as picture:
        assert picture.is_animated
    assert "docs/hero.mp4" in links("README.md")
    assert (ROOT / "docs" / "hero.mp4").stat().st_size < LARGEST


def test_every_page_has_one_kind_of_reader():
    sections = nav()
    assert tuple(sections) == READERS
    listed = [path for found in sections.values() for path in found]
    assert len(listed) == len(set(listed))
    assert {"README.md", *listed} == {path.name for path in (ROOT / "docs").glob("*.md")}


@pytest.mark.parametrize("reader", READERS)
def test_the_handbook_has_the_same_order_of_readers(reader):
    section = pages()["docs/README.md"].split(f"## {reader}\n")[1].split("\n## ")[0]
    named = set(re.findall(r"\]\(([\w-]+\.md)", section))
    assert named == set(nav()[reader])


def test_the_site_builds(tmp_path: Path):
    pytest.importorskip("material", reason="MkDocs is not here: make docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site")]
    known = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=known, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not re.search(r"WARNING|ERROR", done.stderr)
    assert (tmp_path / "site" / "quickstart" / "index.html").is_file()
