"""How the web app is set up, and what one visitor may ask of it. Written once, here."""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..settings import Settings

VARIABLE = "LATENTSYNC_APP"
"""Environment variable that hands the setup from `latentsync app` to the page that Streamlit runs."""

GOOD = "Good"
QUALITIES: Mapping[str, float] = {"Quick look": 0.4, GOOD: 1.0, "Finest": 2.0}
"""What a beginner chooses, and how many times the solver steps that suit the checkpoint it means."""


def qualities(usual: int, most: int) -> dict[str, int]:
    """Solver steps by quality, each number once. usual: what suits the checkpoint; most: what is allowed.

    A checkpoint that is made for a single step gains nothing by more.
    """
    if usual == 1:
        return {GOOD: 1}
    steps = {name: min(most, max(1, round(usual * times))) for name, times in QUALITIES.items()}
    return {name: number for name, number in steps.items() if name == GOOD or number != steps[GOOD]}


@dataclass(frozen=True)
class Limits:
    """What one visitor may ask for, and what the app holds for all of them.

    megabytes: of one upload. seconds: of a clip, of a recording, and so of a result. pixels: of a picture or a frame.
    rate: frames a second. steps: solver steps. waiting: runs in the queue. keep: seconds that the files of
    somebody who has left are kept, in case they come back.
    """

    megabytes: int = 200
    seconds: float = 120.0
    pixels: int = 4096 * 2304
    rate: int = 60
    steps: int = 60
    waiting: int = 20
    keep: float = 180.0


@dataclass(frozen=True)
class AppSettings:
    """folder: where sessions keep their files (None: a temporary one of its own). samples: a folder whose files may be
    chosen. checkpoints: more of them, beside those that are found by name. local: whether this machine computes.
    server, headers: a ComfyUI that computes instead, and what goes along with every request to it. mark: every result
    gets this mark; "none" leaves it to the visitors."""

    limits: Limits = field(default_factory=Limits)
    folder: str | None = None
    samples: str | None = None
    checkpoints: tuple[str, ...] = ()
    device: str = "auto"
    dtype: str = "auto"
    local: bool = True
    server: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    mark: str = Settings.watermark

    def to_text(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_text(cls, text: str) -> "AppSettings":
        said: dict[str, Any] = json.loads(text)
        limits, more = Limits(**said.pop("limits")), tuple(said.pop("checkpoints"))
        return cls(limits=limits, checkpoints=more, **said)

    @classmethod
    def handed_over(cls) -> "AppSettings":
        """What `latentsync app` says; the defaults where Streamlit was started by other means."""
        text = os.environ.get(VARIABLE)
        return cls.from_text(text) if text else cls()
