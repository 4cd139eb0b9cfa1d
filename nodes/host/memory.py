"""What is remembered for as long as a value of ComfyUI's lives.

ComfyUI keeps the outputs of a workflow's own nodes. What the nodes of an expansion gave is dropped by its default
cache (since 0.17), since it does not know them before they run. So faces and models hang on the pictures in which
they were found: they stay as long as ComfyUI keeps these, and go with them.
"""

import weakref
from collections.abc import Callable
from threading import Lock
from typing import Any, TypeVar

Value = TypeVar("Value")

_lock = Lock()
_known: dict[int, tuple[weakref.ref[Any], dict[Any, Any]]] = {}


def belongings(owner: Any) -> dict[Any, Any]:
    """A dictionary that lives as long as owner, a tensor or a VIDEO; the same one for the same object."""
    with _lock:
        held = _known.get(id(owner))
        if held is None or held[0]() is not owner:
            held = (weakref.ref(owner, _forgotten(id(owner))), {})
            _known[id(owner)] = held
        return held[1]


def _forgotten(key: int) -> Callable[[Any], None]:
    def forget(gone: Any) -> None:
        held = _known.get(key)
        if held is not None and held[0] is gone:  # another object may have the address by now
            del _known[key]

    return forget


def recalled(owner: Any, key: Any, make: Callable[[], Value]) -> Value:
    """What make() gave for this owner and key before, else what it gives now. One value for each kind, key[0]."""
    own = belongings(owner)
    known = own.get(key[0])
    if known is None or known[0] != key:
        known = (key, make())
        own[key[0]] = known
    return known[1]
