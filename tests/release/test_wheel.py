"""Wheel and sdist: what is in them, and that the wheel alone, installed elsewhere, makes a video."""

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from ..tiny import face_model, find_model, write_speech

ROOT = Path(__file__).resolve().parents[2]
LICENSES = ("LICENSE", "latentsync/assets/LICENSE-TAESD.txt")
LARGEST = 40_000_000
"""Bytes of the wheel: the built-in model and little else."""


def known_files() -> list[str]:
    """What git knows of, or will."""
    command = ["git", "-c", "core.quotePath=off", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    names = sorted(name for name in set(done.stdout.split("\0")) - {""} if (ROOT / name).is_file())
    return names or pytest.skip("The repository is not under git here, so there is no list of its files.")


@pytest.fixture(scope="session")
def dist(tmp_path_factory) -> Path:
    """The folder with both. Built from a copy: nothing is left in the repository. The wheel is made of the sdist."""
    pytest.importorskip("build")
    source = tmp_path_factory.mktemp("source")
    for name in (name for name in known_files() if not name.startswith("tests/data/")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="session")
def wheel(dist) -> Path:
    (path,) = dist.glob("*.whl")
    return path


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    inside = {name for name in names if ".dist-info/" not in name}
    assert inside == {name for name in known_files() if name.startswith("latentsync/")}
    assert {"latentsync/assets/nano.safetensors", "latentsync/assets/voice.flac"} < inside
    assert wheel.stat().st_size < LARGEST
    assert re.fullmatch(r"latentsync-\d+\.\d+\.\d+-py3-none-any\.whl", wheel.name)


def test_what_the_wheel_says_of_itself(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (info,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        said = email.message_from_string(archive.read(f"{info}/METADATA").decode())
        entry = archive.read(f"{info}/entry_points.txt").decode()
        assert {f"{info}/licenses/{name}" for name in LICENSES} < set(archive.namelist())
    assert "latentsync = latentsync.__main__:main" in entry
    assert said["License-Expression"] == "Apache-2.0 AND MIT"
    needed = {line for line in said.get_all("Requires-Dist", []) if "extra ==" not in line}
    files = [ROOT / name for name in ("requirements.txt", "requirements-torch.txt")]
    wanted = [line for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    assert needed == {line.strip() for line in wanted if line.strip() and not line.startswith("#")}
    assert "torch>=2.4" in needed


def test_the_sdist_can_be_built_from(dist):
    """The wheel was built from it; and it has what a packager reads."""
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    read = {"README.md", "LICENSE", "CHANGELOG.md"}
    assert {"pyproject.toml", "requirements.txt", "requirements-torch.txt"} | read <= names
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "nodes", "out"))]


@pytest.fixture(scope="session")
def clean(wheel, tmp_path_factory) -> Path:
    """The folder of programs of a new environment with the wheel; its dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=True)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    pip = [str(programs / "python"), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(pip, check=True)
    (packages,) = folder.rglob("site-packages/latentsync")
    # after the wheel, in the order of search as in time; what makes a checkout importable (.pth) does not act from here
    borrowed = [path for path in sys.path if path.endswith("-packages")]
    (packages.parent / "borrowed.pth").write_text("\n".join(borrowed), encoding="utf-8")
    return programs


def run(programs: Path, folder: Path, *command: object, **environment: str) -> str:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    known = kept | {"PYTHONUTF8": "1"} | environment
    words = [str(programs / str(command[0])), *map(str, command[1:])]
    done = subprocess.run(words, cwd=folder, env=known, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_the_installed_wheel_makes_a_video(clean, tmp_path):
    """Line 7 of what was asked for: elsewhere, with nothing of the repository at hand."""
    from skimage import data, io

    from latentsync import read_version
    from latentsync.media.probe import probe

    code = "import latentsync, pathlib; print(pathlib.Path(latentsync.__file__).parent)"
    package = Path(run(clean, tmp_path, "python", "-c", code))
    assert clean.parent in package.parents
    assert run(clean, tmp_path, "latentsync", "--version") == read_version()
    assert (package / "assets" / "voice.flac").is_file()
    whisper = find_model("tiny.en")
    if whisper is None:
        pytest.skip("whisper-tiny.en is not in LATENTSYNC_MODELS; `make test` fetches it")
    models = tmp_path / "models"
    models.mkdir()
    for path in (whisper, face_model()):
        shutil.copyfile(path, models / path.name)
    here = tmp_path / "a folder of the user's"
    here.mkdir()
    io.imsave(here / "face.png", data.astronaut(), check_contrast=False)
    write_speech(here / "speech.wav", 0.8)
    known = {"LATENTSYNC_MODELS": str(models)}
    assert '"ready": true' in run(clean, here, "latentsync", "doctor", "--json", **known)
    words = ["run", "--image", "face.png", "--audio", "speech.wav", "--out", "talking.mp4", "--steps", 2]
    run(clean, here, "latentsync", *words, **known)
    made = probe(here / "talking.mp4")
    assert (made.width, made.height) == (512, 512)
    assert {path.name for path in here.iterdir()} == {"face.png", "speech.wav", "talking.mp4"}


@pytest.mark.slow
def test_every_command_of_the_installed_wheel_has_its_help(clean, tmp_path):
    import typer

    from latentsync.cli.main import app

    for name in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        assert "Usage:" in run(clean, tmp_path, "latentsync", name, "--help")
