"""Real processes: two that train together, and one that is killed."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from latentsync.training.charts import LOG, read_log
from latentsync.training.launch import Files, run_unet
from latentsync.training.stages import UNetRecipe, build

from .parts import write_files
from .test_trainer import alike, curves, events
from .two_processes import gradients

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
MODULE = "tests.training.two_processes"


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}


@pytest.fixture(scope="module")
def together(clips, tmp_path_factory):
    """Two processes by torchrun with gloo."""
    out = tmp_path_factory.mktemp("together")
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", MODULE]
    done = subprocess.run(
        [*run, clips, out], cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def test_two_processes_have_the_gradients_of_one_with_twice_the_batch(clips, together):
    gradients(clips, together)
    one, two = (torch.load(together / f"gradients-{n}.pt", weights_only=True) for n in (1, 2))
    assert one.keys() == two.keys()
    assert sum(float(g.abs().sum()) for g in one.values()) > 0.1
    for name, gradient in one.items():
        assert (gradient - two[name]).abs().max() < 1e-6, name


def test_trouble_in_one_process_does_not_stop_the_other(together):
    ends = [torch.load(together / f"end-{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert [end["reason"] for end in ends] == ["4 steps are done"] * 2
    assert torch.equal(ends[0]["state"], ends[1]["state"])
    assert ends[0]["state"].isfinite().all()
    said = [(e["event"], e["step"]) for e in events(together / "run")]
    assert ("step skipped", 2) in said
    assert said.count(("step skipped", 2)) == 1
    assert any(event == "clip replaced" for event, _ in said)
    assert [line["step"] for line in read_log(together / "run") if "loss/total" in line] == [1, 2, 4]


SETTINGS = """
resolution: 64
steps: 12
rate: 1e-3
workers: 0
precision: fp32
log_every: 1
save_every: 3
validate_every: 4
validate_windows: 2
sample_clips: 0
average: 0.9
held_share: 0.4
checkpointing: false
"""


def test_a_killed_run_goes_on_as_if_nothing_had_happened(clips, tmp_path):
    """SIGKILL at a random step; the resumed run's losses are those of a run that was left alone, to 1e-6."""
    files = write_files(tmp_path)
    config = tmp_path / "settings.yaml"
    config.write_text(SETTINGS)
    words = ["train", "unet", clips, "--config", config, "--size", "tiny", "--cpu", "-o", tmp_path / "killed"]
    words += ["--vae", files["vae"], "--whisper", files["whisper"], "--cache", tmp_path / "cache"]
    when = random.randint(2, 10)
    kill_at([sys.executable, "-m", "latentsync", *map(str, words)], tmp_path / "killed" / LOG, when)
    assert when <= last_step(tmp_path / "killed") < 12
    recipe = build(UNetRecipe, {}, config, {})
    given = Files("none", "tiny", str(files["vae"]), str(files["whisper"]), cache=tmp_path / "cache")
    for name in ("killed", "whole"):
        assert run_unet(clips, tmp_path / name, recipe, given, cpu=True) == "12 steps are done"
    alike(curves(tmp_path / "killed"), curves(tmp_path / "whole"))
    assert "resumed" in {e["event"] for e in events(tmp_path / "killed")}


def last_step(run):
    return max((line["step"] for line in read_log(run)), default=0) if (run / LOG).exists() else 0


def kill_at(command, log, step):
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and last_step(log.parent) < step:
        time.sleep(0.01)
    if process.poll() is not None:
        assert process.stderr is not None
        pytest.fail(f"the run ended before it could be killed: {process.stderr.read()[-2000:]}")
    process.send_signal(signal.SIGKILL)
    process.wait()
