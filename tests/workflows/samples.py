"""Make latentsync/assets/samples/ anew: python -m tests.workflows.samples

Small clips for the templates' first run: the portrait swaying while it says something, the same beside a recolored
mirror image of itself, and a voice for each. Needs flite (a free speech synthesizer) and the files that nano needs.
"""

import subprocess
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from latentsync.audio.load import load_audio
from latentsync.media.audio_track import AudioTrack
from latentsync.media.writer import VideoWriter
from latentsync.pipeline import lipsync
from latentsync.weights.bundle import Models, load_models

from ..nodes.server import ROOT

ASSETS = ROOT / "latentsync" / "assets"
SAMPLES = ASSETS / "samples"
FPS = Fraction(25)
RATE = 16_000
CRF = 21

CLIP = ("rms", "Soon I will say something else.")
VOICES = {
    "voice_left.flac": ("rms", "Hello, I speak first."),
    "voice_right.flac": ("awb", "And now it is my turn."),
}
"""flite's voice and what it says."""
FACE = ((257, 200), (172, 250), 0)
"""The portrait's face as an ellipse: center, axes, angle."""


def make() -> None:
    SAMPLES.mkdir(exist_ok=True)
    portrait = cv2.cvtColor(cv2.imread(str(ASSETS / "portrait.jpg")), cv2.COLOR_BGR2RGB)
    with tempfile.TemporaryDirectory() as folder, load_models() as models:
        said = speak(Path(folder, "said.wav"), *CLIP)
        clip = talking(models, portrait, said)
        write(SAMPLES / "face.mp4", clip, said)
        other = talking(models, np.ascontiguousarray(recolored(portrait)[:, ::-1]), said, phase=1.9)
        # the other one runs backwards: two mouths that move as one look odd
        pair = np.concatenate((clip[:, 32:-32, 64:-64], other[::-1, 32:-32, 64:-64]), 2)
        write(SAMPLES / "two_people.mp4", pair, said)
        for name, (voice, text) in VOICES.items():
            as_flac(speak(Path(folder, "voice.wav"), voice, text), SAMPLES / name)


def talking(models: Models, portrait: np.ndarray, said: Path, phase: float = 0.0) -> np.ndarray:
    """The portrait in gentle motion, its mouth repainted to what is said: (F, H, W, 3)."""
    speech = load_audio(said)
    frames = np.stack(list(swaying(portrait, int(speech.seconds * FPS), phase)))
    return lipsync(frames, speech.waveform.numpy(), RATE, FPS, models=models).frames


def swaying(picture: np.ndarray, frames: int, phase: float) -> Iterator[np.ndarray]:
    """As if somebody stood there: a slow nod, lean and turn of a degree, a little larger so that no edge shows."""
    height, width = picture.shape[:2]
    for t in np.arange(frames) / float(FPS) + phase:
        lean, zoom = 1.2 * np.sin(1.7 * t), 1.06 + 0.012 * np.sin(1.1 * t)
        turn = cv2.getRotationMatrix2D((width / 2, height * 0.9), float(lean), float(zoom))
        turn[:, 2] += 3 * np.sin(2.3 * t), 14 + 2.5 * np.sin(3.1 * t)
        yield cv2.warpAffine(picture, turn, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)


def recolored(picture: np.ndarray) -> np.ndarray:
    """Another shirt and another wall, so that the two are told apart: what is bright and gray becomes blue."""
    _, saturation, value = cv2.split(cv2.cvtColor(picture, cv2.COLOR_RGB2HSV))
    gray = np.clip((75.0 - saturation) / 30, 0, 1) * np.clip((value - 70.0) / 40, 0, 1)
    cv2.ellipse(gray, FACE, 0.0, -1)
    gray = cv2.GaussianBlur(gray, (0, 0), 1.5)[..., None]
    blue = picture * np.array([0.42, 0.62, 0.85])
    return (picture * (1 - gray) + blue * gray).round().astype(np.uint8)


def speak(target: Path, voice: str, text: str) -> Path:
    subprocess.run(["flite", "-voice", voice, "-t", text, "-o", str(target)], check=True)
    return target


def write(target: Path, frames: np.ndarray, sound: Path) -> None:
    _, height, width, _ = frames.shape
    with VideoWriter(target, width, height, FPS, audio=AudioTrack(sound), crf=CRF) as out:
        for frame in frames:
            out.write(np.ascontiguousarray(frame))


def as_flac(source: Path, target: Path) -> None:
    with av.open(str(source)) as file, av.open(str(target), "w") as out:
        stream = out.add_stream("flac", rate=RATE, layout="mono", format="s16")
        resampler = av.AudioResampler("s16", "mono", RATE, 4096)
        for frame in (*file.decode(audio=0), None):
            for block in resampler.resample(frame):
                out.mux(stream.encode(block))
        out.mux(stream.encode(None))


if __name__ == "__main__":
    make()
