"""Which of the faces that were found is meant."""

from contextlib import suppress

import numpy as np

from ..errors import UserError
from .track import FaceTrack, Tracks


def choose(tracks: Tracks, face: str) -> FaceTrack:
    """The face asked for: "largest" (area times time), "left", "right", an index, or a point "x,y,frame" in pixels.
    Raises UserError, listing the faces, where there is no such face."""
    faces = tracks.faces
    if face == "largest":
        return max(faces, key=lambda track: track.height**2 * track.present.sum())
    if face in ("left", "right"):
        return (min if face == "left" else max)(faces, key=lambda track: track.center[0])
    numbers: list[float] = []
    with suppress(ValueError):
        numbers = [float(part) for part in face.split(",")]
    if len(numbers) == 1 and numbers[0] in range(len(faces)):
        return faces[int(numbers[0])]
    if len(numbers) == 3:
        return _at_point(tracks, *numbers)
    raise UserError(
        f'There is no face {face!r}; give "largest", "left", "right", a point "x,y,frame" '
        f"or the number of one of the faces found: {describe(tracks)}."
    )


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
        raise UserError(f"No face near the point ({x:g}, {y:g}) in frame {i}; the faces found are {describe(tracks)}.")
    return min(near, key=distance)


def describe(tracks: Tracks) -> str:
    """One line that lists the faces found: index, height, place, frames."""
    return "; ".join(
        f"{t.index} ({t.height:.0f} px high at {t.center[0]:.0f},{t.center[1]:.0f}, "
        f"in {int(t.present.sum())} of {tracks.frames} frames from frame {t.segments[0][0]})"
        for t in tracks.faces
    )
