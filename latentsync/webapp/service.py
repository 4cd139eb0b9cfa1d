"""All of the web app but its page: who is here, who computes, and what happens when somebody asks for a video."""

import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..settings import Settings
from .backends import Backend, ComfyServer, LocalEngine, Made, Wish, new_name
from .config import AppSettings
from .queue import Job, Queue
from .sessions import Visitor, Visitors
from .uploads import Media, browser_copy

if TYPE_CHECKING:
    from ..evaluation.landmark_sync import Score

OWN_VOICE = "own"
"""The voice is the clip's own sound."""


@dataclass(frozen=True)
class Order:
    """What a visitor chose: who computes, with what, how; and whether the clip's own sound is the voice."""

    backend: str
    checkpoint: str
    settings: Settings
    own_sound: bool = False


class Studio:
    """One for the process. is_here: whether a session still has a browser at its other end."""

    def __init__(self, settings: AppSettings, is_here: Callable[[str], bool]) -> None:
        self.settings, self.limits = settings, settings.limits
        self.backends = _backends(settings)
        self._own_folder = settings.folder is None
        self.folder = Path(settings.folder or tempfile.mkdtemp(prefix="latentsync-app-"))
        self.visitors = Visitors(self.folder, is_here, self.limits.keep)
        self._queues = {key: Queue(one.lanes, self.limits.waiting) for key, one in self.backends.items()}
        self._measuring = Queue(room=10 * self.limits.waiting)
        self._closed = threading.Event()
        threading.Thread(target=self._sweep, name="latentsync sweep", daemon=True).start()

    def _sweep(self) -> None:
        while not self._closed.wait(min(5.0, self.limits.keep / 4 + 0.1)):
            self.visitors.sweep()

    def start(self, visitor: Visitor, order: Order) -> None:
        """Queue a run; UserError when something is missing, too much, or the queue is full."""
        if visitor.busy:
            raise UserError("Your last video is still being made; wait for it or cancel it.")
        wish = self._wish(visitor, order)
        backend, given = self.backends[order.backend], [visitor.face, visitor.voice]
        visitor.tidy()

        def work(job: Job[Made]) -> Made:
            made = _make(backend, wish, [media for media in given if media is not None], job)
            visitor.score = self._measuring.submit(lambda own: _measure(made, own))
            return made

        visitor.run = self._queues[order.backend].submit(work)

    def _wish(self, visitor: Visitor, order: Order) -> Wish:
        face = visitor.face
        if face is None:
            raise UserError("There is no face yet; give a video or a picture first.")
        if order.own_sound and not face.has_sound:
            raise UserError("The video has no sound of its own; give a voice.")
        if visitor.voice is None and not order.own_sound:
            raise UserError("There is no voice yet; give or record one first.")
        # what a browser sends may be anything: names of checkpoints are paths too
        if order.backend not in self.backends or order.checkpoint not in self.backends[order.backend].checkpoints():
            raise UserError("There is no such model here; choose one of the list.")
        if order.settings.steps > self.limits.steps:
            raise UserError(f"At most {self.limits.steps} steps are taken here.")
        if self.settings.mark not in ("none", order.settings.watermark):
            raise UserError("Every result is marked here; load the page again.")
        voice = None if order.own_sound or visitor.voice is None else visitor.voice.path
        out, still = new_name(visitor.folder), face.kind == "picture"
        return Wish(face.path, voice, out, order.checkpoint, order.settings, still)

    def ahead(self, job: Job[Any]) -> int:
        """How many runs come before it, here or on the server."""
        return job.elsewhere or max(queue.ahead(job) for queue in (*self._queues.values(), self._measuring))

    def spoken(self, visitor: Visitor, own_sound: bool) -> Fraction | None:
        """Seconds of the voice; None while there is none."""
        given = visitor.face if own_sound else visitor.voice
        return None if given is None else given.seconds

    def close(self) -> None:
        """Stop what runs, and remove all files."""
        self._closed.set()
        for queue in (*self._queues.values(), self._measuring):
            queue.close()
        self.visitors.close()
        for backend in self.backends.values():
            backend.close()
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)


def _backends(settings: AppSettings) -> dict[str, Backend]:
    """Who can compute, the first one being the usual one."""
    found: dict[str, Backend] = {}
    if settings.server is not None:
        found["comfyui"] = ComfyServer(settings.server, settings.headers)
    if settings.local:
        found["local"] = LocalEngine(settings.checkpoints, settings.device, settings.dtype)
    if not found:
        raise UserError("Nobody would compute: leave out --no-local, or name a ComfyUI by --server.")
    return found


def _make(backend: Backend, wish: Wish, given: Sequence[Media], job: Job[Made]) -> Made:
    """given: the face, then the voice, if there is one."""
    try:
        backend.make(wish, job)
        before = wish.face if wish.still else browser_copy(given[0], wish.out.parent, job.tell)
    except UserError as error:
        raise UserError(_without_paths(str(error), wish, given)) from error
    return Made(wish.out, wish, job.seconds, before, backend.title, given[0].name)


def _without_paths(text: str, wish: Wish, given: Sequence[Media]) -> str:
    """Where files lie is nobody's business: they are called what their owner calls them."""
    for media in given:
        text = text.replace(str(media.path), media.name).replace(media.path.name, media.name)
    return text.replace(str(wish.out), "The result").replace(str(wish.out.parent), "")


def _measure(made: Made, job: Job["Score"]) -> "Score":
    """Do the lips of a result follow its sound?"""
    from ..evaluation.landmark_sync import score_file
    from ..face.detect import FaceFinder
    from ..weights.registry import find

    with FaceFinder(find("face_landmarker.task")) as finder:
        try:
            return score_file(
                made.video,
                None,
                finder,
                face=made.wish.settings.face,
                on_step=lambda done, total: job.tell("measuring", done, total),
            )
        except UserError as error:
            raise UserError(str(error).replace(str(made.video), "The result")) from error
