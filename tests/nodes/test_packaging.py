"""What the registry gets and what a user then has: metadata, the archive, the install script."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from ..tiny import face_model, find_model
from .server import ROOT, ComfyServer
from .table import NODES

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

KEPT = ("LICENSE", "README.md", "__init__.py", "install.py", "pyproject.toml", "requirements.txt")
KEPT_BELOW = ("nodes", "latentsync", "web", "example_workflows", "subgraphs", "locales", "notebooks")
DROPPED = ("tests", "benchmarks", ".ci", ".github", "docs/icon.svg", "Makefile")
LARGEST = 45_000_000
"""Bytes of the archive: the built-in models, 33 MB, and little else."""


def git(*arguments):
    command = ["git", "-c", "core.quotePath=off", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return set(done.stdout.split("\0")) - {""}


@pytest.fixture(scope="module")
def shipped():
    """Files of the archive: what git knows (or will), less what .comfyignore names."""
    known = git("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if not known:
        pytest.skip("The repository is not under git here, so there is no list of its files.")
    ignore = "--exclude-from=.comfyignore"
    dropped = git("ls-files", "-z", "-i", "-c", ignore) | git("ls-files", "-z", "-i", "-o", ignore)
    return sorted(name for name in known - dropped if (ROOT / name).is_file())


@pytest.fixture(scope="module")
def archive(shipped, tmp_path_factory):
    """The archive, unpacked."""
    folder = tmp_path_factory.mktemp("archive") / "latentsync"
    for name in shipped:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_metadata_is_what_the_registry_takes(project):
    """docs.comfy.org/registry/specifications"""
    said, comfy = project["project"], project["tool"]["comfy"]
    assert re.fullmatch(r"[a-z]+([-_.][a-z0-9]+)*", said["name"])
    assert "comfyui" not in said["name"].lower()
    assert re.fullmatch(r"\d+\.\d+\.\d+", said["version"])
    assert said["license"] == "Apache-2.0 AND MIT"
    assert all((ROOT / name).is_file() for name in said["license-files"])
    assert len(said["description"]) > 20
    assert said["requires-python"].startswith(">=")
    systems = [c for c in said["classifiers"] if c.startswith("Operating System :: ")]
    assert systems == ["Operating System :: OS Independent"]
    assert re.fullmatch(r"[a-z0-9-]+|OWNER", comfy["PublisherId"])
    assert "comfyui" not in comfy["DisplayName"].lower()
    assert re.fullmatch(r">=\d+\.\d+\.\d+", comfy["requires-comfyui"])
    assert "web" not in comfy, "WEB_DIRECTORY says it already; said twice, every script would run twice"
    assert {"Repository", "Documentation", "Issues"} <= set(said["urls"])
    assert all(url.startswith(said["urls"]["Repository"]) for url in said["urls"].values())
    for picture, ratio, most in (("Icon", 1, 400), ("Banner", 21 / 9, 1260)):
        address = comfy[picture]
        raw = said["urls"]["Repository"].replace("github.com", "raw.githubusercontent.com") + "/main/"
        assert address.startswith(raw)
        with Image.open(ROOT / address.removeprefix(raw)) as file:
            assert file.width == most
            assert file.width / file.height == pytest.approx(ratio, abs=0.001)
    assert (ROOT / said["urls"]["Documentation"].partition("/blob/main/")[2]).is_file()


LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")


def test_every_page_of_the_archive_finds_its_pictures_and_links(shipped):
    """The registry shows README, and a user without a network reads what lies there."""
    there = {*shipped, *(folder.as_posix() for name in shipped for folder in Path(name).parents)}
    broken, pictures = [], 0
    for page in (name for name in shipped if name.endswith(".md")):
        for found in LINK.findall((ROOT / page).read_text(encoding="utf-8")):
            link = "".join(found).partition("#")[0]
            if not link or re.match(r"[a-z]+:", link):
                continue
            pictures += Path(link).suffix in {".png", ".jpg", ".svg"}
            target = os.path.normpath(Path(page).parent / link).replace(os.sep, "/")
            broken += [] if target in there else [f"{page}: {link}"]
    assert broken == []
    assert pictures >= 10


def test_comfyui_reads_the_metadata(comfyui, archive, project):
    code = (
        "import sys; sys.path.insert(0, '.'); from comfy_config import config_parser as c\n"
        "p = c.extract_node_configuration(sys.argv[1])\n"
        "print([p.project.name, p.project.version, p.project.supported_os, p.tool_comfy.display_name])"
    )
    command = [str(comfyui.python), "-c", code, str(archive)]
    done = subprocess.run(command, cwd=comfyui.path, capture_output=True, text=True, check=False)
    wanted = ["latentsync", project["project"]["version"], ["OS Independent"], "LatentSync"]
    assert done.stdout.strip() == str(wanted), done.stderr


def test_the_archive_holds_what_it_should(shipped):
    assert set(KEPT) <= set(shipped)
    for folder in KEPT_BELOW:
        there = {p.relative_to(ROOT).as_posix() for p in (ROOT / folder).rglob("*") if p.is_file()}
        wanted = {name for name in there if "__pycache__" not in name}
        assert wanted <= set(shipped), f"{folder}: {sorted(wanted - set(shipped))[:5]}"
    for name in DROPPED:
        assert not [s for s in shipped if s == name or s.startswith(name + "/")], name
    assert sum((ROOT / name).stat().st_size for name in shipped) < LARGEST


def test_nothing_shipped_installs_packages(archive):
    """The registry forbids it, and its scanner looks for eval and exec."""
    for path in archive.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert '"install"' not in text, path
        assert not re.search(r"(?<![\w.])(eval|exec)\(", text), path


def test_the_archive_loads(comfyui, archive, tmp_path):
    with ComfyServer(comfyui, tmp_path, packs={"latentsync": archive}) as server:
        assert sorted(n for n in server.object_info() if n.startswith("LatentSync")) == sorted(NODES), server.log
        server.get("/i18n")
        assert server.get("/workflow_templates") is not None
    assert "IMPORT FAILED" not in server.log


FORBID = """
import os, subprocess, sys

start = subprocess.Popen.__init__
# torch and mediapipe, when imported, look for libraries and fonts of the system with these
LOOKS = {"ldconfig", "gcc", "cc", "ld", "objdump", "fc-list"}

def nothing(self, args, *more, **rest):
    words = [args] if isinstance(args, (str, os.PathLike)) else list(args)
    if os.path.basename(words[0]) not in LOOKS:
        raise AssertionError(f"install.py started {words}")
    start(self, args, *more, **rest)

subprocess.Popen.__init__ = nothing
"""


def install(python: Path | str, pack: Path, home: Path, **more: str):
    """install.py as ComfyUI-Manager runs it: in the pack's folder, no network to be had, no program to be started."""
    watch = home / "watch"
    watch.mkdir(parents=True)
    (watch / "sitecustomize.py").write_text(FORBID, encoding="utf-8")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    own = {"HOME": str(home), "XDG_CACHE_HOME": str(home), "LATENTSYNC_MODELS": str(home / "models")}
    own |= {"PYTHONPATH": str(watch), "PYTHONDONTWRITEBYTECODE": "1", "no_proxy": "", "NO_PROXY": ""}
    environment = os.environ | nowhere | own | more
    command = [str(python), "install.py"]
    return subprocess.run(command, cwd=pack, env=environment, capture_output=True, text=True, check=False, timeout=300)


def files(folder):
    return {p.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_install_as_the_manager_runs_it(comfyui, archive, tmp_path):
    before = files(archive)
    done = install(comfyui.python, archive, tmp_path / "home", COMFYUI_PATH=str(comfyui.path))
    assert done.returncode == 0, done.stderr
    assert not done.stderr.strip(), done.stderr
    assert "face-landmarker is still missing" in done.stdout
    assert f"put it into {tmp_path / 'home' / 'models'} as face_landmarker.task, or type `latentsync" in done.stdout
    assert "doctor" in done.stdout.splitlines()[-1]
    assert files(archive) == before


@pytest.fixture
def pack(archive, tmp_path):
    """The archive where ComfyUI has its packs."""
    return shutil.copytree(archive, tmp_path / "ComfyUI" / "custom_nodes" / "latentsync")


@pytest.mark.parametrize("where", ["beside", "COMFYUI_FOLDERS_BASE_PATH", "COMFYUI_PATH", "nowhere"])
def test_install_in_comfyui_speaks_of_its_models_and_nodes(pack, tmp_path, where):
    base = pack.parents[1]
    if where == "beside":
        (base / "models").mkdir()
    elif where != "nowhere":
        base = tmp_path / "elsewhere"
        (base / "models").mkdir(parents=True)
    more = {where: str(base)} if where.startswith("COMFYUI") else {"COMFYUI_PATH": ""}
    done = install(sys.executable, pack, tmp_path / "home", LATENTSYNC_MODELS="", **more)
    assert done.returncode == 0, done.stderr
    ours = base / "models" / "latentsync"
    for name, file in (("face-landmarker", "face_landmarker.task"), ("whisper-tiny.en", "tiny.en.pt")):
        said = f"put it into {ours} as {file}, or run the node LatentSync: Download Model with the name {name} again"
        assert said in done.stdout
    *_, later, look = done.stdout.splitlines()
    assert f"by hand into {ours}, or by `{sys.executable} install.py`" in later
    assert f"`{sys.executable} -m latentsync doctor`" in look
    assert "latentsync download" not in done.stdout
    assert ours.is_dir()


def test_install_in_comfyui_keeps_the_files_that_are_there(pack, tmp_path):
    """In models/latentsync, or in the user's cache, where an earlier version put them."""
    whisper = find_model("tiny.en")
    if whisper is None:
        pytest.skip("whisper-tiny.en is not in LATENTSYNC_MODELS; `make test` fetches it")
    ours, cache = pack.parents[1] / "models" / "latentsync", tmp_path / "home" / "latentsync"
    for folder, path, name in (
        (ours, face_model(), "face_landmarker.task"),
        (cache, whisper, "whisper-tiny.en.safetensors"),
    ):
        folder.mkdir(parents=True)
        shutil.copyfile(path, folder / name)
    done = install(sys.executable, pack, tmp_path / "home", LATENTSYNC_MODELS="")
    assert f"face-landmarker is in {ours / 'face_landmarker.task'}" in done.stdout, done.stdout
    assert f"whisper-tiny.en is in {cache / 'whisper-tiny.en.safetensors'}" in done.stdout
    assert "LatentSync: everything is installed; restart ComfyUI" in done.stdout


def test_install_without_the_packages(archive, tmp_path):
    """requirements.txt could not be installed: still no traceback, and a word of what to do."""
    bare = ["numpy", "torch", "av", "cv2", "mediapipe", "transformers", "diffusers", "safetensors", "typer", "rich"]
    hide = FORBID + f"for name in {bare!r}:\n    sys.modules[name] = None\n"
    home = tmp_path / "home"
    (home / "bare").mkdir(parents=True)
    (home / "bare" / "sitecustomize.py").write_text(hide, encoding="utf-8")
    done = install(sys.executable, archive, home, PYTHONPATH=str(home / "bare"))
    assert done.returncode == 0, done.stderr
    assert not done.stderr.strip()
    assert all(name in done.stdout for name in ("missing: numpy", "missing: mediapipe", "requirements.txt"))
    assert "doctor" in done.stdout.splitlines()[-1]


def test_install_prints_in_any_encoding(archive, tmp_path):
    """A Windows console of another script, a folder with letters it does not know."""
    home = tmp_path / "Żółw 模型"
    done = install(sys.executable, archive, home, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "doctor" in done.stdout.splitlines()[-1]
