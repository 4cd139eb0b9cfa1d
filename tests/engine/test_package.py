"""What the package exports and what comes with it. (How its modules hang together: test_structure.)"""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import latentsync
from latentsync.errors import REQUIREMENTS

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "latentsync"
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))
PUBLIC = [
    "load_unet",
    "denoise",
    "load_whisper",
    "encode_audio",
    "audio_windows",
    "align_matrices",
    "lipsync",
    "lipsync_file",
    "load_models",
    "load_vae",
    "Models",
    "Progress",
    "Report",
    "Result",
    "Settings",
    "UserError",
]


def python(code: str, *arguments: str, folder: Path = ROOT, **environment: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def imported(path: Path) -> set[str]:
    """Top-level names of the absolute imports in a file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").split(".")[0])
    return found


def test_everything_public_is_there():
    assert sorted(latentsync.__all__) == sorted(PUBLIC)
    for name in PUBLIC:
        assert getattr(latentsync, name).__name__ == name
        assert name in dir(latentsync)
    with pytest.raises(AttributeError, match="no attribute 'sing'"):
        _ = latentsync.sing  # type: ignore[attr-defined]


def names_in(text: str) -> set[str]:
    """Distribution names at the start of requirement lines, normalised."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return {re.split(r"[\[<>=!~; ]", line)[0].lower().replace("_", "-") for line in lines if line}


EXTRAS = {
    "pillow_heif",
    "matplotlib",
    "torchmetrics",
    "lpips",
    "scipy",
    "scenedetect",
    "ray",
    "accelerate",
    "yaml",
    "tensorboard",
    "bitsandbytes",
    "librosa",
    "psutil",  # comes with accelerate
    "streamlit",
    "pyngrok",
}
"""What only parts of the product need, which say so when it is missing."""
IMPORTED_AS = {"pillow": "PIL", "opencv-contrib-python": "cv2"}


def test_requirements_are_pinned_and_used():
    wanted = names_in((ROOT / "requirements.txt").read_text(encoding="utf-8"))
    pinned = names_in((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    assert wanted <= pinned
    assert "torch" in pinned
    assert "torch" not in wanted  # the host brings its own
    used = set[str]().union(*map(imported, MODULES))
    known = {IMPORTED_AS.get(name, name) for name in wanted}
    assert known <= used | {"mediapipe"}
    known |= {"torch"} | set(sys.stdlib_module_names)
    assert {name for name in used if name not in known} <= EXTRAS


def test_extras_are_pinned():
    section = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[project.optional-dependencies]")[1]
    wanted = names_in("\n".join(re.findall(r'"([^"]+)"', section.split("\n[")[0])))
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    untested = set(re.findall(r"torch-fidelity|torchvision", pins))  # constraints.txt says why
    assert len(wanted) > 15
    assert wanted <= names_in(pins) | untested


def test_what_messages_ask_pip_for_is_what_the_package_needs():
    """requirements.txt, requirements-torch.txt and every extra but dev and browser, whose tools no message names."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[project.optional-dependencies]")[1]
    extras = [line for line in text.split("\n[")[0].splitlines() if not line.startswith(("#", "dev =", "browser ="))]
    wanted = {quoted for line in extras for quoted in re.findall(r'"([^"]+)"', line)}
    for name in ("requirements.txt", "requirements-torch.txt"):
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        wanted |= {line for line in lines if line and not line.startswith("#")}
    assert set(REQUIREMENTS.values()) == wanted


def test_no_message_names_a_project_that_no_index_has():
    """Neither an extra of ours nor, by hand, what REQUIREMENTS says."""
    for path in [*MODULES, *(ROOT / "nodes").rglob("*.py"), *(ROOT / "recipes").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        assert "latentsync[" not in text, path
        named = re.findall(r"pip install (?:-U )?([\w\"-]+)", text)
        newer = {"accelerate"} if "pip install -U accelerate" in text else set()
        assert set(named) <= {"-r", "bitsandbytes", "opencv-contrib-python", '"', *newer}, path


def test_the_sample_voice():
    from latentsync.audio.load import load_audio, loudness

    path = PACKAGE / "assets" / "voice.flac"
    assert path.stat().st_size < 200_000
    voice = load_audio(path)
    assert 3 < voice.seconds < 6
    level = loudness(voice.waveform, 25, int(voice.seconds * 25))
    assert -30 < level.quantile(0.75) < -10
    assert voice.waveform.abs().max() < 0.95


def test_install_script_offline(tmp_path):
    code = """
import runpy, socket, sys
def offline(*_, **__): raise socket.gaierror(-2, "Name or service not known")
socket.getaddrinfo = socket.socket.connect = offline
import subprocess
def nothing(*_, **__): raise AssertionError("install.py started a program")
subprocess.run = subprocess.Popen.__init__ = nothing
sys.path.insert(0, sys.argv[1])
runpy.run_path(sys.argv[1] + "/install.py", run_name="__main__")
"""
    out = python(code, str(ROOT), folder=tmp_path, LATENTSYNC_MODELS=str(tmp_path / "models"))
    assert "face-landmarker is still missing" in out
    assert "whisper-tiny.en is still missing" in out
    assert "latentsync download face-landmarker" in out
    assert "doctor" in out.splitlines()[-1]
    assert not list(tmp_path.rglob("*.part"))


def test_the_documents_have_the_registry_right():
    from latentsync.weights.registry import ENTRIES, with_required

    text = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for entry in ENTRIES:
        for source in map(entry.fetched, entry.sources):
            assert source.sha256 in text
            assert not source.bytes or f"{source.bytes:,}" in text
        if entry.kind in ("nano", "unet"):
            assert f"| `{entry.name}` |" in readme
            whole = sum(one.bytes or 0 for one in with_required([entry.name]))
            assert entry.built_in or f"{whole / 1e9:.1f} GB" in readme
