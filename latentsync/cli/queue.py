"""`latentsync queue`: one workflow on a running ComfyUI. It parses, calls client.py and prints."""

import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from ..comfy_client.client import ComfyClient, RunResult
    from ..comfy_client.events import Event, OnEvent
    from ..comfy_client.inputs import Field
    from ..comfy_client.prompt import Prompt

FAILED, BAD_INPUT = 1, 2
"""Exit codes: the run did not end well on the server; something that the user can put right."""
BRIEF = 0.5
"""Seconds; nodes without progress of their own that take less leave no bar behind."""
WIDE = 48
"""Columns after which what an input takes need not stand in line any more."""
SHORT = 200
"""Texts of nodes up to so many characters are shown on the screen too."""

_WORK, _SERVER = "What runs", "Where, and what comes back"

Workflow = Annotated[Path, typer.Argument(metavar="WORKFLOW.json", help="A workflow in API form.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NODE.INPUT=VALUE",
        help="Set an input. NODE is an id, a title, or a class that occurs once.",
        rich_help_panel=_WORK,
    ),
]
Input = Annotated[
    list[str] | None,
    typer.Option("--input", "-i", metavar="NODE.INPUT=FILE", help="Upload a file and set it.", rich_help_panel=_WORK),
]
List = Annotated[
    bool,
    typer.Option("--list", help="Show what can be set, with its values now; run nothing.", rich_help_panel=_WORK),
]
Timeout = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", min=0.001, help="Stop the run when it takes longer.", rich_help_panel=_WORK),
]
Server = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        envvar="LATENTSYNC_COMFYUI",
        help="The address of ComfyUI.",
        show_default="http://127.0.0.1:8188",
        rich_help_panel=_SERVER,
    ),
]
Header = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME: VALUE", help='Goes with every request: "Authorization: Bearer …".', rich_help_panel=_SERVER
    ),
]
Out = Annotated[
    Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where the results go.", rich_help_panel=_SERVER)
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace files of the same name.", rich_help_panel=_SERVER)
]
Json = Annotated[
    Path | None,
    typer.Option(
        "--json", metavar="REPORT", help="Also write what was done as JSON; - is the screen.", rich_help_panel=_SERVER
    ),
]
Free = Annotated[
    bool, typer.Option("--free", help="Let the server unload its models afterwards.", rich_help_panel=_SERVER)
]


def queue(
    workflow: Workflow,
    values: Set = None,
    inputs: Input = None,
    show: List = False,
    timeout: Timeout = None,
    server: Server = None,
    header: Header = None,
    out: Out = Path(),
    overwrite: Overwrite = False,
    report: Json = None,
    free: Free = False,
) -> None:
    """Run a workflow on a running ComfyUI and fetch what it makes.

    \b
      latentsync queue example_workflows/api/lip_sync_a_video.json -i "Video of a face.file=clip.mp4" \\
          -i "Speech.audio=speech.wav" --set "LatentSync: Lip Sync.seed=7" -o results

    Prints the paths of the results. Ctrl-C withdraws the run from the server.
    """
    from ..comfy_client.client import ComfyClient
    from ..comfy_client.events import RunFailedError

    _check_places(out, report)
    client = ComfyClient(server, headers=dict(map(parse_header, header or ())))
    if show:
        _list(client, workflow, _pairs(values))
        return
    work = _work(client, workflow, _pairs(inputs), _pairs(values), timeout, out, overwrite, free)
    try:
        with _refusals():
            result, paths = asyncio.run(work)
    except RunFailedError as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(FAILED) from error
    _show(result, paths, client.shown, report)


@contextmanager
def _refusals() -> Iterator[None]:
    """A line for each node that ComfyUI does not take."""
    from ..comfy_client.client import RefusedError

    try:
        yield
    except RefusedError as error:
        typer.echo("\n  ".join(["error: ComfyUI refused the workflow:", *error.lines]), err=True)
        raise typer.Exit(BAD_INPUT) from error


def _list(client: "ComfyClient", workflow: Path, values: dict[str, str]) -> None:
    """A line for each input: NAME=VALUE, and what it takes."""
    from ..comfy_client.inputs import wanted
    from ..comfy_client.prompt import shown_value

    async def ask() -> tuple["Prompt", list["Field"]]:
        async with client:
            return await client.fields(workflow, values)

    with _refusals():
        prompt, fields = asyncio.run(ask())
    lines = [(field, f"  {field.name}={shown_value(prompt, field)}") for field in fields]
    width = min(WIDE, max((len(line) for _, line in lines), default=0))
    node = ""
    for field, line in lines:
        if field.node != node:
            typer.echo(f"{field.label} (node {field.node})")
        node = field.node
        typer.echo(f"{line:<{width}}  {wanted(field)}")


def _pairs(texts: Sequence[str] | None) -> dict[str, str]:
    pairs = {}
    for text in texts or ():
        place, sign, value = text.partition("=")
        if not sign or not place.strip():
            raise UserError(f"{text} lacks a part; it must look like NODE.INPUT=VALUE.")
        pairs[place.strip()] = value
    return pairs


def parse_header(text: str) -> tuple[str, str]:
    name, sign, value = text.partition(":")
    if not sign or not name.strip() or not name.strip().replace("-", "").replace("_", "").isalnum() or "\n" in value:
        raise UserError('A --header must look like "Authorization: Bearer …".')
    return name.strip(), value.strip()


def _check_places(out: Path, report: Path | None) -> None:
    """What can be found wrong before the server works for nothing."""
    near = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not near.is_dir() or not os.access(near, os.W_OK):
        raise UserError(f"{out} cannot be written to; name a folder by --out that can.")
    if (
        report is not None
        and str(report) != "-"
        and (report.is_dir() or not os.access(report.absolute().parent, os.W_OK))
    ):
        raise UserError(f"{report} cannot be written there; name a file in a folder that can be written to.")


async def _work(
    client: "ComfyClient",
    workflow: Path,
    inputs: dict[str, str],
    values: dict[str, str],
    timeout: float | None,
    out: Path,
    overwrite: bool,
    free: bool,
) -> tuple["RunResult", dict[str, list[Path]]]:
    from ..comfy_client.client import save_values

    async with client:
        try:
            with _display() as on_event:
                result = await client.run(workflow, inputs=inputs, values=values, on_event=on_event, timeout=timeout)
        finally:
            if free:
                await client.free()
        paths: dict[str, list[Path]] = {}
        for output, path in (await client.download(result, out, overwrite=overwrite)).items():
            paths.setdefault(output.node, []).append(path)
        for node, saved in save_values(result, out, overwrite=overwrite).items():
            paths.setdefault(node, []).extend(saved)
        return result, paths


@contextmanager
def _display() -> Iterator["OnEvent"]:
    """A bar per node on a terminal, a line per node elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines()
        return
    columns = TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    with Progress(*columns, TextColumn("{task.fields[stage]}", markup=False), console=console) as bars:
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
        """The bar of the node that ran stays full; one that was gone in a moment makes room."""
        task = next((task for task in self.bars.tasks if task.id == self.tasks.get(self.now)), None)
        if task is not None:
            brief = task.total is None and (task.elapsed or 0) < BRIEF
            self.bars.update(task.id, total=1, completed=1, stage="", visible=not brief)
            self.bars.stop_task(task.id)


def _lines() -> "OnEvent":
    def on_event(event: "Event") -> None:
        line = event.title if event.kind == "node" else _line(event)
        if line is not None:
            typer.echo(line, err=True)

    return on_event


def _line(event: "Event") -> str | None:
    if event.kind == "uploading":
        return f"uploading {event.text}"
    if event.kind == "queued":
        return f"queued, {event.done:g} ahead" if event.done else "queued"
    if event.kind == "cached" and event.done:
        return f"{event.done:g} of {event.total:g} nodes need not run again"
    return {"lost": "no live progress from the server; the run goes on", "found": "in touch again"}.get(event.kind)


def _show(result: "RunResult", paths: dict[str, list[Path]], server: str, report: Path | None) -> None:
    from .console import show_json, write_json

    on_screen = str(report) == "-"
    facts = _facts(result, paths, server)
    for path in (path for found in paths.values() for path in found):
        typer.echo(str(path), err=on_screen)
    for text in (text for says in result.values.values() for text in says.get("text", [])):
        if isinstance(text, str) and len(text) <= SHORT:
            typer.echo(text, err=True)
    done = f"{result.total_seconds:.1f} s" + ("" if paths else "; no node of the workflow leaves a result")
    typer.echo(done, err=True)
    if report is not None:
        show_json(facts) if on_screen else write_json(report, facts)


def _facts(result: "RunResult", paths: dict[str, list[Path]], server: str) -> dict[str, Any]:
    from ..comfy_client.prompt import title

    nodes = [
        {
            "id": node,
            "title": title(result.prompt, node),
            "class": own["class_type"],
            "seconds": round(result.seconds.get(node, 0.0), 3),
            "cached": node in result.cached,
        }
        for node, own in result.prompt.items()
    ]
    outputs = [
        {"node": node, "title": title(result.prompt, node), "file": str(path)}
        for node, found in paths.items()
        for path in found
    ]
    return {
        "server": server,
        "prompt_id": result.prompt_id,
        "seconds": round(result.total_seconds, 3),
        "nodes": nodes,
        "outputs": outputs,
        "values": result.values,
        "uploads": result.uploads,
    }
