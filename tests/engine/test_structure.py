"""What an import does, under which names the package works, and how long things may be. Who may import whom: lint."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "latentsync"
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST_FUNCTION, LONGEST_FILE = 60, 400
OWN_PROCESS = {
    "latentsync/cli/train.py": "torch.set_num_threads",
    "latentsync/batch/worker.py": "torch.set_num_threads(self.threads)",
    "latentsync/prepare/worker.py": "torch.set_num_threads(plan.threads)",
    "latentsync/cli/main.py": "os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')",
}
"""What is done in processes that are started for it: a worker computes with the cores that it was given, a training
run with those that are free, and threads of the command line let others have the cores while they wait."""
HEAVY = ("torch", "numpy", "cv2", "av", "mediapipe", "transformers", "diffusers", "librosa", "safetensors", "typer")


def name_of(path):
    return path.relative_to(ROOT).as_posix()


@cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(path):
    return [n for n in ast.walk(tree(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def lines(function):
    return function.end_lineno - function.lineno + 1


def test_one_understands_it_from_its_listing():
    # a folder with nothing but compiled files is left over from an older checkout
    entries = [p for p in PACKAGE.iterdir() if p.is_file() or any(f.suffix not in ("", ".pyc") for f in p.rglob("*"))]
    assert sum(path.is_file() and path.name != "py.typed" for path in entries) <= 12
    assert sum(path.is_dir() for path in entries) <= 13
    sizes = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert not {name: size for name, size in sizes.items() if size >= LONGEST_FILE}
    assert sum(sizes.values()) <= 34_500


def test_functions_are_short():
    assert not [f"{name_of(p)}: {f.name}" for p in FILES for f in functions(p) if lines(f) > LONGEST_FUNCTION]
    lengths = sorted(lines(f) for path in FILES for f in functions(path))
    assert lengths[len(lengths) // 2] <= 7
    assert lengths[int(len(lengths) * 0.95)] <= 25


def test_no_process_wide_changes():
    """The host's process is not ours: environment, search path, logging, threads and default generators stay."""
    for path in FILES:
        text = ast.unparse(tree(path))
        text = text.replace(OWN_PROCESS.get(name_of(path), "\0"), "")
        for forbidden in (
            "sys.path.insert", "sys.path.append", "os.environ.update", "os.environ.setdefault", "logging.basicConfig",
            "torch.set_num_threads", "torch.set_default", "os.chdir", "set_per_process_memory",
        ):  # fmt: skip
            assert forbidden not in text, (path, forbidden)
        assert not [line for line in text.splitlines() if line.lstrip().startswith(("os.environ[", "del os.environ["))]
        if path.relative_to(PACKAGE).parts[0] != "training":
            assert "torch.manual_seed" not in text
            assert "np.random.seed" not in text


def run(code, folder, *, importable=PACKAGE.parent):
    """Run code in a fresh Python that stands in folder."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(importable)!r})\n{code}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_is_cheap(tmp_path):
    loaded = run("import latentsync\nprint([m for m in sys.modules if '.' not in m])", tmp_path)
    assert not set(HEAVY) & set(ast.literal_eval(loaded))
    assert run("import latentsync\nprint(latentsync.Settings().steps, 'torch' in sys.modules)", tmp_path) == "0 False"


MODULES = sorted(
    ".".join(("latentsync", *p.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for p in FILES
    if p.name != "__main__.py"
)

WATCH = f"""
import logging, os, random, threading, warnings
import cv2, torch  # what other people's packages do on import is not ours to answer for
import numpy as np
import transformers, diffusers, av, mediapipe, typer, rich
import rich.progress, rich.table, typer.rich_utils
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

def state():
    return dict(
        environment=dict(os.environ),
        path=list(sys.path),
        loggers=[(h, type(h)) for h in logging.root.handlers], level=logging.root.level,
        folder=os.getcwd(),
        files=sorted(os.listdir()),
        threads=(torch.get_num_threads(), cv2.getNumThreads(), threading.active_count()),
        seeds=(torch.initial_seed(), torch.get_rng_state().sum().item(), random.getstate(), str(np.random.get_state())),
        filters=list(warnings.filters),
        dtype=torch.get_default_dtype(), grad=torch.is_grad_enabled(), cuda=torch.cuda.is_initialized(),
        printing=(sys.stdout, sys.stderr, sys.excepthook),
    )

before = state()
import importlib
for name in {MODULES!r}:
    importlib.import_module(name)
    after = state()
    changed = [key for key in before if before[key] != after[key]]
    assert not changed, (name, changed)
print(len({MODULES!r}))
"""


def test_importing_changes_nothing(tmp_path):
    assert int(run(WATCH, tmp_path)) == len(MODULES)
    assert not list(tmp_path.iterdir())


def test_works_under_another_name(tmp_path):
    """ComfyUI loads a pack under the path of its folder; another pack may own the name latentsync."""
    code = f"""
import importlib.util
class Foreign: pass
sys.modules["latentsync"] = Foreign
place = {str(PACKAGE)!r}
spec = importlib.util.spec_from_file_location("pack_7f3", place + "/__init__.py", submodule_search_locations=[place])
module = importlib.util.module_from_spec(spec)
sys.modules["pack_7f3"] = module
spec.loader.exec_module(module)
print(module.load_unet.__module__, module.lipsync.__module__, sys.modules["latentsync"] is Foreign)
"""
    assert run(code, tmp_path, importable=tmp_path) == "pack_7f3.weights.load pack_7f3.pipeline True"


def test_the_package_imports_itself_relatively_only():
    """By its own name it would find nothing in ComfyUI, or another pack's."""
    for path in FILES:
        found = [n for n in ast.walk(tree(path)) if isinstance(n, ast.Import | ast.ImportFrom)]
        names = [n.module or "" if isinstance(n, ast.ImportFrom) else n.names[0].name for n in found]
        absolute = [name for n, name in zip(found, names, strict=True) if not getattr(n, "level", 0)]
        assert not [name for name in absolute if name.split(".")[0] == "latentsync"], name_of(path)


def test_every_public_name_is_there(tmp_path):
    code = (
        "import latentsync\nfor n in latentsync.__all__: assert getattr(latentsync, n)\nprint(len(latentsync.__all__))"
    )
    assert int(run(code, tmp_path)) >= 10
