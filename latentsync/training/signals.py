"""Ctrl-C and SIGTERM (a cluster that wants its machine back) during a run."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stop_on_signals(request: Callable[[], None]) -> Iterator[None]:
    """Call request instead of ending the process, within it. Only the main thread gets signals."""
    kinds = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {kind: signal.signal(kind, lambda *_: request()) for kind in kinds}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
