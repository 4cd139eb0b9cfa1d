"""What this ComfyUI knows beyond the oldest that we promise (0.3.60): asked for here, and nowhere else."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from comfy_api.latest import io

_SCHEMA = {field.name for field in dataclasses.fields(io.Schema)}

_FOLDS = "advanced" in inspect.signature(io.Input.__init__).parameters


def advanced(given: Any) -> Any:
    """An input that is folded away until somebody asks for it. Older front ends would hide it altogether: not there."""
    if _FOLDS:
        given.advanced = True
    return given


_GROWS = hasattr(io, "DynamicCombo")


def growing(
    name: str, least: int, most: int, make: Callable[[int], list[Any]], tooltip: str
) -> tuple[list[Any], list[Any]]:
    """A count, and as many sets of inputs: make(1), make(2), … The inputs, and more for the end of the list.

    Where this ComfyUI cannot grow, all sets are there; those beyond the least number come last, so that a workflow that
    was saved with the least number opens anywhere. The names are the same: "name.a" for the input a of a set.
    """
    counts = [str(count) for count in range(least, most + 1)]
    if _GROWS:
        sets = [[one for n in range(1, int(count) + 1) for one in make(n)] for count in counts]
        options = list(map(io.DynamicCombo.Option, counts, sets))
        return [io.DynamicCombo.Input(name, options=options, tooltip=tooltip)], []
    combo = io.Combo.Input(name, options=counts, default=counts[0], tooltip=tooltip)
    first, more = (
        [_below(name, one, optional) for n in numbers for one in make(n)]
        for numbers, optional in ((range(1, least + 1), False), (range(least + 1, most + 1), True))
    )
    return [combo, *first], more


def _below(name: str, given: Any, optional: bool) -> Any:
    given.id, given.optional = f"{name}.{given.id}", optional
    return given


def grown(name: str, value: Any, rest: dict[str, Any]) -> dict[str, Any]:
    """What came into such inputs as {name: count, "a": …}; taken out of the other values of the node, rest."""
    if isinstance(value, dict):
        return value
    return {name: value, **{key.partition(".")[2]: rest.pop(key) for key in [*rest] if key.startswith(f"{name}.")}}


CATEGORY = "LatentSync"
ALIASES = ["lip sync", "lipsync", "latentsync", "talking head", "talking face", "dub", "dubbing", "mouth", "wav2lip"]


def schema(*aliases: str, **facts: Any) -> io.Schema:
    """io.Schema of one of our nodes; what this host's does not know is left out. aliases: more words to find it by."""
    facts |= {"category": CATEGORY, "search_aliases": [*ALIASES, *aliases]}
    return io.Schema(**{name: value for name, value in facts.items() if name in _SCHEMA})
