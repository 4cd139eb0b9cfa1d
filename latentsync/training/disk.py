"""What a run would write."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from .memory import MOMENTS
from .recipes import RunSettings
from .task import Task


@dataclass(frozen=True)
class Written:
    """Bytes of each file or folder of a run. free: where they would be written."""

    out: Path
    parts: dict[str, int]
    free: int


def written(task: Task, settings: RunSettings, out: Path) -> Written:
    """Without logs and samples, which are small. One checkpoint more than `keep`, the best, may stay, and one more is
    written before an old one goes."""
    trained = [p for p in task.network.parameters() if p.requires_grad]
    weights, values = task.result_bytes, sum(p.nbytes for p in trained)
    state = MOMENTS[settings.optimizer] * sum(p.numel() for p in trained)
    if settings.ema_decay:
        state += 2 * values  # the average, and the current weights
    files = weights * (2 if settings.public_form else 1)
    parts = {task.result: files, "checkpoints": (files + state) * (settings.keep + 2)}
    existing = next(folder for folder in [out.absolute(), *out.absolute().parents] if folder.exists())
    return Written(out, parts, shutil.disk_usage(existing).free)
