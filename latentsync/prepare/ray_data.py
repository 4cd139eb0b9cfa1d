"""Preparing with Ray Data: one map over the items, each actor with its own models."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from ..batch.parallel.ray_pool import connect
from ..errors import missing_package
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
        raise missing_package("--ray", "ray", instead="leave out --ray") from error
    is_ours = not ray.is_initialized()
    connect(address)
    try:
        yield ray
    finally:
        if is_ours:
            ray.shutdown()


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
