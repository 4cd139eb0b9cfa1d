"""The memory of two real steps beside the estimate, as JSON: python -m tests.training.peak WHAT DATA.

WHAT: a tiny stage of parts.py in fp32, or "full": stage 2 at its full size at 256 px in bf16 without pixel losses, with
random weights. It is a process of its own, because the system counts the most memory that a process has had (Linux).
What is freed is counted no longer only if MALLOC_MMAP_THRESHOLD_ is set: glibc keeps a heap of freed tensors otherwise.
"""

import json
import sys
from pathlib import Path

import torch
from torch.utils.data import default_collate

from latentsync.models.unet import UNet
from latentsync.models.vae import VAE
from latentsync.training.distributed import make_accelerator
from latentsync.training.dry_run import estimate
from latentsync.training.optim import make_optimizer
from latentsync.training.recipes import UNetRecipe, unet_recipe
from latentsync.training.unet.init import unet_config
from latentsync.training.unet.task import UNetTask

from .parts import recipe, tiny_task

NO_PIXELS = {"sync_weight": 0.0, "lpips": "off", "trepa_weight": 0.0}


def full_task(chosen: UNetRecipe, dtype: torch.dtype) -> UNetTask:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    widths = (128, 256, 512, 512)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(**blocks, block_out_channels=widths, layers_per_block=2)
    unet = UNet(unet_config("full", chosen.motion))
    return UNetTask(unet, VAE(vae).eval().requires_grad_(False), chosen, None, None, dtype=dtype)  # type: ignore[arg-type]


def full_sample(side: int) -> dict:
    images = {name: torch.zeros(16, 3, side, side, dtype=torch.uint8) for name in ("pixels", "reference")}
    return {"number": 0, "audio": torch.zeros(16, 50, 384), **images}


def most_bytes() -> int:
    """That this process has had in memory."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def main(what: str, data: Path) -> None:
    torch.set_num_threads(1)
    accelerator = make_accelerator("bf16" if what == "full" else "fp32", 1, cpu=True)
    if what == "full":
        chosen = unet_recipe("2", None, **NO_PIXELS)
        task, sample = full_task(chosen, torch.bfloat16), full_sample(chosen.resolution)
    else:
        chosen = recipe(what)
        task = tiny_task(data, chosen)
        sample = task.data[0]
    batch = default_collate([sample])
    memory = estimate(task, chosen, accelerator, batch)
    parameters = [p for p in task.network.parameters() if p.requires_grad]
    optimizer = make_optimizer(chosen, parameters)
    network = accelerator.prepare(task.network)
    for _ in range(2):
        task.losses(network, batch)["total"].backward()
        optimizer.step()
        optimizer.zero_grad()
        sys.stderr.write(f"{most_bytes() / 1e9:.2f} GB after a step\n")
    sys.stdout.write(json.dumps({"estimated": memory.total, "measured": most_bytes(), **vars(memory)}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
