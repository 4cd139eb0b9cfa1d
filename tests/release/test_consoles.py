"""The command line on consoles that know few letters: Windows hands a program's output on in an encoding of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("encoding", "words"),
    [("cp1252", ["doctor"]), ("cp437", ["download"]), ("ascii", ["run", "--help"]), ("ascii", ["run", "-o", "→.mp4"])],
)
def test_no_letter_stops_a_command(encoding, words, tmp_path):
    """The last one fails for a reason of its own, which is to be read."""
    changes = {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding, "LATENTSYNC_MODELS": str(tmp_path)}
    command = [sys.executable, "-m", "latentsync", *words]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | changes, capture_output=True, encoding=encoding, check=False
    )
    assert done.returncode in (0, 1, 2), done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stdout + done.stderr) > 60
