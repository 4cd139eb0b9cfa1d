"""Of two people, one of whom is heard, who is taken for the speaker? And what the bands of a voice say of the lips.

python -m benchmarks.speakers MEDIA face_landmarker.task [--seconds 3 5 10] [--fit]

MEDIA: a folder with MANIFEST.csv (file, note that starts with the person's number, use). Each stretch of each clip that
speaks is put beside every other person: one who speaks too (to another sound), and one who does not speak. Each pair is
asked with the sound, with a third person's, and without any. Held out: both are none of the people of --fit.
"""

import argparse
import csv
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from latentsync.audio.load import load_audio
from latentsync.face import speaker
from latentsync.face.choose import choose
from latentsync.face.detect import FaceFinder
from latentsync.face.track import FaceTrack, find_tracks
from latentsync.media.reader import VideoReader

SILENT = {
    "edge/face_not_speaking_2.4s.mp4": "E1",
    "edge/hand_over_mouth_23.976fps.mp4": "E2",
    "edge/small_face_noaudio_noduration.mkv": "E3",
    "edge/looking_down_not_speaking_720p30.mp4": "E4",
    "edge/head_turn_sideways_12fps.mp4": "E5",
}
"""Clips of people who do not speak."""
FITTED = {"P01", "P02", "P03", "P09", "P10", "P11", "P12", "P14", "P16", "P18"}
"""People whose clips may train what is shipped, less every second one of the GRID corpus."""
LONGEST, RATE = 20, 25.0


@dataclass(frozen=True)
class Person:
    """One clip of a person, at RATE frames a second."""

    name: str
    track: FaceTrack
    sound: np.ndarray | None

    @property
    def seconds(self) -> float:
        return self.track.frames / RATE

    def part(self, start: float, seconds: float) -> FaceTrack:
        picked = slice(round(start * RATE), round((start + seconds) * RATE))
        present = self.track.present[picked]
        runs = np.flatnonzero(np.diff(present.astype(int), prepend=0, append=0)).reshape(-1, 2).tolist()
        arrays = {name: getattr(self.track, name)[picked] for name in ("points", "landmarks", "present", "seen")}
        return replace(self.track, **arrays, segments=tuple(map(tuple, runs)), cuts=())

    def heard(self, start: float, seconds: float) -> np.ndarray:
        assert self.sound is not None
        return self.sound[round(start * speaker.RATE) : round((start + seconds) * speaker.RATE)]


def people(media: Path, finder: FaceFinder) -> Iterator[Person]:
    """Every clip; of the GRID speaker with many clips every twelfth."""
    with (media / "MANIFEST.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    many = [row["file"] for row in rows if "grid_s1" in row["file"]]
    for row in rows:
        number = re.match(r"P\d\d", row["note"])
        name = SILENT.get(row["file"]) or (number.group() if number and row["use"] == "clip" else None)
        if not name or row["file"] in set(many) - set(many[::12]):
            continue
        with VideoReader.open(media / row["file"]) as reader:
            info = reader.info
            frames = min(info.frames, int(LONGEST * info.fps))
            picked = [int(i / RATE * info.fps) for i in range(int(frames / info.fps * RATE))]
            track = choose(find_tracks(reader.read(picked), finder), "largest")
        silent = row["file"] in SILENT
        yield Person(name, track, None if silent else load_audio(info.path, info.start).waveform.numpy())


def pairs(everybody: list[Person], seconds: float) -> Iterator[tuple[tuple[str, str, str], bool]]:
    """Kind of second person, of sound, and of people; and whether the first, who is heard, was taken."""
    speakers = [person for person in everybody if person.sound is not None and person.seconds >= seconds]
    for n, one in enumerate(speakers):
        for start in np.arange(0, one.seconds - seconds + 1e-6, seconds):
            mine, frames = one.part(start, seconds), round(seconds * RATE)
            sound = speaker.openness(one.heard(start, seconds), RATE, frames)
            third = next(person for person in speakers[n + 1 :] + speakers if person.name != one.name)
            strange = speaker.openness(third.heard(third.seconds - seconds, seconds), RATE, frames)
            for other in everybody:
                if other.name in (one.name, third.name) or other.seconds < seconds:
                    continue
                theirs = other.part(max(0, other.seconds - seconds), seconds)
                kinds = ["all people"] + ["held out"] * (not {one.name, other.name} & FITTED)
                for kind, heard in (("its sound", sound), ("another's sound", strange), ("no sound", None)):
                    first, second = (speaker.speaking(track, RATE, heard) for track in (mine, theirs))
                    for group in kinds:
                        who = "beside a speaker" if other.sound is not None else "beside a silent one"
                        yield (who, kind, group), first > second


def fit(everybody: list[Person]) -> np.ndarray:
    """Weights of speaker.BANDS by least squares against the lips of the people to fit; that of the third is 1."""
    sounds, lips = [], []
    for person in everybody:
        if person.name in FITTED and person.sound is not None:
            segments = [(0, person.track.frames)]
            levels = speaker._levels(person.sound, RATE, person.track.frames)
            rhythms = [speaker._syllables(speaker._clamped(level), segments, RATE) for level in levels]
            moves = speaker._syllables(speaker._opening(person.track.landmarks), segments, RATE)
            sounds.append(np.stack([rhythm / rhythm.std() for rhythm in rhythms], 1))
            lips.append(moves / moves.std())
    weights = np.linalg.lstsq(np.concatenate(sounds), np.concatenate(lips), rcond=None)[0]
    return weights / weights[2]


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("media", type=Path)
    ask.add_argument("model", type=Path)
    ask.add_argument("--seconds", type=float, nargs="+", default=[3.0, 5.0, 10.0], help="lengths of the stretches")
    ask.add_argument("--fit", action="store_true", help="print the weights of the bands instead")
    given = ask.parse_args()
    with FaceFinder(given.model) as finder:
        everybody = list(people(given.media, finder))
    if given.fit:
        print(fit(everybody).round(2))
        return
    for seconds in given.seconds:
        right: dict[tuple[str, str, str], list[bool]] = defaultdict(list)
        for group, taken in pairs(everybody, seconds):
            right[group].append(taken)
        print(f"{seconds:g} s: pairs in which the one who is heard, or moves, was taken")
        for (who, kind, group), answers in sorted(right.items()):
            print(f"  {who:20} {kind:16} {group:11} {100 * np.mean(answers):6.1f} % of {len(answers)}")


if __name__ == "__main__":
    main()
