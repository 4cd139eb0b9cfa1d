"""Run Streamlit in a process of its own, with a folder for its files that is removed at the end."""

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

from ..errors import UserError, missing_package
from .config import LOCAL_HOSTS, VARIABLE, AppSettings

PAGE = Path(__file__).with_name("streamlit_app.py")
START, STOP = 120.0, 20.0  # seconds until the app must answer, and until it must have ended
TAB_KEPT = 120.0
SHARED = """This app is now open to everyone on the internet who has this address:

    {url}

They can send files to this computer, run jobs on it, and see their own uploads and results. They cannot see what others
sent, or any other file on this computer. Everything passes through ngrok's servers. Anyone who learns the address can
use the app: give it only to people you trust. Ctrl-C closes it."""


@dataclass(frozen=True)
class Address:
    """Where the app listens. base: its path behind a proxy. share: also open it to the internet."""

    host: str = "127.0.0.1"
    port: int = 8501
    base: str = ""
    share: bool = False

    @property
    def private(self) -> bool:
        """Whether only this computer is let in; a path means that a proxy stands before it."""
        return self.host in LOCAL_HOSTS and not self.share and not self.base.strip("/")

    @property
    def url(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{self.port}/{self.base.strip('/')}".rstrip("/")


def command(address: Address, settings: AppSettings) -> list[str]:
    """Streamlit's command line: no file watching, no usage statistics, no error details in browsers."""
    limits = settings.limits
    options: Mapping[str, object] = {
        "server.address": address.host,
        "server.port": address.port,
        "server.baseUrlPath": address.base.strip("/"),
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "server.maxUploadSize": limits.megabytes,
        "server.enableXsrfProtection": "true",
        # of Streamlit's own memory of a tab; what a visitor did is kept elsewhere, see sessions.py
        "server.disconnectedSessionTTL": max(1, round(min(limits.keep, TAB_KEPT))),
        # a form that is filled in again after a reload has both a default and a value
        "global.disableWidgetStateDuplicationWarning": "true",
        # with torch loaded, a full collection at every update of the progress would leave the run hardly any time
        "runner.postScriptGC": "false",
        "browser.gatherUsageStats": "false",
        "client.showErrorDetails": "none",
        # a browser loses its connection for good when Streamlit refers to a message that the browser has dropped,
        # which happened when a run ended just after it was cancelled
        "global.maxCachedMessageAge": 1_000_000,
        # rich tracebacks of the page would go to stdout, with the greeting
        "logger.enableRich": "false",
        "client.toolbarMode": "minimal",
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return [sys.executable, "-m", "streamlit", "run", str(PAGE), *arguments]


def serve(settings: AppSettings, address: Address, echo: Callable[[str], None], on_ready: Callable[[str], None]) -> int:
    """Run the app until it ends or is interrupted; its exit code. on_ready(address) is called once it answers."""
    if find_spec("streamlit") is None:
        raise missing_package("The web app", "streamlit")
    if address.share and find_spec("pyngrok") is None:
        raise missing_package("--share", "pyngrok")
    with (
        tempfile.TemporaryDirectory(prefix="latentsync-app-", ignore_cleanup_errors=True) as folder,
        _running(dataclasses.replace(settings, folder=folder, private=address.private), address) as child,
    ):
        _await_answer(child, address)
        with _shared(address, echo):
            on_ready(address.url)
            return child.wait()


@contextmanager
def _running(settings: AppSettings, address: Address) -> "Iterator[subprocess.Popen[bytes]]":
    paths = os.pathsep.join(filter(None, (str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH"))))
    # settings go by the environment, which the list of processes does not show
    environment = {**os.environ, "PYTHONPATH": paths, VARIABLE: settings.to_text()}
    # its greeting is dropped; errors go to stderr
    child = subprocess.Popen(command(address, settings), env=environment, stdout=subprocess.DEVNULL)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(STOP)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _await_answer(child: "subprocess.Popen[bytes]", address: Address) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + START
    while time.monotonic() < end:
        if child.poll() is not None:
            raise UserError(f"The app could not start (see above); is port {address.port} taken? --port names another.")
        try:
            with direct.open(f"{address.url}/_stcore/health", timeout=5):
                return
        except (OSError, urllib.error.URLError):
            time.sleep(0.2)
    raise UserError(f"The app did not answer at {address.url} within {START:.0f} s.")


@contextmanager
def _shared(address: Address, echo: Callable[[str], None]) -> Iterator[None]:
    """With address.share: a public address, by the user's own ngrok token."""
    if not address.share:
        yield
        return
    from pyngrok import ngrok
    from pyngrok.exception import PyngrokError

    try:
        url = str(ngrok.connect(str(address.port), "http").public_url)
    except PyngrokError as error:
        reason, advice = (
            " ".join(str(error).split())[:300],
            "put your token, from ngrok's website, into NGROK_AUTHTOKEN",
        )
        raise UserError(f"ngrok did not open a tunnel ({reason}); {advice}.") from error
    try:
        echo(SHARED.format(url="/".join(filter(None, (url, address.base.strip("/"))))))
        yield
    finally:
        ngrok.kill()
