"""Training on Ray: two nodes on this machine give what two processes of torchrun give, and a lost one costs nothing."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from latentsync.cli import main as cli
from latentsync.cli.train_ray import _absolute
from latentsync.training.logging import EVENTS, read_log
from latentsync.training.recipes import Files

from ..ray_nodes import two_nodes
from .parts import write_files

STEPS = 8


def test_paths_that_other_processes_find(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "start.safetensors").touch()
    files = _absolute(Files(init="start.safetensors", vae="nano", cache=Path("cache")))
    assert files == Files(init=str(tmp_path / "start.safetensors"), vae="nano", cache=tmp_path / "cache")
    assert _absolute(Path("run")) == tmp_path / "run"
    assert _absolute("nano") == "nano"


def test_devices_that_ray_does_not_have(clips, tmp_path):
    done = CliRunner().invoke(cli.app, ["train", "unet", str(clips), "--ray", "--device", "mps", "-o", str(tmp_path)])
    assert (done.exit_code, "--device mps does not go with --ray" in done.output) == (2, True)


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one core each; this process is the driver."""
    pytest.importorskip("ray.train", reason='Ray Train is not here: pip install "ray[data,train]"')
    with two_nodes(num_cpus=1, object_store_memory=100 * 2**20) as cluster:
        yield cluster


@pytest.fixture
def words(clips, tmp_path):
    """Of a command that trains a tiny network."""
    files = write_files(tmp_path)
    settings = ["holdout_time=0.4", "sample_clips=0", "trackers=[none]", "validate_windows=2"]
    every = ["--log-every", 1, "--save-every", 2, "--validate-every", 4]
    return [*map(str, ["train", "unet", clips, "--size", "tiny", "--vae", files["vae"], "--whisper", files["whisper"],
            "--resolution", 64, "--device", "cpu", "--precision", "fp32", "--workers", 0, "--learning-rate", 1e-3,
            "--steps", STEPS, *every, *(word for setting in settings for word in ("--set", setting))])]  # fmt: skip


ON_RAY = ["--ray", "--ray-workers", "2"]


def losses(run):
    return {line["step"]: line["loss/noise"] for line in read_log(run) if "loss/noise" in line}


def torchrun(words, run):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "latentsync",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *words, "-o", str(run)], check=True, capture_output=True, env=environment)


def kill_a_worker_after(step, run):
    """SIGKILL, once the run has logged this step. Only processes that this one started are looked at."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (run / "log.jsonl").exists() and max(losses(run), default=0) >= step:
            found = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())]
            found[-1].kill()
            return
        time.sleep(0.05)


@pytest.mark.slow
def test_the_losses_of_torchrun_also_when_a_worker_is_lost(cluster, words, tmp_path):
    torchrun(words, tmp_path / "torchrun")
    done = CliRunner().invoke(cli.app, [*words, *ON_RAY, "-o", str(tmp_path / "ray")])
    assert done.exit_code == 0, done.output
    assert f"step {STEPS}: stopped reason={STEPS} steps are done" in done.output
    killer = threading.Thread(target=kill_a_worker_after, args=(3, tmp_path / "lost"))
    killer.start()
    lost = CliRunner().invoke(cli.app, [*words, *ON_RAY, "-o", str(tmp_path / "lost")])
    killer.join()
    assert lost.exit_code == 0, lost.output
    events = [json.loads(line)["event"] for line in (tmp_path / "lost" / EVENTS).read_text().splitlines()]
    assert "resumed" in events
    wanted = losses(tmp_path / "torchrun")
    assert sorted(wanted) == [*range(1, STEPS + 1)]
    assert losses(tmp_path / "ray") == pytest.approx(wanted, abs=1e-5)
    assert losses(tmp_path / "lost") == pytest.approx(wanted, abs=1e-5)
    assert not list(tmp_path.glob(".*-ray-*"))


@pytest.mark.slow
def test_errors_of_the_user_come_back(cluster, words, clips, tmp_path):
    for more, said in (
        (["--init", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--ray-workers", "3"], "room for 2 of 3 processes with 1 core each"),
    ):
        done = CliRunner().invoke(cli.app, [*words, *ON_RAY, *more, "-o", str(tmp_path / "run")])
        assert (done.exit_code, said in done.output) == (2, True), done.output
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_ctrl_c_saves_the_step_and_leaves_no_process(words, tmp_path):
    """A command of its own, with a Ray of its own. The second run resumes."""
    pytest.importorskip("ray.train")
    run, environment = tmp_path / "run", {name: v for name, v in os.environ.items() if name != "RAY_ADDRESS"}
    words[words.index("--steps") + 1] = "100000"
    command = [sys.executable, "-m", "latentsync", *words, "--ray", "--ray-workers", "1", "-o", str(run)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
    with subprocess.Popen(command, **options) as process:
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            if (run / "log.jsonl").exists() and max(losses(run), default=0) >= 3:
                break
            time.sleep(0.1)
        started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert "Stopping after this step; the same command resumes" in output
    step = max(losses(run))
    assert (run / "checkpoints" / f"step-{step:08d}").is_dir()
    assert (run / "unet.safetensors").is_file()
    assert json.loads((run / EVENTS).read_text().splitlines()[-1])["reason"] == "stop requested"
    assert not psutil.wait_procs(started, timeout=60)[1]
