"""Which of the faces that were found is meant."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from ..errors import NoFaceError, UserError
from .detect import FaceFinder
from .identity import Looks, embed, likeness, turned
from .speaker import openness, speaking
from .track import FaceTrack, Tracks

ALIKE = 0.45
"""How alike a photo and a face of the clip must be. Less than identity.SAME: who gives a photo expects that face. 0.3 %
of the pairs among 149 people reach it."""
VIEWS = 6
"""Frames of each face that are held against a photo."""
BYSTANDER = 0.6
"""Share of the largest face's height in a photo up to which another face in it is somebody in the background."""


@dataclass(frozen=True, eq=False)
class Clues:
    """What "auto" and a photo are decided by, beside the tracks; see audio.clues.

    fps: of the frames. speech: (T,) float at 16 kHz from the first frame on, None where there is none. wanted: the
    looks of the face in the photo `name`. read: gives frames (H, W, 3) uint8 by their numbers.
    """

    fps: float = 25.0
    speech: np.ndarray | None = None
    wanted: np.ndarray | None = None
    name: str = ""
    read: Callable[[Iterable[int]], Iterator[np.ndarray]] | None = None


def choose(tracks: Tracks, face: str, clues: Clues | None = None) -> FaceTrack:
    """The face asked for: "largest" (area times time), "left", "right", an index, a point "x,y,frame" in pixels, "auto"
    (who speaks), or, with clues of it, a photo. Raises UserError, listing the faces, where there is no such face."""
    faces, clues = tracks.faces, clues or Clues()
    if clues.wanted is not None:
        return _most_alike(tracks, clues)
    if face == "auto":
        return _speaker(tracks, clues)
    if face == "largest":
        return max(faces, key=_prominence)
    if face in ("left", "right"):
        return (min if face == "left" else max)(faces, key=lambda track: track.center[0])
    numbers: list[float] = []
    with suppress(ValueError):
        numbers = [float(part) for part in face.split(",")]
    if len(numbers) == 1 and numbers[0] in range(len(faces)):
        return faces[int(numbers[0])]
    if len(numbers) == 3:
        return _at_point(tracks, *numbers)
    raise NoFaceError(
        f'There is no face {face!r}; give "auto", "largest", "left", "right", a point "x,y,frame", a photo '
        f"or the number of one of the faces found: {describe(tracks)}."
    )


def _prominence(track: FaceTrack) -> float:
    return track.height**2 * float(track.present.sum())


def _speaker(tracks: Tracks, clues: Clues) -> FaceTrack:
    """Whose mouth goes with the sound; without one, whose moves most; where none does, the largest face."""
    if len(tracks.faces) == 1:
        return tracks.faces[0]
    sound = None if clues.speech is None else openness(clues.speech, clues.fps, tracks.frames)
    return max(tracks.faces, key=lambda track: (speaking(track, clues.fps, sound), _prominence(track)))


def looks_in(photo: np.ndarray, finder: FaceFinder, name: str) -> np.ndarray:
    """Looks, as identity.embed gives them, of the face in a (H, W, 3) uint8 picture: the largest one. UserError where
    there is none, or several of like size."""
    found = finder.detect(photo)
    if not found:
        raise UserError(f"There is no face in {name}; give a picture in which the person is seen from the front.")
    if len(found) > 1 and found[1].height > BYSTANDER * found[0].height:
        raise UserError(f"There are {len(found)} faces in {name}; cut out the one that is meant.")
    return embed(photo, found[0].points68)


def _most_alike(tracks: Tracks, clues: Clues) -> FaceTrack:
    wanted, alike = clues.wanted, [0.0] * len(tracks.faces)
    if wanted is not None and clues.read is not None:
        alike = [float(likeness(looks.mean, wanted)) for looks in _seen_looks(tracks.faces, clues.read)]
    best = int(np.argmax(alike))
    if alike[best] < ALIKE:
        raise NoFaceError(
            f"No face is like the one in {clues.name}: likeness must be {ALIKE:g} and is {describe(tracks, alike)}."
        )
    return tracks.faces[best]


def _seen_looks(faces: Sequence[FaceTrack], read: Callable[[Iterable[int]], Iterator[np.ndarray]]) -> Iterator[Looks]:
    """What each face looks like in its best frames. All frames are read in one pass."""
    picked = [best_frames(track, VIEWS) for track in faces]
    looks = [Looks.none() for _ in faces]
    numbers = sorted({i for frames in picked for i in frames})
    for i, frame in zip(numbers, read(numbers), strict=True):
        for track, frames, seen in zip(faces, picked, looks, strict=True):
            if i in frames:
                seen.add(embed(frame, track.landmarks[i]))
    yield from looks


def best_frames(track: FaceTrack, count: int) -> list[int]:
    """At most so many frames, spread over the time in which a face is seen: those in which it looks straightest."""
    seen = np.flatnonzero(track.seen & track.present)
    parts = np.array_split(seen, min(count, len(seen)))
    return [int(min(part[:: 1 + len(part) // 50], key=lambda i: abs(turned(track.landmarks[i])))) for part in parts]


def _at_point(tracks: Tracks, x: float, y: float, frame: float) -> FaceTrack:
    """The face nearest to a point, at most one face height away from it."""
    if frame not in range(tracks.frames):
        raise UserError(f"The point's frame {frame:g} is outside the clip, which has frames 0 to {tracks.frames - 1}.")
    i = int(frame)

    def distance(track: FaceTrack) -> float:
        points = track.landmarks[i]
        return float(np.linalg.norm(points.mean(0) - (x, y)) / np.ptp(points[:, 1]))

    near = [track for track in tracks.faces if track.present[i] and distance(track) <= 1]
    if not near:
        raise NoFaceError(
            f"No face near the point ({x:g}, {y:g}) in frame {i}; the faces found are {describe(tracks)}."
        )
    return min(near, key=distance)


def describe(tracks: Tracks, alike: Sequence[float] = ()) -> str:
    """One line that lists the faces found: index, height, place, frames; and how alike each is to another, if given."""
    lines = [
        f"{t.index} ({t.height:.0f} px high at {t.center[0]:.0f},{t.center[1]:.0f}, "
        f"in {int(t.present.sum())} of {tracks.frames} frames from frame {t.segments[0][0]})"
        for t in tracks.faces
    ]
    return "; ".join([f"{one:.2f} for {line}" for one, line in zip(alike, lines, strict=True)] if alike else lines)
