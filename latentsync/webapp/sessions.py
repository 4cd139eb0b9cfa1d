"""Sessions (browser tabs), each with a folder that is removed when it ends."""

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
    speak. others: more people who speak. points: three places in that frame instead, "" for none."""

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

    @property
    def uploads(self) -> "list[Media]":
        """The face, if there is one, and all voices."""
        return [media for media in (self.face, self.voice, *(one.media for one in self.others)) if media is not None]

    @property
    def jobs(self) -> list[Job[Any]]:
        return [job for job in (self.run, self.score) if job is not None]

    @property
    def busy(self) -> bool:
        """A video is being made, and nothing may change meanwhile."""
        return self.run is not None and self.run.busy

    def remove(self, what: str) -> None:
        """Remove the "face" or the "voice". A file that is shown beside the last result stays until reset()."""
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
        for job in self.jobs:
            job.cancel()
        self.run = self.score = None
        uploads = {media.path for media in self.uploads}
        for path in set(self.folder.iterdir()) - uploads:
            with suppress(PermissionError):  # on Windows, a file that is still being scored; it goes next time
                path.unlink(missing_ok=True)


class Sessions:
    """All sessions by name. is_connected: whether a session has a browser. keep: seconds it may be without."""

    def __init__(
        self, root: Path, is_connected: Callable[[str], bool], keep: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._root, self._is_connected, self._keep, self._clock = root, is_connected, keep, clock
        self._sessions: dict[str, Session] = {}
        self._last_seen: dict[str, float] = {}
        self._ended: list[Session] = []
        self._lock = threading.Lock()

    def get(self, name: str) -> Session:
        """A new session gets a folder with a random name."""
        with self._lock:
            self._last_seen[name] = self._clock()
            if name not in self._sessions:
                self._sessions[name] = Session(Path(tempfile.mkdtemp(prefix="session-", dir=self._root)))
            return self._sessions[name]

    def collect_garbage(self) -> None:
        """End the sessions without a browser: cancel their runs, and remove their files once nothing uses them."""
        with self._lock:
            now = self._clock()
            for name in list(self._sessions):
                if self._is_connected(name):
                    self._last_seen[name] = now
                elif now - self._last_seen[name] > self._keep:
                    self._end(name)
            self._remove_ended(force=False)

    def close(self) -> None:
        """End all sessions, whatever still runs."""
        with self._lock:
            for name in list(self._sessions):
                self._end(name)
            self._remove_ended(force=True)

    def _end(self, name: str) -> None:
        session = self._sessions.pop(name)
        del self._last_seen[name]
        for job in session.jobs:
            job.cancel()
        self._ended.append(session)

    def _remove_ended(self, force: bool) -> None:
        removable = [one for one in self._ended if force or not any(job.busy for job in one.jobs)]
        for session in removable:
            shutil.rmtree(session.folder, ignore_errors=True)
            self._ended.remove(session)
