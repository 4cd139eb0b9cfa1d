"""No message shows where folders lie on the user's machine: it names them as ComfyUI does."""

import importlib.util
import inspect
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from latentsync.errors import UserError

from .graphs import Graph

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user's home with a ComfyUI in it, its models partly on another disk."""
    home = tmp_path / "home" / "maria"
    base = home / "ComfyUI"
    monkeypatch.setattr(Path, "home", lambda: home)
    kinds = {
        "vae": [str(base / "models" / "vae"), str(tmp_path / "disk" / "vaes")],
        "latentsync": [str(base / "models" / "latentsync")],
        "custom_nodes": [str(base / "custom_nodes"), str(tmp_path / "packs")],
        "datasets": [str(base / "datasets")],
    }
    host = SimpleNamespace(
        __file__=str(base / "folder_paths.py"),
        base_path=str(base),
        models_dir=str(base / "models"),
        get_input_directory=lambda: str(base / "input"),
        get_output_directory=lambda: str(tmp_path / "results"),
        get_temp_directory=lambda: str(base / "temp"),
        folder_names_and_paths={kind: (folders, set()) for kind, folders in kinds.items()},
    )
    monkeypatch.setitem(sys.modules, "folder_paths", host)
    return home


@pytest.fixture
def paths(home):
    spec = importlib.util.spec_from_file_location("paths_of_a_host", ROOT / "nodes" / "host" / "paths.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CASES = [
    ("{base}/input/clip.mp4 has no sound.", "input/clip.mp4 has no sound."),
    ("Put it in {base}/models/latentsync as x.task.", "Put it in models/latentsync as x.task."),
    ("{base}/models/vae/a b.safetensors", "models/vae/a b.safetensors"),
    ("{disk}/vaes/a.pt and {base}/temp/b.wav", "models/vae/a.pt and temp/b.wav"),
    ("{tmp}/results/video/x.mp4", "output/video/x.mp4"),
    ("{tmp}/packs/x/y.py, {base}/custom_nodes/x/y.py", "custom_nodes/x/y.py, custom_nodes/x/y.py"),
    ("{base}/datasets/x", "ComfyUI/datasets/x"),
    ("The folder {base} is full.", "The folder ComfyUI is full."),
    ("[Errno 2] '{home}/.cache/latentsync'", "[Errno 2] '~/.cache/latentsync'"),
    ("({home})", "(~)"),
    ("{base}/input2/x, {base}/input-old, {base}/input.bak", "ComfyUI/input2/x, ComfyUI/input-old, ComfyUI/input.bak"),
    ("{home}x/y and /mnt{home}/z", "{home}x/y and /mnt{home}/z"),
    ("{base}/input.", "input."),
    ("nothing of the kind: 1/2, a/b, ~/x", "nothing of the kind: 1/2, a/b, ~/x"),
]


@pytest.mark.parametrize(("text", "wanted"), CASES)
def test_paths_become_short(paths, home, tmp_path, text, wanted):
    known = {"base": home / "ComfyUI", "home": home, "tmp": tmp_path, "disk": tmp_path / "disk"}
    assert paths.short_text(text.format(**known)) == wanted.format(**known)


@pytest.mark.skipif(sys.platform != "win32", reason="paths of Windows are told by Windows alone")
def test_paths_of_windows(paths, home):
    clip = home / "ComfyUI" / "input" / "clip.mp4"
    assert paths.short_text(f"{clip}") == "input\\clip.mp4"
    assert paths.short_text(f"{str(clip)!r}".lower()) == "'input\\\\clip.mp4'"


def test_what_is_raised_keeps_its_kind_and_its_trace(paths, home):
    clip = home / "ComfyUI" / "input" / "clip.mp4"

    def fail():
        raise UserError(f"There is no file {clip}.")

    with pytest.raises(UserError) as caught, paths.short_paths():
        fail()
    assert str(caught.value) == "There is no file input/clip.mp4."
    assert caught.traceback[-1].name == "fail"
    with pytest.raises(FileNotFoundError) as caught, paths.short_paths():
        clip.read_bytes()
    assert str(home) not in str(caught.value)
    assert caught.value.errno == 2
    with pytest.raises(KeyError) as caught, paths.short_paths():
        raise KeyError(5)
    assert caught.value.args == (5,)


def test_a_node_stays_what_it_is(paths, home):
    class Node:
        hidden = "mine"

        @classmethod
        def execute(cls, video, *, face="left"):
            if face == "none":
                raise UserError(f"{home / 'ComfyUI' / 'input' / video} shows no face.")
            return cls.hidden, video, face

    class Clone(paths.with_short_paths(Node)):
        hidden = "a clone's"

    assert paths.with_short_paths(Node) is Node
    assert Clone.execute("a.mp4", face="right") == ("a clone's", "a.mp4", "right")
    assert list(inspect.signature(Node.execute).parameters) == ["video", "face"]
    with pytest.raises(UserError, match=r"^input/a\.mp4 shows no face\.$"):
        Clone.execute(video="a.mp4", face="none")


wired = pytest.mark.skipif(
    "with_short_paths" not in (ROOT / "nodes" / "__init__.py").read_text(encoding="utf-8"),
    reason="the nodes are not wrapped yet",
)


def loading_an_empty_file(comfy):
    (comfy.models / "latentsync").mkdir(parents=True, exist_ok=True)
    (comfy.models / "latentsync" / "empty.safetensors").touch()
    g = Graph()
    g.node("PreviewAny", source=g.node("LatentSyncLoader", checkpoint="empty.safetensors", resolution=0, dtype="auto"))
    return comfy.queue(g)


def test_the_kind_of_an_error_is_no_path(comfy):
    """ComfyUI names a pack's modules by where they lie, and its error report shows an error's module."""
    run = loading_an_empty_file(comfy)
    ((_, told),) = [m for m in comfy.history(run)["status"]["messages"] if m[0] == "execution_error"]
    assert told["exception_type"] == "latentsync.errors.UserError"


@wired
def test_a_failing_node_names_comfyui_s_folder(comfy):
    run = loading_an_empty_file(comfy)
    assert run.failure.exception == "UserError"
    assert "models/latentsync/empty.safetensors is an empty file" in run.failure.message
    assert str(comfy.base) not in run.failure.message
