"""Makes the clip at the top of README: python -m tests.docs.hero

A portrait that nano was not trained on (NASA, public domain), moved gently, beside the same with nano's mouth saying a
sentence of flite: docs/hero.webp, which plays on a page, without sound, and docs/hero.mp4, with it. Needs flite and
the files that nano needs.
"""

import tempfile
from math import ceil
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from latentsync.audio.load import load_audio
from latentsync.media.audio_track import AudioTrack
from latentsync.media.writer import VideoWriter
from latentsync.pipeline import lipsync
from latentsync.settings import Settings
from latentsync.weights.bundle import load_models

from ..workflows.samples import ASSETS, FPS, RATE, speak, swaying
from .pages import ROOT

TEXT = (
    "Give it a face, and the recording of a voice."
    " The lips follow what is said, and the rest of the picture stays as it was."
)
VOICE = "slt"
SIDE, GAP, BAR = 360, 8, 30
"""Pixels: each picture, the space between them, the words above."""
HEAD = slice(60, 400), slice(86, 426)
"""Rows and columns of the portrait that are shown."""
TITLES = "before", "after"


def make() -> None:
    portrait = cv2.cvtColor(cv2.imread(str(ASSETS / "astronaut.jpg")), cv2.COLOR_BGR2RGB)
    with tempfile.TemporaryDirectory() as folder, load_models() as models:
        said = speak(Path(folder, "said.wav"), VOICE, TEXT)
        speech = load_audio(said)
        before = np.stack(list(swaying(portrait, ceil(speech.seconds * FPS), 0.0)))
        settings = Settings(silence="close")
        after = lipsync(before, speech.waveform.numpy(), RATE, FPS, models=models, settings=settings).frames
        pairs = [beside(*pair) for pair in zip(before, after, strict=True)]
        height, width, _ = pairs[0].shape
        with VideoWriter(ROOT / "docs" / "hero.mp4", width, height, FPS, audio=AudioTrack(said)) as out:
            for pair in pairs:
                out.write(pair)
    first, *rest = map(Image.fromarray, pairs[::2])
    options = {"duration": round(2000 / FPS), "loop": 0, "quality": 72, "method": 6}
    first.save(ROOT / "docs" / "hero.webp", save_all=True, append_images=rest, **options)


def beside(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(BAR + SIDE, 2 SIDE + GAP, 3), on white."""
    sheet = np.full((BAR + SIDE, 2 * SIDE + GAP, 3), 255, np.uint8)
    for i, (frame, title) in enumerate(zip((before, after), TITLES, strict=True)):
        left = i * (SIDE + GAP)
        sheet[BAR:, left : left + SIDE] = cv2.resize(frame[HEAD], (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        place = left + 4, BAR - 9
        cv2.putText(sheet, title, place, cv2.FONT_HERSHEY_SIMPLEX, 0.6, (70, 70, 70), 1, cv2.LINE_AA)
    return sheet


if __name__ == "__main__":
    make()
