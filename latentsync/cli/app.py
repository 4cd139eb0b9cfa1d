"""`latentsync app`: the engine in a browser."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError
from ..settings import WATERMARKS, Settings
from ..webapp.config import AppSettings, Limits
from . import options
from .queue import Header, parse_header

_WHERE, _LIMITS, _WHO = "Where it is to be found", "What visitors may do", "Who computes"

Host = Annotated[
    str,
    typer.Option(
        metavar="ADDRESS",
        help="Where to listen: 127.0.0.1 is this computer alone, 0.0.0.0 lets everybody in who can reach it.",
        rich_help_panel=_WHERE,
    ),
]
Port = Annotated[int, typer.Option(min=1, max=65535, help="The port.", rich_help_panel=_WHERE)]
Base = Annotated[
    str,
    typer.Option("--base-path", metavar="PATH", help="The path it has behind a proxy.", rich_help_panel=_WHERE),
]
Browser = Annotated[bool, typer.Option(help="Whether to open the browser.", rich_help_panel=_WHERE)]
Share = Annotated[
    bool,
    typer.Option(
        "--share",
        help="Open it to the internet through ngrok, with your own token (NGROK_AUTHTOKEN).",
        rich_help_panel=_WHERE,
    ),
]
Megabytes = Annotated[
    int, typer.Option("--max-upload", metavar="MB", min=1, help="Largest file.", rich_help_panel=_LIMITS)
]
Seconds = Annotated[
    float,
    typer.Option("--max-seconds", metavar="SECONDS", min=1, help="Longest clip and voice.", rich_help_panel=_LIMITS),
]
Steps = Annotated[int, typer.Option("--max-steps", min=1, max=1000, help="Most steps.", rich_help_panel=_LIMITS)]
Waiting = Annotated[int, typer.Option("--max-waiting", min=1, help="Runs that may wait.", rich_help_panel=_LIMITS)]
Keep = Annotated[
    float,
    typer.Option(
        metavar="SECONDS",
        min=1,
        help="How long the files of somebody who left are kept, in case they come back.",
        rich_help_panel=_LIMITS,
    ),
]
Watermark = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help=f"Label every result as generated ({', '.join(WATERMARKS)}); none leaves it to the users.",
        rich_help_panel=_LIMITS,
    ),
]
Samples = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Files that visitors may choose from.", rich_help_panel=_LIMITS),
]
Checkpoints = Annotated[
    list[str] | None,
    typer.Option(
        "--checkpoint",
        "-c",
        metavar="PATH",
        help="Offer this checkpoint too; nano, 1.5 and 1.6 are offered where they are here.",
        rich_help_panel=_WHO,
    ),
]
Server = Annotated[
    str | None,
    typer.Option(
        metavar="URL", envvar="LATENTSYNC_COMFYUI", help="A ComfyUI that can compute instead.", rich_help_panel=_WHO
    ),
]
Local = Annotated[bool, typer.Option(help="Whether this computer may compute.", rich_help_panel=_WHO)]


def app(
    host: Host = "127.0.0.1",
    port: Port = 8501,
    base: Base = "",
    browser: Browser = True,
    share: Share = False,
    megabytes: Megabytes = Limits.megabytes,
    seconds: Seconds = Limits.seconds,
    steps: Steps = Limits.steps,
    waiting: Waiting = Limits.waiting,
    keep: Keep = Limits.keep,
    samples: Samples = None,
    watermark: Watermark = Settings.watermark,
    checkpoints: Checkpoints = None,
    server: Server = None,
    header: Header = None,
    local: Local = True,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
) -> None:
    """The same engine in a browser: give a face and a voice, click, watch, download.

    \b
      latentsync app
      latentsync app --server http://gpu.example.com:8188 --no-local

    Only this computer can open it, unless --host or --share say otherwise. Ctrl-C ends it and removes its files.
    """
    from ..webapp.server import Place, serve

    if server is None and not local:
        raise UserError("Nobody would compute: leave out --no-local, or name a ComfyUI by --server.")
    limits = Limits(megabytes=megabytes, seconds=seconds, steps=steps, waiting=waiting, keep=keep)
    settings = AppSettings(
        limits=limits,
        samples=None if samples is None else str(_folder(samples)),
        checkpoints=tuple(_checkpoint(one) for one in checkpoints or ()),
        device=device,
        dtype=dtype,
        local=local,
        server=server,
        headers=dict(map(parse_header, header or ())),
        mark=Settings(watermark=watermark).watermark,
    )
    code = serve(settings, Place(host, port, base, share), typer.echo, lambda url: _ready(url, browser))
    raise typer.Exit(code)


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise UserError(f"There is no folder {path}; give --samples one that exists.")
    return path.resolve()


def _checkpoint(name: str) -> str:
    """A file by its full path, known to be one before anybody waits for it."""
    from ..weights.identify import identify

    path = Path(name)
    if not path.is_file():
        raise UserError(f"There is no file {name}; give --checkpoint a weight file.")
    if problem := identify(path).problem:
        raise UserError(problem)
    return str(path.resolve())


def _ready(url: str, browser: bool) -> None:
    import webbrowser

    typer.echo(f"The app is at {url} (Ctrl-C ends it).")
    if browser:
        webbrowser.open(url)
