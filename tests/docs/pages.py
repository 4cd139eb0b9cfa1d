"""The documents as the tests read them: headings, links, code, and the commands in it."""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHELL = ("bash", "console", "sh", "shell")
OURS = {"latentsync", "python", "python3", "pip", "make", "accelerate", "torchrun"}
OTHERS = {"git", "cd", "curl", "jq", "sleep", "read", "ray", "apt-get", "sudo", "source"}
"""Programs that are not ours; of what they are told nothing is checked but the shell's grammar."""
FENCE = re.compile(r"^( *)(`{3,}|~{3,})\s*(\w*)")
ITEM = re.compile(r"^( *)([-*+]|\d+\.) +")
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\]\([^)]*\))*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
DEFINED = re.compile(r"^\s{0,3}\[[^\]]+\]:\s*<?(\S+?)>?\s*$", re.MULTILINE)
BARE = re.compile(r"(?<![(\"'\w])<?(https?://[^\s)>\]\"']+[^\s)>\]\"'.,;:])")
HTML = re.compile(r"<(?:a|img|source|video)\b[^>]*?(?:href|src|srcset)=\"([^\"]+)\"", re.IGNORECASE)
TOKEN = re.compile(
    r"""(?P<blank>[ \t]+|\\\n)|(?P<comment>\#[^\n]*)|(?P<end>\n|;|\|\|?|&&?)|(?P<redirect>\d?>>?(?:&\d)?|<)"""
    r"""|(?P<word>(?:\\.|"(?:\\.|[^"\\])*"|'[^']*'|[^\s"'\\;|&<>])+)|(?P<else>.)""",
    re.DOTALL,
)
KEYWORDS = {"do", "then", "else", "if", "until", "while", "!"}
SKIPPED = {"for", "done", "fi", "break", ""}


@dataclass(frozen=True)
class Code:
    """A block, or inline code ("inline"); an indented block has no language."""

    page: str
    line: int
    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """words: as a program gets them. whole: not a mere mention, which may leave out what a command needs."""

    page: str
    line: int
    words: tuple[str, ...]
    whole: bool = True

    def __str__(self) -> str:
        return f"{self.page}:{self.line} {shlex.join(self.words)}"


@cache
def pages() -> dict[str, str]:
    """Name below the repository: text, of every document for users; of a notebook its prose alone."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "web" / "docs").rglob("*.md")]
    found += (ROOT / "notebooks").glob("*.ipynb")
    return {path.relative_to(ROOT).as_posix(): _text(path) for path in sorted(found)}


def _text(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    cells = json.loads(text)["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


@cache
def split(page: str) -> tuple[str, tuple[Code, ...]]:
    """The prose of a page, its code blanked out, and the code. Lines keep their numbers."""
    lines, prose, code = pages()[page].splitlines(), [], []
    i, inside, blank = 0, 0, True
    while i < len(lines):
        start, fence = i, FENCE.match(lines[i])
        if fence:
            i += 1
            while i < len(lines) and not lines[i].strip().startswith(fence[2]):
                i += 1
            code.append(Code(page, start + 2, fence[3], _dedent(lines[start + 1 : i])))
            i += 1
        elif blank and lines[i].strip() and _indent(lines[i]) >= inside + 4:
            while i < len(lines) and (not lines[i].strip() or _indent(lines[i]) >= inside + 4):
                i += 1
            code.append(Code(page, start + 1, "", _dedent(lines[start:i])))
        else:
            item = ITEM.match(lines[i])
            if item:
                inside = item.end()
            elif lines[i].strip() and _indent(lines[i]) < inside and blank:
                inside = 0
            prose.append(lines[i])
            i += 1
        prose.extend([""] * (i - len(prose)))
        blank = not lines[i - 1].strip()
    text = "\n".join(prose)
    code += [Code(page, text.count("\n", 0, m.start()) + 1, "inline", m[1]) for m in INLINE.finditer(text)]
    return INLINE.sub(lambda m: "\n" * m[0].count("\n"), text), tuple(code)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _dedent(lines: list[str]) -> str:
    least = min((_indent(line) for line in lines if line.strip()), default=0)
    return "\n".join(line[least:] for line in lines)


def all_code() -> Iterator[Code]:
    for page in pages():
        yield from split(page)[1]


def links(page: str) -> list[str]:
    """Where all links and pictures of a page lead."""
    prose = re.sub(r"<!--.*?-->", "", split(page)[0], flags=re.DOTALL)
    found = [*LINK.findall(prose), *DEFINED.findall(prose), *HTML.findall(prose)]
    return sorted({*found, *BARE.findall(prose)})


def anchors(page: str) -> set[str]:
    """The anchors that a forge gives the headings of a page."""
    seen: dict[str, int] = {}
    found = set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", pages()[page]))
    headings = re.findall(r"^#{1,6} +(.+?)(?: +#+)? *$", _with_inline(page), re.MULTILINE)
    for heading in headings:
        text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        number = seen.get(slug, 0)
        found.add(f"{slug}-{number}" if number else slug)
        seen[slug] = number + 1
    return found


def _with_inline(page: str) -> str:
    blocks = {code.line for code in split(page)[1] if code.language != "inline"}
    lines, text = split(page)[0].splitlines(), pages()[page].splitlines()
    return "\n".join(text[i] if line.startswith("#") and i + 1 not in blocks else line for i, line in enumerate(lines))


def commands() -> list[Command]:
    """Every command of every page: of shell blocks, and of inline code that begins with a program of ours."""
    found = []
    for code in all_code():
        if is_shell(code) or code.language == "inline":
            for line, words in shell_commands(code.text):
                if is_shell(code) or words[0] in OURS:
                    found.append(Command(code.page, code.line + line, tuple(words), code.language != "inline"))
    return found


def is_shell(code: Code) -> bool:
    """A block that says so, or says nothing and begins with a program that a page may use."""
    if code.language:
        return code.language in SHELL
    first = next(shell_commands(code.text), (0, [""]))[1][0]
    return first in OURS | OTHERS


def shell_commands(text: str) -> Iterator[tuple[int, list[str]]]:
    """(line from 0, words) of each simple command; where they lead their output is left out, as are assignments."""
    words: list[str] = []
    start, line, skip = 0, 0, False
    for token in [*TOKEN.finditer(text), None]:
        kind = token.lastgroup if token else "end"
        if kind == "end":
            if words := _program(words):
                yield start, words
            words, skip = [], False
        elif kind == "redirect":
            skip = "&" not in token[0]
        elif kind == "word" and skip:
            skip = False
        elif token and kind in ("word", "else"):
            start = start if words else line
            words.append(token[0])
        line += token[0].count("\n") if token else 0


def _program(raw: list[str]) -> list[str]:
    """A command without what stands before its program; none where it is the shell's own."""
    while raw and (raw[0] in KEYWORDS or re.match(r"[A-Z_]+=", raw[0])):
        if "$(" in raw[0]:
            return []
        raw = raw[1:]
    if not raw or raw[0] in SKIPPED:
        return []
    try:
        return ["".join(shlex.split(word)) for word in raw if word != "…"]
    except ValueError:  # an apostrophe in a sentence
        return []


def extras() -> set[str]:
    """What `pip install -e ".[…]"` may ask for."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    return set(re.findall(r"^(\w+) *=", section, re.MULTILINE))
