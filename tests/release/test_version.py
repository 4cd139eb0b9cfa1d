"""One version, said in one place; what a release needs; the workflows of the forge."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import latentsync
from latentsync import read_version

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
ACTIONS = {
    "actions/checkout": {"v4", "v5"},
    "actions/setup-python": {"v5", "v6"},
    "actions/cache": {"v4"},
    "actions/upload-artifact": {"v4"},
    "actions/download-artifact": {"v4", "v5"},
    "Comfy-Org/publish-node-action": {"v1"},
}
"""Tags of the actions that are known to exist."""


# --- the version ---------------------------------------------------------------------------------------------------


def test_the_version_stands_in_pyproject_alone():
    assert latentsync.__version__ == read_version() == PROJECT["version"]
    assert "version" not in PROJECT.get("dynamic", [])
    said = [
        path.name
        for path in [*(ROOT / "latentsync").rglob("*.py"), *(ROOT / "nodes").rglob("*.py"), ROOT / "__init__.py"]
        if re.search(rf"(?i)version.*= *['\"]{re.escape(PROJECT['version'])}['\"]", path.read_text(encoding="utf-8"))
    ]
    assert said == []


def test_the_command_line_says_it(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "latentsync", "--version"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == (PROJECT["version"], 0), done.stderr


def test_a_pack_says_its_own_version_whatever_is_installed(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "latentsync"\nversion = "9.8.7"\n', encoding="utf-8")
    assert read_version(tmp_path / "latentsync") == "9.8.7"


def test_a_project_around_it_is_not_mistaken_for_ours(tmp_path):
    """The package copied into somebody's own repository."""
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "theirs"\nversion = "9.8.7"\n', encoding="utf-8")
    assert read_version(tmp_path / "latentsync") != "9.8.7"


# --- a release -----------------------------------------------------------------------------------------------------


@pytest.fixture
def release() -> ModuleType:
    if sys.version_info < (3, 11):
        pytest.skip("the script runs on a newer Python, which has tomllib")
    spec = importlib.util.spec_from_file_location("release_notes", ROOT / ".github" / "release_notes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GOOD = """# Changelog

## [Unreleased]

## [1.2.3] - 2030-01-02

### Fixed

- Something.

## [1.2.2] - 2029-01-02

- Older.
"""


def project(
    folder: Path, changelog: str = GOOD, urls: str = '[project.urls]\nRepository = "https://example.com"\n'
) -> Path:
    (folder / "pyproject.toml").write_text(f'[project]\nname = "x"\nversion = "1.2.3"\n{urls}', encoding="utf-8")
    (folder / "CHANGELOG.md").write_text(changelog, encoding="utf-8")
    return folder


def test_the_notes_are_the_section_of_the_version(release, tmp_path):
    assert release.notes("v1.2.3", project(tmp_path)) == "### Fixed\n\n- Something.\n"


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("pyproject.toml", '\n[project.urls]\nRepository = "https://example.com/OWNER/x"\n', "in place of OWNER"),
        ("pyproject.toml", '\n[tool.comfy]\nPublisherId = "OWNER"\n', "in place of OWNER"),
        ("README.md", "git clone <this repository>", "README.md: put the repository's address in place of"),
        ("docs/quickstart.md", "git clone <this repository>", "docs/quickstart.md: put the repository's address"),
    ],
)
def test_placeholders_stop_a_release(release, tmp_path, file, text, words):
    project(tmp_path, urls="")
    (tmp_path / "docs").mkdir()
    with (tmp_path / file).open("a", encoding="utf-8") as page:
        page.write(text)
    with pytest.raises(ValueError, match=f"There are placeholders left.*{re.escape(words)}"):
        release.notes("v1.2.3", tmp_path)


def test_the_owner_is_named_in_one_place(release):
    """Either everywhere in the block or nowhere; and what the block says is filled in there alone."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = text[text.index("# ---- The owner.") : text.index("# ---- End of what the owner fills in.")]
    values = [line for line in block.splitlines() if line[:1] != "#" and ("github" in line or "PublisherId" in line)]
    assert len(values) == 7
    owners = {re.search(r'(?:\.com/|= ")([\w-]+)(?:/ComfyUI|"$)', line)[1] for line in values}
    assert len(owners) == 1, owners
    assert text.count("OWNER") == block.count("OWNER")
    assert any("pyproject.toml" in found for found in release.placeholders()) == (owners == {"OWNER"})


@pytest.mark.parametrize(
    ("tag", "more", "words"),
    [
        ("v1.2.4", {}, "tag v1.2.3, or change the version"),
        ("", {}, "tag v1.2.3"),
        ("v1.2.3", {"urls": ""}, "Repository"),
        ("v1.2.3", {"changelog": GOOD.replace("[1.2.3] - 2030-01-02", "[1.2.3]")}, "no section"),
        ("v1.2.3", {"changelog": GOOD.replace("### Fixed\n\n- Something.\n", "")}, "no section"),
    ],
)
def test_what_is_missing_stops_a_release(release, tmp_path, tag, more, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        release.notes(tag, project(tmp_path, **more))


def test_the_changelog_speaks_of_this_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    titles = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert all(re.fullmatch(r"\[Unreleased\]|\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", title) for title in titles)
    assert any(title.startswith((f"[{PROJECT['version']}]", "[Unreleased]")) for title in titles)
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security", "Known limits"}
    assert set(re.findall(r"^### (.+)$", text, re.MULTILINE)) <= kinds


# --- the workflows -------------------------------------------------------------------------------------------------


def load(path: Path) -> dict:
    yaml = pytest.importorskip("yaml")
    # YAML 1.1 reads the key "on" as true
    return {("on" if key is True else key): value for key, value in yaml.safe_load(path.read_text("utf-8")).items()}


def steps(workflow: dict) -> list[dict]:
    return [step for job in workflow["jobs"].values() for step in job.get("steps", [])]


def test_there_are_workflows():
    assert [path.name for path in WORKFLOWS] == ["release.yml", "tests.yml"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_is_sound(path):
    workflow = load(path)
    assert {"name", "on", "permissions", "jobs"} <= set(workflow)
    for name, job in workflow["jobs"].items():
        assert ("uses" in job) != ("runs-on" in job), name
        needs = job.get("needs", [])
        assert set([needs] if isinstance(needs, str) else needs) <= set(workflow["jobs"]), name
        called = job.get("uses", "")
        assert not called or (ROOT / called).is_file(), f"{name}: {called}"
    for step in steps(workflow):
        assert ("uses" in step) != ("run" in step), step
        action, _, tag = step.get("uses", "").partition("@")
        assert not action or tag in ACTIONS[action], step
    assert path.read_text("utf-8").count("${{ secrets.") == (path.name == "release.yml")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_what_a_workflow_runs_is_there(path):
    """Files, modules and commands that its lines name."""
    import typer

    from latentsync.cli.main import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for step in steps(load(path)):
        line = step.get("run", "")
        for name in re.findall(r"(?<![\w/.])(?:\.github|tests)/[\w./]+", line):
            assert (ROOT / name).exists(), line
        for name in re.findall(r"^latentsync (\w+)", line, re.MULTILINE):
            assert name in commands, line
        for extras in re.findall(r"\[([\w,]+)\]", line):
            assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"]), line


def test_systems_and_pythons():
    matrix = load(ROOT / ".github" / "workflows" / "tests.yml")["jobs"]["tests"]["strategy"]["matrix"]
    assert {name.split("-")[0] for name in matrix["os"]} == {"ubuntu", "macos", "windows"}
    assert matrix["python"] == ["3.10", "3.11", "3.12", "3.13"]
    assert PROJECT["requires-python"] == f">={matrix['python'][0]}"


def test_the_registry_gets_a_tag_only():
    workflow = load(ROOT / ".github" / "workflows" / "release.yml")
    assert list(workflow["on"]) == ["push"]
    assert list(workflow["on"]["push"]) == ["tags"]
    last = workflow["jobs"]["registry"]["steps"][-1]
    assert last["uses"].startswith("Comfy-Org/publish-node-action@")
    assert last["with"] == {"personal_access_token": "${{ secrets.REGISTRY_ACCESS_TOKEN }}"}
    assert workflow["jobs"]["registry"]["needs"] == "release"
    assert workflow["jobs"]["release"]["needs"] == "tests"
