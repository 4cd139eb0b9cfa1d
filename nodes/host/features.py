"""What this ComfyUI knows beyond the oldest that we promise (0.3.60): asked for here, and nowhere else."""

import dataclasses
import inspect
from typing import Any

from comfy_api.latest import io

_SCHEMA = {field.name for field in dataclasses.fields(io.Schema)}

ADVANCED: dict[str, Any] = {"advanced": True} if "advanced" in inspect.signature(io.Input.__init__).parameters else {}
"""For an input's extra_dict: folded away until it is asked for. Older front ends would hide it altogether."""

CATEGORY = "LatentSync"
ALIASES = ["lip sync", "lipsync", "latentsync", "talking head", "talking face", "dub", "dubbing", "mouth", "wav2lip"]


def schema(*aliases: str, **facts: Any) -> io.Schema:
    """io.Schema of one of our nodes; what this host's does not know is left out. aliases: more words to find it by."""
    facts |= {"category": CATEGORY, "search_aliases": [*ALIASES, *aliases]}
    return io.Schema(**{name: value for name, value in facts.items() if name in _SCHEMA})
