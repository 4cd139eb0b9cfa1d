"""What two processes do together, and one that is killed; run by test_processes: python -m … two_processes DATA OUT.

Each writes gradients of one step (so that two times one clip can be compared with one time two), then runs on with a
clip that is broken and with a loss that is no number in one process only. Started by torchrun this is one of the two;
started alone it forks both, and a third that trains until it is killed: all the imports are made once.
"""

import os
import random
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType
from torch import distributed

from latentsync.dataset import ClipFile
from latentsync.training.distributed import make_accelerator
from latentsync.training.trainer import Trainer

from .parts import recipe, tiny_task

SHARED_OUT = ["ResnetBlock", "SpatialTransformer", "MotionModule"]
"""Layers whose weights are together only while they are used."""
SHARDED = {
    "save_every": 2, "validate_every": 2, "lpips": "off", "sync_weight": 0.0, "trepa_weight": 0.0,
}  # fmt: skip
KILLED = {"ema_decay": 0.9, "save_every": 2, "validate_every": 3, "sample_clips": 0}
"""Settings of the run that is killed."""


def gradients(data: Path, out: Path) -> None:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = recipe("2-efficient", batch_size=2 // world, max_grad_norm=1e9)
    trainer = Trainer(tiny_task(data, chosen), chosen, out, make_accelerator("fp32", 1))
    trainer.compute_gradients()
    if trainer.main:
        named = {n: p.grad for n, p in trainer.task.network.named_parameters() if p.grad is not None}
        torch.save(named, out / f"gradients-{world}.pt")
    trainer.accelerator.wait_for_everyone()


def trouble(data: Path, out: Path) -> None:
    """The first process's first sample is a broken clip; in the second process one step's loss is no number."""
    chosen = recipe("1", steps=4, save_every=2, validate_every=4, sample_clips=0)
    task = tiny_task(data, chosen)
    task.data.clips = [replace(clip) for clip in task.data.clips]
    broken = next(i for i, clip in enumerate(task.data.clips) if clip == task.data.clip(0))
    task.data.clips[broken] = ClipFile(data / "manifest.jsonl", "broken")
    accelerator, plain = make_accelerator("fp32", 1), task.losses

    def losses(network, batch, *, validating=False):
        found = plain(network, batch, validating=validating)
        bad = 5 in batch["number"].tolist() and not validating  # number 5 is the second process's at step 2
        return {name: loss * float("nan") for name, loss in found.items()} if bad else found

    task.losses = losses
    trainer = Trainer(task, chosen, out / "run", accelerator)
    reason = trainer.fit()
    state = torch.cat([p.detach().flatten() for p in task.network.parameters()])
    torch.save({"reason": reason, "state": state}, out / f"end-{accelerator.process_index}.pt")


def sharded(data: Path, out: Path) -> None:
    """Four steps with weights and optimiser shared out by FSDP, in two runs."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=SHARED_OUT
    )
    accelerator = Accelerator(cpu=True, mixed_precision="no", fsdp_plugin=plugin)
    for state in (accelerator.state, PartialState()):  # accelerate offers FSDP on GPUs only; PyTorch has it on CPUs too
        state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin
    for steps in (2, 4):
        chosen = recipe("2", steps=steps, batch_size=1, **SHARDED)
        Trainer(tiny_task(data, chosen), chosen, out / "sharded", accelerator).fit()
        accelerator.free_memory()  # as a new process would not know the network before


def together(data: Path, out: Path) -> None:
    gradients(data, out)
    trouble(data, out)
    if "TORCHELASTIC_RUN_ID" in os.environ:  # the long form
        sharded(data, out)


def ranked(rank: int, data: Path, out: Path) -> None:
    """One of two, without a launcher: they meet by a file."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    distributed.init_process_group("gloo", init_method=f"file://{out / 'meeting'}", rank=rank, world_size=2)
    together(data, out)
    distributed.destroy_process_group()


def killed(data: Path, out: Path) -> None:
    """Train until SIGKILL comes, a moment after a step that is drawn."""
    chosen = recipe("1", steps=1000, **KILLED)
    trainer = Trainer(tiny_task(data, chosen), chosen, out / "killed", make_accelerator("fp32", 1, cpu=True))
    step, moment, plain = random.randint(1, 5), random.uniform(0, 0.2), trainer.compute_gradients

    def gradients():
        if trainer.step == step:
            threading.Timer(moment, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return plain()

    trainer.compute_gradients = gradients
    trainer.fit()


def forked(work: Callable[[], None]) -> int:
    """The process that does it."""
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def main(data: Path, out: Path) -> None:
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        together(data, out)
        return
    tasks = [lambda: ranked(0, data, out), lambda: ranked(1, data, out), lambda: killed(data, out)]
    ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in [forked(task) for task in tasks]]
    assert ends == [0, 0, -signal.SIGKILL], ends


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
