"""The web app's settings and the limits of a session."""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..settings import Settings

VARIABLE = "LATENTSYNC_APP"
"""Environment variable that carries the settings from `latentsync app` to the page that Streamlit runs."""
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
NO_BACKEND = "No backend is enabled: drop --no-local or pass --server URL."

GOOD, FINEST = "Good", "Finest"
QUICK: Mapping[str, str] = {"Draft": "draft", "Quick look": "fast"}
"""Quality: Settings.mode."""


def qualities(defaults: Settings, max_steps: int) -> dict[str, Settings]:
    """Settings by quality, from the quickest on, without duplicates. defaults: the checkpoint's; one that was made for
    a single step gains nothing by more."""
    good = replace(defaults, steps=min(max_steps, defaults.steps))
    if defaults.steps == 1:
        return {GOOD: good}
    found = {name: Settings(mode=mode).resolved(defaults) for name, mode in QUICK.items()}
    found = {name: one for name, one in found.items() if one.steps < good.steps}
    finest = replace(good, steps=min(max_steps, 2 * defaults.steps))
    return found | {GOOD: good} | ({FINEST: finest} if finest != good else {})


@dataclass(frozen=True)
class Limits:
    """megabytes: of an upload. seconds: of a clip, of a voice, and so of a result. pixels: of a picture or a frame.

    rate: frames per second. steps: solver steps. waiting: runs in the queue. keep: seconds for which files are kept
    after the browser is gone.
    """

    megabytes: int = 200
    seconds: float = 600.0
    pixels: int = 4096 * 2304
    rate: int = 60
    steps: int = 60
    waiting: int = 20
    keep: float = 900.0


@dataclass(frozen=True)
class AppSettings:
    """folder: for the files of sessions (None: a temporary one). samples: a folder whose files may be chosen.

    checkpoints: files to offer besides the known names. local: run on this machine. server, headers: run on a ComfyUI,
    with these HTTP headers. watermark: of every result; "none" leaves the choice to the user. private: only this
    computer can open the page.
    """

    limits: Limits = field(default_factory=Limits)
    folder: str | None = None
    samples: str | None = None
    checkpoints: tuple[str, ...] = ()
    device: str = "auto"
    dtype: str = "auto"
    local: bool = True
    server: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    watermark: str = Settings.watermark
    private: bool = False

    def to_text(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_environment(cls) -> "AppSettings":
        """The defaults where Streamlit was not started by `latentsync app`."""
        if not (text := os.environ.get(VARIABLE)):
            return cls()
        values: dict[str, Any] = json.loads(text)
        limits, checkpoints = Limits(**values.pop("limits")), tuple(values.pop("checkpoints"))
        return cls(limits=limits, checkpoints=checkpoints, **values)
