"""Lips that are closed in pauses (Settings.silence): how far, and how suddenly?

python -m benchmarks.rest MEDIA

Four clips say a speech with a pause of two seconds between two words, with silence "keep" and "close". Openings (the
inner lips' distance over the face's height) are found again in the made frames. Step: the largest change from one frame
to the next while the lips close and open again, from a frame before the pause to half a second after its beginning, and
from half a second before its end to a frame after it; against the 95th percentile in the made speech, and in what the
clip itself shows.
"""

import argparse
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import torch

from latentsync.audio.load import load_audio
from latentsync.audio.mel import SAMPLE_RATE
from latentsync.face.detect import FaceFinder, mouth_opening
from latentsync.media.probe import probe
from latentsync.media.reader import VideoReader
from latentsync.pipeline import Models, Settings, lipsync, load_models

CLIPS = {
    "clips/latentsync_demo1.mp4": ("audio/latentsync_demo2_audio.wav", 0.5),
    "clips/latentsync_demo2.mp4": ("audio/jfk_1961_11s.flac", 0.3),
    "clips/obama_a_20s.mp4": ("audio/latentsync_demo3_audio.wav", 0.5),
    "clips/grid/pD_lwbsza.mpg": ("audio/latentsync_demo1_audio.wav", 0.5),
}
"""Each with a speech that is not its own, and from which second."""
SPOKEN, PAUSE, AROUND, QUIET = 1.0, 2.0, 0.5, 0.06
"""Seconds: of speech before (about) and after the pause; of the pause; in which lips close, and open; of what is quiet
between two words."""
LONGEST = 640


def speech(path: Path, start: float) -> tuple[torch.Tensor, float]:
    """(T,) at 16 kHz: speech, a pause, speech; and when the pause begins, which is where it is most quiet, in seconds.

    A pause within a word would ask for the step that is looked for."""
    sound = load_audio(path, Fraction(str(start)), Fraction(str(SPOKEN * 2.5))).waveform
    width = round(QUIET * SAMPLE_RATE)
    first, last = round(0.6 * SPOKEN * SAMPLE_RATE), round(1.4 * SPOKEN * SAMPLE_RATE)
    power = sound[first - width // 2 : last + width // 2].square().unfold(0, width, 1).mean(1)
    cut = first + int(power.argmin())
    parts = sound[:cut], torch.zeros(round(PAUSE * SAMPLE_RATE)), sound[cut : cut + round(SPOKEN * SAMPLE_RATE)]
    return torch.cat(parts), cut / SAMPLE_RATE


def frames_of(path: Path) -> tuple[np.ndarray, Fraction]:
    info = probe(path)
    count = min(info.frames, int((2 * SPOKEN + PAUSE) * info.fps))
    with VideoReader(info) as reader:
        frames = list(reader.read(range(count)))
    scale = min(1.0, LONGEST / max(frames[0].shape[:2]))
    size = tuple(2 * round(side * scale / 2) for side in frames[0].shape[1::-1])
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames]), info.fps


def openings(frames: np.ndarray, finder: FaceFinder) -> np.ndarray:
    """(F,) NaN where no face is found."""
    found = [finder.detect(frame) for frame in frames]
    return np.array([mouth_opening(faces[0].points68) if faces else np.nan for faces in found])


def measured(media: Path, models: Models) -> Iterator[str]:
    for clip, (recording, start) in CLIPS.items():
        frames, fps = frames_of(media / clip)
        sound, begins = speech(media / recording, start)
        ends = begins + PAUSE
        said = {}
        for silence in ("keep", "close"):
            settings = Settings(steps=1, guidance=1, silence=silence)
            made = lipsync(frames, sound, SAMPLE_RATE, fps, models=models, settings=settings).frames
            said[silence] = openings(made, models.finder)
        times = (np.arange(len(said["close"])) + 0.5) / float(fps)
        pause = (times > begins + 0.3) & (times < ends - 0.32)
        between = times[1:] - 0.5 / float(fps)
        inside = np.minimum(between - begins, ends - between)
        near = (inside > -1.5 / float(fps)) & (inside <= AROUND)
        talk = (between < begins) | (between > ends)
        steps = {silence: np.abs(np.diff(curve)) for silence, curve in said.items()}
        keep, close = (100 * float(np.nanmedian(said[silence][pause])) for silence in ("keep", "close"))
        kept, step = (100 * np.nanmax(steps[silence][near]) for silence in ("keep", "close"))
        usual = 100 * np.nanpercentile(steps["keep"][talk], 95)
        filmed = 100 * np.nanpercentile(np.abs(np.diff(openings(frames, models.finder))), 95)
        opening = f"{clip}: opening {keep:.1f} -> {close:.1f} %, step {kept:.1f} -> {step:.1f} %"
        yield f"{opening}, in speech {usual:.1f} %, in the clip {filmed:.1f} %"


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("media", type=Path)
    for line in measured(ask.parse_args().media, load_models("nano")):
        print(line, flush=True)


if __name__ == "__main__":
    main()
