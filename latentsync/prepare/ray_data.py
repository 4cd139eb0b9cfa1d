"""The same work placed by Ray Data: one map over the items, each actor with its own models."""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import UserError
from .steps import Item, Outcome
from .worker import Plan, Worker

LEAST_CPUS = 1.0
"""That each actor asks for."""
BLOCKS, FEWEST_BLOCKS = 32, 256
"""Items are handed out in so many blocks for each actor: few enough for Ray's books, many enough to share evenly."""


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """The ray module, connected; what was connected before stays so. address: None starts Ray on this machine."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError('--ray needs Ray Data, which is missing; pip install "latentsync[ray]".') from error
    mine = not ray.is_initialized()
    if mine:
        try:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, runtime_env=_package())
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(f"No Ray answers at {address} ({error}); start it by `ray start --head`.") from error
    try:
        yield ray
    finally:
        if mine:
            ray.shutdown()


def _package() -> dict[str, Any]:
    """This package on the workers' path, also where it is not installed there but lies in a shared folder."""
    home = str(Path(__file__).resolve().parents[2])
    others = os.environ.get("PYTHONPATH")
    return {"env_vars": {"PYTHONPATH": f"{home}{os.pathsep}{others}" if others else home}}


def run_ray(plan: Plan, kind: str, items: Sequence[Item], workers: int, address: str | None) -> Iterator[Outcome]:
    """Outcomes as they come. workers: actors; 0 takes as many as the cluster has CPUs.

    Ray starts an actor again that dies and repeats what it worked on; what was done before is found written down.
    """
    if not items:
        return
    with connected(address) as ray:
        actors = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # it tells every user how it plans
        rows = [{"json": json.dumps(asdict(item))} for item in items]
        blocks = min(len(rows), max(FEWEST_BLOCKS, BLOCKS * actors))
        done = ray.data.from_items(rows, override_num_blocks=blocks).map(
            Worker,
            fn_constructor_args=(plan, kind),
            compute=ray.data.ActorPoolStrategy(size=min(actors, len(items))),
            num_cpus=LEAST_CPUS,
        )
        for row in done.iter_rows():
            yield Outcome.from_json(row["json"])
