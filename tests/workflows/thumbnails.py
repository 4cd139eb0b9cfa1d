"""The templates' pictures in example_workflows/; make pictures calls it.

Stills of what each template makes of the samples, square and readable at the 230 pixels that a card has.
"""

from collections.abc import Callable
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from latentsync.audio.load import load_audio
from latentsync.evaluation.charts import draw_chart
from latentsync.evaluation.clips import track_clip
from latentsync.evaluation.landmark_sync import score_track
from latentsync.face.detect import FaceFinder
from latentsync.face.preview import numbered
from latentsync.pipeline import lipsync
from latentsync.weights.bundle import Models, load_models
from latentsync.weights.load import default_settings

from ..docs.record import keep
from ..nodes.clips import FPS, VOICE, frames_of
from .build import FOLDER
from .samples import ASSETS, RATE, SAMPLES

SIDE = 460
LINE = 6
FACE = (20, 78, 356)
"""Of a square around the sample's face in face.mp4: top, left, side."""


class Studio:
    """The samples, and what nano makes of them."""

    def __init__(self, models: Models) -> None:
        speech = load_audio(VOICE).waveform.numpy()
        portrait = cv2.cvtColor(cv2.imread(str(ASSETS / "astronaut.jpg")), cv2.COLOR_BGR2RGB)
        self.finder: FaceFinder = models.finder
        self.before = frames_of(SAMPLES / "face.mp4")
        self.two = frames_of(SAMPLES / "two_people.mp4")
        self.after = lipsync(self.before, speech, RATE, FPS, models=models).frames
        self.still = lipsync(portrait[None], speech, RATE, FPS, models=models).frames

    def open(self, frames: np.ndarray, count: int) -> list[np.ndarray]:
        """Close-ups of the face, spread over the clip, of the frame with the widest mouth in each part."""
        top, left, side = FACE
        rows, columns = slice(top + 215, top + 285), slice(left + 130, left + 230)
        pieces = np.array_split(np.arange(len(frames)), count)
        dark = [(frame[rows, columns].mean(-1) < 60).sum() for frame in frames]
        best = [max(piece, key=lambda i: dark[i]) for piece in pieces]
        return [frames[i][top : top + side, left : left + side] for i in best]


def before_and_after(studio: Studio) -> np.ndarray:
    top, left, side = FACE
    before = studio.before[0][top : top + side, left : left + side]
    (after,) = studio.open(studio.after, 1)
    half = slice(side // 4, side // 4 + side // 2)
    return rows([[before[:, half], after[:, half]]])


def talking(studio: Studio) -> np.ndarray:
    one, two, three, four = studio.open(studio.still, 4)
    return rows([[one, two], [three, four]])


def two_people(studio: Studio) -> np.ndarray:
    first, second = studio.two[0], studio.two[len(studio.two) * 3 // 4]
    return rows([[first[60:360]], [second[60:360]]])


def long_video(studio: Studio) -> np.ndarray:
    shown = studio.open(studio.after, 9)
    return rows([shown[:3], shown[3:6], shown[6:]])


def score(studio: Studio) -> np.ndarray:
    clip = track_clip(SAMPLES / "face.mp4", studio.finder)
    chart = draw_chart(score_track(clip.track, clip.speech(None), clip.fps))
    return rows([[studio.before[30][60:316]], [chart[: chart.shape[0], :]]])


def single_nodes(studio: Studio) -> np.ndarray:
    (face,) = studio.finder.detect(studio.before[0])
    found = numbered(studio.before[0], {0: tuple(face.box)}, 0)
    (after,) = studio.open(studio.after, 1)
    return rows([[found[:, 110:366], after[:, 89:267]]])


def ksampler(studio: Studio) -> np.ndarray:
    (after,) = studio.open(studio.after, 1)
    noise = np.random.default_rng(1247).integers(0, 256, (45, 45, 3), np.uint8)
    noisy = after.copy()
    box = slice(170, 306), slice(100, 260)
    noisy[box] = cv2.resize(noise, (160, 136), interpolation=cv2.INTER_NEAREST)
    half = slice(len(after) // 4, len(after) * 3 // 4)
    return rows([[noisy[:, half], after[:, half]]])


def rows(pictures: list[list[np.ndarray]]) -> np.ndarray:
    """Pictures in rows that fill the square, a line between them."""
    out = np.full((SIDE, SIDE, 3), 255, np.uint8)
    high = (SIDE - LINE * (len(pictures) - 1)) // len(pictures)
    for y, row in enumerate(pictures):
        wide = (SIDE - LINE * (len(row) - 1)) // len(row)
        for x, picture in enumerate(row):
            top, left = y * (high + LINE), x * (wide + LINE)
            out[top : top + high, left : left + wide] = fitted(picture, wide, high)
    return out


def fitted(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """Its middle, filling that size."""
    scale = max(width / picture.shape[1], height / picture.shape[0])
    large = cv2.resize(
        picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    )
    top, left = (large.shape[0] - height) // 2, (large.shape[1] - width) // 2
    return cv2.resize(large[top : top + height, left : left + width], (width, height))


PICTURES: dict[str, Callable[[Studio], np.ndarray]] = {
    "1 Lip sync a video": before_and_after,
    "1 Lip sync a video.app": before_and_after,
    "2 Talking portrait": talking,
    "2 Talking portrait.app": talking,
    "3 Two people": two_people,
    "4 Long video": long_video,
    "5 Score a video": score,
    "6 Single nodes": single_nodes,
    "7 KSampler": ksampler,
}


MOUTHS = ("mode", "steps", "guidance", "solver", "seed", "fit", "silence")
"""The settings that these pictures show."""


def made_with() -> dict[str, Any]:
    """The model and the settings of all these pictures."""
    settings = default_settings("nano")
    weights = (ASSETS / "nano.safetensors").read_bytes()
    return {"nano": sha256(weights).hexdigest()[:16], **{name: getattr(settings, name) for name in MOUTHS}}


def main(_: Path) -> None:
    with load_models() as models:
        studio = Studio(models)
        for title, make in PICTURES.items():
            shot = BytesIO()
            Image.fromarray(make(studio)).save(shot, "PNG")
            keep(FOLDER / f"{title}.jpg", shot.getvalue(), {"made with": made_with()})
