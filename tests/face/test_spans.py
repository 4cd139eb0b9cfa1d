"""What became of every frame of made-up tracks, and why."""

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentsync.face.aligned import AlignedFace
from latentsync.face.spans import BRIDGED, COVERED, FADED, PASSED, STATES, SYNCED, Span, spans
from latentsync.face.track import _track, absent
from latentsync.face.tracklet import Tracklet
from latentsync.timeline import Timeline, fit_timeline

from .test_opacity import head

FPS = Fraction(25)
COVER = np.full((96, 96), 200, np.uint8)


def track(frames=30, gaps=(), cuts=(), yaws=None, index=0):
    seen = [i for i in range(frames) if not any(a <= i < b for a, b in gaps)]
    yaws = yaws or [0] * frames
    points = {i: head(yaws[i], size=60, place=(120 + 0.5 * i, 100)).astype(np.float32) for i in seen}
    return _track(index, Tracklet(points), frames, tuple(cuts), (320, 240))


def told(face):
    return [(span.start, span.stop, span.state) for span in spans(face)]


def clip(made, only=None):
    return AlignedFace(made, Timeline(FPS, made.frames, made.frames, "trim"), 64, only=only)


def hidden_from(made, start, stop):
    """Bridged frames that show something else."""
    seen = made.present.copy()
    seen[start:stop] = False
    return replace(made, seen=seen)


TABLE = [
    (track(), None, [(0, 30, SYNCED)]),
    (
        track(gaps=[(12, 20)]),
        None,
        [(0, 9, SYNCED), (9, 12, FADED), (12, 20, PASSED), (20, 23, FADED), (23, 30, SYNCED)],
    ),
    (track(gaps=[(0, 6)]), None, [(0, 6, PASSED), (6, 9, FADED), (9, 30, SYNCED)]),
    (track(gaps=[(12, 14)]), None, [(0, 12, SYNCED), (12, 14, BRIDGED), (14, 30, SYNCED)]),
    (track(gaps=[(12, 20)], cuts=[12]), None, [(0, 12, SYNCED), (12, 20, PASSED), (20, 23, FADED), (23, 30, SYNCED)]),
    (track(cuts=[10]), None, [(0, 30, SYNCED)]),
    (hidden_from(track(gaps=[(12, 14)]), 12, 14), None, [(0, 12, SYNCED), (12, 14, PASSED), (14, 30, SYNCED)]),
    (
        replace(track(), covers=dict.fromkeys(range(5, 9), COVER)),
        None,
        [(0, 5, SYNCED), (5, 9, COVERED), (9, 30, SYNCED)],
    ),
    (
        replace(track(), covers=dict.fromkeys(range(5, 12), COVER), hidden=frozenset({7, 8})),
        None,
        [(0, 5, SYNCED), (5, 7, COVERED), (7, 9, PASSED), (9, 12, COVERED), (12, 30, SYNCED)],
    ),
    (track(), ((5, 20),), [(0, 5, PASSED), (5, 8, FADED), (8, 17, SYNCED), (17, 20, FADED), (20, 30, PASSED)]),
    (
        track(),
        ((0, 10), (20, 30)),
        [(0, 7, SYNCED), (7, 10, FADED), (10, 20, PASSED), (20, 23, FADED), (23, 30, SYNCED)],
    ),
    (track(), (), [(0, 30, PASSED)]),
    (track(yaws=[70] * 30), None, [(0, 30, PASSED)]),
    (track(yaws=[50] * 30), None, [(0, 30, FADED)]),
    (track(), ((5, 7),), [(0, 5, PASSED), (5, 7, FADED), (7, 30, PASSED)]),
    (track(yaws=[30] * 30), None, [(0, 30, SYNCED)]),
    (absent(30, (320, 240)), None, [(0, 30, PASSED)]),
]


@pytest.mark.parametrize(("made", "only", "wanted"), TABLE)
def test_table(made, only, wanted):
    assert told(clip(made, only)) == wanted


def reasons(face):
    return {span.state: span.reason for span in spans(face)}


def test_reasons():
    assert reasons(clip(track(gaps=[(12, 20)])))[PASSED] == "the face is not in the picture"
    assert reasons(clip(track(gaps=[(12, 20)])))[FADED] == "it begins or ends here"
    assert reasons(clip(track(gaps=[(12, 20)])))[SYNCED] == ""
    assert "just before and after" in reasons(clip(track(gaps=[(12, 14)])))[BRIDGED]
    assert "flash" in reasons(clip(hidden_from(track(gaps=[(12, 14)]), 12, 14)))[PASSED]
    assert "not asked for" in reasons(clip(track(), ((5, 20),)))[PASSED]
    assert "turned away" in reasons(clip(track(yaws=[70] * 30)))[PASSED]
    assert "stays on top" in reasons(clip(replace(track(), covers={4: COVER})))[COVERED]
    assert "covers the mouth" in reasons(clip(replace(track(), covers={4: COVER}, hidden=frozenset({4}))))[PASSED]


def test_the_face_s_number_is_told_where_it_is_painted():
    for span in spans(clip(track(gaps=[(12, 20)], index=3))):
        assert span.face == (None if span.state == PASSED else 3)


def test_a_head_that_turns_away_and_back():
    yaws = [0] * 10 + [6 * i for i in range(13)] + [72] * 6 + [72 - 6 * i for i in range(13)] + [0] * 8
    states = [state for _, _, state in told(clip(track(50, yaws=yaws)))]
    assert states == [SYNCED, FADED, PASSED, FADED, SYNCED]


def test_spans_follow_the_order_in_which_frames_show():
    timeline = Timeline(FPS, 45, 30, "loop")
    made = replace(track(), covers={2: COVER, 3: COVER})
    assert told(AlignedFace(made, timeline, 64)) == [
        *((0, 2, SYNCED), (2, 4, COVERED), (4, 32, SYNCED), (32, 34, COVERED), (34, 45, SYNCED))
    ]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 39), st.integers(1, 9)), max_size=3),
    st.lists(st.integers(1, 39), max_size=2),
    st.none() | st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), max_size=2),
    st.sets(st.integers(0, 39), max_size=6),
    st.sampled_from(["loop", "pingpong", "hold", "trim"]),
    st.integers(1, 90),
)
def test_every_frame_has_one_span(gaps, cuts, only, covers, fit, frames):
    gaps = [(a, a + n) for a, n in gaps]
    if all(any(a <= i < b for a, b in gaps) for i in range(40)):
        gaps = []
    timeline = fit_timeline(FPS, 40, frames / FPS, fit)
    only = None if only is None else tuple((min(a, timeline.frames), min(a + n, timeline.frames)) for a, n in only)
    made = replace(track(40, gaps, sorted(set(cuts))), covers=dict.fromkeys(covers, COVER))
    face = AlignedFace(made, timeline, 64, only=only)
    found = spans(face)
    assert [i for span in found for i in range(span.start, span.stop)] == list(range(timeline.frames))
    assert all((a.state, a.reason, a.face) != (b.state, b.reason, b.face) for a, b in pairwise(found))
    for span in found:
        painted = face.opacity[span.start : span.stop] > 0
        assert painted.all() if span.state != PASSED else True
        assert span.state != SYNCED or (face.opacity[span.start : span.stop] == 1).all()
        assert span.state in STATES


def test_times():
    found = [Span(0, 15, SYNCED, "", 0), Span(15, 30, PASSED, "why"), Span(30, 60, SYNCED, "", 0)]
    assert found[1].as_dict(Fraction(30000, 1001)) == {
        **{"start": 15, "stop": 30, "state": PASSED, "reason": "why", "face": None},
        **{"from_s": 0.5, "to_s": 1.001},
    }
