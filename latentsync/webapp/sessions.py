"""Who is here, and the files of each: a folder that nobody else sees and that goes when they go."""

import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .queue import Job

if TYPE_CHECKING:
    from ..evaluation.landmark_sync import Score
    from .backends import Made
    from .faces import Shot
    from .uploads import Media


class Visitor:
    """One session. folder: its files. face, voice: what was given. run, score: what was asked for last.

    note: why the last file was refused, by what it was for. shot, picked: the frame that is shown, and which of its
    faces shall speak.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.face: Media | None = None
        self.voice: Media | None = None
        self.run: Job[Made] | None = None
        self.score: Job[Score] | None = None
        self.note: dict[str, str] = {}
        self.shot: Shot | None = None
        self.picked = 0

    @property
    def jobs(self) -> list[Job[Any]]:
        return [job for job in (self.run, self.score) if job is not None]

    @property
    def busy(self) -> bool:
        """A video is being made, and nothing may change meanwhile."""
        return self.run is not None and self.run.busy

    @property
    def working(self) -> bool:
        """Something uses the files."""
        return any(job.busy for job in self.jobs)

    def drop(self, what: str) -> None:
        """The face or the voice is no longer wanted; one that the last result is shown beside stays until tidy()."""
        media: Media | None = getattr(self, what)
        setattr(self, what, None)
        made = None if self.run is None else self.run.value
        if media is not None and (made is None or made.before != media.path):
            media.path.unlink(missing_ok=True)
        if what == "face":
            self.shot, self.picked = None, 0

    def tidy(self) -> None:
        """Forget the last run and remove what it left in the folder: everything that was not given."""
        for job in self.jobs:
            job.cancel()
        self.run = self.score = None
        given = {media.path for media in (self.face, self.voice) if media is not None}
        for path in set(self.folder.iterdir()) - given:
            with suppress(PermissionError):  # Windows keeps a file that is still being measured; it goes next time
                path.unlink(missing_ok=True)


class Visitors:
    """Everybody who is here, by the name of their session.

    root: where the folders lie. is_here: whether a session still has a browser at its other end. keep: seconds that
    somebody may be away.
    """

    def __init__(
        self, root: Path, is_here: Callable[[str], bool], keep: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._root, self._is_here, self._keep, self._clock = root, is_here, keep, clock
        self._known: dict[str, Visitor] = {}
        self._seen: dict[str, float] = {}
        self._leaving: list[Visitor] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, session: str) -> Visitor:
        """The visitor of a session; a new one gets a folder whose name nobody can guess."""
        with self._lock:
            self._seen[session] = self._clock()
            if session not in self._known:
                self._known[session] = Visitor(Path(tempfile.mkdtemp(prefix="visitor-", dir=self._root)))
            return self._known[session]

    def sweep(self) -> None:
        """See who has left: their runs are stopped, and their files go as soon as nothing works on them."""
        with self._lock:
            now = self._clock()
            for session in list(self._known):
                if self._is_here(session):
                    self._seen[session] = now
                elif now - self._seen[session] > self._keep:
                    self._part(session)
            self._remove(force=False)

    def close(self) -> None:
        """Everybody leaves now, whatever still works."""
        with self._lock:
            for session in list(self._known):
                self._part(session)
            self._remove(force=True)

    def _part(self, session: str) -> None:
        visitor = self._known.pop(session)
        del self._seen[session]
        for job in visitor.jobs:
            job.cancel()
        self._leaving.append(visitor)

    def _remove(self, force: bool) -> None:
        gone = [visitor for visitor in self._leaving if force or not visitor.working]
        for visitor in gone:
            shutil.rmtree(visitor.folder, ignore_errors=True)
        self._leaving = [visitor for visitor in self._leaving if visitor not in gone]
