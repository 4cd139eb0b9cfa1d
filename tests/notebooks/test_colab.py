"""The Colab notebook: what it says, and that it runs from top to bottom, less the cells that only Colab can run."""

import ast
import base64
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")

from latentsync.settings import FITS, Settings  # noqa: E402
from latentsync.weights.registry import get  # noqa: E402

from ..tiny import face_model, find_model  # noqa: E402

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebooks" / "LatentSync_Colab.ipynb"
ONLY_COLAB = "colab"
"""The tag of cells that need Colab or the network."""
AWAY = re.compile(r"google\.colab|git clone|pip install|https?://(?!127\.0\.0\.1)")
FORM = re.compile(r"^(?P<name>[A-Z_]+) = (?P<value>.+?)  # @param (?P<kind>.+)$", re.MULTILINE)

posix = pytest.mark.skipif(os.name == "nt", reason="the notebook's commands are for Colab, which is Linux")


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def code() -> dict[str, Any]:
    """Its cells of code, by their ids."""
    return {cell.id: cell for cell in read().cells if cell.cell_type == "code"}


def needs_colab(cell: Any) -> bool:
    return ONLY_COLAB in cell.metadata.get("tags", [])


def forms() -> dict[str, tuple[Any, str]]:
    """What the user may fill in: the value that stands there, and Colab's description of the field."""
    found = [match for cell in code().values() for match in FORM.finditer(cell.source)]
    return {match["name"]: (ast.literal_eval(match["value"]), match["kind"]) for match in found}


def python(cell: Any) -> ast.Module:
    from IPython.core.inputtransformer2 import TransformerManager

    return ast.parse(TransformerManager().transform_cell(cell.source))


# --- what it says --------------------------------------------------------------------------------------------------


def test_it_is_valid_and_stripped():
    notebook = read()
    nbformat.validate(notebook)
    for cell in code().values():
        assert cell.outputs == []
        assert cell.execution_count is None
        assert set(cell.metadata) <= {"tags"}
    assert NOTEBOOK.read_text(encoding="utf-8") == nbformat.writes(notebook) + "\n", "not as nbformat writes it"


def test_cells_that_cannot_run_here_are_marked():
    marked = {name for name, cell in code().items() if needs_colab(cell)}
    assert marked == {name for name, cell in code().items() if AWAY.search(cell.source)}
    assert marked < set(code())


def test_it_has_no_logic_of_its_own():
    pytest.importorskip("IPython")
    forbidden = (ast.FunctionDef, ast.ClassDef, ast.For, ast.While, ast.Try, ast.Lambda, ast.comprehension)
    for name, cell in code().items():
        assert not [node for node in ast.walk(python(cell)) if isinstance(node, forbidden)], name
        assert len(cell.source.splitlines()) <= 12, name


def test_it_offers_what_the_product_has():
    filled = forms()
    wanted = {"STEPS": "steps", "GUIDANCE": "guidance", "SEED": "seed", "WHO": "face", "FIT": "fit"}
    assert {name: filled[name][0] for name in wanted} == {name: getattr(Settings(), at) for name, at in wanted.items()}
    assert sorted(ast.literal_eval(filled["FIT"][1])) == sorted(FITS)
    checkpoints = ast.literal_eval(filled["CHECKPOINT"][1])
    assert filled["CHECKPOINT"][0] == checkpoints[0] == "nano"
    assert [get(name).name for name in checkpoints] == checkpoints


def test_the_address_of_the_repository_is_that_of_the_project():
    """No address is made up: as long as the project has none, the user fills it in."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    address = project.get("urls", {}).get("Repository", "")
    assert forms()["REPOSITORY"][0] == ("" if "OWNER" in address else address)
    asked = set(re.findall(r"\./LatentSync\[(\w+)\]", NOTEBOOK.read_text(encoding="utf-8")))
    assert asked <= set(project["optional-dependencies"])


def test_it_names_commands_and_options_that_exist():
    import typer

    from latentsync.cli.main import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    text = "\n".join(cell.source for cell in code().values())
    text = text.replace("{settings}", re.search(r'settings = f"(.+)"', text)[1])  # type: ignore[index]
    for line in re.findall(r"!latentsync (.+)", text):
        command = commands[line.split()[0]]
        options = {name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]}
        assert set(re.findall(r"--[\w-]+", line)) <= options, line


def test_where_no_cursor_moves_progress_is_told_in_lines(monkeypatch, capsys):
    from latentsync.cli import console as screen
    from latentsync.settings import Progress

    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, as the notebook's is
    monkeypatch.setenv("TERM", "dumb")
    with screen.stages() as on_step:
        for done in range(1, 9):
            on_step(Progress("sample", done, 8))
    with screen.transfer("1.5", screen.LARGE) as on_progress:
        on_progress(screen.LARGE // 2, screen.LARGE)
    with screen.transfer("small", 100) as on_progress:
        on_progress(100, 100)
    lines = [*(f"sample: {percent} %" for percent in (25, 50, 75, 100)), "1.5: 50 %"]
    assert capsys.readouterr().err.splitlines() == lines


# --- that it runs --------------------------------------------------------------------------------------------------


class Session:
    """A kernel that runs cells of the notebook, by their ids, and words of the test's own."""

    def __init__(self, client: Any) -> None:
        self.client, self.cells = client, client.nb.cells

    def run(self, name: str) -> Any:
        return self._execute(next(number for number, cell in enumerate(self.cells) if cell.id == name))

    def do(self, source: str) -> Any:
        self.cells.append(nbformat.v4.new_code_cell(source))
        return self._execute(len(self.cells) - 1)

    def _execute(self, number: int) -> Any:
        return self.client.execute_cell(self.cells[number], number)


@contextmanager
def session(folder: Path, path: Path | None = None, **values: object) -> Iterator[Session]:
    """A kernel in a folder that looks as after the cell Install: ./LatentSync and `latentsync` are this checkout's.

    values: what is filled into the fields. path: what is looked in first for programs.
    """
    nbclient = pytest.importorskip("nbclient")

    def filled(field: "re.Match[str]") -> str:
        name = field["name"]
        return f"{name} = {values[name]!r}" if name in values else field[0]

    notebook = read()
    for cell in notebook.cells:
        cell.source = FORM.sub(
            lambda m: f"{m['name']} = {values.get(m['name'], ast.literal_eval(m['value']))!r}", cell.source
        )
    (folder / "LatentSync").symlink_to(ROOT, target_is_directory=True)
    command = folder / "bin" / "latentsync"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m latentsync "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    programs = [str(command.parent), str(path or Path(sys.executable).parent), os.environ["PATH"]]
    environment = os.environ | {"PATH": os.pathsep.join(programs), "IPYTHONDIR": str(folder / "ipython")}
    place = {"metadata": {"path": str(folder)}}
    client = nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=place)
    with client.setup_kernel(env=environment):
        yield Session(client)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def models(tmp_path, monkeypatch) -> Path:
    """A folder with the two files that nano needs; Jupyter leaves nothing in the user's folders."""
    whisper = find_model("tiny.en")
    if whisper is None:
        pytest.skip("whisper-tiny.en is not in LATENTSYNC_MODELS; `make test` fetches it")
    folder = tmp_path / "models"
    folder.mkdir()
    for path in (whisper, face_model()):
        (folder / path.name).symlink_to(path)
    monkeypatch.setenv("LATENTSYNC_MODELS", str(folder))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    return folder


@posix
@pytest.mark.slow
def test_it_makes_a_video_from_top_to_bottom(models, tmp_path):
    """Every cell of part 1 that does not need Colab, with nano."""
    from latentsync.media.probe import probe

    cells = list(code().values())
    part1 = cells[: next(i for i, cell in enumerate(cells) if cell.id.startswith("comfyui"))]
    with session(tmp_path, STEPS=2, GUIDANCE=1) as notebook:
        done = {cell.id: notebook.run(cell.id) for cell in part1 if not needs_colab(cell)}
    assert list(done) == ["weights", "sample", "run", "show"]
    said = "".join(output.text for output in done["run"].outputs)
    assert "sample: 100 %" in said
    assert "\x1b[1A" not in said, "bars that move the cursor leave a new line at every step"
    video = probe(tmp_path / "talking.mp4")
    assert (video.width, video.height) == (512, 512)
    shown = done["show"].outputs[0]["data"]["text/html"]
    assert base64.b64encode((tmp_path / "talking.mp4").read_bytes()).decode() in shown


@posix
@pytest.mark.slow
def test_a_failure_stops_it(models, tmp_path):
    from nbclient.exceptions import CellExecutionError

    with session(tmp_path, WHO="nobody") as notebook:
        notebook.run("weights")
        notebook.run("sample")
        with pytest.raises(CellExecutionError, match="No video was made"):
            notebook.run("run")
        assert not (tmp_path / "talking.mp4").exists()


@posix
@pytest.mark.slow
def test_it_starts_comfyui_with_the_pack(comfyui, models, tmp_path):
    """ComfyUI is copied: the cell links the pack into its folder."""
    # what is a user's there stays there
    own = {".git", "models", "input", "output", "temp", "user", "custom_nodes", ".venv", "venv"}
    top = str(comfyui.path)
    shutil.copytree(top, tmp_path / "ComfyUI", ignore=lambda at, _: own if at == top else ())
    (tmp_path / "ComfyUI" / "custom_nodes").mkdir()
    link = next(line for line in code()["comfyui-install"].source.splitlines() if "ln -s" in line).split("&&")[1]
    values = {"COMFYUI_PORT": free_port(), "COMFYUI_OPTIONS": "--cpu --disable-auto-launch"}
    with session(tmp_path, path=comfyui.python.parent, **values) as notebook:
        notebook.do(f"!{link.strip()}")
        try:
            notebook.run("comfyui")
        finally:
            notebook.do("comfyui.terminate(); comfyui.wait(30)")
    assert "ComfyUI-LatentSync" in (tmp_path / "comfyui.log").read_text(encoding="utf-8")


@posix
@pytest.mark.slow
def test_it_starts_the_app(models, tmp_path):
    pytest.importorskip("streamlit")
    with session(tmp_path, APP_PORT=free_port()) as notebook:
        try:
            notebook.run("app")
        finally:
            notebook.do("app.terminate(); app.wait(30)")
    assert "The app is at" in (tmp_path / "app.log").read_text(encoding="utf-8")
