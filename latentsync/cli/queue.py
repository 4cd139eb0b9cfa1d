"""`latentsync queue`: one workflow on a running ComfyUI."""

import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError
from . import console
from .console import check_writable, note, show_json, write_json
from .parameters import choice, expand_options

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from ..comfy_client.client import ComfyClient, RunResult
    from ..comfy_client.events import Event, OnEvent
    from ..comfy_client.inputs import Field
    from ..comfy_client.prompt import Prompt

FAILED, BAD_INPUT = 1, 2
"""Exit codes: the run did not end well on the server; something that the user can fix."""
BRIEF = 0.5
"""Seconds; nodes without progress of their own that take less leave no bar."""
MAX_COLUMN = 48
"""Columns up to which --list aligns what inputs take."""
MAX_TEXT = 200
"""Characters of a node's text that is also printed."""

WORK, SERVER = "What runs", "Where, and what comes back"
HEADER = 'Sent with every request: "Authorization: Bearer …".'


@dataclass(frozen=True)
class WorkOptions:
    values: list[str] | None = choice(
        WORK, "--set", None, "Set an input. NODE is an id, a title, or a class that occurs once.", "NODE.INPUT=VALUE"
    )
    inputs: list[str] | None = choice(WORK, "--input -i", None, "Upload a file and set it.", "NODE.INPUT=FILE")
    list_inputs: bool = choice(WORK, "--list", False, "Show what can be set, with its current values; run nothing.")
    timeout: float | None = choice(WORK, "", None, "Stop the run when it takes longer.", "SECONDS", min=0.001)


@dataclass(frozen=True)
class ServerOptions:
    server: str | None = choice(
        SERVER, "", None, "The address of ComfyUI.", "URL",
        envvar="LATENTSYNC_COMFYUI", show_default="http://127.0.0.1:8188",
    )  # fmt: skip
    header: list[str] | None = choice(SERVER, "", None, HEADER, "NAME: VALUE")
    out: Path = choice(SERVER, "--out -o", Path(), "Where the results go.", "FOLDER")
    overwrite: bool = choice(SERVER, "--overwrite", False, "Replace files of the same name.")
    json: Path | None = choice(SERVER, "", None, "Also write what was done as JSON; - prints it.", "REPORT")
    free: bool = choice(SERVER, "--free", False, "Let the server unload its models when done.")


@expand_options
def queue(
    workflow: Annotated[Path, typer.Argument(metavar="WORKFLOW.json", help="A workflow in API form.")],
    work: WorkOptions,
    server: ServerOptions,
) -> None:
    """Run a workflow on a running ComfyUI and download the results.

    \b
      latentsync queue example_workflows/api/lip_sync_a_video.json -o results \\
          -i "Video of a face.file=clip.mp4" -i "Speech.audio=speech.wav" \\
          --set "LatentSync: Lip Sync.seed=7"

    Prints the paths of the results. Ctrl-C cancels the run.
    """
    from ..comfy_client.client import ComfyClient
    from ..comfy_client.events import RunFailedError

    _check_writable(server.out, server.json)
    client = ComfyClient(server.server, headers=dict(map(parse_header, server.header or ())))
    if work.list_inputs:
        return _list(client, workflow, _pairs(work.values))
    try:
        with _refusals():
            result, paths = asyncio.run(_run(client, workflow, work, server))
    except RunFailedError as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(FAILED) from error
    _show(result, paths, client.display_url, server.json)


@contextmanager
def _refusals() -> Iterator[None]:
    """A line for each node that ComfyUI does not accept."""
    from ..comfy_client.client import RefusedError

    try:
        yield
    except RefusedError as error:
        typer.echo("\n  ".join(["error: ComfyUI refused the workflow:", *error.lines]), err=True)
        raise typer.Exit(BAD_INPUT) from error


def _list(client: "ComfyClient", workflow: Path, values: dict[str, str]) -> None:
    """A line for each input: NAME=VALUE, and what it takes."""
    from ..comfy_client.inputs import describe
    from ..comfy_client.prompt import shown_value

    async def ask() -> tuple["Prompt", list["Field"]]:
        async with client:
            return await client.fields(workflow, values)

    with _refusals():
        prompt, fields = asyncio.run(ask())
    lines = [f"  {field.name}={shown_value(prompt, field)}" for field in fields]
    width = min(MAX_COLUMN, max(map(len, lines), default=0))
    for (node, label), group in groupby(zip(fields, lines, strict=True), lambda pair: (pair[0].node, pair[0].label)):
        typer.echo(f"{label} (node {node})")
        for field, line in group:
            typer.echo(f"{line:<{width}}  {describe(field)}")


def _pairs(texts: Sequence[str] | None) -> dict[str, str]:
    pairs = {}
    for text in texts or ():
        place, sign, value = text.partition("=")
        if not sign or not place.strip():
            raise UserError(f"{text} is incomplete; it must look like NODE.INPUT=VALUE.")
        pairs[place.strip()] = value
    return pairs


def parse_header(text: str) -> tuple[str, str]:
    name, sign, value = text.partition(":")
    if not sign or not name.strip() or not name.strip().replace("-", "").replace("_", "").isalnum() or "\n" in value:
        raise UserError('A --header must look like "Authorization: Bearer …".')
    return name.strip(), value.strip()


def _check_writable(out: Path, report: Path | None) -> None:
    """Before the server works in vain."""
    existing = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"{out} cannot be written to; choose a writable folder with --out.")
    check_writable(report)


async def _run(
    client: "ComfyClient", workflow: Path, work: WorkOptions, server: ServerOptions
) -> tuple["RunResult", dict[str, list[Path]]]:
    """The result, and its files by node."""
    from ..comfy_client.client import save_values

    pairs = {"inputs": _pairs(work.inputs), "values": _pairs(work.values)}
    async with client:
        try:
            with _display() as on_event:
                result = await client.run(workflow, **pairs, on_event=on_event, timeout=work.timeout)
        finally:
            if server.free:
                await client.free()
        paths: dict[str, list[Path]] = {}
        downloaded = await client.download(result, server.out, overwrite=server.overwrite)
        for output, path in downloaded.items():
            paths.setdefault(output.node, []).append(path)
        for node, saved in save_values(result, server.out, overwrite=server.overwrite).items():
            paths.setdefault(node, []).extend(saved)
        return result, paths


@contextmanager
def _display() -> Iterator["OnEvent"]:
    """A bar per node on a terminal, a line per node elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    screen = Console(stderr=True)
    if console.quiet or not screen.is_terminal:
        yield lambda event: note(line) if (line := _line(event)) is not None else None
        return
    columns = TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    with Progress(*columns, TextColumn("{task.fields[stage]}", markup=False), console=screen) as bars:
        show = _Bars(bars)
        yield show
        show.finish()


class _Bars:
    def __init__(self, bars: "Progress") -> None:
        self.bars, self.now = bars, ""
        self.tasks: dict[str, TaskID] = {}

    def __call__(self, event: "Event") -> None:
        if event.kind in ("progress", "text", "node"):
            self._node(event)
        elif (line := _line(event)) is not None:
            self.bars.console.print(line, markup=False, highlight=False)

    def _node(self, event: "Event") -> None:
        if event.kind == "node":
            self.finish()
        if event.node not in self.tasks:
            self.tasks[event.node] = self.bars.add_task(event.title, total=None, stage="")
        self.now, task = event.node, self.tasks[event.node]
        if event.kind == "progress":
            self.bars.update(task, total=event.total or None, completed=event.done)
        elif event.kind == "text":
            self.bars.update(task, stage=event.text)

    def finish(self) -> None:
        """The bar of the node that ran stays full, unless it took hardly any time."""
        task = next((task for task in self.bars.tasks if task.id == self.tasks.get(self.now)), None)
        if task is not None:
            brief = task.total is None and (task.elapsed or 0) < BRIEF
            self.bars.update(task.id, total=1, completed=1, stage="", visible=not brief)
            self.bars.stop_task(task.id)


def _line(event: "Event") -> str | None:
    match event.kind:
        case "node":
            return event.title
        case "uploading":
            return f"uploading {event.text}"
        case "queued":
            return f"queued, {event.done:g} ahead" if event.done else "queued"
        case "cached" if event.done:
            return f"{event.done:g} of {event.total:g} nodes are cached"
        case "lost":
            return "no live progress from the server; the run continues"
        case "found":
            return "live progress again"
    return None


def _show(result: "RunResult", paths: dict[str, list[Path]], server: str, report: Path | None) -> None:
    on_screen = str(report) == "-"
    for path in (path for found in paths.values() for path in found):
        typer.echo(str(path), err=on_screen)
    for text in (text for values in result.values.values() for text in values.get("text", [])):
        if isinstance(text, str) and len(text) <= MAX_TEXT:
            note(text)
    note(f"{result.elapsed_s:.1f} s{'' if paths else '; no node of the workflow has a result'}")
    if report is not None:
        content = _report(result, paths, server)
        show_json(content) if on_screen else write_json(report, content)


def _report(result: "RunResult", paths: dict[str, list[Path]], server: str) -> dict[str, Any]:
    from ..comfy_client.prompt import title

    titles = {node: title(result.prompt, node) for node in result.prompt}
    times = {node: round(result.timings.get(node, 0.0), 3) for node in result.prompt}
    nodes = [
        {"id": n, "title": titles[n], "class": p["class_type"], "elapsed_s": times[n], "cached": n in result.cached}
        for n, p in result.prompt.items()
    ]
    outputs = [{"node": n, "title": titles[n], "file": str(path)} for n, found in paths.items() for path in found]
    facts = {"server": server, "prompt_id": result.prompt_id, "elapsed_s": round(result.elapsed_s, 3)}
    return facts | {"nodes": nodes, "outputs": outputs, "values": result.values, "uploads": result.uploads}
