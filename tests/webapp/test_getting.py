"""LatentSync 1.6 by a button: fetched in the background from a server of this test, with progress, to be stopped."""

import contextlib
import hashlib
import http.server
import re
import threading

import pytest

from latentsync.webapp import streamlit_session
from latentsync.webapp.getting import progress_text
from latentsync.webapp.queue import CANCELLED, DONE, FAILED, Job
from latentsync.weights import registry
from latentsync.weights.registry import ModelEntry, Source

from .drawn import button, shown, text
from .test_queue import wait_until

FILES = {"unet.pt": b"u" * 3_000_000, "vae.pt": b"v" * 1_000_000}


class Shelf(http.server.ThreadingHTTPServer):
    """Serves FILES, the second half of each when `go` is set."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.go, self.asked = threading.Event(), []


class Answer(http.server.BaseHTTPRequestHandler):
    server: Shelf

    def do_GET(self):
        data = FILES[self.path[1:]]
        self.server.asked.append(self.path[1:])
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(found[1]) if found else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        half = max(start, len(data) // 2)
        self.wfile.write(data[start:half])
        self.wfile.flush()
        self.server.go.wait(30)
        with contextlib.suppress(ConnectionError):
            self.wfile.write(data[half:])

    def log_message(self, *_):
        pass


@pytest.fixture
def shelf(tiny, monkeypatch, tmp_path):
    """A 1.6 of 3 MB that needs a VAE of 1 MB, both not here yet."""
    server = Shelf()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"

    def entry(name, file, **rest):
        data = FILES[file]
        kind = {"kind": "unet", "title": name, "license": "OpenRAIL++", "sha256": hashlib.sha256(data).hexdigest()}
        return ModelEntry(name=name, file=file, bytes=len(data), sources=(Source(f"{url}/{file}"),), **kind, **rest)

    entries = (*registry.ENTRIES[:1], entry("1.6", "unet.pt", requires=("vae",)), entry("vae", "vae.pt"))
    monkeypatch.setattr(registry, "ENTRIES", entries)
    monkeypatch.setenv("LATENTSYNC_MODELS", str(tmp_path / "models"))
    yield server
    server.go.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def mine(shelf, screen, service, monkeypatch):
    """The page of whoever runs the app."""
    monkeypatch.setattr(streamlit_session, "is_owner", lambda st, settings: True)
    monkeypatch.setattr(service.backends["local"], "_extra_checkpoints", ())
    return screen


def test_it_comes_with_what_it_needs_and_can_be_chosen(mine, shelf, service, tmp_path):
    button(shown(mine), "Get LatentSync 1.6 (4 MB)").click().run()
    assert not mine.exception
    job = service.download
    assert wait_until(lambda: job.done >= 1_000_000)
    assert "Stop the download" in [one.label for one in shown(mine).button]
    assert job.total == 4_000_000, "of both files"
    assert re.match(r"Getting LatentSync 1\.6: 1\.\d+ MB of 4 MB", progress_text(job))
    service.get_model("1.6")
    assert service.download is job, "never twice at once"
    shelf.go.set()
    assert wait_until(lambda: job.over)
    assert (job.state, job.error) == (DONE, "")
    assert {path.name for path in (tmp_path / "models").iterdir()} == set(FILES)
    assert "LatentSync 1.6 is ready" in str([one.value for one in shown(mine).success])
    assert next(one for one in mine.selectbox if one.label == "Model").options[-1].startswith("LatentSync 1.6")


def test_it_can_be_stopped_and_goes_on_later(mine, shelf, service, tmp_path):
    button(shown(mine), "Get LatentSync 1.6 (4 MB)").click().run()
    first = service.download
    assert wait_until(lambda: first.done >= 1_000_000)
    button(shown(mine), "Stop the download").click().run()
    shelf.go.set()
    assert wait_until(lambda: first.over)
    assert first.state == CANCELLED
    button(shown(mine), "Get LatentSync 1.6 (4 MB)").click().run()
    assert wait_until(lambda: service.download.over)
    assert service.download.state == DONE
    assert (tmp_path / "models" / "unet.pt").read_bytes() == FILES["unet.pt"]


def test_a_failure_is_told_to_the_owner(mine, shelf, service, monkeypatch):
    monkeypatch.setitem(FILES, "unet.pt", b"something else, and shorter")
    shelf.go.set()
    button(shown(mine), "Get LatentSync 1.6 (4 MB)").click().run()
    assert wait_until(lambda: service.download.over)
    assert service.download.state == FAILED
    assert "could not be downloaded" in text(shown(mine))
    assert "Get LatentSync 1.6 (4 MB)" in [one.label for one in mine.button], "to try again"


def test_words_of_a_download():
    job: Job[None] = Job(lambda job: None)
    assert progress_text(job) == "Getting LatentSync 1.6: connecting …"
    job.cancel()
    assert progress_text(job) == "Stopping the download …"
