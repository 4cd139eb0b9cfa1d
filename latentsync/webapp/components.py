"""Two components that Streamlit lacks: faces to click, and two videos that play in sync."""

import base64
from functools import cache
from pathlib import Path
from typing import Any

from .faces import Shot


@cache
def _text(name: str) -> str:
    return (Path(__file__).parent / "static" / name).read_text(encoding="utf-8")


def face_names(count: int) -> list[str]:
    """Labels for the faces of a frame, from left to right."""
    names = ["left", *["middle"] * (count - 2), "right"] if count > 1 else [""]
    return [f"Face {i + 1}" + (f" ({name})" if name in ("left", "right") else "") for i, name in enumerate(names)]


def face_picker(st: Any, shot: Shot, chosen: int, disabled: bool) -> int | None:
    """A frame with a button around every face; returns the index of the one that was just clicked."""
    mount = st.components.v2.component(
        "latentsync_faces", html='<div class="stage"></div>', css=_text("faces.css"), js=_text("faces.js")
    )
    picture = "data:image/jpeg;base64," + base64.b64encode(shot.jpeg).decode()
    labels, alt = face_names(len(shot.boxes)), "A frame of what you gave"
    data = {"picture": picture, "alt": alt, "boxes": shot.percentages(), "labels": labels}
    data |= {"chosen": chosen, "disabled": disabled}
    picked = mount(key="faces", data=data, on_picked_change=lambda: None).picked
    return picked if isinstance(picked, int) and picked in range(len(shot.boxes)) else None


def play_together(st: Any) -> None:
    """A button that plays the videos in the containers "before" and "after" in sync."""
    mount = st.components.v2.component(
        "latentsync_together", html="<button></button>", css=_text("together.css"), js=_text("together.js")
    )
    mount(key="together", data={"play": "▶ Play both in sync", "pause": "❚❚ Pause"})
