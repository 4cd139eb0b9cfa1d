"""Files with several sound tracks."""

from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from av.stream import Disposition

from latentsync.audio.load import load_audio
from latentsync.errors import UserError
from latentsync.media.audio_track import AudioTrack
from latentsync.media.probe import probe
from latentsync.media.writer import VideoWriter
from latentsync.pipeline import open_job
from latentsync.settings import Settings

from .clicks import click_times, click_wave, heard_in, picture_start, write_clicks

FIRST, SECOND = (0.5, 1.5), (0.8, 2.2)


def two_tracks(folder, first, second, default=0, suffix=".mkv"):
    """Of clicks at these times; none are a silent track."""
    path = folder / f"two{suffix}"
    with av.open(str(path), "w") as out:
        parts = []
        for number, times in enumerate((first, second)):
            wave = click_wave(times) if times else np.zeros(144000, np.float32)
            source = av.open(str(write_clicks(folder / f"{number}.mkv", "aac", wave=wave)))
            target = out.add_stream_from_template(source.streams.audio[0])
            target.disposition = Disposition.default if number == default else Disposition(0)
            parts.append((source, target))
        for source, target in parts:
            for packet in source.demux(source.streams.audio[0]):
                if packet.size:
                    packet.stream = target
                    out.mux(packet)
            source.close()
    return path


@pytest.mark.parametrize(
    ("first", "second", "default", "number", "wanted"),
    [
        (FIRST, SECOND, 0, None, FIRST),
        (FIRST, SECOND, 1, None, SECOND),
        ((), SECOND, 0, None, SECOND),
        (FIRST, (), 1, None, FIRST),
        (FIRST, SECOND, 1, 0, FIRST),
        (FIRST, SECOND, 0, 1, SECOND),
    ],
)
@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_which_track_is_heard_and_written(tmp_path, caplog, first, second, default, number, wanted, suffix):
    path = two_tracks(tmp_path, first, second, default, suffix)
    found = click_times(load_audio(path, number=number).waveform, 16000)
    assert found == pytest.approx(wanted, abs=0.03)
    out = tmp_path / "out.mp4"
    with VideoWriter(out, 32, 32, Fraction(25), audio=AudioTrack(path, number=number)) as writer:
        for _ in range(75):
            writer.write(np.zeros((32, 32, 3), np.uint8))
    wave, rate = heard_in(out)
    assert np.subtract(click_times(wave, rate), picture_start(out)).tolist() == pytest.approx(wanted, abs=0.03)
    other = SECOND if wanted == FIRST else FIRST
    with av.open(str(out)) as container:
        main, side = container.streams.audio
        assert main.disposition & Disposition.default
        assert not side.disposition & Disposition.default
    if first and second:
        wave, rate = heard_in(out, 1)
        assert np.subtract(click_times(wave, rate), picture_start(out)).tolist() == pytest.approx(other, abs=0.03)
    told = [record.getMessage() for record in caplog.records if "audio track 1 is used" in record.getMessage()]
    assert len(told) == (1 if number is None and wanted == SECOND else 0)
    assert all("0: aac, 2 channels" in line and "1: aac, 2 channels" in line for line in told)


@pytest.mark.parametrize(("number", "wanted"), [(-1, FIRST), (0, FIRST), (1, SECOND)])
def test_a_run_hears_the_track_of_its_settings(tmp_path, number, wanted):
    voices = two_tracks(tmp_path, FIRST, SECOND)
    cv2.imwrite(str(tmp_path / "face.png"), np.zeros((64, 64, 3), np.uint8))
    out = tmp_path / "out.mp4"
    with open_job(tmp_path / "face.png", voices, out, Settings(audio_track=number)) as job:
        assert click_times(job.speech, 16000) == pytest.approx(wanted, abs=0.03)
        for frame in job.source.read(job.timeline.source_indices()):
            job.writer.write(frame)
    assert click_times(load_audio(out).waveform, 16000) == pytest.approx(wanted, abs=0.03)


def test_a_track_that_is_not_there(tmp_path):
    path = two_tracks(tmp_path, FIRST, SECOND)
    with pytest.raises(UserError, match=r"no audio track 2 that can be decoded; it has 0: aac, 2 channels.*; 1: aac"):
        load_audio(path, number=2)


@pytest.mark.parametrize("name", ["two_tracks_first_silent.mp4", "two_tracks_first_undecodable.mov"])
def test_real_files_speak(media, name):
    path = media / "reports" / name
    info = probe(path)
    assert info.has_audio
    heard = load_audio(path, info.start).waveform
    base = load_audio(media / "reports" / "base.mp4", Fraction(0)).waveform
    size = min(len(heard), len(base))
    assert float(heard.square().mean().sqrt()) == pytest.approx(float(base[:size].square().mean().sqrt()), rel=0.1)
