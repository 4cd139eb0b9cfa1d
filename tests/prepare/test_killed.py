"""Killed by force, at every write and from outside: the next run goes on and its results are the same bytes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from latentsync.cli import main as cli

from ..tiny import face_model
from .scenes import WORDS, footage, results, run

pytest.importorskip("scenedetect", reason="PySceneDetect, of the extra `prepare`")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX"),
]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def models():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTSYNC_MODELS", str(face_model().parent))
        yield


@pytest.fixture(scope="module")
def videos(tmp_path_factory, models) -> Path:
    return footage(tmp_path_factory.mktemp("videos"))


DEATHS = """
import os, signal, sys
from itertools import count
from pathlib import Path
import mediapipe, torch
from tests.prepare.scenes import run

whole = Path.replace

def mortal(deadly):
    renames = count(1)
    def replace(part, target):
        if next(renames) == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(part, target)
    return replace

if __name__ == "__main__":
    videos, outs = map(Path, sys.argv[1:])
    for number in count(1):
        child = os.fork()  # nothing has run yet that has threads
        if not child:
            Path.replace = mortal(number)
            run(videos, outs / str(number))
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        print(os.waitstatus_to_exitcode(status), flush=True)
        if not os.WIFSIGNALED(status):
            break
"""
"""Run after run into a folder of its own: the first dies just before its first file gets its name, and so on."""


def test_killed_before_any_file_gets_its_name(videos, tmp_path):
    """So at every step: with its files not written, some of them, all but the word that it is done."""
    (script := tmp_path / "deaths.py").write_text(DEATHS)
    (outs := tmp_path / "outs").mkdir()
    told = subprocess.run(
        [sys.executable, script, videos / "a", outs],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    codes = [int(code) for code in told.stdout.split()]
    assert codes == [-signal.SIGKILL] * (len(codes) - 1) + [0]
    assert len(codes) >= 8 + 6  # a word for each step, and the files of rate, face, crops, sync, and of the run
    wanted = results(outs / str(len(codes)))
    for number in range(1, len(codes)):
        out = outs / str(number)
        assert list(out.rglob(".*.part*")), "killed in the middle of nothing"
        run(videos / "a", out)
        assert results(out) == wanted, f"killed before write {number}"


def test_a_killed_command_takes_its_workers_along_and_goes_on(videos, tmp_path):
    run(videos, tmp_path / "whole")
    out = tmp_path / "out"
    words = ["prepare", str(videos), str(out), *WORDS, "--no-chart", "--workers", "2"]
    command = subprocess.Popen(
        [sys.executable, "-m", "latentsync", *words], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    while not list((out / "work" / "clip").glob("*.json")):
        assert command.poll() is None, command.communicate()
        time.sleep(0.02)
    command.kill()
    command.communicate(timeout=300)  # its workers hold the other end until they have ended
    assert not (out / "manifest.jsonl").exists()
    again = CliRunner().invoke(cli.app, words)
    assert again.exit_code == 0, again.output
    assert results(out) == results(tmp_path / "whole")
