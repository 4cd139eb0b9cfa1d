"""Every file that people reported, by its numbers: as it is opened, and as a run writes it."""

from fractions import Fraction

import av
import numpy as np
import pytest

from latentsync.audio.load import load_audio
from latentsync.errors import UserError
from latentsync.media.image import is_image, read_picture
from latentsync.media.probe import probe
from latentsync.media.writer import VideoWriter
from latentsync.pipeline import open_job
from latentsync.settings import Settings

# (size, rate, frames, transparent, interlaced, seconds of sound or None)
FILMS = {
    "base.mp4": ((320, 320), "25", 30, False, False, 1.2),
    "camcorder_interlaced_50i.mpg": ((400, 440), "25", 20, False, True, 0.8),
    "clip_alpha_background_removed.webm": ((320, 320), "25", 12, True, False, 0.473),
    "clip_animated.webp": ((240, 240), "25/2", 15, False, False, None),
    "clip_gbk_tag.mp4": ((320, 320), "25", 12, False, False, 0.48),
    "clip_raw.mjpeg": ((320, 320), "25", 15, False, False, None),
    "clip_trimmed_lossless_edit_list.mp4": ((256, 256), "25", 49, False, False, 1.98),
    "face_upside_down.mp4": ((320, 320), "25", 20, False, False, None),
    "own_sound_0.6s_gap_opus.mkv": ((256, 256), "25", 75, False, False, 3.0),
    "own_sound_19_damaged_aac_packets.mp4": ((256, 256), "25", 75, False, False, 3.0),
    "short.mp4": ((320, 320), "25", 12, False, False, 0.48),
    "two_people_cross_false_cut.mp4": ((640, 200), "25", 76, False, False, None),
    "two_tracks_first_silent.mp4": ((320, 320), "25", 30, False, False, 1.2),
    "two_tracks_first_undecodable.mov": ((320, 320), "25", 30, False, False, 1.2),
}
# (seconds, loudness)
VOICES = {
    "v05.wav": (0.5, 0.0519),
    "v15.wav": (1.5, 0.1509),
    "voice_0.6s_gap_opus.webm": (3.0, 0.0345),
    "voice_7.1_segfault.flac": (1.5, 0.0342),
    "voice_latin1_copyright_tag.wav": (1.5, 0.1509),
    "voice_stereo_antiphase.wav": (1.5, 0.1509),
}
PICTURES = {"cutout_alpha_hidden_magenta.png": (320, 320, 4), "photo_iphone_tiles.heic": None}
ELSEWHERE = {"README.md", "two_jobs_same_out.py"}  # the second is the last test here


def test_none_is_left_out(media):
    assert {path.name for path in (media / "reports").iterdir()} == {*FILMS, *VOICES, *PICTURES, *ELSEWHERE}


@pytest.mark.parametrize("name", FILMS)
def test_films(media, tmp_path, name):
    size, rate, frames, alpha, interlaced, seconds = FILMS[name]
    path = media / "reports" / name
    info = probe(path)
    assert ((info.width, info.height), info.fps, info.frames) == (size, Fraction(rate), frames)
    assert (info.alpha, info.interlaced, info.has_audio) == (alpha, interlaced, seconds is not None)
    if seconds is not None:
        assert float(load_audio(path, info.start).seconds) == pytest.approx(seconds, abs=0.01)
    speech = None if seconds is not None else media / "reports" / "v05.wav"
    out = tmp_path / "out.mkv"
    with open_job(path, speech, out, Settings(fit="silence")) as job:
        for frame in job.source.read(job.timeline.source_indices()):
            job.writer.write(frame)
    with av.open(str(out)) as container:
        written = list(container.decode(video=0))
    assert len(written) == frames
    assert (written[0].width, written[0].height) == size
    assert probe(out).alpha == alpha
    assert float(load_audio(out).seconds) == pytest.approx(float(frames / info.fps), abs=0.05)


@pytest.mark.parametrize("name", VOICES)
def test_voices(media, tmp_path, name):
    seconds, level = VOICES[name]
    heard = load_audio(media / "reports" / name)
    assert float(heard.seconds) == pytest.approx(seconds, abs=0.001)
    assert float(heard.waveform.square().mean().sqrt()) == pytest.approx(level, abs=0.0005)
    out = tmp_path / "out.mp4"
    with open_job(media / "reports" / "base.mp4", media / "reports" / name, out, Settings()) as job:
        assert abs(float(job.timeline.duration) - seconds) <= 0.041
        for frame in job.source.read(job.timeline.source_indices()):
            job.writer.write(frame)
    assert float(load_audio(out).seconds) == pytest.approx(seconds, abs=0.05)


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(media, name):
    path = media / "reports" / name
    if PICTURES[name] is None:
        pytest.importorskip("pillow_heif")
    assert is_image(path)
    assert read_picture(path).shape[2] in (3, 4)
    assert PICTURES[name] is None or read_picture(path).shape == PICTURES[name]


def test_a_film_is_no_voice_and_a_voice_no_film(media, tmp_path):
    with pytest.raises(UserError, match="it has only sound"):
        probe(media / "reports" / "v05.wav")
    with (
        pytest.raises(UserError, match="no audio that can be decoded"),
        open_job(media / "reports" / "face_upside_down.mp4", None, tmp_path / "out.mp4", Settings()),
    ):
        pass


def test_two_writers_of_one_name_do_not_mix(tmp_path):
    out, picture = tmp_path / "same.mp4", np.zeros((48, 64, 3), np.uint8)
    first, second = (VideoWriter(out, 64, 48, Fraction(25)) for _ in range(2))
    for writer, count in ((first, 5), (second, 9)):
        for _ in range(count):
            writer.write(picture)
    first.close()
    assert probe(out).frames == 5
    second.write(picture)
    second.close()
    assert probe(out).frames == 10
    assert [path.name for path in tmp_path.iterdir()] == ["same.mp4"]
