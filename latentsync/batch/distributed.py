"""A pool of workers on a Ray cluster: an actor holds the models, on its share of a GPU or on some cores."""

import logging
import os
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .parallel.processes import GRACE, Make
from .worker import Call, Outcome, Worker

if TYPE_CHECKING:
    from .segments import Plan

Actor = Any
MODELS = "LATENTSYNC_MODELS"
"""Where the models are; what this process was told holds for the actors too."""
PATIENCE = 20.0
"""Seconds that calls wait for a new actor to be placed while another one idles; a node may be gone, or in use."""


def connect(address: str | None = None) -> None:
    """Join the cluster at this address (or RAY_ADDRESS), else start Ray on this machine. UserError without Ray."""
    try:
        import ray
    except ImportError as error:
        raise UserError('--ray needs Ray, which is not installed; pip install "latentsync[ray]".') from error
    if ray.is_initialized():
        return
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        said = str(error).split("\n")[0].rstrip(".")
        raise UserError(f"Ray at {address or 'this machine'} does not answer ({said}); see `ray status`.") from error


def share_of_node(gpus: float | None, cpus: int | None, device: str, threads: int) -> tuple[float, int]:
    """GPUs and cores of one worker. None: a whole GPU and one core where the cluster has GPUs, else `threads` cores.

    UserError when no node of the cluster has as much.
    """
    nodes = _nodes()
    most = max((node.get("GPU", 0.0) for node in nodes), default=0.0)
    if gpus is None:
        gpus = 1.0 if most and device != "cpu" else 0.0
    if cpus is None:
        cpus = 1 if gpus else min(threads, int(max(node.get("CPU", 1.0) for node in nodes)))
    if gpus < 0 or (gpus > 1 and gpus != int(gpus)) or cpus < 1:
        raise UserError(f"A worker cannot have {gpus:g} GPUs and {cpus} cores; give a share of 1, or whole ones.")
    if not any(_fits(node, gpus, cpus) for node in nodes):
        raise UserError(
            f"No node of the cluster has {gpus:g} GPUs and {cpus} cores; lower --gpus- or --cpus-per-worker."
        )
    return gpus, cpus


def room(gpus: float, cpus: int) -> int:
    """How many such workers the cluster holds now."""
    return sum(_room(node, gpus, cpus) for node in _nodes())


def idle(gpus: float, cpus: int) -> bool:
    """Whether the cluster has so much that nobody else is using; otherwise workers wait."""
    import ray

    return _fits(ray.available_resources(), gpus, cpus)


def _nodes() -> list[dict[str, float]]:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _fits(node: Mapping[str, float], gpus: float, cpus: int) -> bool:
    return node.get("GPU", 0.0) >= gpus and node.get("CPU", 0.0) >= cpus


def _room(node: dict[str, float], gpus: float, cpus: int) -> int:
    by_cpu = int(node.get("CPU", 0.0) // cpus)
    if not gpus:
        return by_cpu
    cards = int(node.get("GPU", 0.0))  # a share lies on one card: 0.4 fits twice
    return min(by_cpu, cards * int(1 / gpus) if gpus <= 1 else int(cards // gpus))


class RayPool:
    """size actors, each with its share of a node; one that dies, or whose node does, is replaced.

    An actor runs one call at a time; `stop` reaches it meanwhile. Plans lie in Ray's object store, once a node.
    environment: variables that the actors get from this process.
    """

    def __init__(
        self,
        spec: Any,
        size: int,
        *,
        gpus: float = 0.0,
        cpus: int = 1,
        make: Make = Worker,
        environment: tuple[str, ...] = (),
    ) -> None:
        self.size, self._spec, self._make = size, spec, make
        handed = {name: os.environ[name] for name in (MODELS, *environment) if name in os.environ} | _search_path()
        self._options = {
            "num_cpus": cpus,
            "num_gpus": gpus,
            "max_restarts": 0,  # a new one is made by start(), and the call handed out again
            "scheduling_strategy": "SPREAD",
            "runtime_env": {"env_vars": handed},
        }
        self._actors: list[Actor | None] = [None] * size
        self._coming: dict[int, Any] = {}  # actors that have not answered yet: number -> what they will answer
        self._calls: list[deque[tuple[int, Any]]] = [deque() for _ in range(size)]
        self._tickets = 0

    def share(self, thing: "Plan") -> Any:
        import ray

        return ray.put(thing)

    def unshare(self, handle: Any) -> None:
        for actor in filter(None, self._actors):
            with suppress(Exception):
                actor.forget.remote()

    def start(self, call: Call, depth: int) -> int | None:
        number = min(range(self.size), key=lambda i: (len(self._calls[i]), not self._is_up(i)))
        if len(self._calls[number]) >= depth:
            return None
        actor = self._actors[number]
        if actor is None:
            actor = self._actors[number] = _actor_class().options(**self._options).remote(self._make, self._spec)
            self._coming[number] = actor.forget.remote()
        self._tickets += 1
        self._calls[number].append((self._tickets, actor.call.remote(self._tickets, call.method, *call.args)))
        return self._tickets

    def _is_up(self, number: int) -> bool:
        return self._actors[number] is not None and number not in self._coming

    def wait(self) -> list[tuple[int, Outcome]]:
        import ray

        told: list[tuple[int, Outcome]] = []
        while not told:
            idle = any(self._is_up(i) and not self._calls[i] for i in range(self.size))
            refs = [ref for calls in self._calls for _, ref in calls]
            timeout = PATIENCE if idle and self._coming else None
            done, _ = ray.wait([*refs, *self._coming.values()], num_returns=1, timeout=timeout)
            for number in [i for i, ref in self._coming.items() if ref in done or not done]:
                del self._coming[number]
                told += [] if done else self._withdraw(number)
            for number in range(self.size):
                if any(ref in done for _, ref in self._calls[number]):
                    told += self._hear(number)
        return told

    def _withdraw(self, number: int) -> list[tuple[int, Outcome]]:
        """The calls of an actor that is dead, or was never placed while others are free."""
        self._kill(number)
        lost = [(ticket, Outcome("lost")) for ticket, _ in self._calls[number]]
        self._calls[number].clear()
        return lost

    def _hear(self, number: int) -> list[tuple[int, Outcome]]:
        """The oldest call's outcome; of a dead actor, all of its calls'."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        ticket, ref = self._calls[number].popleft()
        try:
            return [(ticket, ray.get(ref))]
        except RayTaskError as error:
            return [(ticket, Outcome("failed", error=" ".join(str(error.cause).split())))]
        except RayError as error:
            said = type(error).__name__ + ": " + " ".join(str(error).split())[:200]
            return [(ticket, Outcome("died", error=said)), *self._withdraw(number)]

    def _kill(self, number: int) -> None:
        import ray

        actor, self._actors[number] = self._actors[number], None
        self._coming.pop(number, None)
        if actor is not None:
            with suppress(Exception):  # it is dead already, or the cluster is
                ray.kill(actor)

    def drop(self) -> None:
        """Asked first, so that half a video is removed where it lies; then killed."""
        import ray

        busy = [number for number in range(self.size) if self._calls[number]]
        for number in busy:
            with suppress(Exception):
                self._actors[number].stop.remote(self._tickets)  # type: ignore[union-attr]
        refs = [ref for number in busy for _, ref in self._calls[number]]
        if refs:
            with suppress(Exception):
                ray.wait(refs, num_returns=len(refs), timeout=GRACE)
        for number in busy:
            still = [ref for _, ref in self._calls[number]]
            self._calls[number].clear()
            if len(ray.wait(still, num_returns=len(still), timeout=0)[0]) < len(still):
                self._kill(number)

    def close(self) -> None:
        for number in range(self.size):
            self._kill(number)


def _search_path() -> dict[str, str]:
    """Where this package lies, for nodes that see the same folder and have it not installed."""
    home = Path(__file__).resolve().parents[2]
    if home.name in ("site-packages", "dist-packages"):
        return {}
    others = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": f"{home}{os.pathsep}{others}" if others else str(home)}


def _actor_class() -> Any:
    import ray

    class Holder:
        """A worker as an actor. Calls come one by one; stop has a thread of its own."""

        def __init__(self, make: Make, spec: Any) -> None:
            self.worker = make(spec)

        def call(self, ticket: int, method: str, *args: Any) -> Outcome:
            return self.worker.call(ticket, method, *args)

        def forget(self) -> None:
            self.worker.forget()

        @ray.method(concurrency_group="control")
        def stop(self, ticket: int) -> None:
            self.worker.stop(ticket)

    make: Any = ray.remote(concurrency_groups={"control": 1})  # type: ignore[call-overload]
    return make(Holder)
