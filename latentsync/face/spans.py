"""What happened to every frame, and why: runs of frames for the report."""

from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from .aligned import AlignedFace

SYNCED, BRIDGED, FADED, COVERED, PASSED = "synced", "bridged", "faded", "covered", "passed through"
STATES = (SYNCED, BRIDGED, FADED, COVERED, PASSED)
"""What can become of a frame: repainted; repainted where the face was not measured but in the frames around; repainted
in part; repainted but for what lies over the mouth; left as it is."""


@dataclass(frozen=True)
class Span:
    """Output frames start … stop-1. face: its number, or None where none is painted. reason: empty if synced."""

    start: int
    stop: int
    state: str
    reason: str = ""
    face: int | None = None

    def as_dict(self, fps: Fraction) -> dict[str, Any]:
        """With the times in seconds."""
        return asdict(self) | {"from_s": round(float(self.start / fps), 3), "to_s": round(float(self.stop / fps), 3)}


def spans(face: AlignedFace) -> list[Span]:
    """All frames of a clip, in order."""
    found: list[Span] = []
    track, opacity = face.track, face.opacity
    for i, shown in enumerate(face.source_indices.tolist()):
        state, reason = _state(face, i, shown, float(opacity[i]))
        number = None if state == PASSED else track.index
        last = found[-1] if found else None
        if last and (last.state, last.reason, last.face) == (state, reason, number):
            found[-1] = Span(last.start, i + 1, state, reason, number)
        else:
            found.append(Span(i, i + 1, state, reason, number))
    return found


def _state(face: AlignedFace, i: int, shown: int, opacity: float) -> tuple[str, str]:
    track = face.track
    if face.only is not None and not any(a <= i < b for a, b in face.only):
        return PASSED, "not asked for, or nothing is said"
    if face.segment_index[i] < 0:
        return PASSED, "the face is not in the picture"
    if not track.seen[shown]:
        return PASSED, "the picture hides the face for a moment (black frame or flash)"
    if shown in track.hidden:
        return PASSED, "something covers the mouth"
    turned = bool(face.facing[shown] < 0.999)
    if opacity <= 0:
        return PASSED, "the head is turned away"
    if shown in track.covers:
        return COVERED, "something covers part of the face; it stays on top"
    if opacity < 0.999:
        return FADED, "the head turns away" if turned else "it begins or ends here"
    if not track.measured[shown]:
        return BRIDGED, "the face was not found here, but just before and after"
    return SYNCED, ""
