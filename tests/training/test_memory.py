"""The memory of a step: computed, and as PyTorch's allocator and the system count it; dry runs."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import psutil
import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import default_collate
from typer.testing import CliRunner

from latentsync.cli import main as cli
from latentsync.training import dry_run as module
from latentsync.training.distributed import make_accelerator
from latentsync.training.dry_run import dry_run, estimate
from latentsync.training.memory import MemoryCount, step_memory, step_peak
from latentsync.training.recipes import RunSettings
from latentsync.training.syncnet.architecture import network_from
from latentsync.training.syncnet.run import try_syncnet

from .parts import recipe, tiny_task, write_files
from .test_syncnet_training import TINY, tiny_recipe

CPU = torch.device("cpu")
WITHIN = 0.15
FULL_SIZE_BYTES = 19e9


def settings(**given):
    return RunSettings(**given)


def test_living_tensors_are_counted():
    kept = torch.zeros(1000)  # 4000 bytes, before
    with MemoryCount(without=[kept]) as count:
        a = kept + 1
        b = a.view(10, 100)  # the same bytes
        c = kept.view(10, 100)  # these do not count
        assert (count.now, count.peak) == (4000, 4000)
        d = (b * c).sum()  # the product goes at once
        assert (count.now, count.peak) == (4004, 8004)
        del a, b, d
        assert (count.now, count.peak) == (0, 8004)


def test_a_step_by_hand():
    """Two layers without bias, 16 inputs of 8: what is kept is each layer's input."""
    net = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 8, bias=False))
    batch, row = {"x": torch.zeros(16, 8)}, 16 * 8 * 4
    peak = step_peak([net], lambda inputs: net(inputs["x"]).sum(), batch, CPU)
    assert 4 * row <= peak <= 6 * row + 2 * 64 * 4  # input, hidden, its ReLU, output; then their gradients in turn
    assert all(type(p) is nn.Parameter and type(p.data) is torch.Tensor for p in net.parameters())
    assert net[0].weight.grad is None


@pytest.mark.parametrize(
    ("given", "processes", "optimizer", "average", "buckets"),
    [
        ({}, 1, 8, 0, 0),
        ({"optimizer": "adamw8bit"}, 1, 2, 0, 0),
        ({"ema_decay": 0.9}, 1, 8, 4, 0),
        ({}, 8, 8, 0, 4),
    ],
)
def test_what_stays_in_memory(given, processes, optimizer, average, buckets):
    net, frozen = nn.Linear(100, 10), nn.Linear(50, 10).requires_grad_(False)
    net.bias.requires_grad_(False)
    memory = step_memory(
        net, [frozen], lambda b: net(b["x"]).sum(), {"x": torch.zeros(2, 100)}, settings(**given), CPU,
        processes=processes, itself=5,
    )  # fmt: skip
    assert (memory.weights, memory.frozen, memory.itself) == (4040, 2040, 5)
    assert (memory.optimizer, memory.average, memory.buckets) == (1000 * optimizer, 1000 * average, 1000 * buckets)
    assert memory.step == 3 * 4000  # the gradient and AdamW's two temporary values: more than the passes need
    assert memory.total == sum(vars(memory).values())


def allocated(step):
    """The most bytes that PyTorch's allocator gave out meanwhile."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    now = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


@pytest.mark.parametrize(
    ("stage", "given"),
    [("1", {}), ("2", {"gradient_checkpointing": True}), ("2-efficient", {"gradient_accumulation_steps": 2})],
)
def test_the_estimate_is_what_the_allocator_gives(clips, stage, given):
    chosen = recipe(stage, **given)
    task = tiny_task(clips, chosen)
    batch = default_collate([task.data[0]])
    parameters = [p for p in task.network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters)
    memory = estimate(task, chosen, make_accelerator("fp32", 1, cpu=True), batch)

    def step():
        for _ in range(chosen.gradient_accumulation_steps):
            task.losses(task.network, batch)["total"].backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # creates the optimizer's state
    assert memory.step == pytest.approx(allocated(step), rel=WITHIN)


def test_checkpointing_precision_and_batches(clips):
    steps = {}
    for name, given in {
        "plain": {}, "checkpointed": {"gradient_checkpointing": True}, "two": {"batch_size": 2},
    }.items():  # fmt: skip
        chosen = recipe("1", **given)
        task = tiny_task(clips, chosen)
        batch = default_collate([task.data[0]] * chosen.batch_size)
        steps[name] = estimate(task, chosen, make_accelerator("fp32", 1, cpu=True), batch).step
    assert steps["checkpointed"] < 0.6 * steps["plain"]
    assert 1.7 * steps["plain"] < steps["two"] < 2.1 * steps["plain"]


def measured(what, data):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "500000"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.peak", what, str(data)],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the system's count is read from /proc")
@pytest.mark.parametrize("what", ["1", "2", "2-efficient", "full"])
def test_the_estimate_is_what_the_system_counts(clips, what):
    if what == "full" and psutil.virtual_memory().available < FULL_SIZE_BYTES:
        pytest.skip("needs 19 GB of memory")
    facts = measured(what, clips)
    assert facts["estimated"] == pytest.approx(facts["measured"], rel=WITHIN)


# ---- dry runs --------------------------------------------------------------------------------------------------------


def entries(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*"))


def test_a_dry_run_measures_and_writes_nothing(clips, tmp_path):
    files, out = write_files(tmp_path), tmp_path / "run"
    before = entries(tmp_path), entries(clips)
    common = ["--size", "tiny", "--vae", str(files["vae"]), "--whisper", str(files["whisper"]), "--resolution", "64"]
    done = CliRunner().invoke(
        cli.app, ["train", "unet", str(clips), *common, "--device", "cpu", "--set", "holdout_time=0.4", "-o", str(out),
                  "--cache-latents", "--epochs", "4", "--dry-run", "--ema-decay", "0.9"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert (entries(tmp_path), entries(clips)) == before
    assert "Memory of a step on cpu in fp32" in done.output
    assert "12 steps in" in done.output  # four epochs of three clips
    assert f"Would be written to {out}" in done.output


def test_a_residual_network_is_counted_and_then_measured(clips, tmp_path):
    """As nano is: it adds its output around the mouth, by a window that the count must not leave without content."""
    chosen = recipe("1")
    task = tiny_task(clips, chosen)
    task.network.config = replace(task.network.config, residual="jaw")
    run = dry_run(task, chosen, make_accelerator("fp32", 1, cpu=True), tmp_path)
    assert run.speed.seconds > 0


def test_a_step_that_does_not_fit_is_not_taken(clips, tmp_path, monkeypatch):
    chosen = recipe("1")
    monkeypatch.setattr(module, "device_memory", lambda device: (10**9, 0))
    monkeypatch.setattr(module, "_own_memory", lambda task: 0)
    monkeypatch.setattr(module, "measure", None)
    run = dry_run(tiny_task(clips, chosen), chosen, make_accelerator("fp32", 1, cpu=True), tmp_path)
    assert (run.speed, run.steps_an_hour) == (None, None)


def test_loading_counts_where_it_is_slower(clips, tmp_path):
    chosen = recipe("1")
    run = dry_run(tiny_task(clips, chosen), chosen, make_accelerator("fp32", 1, cpu=True), tmp_path)
    assert run.speed.seconds > 0
    for seconds, loading, workers, wanted in ((2, 1, 0, 1800), (1, 4, 1, 900), (1, 4, 4, 3600)):
        other = replace(run, speed=replace(run.speed, seconds=seconds, loading=loading), workers=workers)
        assert other.steps_an_hour == wanted


def test_disk_space(clips, tmp_path):
    chosen = recipe("1", keep=3, public_form=True, ema_decay=0.9)
    task = tiny_task(clips, chosen)
    parts = module.written(task, chosen, tmp_path / "not" / "yet").parts
    weights = sum(p.nbytes for p in task.network.parameters())
    buffers = sum(b.nbytes for b in task.network.buffers())
    assert parts["unet.safetensors"] == 2 * (weights + buffers)
    assert parts["checkpoints"] == 5 * (2 * (weights + buffers) + 4 * weights)  # two moments, average, current


def test_a_syncnet(clips, tmp_path):
    run = try_syncnet(clips, tmp_path / "run", network_from(TINY), tiny_recipe(epochs=2, steps=9), cpu=True)
    assert run.memory.step > 0
    assert run.speed.seconds > 0
    assert entries(tmp_path) == []
