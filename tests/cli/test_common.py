"""What all commands have in common: the help's form, --quiet, --verbose and --debug, completion, how threads wait."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from latentsync.cli import console
from latentsync.cli import main as cli

from ..tiny import face_model, link, tiny_checkpoint, whisper_file, write_speech
from ..webapp.parts import portrait

ROOT = Path(__file__).resolve().parents[2]
APP = typer.main.get_command(cli.app)
WIDEST = 76
"""Columns of an example, so that a terminal of 80 shows it in one line."""


def walk(command, name="latentsync"):
    yield name, command
    for part, below in getattr(command, "commands", {}).items():
        yield from walk(below, f"{name} {part}")


ALL = dict(walk(APP))
LEAVES = {name: command for name, command in ALL.items() if not hasattr(command, "commands")}
RUN_MODELS = ("run", "personalize", "app", "batch", "bench", "prepare", "train unet", "train syncnet", "train distill",
              "eval sync", "eval compare", "eval measure", "eval runs", "eval syncnet-accuracy")  # fmt: skip


def help_page(name):
    return call(*name.split()[1:], "--help", COLUMNS="80", TERMINAL_WIDTH="80").output


@pytest.mark.parametrize("name", ALL)
def test_values_have_names(name):
    """Not the names of Python's types; what an argument is stands beside its name."""
    options = help_page(name).partition("Options")[2]
    assert options
    assert not re.findall(r"<(?:int|float|str|bool|path)\b[^>]*>", options)


@pytest.mark.parametrize("name", ALL)
def test_examples_fit_a_narrow_terminal(name):
    lines = inspect.cleandoc(ALL[name].help or "").splitlines()
    wide = [line for line in lines if re.match(r"\s*(latentsync|accelerate) |\s{4,}", line) and len(line) > WIDEST]
    assert not wide
    assert all(len(line) <= 80 for line in help_page(name).splitlines())


def test_commands_are_in_groups():
    page = help_page("latentsync")
    for title in ("Make videos", "Models and this computer", "Measure and train"):
        assert f"─ {title} ─" in page
    assert "─ Commands ─" not in page


def test_a_command_that_runs_a_model_takes_a_device():
    with_device = {name for name, c in LEAVES.items() if any("--device" in p.opts for p in c.params)}
    assert with_device == {f"latentsync {name}" for name in RUN_MODELS}


@pytest.fixture
def job(tmp_path, monkeypatch):
    """The words of a short run in a folder with all that it needs."""
    folder = tmp_path / "models"
    folder.mkdir()
    link(folder / "face_landmarker.task", face_model())
    whisper_file(folder / "whisper-tiny.en.safetensors")
    monkeypatch.setenv("LATENTSYNC_MODELS", str(folder))
    monkeypatch.chdir(tmp_path)
    tiny_checkpoint(tmp_path / "tiny.safetensors")
    portrait(tmp_path / "face.png", width=160, height=140)
    write_speech(tmp_path / "speech.wav", 0.4)
    return ["run", "-i", "face.png", "-a", "speech.wav", "-o", "out.mp4", "-c", "tiny.safetensors", "--steps", "1"]


def call(*words, **environment):
    return CliRunner(env=environment).invoke(cli.app, [str(word) for word in words])


def test_quiet_says_nothing_but_errors(job, tmp_path):
    for words in (["-q", *job], [*job, "--quiet"]):
        done = call(*words)
        assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")
        assert (tmp_path / "out.mp4").stat().st_size
    assert "frames of 160 × 140" in call(*job).stdout
    failed = call("-q", "run", "-i", "none.png", "-o", "out.mp4")
    assert failed.stderr.startswith("error: There is no picture none.png")
    assert not console.quiet or call("doctor", "--json").stdout


def test_quiet_leaves_results(job):
    assert '"frames": ' in call("-q", *job, "--json", "-").stdout
    assert call("-q", "download").stdout.startswith("name ")


def test_quiet_batches_name_what_failed(job, tmp_path):
    (tmp_path / "jobs.csv").write_text("video,audio,out,steps\nface.png,speech.wav,a.mp4,1\n")
    words = ["batch", "jobs.csv", "-c", "tiny.safetensors", "--overwrite"]
    assert "a.mp4" in call(*words).stderr
    done = call(*words, "-q")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")
    (tmp_path / "blank.png").write_bytes((tmp_path / "face.png").read_bytes()[:2000])
    (tmp_path / "jobs.csv").write_text("video,audio,out,steps\nblank.png,speech.wav,b.mp4,1\n")
    assert "b.mp4: failed" in call(*words, "-q").stderr


BAD = ("run", "-i", "none.png", "-o", "out.mp4")


@pytest.mark.parametrize("words", [("--debug", *BAD), (*BAD, "--debug")])
def test_debug_shows_where_an_error_came_from(words):
    done = call(*words)
    assert done.exit_code == 2
    assert "Traceback" in done.stderr
    assert "_check_media" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: There is no picture")


def test_the_environment_asks_for_it_too():
    assert "Traceback" in call(*BAD, LATENTSYNC_DEBUG="1").stderr
    for off in ("", "0"):
        assert "Traceback" not in call(*BAD, LATENTSYNC_DEBUG=off).stderr
    assert "Traceback" not in call("-v", *BAD).stderr


def test_verbose_says_what_was_decided_without_tracebacks(tmp_path):
    code = (
        "import logging; from latentsync.cli.main import app\n"
        "try: app(['-v', 'download'])\n"
        "finally:\n log = logging.getLogger('latentsync.x'); log.info('seen'); log.debug('hidden')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "seen" in done.stderr
    assert "hidden" not in done.stderr


def test_words_behind_two_dashes_are_left_alone():
    done = call("info", "--", "--debug")
    assert "--debug" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("latentsync do", {"download", "doctor"}),
        ("latentsync run --se", {"--seed"}),
        ("latentsync eval s", {"sync", "syncnet-accuracy"}),
        ("latentsync -q train un", {"unet"}),
    ],
)
def test_shells_complete_commands_and_options(line, wanted):
    asked = {"_LATENTSYNC_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    code = "import sys; sys.argv = ['latentsync']; from latentsync.__main__ import main; main()"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | asked, capture_output=True, text=True, check=False)
    assert set(done.stdout.split()) == wanted, done.stderr


@pytest.mark.parametrize(("given", "wanted"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_wait_without_keeping_cores_busy(given, wanted):
    """Said before torch is loaded, which reads it once; what the user says counts."""
    kept = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    code = (
        "import os, sys; sys.argv = ['latentsync', '--version']; from latentsync.__main__ import main\n"
        "import latentsync.cli.main as m; assert 'OMP_WAIT_POLICY' not in os.environ or sys.argv[0] and %r\n"
        "m.app = lambda: print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)\nmain()"
    )
    known = kept | ({"OMP_WAIT_POLICY": given} if given else {})
    command = [sys.executable, "-c", code % given]
    done = subprocess.run(command, cwd=ROOT, env=known, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [wanted, "False"], done.stderr
