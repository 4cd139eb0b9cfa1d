from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentsync.errors import UserError
from latentsync.settings import FITS
from latentsync.timeline import (
    Timeline,
    Window,
    fit_timeline,
    frames_of_spans,
    joined_runs,
    parse_spans,
    typed_seconds,
    windows,
)

RATES = [Fraction(r) for r in (16, 18, 24, 25, 30, 50, 60)] + [Fraction(24000, 1001), Fraction(30000, 1001)]
AUDIO_LED = ("loop", "pingpong", "hold")
rates = st.sampled_from(RATES)
fits = st.sampled_from(FITS)
counts = st.integers(1, 400)


@pytest.mark.parametrize(
    ("seconds", "fps", "frames"),
    [
        ("9.6", 25, 240),  # the reference gives 242
        ("9.61", 25, 241),
        ("0.04", 25, 1),
        ("0.041", 25, 2),
        ("0", 25, 1),
        ("0.001", 25, 1),
        ("1", Fraction(30000, 1001), 30),
        ("1.001", Fraction(30000, 1001), 30),
        ("1.0011", Fraction(30000, 1001), 31),
        ("10", Fraction(24000, 1001), 240),
        ("95", 60, 5700),
        ("7200", Fraction(30000, 1001), 215785),
    ],
)
def test_audio_length_to_frames(seconds, fps, frames):
    for fit in AUDIO_LED:
        assert fit_timeline(Fraction(fps), 75, Fraction(seconds), fit).frames == frames
    for fit in FITS:
        assert fit_timeline(Fraction(fps), 1, Fraction(seconds), fit, still=True).frames == frames


@pytest.mark.parametrize("fps", RATES)
@pytest.mark.parametrize("fit", FITS)
def test_exact_lengths_for_every_count_and_rate(fps, fit):
    for n in range(1, 201):
        seconds = n / fps
        for source in (1, 2, 73, n, 300):
            line = fit_timeline(fps, source, seconds, fit)
            expected = {"trim": min(source, n), "silence": source}.get(fit, n)
            assert line.frames == expected
            assert line.time(0) == 0
            assert line.time(n) == Fraction(n * fps.denominator, fps.numerator)
            assert line.duration == expected / fps
        # one sample more of 48 kHz audio needs one frame more; one less does not need one less
        assert fit_timeline(fps, 1, seconds + Fraction(1, 48000), fit, still=True).frames == n + 1
        assert fit_timeline(fps, 1, seconds - Fraction(1, 48000), fit, still=True).frames == n


@pytest.mark.parametrize(
    ("fit", "source", "indices"),
    [
        ("pingpong", 4, [0, 1, 2, 3, 2, 1, 0, 1, 2, 3, 2]),
        ("pingpong", 2, [0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0]),
        ("pingpong", 1, [0] * 11),
        ("loop", 4, [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2]),
        ("loop", 1, [0] * 11),
        ("hold", 4, [0, 1, 2, 3, 3, 3, 3, 3, 3, 3, 3]),
        ("hold", 20, list(range(11))),
        ("pingpong", 20, list(range(11))),
        ("loop", 20, list(range(11))),
        ("trim", 4, [0, 1, 2, 3]),
        ("trim", 20, list(range(11))),
        ("silence", 4, [0, 1, 2, 3]),
        ("silence", 13, list(range(13))),
    ],
)
def test_source_order(fit, source, indices):
    line = fit_timeline(Fraction(25), source, Fraction(11, 25), fit)
    assert list(line.source_indices()) == indices
    assert list(line.source_indices(2, 4)) == indices[2:4]


def test_still_repeats_one_frame():
    for fit in FITS:
        assert list(fit_timeline(Fraction(25), 1, Fraction(1, 5), fit, still=True).source_indices()) == [0] * 5


@given(rates, counts, st.fractions(0, 30, max_denominator=48000), fits)
def test_every_frame_has_a_source(fps, source, seconds, fit):
    line = fit_timeline(fps, source, seconds, fit)
    indices = list(line.source_indices())
    assert len(indices) == line.frames >= 1
    assert all(0 <= i < source for i in indices)
    if fit == "pingpong":
        assert all(abs(a - b) == (source > 1) for a, b in pairwise(indices))
    if fit in AUDIO_LED:
        assert line.frames == 1 or (line.frames - 1) / fps < seconds <= line.frames / fps
    if fit == "trim":
        assert line.frames <= source


def test_outside_the_timeline():
    line = Timeline(Fraction(25), 3, 3, "trim")
    for i in (-1, 3):
        with pytest.raises(IndexError):
            line.source_index(i)


def test_unknown_fit_is_a_sentence():
    with pytest.raises(UserError, match=r"stretch.*pingpong"):
        fit_timeline(Fraction(25), 3, Fraction(1), "stretch")


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [
        (0, 16, [(0, 16, 0)]),
        (0, 32, [(0, 16, 0), (16, 32, 16)]),
        (0, 17, [(0, 16, 0), (1, 17, 16)]),
        (0, 40, [(0, 16, 0), (16, 32, 16), (24, 40, 32)]),
        (0, 5, [(0, 5, 0)]),
        (100, 101, [(100, 101, 100)]),
        (7, 30, [(7, 23, 7), (14, 30, 23)]),
        (3, 3, []),
    ],
)
def test_window_table(start, stop, expected):
    assert windows(start, stop) == [Window(*w) for w in expected]


@given(st.integers(0, 500), st.integers(1, 500), st.integers(1, 40))
def test_windows_cover_once(start, length, size):
    found = windows(start, start + length, size)
    kept = [i for w in found for i in range(w.keep, w.stop)]
    assert kept == list(range(start, start + length))
    assert all(start <= w.start <= w.keep < w.stop for w in found)
    if length >= size:
        assert all(w.stop - w.start == size for w in found)
    else:
        assert len(found) == 1


F = Fraction


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("", ()),
        (" , ;", ()),
        ("1.5-4", ((F(3, 2), F(4)),)),
        ("0-0.1", ((F(0), F(1, 10)),)),
        ("10-", ((F(10), None),)),
        (" 1 - 2 ; 3-4,", ((F(1), F(2)), (F(3), F(4)))),
        ("3-4, 1-2", ((F(1), F(2)), (F(3), F(4)))),
        ("1-5, 2-3", ((F(1), F(5)), (F(2), F(3)))),
        ("1:20-", ((F(80), None),)),
        ("1:02:03.25-2:00:00", ((F(3723.25), F(7200)),)),
        (".5-1.", ((F(1, 2), F(1)),)),
        ("0:5-0:90", ((F(5), F(90)),)),
        ("1-2, 1-", ((F(1), F(2)), (F(1), None))),
    ],
)
def test_spans_are_read(text, spans):
    assert parse_spans(text) == spans


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "1",
        "-2",
        "-",
        "2-1",
        "1-1",
        "1--2",
        "1-2-3",
        "1-2 3-4",
        "1:2:3:4-",
        "1:-2",
        "1.5:2-9",
        "1-2,5",
        "a-b",
        "1e3-",
        ".",
        ".-1",
        "1-.",
        "0-nan",
        "1:30-1:20",
    ],
)
def test_other_spans_are_one_sentence(text):
    with pytest.raises(UserError, match=r"start-end in seconds or minutes:seconds") as caught:
        parse_spans(text)
    assert "\n" not in str(caught.value)


times = st.integers(0, 400_000).map(lambda n: F(n, 1000))


def clock(seconds, minutes):
    whole, rest = divmod(seconds, 60)
    text = f"{float(rest if minutes else seconds):.3f}"
    return f"{whole}:{text}" if minutes else text


@given(st.lists(st.tuples(times, times, st.booleans(), st.booleans()), max_size=6), st.sampled_from([",", "; ", " , "]))
def test_spans_that_were_written_are_those_that_are_read(given_spans, between):
    spans = [(a, None if open_end else a + length + F(1, 1000)) for a, length, open_end, _ in given_spans]
    parts = [
        f"{clock(a, minutes)}-{'' if b is None else clock(b, minutes)}"
        for (a, b), (_, _, _, minutes) in zip(spans, given_spans, strict=True)
    ]
    assert parse_spans(between.join(parts)) == tuple(sorted(spans, key=lambda span: span[0]))


@pytest.mark.parametrize(
    ("text", "fps", "frames", "runs"),
    [
        ("", 25, 100, ()),
        ("1-2", 25, 100, ((25, 50),)),
        ("1-", 25, 100, ((25, 100),)),
        ("1-9", 25, 100, ((25, 100),)),
        ("5-9", 25, 100, ()),
        ("4-", 25, 100, ()),
        ("0-1, 1-2", 25, 100, ((0, 50),)),
        ("0-1, 1.04-2", 25, 100, ((0, 25), (26, 50))),
        ("2-3, 0-1", 25, 100, ((0, 25), (50, 75))),
        ("0-3, 1-2", 25, 100, ((0, 75),)),
        ("1-1.01", 25, 100, ()),  # less than half a frame
        ("1-2", F(30000, 1001), 100, ((30, 60),)),
        ("1:00-", F(30000, 1001), 2000, ((1798, 2000),)),
    ],
)
def test_frames_of_spans(text, fps, frames, runs):
    assert frames_of_spans(parse_spans(text), F(fps), frames) == runs


@given(st.lists(st.tuples(times, st.none() | times), max_size=6), rates, counts)
def test_a_frame_belongs_to_a_span_by_the_time_of_its_start(spans, fps, frames):
    spans = [(a, None if length is None else a + length) for a, length in spans]
    runs = frames_of_spans(spans, fps, frames)
    inside = {i for a, b in runs for i in range(a, b)}
    assert len(inside) == sum(b - a for a, b in runs)  # none twice
    assert all(b < c for (_, b), (c, _) in pairwise(runs))
    for i in range(frames):
        wanted = any(round(a * fps) <= i and (b is None or i < round(b * fps)) for a, b in spans)
        assert (i in inside) == wanted
        half = F(1, 2) / fps
        if any(a + half < i / fps and (b is None or i / fps + half < b) for a, b in spans):
            assert i in inside


@pytest.mark.parametrize(
    ("runs", "joined"),
    [
        ([], []),
        ([(0, 5)], [(0, 5)]),
        ([(5, 9), (0, 5)], [(0, 9)]),
        ([(0, 9), (2, 4)], [(0, 9)]),
        ([(0, 4), (5, 9)], [(0, 4), (5, 9)]),
        ([(0, 4), (2, 6), (6, 7), (8, 9)], [(0, 7), (8, 9)]),
    ],
)
def test_joined_runs(runs, joined):
    assert joined_runs(runs) == joined


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)).map(lambda r: (r[0], r[0] + r[1])), max_size=8))
def test_joined_runs_hold_the_same_frames(runs):
    joined = joined_runs(iter(runs))
    assert {i for a, b in joined for i in range(a, b)} == {i for a, b in runs for i in range(a, b)}
    assert all(a < b for a, b in joined)
    assert all(b < c for (_, b), (c, _) in pairwise(joined))


@pytest.mark.parametrize(("value", "seconds"), [(0.1, F(1, 10)), (3, F(3)), (2.345, F(2345, 1000)), (1e-3, F(1, 1000))])
def test_a_time_is_what_was_typed(value, seconds):
    assert typed_seconds(value) == seconds


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_time_must_be_a_number(value):
    with pytest.raises(UserError, match="give seconds as a number"):
        typed_seconds(value)


@given(st.integers(-(10**6), 10**6), st.integers(0, 6))
def test_any_typed_decimal_is_exact(digits, places):
    assert typed_seconds(float(f"{digits}e-{places}")) == F(digits, 10**places)
