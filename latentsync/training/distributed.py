"""One process or many, by accelerate: what the trainers need of it, in a few named calls."""

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

PATIENCE = timedelta(hours=2)
"""How long the other processes wait for one that saves, validates or encodes."""


def make_accelerator(precision: str, accumulate: int, *, cpu: bool = False) -> "Accelerator":
    """precision: auto, fp32, bf16 or fp16. Which processes there are is up to `accelerate launch` or torchrun."""
    try:
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs
    except ImportError as error:
        raise UserError('Training needs accelerate; type: pip install "latentsync[train]".') from error
    mixed = {"fp32": "no"}.get(precision, precision)
    if precision == "auto":
        mixed = _best_precision(cpu)
    if mixed == "fp16" and (cpu or not torch.cuda.is_available()):
        raise UserError("fp16 trains on a CUDA card only; take --precision bf16 or fp32 here.")
    return Accelerator(
        mixed_precision=mixed,
        gradient_accumulation_steps=accumulate,
        cpu=cpu,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )


def prepare(accelerator: "Accelerator", network: nn.Module, optimizer: torch.optim.Optimizer, batch: int) -> Any:
    """Network and optimiser as the processes share them. batch: samples at once in each."""
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    if plugin is not None:  # ZeRO wants to know, and sees no loader of accelerate's
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = batch
    return accelerator.prepare(network, optimizer)


def any_rank(accelerator: "Accelerator", *flags: bool) -> list[bool]:
    """Whether each is so in any process: all get the same answer, so all do the same."""
    told = torch.tensor([float(flag) for flag in flags], device=accelerator.device)
    counts: Any = accelerator.reduce(told, "sum")
    return [count > 0 for count in counts.tolist()]


def from_main(accelerator: "Accelerator", value: Any) -> Any:
    """The main process's value, in all of them."""
    if accelerator.num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def mean_over_ranks(accelerator: "Accelerator", values: Mapping[str, float]) -> dict[str, float]:
    """Means over all processes, which must have the same names."""
    if accelerator.num_processes == 1 or not values:
        return dict(values)
    names = sorted(values)
    told = torch.tensor([values[name] for name in names], dtype=torch.float64, device="cpu")
    told = told.to(accelerator.device, torch.float32 if accelerator.device.type == "mps" else torch.float64)
    means: Any = accelerator.reduce(told, "mean")
    return dict(zip(names, means.tolist(), strict=True))


def _best_precision(cpu: bool) -> str:
    if cpu or not torch.cuda.is_available():
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def is_sharded(accelerator: "Accelerator") -> bool:
    """FSDP or ZeRO: no process holds all of the weights."""
    return str(accelerator.distributed_type).rpartition(".")[2] in ("FSDP", "DEEPSPEED", "MEGATRON_LM")
