"""Starts the web app: Streamlit in a process of its own, with a folder for its files that goes when it ends."""

import dataclasses
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ..errors import UserError
from .config import VARIABLE, AppSettings

PAGE = Path(__file__).with_name("streamlit_app.py")
START, STOP = 120.0, 20.0
"""Seconds in which the app must answer, and in which it must end."""
INSTALL = 'The web app needs Streamlit; type: pip install "latentsync[app]"'
SHARED = """This app is now open to everybody on the internet who has this address:

    {url}

They can send files to this computer, make it compute, and see what they sent and what was made of it. They cannot see
what others sent, nor any other file of this computer. Everything passes through ngrok's servers. Anybody who learns
the address can come in: give it only to people you trust. Ctrl-C closes it."""


@dataclass(frozen=True)
class Place:
    """Where the app listens. base: the path below which it lies, behind a proxy. share: also in the internet."""

    host: str = "127.0.0.1"
    port: int = 8501
    base: str = ""
    share: bool = False

    @property
    def url(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)
        return f"http://{host}:{self.port}/{self.base.strip('/')}".rstrip("/")


def command(place: Place, settings: AppSettings) -> list[str]:
    """What starts Streamlit: nothing is watched, counted or shown to visitors that is not for them."""
    limits = settings.limits
    options: Mapping[str, object] = {
        "server.address": place.host,
        "server.port": place.port,
        "server.baseUrlPath": place.base.strip("/"),
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "server.maxUploadSize": limits.megabytes,
        "server.enableXsrfProtection": "true",
        "server.disconnectedSessionTTL": max(1, round(limits.keep)),
        # a full collection after every look at a run, with torch loaded, would leave the run itself hardly any time
        "runner.postScriptGC": "false",
        "browser.gatherUsageStats": "false",
        "client.showErrorDetails": "none",
        # a browser that had thrown away a frame which Streamlit then only refers to would lose its connection for
        # good: so it went when a run ended just after it was cancelled
        "global.maxCachedMessageAge": 1_000_000,
        # which would print what went wrong on the page to stdout, with the greeting
        "logger.enableRich": "false",
        "client.toolbarMode": "minimal",
    }
    told = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return [sys.executable, "-m", "streamlit", "run", str(PAGE), *told]


def serve(settings: AppSettings, place: Place, say: Callable[[str], None], on_ready: Callable[[str], None]) -> int:
    """Run the app until it ends or is interrupted; its exit code. on_ready(address) is called once it answers."""
    if find_spec("streamlit") is None:
        raise UserError(INSTALL)
    if place.share and find_spec("pyngrok") is None:
        raise UserError('--share needs pyngrok; type: pip install "latentsync[share]"')
    with (
        tempfile.TemporaryDirectory(prefix="latentsync-app-", ignore_cleanup_errors=True) as folder,
        _running(dataclasses.replace(settings, folder=folder), place) as child,
    ):
        _await_answer(child, place)
        with _shared(place, say):
            on_ready(place.url)
            return child.wait()


@contextmanager
def _running(settings: AppSettings, place: Place) -> "Iterator[subprocess.Popen[bytes]]":
    # its greeting goes nowhere, its complaints come through
    child = subprocess.Popen(command(place, settings), env=_environment(settings), stdout=subprocess.DEVNULL)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(STOP)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _environment(settings: AppSettings) -> dict[str, str]:
    """The page finds this package where it is, and its settings without showing them in the list of processes."""
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": paths, VARIABLE: settings.to_text()}


def _await_answer(child: "subprocess.Popen[bytes]", place: Place) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + START
    while time.monotonic() < end:
        if child.poll() is not None:
            raise UserError(f"The app could not start (see above); is port {place.port} taken? --port names another.")
        try:
            with direct.open(f"{place.url}/_stcore/health", timeout=5):
                return
        except (OSError, urllib.error.URLError):
            time.sleep(0.2)
    raise UserError(f"The app did not answer at {place.url} within {START:.0f} s.")


@contextmanager
def _shared(place: Place, say: Callable[[str], None]) -> Iterator[None]:
    """An address in the internet that leads here, with the user's own ngrok token; only where it was asked for."""
    if not place.share:
        yield
        return
    from pyngrok import ngrok
    from pyngrok.exception import PyngrokError

    try:
        url = str(ngrok.connect(str(place.port), "http").public_url)
    except PyngrokError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"ngrok did not open a way in ({reason}); put your token, from ngrok's web site, into NGROK_AUTHTOKEN."
        ) from error
    try:
        say(SHARED.format(url="/".join(filter(None, (url, place.base.strip("/"))))))
        yield
    finally:
        ngrok.kill()
