"""What two processes do together; run by test_processes under torchrun: python -m … two_processes DATA OUT.

Writes gradients of one step (this many processes, so that two times one clip can be compared with one time two), then
runs on with a clip that is broken and with a loss that is no number in one process only.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from latentsync.training.dataset import ClipFile
from latentsync.training.distributed import make_accelerator
from latentsync.training.trainer import Trainer

from .parts import recipe, tiny_task


def gradients(data: Path, out: Path) -> None:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = recipe("2-efficient", batch=2 // world, clip=1e9, hold_out="time")
    trainer = Trainer(tiny_task(data, chosen), chosen, out, make_accelerator("fp32", 1))
    trainer.gradients()
    if trainer.main:
        named = {n: p.grad for n, p in trainer.task.network.named_parameters() if p.grad is not None}
        torch.save(named, out / f"gradients-{world}.pt")
    trainer.accelerator.wait_for_everyone()


def trouble(data: Path, out: Path) -> None:
    """The first process's first sample is a broken clip; in the second process one step's loss is no number."""
    chosen = recipe("1", steps=4, save_every=2, validate_every=4, hold_out="time", sample_clips=0)
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


if __name__ == "__main__":
    torch.set_num_threads(1)
    folders = Path(sys.argv[1]), Path(sys.argv[2])
    gradients(*folders)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        trouble(*folders)
