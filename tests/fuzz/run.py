"""Parsers in child processes: a crash, a hang or an exception is told with the number of its input."""

import contextlib
import faulthandler
import os
import queue
import subprocess
import sys
import tempfile
import threading
import traceback
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from .parsers import Parser

MEMORY = 4 * 2**30
"""Bytes of address space that a child may take beside its libraries."""
SECONDS = 20
STARTING = 180
CHUNK = 500
"""Inputs of one child."""
MAX_FINDINGS = 100
"""Of one parser; then it is given up."""


def fuzz(
    names: Sequence[str], count: int, out: Path, jobs: int, start: int = 0, *, together: bool = False
) -> list[str]:
    """A line for each finding. together: one child for all, which saves its start."""
    out.mkdir(parents=True, exist_ok=True)
    if together:
        return _all([f"{name}:{start}:{start + count}" for name in names], out)
    ends = start + count
    parts = [[f"{name}:{at}:{min(at + CHUNK, ends)}"] for at in range(start, ends, CHUNK) for name in names]
    with ThreadPoolExecutor(jobs) as pool:
        return [line for lines in pool.map(lambda part: _all(part, out), parts) for line in lines]


def _all(part: list[str], out: Path) -> list[str]:
    """Children one after another: each goes on behind the input that ended the last one."""
    found: list[str] = []
    left = deque(part)
    while left and len(found) < MAX_FINDINGS:
        at, why = _child(left, found, out)
        if at is None:
            if why:
                found.append(f"{left[0]}: {why}")
            break
        name, number = at.split(":")
        while left and not left[0].startswith(f"{name}:"):
            left.popleft()
        if why:
            found.append(f"{at}: {why}")
        _, _, stop = left.popleft().split(":")
        left.appendleft(f"{name}:{int(number) + 1}:{stop}")
        if not why:
            break
    return found


def _child(part: Sequence[str], found: list[str], out: Path) -> tuple[str | None, str]:
    """(the last input that was begun, how it ended the child)."""
    command = [sys.executable, "-m", "tests.fuzz", "--out", str(out), "--child", *part]
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=_forward, args=(child, lines), daemon=True).start()
        at: str | None = None
        while True:
            try:
                line = lines.get(timeout=SECONDS if at else STARTING)
            except queue.Empty:
                child.kill()
                child.wait()
                return at, _ending(f"took more than {SECONDS} s", at, errors, out)
            if line == "":
                code = child.wait()
                return (at, "") if code == 0 else (at, _ending(f"ended the process ({code})", at, errors, out))
            kind, _, text = line.rstrip("\n").partition(" ")
            if kind == "at":
                at = text
            else:
                found.append(text)


def _forward(child: "subprocess.Popen[str]", lines: "queue.Queue[str]") -> None:
    assert child.stdout is not None
    for line in child.stdout:
        lines.put(line)
    lines.put("")


def _ending(why: str, at: str | None, errors: IO[bytes], out: Path) -> str:
    errors.seek(0)
    text = errors.read().decode(errors="replace")
    (out / f"{(at or 'start').replace(':', '-')}.txt").write_text(f"{why}\n{text[-8000:]}")
    return why


def work(part: Sequence[str], out: Path) -> int:
    """The child: says which input it begins, and what went wrong with it."""
    from . import parsers

    faulthandler.enable()
    reports = _own_stdout()
    with tempfile.TemporaryDirectory() as folder:
        made = [(parsers.Parser(spec.split(":")[0], Path(folder)), *map(int, spec.split(":")[1:])) for spec in part]
        parsers.load_readers([parser.name for parser, *_ in made])
        _limit_memory()
        for parser, start, stop in made:
            for number in range(start, stop):
                print(f"at {parser.name}:{number}", file=reports, flush=True)
                _try(parser, number, out, reports)
    return 0


def _own_stdout() -> IO[str]:
    """Libraries that print do not meddle with what is told."""
    own = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return own


def _try(parser: "Parser", number: int, out: Path, reports: IO[str]) -> None:
    path = parser.make(number)
    data = path.read_bytes()
    kept = out / path.name
    kept.write_bytes(data)  # there if the process ends here
    try:
        parser.read(path)
    except BaseException as error:
        text = traceback.format_exc()
        (out / f"{path.stem}.txt").write_text(text, errors="backslashreplace")
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "latentsync" in frame.filename]
        place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
        first = str(error).split("\n")[0][:100].encode("ascii", "backslashreplace").decode()
        line = f"found {parser.name}:{number}: {type(error).__name__}{place}: {first}"
        print(line, file=reports, flush=True)
        if isinstance(error, KeyboardInterrupt):
            raise
    else:
        kept.unlink()
    finally:
        path.unlink(missing_ok=True)


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
