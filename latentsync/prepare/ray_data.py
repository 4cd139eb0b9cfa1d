"""Preparing with Ray Data: one map over the items, each actor with its own models."""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import UserError
from .steps import Outcome
from .worker import Worker
from .workspace import Item, Kind, Plan

CPUS_PER_ACTOR = 1.0
BLOCKS_PER_ACTOR, MIN_BLOCKS = 32, 256
"""Few enough blocks for Ray's bookkeeping, many enough to balance the actors."""


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """The ray module, connected; an earlier connection is kept. address: None starts Ray on this machine."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError('--ray needs Ray Data, which is missing; pip install "latentsync[ray]".') from error
    connect = not ray.is_initialized()
    if connect:
        try:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, runtime_env=_package())
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(f"No Ray answers at {address} ({error}); start it by `ray start --head`.") from error
    try:
        yield ray
    finally:
        if connect:
            ray.shutdown()


def _package() -> dict[str, Any]:
    """Puts this package on the workers' path, so that a shared folder will do instead of an installation."""
    home = str(Path(__file__).resolve().parents[2])
    others = os.environ.get("PYTHONPATH")
    return {"env_vars": {"PYTHONPATH": f"{home}{os.pathsep}{others}" if others else home}}


def run_ray(plan: Plan, kind: Kind, items: Sequence[Item], workers: int, address: str | None) -> Iterator[Outcome]:
    """Yields outcomes as they come. workers: actors; 0 takes as many as the cluster has CPUs.

    Ray restarts an actor that dies and repeats its block; steps that were finished are not run again.
    """
    if not items:
        return
    with connected(address) as ray:
        actors = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # it prints its plan
        rows = [{"json": json.dumps(asdict(item))} for item in items]
        blocks = min(len(rows), max(MIN_BLOCKS, BLOCKS_PER_ACTOR * actors))
        done = ray.data.from_items(rows, override_num_blocks=blocks).map(
            Worker,
            fn_constructor_args=(plan, kind),
            compute=ray.data.ActorPoolStrategy(size=min(actors, len(items))),
            num_cpus=CPUS_PER_ACTOR,
        )
        for row in done.iter_rows():
            yield Outcome.from_json(row["json"])
