"""Faces and latents of clips in a folder, so that a second run with another speech starts at once (`--cache`)."""

from contextlib import suppress
from pathlib import Path

from .conditions import SavedLatents
from .face.saved import NO_TRACKS, load_tracks, save_tracks
from .face.track import FaceTrack, Tracks
from .media.journal import fingerprint
from .settings import Settings
from .timeline import Cut, Timeline
from .weights.bundle import Models

FORMAT = 1
"""To be raised when faces are found, cut out or encoded in another way."""


class PreparedClip:
    """What is known of one part of one video. Another file, part or size is another clip."""

    def __init__(self, folder: Path, video: str | Path, settings: Settings, cut: Cut | None) -> None:
        cut = cut or Cut()
        shown = (settings.max_side, settings.background, settings.points)
        name = fingerprint({"part": (cut.start, cut.duration), "shown": shown, "format": FORMAT}, video)
        self.folder = folder / f"{Path(video).stem}-{name[:16]}"

    def tracks(self) -> Tracks | None:
        with suppress(*NO_TRACKS):
            return load_tracks(self.folder / "tracks.npz")
        return None

    def save(self, tracks: Tracks) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        save_tracks(self.folder / "tracks.npz", tracks)

    def latents(self, track: FaceTrack, timeline: Timeline, models: Models) -> SavedLatents:
        """Of this face, for these networks."""
        self.folder.mkdir(parents=True, exist_ok=True)
        side = models.resolution // models.vae.factor
        facts = {"face": track.index, "models": models.fingerprint(), "dtype": models.dtype, "side": side}
        path = self.folder / f"latents-{fingerprint(facts)[:16]}"
        return SavedLatents(path, timeline.source_frames, (models.vae.channels, side, side), models.dtype)
