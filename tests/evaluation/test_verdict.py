"""What is said of lips and voice is true where there is silence, little speech, or no face."""

import dataclasses
import re

import numpy as np
import pytest
import torch

from latentsync.audio.pauses import pauses, rest_at
from latentsync.errors import UserError
from latentsync.evaluation.canvas import for_dark_pages
from latentsync.evaluation.charts import MOUTH, draw_chart
from latentsync.evaluation.landmark_sync import checked_speech, compare, speech_level
from latentsync.evaluation.verdict import heard, verdict

FPS, RATE = 25, 16000


def speech(seconds, silent=()):
    """Syllables at uneven times with a hiss that mouths let out; silent: (from, to) in seconds."""
    t = np.arange(round(seconds * RATE)) / RATE
    strength = np.clip(np.sin(2 * np.pi * (2.3 * t + 0.4 * np.sin(3.1 * t) + 0.5 * np.sin(0.7 * t))), 0, 1) ** 2
    sound = strength * np.random.default_rng(0).normal(0, 0.2, len(t))
    for start, stop in silent:
        sound[round(start * RATE) : round(stop * RATE)] = 0
        strength[round(start * RATE) : round(stop * RATE)] = 0
    return torch.from_numpy(sound).float(), strength


def score(seconds=8.0, silent=(), *, open_in_silence=False, seen=None, late=0):
    """Lips that follow the syllables. seen: (from, to) in seconds with a face. late: frames of the sound."""
    sound, strength = speech(seconds, silent)
    frames = round(seconds * FPS)
    opening = 0.01 + 0.09 * strength.reshape(frames, -1).mean(1)
    times = (np.arange(frames) + 0.5) / FPS
    for start, stop in silent if open_in_silence else ():
        opening[(times >= start) & (times < stop)] = 0.07
    opening = np.roll(opening, -late)
    if seen is not None:
        opening[(times < seen[0]) | (times >= seen[1])] = np.nan
    found = compare(opening, speech_level(sound, FPS, frames), FPS, [(0, frames)])
    return dataclasses.replace(found, rest=rest_at(times, pauses(sound), seconds))


def test_in_sync_all_the_time():
    assert verdict(score()) == "In sync"


def test_closed_lips_in_a_silence_are_in_sync():
    assert verdict(score(silent=[(3, 5.5)])) == "In sync while there is speech"


def test_a_mouth_that_is_open_through_a_silence_is_said():
    found = score(silent=[(3, 5.5)], open_in_silence=True)
    assert heard(found).silence == pytest.approx(1.7, abs=0.3), "but for what lips need to close and open"
    said = verdict(found)
    assert "; the mouth is open in 1." in said
    assert said.endswith("s of silence")


def test_sound_that_is_off():
    assert verdict(score(late=5)) == "Audio 5 frames (200 ms) late"


@pytest.mark.parametrize("open_in_silence", [False, True])
def test_too_little_speech_is_no_verdict(open_in_silence):
    said = verdict(score(silent=[(0.7, 8)], open_in_silence=open_in_silence))
    assert re.match(r"Too little speech to tell: 0\.[78] s of it with a face", said)
    assert ("the mouth is open" in said) == open_in_silence


def test_a_face_that_is_there_for_a_part_is_said():
    assert verdict(score(seen=(0, 5))).endswith("a face was found in 5.0 of 8.0 s")
    assert "face" not in verdict(score(seen=(0, 7.8)))


def test_speech_without_its_face_does_not_count():
    """The face is there in the silence only, and in half a second of speech."""
    said = verdict(score(silent=[(2, 8)], seen=(1.5, 8)))
    assert re.match(r"Too little speech to tell: 0\.[45] s of it with a face", said)


def test_no_face_and_silence_are_errors_in_words():
    with pytest.raises(UserError, match="Face and sound are there together for 0 s only"):
        score(seen=(0, 0))
    with pytest.raises(UserError, match="silent"):
        checked_speech(torch.zeros(8 * RATE), RATE)


def test_unrelated_lips_are_no_match():
    found = score()
    lips = np.random.default_rng(1).uniform(0, 0.1, len(found.opening))
    level = found.loudness
    other = dataclasses.replace(compare(lips, level, FPS, [(0, len(lips))]), rest=found.rest)
    assert verdict(other).startswith("No clear match")


def test_a_chart_for_a_dark_page_is_dark_and_keeps_its_hues():
    light, dark = draw_chart(score()), draw_chart(score(), dark=True)
    assert light.shape == dark.shape
    assert np.median(light) > 245
    assert np.median(dark) < 40
    red, green, blue = (int(value) for value in for_dark_pages(np.uint8([[MOUTH]]))[0, 0])
    assert red > 1.4 * max(green, blue), "the mouth stays red"
    ink = for_dark_pages(np.uint8([[(45, 48, 54)]]))[0, 0]
    assert ink.min() > 180, "and dark letters become light"
