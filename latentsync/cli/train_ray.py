"""`latentsync train … --ray`."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..training.recipes import Files
from .parameters import choice

PANEL = "Ray"


@dataclass(frozen=True)
class RayOptions:
    ray: bool = choice(PANEL, "--ray", False, "Train on Ray: the cluster of RAY_ADDRESS, else this machine.")
    ray_address: str | None = choice(PANEL, "", None, "Train on this Ray cluster (auto, or host:port).", "ADDRESS")
    ray_workers: int = choice(
        PANEL, "", 0, "Processes on Ray.", "N", min=0, show_default="one for each GPU, without GPUs one"
    )
    ray_cpus: int = choice(PANEL, "", 1, "Cores of each process on Ray.", "N", min=1)

    @property
    def on(self) -> bool:
        return self.ray or self.ray_address is not None


def start(
    run: Callable[..., str], options: RayOptions, device: str, report: Any,
    data: Path, out: Path, *inputs: Any, **rest: Any,
) -> None:  # fmt: skip
    """run(data, out, *inputs, cpu=…, report=…, **rest) in the processes of Ray, which must see the same paths."""
    from ..training.ray_train import RayWorkers, run_on_ray

    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device} does not go with --ray; give auto, cpu or cuda.")
    arguments = [_absolute(value) for value in (data, out, *inputs)]
    rest = {name: _absolute(value) for name, value in rest.items()}
    workers = RayWorkers(options.ray_address, options.ray_workers, options.ray_cpus)
    run_on_ray(run, arguments, rest, out, workers, cpu=device == "cpu", report=report)


def _absolute(value: Any) -> Any:
    """A process of Ray stands in another folder. A text is a path if there is such a file."""
    if isinstance(value, Files):
        return dataclasses.replace(value, **{name: _absolute(path) for name, path in vars(value).items()})
    if isinstance(value, Path) or (isinstance(value, str) and Path(value).is_file()):
        return type(value)(Path(value).absolute())
    return value
