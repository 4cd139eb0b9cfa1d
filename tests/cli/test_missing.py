"""Where a package is missing, a command says in one sentence what to type."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from latentsync.batch.parallel import ray_pool
from latentsync.cli.doctor import package_problem
from latentsync.errors import REQUIREMENTS, UserError
from latentsync.evaluation import networks
from latentsync.media.image import read_image
from latentsync.prepare import ray_data, shots
from latentsync.training import distributed, logging, yaml_files
from latentsync.webapp import server
from latentsync.webapp.config import AppSettings

ROOT = Path(__file__).resolve().parents[2]
BLOCKED = "import sys; sys.modules[sys.argv.pop(1)] = None; from latentsync.__main__ import main; main()"
RUN = ("run", "--image", "face.png", "--audio", "speech.wav", "--out", "talking.mp4")
COMMANDS = {
    "run": RUN,
    "faces": ("faces", "face.png"),
    "info": ("info", "weights.safetensors"),
    "download": ("download", "nano"),
    "bench": ("bench",),
    "batch": ("batch", "jobs.csv"),
    "measure": ("eval", "measure", "clip.mp4"),
}


def sentence(tmp_path: Path, module: str, *words: str) -> str:
    command = [sys.executable, "-c", BLOCKED, module, *words]
    known = os.environ | {"PYTHONPATH": str(ROOT), "LATENTSYNC_MODELS": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=known, capture_output=True, text=True, check=False)
    assert done.returncode in (1, 2), done.stderr
    assert not done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_without_torch(command, tmp_path):
    (tmp_path / "jobs.csv").write_text("video,out\nclip.mp4,a.mp4\n")
    for name in ("face.png", "speech.wav", "weights.safetensors", "clip.mp4"):
        (tmp_path / name).write_bytes(b"1")
    said = sentence(tmp_path, "torch", *COMMANDS[command])
    assert said == 'error: This command needs torch; type: pip install "torch>=2.4".\n'


@pytest.mark.parametrize("module", ["safetensors", "av", "PIL", "typer", "rich"])
def test_without_another_package(module, tmp_path):
    (tmp_path / "face.png").write_bytes(b"1")
    (line,) = [line for line in sentence(tmp_path, module, *RUN).splitlines() if line.startswith("error: ")]
    assert line.endswith(f'type: pip install "{REQUIREMENTS[module]}".')


def test_doctor_without_torch(tmp_path):
    command = [sys.executable, "-c", BLOCKED, "torch", "doctor"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert '→ needed: pip install "torch>=2.4"' in done.stdout


def test_a_library_of_the_system():
    told = package_problem(OSError("libEGL.so.1: cannot open shared object file: No such file or directory"))
    assert told.endswith("type: apt-get install libegl1 libgles2")
    assert "torch cannot be loaded (no libfoo)" in package_problem(ImportError("no libfoo", name="torch._C"))
    assert package_problem(ImportError("cannot import name 'x'", name="latentsync.pipeline")) == ""
    assert package_problem(OSError("disk full")) == ""


def lpips(folder: Path) -> None:
    for pattern in networks.LPIPS_FILES.values():
        (folder / "checkpoints").mkdir(exist_ok=True)
        (folder / "checkpoints" / f"{pattern}.pth").touch()
    networks.Lpips("alex")


def fid(folder: Path) -> None:
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / networks.INCEPTION_FILE).touch()
    networks.Inception()


def heic(folder: Path) -> None:
    (folder / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(400))
    read_image(folder / "a.heic")


OPTIONAL = {
    "streamlit": lambda _: server.serve(AppSettings(), server.Address(), print, print),
    "pyngrok": lambda _: server.serve(AppSettings(), server.Address(share=True), print, print),
    "accelerate": lambda _: distributed.make_accelerator("fp32", 1, cpu=True),
    "matplotlib.figure": lambda _: logging.new_figure(),
    "yaml": lambda folder: yaml_files.read_yaml(folder / "settings.yaml"),
    "scenedetect": lambda _: shots.shot_detector(3.0),
    "ray": lambda _: ray_pool.connect(),
    "ray.data": lambda _: ray_data.connected(None).__enter__(),
    "pillow_heif": heic,
    "torchmetrics": lpips,
    "torchmetrics.image.fid": fid,
}
"""Module: what needs it, and nothing else does."""


@pytest.mark.parametrize("module", OPTIONAL)
def test_what_only_parts_need(module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(server, "find_spec", lambda name: None if name == module else object())
    (tmp_path / "settings.yaml").write_text("steps: 3\n")
    with pytest.raises(UserError, match=r"needs .*; type: pip install ") as error:
        OPTIONAL[module](tmp_path)
    assert f'"{REQUIREMENTS[module.partition(".")[0]]}"' in str(error.value)
    assert all(requirement in REQUIREMENTS.values() for requirement in str(error.value).split('"')[1::2])
