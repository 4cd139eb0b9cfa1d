"""Everything of the web app but its page: sessions, backends, and what becomes of a request."""

import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..files import safe_name
from ..media.encoding import ending_for
from ..media.source import read_still
from ..settings import Settings, scaled_place
from ..timeline import Cut, parse_spans
from .backends import Backend, ComfyServer, LipSyncRequest, LipSyncResult, LocalEngine, is_here
from .config import NO_BACKEND, AppSettings
from .queue import CancelledError, Job, Queue
from .sessions import Session, Sessions
from .uploads import Media, browser_copy, plays_in_browsers, small_copy
from .words import count, duration, length

if TYPE_CHECKING:
    from ..audio.speakers import Speaker
    from ..evaluation.landmark_sync import Score
    from ..training.personal.run import PersonalModel


@dataclass(frozen=True)
class FormValues:
    """What the form says. own_sound: the clip's own sound is the voice. cut: what is used of a clip. strength: of the
    session's LoRA."""

    backend: str
    checkpoint: str
    settings: Settings
    own_sound: bool = False
    cut: Cut = field(default_factory=Cut)
    strength: float = 1.0


class AppService:
    """One per process. is_connected: whether a session has a browser."""

    def __init__(self, settings: AppSettings, is_connected: Callable[[str], bool]) -> None:
        self.settings, self.limits = settings, settings.limits
        self.backends = _backends(settings)
        self._own_folder = settings.folder is None
        self.folder = Path(settings.folder or tempfile.mkdtemp(prefix="latentsync-app-"))
        self.sessions = Sessions(self.folder, is_connected, self.limits.keep)
        self._queues = {key: Queue(one.concurrency, self.limits.waiting) for key, one in self.backends.items()}
        self._score_queue = Queue(capacity=10 * self.limits.waiting)
        self._download_queue = Queue()
        self.download: Job[None] | None = None
        self._closed = threading.Event()
        for backend in self.backends.values():
            with suppress(UserError):  # begins a look-up that takes its time
                backend.checkpoints()
        threading.Thread(target=self._collect_garbage, name="latentsync sessions", daemon=True).start()

    def _collect_garbage(self) -> None:
        while not self._closed.wait(min(5.0, self.limits.keep / 4 + 0.1)):
            self.sessions.collect_garbage()

    def start(self, session: Session, form: FormValues) -> None:
        """Queue a run; UserError when something is missing, too much, or the queue is full."""
        if session.busy:
            raise UserError("Your last video is still being made; wait for it or cancel it.")
        request = self._request(session, form)
        backend = self.backends[form.backend]
        uploads = session.uploads
        session.reset()

        def work(job: Job[LipSyncResult]) -> LipSyncResult:
            result = _run(backend, request, uploads, job)
            if not (request.others or request.settings.points):  # it knows one voice, and faces that can be found
                session.score = self._score_queue.submit(lambda own: _score(result, own))
            return result

        session.run = self._queues[form.backend].submit(work)

    def _request(self, session: Session, form: FormValues) -> LipSyncRequest:
        face, voice = session.face, session.voice
        if face is None:
            raise UserError("There is no face yet; give a video or a picture first.")
        if form.own_sound and not face.has_sound:
            raise UserError("The video has no sound of its own; give a voice.")
        if voice is None and not form.own_sound:
            raise UserError("There is no voice yet; give or record one first.")
        # a browser may send anything, and names of checkpoints are paths too
        if form.backend not in self.backends or form.checkpoint not in self.backends[form.backend].checkpoints():
            raise UserError("That model is not available here; choose one from the list.")
        if form.settings.steps > self.limits.steps:
            steps = f"{count(form.settings.steps, 'step')} of sampling"
            raise UserError(f"This takes {steps}; at most {self.limits.steps} are allowed here.")
        if self.settings.watermark not in ("none", form.settings.watermark):
            raise UserError("Every result gets a watermark here; reload the page.")
        parse_spans(form.settings.spans)  # says what is wrong with them
        sound = None if form.own_sound or voice is None else voice.path
        out = session.folder / (uuid.uuid4().hex + ending_for(form.settings.codec, face.path))
        still = face.kind == "picture"
        cut = Cut() if still else form.cut
        part = range(1) if still else used_frames(face, cut)
        others = tuple(_speakers(session, form, part, self.limits.seconds)) if session.others else ()
        lora = () if session.lora is None else (f"{session.lora.path}:{form.strength:g}",)
        return LipSyncRequest(face.path, sound, out, form.checkpoint, form.settings, still, cut, others, lora)

    def make_person(self, session: Session, checkpoint: str) -> None:
        """Queue the training of a model of the person in the session's clip, among the runs on this computer."""
        if session.face is None or (session.person is not None and not session.person.over):
            return
        session.person = self._queues["local"].submit(
            partial(train_person, session.face, checkpoint, session.folder, self.settings.device)
        )

    def get_model(self, name: str) -> None:
        """Download a model and all that it needs, in the background; see `download`. A second call while one is under
        way changes nothing."""
        if self.download is None or self.download.over:
            self.download = self._download_queue.submit(partial(_download, name))

    def ahead(self, job: Job[Any]) -> int:
        """How many runs come before it, here or on the server."""
        return job.remote_ahead or max(queue.ahead(job) for queue in (*self._queues.values(), self._score_queue))

    def close(self) -> None:
        """Cancel what runs, and remove all files."""
        self._closed.set()
        for queue in (*self._queues.values(), self._score_queue, self._download_queue):
            queue.close()
        self.sessions.close()
        for backend in self.backends.values():
            backend.close()
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)


def _backends(settings: AppSettings) -> dict[str, Backend]:
    """The first one is the default."""
    backends: dict[str, Backend] = {}
    if settings.server is not None:
        backends["comfyui"] = ComfyServer(settings.server, settings.headers)
    if settings.local:
        backends["local"] = LocalEngine(settings.checkpoints, settings.device, settings.dtype)
    if not backends:
        raise UserError(NO_BACKEND)
    return backends


def _run(backend: Backend, request: LipSyncRequest, uploads: Sequence[Media], job: Job[LipSyncResult]) -> LipSyncResult:
    """uploads: the face, then the voices. Errors name files as their owner does."""
    try:
        report = backend.run(request, job)
        folder, before = request.out.parent, request.face
        if not request.is_image:
            before = browser_copy(uploads[0], folder, job.report, _part(request, uploads[0]))
        preview = None if plays_in_browsers(request.out) else small_copy(request.out, folder, job.report, "after")
    except UserError as error:
        message = str(error)
        for media in uploads:
            message = message.replace(str(media.path), media.name).replace(media.path.name, media.name)
        message = message.replace(str(request.out), "The result").replace(str(request.out.parent), "")
        raise UserError(message) from error
    title, name = backend.title, uploads[0].name
    return LipSyncResult(request.out, request, job.elapsed_s, before, title, name, preview, report)


def used_frames(face: Media, cut: Cut) -> range:
    """Of a clip. UserError where the part lies outside."""
    first, count = cut.frames(face.fps, face.frames)
    return range(first, first + count)


def _part(request: LipSyncRequest, face: Media) -> range | None:
    """The frames that are used of a clip; None: all."""
    part = used_frames(face, request.cut)
    return part if len(part) < face.frames else None


def _speakers(session: Session, form: FormValues, part: range, longest: float) -> "Iterator[Speaker]":
    """The other people, checked. part: the frames that are used; longest: seconds of a result."""
    from ..audio.speakers import Speaker

    if form.own_sound or session.voice is None:
        raise UserError("The first voice is the video's own audio, with everyone in it; give a recording instead.")
    if form.settings.points:
        raise UserError("A face that is pointed out by hand speaks alone; remove the other voices.")
    taken = {form.settings.face}
    for other in session.others:
        name, face = other.media.name, other.shot.point(other.picked, part.start)
        if other.shot.frame not in part:
            raise UserError(f"The face of {name} was picked outside the part that is used; add that voice again.")
        if face in taken:
            raise UserError(f"The face of {name} has another voice already; choose another face for one of them.")
        if other.end > longest:
            most = f"at most {duration(longest)} are allowed here"
            raise UserError(f"{name} would end at {length(other.end)}; {most}, so start it earlier.")
        taken.add(face)
        yield Speaker(face, other.media.path, other.start)


def _download(name: str, job: Job[None]) -> None:
    """A model and what it needs; the job counts the bytes of all. One that was cancelled goes on where it stopped."""
    from ..weights.download import download
    from ..weights.registry import with_required

    job.report("connecting")
    entries = [entry for entry in with_required([name]) if not is_here(entry.name)]
    total, before = sum(entry.expected_bytes for entry in entries), 0
    for entry in entries:

        def report(done: int, _: int, before: int = before) -> None:
            job.report("downloading", min(before + done, total), total)

        download(entry.name, on_progress=report)
        before += entry.expected_bytes


def _score(result: LipSyncResult, job: Job["Score"]) -> "Score":
    from ..evaluation.clips import score_file
    from ..face.detect import FaceFinder
    from ..weights.registry import find

    request = result.request
    face = request.settings.face
    if request.is_image:  # the point is in pixels of the picture, and the video of it may be smaller
        face = scaled_place(face, read_still(request.face, request.settings)[1])
    options: dict[str, Any] = {"face": face}
    options["on_progress"] = lambda progress: job.report("measuring", progress.done, progress.total)
    with FaceFinder(find("face_landmarker.task")) as finder:
        try:
            return score_file(result.video, None, finder, **options)
        except UserError as error:
            raise UserError(str(error).replace(str(result.video), "The result")) from error


def train_person(clip: Media, checkpoint: str, folder: Path, device: str, job: Job["PersonalModel"]) -> "PersonalModel":
    """In a folder of its own within the session's. The clip has its visitor's name there: messages and page show it."""
    from ..training.personal.run import Request, personalize

    name = safe_name(Path(clip.name).stem)
    own = folder / f"person-{uuid.uuid4().hex}"
    own.mkdir()
    named = Path(shutil.copyfile(clip.path, own / safe_name(clip.name)))
    request = Request([named], own / f"{name}.safetensors", checkpoint, name, device=device)
    try:
        return personalize(request, Lines(job), lambda: job.stopping)
    except UserError as error:
        if job.stopping:
            raise CancelledError from error
        raise UserError(str(error).replace(str(named), clip.name)) from error
    finally:
        named.unlink()


class Lines:
    """What the training tells, as a job's progress. It ends there when it is no longer wanted: it asks only between
    steps, and minutes go by before the first."""

    def __init__(self, job: Job[Any]) -> None:
        self.job = job

    def __call__(self, line: str) -> None:
        self.job.report(line, self.job.done, self.job.total)

    def draw(self, share: float, text: str) -> None:
        self.job.report(text, share, 1)
