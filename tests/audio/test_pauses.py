"""Pauses of made speech: bursts of noise as syllables are, with silence or a room's hum between them."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from latentsync.audio.mel import SAMPLE_RATE
from latentsync.audio.pauses import (
    AFTER,
    ATTACK,
    BEFORE,
    RELEASE,
    SHORTEST,
    hush,
    pauses,
    rest_at,
    rest_weights,
    spoken,
)
from latentsync.timeline import Timeline

NEAR = 0.02
CLEAN, NOISY = 0.0, 10 ** (-40 / 20)


def syllables(seconds, seed=0, stop=0.0):
    """(T,) noise that swells five times a second, never much below a third; stop: seconds of silence after each."""
    t = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    wave = np.random.default_rng(seed).normal(0, 0.1, len(t)) * (0.65 + 0.35 * np.cos(2 * np.pi * 5 * t))
    return np.where(t % 0.2 < 0.2 - stop, wave, 0) if stop else wave


def said(*parts, noise=CLEAN, seed=0, stop=0.0):
    """(T,) tensor: seconds of speech, of a pause, of speech, …; noise: of the room, as a share of the speech."""
    pieces = [
        np.zeros(round(seconds * SAMPLE_RATE)) if n % 2 else syllables(seconds, seed + n, stop)
        for n, seconds in enumerate(parts)
    ]
    wave = np.concatenate(pieces)
    room = np.random.default_rng(seed + 99).normal(0, 0.1 * noise, len(wave))
    return torch.from_numpy(wave + room).float()


def made(*parts):
    ends = np.cumsum((0, *parts))
    return [(float(a), float(b)) for a, b in zip(ends[1::2], ends[2::2], strict=False) if b - a > SHORTEST]


TABLE = {
    "between": (1.0, 0.6, 1.0),
    "twice": (0.8, 0.4, 1.1, 1.5, 0.7),
    "leading": (0.0, 0.7, 1.5),
    "trailing": (1.5, 0.7),
    "both ends": (0.0, 0.5, 1.0, 0.5),
    "nearly all silence": (0.0, 4.0, 0.4, 5.0),
    "all speech": (3.0,),
    "a short stop": (1.0, 0.2, 1.0),
    "a long clip": (9.0, 0.5, 9.0),
}


@pytest.mark.parametrize("noise", [CLEAN, NOISY])
@pytest.mark.parametrize("parts", TABLE.values(), ids=TABLE)
def test_pauses_are_where_they_were_made(parts, noise):
    found = pauses(said(*parts, noise=noise))
    assert len(found) == len(made(*parts))
    assert np.allclose(found, made(*parts) or found, atol=NEAR)


seconds = st.integers(30, 200).map(lambda n: n / 100)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(40, 200), st.integers(33, 150)), min_size=1, max_size=4),
    st.integers(40, 200),
    st.sampled_from([CLEAN, NOISY]),
    st.integers(0, 99),
    st.floats(0.05, 5),
)
@example([(40, 33)], 200, NOISY, 0, 1.0)
def test_pauses_of_any_speech(pairs, last, noise, seed, loudness):
    parts = [n / 100 for pair in pairs for n in pair] + [last / 100]
    found = pauses(loudness * said(*parts, noise=noise, seed=seed))
    assert len(found) == len(pairs)
    assert np.allclose(found, made(*parts), atol=NEAR)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.02, 0.1), st.floats(1, 6), st.sampled_from([CLEAN, NOISY]), st.integers(0, 99))
def test_stops_within_words_are_no_pauses(stop, length, noise, seed):
    assert pauses(said(length, noise=noise, seed=seed, stop=stop)) == []


def test_a_click_does_not_end_a_pause_and_a_word_does():
    click, word = said(1.0, 1.5, 1.0), said(1.0, 1.5, 1.0)
    at = round(1.7 * SAMPLE_RATE)
    click[at : at + 640] += torch.from_numpy(syllables(0.04)).float()
    word[at : at + 3200] += torch.from_numpy(syllables(0.2)).float()
    assert np.allclose(pauses(click), [(1.0, 2.5)], atol=NEAR)
    assert np.allclose(pauses(word), [(1.0, 1.7), (1.9, 2.5)], atol=NEAR)


@pytest.mark.parametrize("samples", [0, 1, 159])
def test_sound_shorter_than_a_step_has_no_pause(samples):
    assert pauses(torch.ones(samples)) == []
    assert len(hush(torch.ones(samples))) == samples


def test_a_mouth_comes_to_rest_after_the_sound_and_opens_before_the_next():
    start, stop = 1.0, 2.0
    still, ready = start + AFTER + RELEASE, stop - BEFORE - ATTACK
    times = np.array([0.5, start, start + AFTER, start + AFTER + RELEASE / 2, still, ready, stop - BEFORE, stop, 2.9])
    rest = rest_at(times, [(start, stop)], 3.0)
    assert rest.dtype == np.float32
    assert np.allclose(rest, [0, 0, 0, 0.5, 1, 1, 0, 0, 0], atol=1e-6)
    assert rest_at(np.array([stop - BEFORE - ATTACK / 2]), [(start, stop)], 3.0) == pytest.approx(0.5)
    fine = rest_at(np.linspace(0, 3, 3001), [(start, stop)], 3.0)
    assert np.abs(np.diff(fine)).max() < 0.01  # no jump


def test_a_pause_shorter_than_its_ramps_is_half_a_rest():
    rest = rest_at(np.linspace(0, 3, 3001), [(1.0, 1.4)], 3.0)
    assert rest.max() == pytest.approx(0.17, abs=0.34)
    assert np.abs(np.diff(rest)).max() < 0.01


def test_before_the_first_word_and_after_the_last_the_mouth_rests():
    rest = rest_at(np.array([0.0, 0.1, 2.9, 3.0, 9.0]), [(0.0, 1.0), (2.0, 3.0)], 3.0)
    assert rest.tolist() == [1, 1, 1, 1, 1]
    assert rest_at(np.array([0.0, 2.9, 3.0 + AFTER + RELEASE, 9.0]), [], 3.0).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("fps", [Fraction(25), Fraction(30000, 1001)])
def test_rest_weights_are_those_of_the_middles_of_frames(fps):
    wave = said(1.0, 1.0, 1.0)
    timeline = Timeline(fps, round(3 * fps), round(3 * fps), "trim")
    weights = rest_weights(wave, timeline)
    assert weights.shape == (timeline.frames,)
    times = (np.arange(timeline.frames) + 0.5) / float(fps)
    assert (weights[(times > 1 + AFTER + RELEASE + NEAR) & (times < 2 - BEFORE - ATTACK - NEAR)] == 1).all()
    assert not weights[(times < 1) | (times > 2)].any()


def test_hush_leaves_speech_as_it_is_and_silences_pauses():
    wave = said(1.0, 1.0, 1.0, noise=NOISY)
    quiet, t = hush(wave), np.arange(len(wave)) / SAMPLE_RATE
    assert quiet.dtype == wave.dtype
    spoken_parts = (t < 1) | (t > 2)
    assert torch.equal(quiet[spoken_parts], wave[spoken_parts])
    resting = (t > 1 + AFTER + RELEASE + NEAR) & (t < 2 - BEFORE - ATTACK - NEAR)
    assert not quiet[resting].any()
    assert wave[resting].any()
    assert torch.equal(hush(said(2.0)), said(2.0))


def test_spoken_is_what_lies_between_rests():
    rest, ready = AFTER + RELEASE, BEFORE + ATTACK
    inner = spoken(said(1.0, 1.0, 1.0))
    assert np.allclose(np.array(inner, float), [(0, 1 + rest), (2 - ready, 3)], atol=NEAR)
    ends = spoken(said(0.0, 1.0, 1.0, 1.0))
    assert np.allclose(np.array(ends, float), [(1 - ready, 2 + rest)], atol=NEAR)
    assert spoken(said(2.0)) == [(0, 2)]
    assert all(isinstance(time, Fraction) for part in inner for time in part)


@settings(max_examples=40, deadline=None)
@given(st.lists(seconds, min_size=1, max_size=7), st.booleans())
def test_spoken_parts_are_in_order_and_hold_all_speech(parts, quiet_first):
    wave = said(*((0.0, *parts) if quiet_first else parts))
    found = [(float(a), float(b)) for a, b in spoken(wave)]
    edges = [edge for part in found for edge in part]
    assert edges == sorted(edges)
    times = np.arange(len(wave) // 160) / 100
    loud = wave[: len(times) * 160].reshape(-1, 160).square().mean(1).sqrt().numpy() > 0.01
    inside = np.array([any(a <= time <= b for a, b in found) for time in times])
    assert inside[loud].all()
    assert (rest_at(times, pauses(wave), len(wave) / SAMPLE_RATE)[~inside] > 0.99).all()


@pytest.mark.parametrize("last", [0.1, 0.2, 0.3, 0.5])
def test_a_short_last_word_is_spoken(last):
    """A mouth that has come to rest opens for it, however short it is."""
    wave = said(1.0, 0.6, last)
    end = len(wave) / SAMPLE_RATE
    start, stop = map(float, spoken(wave)[-1])
    assert start < end - last
    assert stop == pytest.approx(end, abs=0.01)
    times = np.array([1.4, end - last / 2])
    resting, speaking = rest_at(times, pauses(wave), end)
    assert resting > 0.1
    assert speaking == 0
