"""What this ComfyUI knows beyond the oldest that we promise (0.3.60): asked for here, and nowhere else."""

import dataclasses
import inspect
from typing import Any

from comfy_api.latest import io

_SCHEMA = {field.name for field in dataclasses.fields(io.Schema)}

_FOLDS = "advanced" in inspect.signature(io.Input.__init__).parameters


def advanced(given: Any) -> Any:
    """An input that is folded away until somebody asks for it. Older front ends would hide it altogether: not there."""
    if _FOLDS:
        given.advanced = True
    return given


CATEGORY = "LatentSync"
ALIASES = ["lip sync", "lipsync", "latentsync", "talking head", "talking face", "dub", "dubbing", "mouth", "wav2lip"]


def schema(*aliases: str, **facts: Any) -> io.Schema:
    """io.Schema of one of our nodes; what this host's does not know is left out. aliases: more words to find it by."""
    facts |= {"category": CATEGORY, "search_aliases": [*ALIASES, *aliases]}
    return io.Schema(**{name: value for name, value in facts.items() if name in _SCHEMA})
