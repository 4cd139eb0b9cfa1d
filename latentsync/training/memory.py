"""How much memory a training step takes, computed without taking it: by tensors without content."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from .dataset import Sample
from .recipes import RunSettings

MOMENTS = {"adamw": 8, "adamw8bit": 2}
"""Bytes that an optimizer keeps for each trained parameter."""
CUDA_ITSELF = 600_000_000
"""About what CUDA's context and the work spaces of its libraries take. Not computed."""
BLOCK = 8
"""Channels that convolutions on a CPU keep together; images of fewer are filled up."""


@dataclass(frozen=True)
class StepMemory:
    """Bytes while a step is at its highest, on one GPU or in one process, by what they are for.

    frozen: the networks that are not trained. buckets: gradients on their way between processes. step: gradients,
    activations and the optimizer's temporary values. itself: CUDA, or Python and its libraries.
    """

    weights: int
    frozen: int
    optimizer: int
    average: int
    buckets: int
    step: int
    itself: int

    @property
    def total(self) -> int:
        return sum(vars(self).values())


def step_memory(
    network: nn.Module, frozen: Iterable[nn.Module], loss: Callable[[Sample], Tensor], batch: Sample,
    settings: RunSettings, device: torch.device, *, processes: int = 1, itself: int = CUDA_ITSELF,
) -> StepMemory:  # fmt: skip
    """loss: of a batch, with the network; it may read no values of tensors but "number"."""
    frozen = list(frozen)
    trained = [p for p in network.parameters() if p.requires_grad]
    gradients = sum(p.nbytes for p in trained)
    batches = min(settings.gradient_accumulation_steps, 2)  # from the second on all gradients are there
    peak = step_peak([network, *frozen], loss, batch, device, batches)
    # of AdamW: on a GPU the roots of all second moments at once, on a CPU parameter by parameter
    temporary = gradients if device.type == "cuda" else 2 * max(p.nbytes for p in trained)
    count = sum(p.numel() for p in trained)
    return StepMemory(
        weights=_bytes([network]),
        frozen=_bytes(frozen),
        optimizer=MOMENTS[settings.optimizer] * count,
        average=gradients if settings.ema_decay else 0,
        buckets=gradients if processes > 1 else 0,
        step=max(peak, gradients + temporary),
        itself=itself,
    )


def _bytes(modules: Iterable[nn.Module]) -> int:
    return sum({id(t): t.nbytes for module in modules for t in chain(module.parameters(), module.buffers())}.values())


def step_peak(
    modules: Iterable[nn.Module], loss: Callable[[Sample], Tensor], batch: Sample, device: torch.device,
    batches: int = 1,
) -> int:  # fmt: skip
    """The most bytes that the batches' forward and backward passes need besides the modules' weights."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with ExitStack() as stack:
        weights = stack.enter_context(fake_weights(modules, mode, device))
        inputs = {k: fake(v, mode, device) if isinstance(v, Tensor) and k != "number" else v for k, v in batch.items()}
        with mode, MemoryCount(without=weights) as count:
            for tensor in inputs.values():
                if isinstance(tensor, Tensor):
                    count.add(tensor)
            for _ in range(batches):
                loss(inputs).backward()
            return count.peak


class MemoryCount(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make within it, and that are still alive. peak: the most.

    without: tensors that do not count; operations return views of them.
    """

    def __init__(self, *, without: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: Any = WeakIdKeyDictionary()
        for tensor in without:
            self._known[tensor.untyped_storage()] = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        self.peak = max(self.peak, self.now + work_space(func, args, out))
        return out

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known[storage] = weakref.finalize(storage, self._drop, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _drop(self, size: int) -> None:
        self.now -= size


def work_space(func: Any, args: Any, out: Any) -> int:
    """Bytes that an operation takes and frees within itself, where that is known: convolutions on a CPU copy what is
    not channels_last. Measured with PyTorch 2.13."""
    aten = torch.ops.aten
    if func is aten.convolution.default:
        image, weight, made = args[0], args[1], out.nbytes
    elif func is aten.convolution_backward.default:
        image, weight = args[1], args[2]
        made = args[0].nbytes + image.nbytes * max(1, BLOCK // image.shape[1])
    else:
        return 0
    if image.device.type != "cpu" or all(side == 1 for side in weight.shape[2:]):
        return 0
    last = image.ndim == 4 and image.is_contiguous(memory_format=torch.channels_last)
    return 2 * weight.nbytes if last else made + weight.nbytes


@contextmanager
def fake_weights(modules: Iterable[nn.Module], mode: FakeTensorMode, device: torch.device) -> Iterator[list[Tensor]]:
    """The modules have parameters and buffers without content within it; gives these."""
    kept: list[tuple[dict[str, Any], dict[str, Any]]] = []
    made: dict[int, Tensor] = {}  # a parameter may be in several modules
    for part in (part for module in modules for part in module.modules()):
        stores: list[dict[str, Any]] = [part._parameters, part._buffers]
        for store in stores:
            kept.append((store, dict(store)))
            for name, tensor in store.items():
                if tensor is not None:
                    store[name] = made.setdefault(id(tensor), fake(tensor, mode, device))
    try:
        yield list(made.values())
    finally:
        for store, before in reversed(kept):
            store.update(before)


def fake(tensor: Tensor, mode: FakeTensorMode, device: torch.device) -> Any:
    with mode:
        made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    return nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made
