"""A pool of workers on a Ray cluster: actors, each with a share of a GPU or some cores."""

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...errors import UserError, missing_package
from ...files import remove_partial_files
from .processes import GRACE, WorkerFactory
from .worker import Call, Outcome

PLACEMENT_PATIENCE = 20.0
"""Seconds that calls wait for a new actor to be placed while another one is idle; a node may be gone, or in use."""


def connect(address: str | None = None) -> None:
    """Join the cluster at this address (or RAY_ADDRESS), or start Ray on this machine. UserError without Ray."""
    try:
        import ray
    except ImportError as error:
        raise missing_package("--ray", "ray", instead="leave out --ray") from error
    if ray.is_initialized():
        return
    try:
        # how threads wait is said before torch loads, and so to processes that Ray starts, here or elsewhere
        waiting = {name: os.environ[name] for name in ("OMP_WAIT_POLICY",) if name in os.environ}
        environment = {"env_vars": waiting | python_path()}
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, runtime_env=environment)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise UserError(f"Ray at {address or 'this machine'} does not answer ({reason}); see `ray status`.") from error


def worker_resources(gpus: float | None, cpus: int | None, device: str, threads: int) -> tuple[float, int]:
    """GPUs and cores of one worker. None: a whole GPU and one core where the cluster has GPUs, else `threads` cores.
    UserError when no node of the cluster has as much."""
    nodes = _nodes()
    if gpus is None:
        has_gpus = any(node.get("GPU", 0.0) for node in nodes)
        gpus = 1.0 if has_gpus and device != "cpu" else 0.0
    if cpus is None:
        cpus = 1 if gpus else min(threads, int(max(node.get("CPU", 1.0) for node in nodes)))
    if gpus < 0 or (gpus > 1 and gpus != int(gpus)) or cpus < 1:
        wanted = "give a share of one GPU, or whole numbers"
        raise UserError(f"A worker cannot have {gpus:g} GPUs and {cpus} cores; {wanted}.")
    if not any(_fits(node, gpus, cpus) for node in nodes):
        advice = "lower --gpus- or --cpus-per-worker"
        raise UserError(f"No node of the cluster has {gpus:g} GPUs and {cpus} cores; {advice}.")
    return gpus, cpus


def capacity(gpus: float, cpus: int) -> int:
    """How many such workers the cluster holds."""
    return sum(_node_capacity(node, gpus, cpus) for node in _nodes())


def cluster_gpus() -> float:
    return sum(node.get("GPU", 0.0) for node in _nodes())


def has_free_resources(gpus: float, cpus: int) -> bool:
    import ray

    return _fits(ray.available_resources(), gpus, cpus)


def _nodes() -> list[dict[str, float]]:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _fits(node: Mapping[str, float], gpus: float, cpus: int) -> bool:
    return node.get("GPU", 0.0) >= gpus and node.get("CPU", 0.0) >= cpus


def _node_capacity(node: dict[str, float], gpus: float, cpus: int) -> int:
    by_cpu, cards = int(node.get("CPU", 0.0) // cpus), int(node.get("GPU", 0.0))
    if not gpus:
        return by_cpu
    # a share lies on one card: 0.4 fits twice
    return min(by_cpu, cards * int(1 / gpus) if gpus <= 1 else int(cards // gpus))


class RayPool:
    """`size` actors, each with its share of a node. One that dies, or whose node does, is replaced. Shared objects lie
    in Ray's object store. environment: variables that the actors get from this process."""

    def __init__(
        self,
        spec: Any,
        size: int,
        make_worker: WorkerFactory,
        *,
        gpus: float = 0.0,
        cpus: int = 1,
        environment: tuple[str, ...] = (),
    ) -> None:
        self.size, self._spec, self._make_worker = size, spec, make_worker
        variables = {name: os.environ[name] for name in environment if name in os.environ}
        self._options = {
            "num_cpus": cpus,
            "num_gpus": gpus,
            "max_restarts": 0,  # start() makes a new one, and the call is run again
            "scheduling_strategy": "SPREAD",
            "runtime_env": {"env_vars": variables | python_path()},
        }
        self._actors: list[Any] = [None] * size
        self._starting: dict[int, Any] = {}  # number of an actor that has not answered yet -> its first answer
        self._pids: dict[int, int] = {}
        self._calls: list[dict[int, tuple[Any, Call]]] = [{} for _ in range(size)]  # by ticket, oldest first
        self._tickets = 0

    def share(self, value: Any) -> Any:
        import ray

        return ray.put(value)

    def release(self, handle: Any) -> None:
        for actor in filter(None, self._actors):
            with suppress(Exception):
                actor.release.remote()

    def start(self, call: Call, depth: int) -> int | None:
        number = min(range(self.size), key=lambda i: (len(self._calls[i]), not self._is_up(i)))
        if len(self._calls[number]) >= depth:
            return None
        actor = self._actors[number]
        if actor is None:
            actor_class = _actor_class().options(**self._options)
            actor = self._actors[number] = actor_class.remote(self._make_worker, self._spec)
            self._starting[number] = actor.pid.remote()
        self._tickets += 1
        self._calls[number][self._tickets] = actor.call.remote(self._tickets, call.method, *call.args), call
        return self._tickets

    def _is_up(self, number: int) -> bool:
        return self._actors[number] is not None and number not in self._starting

    def wait(self) -> list[tuple[int, Outcome]]:
        import ray

        outcomes: list[tuple[int, Outcome]] = []
        while not outcomes:
            some_idle = any(self._is_up(i) and not self._calls[i] for i in range(self.size))
            refs = [ref for calls in self._calls for ref, _ in calls.values()]
            timeout = PLACEMENT_PATIENCE if some_idle and self._starting else None
            done, _ = ray.wait([*refs, *self._starting.values()], num_returns=1, timeout=timeout)
            for number in [i for i, ref in self._starting.items() if ref in done or not done]:
                ref = self._starting.pop(number)
                if done:
                    with suppress(Exception):
                        self._pids[number] = ray.get(ref)
                else:
                    outcomes += self._withdraw(number)
            for number, calls in enumerate(self._calls):
                if any(ref in done for ref, _ in calls.values()):
                    outcomes += self._receive(number)
        return outcomes

    def _withdraw(self, number: int) -> list[tuple[int, Outcome]]:
        """Take the calls back from an actor that is dead, or was never placed while others are idle."""
        lost = [(ticket, Outcome("lost")) for ticket in self._calls[number]]
        self._kill(number)
        return lost

    def _receive(self, number: int) -> list[tuple[int, Outcome]]:
        """The oldest call's outcome; of a dead actor, those of all its calls."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        ticket, (ref, _) = next(iter(self._calls[number].items()))
        try:
            outcome: Any = ray.get(ref)
        except RayTaskError as error:
            outcome = Outcome("failed", error=" ".join(str(error.cause).split()), traceback=str(error))
        except RayError as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            _, *waiting = self._withdraw(number)
            return [(ticket, Outcome("died", error=reason)), *waiting]
        del self._calls[number][ticket]
        return [(ticket, outcome)]

    def _kill(self, number: int) -> None:
        import ray

        actor, self._actors[number] = self._actors[number], None
        self._starting.pop(number, None)
        if actor is not None:
            with suppress(Exception):  # the actor or the cluster may be gone
                ray.kill(actor)
        pid = self._pids.pop(number, None)
        for _, call in self._calls[number].values():
            if call.output_path is not None:
                remove_partial_files(call.output_path, pid)
        self._calls[number].clear()

    def cancel(self) -> None:
        """Actors clean up after themselves; those that take too long are killed."""
        import ray

        busy = [number for number in range(self.size) if self._calls[number]]
        for number in busy:
            with suppress(Exception):
                self._actors[number].cancel.remote(self._tickets)
        refs = {number: [ref for ref, _ in self._calls[number].values()] for number in busy}
        with suppress(Exception):
            everything = [ref for number in busy for ref in refs[number]]
            ray.wait(everything, num_returns=len(everything), timeout=GRACE)
        for number in busy:
            if len(ray.wait(refs[number], num_returns=len(refs[number]), timeout=0)[0]) < len(refs[number]):
                self._kill(number)
            self._calls[number].clear()

    def close(self) -> None:
        for number in range(self.size):
            self._kill(number)


def python_path() -> dict[str, str]:
    """For nodes that see this folder and have the package not installed."""
    root = Path(__file__).resolve().parents[3]
    if root.name in ("site-packages", "dist-packages"):
        return {}
    others = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": f"{root}{os.pathsep}{others}" if others else str(root)}


def _actor_class() -> Any:
    import ray

    class WorkerActor:
        """Calls come one by one; cancel() has a thread of its own."""

        def __init__(self, make_worker: WorkerFactory, spec: Any) -> None:
            self.worker = make_worker(spec)

        def pid(self) -> int:
            return os.getpid()

        def call(self, ticket: int, method: str, *args: Any) -> Outcome:
            return self.worker.call(ticket, method, *args)

        def release(self) -> None:
            self.worker.release()

        @ray.method(concurrency_group="control")
        def cancel(self, ticket: int) -> None:
            self.worker.cancel(ticket)

    remote: Any = ray.remote(concurrency_groups={"control": 1})  # type: ignore[call-overload]
    return remote(WorkerActor)
