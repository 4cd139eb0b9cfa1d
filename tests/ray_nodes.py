"""A Ray cluster of two nodes on this machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def two_nodes(**node: Any) -> Iterator[Any]:
    """node: of each, for Cluster.add_node; this process is the driver."""
    import ray
    from ray.cluster_utils import Cluster

    from latentsync.batch.parallel.ray_pool import connect

    mode = os.environ.get("RAY_AUTH_MODE")
    os.environ["RAY_AUTH_MODE"] = "disabled"
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    cluster.add_node(**node)
    connect(cluster.address)
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    os.environ.pop("RAY_AUTH_MODE")
    if mode is not None:
        os.environ["RAY_AUTH_MODE"] = mode
