"""The face that is asked for; and faces and latents of clips in a folder, so that a second run with another speech
starts at once (`--cache`)."""

import logging
from collections.abc import MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .audio.clues import clues_for
from .conditions import SavedLatents
from .errors import NoFaceError, UserError
from .face.choose import choose
from .face.detect import FaceFinder
from .face.points import Points, track_points
from .face.saved import NO_TRACKS, load_tracks, save_tracks
from .face.track import FaceTrack, Tracks, absent, find_tracks
from .media.journal import fingerprint
from .media.source import Source
from .rendering import Timings
from .settings import Progress, ProgressCallback, Settings
from .timeline import Cut, Timeline
from .weights.bundle import Models

_log = logging.getLogger(__name__)

FORMAT = 3
"""To be raised when faces are found, cut out or encoded in another way."""


class PreparedClip:
    """What is known of one part of one video. Another file, part or size is another clip."""

    def __init__(self, folder: Path, video: str | Path, settings: Settings, cut: Cut | None) -> None:
        cut = cut or Cut()
        shown = (settings.max_side, settings.background, settings.points)
        name = fingerprint({"part": (cut.start, cut.duration), "shown": shown, "format": FORMAT}, video)
        self.folder = folder / f"{Path(video).stem[:64]}-{name[:16]}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"The cache {folder} cannot be used ({error.strerror}); name another folder.") from error

    def tracks(self) -> Tracks | None:
        with suppress(*NO_TRACKS):
            return load_tracks(self.folder / "tracks.npz")
        return None

    def save(self, tracks: Tracks) -> None:
        with suppress(OSError):  # a full disk: the run itself goes on
            save_tracks(self.folder / "tracks.npz", tracks)

    def latents(self, track: FaceTrack, timeline: Timeline, models: Models) -> SavedLatents:
        """Of this face, for these networks."""
        side = models.resolution // models.vae.factor
        facts = {"face": track.index, "models": models.fingerprint(), "dtype": models.dtype, "side": side}
        path = self.folder / f"latents-{fingerprint(facts)[:16]}"
        return SavedLatents(path, timeline.source_frames, (models.vae.channels, side, side), models.dtype)


@dataclass(frozen=True)
class TrackedFace:
    """The chosen face through the clip; faces: how many were found in all."""

    track: FaceTrack
    faces: int


def track_face(
    source: Source,
    timeline: Timeline,
    finder: FaceFinder,
    face: str,
    timings: Timings,
    on_progress: ProgressCallback | None = None,
    tracks: MutableMapping[int, Tracks] | None = None,
    speech: Tensor | None = None,
    *,
    whole: bool = False,
) -> TrackedFace:
    """Follow the faces through the source frames that the timeline shows, read once unless `tracks` has them. speech:
    tells who speaks where the source has no sound of its own. whole: through all source frames."""
    tracks = {} if tracks is None else tracks
    used = looked_at(timeline, whole=whole)

    def report(frames: int) -> None:
        if on_progress:
            on_progress(Progress("track", frames, used))

    with timings.measure("track"):
        clues = clues_for(face, source, used, timeline.fps, lambda: finder, speech)
        if used not in tracks:
            tracks[used] = find_tracks(source.read(range(used)), finder, on_step=report)
        tracked = TrackedFace(choose(tracks[used], face, clues), len(tracks[used].faces))
    _log.debug("%d faces in %d frames; the chosen one is %d", tracked.faces, used, tracked.track.index)
    return tracked


def face_asked_for(
    source: Source,
    timeline: Timeline,
    finder: FaceFinder,
    face: str,
    settings: Settings,
    timings: Timings,
    on_progress: ProgressCallback | None,
    tracks: MutableMapping[int, Tracks],
    speech: Tensor,
    scale: float = 1.0,
    *,
    whole: bool = False,
) -> TrackedFace:
    """track_face for a face that may also be pointed out by hand, or be absent, as the settings say. scale: of these
    frames against those in which it was pointed out."""
    used = looked_at(timeline, whole=whole)
    if settings.points and used not in tracks:
        with timings.measure("track"):
            points = Points.parse(settings.points).scaled(scale)
            found = track_points(source.read, used, points)
        tracks[used] = Tracks((found,), used, found.size)
    try:
        return track_face(source, timeline, finder, face, timings, on_progress, tracks, speech, whole=whole)
    except NoFaceError:
        if settings.no_face == "error":
            raise
        height, width = next(iter(source.read([0]))).shape[:2]
        return TrackedFace(absent(used, (width, height)), 0)


def looked_at(timeline: Timeline, *, whole: bool) -> int:
    """Source frames in which faces are looked for: those that are shown, or all."""
    return timeline.source_frames if whole else min(timeline.source_frames, timeline.frames)
