"""Training on Ray Train: Ray starts the processes, and starts them again when one is lost. The trainer is the same.

Checkpoints are the trainer's own, in the run's folder, which all nodes must see; a new start resumes from the newest.
"""

import logging
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..batch.parallel.ray_pool import capacity, cluster_gpus, connect
from ..errors import REQUIREMENTS, UnfinishedError, UserError
from .distributed import TIMEOUT
from .signals import request_stop, stop_on_signals
from .task import Report

RESTARTS = 5
"""Of all processes together, after one was lost, before the run ends."""
OLDEST = 2, 51
"""Of Ray, in which Ray Train has the interface that is used here."""
POLL = 0.5
"""Seconds between two looks for lines to print, or for a wish to stop."""
GRACE = 5.0
"""Seconds after Ctrl-C in which a process says that it will save and stop, if it trains."""


@dataclass(frozen=True)
class RayWorkers:
    """address: of the cluster; None: RAY_ADDRESS, else this machine. count: processes, 0 for one on each GPU, else one.
    cpus: of each."""

    address: str | None = None
    count: int = 0
    cpus: int = 1


def run_on_ray(
    run: Callable[..., str], inputs: Sequence[Any], options: Mapping[str, Any], out: Path, workers: RayWorkers,
    *, cpu: bool = False, report: Report = lambda line: None,
) -> str:  # fmt: skip
    """Call run(*inputs, **options, cpu=…, report=…) in all processes; returns the reason for its end.

    run: run_unet or the like, which finds its process group in the environment. out: the run's folder.
    """
    connect(workers.address)
    _check_version()
    gpus = 0 if cpu else cluster_gpus()
    count = workers.count or max(1, int(gpus))
    room = capacity(1.0 if gpus else 0.0, workers.cpus)
    if room < count:
        each = f"{'a GPU and ' if gpus else ''}{workers.cpus} core{'s' if workers.cpus > 1 else ''}"
        raise UserError(f"The cluster has room for {room} of {count} processes with {each} each; ask for fewer.")
    mailbox = _mailbox()
    storage = out.absolute().parent / f".{out.absolute().name}-ray-{uuid.uuid4().hex[:8]}"
    config = {"run": run, "inputs": inputs, "options": dict(options) | {"cpu": not gpus}, "mailbox": mailbox}
    try:
        with _printing(mailbox, report):
            return _until_stopped(lambda: _fit(config, count, workers.cpus, bool(gpus), storage), mailbox, report)
    finally:
        shutil.rmtree(storage, ignore_errors=True)


def _check_version() -> None:
    import ray

    version = tuple(int(part) for part in ray.__version__.split(".")[:2])
    if version < OLDEST:
        raise UserError(
            f"Training on Ray needs Ray {OLDEST[0]}.{OLDEST[1]} or newer, and this is {ray.__version__}; type:"
            f' pip install "{REQUIREMENTS["ray"]}".'
        )


def _until_stopped(fit: Callable[[], str], mailbox: Any, report: Report) -> str:
    """Call fit in a thread of its own: in the main one Ray Train would take Ctrl-C, and end without a checkpoint.

    Ctrl-C or SIGTERM: the step is finished and saved. Raises KeyboardInterrupt at the second one, or where no training
    has begun that could be saved.
    """
    import ray

    asked: list[float] = []
    running: Future[str] = Future()
    # a daemon: it may wait for a Ray that was ended
    threading.Thread(target=_fulfil, args=(running, fit), daemon=True).start()
    with stop_on_signals(lambda: asked.append(time.monotonic())):
        told = False
        while not wait([running], POLL).done:
            if asked and not told:
                told = True
                report("Stopping after this step; the same command resumes. Ctrl-C again stops at once.")
                mailbox.stop.remote()
            if len(asked) > 1 or (asked and time.monotonic() - asked[0] > GRACE and not _is_training(mailbox)):
                ray.shutdown()
                raise KeyboardInterrupt
    return running.result()


def _is_training(mailbox: Any) -> bool:
    """Whether a process has taken the wish to stop; a cluster that does not answer has none."""
    import ray
    from ray.exceptions import GetTimeoutError

    try:
        return ray.get(mailbox.is_taken.remote(), timeout=GRACE)
    except GetTimeoutError:
        return False


def _fulfil(future: "Future[str]", fit: Callable[[], str]) -> None:
    try:
        future.set_result(fit())
    except BaseException as error:
        future.set_exception(error)


def _fit(config: dict[str, Any], count: int, cpus: int, use_gpu: bool, storage: Path) -> str:
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.ERROR)  # it reports every state
    resources = {"CPU": cpus, **({"GPU": 1} if use_gpu else {})}
    trainer = TorchTrainer(
        _work,
        train_loop_config=config,
        torch_config=TorchConfig(timeout_s=int(TIMEOUT.total_seconds())),
        scaling_config=ScalingConfig(num_workers=count, use_gpu=use_gpu, resources_per_worker=resources),
        run_config=RunConfig(
            name="run",
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=RESTARTS),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:  # of several kinds, by version
        raise UserError(f"Ray Train gave up after {RESTARTS} restarts ({_first_line(error)}).") from error
    kind, text = ray.get(config["mailbox"].outcome.remote())
    if kind != "reason":
        raise {"UnfinishedError": UnfinishedError}.get(kind, UserError)(text)
    return text


def _work(config: dict[str, Any]) -> None:
    """In each process. An error of the user's ends all processes; after their new start nothing is tried again."""
    import ray

    mailbox = config["mailbox"]
    if ray.get(mailbox.outcome.remote()) is not None:
        return
    threading.Thread(target=_stop_when_asked, args=(mailbox,), daemon=True).start()
    try:
        reason = config["run"](*config["inputs"], **config["options"], report=lambda line: mailbox.put.remote(line))
    except (UserError, UnfinishedError) as error:
        ray.get(mailbox.end.remote(type(error).__name__, str(error)))
        raise
    ray.get(mailbox.end.remote("reason", reason))


def _stop_when_asked(mailbox: Any) -> None:
    """Ray's processes get no Ctrl-C, and train in a thread that would get no signal."""
    import ray

    while True:
        time.sleep(POLL)
        if ray.get(mailbox.is_stopping.remote()) and request_stop():
            mailbox.take_stop.remote()
            return


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip().rstrip(".")


@contextmanager
def _printing(mailbox: Any, report: Report) -> Iterator[None]:
    """Report the processes' lines as they come."""
    import ray
    from ray.exceptions import RayError

    def take() -> None:
        with suppress(RayError, ConnectionError):  # where Ray was ended
            for line in ray.get(mailbox.take.remote()) if ray.is_initialized() else ():
                report(line)

    def poll() -> None:
        while not done.wait(POLL):
            take()

    done = threading.Event()
    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(2 * POLL)  # it may wait for a Ray that was ended
        take()


def _mailbox() -> Any:
    """An actor that all processes write to, and this one reads."""
    import ray

    class Mailbox:
        def __init__(self) -> None:
            self.lines: list[str] = []
            self.ended: tuple[str, str] | None = None
            self.stopping = self.taken = False

        def put(self, line: str) -> None:
            self.lines.append(line)

        def take(self) -> list[str]:
            lines, self.lines = self.lines, []
            return lines

        def end(self, kind: str, text: str) -> None:
            """The first end counts: an error in one process makes others fail too."""
            self.ended = self.ended or (kind, text)

        def stop(self) -> None:
            self.stopping = True

        def is_stopping(self) -> bool:
            return self.stopping

        def take_stop(self) -> None:
            self.taken = True

        def is_taken(self) -> bool:
            return self.taken

        def outcome(self) -> tuple[str, str] | None:
            return self.ended

    actor: Any = ray.remote(num_cpus=0)(Mailbox)
    return actor.remote()
