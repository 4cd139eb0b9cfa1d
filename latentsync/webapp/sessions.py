"""Sessions: one visitor's work, found again by a key, each with a folder that is removed when it ends.

The key is in the address of the page, so that a reload, or a phone that dropped the tab, finds the work again.
"""

import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .queue import Job

if TYPE_CHECKING:
    from ..evaluation.landmark_sync import Score
    from ..training.personal.run import PersonalModel
    from .backends import LipSyncResult
    from .faces import Shot
    from .uploads import Media


@dataclass(eq=False)
class OtherVoice:
    """What one more person says, from a second of the result on. shot, picked: a frame, and who of its faces it is."""

    media: "Media"
    shot: "Shot"
    picked: int
    start: Fraction = Fraction(0)

    @property
    def end(self) -> Fraction:
        return self.start + self.media.seconds


@dataclass(eq=False)
class Session:
    """folder: its files. face, voice: what was uploaded. run, score: the last jobs. errors: why the last upload
    ("face", "voice", "other") or "run" was refused. shot, picked: the frame that is shown, and which of its faces is to
    speak. others: more people who speak. points: three places in that frame instead, "" for none. lora: a file that
    changes the model. person: the model of the person in the clip that is made, or was. form: the settings on the page,
    by the keys of their widgets. told: the run whose end was announced. tabs: of browsers that show it."""

    folder: Path
    face: "Media | None" = None
    voice: "Media | None" = None
    run: "Job[LipSyncResult] | None" = None
    score: "Job[Score] | None" = None
    errors: dict[str, str] = field(default_factory=dict)
    shot: "Shot | None" = None
    picked: int = 0
    others: "list[OtherVoice]" = field(default_factory=list)
    points: str = ""
    lora: "Media | None" = None
    person: "Job[PersonalModel] | None" = None
    form: dict[str, Any] = field(default_factory=dict)
    told: "Job[LipSyncResult] | None" = None
    tabs: set[str] = field(default_factory=set)

    @property
    def uploads(self) -> "list[Media]":
        """The face, if there is one, all voices and the LoRA."""
        every = (self.face, self.voice, *(one.media for one in self.others), self.lora)
        return [media for media in every if media is not None]

    @property
    def jobs(self) -> list[Job[Any]]:
        return [job for job in (self.run, self.score, self.person) if job is not None]

    @property
    def busy(self) -> bool:
        """A video is being made, and nothing may change meanwhile."""
        return self.run is not None and self.run.busy

    def remove(self, what: str) -> None:
        """Remove the "face", "voice" or "lora". A file that is shown beside the last result stays until reset()."""
        media: Media | None = getattr(self, what)
        setattr(self, what, None)
        result = None if self.run is None else self.run.value
        if media is not None and (result is None or result.before != media.path):
            media.path.unlink(missing_ok=True)
        if what == "face":
            self.shot, self.picked, self.points = None, 0, ""
            for other in tuple(self.others):
                self.remove_other(other)

    def remove_other(self, other: OtherVoice) -> None:
        self.others.remove(other)
        other.media.path.unlink(missing_ok=True)

    def reset(self) -> None:
        """Forget the last run, and remove all files but the uploads."""
        for job in (self.run, self.score):
            if job is not None:
                job.cancel()
        self.run = self.score = None
        uploads = {media.path for media in self.uploads}
        for path in {path for path in self.folder.iterdir() if path.is_file()} - uploads:
            with suppress(PermissionError):  # on Windows, a file that is still being scored; it goes next time
                path.unlink(missing_ok=True)


class Sessions:
    """All sessions by key. is_connected: whether a browser's tab is there. keep: seconds a session may be without."""

    def __init__(
        self, root: Path, is_connected: Callable[[str], bool], keep: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._root, self._is_connected, self._keep, self._clock = root, is_connected, keep, clock
        self._sessions: dict[str, Session] = {}
        self._last_seen: dict[str, float] = {}
        self._ended: list[Session] = []
        self._lock = threading.Lock()

    def new_key(self) -> str:
        """Begin a session; its key has 128 random bits, so nobody can guess it."""
        key = secrets.token_urlsafe(16)
        self.get(key)
        return key

    def has(self, key: str) -> bool:
        with self._lock:
            return key in self._sessions

    def get(self, key: str, tab: str = "") -> Session:
        """tab: of the browser that shows it. A new session gets a folder with a random name."""
        with self._lock:
            self._last_seen[key] = self._clock()
            if key not in self._sessions:
                self._sessions[key] = Session(Path(tempfile.mkdtemp(prefix="session-", dir=self._root)))
            self._sessions[key].tabs.add(tab or key)
            return self._sessions[key]

    def collect_garbage(self) -> None:
        """End the sessions without a browser: cancel their runs, and remove their files once nothing uses them."""
        with self._lock:
            now = self._clock()
            for key, session in list(self._sessions.items()):
                if any(map(self._is_connected, session.tabs)):
                    self._last_seen[key] = now
                elif now - self._last_seen[key] > self._keep:
                    self._end(key)
            self._remove_ended(force=False)

    def close(self) -> None:
        """End all sessions, whatever still runs."""
        with self._lock:
            for key in list(self._sessions):
                self._end(key)
            self._remove_ended(force=True)

    def _end(self, key: str) -> None:
        session = self._sessions.pop(key)
        del self._last_seen[key]
        for job in session.jobs:
            job.cancel()
        self._ended.append(session)

    def _remove_ended(self, force: bool) -> None:
        removable = [one for one in self._ended if force or not any(job.busy for job in one.jobs)]
        for session in removable:
            shutil.rmtree(session.folder, ignore_errors=True)
            self._ended.remove(session)
