"""One process or many, by accelerate."""

import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import UserError, missing_package
from ..models.libraries import hide_broken_torchvision
from .recipes import RunSettings, write_recipe

if TYPE_CHECKING:
    from accelerate import Accelerator

RECIPE = "recipe.yaml"
TIMEOUT = timedelta(hours=2)
"""How long processes wait for one that saves, validates or encodes."""


def make_accelerator(precision: str, gradient_accumulation_steps: int, *, cpu: bool = False) -> "Accelerator":
    """precision: auto, fp32, bf16 or fp16. The processes are those of `accelerate launch` or torchrun."""
    hide_broken_torchvision()
    try:
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs
    except ImportError as error:
        raise missing_package("Training", "accelerate") from error
    cuda = torch.cuda.is_available() and not cpu
    mixed = {"fp32": "no"}.get(precision, precision)
    if precision == "auto":
        mixed = "no" if not cuda else "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if mixed == "fp16" and not cuda:
        raise UserError("fp16 trains on CUDA GPUs only; use --precision bf16 or fp32 here.")
    handlers: Any = [InitProcessGroupKwargs(timeout=TIMEOUT)]
    steps = gradient_accumulation_steps
    accelerator = Accelerator(
        mixed_precision=mixed, gradient_accumulation_steps=steps, cpu=cpu, kwargs_handlers=handlers
    )
    # accelerate's launcher says where processes meet if it was asked for several, and torchrun also how many there are
    asked = {"ACCELERATE_USE_CPU", "MASTER_ADDR"} <= os.environ.keys() and "WORLD_SIZE" not in os.environ
    if asked and accelerator.num_processes == 1:
        raise UserError(
            "`accelerate launch` was asked for several processes and started one: without several GPUs it needs MPI"
            " (--mpirun_hostfile). Type `torchrun --nproc_per_node 2 -m latentsync train …` instead, or take"
            " --num_processes 1."
        )
    return accelerator


def prepare_folder(accelerator: "Accelerator", out: Path, recipe: RunSettings, **also: str) -> None:
    """Make the run's folder with its recipe, in the main process. also: inputs of the run, as comments."""
    if accelerator.is_main_process:
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_recipe(out / RECIPE, recipe, **also)
        except OSError as error:
            raise UserError(f"{out} cannot be written to ({error.strerror}); give another --out.") from error
    accelerator.wait_for_everyone()


def prepare(accelerator: "Accelerator", network: nn.Module, optimizer: torch.optim.Optimizer, batch_size: int) -> Any:
    """(network, optimizer) for the processes. batch_size: in each process."""
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    if plugin is not None:  # ZeRO cannot read it from a data loader of accelerate
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = batch_size
    return accelerator.prepare(network, optimizer)


def any_rank(accelerator: "Accelerator", *flags: bool) -> list[bool]:
    """Whether each flag is set in any process; all processes get the same answer."""
    values = torch.tensor([float(flag) for flag in flags], device=accelerator.device)
    counts: Any = accelerator.reduce(values, "sum")
    return [count > 0 for count in counts.tolist()]


def from_main(accelerator: "Accelerator", value: Any) -> Any:
    """The main process's value, in all processes."""
    if accelerator.num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def mean_over_ranks(accelerator: "Accelerator", values: Mapping[str, float]) -> dict[str, float]:
    """Means over all processes, which must give the same names."""
    if accelerator.num_processes == 1 or not values:
        return dict(values)
    dtype = torch.float32 if accelerator.device.type == "mps" else torch.float64
    ordered = torch.tensor([values[name] for name in sorted(values)], dtype=dtype, device=accelerator.device)
    means: Any = accelerator.reduce(ordered, "mean")
    return dict(zip(sorted(values), means.tolist(), strict=True))


def is_sharded(accelerator: "Accelerator") -> bool:
    """FSDP or ZeRO: no process holds all weights."""
    return str(accelerator.distributed_type).rpartition(".")[2] in ("FSDP", "DEEPSPEED", "MEGATRON_LM")
