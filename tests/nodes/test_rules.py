"""House rules of the node layer, read from its source: no ComfyUI needed. (The engine's: engine/test_structure.)"""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

from .table import NODES

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "nodes").rglob("*.py"))
DOORS = [ROOT / "__init__.py", *FILES]
COMFYUI = {"comfy", "comfy_execution", "comfy_extras", "execution", "folder_paths", "latent_preview", "nodes", "server"}
LIBRARIES = {"PIL", "aiohttp", "av", "cv2", "numpy", "torch"}
"""What node files may import besides Python's own library: requirements.txt, and what comes with ComfyUI itself."""
LONGEST_EXECUTE, LONGEST_FUNCTION, LONGEST_FILE = 25, 80, 500


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def is_host(path):
    """nodes/host.py or nodes/host/: the one place that knows ComfyUI."""
    return path.relative_to(ROOT).with_suffix("").parts[:2] == ("nodes", "host")


def pytest_generate_tests(metafunc):
    if "path" in metafunc.fixturenames:
        metafunc.parametrize("path", DOORS, ids=name_of)


@cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def absolute_imports(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module


def functions(node):
    return [n for n in ast.walk(node) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def lines(function):
    return function.end_lineno - function.lineno + 1


def node_classes():
    """Every class that has a define_schema: (file, class)."""
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef) and "define_schema" in {f.name for f in functions(node)}:
                yield path, node


def method(node, name):
    return next(f for f in node.body if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) and f.name == name)


def schema_value(node, key):
    """The source of one argument of host.schema(…)."""
    calls = [n for n in ast.walk(method(node, "define_schema")) if isinstance(n, ast.Call)]
    schema = next(call for call in calls if ast.unparse(call.func) == "host.schema")
    return next((keyword.value for keyword in schema.keywords if keyword.arg == key), None)


CLASSES = list(node_classes())
each_node = pytest.mark.parametrize(("file", "node"), CLASSES, ids=[node.name for _, node in CLASSES])


def test_nodes_have_plain_ids():
    ids = [schema_value(node, "node_id") for _, node in CLASSES]
    assert all(isinstance(value, ast.Constant) for value in ids), "ComfyUI-Manager reads ids without running anything"
    assert sorted(value.value for value in ids) == sorted(NODES)


def test_imports_are_the_expected_ones(path):
    allowed = set(sys.stdlib_module_names) | LIBRARIES | {"comfy_api"} | (COMFYUI if is_host(path) else set())
    found = set(absolute_imports(path))
    assert not {name for name in found if name.split(".")[0] not in allowed}
    assert {name for name in found if name.startswith("comfy_api")} <= {"comfy_api.latest"}, "latest is the public one"


def test_comfyuis_older_registration_is_not_used(path):
    """NODE_CLASS_MAPPINGS would make ComfyUI overlook comfy_entrypoint."""
    assert "NODE_" not in path.read_text(encoding="utf-8")


def test_nothing_runs_on_import(path):
    """Imports, definitions, constants; what has an effect stands in a function."""
    allowed = (
        ast.Import,
        ast.ImportFrom,
        ast.FunctionDef,
        ast.AsyncFunctionDef,
        ast.ClassDef,
        ast.Assign,
        ast.AnnAssign,
    )
    for statement in tree(path).body:
        words = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        checking = isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING"
        assert isinstance(statement, allowed) or words or checking, ast.unparse(statement)


def test_the_process_is_not_ours(path):
    text = ast.unparse(tree(path))
    for forbidden in (
        "print(", "sys.path", "os.environ[", "os.environ.update", "os.environ.setdefault", "logging.basicConfig",
        "torch.set_", "torch.manual_seed", "torch.backends", "os.chdir", "tempfile.tempdir", "subprocess", "eval(",
        "exec(", "set_per_process_memory", "signal.signal",
    ):  # fmt: skip
        assert forbidden not in text.replace(".eval()", ""), forbidden


def test_length_and_types(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < LONGEST_FILE
    for function in functions(tree(path)):
        assert lines(function) <= LONGEST_FUNCTION, f"{function.name} has {lines(function)} lines"
        if not function.name.startswith("_"):
            arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
            bare = [a.arg for a in arguments if not a.annotation and a.arg not in ("self", "cls")]
            assert function.returns is not None, function.name
            assert not bare, f"{function.name}({', '.join(bare)})"


def test_functions_are_short_on_the_whole():
    lengths = sorted(lines(f) for path in DOORS for f in functions(tree(path)) if f.name != "define_schema")
    assert lengths[len(lengths) // 2] <= 10
    assert lengths[int(len(lengths) * 0.95)] <= 40


@each_node
def test_a_node_is_a_schema_and_a_call(file, node):
    assert [ast.unparse(base) for base in node.bases] == ["io.ComfyNode"]
    assert node.name == schema_value(node, "node_id").value
    body = method(node, "execute").body
    assert body[-1].end_lineno - body[0].lineno + 1 <= LONGEST_EXECUTE
    loops = [n for n in ast.walk(method(node, "execute")) if isinstance(n, ast.For | ast.While)]
    assert not loops, "work on frames belongs to the engine"


@each_node
def test_a_node_keeps_no_state(file, node):
    assert not any(f.name == "__init__" for f in functions(node))
    fields = [n for n in node.body if isinstance(n, ast.Assign | ast.AnnAssign)]
    assert not fields, ast.unparse(fields[0])
    for f in node.body:
        if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef):
            kinds = {ast.unparse(d) for d in f.decorator_list}
            assert kinds <= {"classmethod", "staticmethod"}, f.name
            assert kinds, f"{f.name} is an instance's method; V3 nodes have no instances"
