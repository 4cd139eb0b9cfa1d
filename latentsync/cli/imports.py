"""What the doctor tries in a process of its own: whether libraries can be imported. One may even crash it."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib import import_module
from multiprocessing import get_context


def try_all(modules: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str]]:
    """(name, why its modules cannot be imported, "" if they can), in order. Modules are imported one after the other in
    one process, as a run does; after a crash in a new one."""
    names = list(modules)
    while names:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_quiet) as pool:
            pending = [pool.submit(_problem, modules[name]) for name in names]
            for future in pending:
                try:
                    yield names[0], future.result()
                except BrokenProcessPool:
                    yield names[0], f"importing {' or '.join(modules[names[0]])} crashes Python"
                    names.pop(0)
                    break
                names.pop(0)


def _quiet() -> None:
    """Libraries print when they are imported; the doctor's page is no place for it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(nowhere, stream.fileno())


def _problem(modules: Sequence[str]) -> str:
    from ..models.libraries import hide_broken_torchvision

    hidden = hide_broken_torchvision()
    for module in modules:
        try:
            import_module(module)
        except Exception as error:  # a broken package may fail in any way
            if hidden and module == "torchvision":
                return f"torchvision: {hidden}"
            return f"{module}: {' '.join(str(error).split())[:200] or type(error).__name__}"
    return ""
