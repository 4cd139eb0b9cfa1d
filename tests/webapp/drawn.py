"""The page as Streamlit draws it without a browser, and what a test does with it."""

import dataclasses
from fractions import Fraction

from latentsync.face.spans import Span
from latentsync.settings import Settings
from latentsync.webapp.backends import LipSyncRequest, LipSyncResult
from latentsync.webapp.config import Limits
from latentsync.webapp.uploads import take_face, take_voice

from ..tiny import link
from .test_queue import wait_until

LIMITS = Limits(megabytes=7, seconds=9)


def page():
    from latentsync.webapp.streamlit_app import main

    main()


def shown(screen):
    screen.run()
    assert not screen.exception, screen.exception
    return screen


def text(screen):
    kinds = (screen.title, screen.header, screen.markdown, screen.caption, screen.error, screen.info, screen.warning)
    return "\n".join(str(element.value) for kind in kinds for element in kind)


def button(screen, label):
    return next(one for one in screen.button if one.label == label)


def give(service, material, face="couple.png", voice="say.wav"):
    anna = service.sessions.get("anna")
    with (material / face).open("rb") as stream:
        anna.face = take_face(stream, face, anna.folder, LIMITS)
    with (material / voice).open("rb") as stream:
        anna.voice = take_voice(stream, voice, anna.folder, LIMITS)
    return anna


def by_key(widgets, key):
    return next(one for one in widgets if one.key == key or (one.key or "").startswith(f"{key}-"))


@dataclasses.dataclass(frozen=True)
class Told:
    """What the page takes from a Report."""

    fps: Fraction = Fraction(25)
    notes: tuple[str, ...] = ()
    spans: tuple[Span, ...] = ()


def finished(service, anna, material, ending=".mp4", **rest):
    """A run of anna's that made her own clip."""
    video = anna.folder / f"made{ending}"
    if not video.exists():
        link(video, material / "clip.mp4")
    wish = LipSyncRequest(anna.face.path, anna.voice.path, video, "nano", Settings())
    made = LipSyncResult(video, wish, 1, anna.face.path, "this computer", "my clip.mp4", **rest)
    anna.run = service._queues["local"].submit(lambda job: made)
    assert wait_until(lambda: anna.run.over)
