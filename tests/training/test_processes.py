"""Real processes: two that train together, and some that are killed."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from latentsync.training.logging import LOG, read_log
from latentsync.training.recipes import Files, UNetRecipe, build
from latentsync.training.unet.run import run_unet
from latentsync.weights.load import load_unet

from .parts import write_files
from .test_trainer import alike, curves, events, plain, trainer_of
from .two_processes import KILLED, SHARDED, gradients

__all__ = ["plain"]

ROOT = Path(__file__).resolve().parents[2]
MODULE = "tests.training.two_processes"
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m")


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}


def run(*words):
    """A module with all processes that it starts; none of them outlives a failure."""
    command = [sys.executable, "-m", *map(str, words)]
    started = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        said = started.communicate(timeout=900)[1]
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)
        raise
    assert started.returncode == 0, said[-3000:]


@pytest.fixture(scope="module")
def forked(clips, tmp_path_factory):
    if not hasattr(os, "fork"):
        pytest.skip("this system does not fork; the same is tested with torchrun by -m slow")
    out = tmp_path_factory.mktemp("forked")
    run(MODULE, clips, out)
    return out


@pytest.fixture(scope="module")
def torchrun(clips, tmp_path_factory):
    out = tmp_path_factory.mktemp("torchrun")
    run(*TORCHRUN, MODULE, clips, out)
    return out


@pytest.fixture(scope="module", params=["forked", pytest.param("torchrun", marks=pytest.mark.slow)])
def together(request):
    """What two processes with gloo have left."""
    return request.getfixturevalue(request.param)


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


@pytest.mark.slow
def test_weights_that_are_shared_out_learn_the_same(clips, torchrun, tmp_path, plain):
    """By FSDP, stopped and resumed once: losses of one process with twice the batch, and a file that loads."""
    trainer = trainer_of(clips, tmp_path, "2", steps=4, batch_size=2, **SHARDED)
    trainer.fit()
    names = ("step", "loss/total", "gradient", "validation/total")
    ours, theirs = ([{k: v for k, v in line.items() if k in names} for line in read_log(run)] for run in (
        tmp_path, torchrun / "sharded"))  # fmt: skip
    alike(ours, theirs, 1e-4)
    saved = load_unet(torchrun / "sharded" / "checkpoints" / "step-00000004" / "unet.safetensors").state_dict()
    apart = torch.cat([(saved[name] - one).abs().flatten() for name, one in trainer.task.network.state_dict().items()])
    assert apart.mean() < 1e-4
    assert apart.max() < 2 * 4 * 1e-3  # AdamW moves by the rate at each step even where the gradient is rounding
    assert not list((torchrun / "sharded" / "checkpoints").glob(".*"))


def test_a_killed_run_goes_on_as_if_nothing_had_happened(clips, forked, tmp_path, plain):
    """SIGKILL at a random moment; the resumed run's losses are those of a run that was left alone, to 1e-6."""
    steps = last_step(forked / "killed") + 2
    for run in (forked / "killed", tmp_path / "whole"):
        assert trainer_of(clips, run, steps=steps, **KILLED).fit() == f"{steps} steps are done"
    alike(curves(forked / "killed"), curves(tmp_path / "whole"))
    assert "resumed" in {e["event"] for e in events(forked / "killed")}


SETTINGS = """
resolution: 64
steps: 12
learning_rate: 1e-3
workers: 0
precision: fp32
log_every: 1
save_every: 3
validate_every: 4
validate_windows: 2
sample_clips: 0
ema_decay: 0.9
holdout_time: 0.4
gradient_checkpointing: false
"""


@pytest.mark.slow
def test_a_killed_command_goes_on_as_if_nothing_had_happened(clips, tmp_path):
    """The same with the command line, killed from outside."""
    files = write_files(tmp_path)
    config = tmp_path / "settings.yaml"
    config.write_text(SETTINGS)
    words = ["train", "unet", clips, "--config", config, "--size", "tiny", "--device", "cpu", "-o", tmp_path / "killed"]
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
