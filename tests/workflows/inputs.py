"""Small files under the names that the example workflows ask for."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from latentsync.media.writer import VideoWriter

from ..nodes.clips import FPS, VOICE, cut
from ..nodes.server import ROOT, ComfyServer
from ..tiny import pan

ASSETS = ROOT / "latentsync" / "assets"
CLIP = 20
"""Frames of the clips: two windows of 16."""
SPEECH = 24
"""Frames that the speech lasts: more than there are."""


def put_inputs(server: ComfyServer, folder: Path, media: Path | None) -> None:
    """face.mp4, speech.flac, face.png, two_people.mp4, voice_a.flac and voice_b.flac in the input folder.

    media: where real clips lie; without it they are cut from the pack's own samples.
    """
    face, two = folder / "face.mp4", folder / "two_people.mp4"
    speaker(face, CLIP, media)
    if media is None:
        cut(ASSETS / "samples" / "two_people.mp4", two, CLIP)
    else:
        cut(media / "edge" / "two_faces_left_speaks.mp4", two, CLIP, start=25)
    with Image.open(ASSETS / "portrait.jpg") as picture:
        picture.thumbnail((320, 320))
        picture.save(folder / "face.png")
    cut_sound(folder / "speech.flac", 0.5, Fraction(SPEECH) / FPS)
    cut_sound(folder / "voice_a.flac", 0.5, Fraction(SPEECH, 2) / FPS)
    cut_sound(folder / "voice_b.flac", 1.5, Fraction(SPEECH, 2) / FPS)
    for path in folder.iterdir():
        server.put(path)


def speaker(target: Path, frames: int, media: Path | None) -> Path:
    """A real speaker with her own sound, or the sample."""
    if media is None:
        return cut(ASSETS / "samples" / "face.mp4", target, frames)
    return cut(media / "clips" / "hdtf_wda_katiehill.mp4", target, frames, start=25)


def two_portraits(target: Path, frames: int, width: int = 320, height: int = 280) -> Path:
    """The portrait beside its mirror image."""
    with VideoWriter(target, 2 * width, height, FPS) as out:
        for frame in pan(frames, width, height):
            out.write(np.concatenate((frame, frame[:, ::-1]), 1))
    return target


def cut_sound(target: Path, start: float, duration: Fraction) -> Path:
    """A piece of the sample voice as FLAC."""
    with av.open(str(VOICE)) as source:
        rate = source.streams.audio[0].rate
        samples = np.concatenate([frame.to_ndarray() for frame in source.decode(audio=0)], 1)
        form = source.streams.audio[0].format.name
    first = round(start * rate)
    piece: Any = samples[:1, first : first + round(duration * rate)].copy()
    frame = av.AudioFrame.from_ndarray(piece, form, "mono")
    frame.sample_rate = rate
    with av.open(str(target), "w") as out:
        stream = out.add_stream("flac", rate=rate, layout="mono", format="s16")
        resampler = av.AudioResampler("s16", "mono", rate, 4096)
        for block in (*resampler.resample(frame), *resampler.resample(None)):
            out.mux(stream.encode(block))
        out.mux(stream.encode(None))
    return target
