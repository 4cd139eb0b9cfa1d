"""What Streamlit lacks: faces and points to click, two videos that play in sync, words for screen readers."""

import base64
import html
import inspect
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from .faces import Shot


@cache
def _text(name: str) -> str:
    return (Path(__file__).parent / "static" / name).read_text(encoding="utf-8")


def face_names(count: int) -> list[str]:
    """Labels for the faces of a frame, from left to right; numbers as in ComfyUI and on the command line, from 0."""
    names = ["left", *["middle"] * (count - 2), "right"] if count > 1 else [""]
    return [f"Face {i}" + (f" ({name})" if name in ("left", "right") else "") for i, name in enumerate(names)]


def face_picker(st: Any, shot: Shot, chosen: int, disabled: bool) -> int | None:
    """A frame with a button around every face; returns the index of the one that was just clicked."""
    mount = st.components.v2.component(
        "latentsync_faces", html='<div class="stage"></div>', css=_text("faces.css"), js=_text("faces.js")
    )
    data = _picture(shot) | {"boxes": shot.percentages(), "labels": face_names(len(shot.boxes))}
    data |= {"chosen": chosen, "disabled": disabled}
    picked = mount(key="faces", data=data, on_picked_change=lambda: None).picked
    return picked if isinstance(picked, int) and picked in range(len(shot.boxes)) else None


def point_picker(
    st: Any, shot: Shot, points: Sequence[tuple[float, float]], disabled: bool
) -> list[tuple[float, float]] | None:
    """A frame to click three points in. All points so far, in pixels of the file, after one was just clicked."""
    mount = st.components.v2.component(
        "latentsync_points", html='<div class="stage"></div>', css=_text("faces.css"), js=_text("points.js")
    )
    width, height = shot.width / 100, shot.height / 100
    data = _picture(shot) | {"points": [(x / width, y / height) for x, y in points], "disabled": disabled}
    pointed = mount(key="points", data=data, on_pointed_change=lambda: None).pointed
    try:
        return [(float(left) * width, float(top) * height) for left, top in pointed][:3]
    except (TypeError, ValueError):  # nothing was clicked, or the browser sent something else
        return None


def _picture(shot: Shot) -> dict[str, Any]:
    picture = "data:image/jpeg;base64," + base64.b64encode(shot.jpeg).decode()
    return {"picture": picture, "alt": "A frame of what you gave"}


def page_style(st: Any) -> None:
    st.html(f"<style>{_text('page.css')}</style>")


def show_picture(st: Any, data: str, alt: str, kind: str = "image/jpeg") -> None:
    """data: the file in base64. alt: what it shows, in words."""
    style = "display: block; width: 100%; height: auto; object-fit: contain; border-radius: 0.5rem"
    st.html(f'<img src="data:{kind};base64,{data}" alt="{html.escape(alt)}" style="{style}">')


HIDDEN = "position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%)"


def named(player: Callable[..., Any], alt: str) -> dict[str, str]:
    """What to pass to a player of Streamlit's, so that screen readers say what it plays. Older versions lack it."""
    return {"alt": alt} if "alt" in inspect.signature(player).parameters else {}


def announce(st: Any, text: str) -> None:
    """What screen readers say when it changes; nothing is seen."""
    mount = st.components.v2.component(
        "latentsync_status", html=f'<div role="status" style="{HIDDEN}"></div>', js=_text("status.js")
    )
    mount(key="status", data={"text": text})


def show_result(st: Any, result: str) -> None:
    """Bring the result into view when the tab shows it for the first time."""
    mount = st.components.v2.component("latentsync_result", html="<span></span>", js=_text("result.js"))
    mount(key="show-result", data={"result": result})


def play_together(st: Any) -> None:
    """A button that plays the videos in the containers "before" and "after" in sync."""
    mount = st.components.v2.component(
        "latentsync_together", html="<button></button>", css=_text("together.css"), js=_text("together.js")
    )
    mount(key="together", data={"play": "▶ Play both in sync", "pause": "❚❚ Pause"})
