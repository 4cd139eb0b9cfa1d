"""How the lips of samples follow the speech, by landmarks: no network but the face landmarker is needed."""

from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np

from ...audio.load import load_audio
from ...errors import UserError
from ...evaluation.clips import score_file
from ...evaluation.mouth_motion import correlation
from ...face.detect import FaceFinder, mouth_opening
from ...face.track import find_tracks
from ...media.probe import probe
from ...models.unet import UNet
from ...models.vae import VAE
from ...models.whisper import WhisperEncoder
from ...pipeline import lipsync_file
from ...settings import Settings
from ...weights.bundle import Models
from ..recipes import Files, UNetRecipe
from ..task import Event

OWN, OTHER = "own voice", "other voice"


@dataclass
class Openings:
    """Collects correlations of mouth openings: of samples with those of who said the same speech.

    With the clip's own voice the frames are their own references, so that only another voice tells whether the speech
    is followed. known: openings of true frames by what is in them, kept from validation to validation.
    """

    finder: FaceFinder
    known: dict[bytes, np.ndarray] = field(default_factory=dict)
    found: dict[str, list[float]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, voice: str, clip: str, made: np.ndarray, true: np.ndarray) -> None:
        """made, true: (F, S, S, 3) uint8; who said the speech is in true. A clip that tells nothing is a problem."""
        try:
            value = opening_correlation(openings(made, self.finder), self._known(true))
            self.found.setdefault(voice, []).append(value)
        except UserError as error:
            self.problems.append(f"{clip}, {voice}: {error}")

    def _known(self, frames: np.ndarray) -> np.ndarray:
        key = sha256(frames.tobytes()).digest()
        if key not in self.known:
            self.known[key] = openings(frames, self.finder)
        return self.known[key]

    def values(self, event: Event) -> dict[str, float]:
        """Means over clips. Problems are one event."""
        if self.problems:
            event("no opening correlation", samples=len(self.problems), why=self.problems[0])
        return {f"{voice}/opening correlation": float(np.mean(values)) for voice, values in self.found.items()}


def openings(frames: np.ndarray, finder: FaceFinder) -> np.ndarray:
    """(F,) mouth opening over the face's height in (F, H, W, 3) uint8, NaN without a face. UserError: there is none."""
    out = np.full(len(frames), np.nan)
    for face in sorted(find_tracks(frames, finder).faces, key=lambda track: track.height):  # the largest one counts
        out[face.present] = mouth_opening(face.landmarks)[face.present]
    return out


def opening_correlation(made: np.ndarray, true: np.ndarray) -> float:
    """Pearson's of two openings (F,), where both are known. UserError: too few are, or one mouth never moves."""
    both = np.isfinite(made) & np.isfinite(true)
    value = correlation(made[both], true[both])
    if value is None:
        raise UserError(f"faces are in {both.sum()} frames of both, and one of the mouths never moves there")
    return value


@dataclass(frozen=True)
class GivenVideo:
    """A video that says another speech at each validation, made as in use. audio: None takes the video's own sound."""

    video: Path
    audio: Path | None
    whisper: WhisperEncoder

    def write(
        self, unet: UNet, vae: VAE, recipe: UNetRecipe, finder: FaceFinder, path: Path, event: Event
    ) -> dict[str, float]:
        """Write the video. Returns the correlation of lips and loudness, if it can be told; a problem is an event."""
        config = unet.config
        chosen = Settings(
            steps=recipe.sample_steps or config.default_steps,
            guidance=recipe.sample_guidance or config.default_guidance,
            seed=recipe.validate_seed,
        )
        unet.eval()
        path.parent.mkdir(parents=True, exist_ok=True)
        models = Models(unet, vae, self.whisper, finder, recipe.resolution, defaults=chosen)
        try:
            lipsync_file(self.video, self.audio, path, models=models, settings=chosen)
            return {"given video/speech correlation": score_file(path, None, finder).correlation}
        except (UserError, OSError) as error:
            event("no score of the given video", why=str(error))
            return {}


def given_video(files: Files, whisper: WhisperEncoder) -> GivenVideo | None:
    """UserError: a file cannot be read, or there is a speech for no video."""
    video, audio = (None if path is None else Path(path) for path in (files.validate_video, files.validate_audio))
    if video is None:
        if audio is not None:
            raise UserError(f"--validate-audio {audio} needs a face to say it; give --validate-video as well.")
        return None
    if not probe(video).has_audio and audio is None:
        raise UserError(f"{video} has no sound; give --validate-audio as well.")
    if audio is not None:
        load_audio(audio)
    return GivenVideo(video, audio, whisper)
