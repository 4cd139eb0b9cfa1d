"""Every link of README and docs leads somewhere. Nothing is fetched: what leads out stands in links.txt, looked at."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from .pages import INLINE, ROOT, all_code, anchors, links, pages

LIST = Path(__file__).with_name("links.txt")
PLACE = re.compile(r"^[\w.*-]+(?:/[\w.* -]+)+/?$")


def outward(page):
    return [link for link in links(page) if urlsplit(link).scheme]


def test_there_are_pages_and_links():
    assert {"README.md", "docs/README.md", "docs/cli.md"} <= set(pages())
    assert sum(len(links(page)) for page in pages()) > 50


def test_every_page_is_found_from_the_handbook():
    handbook = {(ROOT / "docs" / link.partition("#")[0]).resolve() for link in links("docs/README.md")}
    others = {path.resolve() for path in (ROOT / "docs").glob("*.md")} - {ROOT / "docs" / "README.md"}
    elsewhere = {ROOT / "CHANGELOG.md", *(ROOT / "notebooks").glob("*.ipynb")}
    assert others | elsewhere <= handbook


@pytest.mark.parametrize("page", pages())
def test_links_inside_lead_somewhere(page):
    for link in set(links(page)) - set(outward(page)):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent.joinpath(unquote(path)).resolve() if path else ROOT / page
        assert target.is_relative_to(ROOT), f"{link} leads out of the repository"
        assert target.exists(), f"{page}: {link} leads nowhere"
        if anchor:
            name = target.relative_to(ROOT).as_posix()
            assert name in pages(), f"{page}: {link} has an anchor in what is no page"
            assert anchor in anchors(name), f"{page}: no heading for {link}; there are {sorted(anchors(name))}"


def test_links_outside_are_those_that_were_looked_at():
    """A new one is opened by a person and added to links.txt; one that is gone is taken out."""
    known = {line for line in LIST.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")}
    found = {link for page in pages() for link in outward(page)}
    assert found == known
    for link in found:
        parts = urlsplit(link)
        assert parts.scheme == "https", link
        assert re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.netloc), link


@pytest.mark.parametrize("page", pages())
def test_pictures_say_what_they_show(page):
    bare = re.findall(r"!\[\s*\]\(([^)]*)\)", INLINE.sub("", pages()[page]))
    assert not bare, "pictures without words for those who cannot see them"


def test_files_that_are_named_exist():
    """Inline code that looks like a path of the repository: it begins with one of its folders."""
    tops = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")} - {"out", "models"}
    for code in all_code():
        if code.language == "inline" and PLACE.match(code.text) and code.text.split("/")[0] in tops:
            assert list(ROOT.glob(code.text.rstrip("/"))), f"{code.page}:{code.line}: there is no {code.text}"


@pytest.mark.parametrize("page", pages())
def test_tables_have_as_many_cells_in_every_row(page):
    """A forge splits cells at every bar that has no backslash, in code too."""
    cells = 0
    for number, line in enumerate(pages()[page].splitlines(), 1):
        if not line.startswith("|"):
            cells = 0
            continue
        count = len(re.findall(r"(?<!\\)\|", line))
        cells = cells or count
        assert count == cells, f"{page}:{number}: {count - 1} cells where the table has {cells - 1}"
