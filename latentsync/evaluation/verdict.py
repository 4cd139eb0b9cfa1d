"""What a score by landmarks says, in words that are true for silence, little speech and missing faces too."""

from dataclasses import dataclass

import numpy as np

from .landmark_sync import MIN_SECONDS, Score

OPEN = 0.03
"""Distance of the inner lips over the face's height from which a mouth counts as open: closed ones measure 0.002 to
0.018."""
SHORTEST = 0.3
"""Seconds of silence with a face from which its mouth is spoken of."""
SEEN = 0.9
"""Share of the frames with a face from which nothing is said about the others."""
AT_REST, AT_WORK = 0.99, 0.01


@dataclass(frozen=True)
class Heard:
    """Seconds with a face: of speech, of silence, and of silence with an open mouth. seen: with a face, of all."""

    speech: float
    silence: float
    open: float
    seen: float
    all: float


def heard(score: Score) -> Heard:
    """Where the speech was not known (Score.rest is None) all counts as speech."""
    rest = np.zeros(len(score.opening)) if score.rest is None else score.rest
    at_rest, at_work = score.present & (rest > AT_REST), score.present & (rest < AT_WORK)
    opened = at_rest & (np.nan_to_num(score.opening) > OPEN)
    counts = (flags.sum() / score.fps for flags in (at_work, at_rest, opened, score.present))
    return Heard(*(float(count) for count in counts), all=len(score.opening) / score.fps)


def verdict(score: Score) -> str:
    """One line: whether lips and speech match, and what limits that."""
    found = heard(score)
    said = [_match(score, found)]
    if found.silence >= SHORTEST and found.open > found.silence / 2:
        said.append(f"the mouth is open in {found.open:.1f} of {found.silence:.1f} s of silence")
    if found.seen < SEEN * found.all:
        said.append(f"a face was found in {found.seen:.1f} of {found.all:.1f} s")
    return "; ".join(said)


def _match(score: Score, found: Heard) -> str:
    if found.speech < MIN_SECONDS:
        return f"Too little speech to tell: {found.speech:.1f} s of it with a face"
    if not score.significant:
        return "No clear match; this could be chance"
    if abs(score.offset) <= 1:
        return "In sync while there is speech" if found.silence >= SHORTEST else "In sync"
    frames, ms = abs(score.offset), abs(score.offset) / score.fps * 1000
    return f"Audio {frames} frames ({ms:.0f} ms) {'late' if score.offset > 0 else 'early'}"
