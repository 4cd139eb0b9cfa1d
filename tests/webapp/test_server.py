"""`latentsync app`: what it starts, where it listens, what it tells, what it leaves."""

import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from typer.testing import CliRunner

import latentsync.webapp.server as server
from latentsync.cli.main import app
from latentsync.errors import UserError
from latentsync.webapp.config import AppSettings, Limits
from latentsync.webapp.server import Address, command, serve

ROOT = Path(__file__).resolve().parents[2]
STANDING = """
import json, os, pathlib, sys, time
folder = json.loads(os.environ["LATENTSYNC_APP"])["folder"]
pathlib.Path(folder, "file").write_text("x")
pathlib.Path(sys.argv[1]).write_text(f"{os.getpid()} {folder}")
time.sleep(60)
"""


def options(*, address=None, limits=None):
    told = command(address or Address(), AppSettings(limits=limits or Limits()))
    return dict(zip(told[5::2], told[6::2], strict=True))


def test_it_listens_to_this_computer_alone_unless_told():
    assert options()["--server.address"] == "127.0.0.1"
    assert options()["--server.enableXsrfProtection"] == "true"
    assert options()["--client.showErrorDetails"] == "none", "no paths and no code in a session's browser"
    assert int(options()["--global.maxCachedMessageAge"]) > 100_000, "or a page may die when its run is cancelled"
    assert options()["--logger.enableRich"] == "false", "which would tell stdout what goes wrong on the page: nobody"
    assert options()["--browser.gatherUsageStats"] == "false"
    assert options()["--runner.postScriptGC"] == "false", "or a page that is watched starves the run in its process"
    told = options(address=Address("0.0.0.0", 9000, "/sync/"), limits=Limits(megabytes=33, keep=7))
    assert (told["--server.address"], told["--server.port"]) == ("0.0.0.0", "9000")
    assert told["--server.baseUrlPath"] == "sync"
    assert (told["--server.maxUploadSize"], told["--server.disconnectedSessionTTL"]) == ("33", "7")
    assert Address("0.0.0.0", 9000, "/sync/").url == "http://127.0.0.1:9000/sync"


def invoke(*arguments):
    return CliRunner().invoke(app, ["app", *arguments])


@pytest.fixture
def started(monkeypatch):
    """What the command would start."""
    calls = []
    monkeypatch.setattr(server, "serve", lambda *arguments: calls.append(arguments) or 0)
    return calls


def test_the_command_hands_on_what_it_was_told(started, tmp_path):
    limits, where = ("--max-upload", "12", "--max-seconds", "9"), ("--port", "9001", "--base-path", "/x")
    told = (*limits, *where, "--server", "http://gpu:8188", "--no-local")
    done = invoke(*told, "--header", "X-Token: abc", "--samples", str(tmp_path))
    assert done.exit_code == 0, done.output
    settings, address, _, _ = started[0]
    assert (settings.limits.megabytes, settings.limits.seconds) == (12, 9)
    assert (settings.server, settings.local, settings.headers) == ("http://gpu:8188", False, {"X-Token": "abc"})
    assert settings.samples == str(tmp_path)
    assert (address.port, address.base, address.share) == (9001, "/x", False)


def test_nothing_is_shared_unless_asked(started):
    invoke()
    assert not started[0][1].share
    invoke("--share")
    assert started[1][1].share


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--no-local"], "No backend is enabled"),
        (["--samples", "nowhere"], "no folder nowhere"),
        (["--checkpoint", "nowhere.pt"], "no file nowhere.pt"),
        (["--checkpoint", str(Path(__file__))], "test_server.py"),
        (["--header", "nonsense"], "--header"),
    ],
)
def test_what_cannot_be_is_said_at_once(started, arguments, says):
    done = invoke(*arguments)
    assert done.exit_code == 2
    assert says in " ".join(done.output.split())
    assert not started


def test_without_streamlit_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(server, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install .streamlit>="):
        serve(AppSettings(), Address(), print, print)


def test_a_child_that_ends_at_once_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(server, "find_spec", lambda name: True)
    monkeypatch.setattr(server, "command", lambda *_: [sys.executable, "-c", "raise SystemExit(1)"])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(UserError, match="could not start"):
        serve(AppSettings(), Address(port=9), print, print)
    assert not list(tmp_path.iterdir())


ALONE = f"""
import sys
import latentsync.webapp.server as server
server.find_spec = lambda name: True
server.command = lambda *_: [sys.executable, "-c", {STANDING!r}, sys.argv[1]]
server._await_answer = lambda *_: None
from latentsync.webapp.config import AppSettings
import signal
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
server.serve(AppSettings(), server.Address(), print, print)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
@pytest.mark.parametrize("how", ["told to end", "the child dies"])
def test_files_go_whoever_ends_it(tmp_path, how):
    note = tmp_path / "note"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", ALONE, str(note)], env=environment)
    try:
        end = time.monotonic() + 120
        while not (note.exists() and note.read_text()) and time.monotonic() < end:
            time.sleep(0.05)
        child, folder = note.read_text().split(" ", 1)
        folder = Path(folder)
        assert (folder / "file").exists()
        assert folder.stat().st_mode & 0o077 == 0
        if how == "told to end":
            process.send_signal(signal.SIGTERM)
        else:
            os.kill(int(child), signal.SIGKILL)
        process.wait(60)
        assert not folder.exists()
    finally:
        process.kill()


def ngrok(monkeypatch, connect):
    """A pyngrok whose tunnel a test says."""
    closed = []
    package, module = types.ModuleType("pyngrok"), types.ModuleType("pyngrok.exception")
    module.PyngrokError = type("PyngrokError", (Exception,), {})
    package.ngrok = types.SimpleNamespace(connect=connect(module.PyngrokError), kill=lambda: closed.append(True))
    monkeypatch.setitem(sys.modules, "pyngrok", package)
    monkeypatch.setitem(sys.modules, "pyngrok.exception", module)
    return closed


def test_sharing_says_plainly_what_it_opens(monkeypatch):
    asked, said = [], []

    def connect(error):
        return lambda *a: asked.append(a) or types.SimpleNamespace(public_url="https://abc.ngrok.app")

    closed = ngrok(monkeypatch, connect)
    with server._shared(Address(port=9000, base="/x", share=True), said.append):
        assert asked == [("9000", "http")]
        assert not closed
    assert closed
    text = said[0]
    assert "https://abc.ngrok.app/x" in text
    assert all(words in text for words in ("everyone on the internet", "ngrok's servers", "only to people you trust"))


def test_sharing_without_a_token_says_how_to_get_one(monkeypatch):
    def connect(error):
        def refuse(*_):
            raise error("ERR_NGROK_4018")

        return refuse

    ngrok(monkeypatch, connect)
    with pytest.raises(UserError, match="NGROK_AUTHTOKEN"), server._shared(Address(share=True), print):
        pass


def test_files_beside_the_code_are_in_the_wheel():
    """All that is not Python, of the app and of the rest."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 has it")
    with (ROOT / "pyproject.toml").open("rb") as file:
        patterns = tomllib.load(file)["tool"]["setuptools"]["package-data"]["latentsync"]
    package = ROOT / "latentsync"
    packed = {path for pattern in patterns for path in package.glob(pattern) if path.is_file()}
    beside = {path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert beside == packed
