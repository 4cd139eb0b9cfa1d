"""Recordings of one person: what of them can be trained on, and what is wrong with them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor

from ...audio.load import Rate, is_silent, load_audio
from ...audio.mel import SAMPLE_RATE
from ...audio.pauses import pauses
from ...audio.whisper_features import SpeechFeatures, window_rows
from ...errors import UserError
from ...evaluation.landmark_sync import score_track
from ...face.aligned import AlignedFace
from ...face.choose import best_frames, choose
from ...face.identity import SAME, Looks, embed, likeness
from ...face.opacity import facing
from ...face.track import FaceTrack, Tracks, find_tracks
from ...media.source import Source, open_source
from ...settings import Settings
from ...timeline import Cut
from ...weights.bundle import Models
from ..progress import Pace
from ..task import Report

ENOUGH, BEST = 12.0, 60.0
"""Seconds of speech that a model of a person needs, and from which more changes little."""
MOST = 180.0
"""Seconds of speech that are used; more takes only longer."""
SMALL = 0.6
"""Height of a face, brows to chin, over that which it has in the network's crop: smaller ones are enlarged, soft."""
FACE_IN_CROP = 96 / 256
SOFT = 0.18
"""Fine detail (see `detail`) below which the mouth is out of focus, or the video compressed until no teeth show. Of
twelve real clips eleven have 0.27 to 0.49, and 0.09 to 0.15 after a blur that spreads a pixel of the crop over nine."""
OFTEN = 0.5
"""Share of a clip in which the face may be turned away or covered."""
BLOCK = 16
"""Frames that are kept together where a clip is thinned out."""
COMPANY, BESIDE = 0.1, 0.5
"""Another face counts from this share of the clip on, and from this share of the person's height."""


@dataclass(frozen=True)
class Clip:
    """The usable frames of one recording, N of them.

    numbers: (N,) their numbers in it. crops: (N, R, R, 3) uint8. landmarks: (N, 68, 2) in pixels of the crop. audio:
    (N, 50, D) float16, the tokens of each. speech: seconds of them that are not pauses. late: frames by which the
    sound comes after the picture, which is made up for. looks: of the person. problems: sentences.
    """

    path: Path
    numbers: np.ndarray
    crops: np.ndarray
    landmarks: np.ndarray
    audio: Tensor
    speech: float
    late: int
    looks: Looks
    problems: tuple[str, ...] = ()


def read_clip(path: Path, face: str, models: Models, report: Report, room: float = MOST, most: int = 0) -> Clip:
    """Find the person and what they say. room: seconds of speech that are still wanted; most: frames of them that are
    kept, 0: all. UserError where nothing of it can be used at all."""
    with open_source(path, Settings(), Cut()) as (source, shown):
        if shown.still:
            raise UserError(f"{path} is a picture; give videos in which the person speaks.")
        speech = load_audio(path, shown.start).waveform
        if is_silent(speech):
            raise UserError(f"{path} is silent; give videos with the person's voice.")
        pace = Pace(f"looking for the face in {path.name}: frame", shown.frames, report)
        tracks = find_tracks(source.read(range(shown.frames)), models.finder, on_step=pace.update)
        track = choose(tracks, face)
        aligned = AlignedFace.from_track(track, models.resolution, shown.fps)
        usable = np.flatnonzero((aligned.opacity > 0.99) & track.measured)
        usable = usable[[int(i) not in track.covers and int(i) not in track.hidden for i in usable]]
        talking = said(speech, usable / float(shown.fps))
        usable = usable[: int(np.searchsorted(np.cumsum(talking), room * float(shown.fps))) + 1]
        seconds = float(talking[: len(usable)].sum()) / float(shown.fps)
        usable = thinned(usable, most)
        if not len(usable):
            raise UserError(f"{path} has no frame with a face seen from the front; film the person facing the camera.")
        score = score_track(track, speech, shown.fps)
        late = score.offset if score.significant else 0
        crops = np.stack([aligned.crop(f, int(i)) for i, f in zip(usable, source.read(usable.tolist()), strict=True)])
        looks = _looks(track, source)
    matrices = aligned.matrices()[usable]
    points = np.einsum("fij,fkj->fki", matrices[..., :2], track.landmarks[usable]) + matrices[:, None, :, 2]
    problems = [*_company(path, tracks, track, face), *_seen(path, track, crops, points, models.resolution)]
    heard = _tokens(speech, shown.fps, usable + late, models)
    return Clip(path, usable, crops, points.astype(np.float32), heard, seconds, late, looks, tuple(problems))


def check(clips: Sequence[Clip]) -> list[str]:
    """What speaks against training on these, a sentence each."""
    found = [problem for clip in clips for problem in clip.problems]
    seconds = sum(clip.speech for clip in clips)
    if seconds < ENOUGH:
        found.append(
            f"there are {seconds:.0f} s of speech with the face well seen; {ENOUGH:.0f} s are needed and {BEST:.0f} s"
            " are good, so record more."
        )
    for clip in clips[1:]:
        if likeness(clip.looks.mean, clips[0].looks.mean) < SAME:
            found.append(f"{clip.path} and {clips[0].path} show two people; a model is of one, so leave one out.")
    return found


def thinned(numbers: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the numbers: blocks of neighbors, evenly spread, and the end of the clip whole, which is held
    out. most: 0 keeps all."""
    if not 0 < most < len(numbers):
        return numbers
    end = min(len(numbers), max(BLOCK, most // 6 // BLOCK * BLOCK))
    begin = numbers[: len(numbers) - end]
    count = max(1, (most - end) // BLOCK)
    starts = np.linspace(0, max(0, len(begin) - BLOCK), count).round().astype(int)
    kept = np.unique(np.concatenate([np.arange(start, min(len(begin), start + BLOCK)) for start in starts]))
    return np.concatenate([begin[kept], numbers[len(begin) :]])


def said(speech: Tensor, times: np.ndarray) -> np.ndarray:
    """(N,) bool: whether there is speech, not a pause, at these times in seconds."""
    inside = [(times >= start) & (times < stop) for start, stop in pauses(speech)]
    return ~np.any([*inside, times > len(speech) / SAMPLE_RATE], axis=0)


def detail(crop: np.ndarray, points68: np.ndarray) -> float:
    """How much of the contrast around the lips of a crop is fine detail: standard deviation of the difference from a
    blur of 1 % of the crop's side, over that of the gray values."""
    side = len(crop)
    left, top = np.floor(points68[48:].min(0)).astype(int).clip(0, side - 8)
    right, bottom = np.ceil(points68[48:].max(0)).astype(int).clip(8, side)
    gray = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY).astype(np.float32)
    fine = gray - cv2.GaussianBlur(gray, (0, 0), 0.01 * side)
    part = slice(top, max(bottom, top + 8)), slice(left, max(right, left + 8))
    return float(fine[part].std() / max(1.0, float(gray[part].std())))


def _tokens(speech: Tensor, rate: Rate, frames: np.ndarray, models: Models) -> Tensor:
    features = SpeechFeatures(speech, SAMPLE_RATE, models.whisper)
    rows = features.rows(0, features.length)
    first, last = max(0, int(frames[0])), max(0, int(frames[-1])) + 1
    places = window_rows(rate, first, last, features.length)
    return rows[places[(frames - first).clip(0)]].flatten(1, 2).half()


def _looks(track: FaceTrack, source: Source) -> Looks:
    looks, numbers = Looks.none(), sorted(best_frames(track, 5))
    for i, frame in zip(numbers, source.read(numbers), strict=True):
        looks.add(embed(frame, track.landmarks[i]))
    return looks


def _company(path: Path, tracks: Tracks, person: FaceTrack, face: str) -> Iterator[str]:
    if face != Settings.face:
        return  # somebody said who is meant
    for other in tracks.faces:
        share = float((other.present & person.present).mean())
        alone = float((other.present & ~person.present).mean())
        if other is not person and max(share, alone) > COMPANY and other.height > BESIDE * person.height:
            yield f"{path} shows several people; cut it so that only the person is seen, or choose the face."
            return


def _seen(path: Path, track: FaceTrack, crops: np.ndarray, points: np.ndarray, side: int) -> Iterator[str]:
    least = SMALL * FACE_IN_CROP * side
    if track.height < least:
        yield f"{path}: the face is {track.height:.0f} px high, brows to chin; {least:.0f} are needed, so film nearer."
    every = range(0, len(crops), max(1, len(crops) // 50))
    fine = float(np.median([detail(crops[i], points[i]) for i in every]))
    if fine < SOFT:
        yield (
            f"{path}: the mouth is out of focus or too strongly compressed (detail {fine:.2f}, {SOFT:g} is needed);"
            " film it sharp, in good light."
        )
    present = track.present
    away = float((facing(track)[present] < 1).mean())
    if away > OFTEN:
        yield f"{path}: the head is turned away in {away:.0%} of the time; film the person facing the camera."
    covered = len(track.covers.keys() | track.hidden) / max(1, int(present.sum()))
    if covered > OFTEN:
        yield f"{path}: something covers the face in {covered:.0%} of the time; film the mouth free."
