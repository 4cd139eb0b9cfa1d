"""Lips against sound: shifts are found, accidents are called accidents, and the chart shows what was found."""

import json
from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentsync.audio.load import load_audio
from latentsync.audio.mel import SAMPLE_RATE
from latentsync.errors import UserError
from latentsync.evaluation.canvas import thinned
from latentsync.evaluation.charts import BEST, MOUTH, SOUND, draw_chart, verdict
from latentsync.evaluation.clips import score_file
from latentsync.evaluation.landmark_sync import MAX_VALUES, checked_speech, compare, score_track, speech_level
from latentsync.face.choose import choose
from latentsync.face.detect import CHIN, LOWER_LIP, NASION, UPPER_LIP, FaceFinder
from latentsync.face.track import FaceTrack, find_tracks
from latentsync.media.probe import probe
from latentsync.media.reader import VideoReader

from ..tiny import face_model, pan, speech, write_clip, write_speech

RATES = st.sampled_from([Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(50)])


def syllables(seconds, seed):
    """How open a mouth is, 0 to 0.1, at 200 values a second: four or five syllables a second of any length."""
    rng = np.random.default_rng(seed)
    knots = rng.uniform(0, 0.1, round(seconds * 9))
    return np.interp(np.arange(round(seconds * 200)) / 200, np.arange(len(knots)) / 9, knots)


def voice(opening, late=0.0, seed=0, lowest=1500, highest=4500):
    """Noise as loud as the mouth is open, late seconds after it; (T,) at 16 kHz."""
    seconds = len(opening) / 200
    t = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(len(t)))
    hertz = np.fft.rfftfreq(len(t), 1 / SAMPLE_RATE)
    noise = np.fft.irfft(spectrum * ((hertz > lowest) & (hertz < highest)), len(t))
    sound = noise * np.interp(t - late, np.arange(len(opening)) / 200, opening)
    return torch.from_numpy(0.5 * sound / np.abs(sound).max()).float()


def face(opening, fps, present=None):
    """A face of which only the lower lip moves; every frame shows the middle of its time. present: of seconds."""
    count = int(len(opening) / 200 * fps)
    values = np.interp((np.arange(count) + 0.5) / float(fps), np.arange(len(opening)) / 200, opening)
    points = np.zeros((count, 68, 2), np.float32)
    points[:, NASION] = (0, -100)
    points[:, CHIN, 1] = 100
    points[:, UPPER_LIP] = (0, 40)
    points[:, LOWER_LIP, 1] = 40 + 200 * values
    present = np.ones(count, bool) if present is None else present(np.arange(count) / float(fps))
    edges = np.flatnonzero(np.diff(present.astype(int), prepend=0, append=0))
    segments = tuple(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
    return FaceTrack(0, points[:, :3], points, present, segments, (640, 480))


@settings(max_examples=40, deadline=None)
@given(shift=st.integers(-12, 12), fps=RATES, seed=st.integers(0, 10**6))
def test_a_shift_is_found_with_its_sign(shift, fps, seed):
    """Positive: the audio comes after the video."""
    opening = syllables(6, seed)
    found = score_track(face(opening, fps), voice(opening, float(shift / fps), seed), fps)
    assert found.offset == shift
    assert found.significant
    assert found.confidence > 0.4
    assert found.correlation_by_lag[found.lags == found.offset] == found.correlation_by_lag.max()
    assert found.correlation == found.correlation_by_lag[found.lags == 0]


def test_exactly_in_step_is_offset_zero():
    opening = syllables(8, 1)
    found = score_track(face(opening, 25), voice(opening), 25)
    assert found.offset == 0
    assert found.correlation > 0.8
    assert found.lags.tolist() == list(range(-15, 16))
    assert verdict(found) == "In sync"


def test_unrelated_lips_are_called_an_accident():
    """About one in twenty passes by design; none of the numbers here hangs on a single draw."""
    found = [score_track(face(syllables(8, n), 25), voice(syllables(8, n + 500)), 25) for n in range(60)]
    assert sum(s.significant for s in found) <= 9
    assert np.mean([s.confidence for s in found]) < 0.35
    assert "No clear match" in verdict(next(s for s in found if not s.significant))


def test_level_and_room_do_not_matter():
    opening = syllables(6, 4)
    sound = voice(opening)
    quiet = 0.003 * sound + 1e-5 * torch.randn(len(sound), generator=torch.Generator().manual_seed(0))
    loud, soft = (score_track(face(opening, 25), s, 25) for s in (sound, quiet))
    assert soft.offset == loud.offset == 0
    assert soft.correlation == pytest.approx(loud.correlation, abs=0.05)
    assert np.nanmax(soft.loudness) < np.nanmax(loud.loudness) - 40


def test_breath_in_the_pauses_is_silence():
    """40 dB below the voice, but in decibels it would move as much as speech does."""
    opening = np.maximum(syllables(8, 16) - 0.05, 0)
    breath = 0.01 * voice(syllables(8, 17) ** 3)
    found = score_track(face(opening, 25), voice(opening) + breath, 25)
    assert found.correlation > 0.88
    assert (found.offset, found.significant) == (0, True)


def test_hum_and_hiss_outside_the_band_are_not_heard():
    """Louder than the voice and moving otherwise, like a motor or a fan."""
    opening, other = syllables(6, 5), syllables(6, 6)
    noise = 2 * voice(other, lowest=80, highest=600) + voice(other, lowest=6000, highest=7900)
    found = score_track(face(opening, 25), 0.2 * (voice(opening) + noise), 25)
    assert (found.offset, found.significant) == (0, True)
    level = speech_level(voice(other, lowest=80, highest=600), 25, 100)
    assert level.max() < -55


def test_gaps_in_the_face_and_an_early_end_of_the_sound_are_left_out():
    opening = syllables(10, 7)
    track = face(opening, 25, lambda t: (t < 3) | (t > 4.2))
    found = score_track(track, voice(opening, 0.12)[: 8 * SAMPLE_RATE], 25)
    assert found.offset == 3
    assert np.array_equal(np.isnan(found.opening), ~track.present)
    assert not np.isnan(found.loudness[:200]).any()
    assert np.isnan(found.loudness[200:]).all()
    assert np.array_equal(found.present, track.present)


def test_another_distance_in_each_shot_is_no_syllable():
    """A cut from far to near: the mouth is three times as open at once, on its own curve."""
    opening = syllables(8, 8)
    track = face(opening, 25)
    lips = np.linalg.norm(track.landmarks[:, UPPER_LIP] - track.landmarks[:, LOWER_LIP], axis=-1) / 200
    lips[:100] = lips[:100] * 0.3 + 0.3
    level = speech_level(voice(opening), 25, 200)
    cut = compare(lips, level, 25, [(0, 100), (100, 200)])
    assert cut.offset == 0
    assert cut.significant
    assert cut.correlation > compare(lips, level, 25, [(0, 200)]).correlation


def test_mostly_silent_clips_keep_their_loud_part():
    opening = syllables(40, 9)
    opening[: 38 * 200 + 50] = 0
    found = score_track(face(opening, 25), voice(opening), 25)
    assert (found.offset, found.significant) == (0, True)
    assert found.correlation > 0.88


def test_lips_that_do_not_move_follow_nothing():
    opening = syllables(4, 10)
    found = score_track(face(opening * 0 + 0.05, 25), voice(opening), 25)
    assert (found.offset, found.confidence, found.correlation) == (0, 0.0, 0.0)
    assert not found.significant


@pytest.mark.parametrize(("seconds", "fps", "lags"), [(1.0, 25, 8), (1.5, 25, 12), (2.0, 25, 15), (4.0, 12, 7)])
def test_lags_fit_into_the_clip(seconds, fps, lags):
    opening = syllables(seconds, 11)
    found = score_track(face(opening, fps), voice(opening), fps)
    assert found.lags.tolist() == list(range(-lags, lags + 1))
    assert np.isfinite(found.correlation_by_lag).all()


@pytest.mark.parametrize(("seconds", "fps", "said"), [(0.9, 25, "0.88 s only"), (1.5, 6, "at least 2 s")])
def test_too_little_to_tell(seconds, fps, said):
    opening = syllables(seconds, 12)
    with pytest.raises(UserError, match=said):
        score_track(face(opening, fps), voice(opening), fps)


def test_as_plain_numbers():
    opening = syllables(4, 13)
    found = score_track(face(opening, 25, lambda t: t > 0.5), voice(opening)[: 3 * SAMPLE_RATE], 25)
    facts = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert facts["opening"][0] is None
    assert facts["loudness"][-1] is None
    known = [v for v in facts["loudness"] if v is not None]
    assert min(known) >= 0
    assert max(known) == 50
    assert (facts["fps"], facts["frames"], facts["step"], facts["significant"]) == (25, 100, 1, True)
    assert facts["lags"][np.argmax(facts["correlation_by_lag"])] == facts["offset"] == 0


def test_long_curves_are_thinned_for_the_browser():
    count = MAX_VALUES * 2 + 1
    rng = np.random.default_rng(0)
    facts = compare(rng.random(count), rng.random(count) * 30 - 50, 25, [(0, count)]).as_dict()
    assert (facts["step"], len(facts["opening"]), facts["frames"]) == (3, -(-count // 3), count)


# The whole way, from pictures


@pytest.fixture(scope="module")
def finder():
    with FaceFinder(face_model()) as finder:
        yield finder


@pytest.mark.parametrize(
    ("sound", "rate", "fps", "said"),
    [
        (torch.zeros(32000), 16000, 25, "silent"),
        (torch.zeros(0), 16000, 25, "lasts 0 s"),
        (speech(0.5), 16000, 25, "lasts 0.5 s"),
        (speech(2) * float("nan"), 16000, 25, "not numbers"),
        (speech(2), 0, 25, "0 Hz"),
        (speech(2), 16000, 0, "frame rate"),
        (speech(2), 16000, float("nan"), "frame rate"),
        ((speech(2) * 1000).short(), 16000, 25, "floats"),
    ],
)
def test_bad_sound_and_rate_are_refused(sound, rate, fps, said):
    with pytest.raises(UserError, match=said):
        score_track(face(syllables(2, 1), 25), checked_speech(sound, rate), fps)


def test_bad_sound_is_refused_before_faces_are_looked_for(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", pan(30), Fraction(25), audio=write_speech(tmp_path / "s.wav", 0.5))
    with pytest.raises(UserError, match=r"lasts 0\.5"):
        score_file(clip, None, None)  # type: ignore[arg-type]


def test_an_interrupt_ends_it(finder, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", pan(30), Fraction(25), audio=write_speech(tmp_path / "s.wav", 1.2))

    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_file(clip, None, finder, on_progress=stop)


def test_a_file_with_its_own_and_with_another_sound(finder, tmp_path):
    own = write_speech(tmp_path / "own.wav", 2)
    clip = write_clip(tmp_path / "clip.mkv", pan(30), Fraction(25), audio=own)
    told = []
    found = score_file(clip, None, finder, on_progress=lambda p: told.append((p.done, p.total)))
    assert told == [(n, 30) for n in range(1, 31)]
    assert found.present.all()
    assert len(found.opening) == len(found.loudness) == 30
    other = score_file(clip, write_speech(tmp_path / "other.wav", 1.0), finder)
    assert np.allclose(found.opening, other.opening)
    assert not np.isnan(found.loudness).any()
    assert np.isnan(other.loudness[25:]).all()


def test_files_that_cannot_be_scored(finder, tmp_path):
    mute = write_clip(tmp_path / "mute.mp4", pan(4), Fraction(25))
    with pytest.raises(UserError, match="no sound; give the speech"):
        score_file(mute, None, finder)
    cv2.imwrite(str(tmp_path / "still.png"), pan(1)[0])
    with pytest.raises(UserError, match="still picture"):
        score_file(tmp_path / "still.png", tmp_path / "none.wav", finder)
    with pytest.raises(UserError):
        score_file(tmp_path / "nothing.mp4", None, finder)


# Real speakers


def score(frames, sound, fps, finder):
    track = choose(find_tracks(frames, finder), "largest")
    return score_track(track, checked_speech(sound, SAMPLE_RATE), fps)


def clip_of(media, finder, name, seconds):
    """(frames, speech, fps) of the first seconds of a real clip."""
    info = probe(media / "clips" / name)
    count = int(seconds * info.fps)
    with VideoReader(info) as reader:
        frames = np.stack(list(reader.read(range(count))))
    sound = load_audio(info.path, info.start).waveform[: int(seconds * SAMPLE_RATE)]
    return frames, sound, info.fps


def test_a_real_speaker_in_step_shifted_and_with_a_strangers_voice(media, finder):
    frames, sound, fps = clip_of(media, finder, "hdtf_wda_bobmenendez.mp4", 8)
    own = score(frames, sound, fps, finder)
    assert abs(own.offset) <= 1
    assert own.significant
    for shift in (-5, 5):
        moved = torch.roll(sound, round(shift / float(fps) * SAMPLE_RATE))
        assert score(frames, moved, fps, finder).offset - own.offset == shift
    _, foreign, _ = clip_of(media, finder, "hdtf_wda_katiehill.mp4", 8)
    stranger = score(frames, foreign, fps, finder)
    assert stranger.confidence < own.confidence - 0.1
    assert stranger.correlation < own.correlation - 0.2


def test_the_one_of_two_who_speaks(media, finder):
    two = media / "edge" / "two_faces_big_and_small.mp4"  # the left one's sound
    left, right = (score_file(two, None, finder, face=side) for side in ("left", "right"))
    assert left.confidence > right.confidence + 0.2
    assert left.significant
    assert not right.significant
    assert abs(left.offset) <= 2


# The chart


def near(picture, color):
    return (np.abs(picture.astype(int) - color) < 12).all(-1)


@pytest.mark.parametrize("late", [-0.4, -0.08, 0.0, 0.2, 0.52])
def test_the_best_lag_is_marked_where_it_lies(late):
    opening = syllables(6, 14)
    found = score_track(face(opening, 25), voice(opening, late), 25)
    assert found.offset == pytest.approx(late * 25, abs=1)
    picture = draw_chart(found)
    assert (picture.shape, picture.dtype) == ((622, 960, 3), np.uint8)
    column = np.argmax(near(picture, BEST).sum(0))  # the upright line is the highest of that color
    assert column == pytest.approx(64 + (found.offset + 15) / 30 * 826, abs=2)
    assert near(picture, MOUTH)[105:305].sum() > 500
    assert near(picture, SOUND)[105:305].sum() > 5000


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(30, 3000),
    seed=st.integers(0, 99),
    holes=st.booleans(),
    fps=st.sampled_from([12.0, 25.0, 59.94]),
)
def test_any_score_can_be_drawn(count, seed, holes, fps):
    rng = np.random.default_rng(seed)
    opening, level = rng.random(count) * rng.choice([0, 0.01, 0.2]), rng.random(count) * 90 - 95
    if holes:
        opening[: count // 20] = np.nan
        level[-count // 20 :] = np.nan
    found = compare(opening, level, min(fps, count / 2), [(count // 20 if holes else 0, count)])
    picture = draw_chart(found)
    assert (picture[0] > 240).all()
    assert (picture[-1] > 240).all()


def test_thinning_keeps_means_and_gaps():
    values = np.array([1.0, 3.0, np.nan, 5.0, np.nan, np.nan, 7.0])
    assert thinned(values, 7) is values
    np.testing.assert_allclose(thinned(values, 4), [2, 5, np.nan, 7])


@pytest.mark.parametrize(("offset", "said"), [(0, "In sync"), (-1, "In sync"), (3, "late"), (-4, "early")])
def test_verdict_in_words(offset, said):
    opening = syllables(6, 15)
    found = score_track(face(opening, 25), voice(opening, offset / 25), 25)
    assert found.offset == offset
    assert verdict(found).endswith(said)
    assert offset in (0, -1) or f"{abs(offset)} frames ({abs(offset) * 40} ms)" in verdict(found)
