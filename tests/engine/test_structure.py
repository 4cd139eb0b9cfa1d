"""The house rules of docs and design as tests: who may import whom, what an import does, how long things may be."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "latentsync"
FILES = sorted(PACKAGE.rglob("*.py"))
DOORS = {"cli", "webapp", "batch", "comfy_client"}
OUTSIDE_INFERENCE = {"training", "prepare", "evaluation"}
HOSTS = {"comfy", "comfy_api", "comfy_extras", "comfy_execution", "folder_paths", "server", "execution", "nodes"}
LONGEST_FUNCTION, LONGEST_FILE = 80, 500
OWN_PROCESS = {
    "latentsync/batch/worker.py": "torch.set_num_threads(self.threads)",
    "latentsync/prepare/worker.py": "torch.set_num_threads(threads)",
}
"""What is done in processes that are started for it: a worker computes with the cores that it was given."""
HEAVY = ("torch", "numpy", "cv2", "av", "mediapipe", "transformers", "diffusers", "librosa", "safetensors", "typer")


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def pytest_generate_tests(metafunc):
    if "path" in metafunc.fixturenames:
        metafunc.parametrize("path", FILES, ids=name_of)


@cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path):
    """(absolute module name, relative level) of every import statement, wherever it stands."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.level
            if not node.module:
                yield from ((alias.name, node.level) for alias in node.names)


def home(path, name, level):
    """A relative import as a path of names below the package: models.unet."""
    here = path.relative_to(PACKAGE).with_suffix("").parts
    base = here[: len(here) - level]
    return [*base, *name.split(".")] if name else [*base]


def functions(path):
    return [n for n in ast.walk(tree(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_the_rules_are_checked_on_something():
    assert len(FILES) > 15
    assert sum(len(functions(path)) for path in FILES) > 200


def test_imports_itself_relatively_and_nothing_from_the_host(path):
    for name, level in imports(path):
        top = name.split(".")[0]
        assert level or top != "latentsync", f"import {name}: the package may be loaded under another name"
        assert level or top not in HOSTS, f"import {name}: the engine knows nothing of ComfyUI"


def test_one_file_knows_the_host():
    doors = [*(ROOT / "nodes").rglob("*.py"), ROOT / "__init__.py", ROOT / "install.py"]
    for path in (p for p in doors if p.is_file() and p.parent.name != "host"):
        tops = {name.split(".")[0] for name, level in imports(path) if not level}
        assert not tops & {"comfy", "folder_paths", "server"}, path


def test_inference_knows_nothing_of_training_or_doors(path):
    here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if here in OUTSIDE_INFERENCE | DOORS or here.startswith("cli_"):
        return
    for name, level in imports(path):
        if level:
            top = home(path, name, level)[0]
            assert top not in OUTSIDE_INFERENCE, f"import of {top}"
            assert here == "__main__" or top not in DOORS, f"import of {top}"


def test_length_of_file_and_functions(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < LONGEST_FILE
    for function in functions(path):
        # a command's options are its manual, not its work
        first = function.body[0].lineno if path.name.startswith("cli") else function.lineno
        lines = (function.end_lineno or 0) - first + 1
        assert lines <= LONGEST_FUNCTION, f"{function.name} has {lines} lines"


def test_functions_are_short_on_the_whole():
    lengths = sorted((f.end_lineno or 0) - f.lineno + 1 for path in FILES for f in functions(path))
    assert lengths[len(lengths) // 2] <= 10
    assert lengths[int(len(lengths) * 0.95)] <= 40


def annotated(function):
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    arguments += [a for a in (function.args.vararg, function.args.kwarg) if a]
    return function.returns is not None and all(a.annotation for a in arguments if a.arg not in ("self", "cls"))


def test_public_functions_are_annotated(path):
    bare = [f.name for f in functions(path) if not f.name.startswith("_") and not annotated(f)]
    assert not bare


def test_no_prints_and_no_paths_of_one_machine(path):
    text = path.read_text(encoding="utf-8")
    assert not any(place in text for place in ('"/work', '"/root', '"/tmp', "'/tmp", '"C:\\'))
    calls = [n.func.id for n in ast.walk(tree(path)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    assert "print" not in calls


def test_no_process_wide_changes(path):
    """The host's process is not ours: environment, search path, logging, threads and default generators stay."""
    text = ast.unparse(tree(path))
    if name_of(path) in OWN_PROCESS:
        text = text.replace(OWN_PROCESS[name_of(path)], "")
    for forbidden in (
        "sys.path.insert", "sys.path.append", "os.environ[", "os.environ.update", "os.environ.setdefault",
        "logging.basicConfig", "torch.set_num_threads", "torch.set_default", "os.chdir", "set_per_process_memory",
    ):  # fmt: skip
        assert forbidden not in text or _assigns_only_reading(text, forbidden), forbidden
    if path.relative_to(PACKAGE).parts[0] != "training":
        assert "torch.manual_seed" not in text
        assert "np.random.seed" not in text


def _assigns_only_reading(text, forbidden):
    """os.environ["X"] may be read, not written."""
    return forbidden == "os.environ[" and not any(
        line.lstrip().startswith(("os.environ[", "del os.environ[")) for line in text.splitlines()
    )


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
    assert run(code, tmp_path, importable=tmp_path) == "pack_7f3.weights pack_7f3.pipeline True"


def test_every_public_name_is_there(tmp_path):
    code = (
        "import latentsync\nfor n in latentsync.__all__: assert getattr(latentsync, n)\nprint(len(latentsync.__all__))"
    )
    assert int(run(code, tmp_path)) >= 10


@pytest.mark.parametrize("name", ["lipsync", "lipsync_file", "load_unet", "denoise", "encode_audio", "audio_windows"])
def test_public_api_is_documented(name):
    import latentsync

    assert len(getattr(latentsync, name).__doc__.strip()) > 60
