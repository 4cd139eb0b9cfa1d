"""Who speaks with which voice, and all voices in one file."""

import wave
from fractions import Fraction

import av
import numpy as np
import pytest

from latentsync.audio import speakers
from latentsync.audio.speakers import MIX_RATE, Speaker, mixed
from latentsync.errors import UserError

from ..media.clicks import click_times, click_wave


def write(path, samples, rate=48000):
    """samples: (T,) or (T, channels), -1 to 1."""
    samples = np.asarray(samples)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples.clip(-1, 1) * 32767).round().astype("<i2").tobytes())
    return path


def tone(frequency, seconds, rate=48000, loudness=0.4):
    return loudness * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


def heard(path):
    """(T, channels) and rate of a file."""
    with av.open(str(path)) as file:
        blocks = [frame.to_ndarray().reshape(-1, frame.layout.nb_channels) for frame in file.decode(audio=0)]
        return np.concatenate(blocks) / 32768, file.streams.audio[0].rate


def strength(samples, frequency, rate):
    t = np.arange(len(samples)) / rate
    return 2 * abs(np.mean(samples * np.exp(-2j * np.pi * frequency * t)))


@pytest.mark.parametrize(
    ("text", "face", "voice", "start"),
    [
        ("left=anna.wav", "left", "anna.wav", 0),
        ("1=ben.wav@3.5", "1", "ben.wav", Fraction(7, 2)),
        (" auto = a b.mp3 ", "auto", "a b.mp3", 0),
        ("120,80,0=v.flac@0", "120,80,0", "v.flac", 0),
        ("anna.jpg=v.wav@0.1", "anna.jpg", "v.wav", Fraction(1, 10)),
        ("0=a@b.wav", "0", "a@b.wav", 0),
        ("0=a@2.wav@12", "0", "a@2.wav", 12),
        ("0=a=b.wav", "0", "a=b.wav", 0),
        ("0=a.wav@-1", "0", "a.wav@-1", 0),
        ("0=a.wav@soon", "0", "a.wav@soon", 0),
    ],
)
def test_parse(text, face, voice, start):
    assert Speaker.parse(text) == Speaker(face, voice, Fraction(start))


def test_a_file_with_an_at_in_its_name_is_that_file(tmp_path):
    path = tmp_path / "take@2"
    path.touch()
    assert Speaker.parse(f"0={path}") == Speaker("0", str(path))
    assert Speaker.parse(f"0={path}@2") == Speaker("0", str(path), Fraction(2))


@pytest.mark.parametrize("text", ["", "left", "=anna.wav", "left=", " = ", "left= ", "=@3"])
def test_other_text_is_one_sentence(text):
    with pytest.raises(UserError, match=r"left=anna\.wav") as caught:
        Speaker.parse(text)
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("start", [Fraction(0), Fraction(1, 3), Fraction(5, 4)])
@pytest.mark.parametrize("rate", [16000, 44100, 48000])
def test_a_voice_is_heard_from_its_start_on(tmp_path, start, rate):
    path = write(tmp_path / "a.wav", click_wave((0.3, 0.7), rate, 1.0), rate)
    found = Speaker("0", path, start).heard()
    assert found.ndim == 1
    assert len(found) == pytest.approx((1 + start) * 16000, abs=2)
    assert click_times(found.numpy(), 16000) == pytest.approx([start + 0.3, start + 0.7], abs=1e-3)
    assert not found[: int(start * 16000)].any()


def test_silence_is_no_voice(tmp_path):
    with pytest.raises(UserError, match="silent"):
        Speaker("0", write(tmp_path / "a.wav", np.zeros(48000))).heard()


@pytest.mark.parametrize("start", [Fraction(0), Fraction(1, 7), Fraction(5, 2)])
@pytest.mark.parametrize(("rate", "channels"), [(48000, 2), (44100, 1), (22050, 2), (8000, 1)])
def test_a_click_is_at_its_time(tmp_path, start, rate, channels):
    wanted = click_wave((0.3, 0.7), rate, 1.0)
    path = write(tmp_path / "a.wav", np.repeat(wanted[:, None], channels, 1), rate)
    with mixed([Speaker("0", path, start)]) as mix:
        samples, made = heard(mix)
    assert (made, samples.shape[1]) == (MIX_RATE, 2)
    assert np.array_equal(samples[:, 0], samples[:, 1])
    assert len(samples) / MIX_RATE == pytest.approx(float(start) + 1, abs=2e-3)
    assert click_times(samples[:, 0], MIX_RATE) == pytest.approx([start + 0.3, start + 0.7], abs=1e-3)
    assert np.abs(samples).max() == pytest.approx(np.abs(wanted).max(), abs=0.03)


def test_a_voice_as_it_is_in_the_file_is_the_mix(tmp_path):
    samples = np.stack([tone(300, 0.5), tone(700, 0.5)], 1)
    with mixed([Speaker("0", write(tmp_path / "a.wav", samples))]) as mix:
        assert np.abs(heard(mix)[0] - samples).max() < 3 / 32768


def test_voices_of_other_rates_and_channels_are_heard_together(tmp_path):
    first = write(tmp_path / "a.wav", tone(300, 2.0, 44100), 44100)
    second = write(tmp_path / "b.wav", np.repeat(tone(700, 1.0, 16000)[:, None], 2, 1), 16000)
    third = write(tmp_path / "c.wav", tone(1100, 0.5), 48000)
    voices = [Speaker("0", first), Speaker("1", second, Fraction(1, 2)), Speaker("2", third, Fraction(3))]
    with mixed(voices) as mix:
        samples, rate = heard(mix)
    assert len(samples) / rate == pytest.approx(3.5, abs=2e-3)
    for start, stop, wanted in [
        (0.1, 0.4, (1, 0, 0)),
        (0.6, 1.4, (1, 1, 0)),
        (1.6, 1.9, (1, 0, 0)),
        (3.1, 3.4, (0, 0, 1)),
    ]:
        part = samples[round(start * rate) : round(stop * rate), 0]
        assert [strength(part, f, rate) / 0.4 for f in (300, 700, 1100)] == pytest.approx(wanted, abs=0.02)
    assert np.abs(samples[round(2.05 * rate) : round(2.95 * rate)]).max() < 2e-3


def test_the_order_of_voices_does_not_matter(tmp_path):
    voices = [
        Speaker("0", write(tmp_path / "a.wav", tone(300, 1.0)), Fraction(1, 4)),
        Speaker("1", write(tmp_path / "b.wav", tone(700, 0.6, 32000), 32000)),
    ]
    with mixed(voices) as one, mixed(voices[::-1]) as other:
        assert np.abs(heard(one)[0] - heard(other)[0]).max() <= 1 / 32768


def test_voices_that_are_too_loud_together_are_turned_down_not_clipped(tmp_path):
    path = write(tmp_path / "a.wav", tone(300, 1.0, loudness=0.9))
    with mixed([Speaker("0", path), Speaker("1", path)]) as mix:
        samples, rate = heard(mix)
    part = samples[rate // 10 : -rate // 10, 0]
    assert np.abs(part).max() == pytest.approx(1, abs=1e-3)
    assert strength(part, 300, rate) == pytest.approx(1, abs=5e-3)
    assert strength(part, 900, rate) < 2e-3  # what clipping adds


def test_there_must_be_a_speaker():
    with pytest.raises(UserError, match="no speakers"), mixed([]):
        pass


def test_the_mix_is_temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(speakers, "TemporaryDirectory", lambda: _Here(tmp_path / "made"))
    path = write(tmp_path / "a.wav", tone(300, 0.2))
    with mixed([Speaker("0", path)]) as mix:
        assert [p.name for p in mix.parent.iterdir()] == [mix.name]
    assert not mix.parent.exists()


class _Here:
    def __init__(self, folder):
        self.folder = folder

    def __enter__(self):
        self.folder.mkdir()
        return str(self.folder)

    def __exit__(self, *_):
        for path in self.folder.iterdir():
            path.unlink()
        self.folder.rmdir()
