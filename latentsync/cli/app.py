"""`latentsync app`: the engine in a browser."""

from dataclasses import dataclass
from pathlib import Path

import typer

from ..errors import UserError
from ..settings import WATERMARKS, Settings
from ..webapp.config import NO_BACKEND, AppSettings, Limits
from .options import DEVICE, DTYPE
from .parameters import choice, expand_options
from .queue import HEADER, parse_header

ADDRESS, LIMITS, BACKENDS = "Address", "Limits for users", "Backends"


@dataclass(frozen=True)
class AddressOptions:
    host: str = choice(
        ADDRESS, "", "127.0.0.1", "Where to listen: 127.0.0.1 is this computer only, 0.0.0.0 any computer.", "ADDRESS"
    )
    port: int = choice(ADDRESS, "", 8501, "The port.", min=1, max=65535)
    base: str = choice(ADDRESS, "--base-path", "", "The app's path behind a proxy.", "PATH")
    browser: bool = choice(ADDRESS, "", True, "Whether to open the browser.")
    share: bool = choice(
        ADDRESS, "--share", False, "Open it to the internet through ngrok, with your own token (NGROK_AUTHTOKEN)."
    )


@dataclass(frozen=True)
class LimitOptions:
    megabytes: int = choice(LIMITS, "--max-upload", Limits.megabytes, "Largest file.", "MB", min=1)
    seconds: float = choice(LIMITS, "--max-seconds", Limits.seconds, "Longest clip and voice.", "SECONDS", min=1)
    steps: int = choice(LIMITS, "--max-steps", Limits.steps, "Most steps.", min=1, max=1000)
    waiting: int = choice(LIMITS, "--max-waiting", Limits.waiting, "Most runs that can wait.", min=1)
    keep: float = choice(LIMITS, "", Limits.keep, "How long files are kept after the page is closed.", "SECONDS", min=1)
    samples: Path | None = choice(LIMITS, "", None, "Files that users can choose instead of uploading.", "FOLDER")
    watermark: str = choice(
        LIMITS, "", Settings.watermark,
        f"Label every result as generated ({', '.join(WATERMARKS)}); none leaves it to the users.", "NAME",
    )  # fmt: skip


@dataclass(frozen=True)
class BackendOptions:
    checkpoints: list[str] | None = choice(
        BACKENDS, "--checkpoint -c", None,
        "Also offer this file; nano, 1.5 and 1.6 are offered if they are installed.", "PATH",
    )  # fmt: skip
    server: str | None = choice(
        BACKENDS, "", None, "A ComfyUI that can run requests.", "URL", envvar="LATENTSYNC_COMFYUI"
    )
    header: list[str] | None = choice(BACKENDS, "", None, HEADER, "NAME: VALUE")
    local: bool = choice(BACKENDS, "", True, "Whether this computer runs requests.")
    device: str = DEVICE
    dtype: str = DTYPE


@expand_options
def app(where: AddressOptions, limits: LimitOptions, backends: BackendOptions) -> None:
    """The same engine in a browser: add a face and a voice, click, watch, download.

    \b
      latentsync app
      latentsync app --server http://gpu.example.com:8188 --no-local

    By default only this computer can open it (see --host and --share). Ctrl-C stops it and removes its files.
    """
    from ..webapp.server import Address, serve

    if backends.server is None and not backends.local:
        raise UserError(NO_BACKEND)
    if limits.samples is not None and not limits.samples.is_dir():
        raise UserError(f"There is no folder {limits.samples}; give --samples one that exists.")
    settings = AppSettings(
        limits=Limits(limits.megabytes, limits.seconds, steps=limits.steps, waiting=limits.waiting, keep=limits.keep),
        samples=None if limits.samples is None else str(limits.samples.resolve()),
        checkpoints=tuple(map(_checkpoint, backends.checkpoints or ())),
        device=backends.device,
        dtype=backends.dtype,
        local=backends.local,
        server=backends.server,
        headers=dict(map(parse_header, backends.header or ())),
        watermark=Settings(watermark=limits.watermark).watermark,
    )

    def on_ready(url: str) -> None:
        typer.echo(f"The app is at {url} (Ctrl-C ends it).")
        if where.browser:
            import webbrowser

            webbrowser.open(url)

    address = Address(where.host, where.port, where.base, where.share)
    raise typer.Exit(serve(settings, address, typer.echo, on_ready))


def _checkpoint(name: str) -> str:
    from ..weights.identify import check_is_unet, identify

    path = Path(name)
    if not path.is_file():
        raise UserError(f"There is no file {name}; give --checkpoint a weight file.")
    check_is_unet(identify(path))
    return str(path.resolve())
