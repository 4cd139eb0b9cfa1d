"""What is let in, and what is refused with a sentence and leaves nothing behind."""

import io
import re
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from latentsync.errors import UserError
from latentsync.media.encoding import ENCODERS
from latentsync.media.probe import probe
from latentsync.webapp.config import Limits
from latentsync.webapp.uploads import (
    browser_copy,
    plays_in_browsers,
    sample_files,
    small_copy,
    take_face,
    take_file,
    take_voice,
)

from ..nodes.clips import frames_of
from ..tiny import write_speech
from .parts import clip, portrait, sound_of

LIMITS = Limits(megabytes=2, seconds=3, pixels=1000 * 1000)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "session"
    place.mkdir()
    return place


def take(take, path, folder, name=None, limits=LIMITS):
    with path.open("rb") as stream:
        return take(stream, name or path.name, folder, limits)


def refused(take_it, data, folder, name="notes.mp4", limits=LIMITS):
    before = set(folder.iterdir())
    with pytest.raises(UserError) as caught:
        take_it(io.BytesIO(data), name, folder, limits)
    text = str(caught.value)
    assert str(folder) not in text, "where files lie is nobody's business"
    assert not re.search(r"[0-9a-f]{32}", text), text
    assert set(folder.iterdir()) == before, "nothing is kept"
    return text


def test_a_video_and_a_picture_and_a_voice(tmp_path, folder):
    video = take(take_face, clip(tmp_path / "Ünï clip.mp4"), folder)
    assert (video.kind, video.name, video.frames, video.fps) == ("video", "Ünï clip.mp4", 20, 25)
    assert (video.width, video.height, video.has_sound) == (160, 140, True)
    picture = take(take_face, portrait(tmp_path / "face.png"), folder)
    assert (picture.kind, picture.width, picture.height, picture.frames) == ("picture", 256, 224, 1)
    voice = take(take_voice, write_speech(tmp_path / "say.wav", 1.5), folder)
    assert (voice.kind, voice.seconds) == ("sound", Fraction(3, 2))
    heard = take(take_voice, clip(tmp_path / "clip.mkv"), folder)
    assert float(heard.seconds) == pytest.approx(0.8, abs=0.1)
    assert {one.path.parent for one in (video, picture, voice, heard)} == {folder}
    assert all(re.fullmatch(r"[0-9a-f]{32}\.\w+", path.name) for path in folder.iterdir()), "names are ours"


@pytest.mark.parametrize("name", ["../../escape.mp4", "/etc/passwd", "C:\\x\\..\\y.mp4", "a\0b.mp4", "", "." * 300])
def test_a_name_from_the_browser_never_reaches_the_disk(tmp_path, folder, name):
    media = take(take_face, clip(tmp_path / "clip.mp4"), folder, name=name)
    assert media.path.parent == folder
    assert re.fullmatch(r"[0-9a-f]{32}\.mp4", media.path.name)
    assert not {"/", "\\", "\0"} & set(media.name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "clip.speech.wav", "session"]


def test_the_content_decides_not_the_name(tmp_path, folder):
    assert take(take_face, portrait(tmp_path / "face.png"), folder, name="clip.mp4").kind == "picture"
    assert take(take_face, clip(tmp_path / "clip.mp4"), folder, name="clip.png").kind == "video"
    assert "notes.mp4 could not be read as a video or a picture" in refused(take_face, b"Dear diary, " * 99, folder)
    assert "notes.wav could not be read as a recording" in refused(
        take_voice, b"Dear diary, " * 99, folder, "notes.wav"
    )
    assert "empty" in refused(take_face, b"", folder)
    assert "could not be read" in refused(take_face, np.random.default_rng(1).bytes(5000), folder)


LISTS = {
    "HLS": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{0}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile {0}\n",
    "DASH": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><BaseURL>{0}</BaseURL>'
    "</Period></MPD>",
    "SDP": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5000 RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
}


@pytest.mark.parametrize("kind", LISTS)
def test_lists_that_name_other_files_are_no_media(tmp_path, folder, kind):
    """FFmpeg would open what they name: another session's clip, or an address inside the network."""
    other = clip(tmp_path / "secret.mp4")
    (folder / "secret.ts").write_bytes(other.read_bytes())
    for target in (str(other), "secret.ts"):
        with pytest.raises(UserError, match="could not be read as a video or a picture"):
            take_face(io.BytesIO(LISTS[kind].format(target).encode()), "clip.mp4", folder, LIMITS)
        with pytest.raises(UserError, match="could not be read as a recording"):
            take_voice(io.BytesIO(LISTS[kind].format(target).encode()), "clip.mp4", folder, LIMITS)
    assert [path.name for path in folder.iterdir()] == ["secret.ts"]


def test_too_much_is_refused(tmp_path, folder):
    assert "larger than 2 MB" in refused(take_face, bytes(3 << 20), folder)
    assert "lasts 4 s; at most 3 s" in refused(take_face, clip(tmp_path / "long.mp4", 100).read_bytes(), folder)
    assert "longer than 3 s" in refused(take_voice, write_speech(tmp_path / "long.wav", 5).read_bytes(), folder)
    large = tmp_path / "large.png"
    cv2.imwrite(str(large), np.zeros((1200, 1000, 3), np.uint8))
    assert "1000 × 1200 pixels" in refused(take_face, large.read_bytes(), folder)
    tight = Limits(seconds=3, rate=12)
    assert "25 frames per second" in refused(take_face, clip(tmp_path / "c.mp4").read_bytes(), folder, limits=tight)


def test_a_picture_that_would_fill_the_memory_is_refused_unread(folder):
    """A PNG's header claims 60000 x 60000 pixels: 10 GB, in a few bytes."""
    import struct
    import zlib

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    refused(take_face, data + bytes(99), folder, "bomb.png")


def test_silence_and_pictures_without_sound_are_no_voice(tmp_path, folder):
    silent = tmp_path / "silent.wav"
    data = bytearray(write_speech(silent, 1).read_bytes())
    data[44:] = bytes(len(data) - 44)
    assert "silent" in refused(take_voice, bytes(data), folder, "silent.wav")
    mute = clip(tmp_path / "mute.mp4", sound=False).read_bytes()
    assert "has no sound" in refused(take_voice, mute, folder, "mute.mp4")
    cut = clip(tmp_path / "cut.mp4").read_bytes()[:400]
    assert "could not be read as a video" in refused(take_face, cut, folder, "cut.mp4")


def test_only_what_browsers_play_is_shown_as_it_is(tmp_path, folder):
    told = []
    odd = take(take_face, clip(tmp_path / "odd.mkv", width=160), folder)  # H.264 with full color, in Matroska
    assert not odd.playable
    copy = browser_copy(odd, folder, lambda *said: told.append(said))
    info = probe(copy)
    assert (copy.suffix, info.frames, info.has_audio) == (".mp4", 20, True)
    assert len(told) == 20
    plain = take(take_face, copy, folder)
    assert plain.playable
    assert browser_copy(plain, folder, print) == plain.path


def stored(path, family, pixels="yuv420p", *, sound=None):
    """A second of gray in this codec. sound: the encoder's name."""
    with av.open(str(path), "w") as out:
        picture = out.add_stream(ENCODERS[family], rate=25)
        picture.width = picture.height = 64
        picture.pix_fmt = pixels
        heard = out.add_stream(sound, rate=48000, layout="mono") if sound else None
        for i in range(25):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 90 + i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            out.mux(picture.encode(frame))
        out.mux(picture.encode(None))
        if heard is not None:
            form = "s16" if sound.startswith("pcm") or sound == "libopus" else "fltp"
            kind = np.int16 if form == "s16" else np.float32
            for i in range(48):
                block = av.AudioFrame.from_ndarray(np.zeros((1, 960), kind), format=form, layout="mono")
                block.sample_rate, block.pts = 48000, 960 * i
                out.mux(heard.encode(block))
            out.mux(heard.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "family", "pixels", "sound", "plays"),
    [
        ("a.mp4", "h264", "yuv420p", "aac", True),
        ("a.mp4", "h264", "yuv420p10le", None, False),
        ("a.mp4", "h264", "yuv444p", None, False),
        ("a.mov", "h264", "yuv420p", "aac", True),
        ("a.mov", "h264", "yuv420p", "pcm_s16le", False),
        ("a.mp4", "h264", "yuv420p", "ac3", False),
        ("a.mp4", "h265", "yuv420p", "aac", False),
        ("a.mov", "prores", "yuv422p10le", None, False),
        ("a.mp4", "vp9", "yuv420p", None, True),
        ("a.mp4", "av1", "yuv420p", None, True),
        ("a.webm", "vp9", "yuv420p", "libopus", True),
        ("a.mkv", "h264", "yuv420p", "aac", False),
    ],
)
def test_what_plays_in_browsers_is_known(tmp_path, name, family, pixels, sound, plays):
    path = stored(tmp_path / name, family, pixels, sound=sound)
    assert plays_in_browsers(path) is plays
    if not plays:
        copy = small_copy(path, tmp_path, lambda *said: None, "after")
        assert plays_in_browsers(copy)
        assert (probe(copy).frames, probe(copy).has_audio) == (25, sound is not None)


@pytest.mark.parametrize(
    ("name", "family", "pixels"),
    [("a.mov", "prores", "yuv422p10le"), ("a.mp4", "h264", "yuv420p"), ("a.webm", "vp9", "yuv420p"),
     ("a.mkv", "vp9", "yuv420p")],
)  # fmt: skip
def test_a_file_is_stored_as_what_it_is(tmp_path, folder, name, family, pixels):
    """A result that is like its source is written into the same kind of file, whatever name the browser gave it."""
    media = take(take_face, stored(tmp_path / name, family, pixels), folder, name="clip.mp4")
    assert media.path.suffix == Path(name).suffix


def test_a_copy_of_a_part_has_its_frames_and_its_sound(tmp_path, folder):
    video = take(take_face, clip(tmp_path / "clip.mp4", 30), folder)
    whole, part = (browser_copy(video, folder, lambda *said: None, cut) for cut in (range(30), range(10, 22)))
    pictures, wanted = frames_of(part).astype(int), frames_of(whole)[10:22].astype(int)
    assert len(pictures) == 12
    assert np.abs(pictures - wanted).mean() < 2 < np.abs(pictures - frames_of(whole)[:12]).mean()
    heard, all_of_it = sound_of(part), sound_of(whole)
    first, length = 10 * 640, 12 * 640 - 1500  # samples at 16 kHz, without the blurred end
    right, early = (np.corrcoef(heard[:length], all_of_it[at : at + length])[0, 1] for at in (first, 0))
    assert right > 0.9 > early


def test_sound_tracks_are_named(tmp_path, folder):
    path = tmp_path / "tracks.mkv"
    with av.open(str(path), "w") as out:
        streams = [out.add_stream("pcm_s16le", rate=16000, layout=layout) for layout in ("stereo", "mono")]
        streams[0].metadata.update(language="eng", title="Director")
        streams[1].metadata.update(language="und")
        for stream, channels in zip(streams, (2, 1), strict=True):
            loud = np.random.default_rng(1).integers(-9000, 9000, (1, channels * 16000)).astype(np.int16)
            block = av.AudioFrame.from_ndarray(loud, format="s16", layout=stream.codec_context.layout.name)
            block.sample_rate, block.pts = 16000, 0
            out.mux(stream.encode(block))
            out.mux(stream.encode(None))
    assert take(take_voice, path, folder).tracks == ((0, "Track 0: Director, eng, stereo"), (1, "Track 1: mono"))
    assert len(take(take_face, clip(tmp_path / "clip.mp4"), folder).tracks) == 1
    assert take(take_face, clip(tmp_path / "mute.mp4", sound=False), folder).tracks == ()


def test_samples_are_those_of_the_folder(tmp_path, folder):
    samples = tmp_path / "samples"
    samples.mkdir()
    portrait(samples / "b.png")
    clip(samples / "a.mp4")
    (samples / ".hidden").write_bytes(b"x")
    (samples / "more").mkdir()
    found = sample_files(str(samples))
    assert [path.name for path in found] == ["a.mp4", "a.speech.wav", "b.png"]
    assert take_file(found[2], take_face, folder, LIMITS).kind == "picture"
    assert sample_files(None) == []
    with pytest.raises(UserError, match="no folder"):
        sample_files(str(tmp_path / "nowhere"))
