"""Threads that work ahead of whoever takes what they make."""

import contextvars
from collections.abc import Generator
from contextlib import closing, suppress
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import TypeVar

T = TypeVar("T")


class Stopped(Exception):
    """Nobody waits any more for what a thread computes."""


def ahead(items: Generator[T], limit: int, stop: Event | None = None) -> Generator[T]:
    """The items, made by a thread up to `limit` before they are asked for. What goes wrong there is raised here.

    Whoever leaves earlier waits until the thread has ended. stop: set then, for what `items` does between two of them.
    """
    stop, ready = stop or Event(), Queue[tuple[list[T], BaseException | None]](limit)
    # hosts keep who is running in context variables
    thread = Thread(target=contextvars.copy_context().run, args=(_fill, ready, items, stop), daemon=True)
    thread.start()
    try:
        while True:
            try:
                made, error = ready.get(timeout=0.2)  # so that Ctrl-C is heard on every system
            except Empty:
                continue
            if error is not None:
                raise error
            if not made:
                return
            yield made[0]
    finally:
        stop.set()
        thread.join()


def _fill(ready: "Queue[tuple[list[T], BaseException | None]]", items: Generator[T], stop: Event) -> None:
    def hand_over(made: list[T], error: BaseException | None = None) -> None:
        while not stop.is_set():
            with suppress(Full):
                return ready.put((made, error), timeout=0.2)
        raise Stopped

    with suppress(Stopped):
        try:
            with closing(items):
                for item in items:
                    hand_over([item])
            hand_over([])
        except Stopped:
            raise
        except BaseException as error:
            hand_over([], error)
