"""What is brought into the input folder, and when."""

import importlib.util
import logging
import sys
import types
from pathlib import Path

import pytest

from ..nodes.server import ROOT
from .api import as_shipped
from .flows import FLOWS


class Host:
    """ComfyUI's two folders, and the module as a start of ComfyUI loads it."""

    def __init__(self, base: Path) -> None:
        self.input, self.user = base / "input", base / "user"
        for folder in (self.input, self.user):
            folder.mkdir()

    def start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        paths = types.ModuleType("folder_paths")
        vars(paths).update(get_input_directory=lambda: str(self.input), get_user_directory=lambda: str(self.user))
        monkeypatch.setitem(sys.modules, "folder_paths", paths)
        spec = importlib.util.spec_from_file_location("samples_of_a_test", ROOT / "nodes" / "host" / "samples.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.bring_samples()

    def files(self) -> set[str]:
        return {path.name for path in self.input.iterdir()}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def named_by_templates() -> set[str]:
    nodes = [node for name in FLOWS for node in as_shipped(name).prompt.values()]
    return {next(iter(node["inputs"].values())) for node in nodes if node["class_type"].startswith("Load")}


def test_all_that_the_templates_name_and_no_more(host, monkeypatch):
    host.start(monkeypatch)
    assert host.files() == named_by_templates()
    assert (host.input / "latentsync_voice.flac").read_bytes().startswith(b"fLaC")
    assert (host.input / "latentsync_portrait.jpg").read_bytes().startswith(b"\xff\xd8")
    assert (host.input / "latentsync_face.mp4").read_bytes()[4:8] == b"ftyp"


def test_what_was_deleted_stays_deleted(host, monkeypatch):
    host.start(monkeypatch)
    (host.input / "latentsync_face.mp4").unlink()
    host.start(monkeypatch)
    assert host.files() == named_by_templates() - {"latentsync_face.mp4"}


def test_a_sample_of_a_later_version_comes_alone(host, monkeypatch):
    (host.user / "latentsync_samples.txt").write_text("latentsync_face.mp4\nlatentsync_voice.flac\n", encoding="utf-8")
    host.start(monkeypatch)
    assert host.files() == named_by_templates() - {"latentsync_face.mp4", "latentsync_voice.flac"}


def test_a_file_of_the_user_stays_as_it_is(host, monkeypatch):
    mine = host.input / "latentsync_voice.flac"
    mine.write_bytes(b"mine")
    host.start(monkeypatch)
    assert mine.read_bytes() == b"mine"
    assert host.files() == named_by_templates()


@pytest.mark.parametrize("shut", ["input", "user"])
def test_a_folder_that_cannot_be_written_is_said_in_one_line(host, monkeypatch, caplog, shut):
    """A file in the folder's place: permissions do not bind an administrator."""
    folder = getattr(host, shut)
    folder.rmdir()
    folder.write_bytes(b"")
    with caplog.at_level(logging.INFO):
        host.start(monkeypatch)
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "LatentSync's templates have no sample files"
    ]
    if shut == "user":
        assert host.files() == set()  # or they would come again at every start
    folder.unlink()
    folder.mkdir()
    host.start(monkeypatch)
    assert host.files() == named_by_templates()


def test_they_are_small():
    """In the archive, and in everybody's clone."""
    folder = ROOT / "latentsync" / "assets" / "samples"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 300_000
