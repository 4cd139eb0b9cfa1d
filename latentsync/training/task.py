"""What the trainer asks of a network's task."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .dataset import ClipDataset, Sample

Report = Callable[[str], None]
"""Takes a line to print."""
Event = Callable[..., None]
"""Writes to the run's events.jsonl and prints it: (what happened, **details)."""
PUBLIC_SUFFIX = ".pt"
"""Of the weight file for the public code, which a task may write beside its own."""


class Task(Protocol):
    """What a Trainer trains. All parameters of network with requires_grad go to the optimizer.

    network: an nn.Module. result: name of the weight file that save() writes. data: the samples; validation: those of
    validations, if any. criterion: the number of a validation that tells which weights are best, the lower the better.
    """

    result: str

    network: Any
    data: ClipDataset
    validation: ClipDataset | None

    @property
    def criterion(self) -> str: ...

    @property
    def frozen(self) -> list[nn.Module]:
        """The networks beside it, on the same device."""
        ...

    @property
    def result_bytes(self) -> int:
        """Of the weight file."""
        ...

    def to(self, device: torch.device) -> None:
        """Move everything but the network."""

    def losses(self, network: nn.Module, batch: Sample, *, validating: bool = False) -> dict[str, Tensor]:
        """Numbers to log by name; the gradients are those of "total". A function of the batch alone."""
        ...

    def dry_loss(self, network: Any, batch: Sample) -> Tensor:
        """A loss that takes as much memory, of tensors without content: it reads no values but those of "number"."""
        ...

    def evaluate(self, folder: Path, step: int, event: Event) -> dict[str, float]:
        """After a validation, in the main process: more numbers by name; images go into folder. What could not be
        measured is an event."""
        ...

    def save(self, folder: Path, state: dict[str, Tensor], step: int) -> None:
        """Write the weight file. state: the network's."""

    def load(self, folder: Path) -> None:
        """Read into the network what save() wrote."""
