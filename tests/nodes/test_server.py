"""The test server itself, on ComfyUI's own nodes: what it tells of a run has to be true before anything rests on it."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from .clips import frames_of
from .graphs import Graph
from .run import decode
from .server import ROOT, ComfyServer, find_comfyui


def picture(*, width=32, color=255):
    g = Graph()
    image = g.node("EmptyImage", width=width, height=24, batch_size=2, color=color)
    g.node("PreviewImage", images=image)
    return g


def test_a_run_and_its_second_time(comfy):
    first = comfy.queue(picture(color=1234)).check()
    assert first.ran_kinds() == ["EmptyImage", "PreviewImage"]
    shown = first.shown("PreviewImage", "images")
    assert [comfy.path(one).is_file() for one in shown] == [True, True]
    assert comfy.view(shown[0]).startswith(b"\x89PNG")
    assert "outputs" in comfy.history(first)
    again = comfy.queue(picture(color=1234)).check()
    assert not again.ran
    assert again.cached == {"1", "2"}


def test_an_error_and_a_refusal(comfy):
    g = Graph()
    image = g.node("EmptyImage", width=32, height=24, batch_size=1, color=0)
    g.node("PreviewImage", images=g.node("ImageScaleBy", image=image, upscale_method="bicubic", scale_by=0.01))
    failed = comfy.queue(g)
    assert (failed.status, failed.failure.kind, failed.failure.node) == ("error", "ImageScaleBy", "2")
    assert failed.failure.exception
    with pytest.raises(AssertionError, match="ImageScaleBy"):
        failed.check()
    refused = comfy.queue(picture(width=-5))
    assert refused.status == "refused"
    assert "min of 1" in refused.refusals["1"]
    assert comfy.idle()


def test_a_clip_and_cut_frames(comfy, portrait_clip):
    g = Graph()
    parts = g.node("GetVideoComponents", video=g.node("LoadVideo", file=portrait_clip))
    g.node("SaveVideo", video=g.node("CreateVideo", images=parts, audio=parts[1], fps=parts[2]),
           filename_prefix="copy", format="mp4", codec="h264")  # fmt: skip
    run = comfy.queue(g).check()
    saved = comfy.path(run.shown("SaveVideo", "images")[0])
    assert frames_of(saved).shape == (20, 280, 320, 3)
    assert saved.relative_to(comfy.base).as_posix() in comfy.files()


def test_what_watch_raises_ends_the_run(comfy):
    def stop(run, event):
        if event == "executing":
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        comfy.queue(picture(color=77), watch=stop)
    assert comfy.idle()
    comfy.queue(picture(color=78)).check()


def test_memory_upload_and_folders(comfy, tmp_path):
    assert 100e6 < comfy.rss() <= comfy.peak_rss()
    (tmp_path / "a b.txt").write_text("x", encoding="utf-8")
    assert comfy.upload(tmp_path / "a b.txt", "deep") == "deep/a b.txt"
    assert (comfy.input / "deep" / "a b.txt").read_text(encoding="utf-8") == "x"
    assert "Starting server" in comfy.log


def test_a_server_that_cannot_start_says_so(comfyui, tmp_path):
    with (
        pytest.raises(RuntimeError, match="unrecognized arguments"),
        ComfyServer(comfyui, tmp_path, args=["--nonsense"]),
    ):
        pass


DOOMED = """
import os, sys
from pathlib import Path
from tests.nodes.server import ComfyServer, find_comfyui
with ComfyServer(find_comfyui(), Path(sys.argv[1])) as server:
    print(server.process.pid, flush=True)
    os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system has no such bond")
def test_a_killed_run_leaves_no_server(comfyui, tmp_path):
    command = [sys.executable, "-c", DOOMED, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    state = Path(f"/proc/{int(done.stdout)}/status")
    end = time.monotonic() + 20
    while state.exists() and "State:\tZ" not in state.read_text(encoding="utf-8") and time.monotonic() < end:
        time.sleep(0.1)
    assert not state.exists() or "State:\tZ" in state.read_text(encoding="utf-8")


def test_messages_are_read():
    assert decode('{"type": "status", "data": {"x": 1}}') == ("status", {"x": 1})
    assert decode(b"\0\0\0\3\0\0\0\x0212finding faces: 1 of 2") == ("text", ("12", "finding faces: 1 of 2"))
    assert decode(b"\0\0\0\1\0\0\0\1JPEG") == ("preview", ("", b"JPEG"))
    assert decode(b'\0\0\0\4\0\0\0\x10{"node_id": "7"}JPEG') == ("preview", ("7", b"JPEG"))


def test_where_comfyui_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.delenv("COMFYUI_PYTHON", raising=False)
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    assert find_comfyui() is None
    (tmp_path / "main.py").touch()
    assert find_comfyui().python.as_posix() == sys.executable
    monkeypatch.setenv("COMFYUI_PYTHON", "/opt/python")
    assert find_comfyui().python.as_posix() == "/opt/python"


@pytest.mark.parametrize(("required", "outcome"), [("", "1 skipped"), ("1", "1 error")])
def test_without_comfyui_it_is_said_aloud(tmp_path, monkeypatch, required, outcome):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    monkeypatch.setenv("LATENTSYNC_REQUIRE_COMFYUI", required)
    one = f"{__file__}::test_memory_upload_and_folders"
    command = [sys.executable, "-m", "pytest", "-rs", one]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert outcome in done.stdout
    assert "COMFYUI_PATH names its folder, COMFYUI_PYTHON" in done.stdout
