"""Pools of workers on this machine: in this process, or in processes of their own."""

import pickle
import platform
import shutil
import signal
import sys
import tempfile
import uuid
from _thread import interrupt_main
from collections.abc import Callable
from contextlib import closing, suppress
from multiprocessing import get_context
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from ...files import remove_partial_files
from .worker import BaseWorker, Call, Outcome, SharedFile

GRACE = 10.0  # seconds that a worker gets to clean up before it is killed

WorkerFactory = Callable[[Any], BaseWorker]
"""Makes a worker of a pool's spec, in the worker's own process."""


class InProcessPool:
    """One worker in this process. A call runs while it is waited for."""

    size = 1

    def __init__(self, spec: Any, make_worker: WorkerFactory) -> None:
        self.worker = make_worker(spec)
        self._started: tuple[int, Call] | None = None
        self._tickets = 0

    def share(self, value: Any) -> Any:
        return value

    def release(self, handle: Any) -> None:
        self.worker.release()

    def start(self, call: Call, depth: int) -> int | None:
        if self._started:
            return None
        self._tickets += 1
        self._started = self._tickets, call
        return self._tickets

    def wait(self) -> list[tuple[int, Outcome]]:
        assert self._started
        (ticket, call), self._started = self._started, None
        return [(ticket, self.worker.call(ticket, call.method, *call.args))]

    def cancel(self) -> None:
        self._started = None

    def close(self) -> None:
        self.worker.close()


class ProcessPool:
    """`size` worker processes; one that dies is replaced."""

    def __init__(self, spec: Any, size: int, make_worker: WorkerFactory) -> None:
        self.size, self._spec, self._make_worker = size, spec, make_worker
        self._children: list[_Child | None] = [None] * size
        self._folder = Path(tempfile.mkdtemp(prefix="latentsync-"))
        self._tickets = 0

    def share(self, value: Any) -> SharedFile:
        path = self._folder / uuid.uuid4().hex
        path.write_bytes(pickle.dumps(value, protocol=5))
        return SharedFile(path)

    def release(self, handle: SharedFile) -> None:
        handle.path.unlink(missing_ok=True)

    def start(self, call: Call, depth: int) -> int | None:
        number = min(range(self.size), key=lambda i: len(child.calls) if (child := self._children[i]) else 0)
        child = self._children[number]
        if child is None:
            child = self._children[number] = _Child(self._spec, self._make_worker)
        if len(child.calls) >= depth:
            return None
        self._tickets += 1
        child.send(self._tickets, call)
        return self._tickets

    def wait(self) -> list[tuple[int, Outcome]]:
        while True:
            answering = wait_for([child.pipe for child in self._children if child and child.calls])
            children = [child for child in self._children if child and child.pipe in answering]
            if outcomes := [outcome for child in children for outcome in self._receive(child)]:
                return outcomes

    def _receive(self, child: "_Child") -> list[tuple[int, Outcome]]:
        try:
            ticket, outcome = child.pipe.recv()
            del child.calls[ticket]
            return [(ticket, outcome)]
        except (EOFError, OSError):
            self._children[self._children.index(child)] = None
            child.end()
            place = f"{platform.node()}:{child.process.pid}"
            died = Outcome("died", error=f"exit code {child.process.exitcode}", place=place)
            first, *waiting = child.calls
            return [(first, died), *((ticket, Outcome("lost")) for ticket in waiting)]

    def cancel(self) -> None:
        self._end([child for child in self._children if child and child.calls])

    def close(self) -> None:
        self._end([child for child in self._children if child])
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end(self, children: "list[_Child]") -> None:
        self._children = [None if child in children else child for child in self._children]
        for child in children:
            child.process.terminate()
        for child in children:
            child.end()


class _Child:
    """One process, and its calls by ticket, oldest first."""

    def __init__(self, spec: Any, make_worker: WorkerFactory) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, spec, make_worker), daemon=True)
        self.process.start()
        theirs.close()
        self.calls: dict[int, Call] = {}

    def send(self, ticket: int, call: Call) -> None:
        self.calls[ticket] = call
        with suppress(OSError):  # it is dead, which wait() finds out
            self.pipe.send((ticket, call.method, call.args))

    def end(self) -> None:
        self.process.join(GRACE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()
        for call in self.calls.values():
            if call.output_path is not None:
                remove_partial_files(call.output_path, self.process.pid)


def _serve(pipe: Any, spec: Any, make_worker: WorkerFactory) -> None:
    """Main of a worker process. Ctrl-C reaches the whole process group; only the parent acts on it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    received: SimpleQueue[Any] = SimpleQueue()
    Thread(target=_receive, args=(pipe, received), daemon=True).start()
    with closing(make_worker(spec)) as worker:
        while (message := received.get()) is not None:
            ticket, method, args = message
            with suppress(OSError):  # the parent is gone; _receive ends this process
                pipe.send((ticket, worker.call(ticket, method, *args)))


def _receive(pipe: Any, received: "SimpleQueue[Any]") -> None:
    """Take calls at once, so that the parent never blocks in send(). A parent that is gone ends the process."""
    try:
        with suppress(EOFError, OSError):
            while True:
                received.put(pipe.recv())
    finally:
        received.put(None)
        interrupt_main(signal.SIGTERM)
