"""Of two people, one of whom is heard, who is taken for the speaker? And what the bands of a voice say of the lips.

python -m benchmarks.speakers MEDIA face_landmarker.task [--seconds 3 5 10] [--fit] [--voices]

MEDIA: a folder with MANIFEST.csv (file, note that starts with the person's number, use). Each stretch of each clip that
speaks is put beside every other person: one who speaks too (to another sound), and one who does not speak. Each pair is
asked with the sound, with a third person's, and without any. Held out: both are none of the people of --fit.
--voices: two people of one clip say two voices in one pass, by the built-in model. How alike are a mouth's openings and
those where this person speaks alone, with the same voice and with the other's? And does a listener stay as it was?
"""

import argparse
import csv
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from latentsync.audio.load import load_audio
from latentsync.audio.pauses import spoken
from latentsync.face import speaker
from latentsync.face.choose import choose
from latentsync.face.detect import FaceFinder, mouth_opening
from latentsync.face.track import FaceTrack, Tracks, find_tracks
from latentsync.media import output
from latentsync.media.probe import probe
from latentsync.media.reader import VideoReader
from latentsync.media.writer import VideoWriter
from latentsync.pipeline import Models, Speaker, lipsync_file, load_models
from latentsync.timeline import fit_timeline, frames_of_spans

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


PAIR = ("clips/grid/pD_lwbsza.mpg", "clips/grid/pA_brbk7n.mpg")
"""Who sits at the left and at the right; neither says what is said here."""
VOICES = (Fraction(0), "audio/jfk_1961_11s.flac", 0.3), (Fraction(6, 5), "audio/latentsync_demo2_audio.wav", 0.5)
"""Of the left and the right one: when it begins in the clip, the recording, and from which second of that; 2 s each."""


class Kept(VideoWriter):
    """Keeps the frames as they are before they are encoded."""

    frames_written: list[np.ndarray]

    def write(self, frame: np.ndarray) -> None:
        Kept.frames_written.append(frame.copy())
        super().write(frame)


def said(clip: Path, speakers: list[Speaker], models: Models, tracks: dict[int, Tracks]) -> np.ndarray:
    """The frames (F, H, W, 3) in which they speak, as they are before they are encoded."""
    Kept.frames_written = []
    lipsync_file(clip, speakers, clip.with_name("out.mp4"), models=models, tracks=tracks, cache=clip.parent / "cache")
    return np.stack(Kept.frames_written)


def openings(frames: np.ndarray, shown: np.ndarray, track: FaceTrack, finder: FaceFinder) -> np.ndarray:
    """(F,) inner lips' distance over the face's height, found again near the source's face; NaN where it is not."""
    found = np.full(len(frames), np.nan)
    for i, frame in enumerate(frames):
        (x0, y0), (x1, y1) = (edge(track.landmarks[shown[i]], axis=0).tolist() for edge in (np.min, np.max))
        face = finder.refine(frame, (x0, y0 - 0.3 * (y1 - y0), x1, y1))
        found[i] = np.nan if face is None else mouth_opening(face.points68)
    return found


def two_voices(media: Path, folder: Path) -> Iterator[str]:
    models, clip, tracks = load_models("nano"), folder / "two.mp4", {}
    sides = []
    for name in PAIR:
        with VideoReader.open(media / name) as reader:
            sides.append(np.stack(list(reader.read(range(reader.info.frames)))))
    both = np.concatenate(sides, 2)
    with VideoWriter(clip, both.shape[2], both.shape[1], Fraction(25)) as writer:
        for frame in both:
            writer.write(frame)
    speakers = []
    for side, (start, recording, first) in zip(("left", "right"), VOICES, strict=True):
        voice = folder / f"{side}.wav"
        wave = load_audio(media / recording, Fraction(first), Fraction(2)).waveform.numpy()
        write_wav(voice, wave)
        speakers.append(Speaker(side, voice, start))
    output.VideoWriter = Kept  # pyright: ignore
    together = said(clip, speakers, models, tracks)
    with VideoReader.open(clip) as reader:
        source = np.stack(list(reader.read(range(reader.info.frames))))
    timeline = fit_timeline(probe(clip).fps, len(source), Fraction(len(together), 25), "pingpong", still=False)
    shown = np.fromiter(timeline.source_indices(), int)[: len(together)]
    middle = source.shape[2] // 2
    for one, other in (speakers, speakers[::-1]):
        track = choose(next(iter(tracks.values())), one.face)
        runs = frames_of_spans(spoken(one.heard()), timeline.fps, timeline.frames)
        speaks = np.zeros(len(together), bool)
        for start, stop in runs:
            speaks[start:stop] = True
        curves = [openings(together, shown, track, models.finder)]
        for voice in (one.voice, other.voice):
            alone = said(clip, [Speaker(one.face, voice, one.start)], models, tracks)
            curves.append(openings(alone, shown, track, models.finder))
        count = min(map(len, curves))
        used = speaks[:count] & np.all([np.isfinite(curve[:count]) for curve in curves], axis=0)
        own, strange = (np.corrcoef(curves[0][:count][used], curve[:count][used])[0, 1] for curve in curves[1:])
        half = slice(None, middle) if one.face == "left" else slice(middle, None)
        quiet = np.flatnonzero(~speaks)
        changed = int((together[quiet][:, :, half] != source[shown[quiet]][:, :, half]).any(-1).sum())
        yield (
            f"{one.face:5}: r {own:.2f} with its own voice alone, {strange:.2f} with the other's, {used.sum()} frames; "
            f"silent in {len(quiet)} frames, of which {changed} pixels of its half changed"
        )


def write_wav(path: Path, wave: np.ndarray) -> None:
    with av.open(str(path), "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.rint(wave.clip(-1, 1) * 32767).astype(np.int16)[None], "s16", "mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("media", type=Path)
    ask.add_argument("model", type=Path)
    ask.add_argument("--seconds", type=float, nargs="+", default=[3.0, 5.0, 10.0], help="lengths of the stretches")
    ask.add_argument("--fit", action="store_true", help="print the weights of the bands instead")
    ask.add_argument("--voices", action="store_true", help="two voices in one pass instead")
    given = ask.parse_args()
    if given.voices:
        with TemporaryDirectory() as folder:
            for line in two_voices(given.media, Path(folder)):
                print(line, flush=True)
        return
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
