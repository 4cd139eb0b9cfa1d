"""How the built-in model does on people whom it has never seen: stills of held-out portraits say held-out speech.

A puppet of the same portrait is the truth. Everything goes through the whole pipeline, as a user would run it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from latentsync.audio.load import load_audio
from latentsync.evaluation.image_metrics import lips_region, sharpness, ssim_map
from latentsync.face.align import align_matrices, crop_face, crop_matrix
from latentsync.face.choose import choose
from latentsync.face.detect import mouth_opening
from latentsync.face.mask import mouth_mask
from latentsync.face.track import FaceTrack, find_tracks
from latentsync.media.probe import probe
from latentsync.pipeline import lipsync
from latentsync.settings import Settings
from latentsync.weights.bundle import Models

from .data import DELAYS, Person, clip_paths, held_out_portraits
from .puppets import Puppet, Speakers, Speech, upright_look

RATE = 16000
SECONDS = 2.5
PAUSE = 2.0
SETTLE = 0.3
"""Seconds at the ends of a pause in which the mouth may still close or open already."""
DRIVERS = ("latentsync_demo1", "latentsync_demo2", "latentsync_demo3", "obama_a_20s", "obama_b_30s", "reagan_26s")


@dataclass(frozen=True)
class Talk:
    """Held-out speech of a clip: which person says it, its frames, and the sound (T,) at RATE."""

    person: int
    frames: range
    fps: Fraction
    sound: Tensor


@dataclass(frozen=True)
class StillScore:
    """own, other: correlation of the opening with the truth, made with its own and with other speech. sharpness and
    ssim at the lips, against the truth. color: largest difference of a channel's mean over the repainted skin from the
    picture's, of 255. pause: opening in a pause over that in speech. wide, fast: 95th percentiles of the opening and of
    its change from frame to frame, made over true."""

    name: str
    own: float
    other: float
    sharpness: float
    ssim: float
    color: float
    pause: float
    wide: float
    fast: float


def talks(media: Path, people: Sequence[Person]) -> list[Talk]:
    """The first seconds of what six speakers say on time that is never trained on."""
    found = []
    for path in clip_paths(media):
        who = next((i for i, p in enumerate(people) if p.name == path.stem and p.name in DRIVERS), None)
        if who is None:
            continue
        info = probe(path)
        frames = range(people[who].train_frames, len(people[who].crops))[: round(SECONDS * info.fps)]
        start = frames.start / info.fps + Fraction(str(DELAYS.get(path.stem, 0)))
        length = int(len(frames) / info.fps * RATE)
        sound = load_audio(path).waveform[int(start * RATE) :][:length]
        found.append(Talk(who, frames, info.fps, sound))
    return found


class StillEvaluation:
    """Scores one held-out portrait after the other; keeps a strip of pictures of each."""

    def __init__(self, people: Sequence[Person], spoken: Sequence[Talk], models: Models, settings: Settings) -> None:
        self.people, self.spoken, self.models, self.settings = people, spoken, models, settings
        self.speakers = Speakers(people, held_out=True)
        self.strips: list[np.ndarray] = []

    def portraits(self) -> list[tuple[Person, int]]:
        """Each held-out person once, smiling and neutral in turn where there are both."""
        held_out = held_out_portraits(self.people)
        return [(person, i % len(person.crops)) for i, person in enumerate(held_out)]

    def sheet(self, more: Sequence[np.ndarray], columns: int = 2, moments: int = 5, side: int = 120) -> np.ndarray:
        """Each held-out person, three of them once more with another expression, and more pictures (H, W, 3): the
        picture, then moments of held-out speech."""
        portraits = self.portraits()
        others = [(person, 1 - frame) for person, frame in portraits if len(person.crops) > 1][-3:]
        random = np.random.default_rng(0)
        dolls = [Puppet(who, frame, self.speakers, None, upright_look(), random) for who, frame in portraits + others]
        rows = []
        for i, picture in enumerate([*(doll.natural() for doll in dolls), *more]):
            talk = self.spoken[i % len(self.spoken)]
            made = self._made(picture, talk, len(talk.frames))
            shown = [picture, *made[np.linspace(0, len(made), moments + 2).astype(int)[1:-1]]]
            rows.append(np.concatenate([cv2.resize(p, (side, side), interpolation=cv2.INTER_AREA) for p in shown], 1))
        return np.concatenate([np.concatenate(rows[i : i + columns], 1) for i in range(0, len(rows), columns)])

    def score(self, number: int) -> StillScore:
        person, frame = self.portraits()[number]
        talk, foreign = (self.spoken[(number + k) % len(self.spoken)] for k in (0, 1))
        random = np.random.default_rng(number)
        puppet = Puppet(person, frame, self.speakers, None, upright_look(), random)
        true = np.stack([puppet.says(Speech(talk.person, f)) for f in talk.frames])
        picture = puppet.natural()
        own, other = (self._made(picture, t, len(true)) for t in (talk, foreign))
        track, truth = self._track(own), self._track(true)
        values = [mouth_opening(t.landmarks) for t in (truth, track, self._track(other))]
        self.strips.append(_strip(picture, true, own))
        return StillScore(
            person.name,
            correlation(values[0], values[1]),
            correlation(values[0], values[2]),
            *_at_the_lips(own, true, truth),
            _skin_difference(own, picture, truth),
            self._pause(picture, talk),
            *liveliness(values[1], values[0]),
        )

    def _made(self, picture: np.ndarray, talk: Talk, frames: int) -> np.ndarray:
        sound = torch.nn.functional.pad(talk.sound, (0, RATE * 2))[: int(frames / talk.fps * RATE)]
        made = lipsync(picture[None], sound, RATE, talk.fps, models=self.models, settings=self.settings).frames
        return made[np.minimum(np.arange(frames), len(made) - 1)]

    def _track(self, frames: np.ndarray) -> FaceTrack:
        return choose(find_tracks(frames, self.models.finder), "largest")

    def _pause(self, picture: np.ndarray, talk: Talk) -> float:
        """Median opening in a pause amid the speech over its mean in the speech, both without the closed mouth's."""
        half = len(talk.sound) // 2
        sound = torch.cat((talk.sound[:half], torch.zeros(int(PAUSE * RATE)), talk.sound[half:]))
        made = lipsync(picture[None], sound, RATE, talk.fps, models=self.models, settings=self.settings).frames
        values = mouth_opening(self._track(made).landmarks)
        first, last = (round(float(talk.fps) * (half / RATE + t)) for t in (SETTLE, PAUSE - SETTLE))
        pause = np.zeros(len(values), bool)
        pause[first:last] = True
        return float(np.median(values[pause]) / np.mean(values[~pause]))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def liveliness(made: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """How wide and how fast a mouth opens, over the truth's: (F,) openings; see StillScore."""
    (wide, fast), (true_wide, true_fast) = (
        (np.percentile(o, 95), np.percentile(np.abs(np.diff(o)), 95)) for o in (made, true)
    )
    return float(wide / max(1e-6, true_wide)), float(fast / max(1e-6, true_fast))


def _at_the_lips(made: np.ndarray, true: np.ndarray, truth: FaceTrack) -> tuple[float, float]:
    sharp: list[tuple[float, float]] = []
    alike: list[float] = []
    for m, t, points in zip(made[::3], true[::3], truth.landmarks[::3], strict=True):
        mask = lips_region(points, len(m))
        sharp.append((sharpness(m, mask), sharpness(t, mask)))
        alike.append(float(ssim_map(m, t)[mask].mean()))
    ours, theirs = np.mean(sharp, 0)
    return float(ours / theirs), float(np.mean(alike))


def _skin_difference(made: np.ndarray, picture: np.ndarray, truth: FaceTrack) -> float:
    side = 256
    matrix = align_matrices(truth.points, side)
    skin = mouth_mask(side) < 0.5
    for points, m in zip(truth.landmarks, (crop_matrix(m, side) for m in matrix), strict=True):
        skin &= ~lips_region(points @ m[:, :2].T + m[:, 2], side)
    crops = [crop_face(frame, matrix[i], side)[skin].mean(0) for i, frame in enumerate(made) if i % 3 == 0]
    return float(np.abs(np.mean(crops, 0) - crop_face(picture, matrix[0], side)[skin].mean(0)).max())


def _strip(picture: np.ndarray, true: np.ndarray, made: np.ndarray, columns: int = 9, side: int = 180) -> np.ndarray:
    """The picture, then true (above) and made (below) at the same moments."""
    picked = np.linspace(0, len(made) - 1, columns).round().astype(int)
    rows = [np.concatenate([picture, *frames[picked]], 1) for frames in (true, made)]
    sheet = np.concatenate(rows)
    return cv2.resize(sheet, ((columns + 1) * side, 2 * side), interpolation=cv2.INTER_AREA)
