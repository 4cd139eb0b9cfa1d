from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentsync.errors import UserError
from latentsync.settings import FITS
from latentsync.timeline import Timeline, Window, fit_timeline, windows

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
