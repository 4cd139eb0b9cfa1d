"""Ctrl-C and SIGTERM (a cluster that wants its machine back) during a run."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_requests: list[Callable[[], None]] = []


def request_stop() -> bool:
    """As a signal does, from any thread. Returns whether something runs that can be stopped like this."""
    for request in list(_requests):
        request()
    return bool(_requests)


@contextmanager
def stop_on_signals(request: Callable[[], None]) -> Iterator[None]:
    """Call request instead of ending the process, within it. Only the main thread gets signals."""
    kinds = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {kind: signal.signal(kind, lambda *_: request()) for kind in kinds}
    _requests.append(request)
    try:
        yield
    finally:
        _requests.remove(request)
        for kind, handler in before.items():
            signal.signal(kind, handler)
