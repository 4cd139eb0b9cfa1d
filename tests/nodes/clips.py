"""Small inputs for workflows: cut from a real video, or made of a portrait and the sample voice."""

from fractions import Fraction
from pathlib import Path

import numpy as np

from latentsync.media.audio_track import AudioTrack
from latentsync.media.probe import probe
from latentsync.media.reader import VideoReader
from latentsync.media.writer import VideoWriter

VOICE = Path(__file__).resolve().parents[2] / "latentsync" / "assets" / "voice.flac"
FPS = Fraction(25)


def cut(source: Path, target: Path, frames: int, *, start: int = 0) -> Path:
    """Frames start … start + frames - 1 of a video at its own rate, with their sound."""
    info = probe(source)
    fps = info.fps
    sound = AudioTrack(source, info.start + start / fps, frames / fps) if info.has_audio else None
    with VideoReader(info) as reader, VideoWriter(target, info.width, info.height, fps, audio=sound) as out:
        for frame in reader.read(range(start, start + frames)):
            out.write(frame)
    return target


def portrait(target: Path, frames: int, *, width: int = 320, height: int = 280) -> Path:
    """scikit-image's astronaut swaying at 25 frames a second, under the sample voice."""
    from ..tiny import pan  # brings torch and more, which the fixtures of all tests need not wait for

    with VideoWriter(target, width, height, FPS, audio=AudioTrack(VOICE, duration=frames / FPS)) as out:
        for frame in pan(frames, width, height):
            out.write(frame)
    return target


def frames_of(path: Path) -> np.ndarray:
    """All frames of a video, (F, H, W, 3) uint8."""
    info = probe(path)
    with VideoReader(info) as reader:
        return np.stack(list(reader.read(range(info.frames))))
