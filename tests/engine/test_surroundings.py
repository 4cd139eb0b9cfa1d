"""The package inside and outside ComfyUI: where weights lie, and what users are told."""

import ast
import re
from pathlib import Path

import pytest

from latentsync import files as surroundings
from latentsync.errors import UserError
from latentsync.weights import registry
from latentsync.weights.registry import find, model_folders

ROOT = Path(__file__).resolve().parents[2]
VARIABLES = ("COMFYUI_FOLDERS_BASE_PATH", "COMFYUI_PATH", "LATENTSYNC_MODELS")


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A ComfyUI with the package in it."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    base = tmp_path / "ComfyUI"
    pack = base / "custom_nodes" / "latentsync"
    pack.mkdir(parents=True)
    (base / "models").mkdir()
    monkeypatch.setattr(surroundings, "PACK", pack)
    monkeypatch.setattr(surroundings.comfyui_folder, "__defaults__", (pack,))
    return base


def test_in_comfyui_weights_lie_in_its_models(base, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "user_folder", lambda: tmp_path / "cache")
    names = ("latentsync", "vae", "vae_approx", "audio_encoders")
    assert model_folders() == [*(base / "models" / name for name in names), tmp_path / "cache", registry.ASSETS]
    monkeypatch.setenv("LATENTSYNC_MODELS", str(tmp_path / "own"))
    assert model_folders() == [tmp_path / "own", registry.ASSETS]


@pytest.mark.parametrize("name", VARIABLES[:2])
def test_models_that_lie_elsewhere_than_the_packs(base, tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, str(tmp_path / "other"))
    assert surroundings.comfyui_folder() == base, "it has models of its own"
    (base / "models").rmdir()
    assert surroundings.comfyui_folder() == base, "the other has none either"
    (tmp_path / "other" / "models").mkdir(parents=True)
    assert surroundings.comfyui_folder() == tmp_path / "other"


def test_outside_comfyui_nothing_of_it_counts(tmp_path, monkeypatch):
    """A developer's shell may name one."""
    (tmp_path / "models").mkdir()
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    assert surroundings.comfyui_folder(tmp_path / "src" / "latentsync") is None
    assert surroundings.comfyui_folder(tmp_path / "Custom_Nodes" / "x") == tmp_path, "Windows does not mind the case"


def missing():
    with pytest.raises(UserError) as caught:
        find("face-landmarker", [Path("nowhere")])
    return str(caught.value)


def test_each_is_told_what_he_can_do(base, monkeypatch):
    assert "run the node LatentSync: Download Model with the name face-landmarker, or get it from" in missing()
    monkeypatch.setattr(surroundings, "in_terminal", True)
    assert "type `python -m latentsync download face-landmarker`, or get it from" in missing()
    monkeypatch.setattr(surroundings.comfyui_folder, "__defaults__", (ROOT,))
    assert "type `latentsync download face-landmarker`, or get it from" in missing()


def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path):
    """Our own modules that a file imports when it is imported itself."""
    for node in (node for node in parsed(path).body if isinstance(node, ast.ImportFrom) and node.level):
        folder = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
        for one in (folder, *(folder / name.name for name in node.names)):
            yield from [file for file in (one.with_suffix(".py"), one / "__init__.py") if file.is_file()]


def said(path):
    """The texts of a file that are no docstrings."""
    tree = parsed(path)
    comments = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in comments)
    return [node.value for node in nodes if isinstance(node.value, str)]


def test_no_message_of_the_nodes_advises_a_command():
    """Whoever uses ComfyUI has no `latentsync` to type. All that the nodes import, and what that imports."""
    seen, left = set(), set((ROOT / "nodes").rglob("*.py"))
    while left:
        path = left.pop()
        seen.add(path)
        left |= set(imported(path)) - seen
    assert {path.name for path in seen} >= {"detect.py", "vae.py", "registry.py", "download.py", "routes.py"}
    # no node prepares footage for training, or reads its configuration files
    others = {path for path in seen if path.parent.name == "prepare" or path.name in ("dataset.py", "config.py")}
    advise = re.compile(r"`(python -m )?latentsync \w+")
    found = {path.name: text for path in seen - others for text in said(path) if advise.search(text)}
    assert found == {}
