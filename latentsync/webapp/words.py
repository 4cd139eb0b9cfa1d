"""Numbers and units as people write them, and text that Markdown leaves alone."""

import logging
import re
from fractions import Fraction

COMMAND = re.compile(r"\bpip install |`(python -m )?latentsync ")
MISSING = "Something is missing on the computer that runs this app; the details are in the app's log."

_log = logging.getLogger(__name__)


def count(number: int, noun: str) -> str:
    """1 step, 2 steps."""
    return f"{number} {noun}" + "s" * (number != 1)


def duration(seconds: float) -> str:
    """4 s, 1 min 5 s, 2 h 3 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def span(seconds: float) -> str:
    """The same in whole words, for sentences: 1 second, 2 minutes, 1 minute 30 seconds."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "hour"), (minutes, "minute"), (rest, "second")]
    return " ".join(count(number, noun) for number, noun in parts if number) or "0 seconds"


def length(seconds: Fraction | float) -> str:
    """Of a clip: 2.4 s, 1 min 5 s."""
    return f"{float(seconds):.1f} s" if seconds < 60 else duration(float(seconds))


def moment(seconds: Fraction) -> str:
    """1:05.20."""
    minutes, hundredths = divmod(round(seconds * 100), 6000)
    return f"{minutes}:{hundredths / 100:05.2f}"


def plain(text: str) -> str:
    """Escape Markdown."""
    return "".join(f"\\{sign}" if sign in r"\`*_{}[]<>()#+-.!|~$:&" else sign for sign in text)


def told(message: str, owner: bool) -> str:
    """A message for the page, as Markdown. Visitors can type no command on this computer, so they are shown none."""
    if owner or not COMMAND.search(message):
        return plain(message)
    _log.warning("%s", message)
    return MISSING
