"""Pictures in a row, one for each frame: written, and read as a film."""

import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from latentsync.errors import UserError
from latentsync.media.audio_track import AudioTrack
from latentsync.media.color import Color
from latentsync.media.hdr import PQ
from latentsync.media.image import read_image
from latentsync.media.journal import fingerprint
from latentsync.media.probe import probe
from latentsync.media.reader import VideoReader
from latentsync.media.sequence import is_sequence
from latentsync.media.source import open_source, sound_part
from latentsync.media.watermark import COMMENT
from latentsync.media.writer import VideoWriter
from latentsync.settings import Settings
from latentsync.timeline import Cut

from .test_encoding import BOX, COUNT, LOSSLESS, SIZE, clip, outside, rewritten

CHANGED = np.s_[BOX[0].start : BOX[0].stop, BOX[1].start : BOX[1].stop]


def raw(path: Path) -> np.ndarray:
    """A PNG's own numbers, as RGB or RGBA."""
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert pixels is not None
    return pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]


def noise(i: int) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def write(path: Path, count: int = 3, **more) -> None:
    with VideoWriter(path, 64, 48, Fraction(25), **more) as writer:
        for i in range(count):
            writer.write(noise(i))


@pytest.mark.parametrize("name", ["%05d.png", "a %02d b.PNG", "shot.%d.png", "Ärger_%04d.png"])
def test_frames_arrive_as_they_are(tmp_path, name):
    folder = tmp_path / "100% sure" / "made"
    folder.parent.mkdir()
    write(folder / name, 12)
    assert sorted(path.name for path in folder.iterdir()) == sorted(name % i for i in range(1, 13))
    for i in range(12):
        assert np.array_equal(read_image(folder / (name % (i + 1))), noise(i))
    with VideoReader.open(folder / name) as reader:
        info = reader.info
        assert (info.frames, info.fps, info.width, info.height) == (12, 25, 64, 48)
        assert (info.color, info.alpha, info.has_audio) == (Color(), False, False)
        order = [7, 0, 11, 3]
        for i, frame in zip(order, reader.read(order), strict=True):
            assert np.array_equal(frame, noise(i))


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("depth", [8, 16])
def test_depth_and_transparency_of_pictures(tmp_path, depth, alpha):
    """Pictures to pictures: all that is not painted stays, number for number."""
    (tmp_path / "in").mkdir()
    top, kinds = (256, np.uint8) if depth == 8 else (65536, np.uint16)
    given = [
        np.random.default_rng(i).integers(0, top, (*SIZE[::-1], 4 if alpha else 3)).astype(kinds) for i in range(COUNT)
    ]
    for i, pixels in enumerate(given):
        cv2.imwrite(str(tmp_path / "in" / f"{i + 37}.png"), pixels[..., [2, 1, 0, 3][: pixels.shape[2]]])
    out = tmp_path / "out" / "%04d.png"
    out.parent.mkdir()
    assert rewritten(tmp_path / "in" / "%d.png", out, paint=(250, 10, 90)) == ()
    for i, pixels in enumerate(given):
        made = raw(tmp_path / "out" / f"{i + 1:04d}.png")
        assert made.dtype == kinds
        keep = outside()
        assert np.array_equal(made[keep], pixels[keep])
        assert not np.array_equal(made[BOX], pixels[BOX])
        assert not alpha or np.array_equal(made[..., 3], pixels[..., 3])


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_a_deep_film_becomes_deep_pictures(tmp_path, suffix):
    kind = ("libx265", "yuv444p10le", {"x265-params": "log-level=none:crf=2"})
    origin, out = clip(tmp_path / f"in{suffix}", *kind), tmp_path / "out" / "%03d.png"
    out.parent.mkdir()
    rewritten(origin, out)
    with VideoReader.open(origin) as reader:
        for i, (_, deep) in enumerate(reader.read_deep(range(COUNT))):
            assert np.array_equal(raw(tmp_path / "out" / f"{i + 1:03d}.png"), deep)


TRANSPARENT = {
    "in.mov": ("prores_ks", "yuva444p10le", {"profile": "4"}, np.uint16, 65535),
    "in.webm": ("libvpx-vp9", "yuva420p", {"b": "2M", "auto-alt-ref": "0"}, np.uint8, 255),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_a_transparent_film_becomes_transparent_pictures(tmp_path, name):
    codec, pix_fmt, options, kind, opaque = TRANSPARENT[name]
    origin = clip(tmp_path / name, codec, pix_fmt, options, alpha=True)
    assert rewritten(origin, tmp_path / "out_%d.png") == ()
    made = raw(tmp_path / "out_1.png")
    assert (made.dtype, made[0, 0, 3], made[0, -1, 3]) == (kind, 0, opaque)


def test_hdr_stays_hdr(tmp_path):
    colors = (9, 1, 9, PQ)
    origin = clip(tmp_path / "in.mkv", "libx265", "yuv420p10le", LOSSLESS | {"x265-params": "log-level=none"}, colors)
    assert rewritten(origin, tmp_path / "%04d.png") == ()
    info = probe(tmp_path / "%04d.png")
    assert (info.color, info.kind.depth) == (Color(9, 1, 9, PQ), 16)
    assert rewritten(tmp_path / "%04d.png", tmp_path / "back.mp4") == ()
    back = probe(tmp_path / "back.mp4")
    assert (back.color.transfer, back.color.primaries, back.kind.depth) == (PQ, 9, 12)
    with VideoReader.open(origin) as one, VideoReader.open(tmp_path / "back.mp4") as two:
        for a, b in zip(one.read([0, 5]), two.read([0, 5]), strict=True):
            assert np.abs(a.astype(int) - b).mean() < 1.5


def test_pictures_say_that_they_are_srgb(tmp_path):
    write(tmp_path / "%d.png")
    with Image.open(tmp_path / "1.png") as image:
        assert "srgb" in image.info


def tone(path: Path, codec: str, rate: int, layout: str, seconds: float = 0.2) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.codec_context.layout = layout
        count = av.AudioLayout(layout).nb_channels
        wave = 0.5 * np.sin(np.arange(round(rate * seconds)) / 20)
        data = np.ascontiguousarray(np.repeat(wave[:, None], count, 1).reshape(1, -1) * (2**31 - 1)).astype(np.int32)
        frame = av.AudioFrame.from_ndarray(data, format="s32", layout=layout)
        frame.pts, frame.time_base = 0, Fraction(1, rate)
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


KEPT = {"pcm_s16le": "pcm_s16le", "pcm_s24le": "pcm_s24le", "pcm_f32le": "pcm_f32le", "flac": "pcm_s24le"}


@pytest.mark.parametrize(("codec", "kept"), KEPT.items())
@pytest.mark.parametrize("layout", ["mono", "stereo"])
def test_sound_lies_beside_as_wav(tmp_path, codec, kept, layout):
    voice = tone(tmp_path / "voice.mka", codec, 44100, layout)
    write(tmp_path / "shot" / "a_%03d.png", 4, audio=AudioTrack(voice))
    with av.open(str(tmp_path / "shot" / "a_sound.wav")) as made, av.open(str(voice)) as given:
        stream = made.streams.audio[0]
        count = {"mono": 1, "stereo": 2}[layout]
        assert (stream.codec_context.name, stream.rate, stream.layout.nb_channels) == (kept, 44100, count)
        one, two = (
            np.concatenate([frame.to_ndarray() for frame in file.decode(audio=0)], 1).astype(float)
            for file in (made, given)
        )
    one, two = (wave.reshape(-1, count) / np.abs(wave).max() for wave in (one, two))
    wanted = round(4 / 25 * 44100)  # cut at the picture's end
    assert len(one) == wanted
    assert np.abs(one - two[:wanted]).max() < 1e-4


def test_of_several_tracks_the_one_that_is_heard(tmp_path, caplog):
    one, two = (tone(tmp_path / f"{name}.wav", "pcm_s16le", 16000, "mono") for name in "ab")
    with av.open(str(tmp_path / "two.mka"), "w") as container:
        inputs = [av.open(str(path)) for path in (one, two)]
        streams = [container.add_stream_from_template(file.streams.audio[0]) for file in inputs]
        for file, stream in zip(inputs, streams, strict=True):
            for packet in file.demux(audio=0):
                packet.stream = stream
                if packet.size:
                    container.mux(packet)
    write(tmp_path / "%d.png", audio=AudioTrack(tmp_path / "two.mka"))
    with av.open(str(tmp_path / "sound.wav")) as made:
        assert len(made.streams.audio) == 1
    assert "track 1 is left out" in caplog.text


def test_an_older_sequence_goes_when_the_new_one_is_complete(tmp_path):
    write(tmp_path / "%02d.png", 9)
    (tmp_path / "99 notes.png").write_bytes(b"mine")
    (tmp_path / "7.png").write_bytes(b"mine too")
    before = (tmp_path / "03.png").read_bytes()
    writer = VideoWriter(tmp_path / "%02d.png", 64, 48, Fraction(25))
    writer.write(noise(77))
    assert (tmp_path / "03.png").read_bytes() == before
    with pytest.raises(RuntimeError), writer:
        raise RuntimeError
    assert len(list(tmp_path.iterdir())) == 11
    assert np.array_equal(read_image(tmp_path / "01.png"), noise(0))
    write(tmp_path / "%02d.png", 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["01.png", "02.png", "7.png", "99 notes.png"]


def test_nothing_is_left_of_a_failure(tmp_path):
    writer = VideoWriter(tmp_path / "new" / "%d.png", 64, 48, Fraction(25))
    writer.write(noise(0))
    with pytest.raises(RuntimeError), writer:
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_goes_what_another_writes_stays(tmp_path):
    program = (
        "import os, sys; from tests.media.test_sequence import *\n"
        "writer = VideoWriter(sys.argv[1], 64, 48, Fraction(25)); writer.write(noise(0)); os._exit(3)"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path / "%d.png")], check=False, timeout=120)
    assert (killed.returncode, len(list(tmp_path.iterdir()))) == (3, 1)
    first = VideoWriter(tmp_path / "%d.png", 64, 48, Fraction(25))
    first.write(noise(1))
    write(tmp_path / "%d.png", 1)
    assert len(list(tmp_path.iterdir())) == 2
    first.close()
    assert [path.name for path in tmp_path.iterdir()] == ["1.png"]
    assert np.array_equal(read_image(tmp_path / "1.png"), noise(1))


@pytest.mark.parametrize("name", ["out.png", "out_%s.png", "%d_%d.png", "100%.png", "a_%5d.png", "%%05d.png"])
def test_names_without_a_number(tmp_path, name):
    with pytest.raises(UserError, match=r"frames need a number in their name, as in \S*_%05d\.png\.$"):
        VideoWriter(tmp_path / name, 64, 48, Fraction(25))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["%05d.jpg", "%05d.gif", "out.avi"])
def test_other_endings(tmp_path, name):
    with pytest.raises(UserError, match=r"can be written as \.mp4.*, or as name_%05d\.png\.$"):
        VideoWriter(tmp_path / name, 64, 48, Fraction(25))


def test_the_watermark_is_in_every_picture(tmp_path):
    origin = clip(tmp_path / "in.mp4", "libx264", "yuv420p", LOSSLESS)
    rewritten(origin, tmp_path / "%d.png", watermark="metadata")
    for i in (1, COUNT):
        with Image.open(tmp_path / f"{i}.png") as image:
            assert image.info["Comment"] == COMMENT  # pyright: ignore[reportAttributeAccessIssue]


def test_codecs_of_films_are_refused(tmp_path):
    origin = clip(tmp_path / "in.mp4", "libx264", "yuv420p", LOSSLESS)
    with pytest.raises(UserError, match="this kind of file holds png"):
        rewritten(origin, tmp_path / "%d.png", codec="h264")
    assert rewritten(origin, tmp_path / "%d.png", pixel_format="rgb48be") == ()


def test_what_is_read_is_not_replaced(tmp_path):
    write(tmp_path / "%d.png", 6)
    before = (tmp_path / "1.png").read_bytes()
    for origin in (tmp_path / "%d.png", tmp_path / "." / "%d.png", tmp_path / "2.png"):
        with pytest.raises(UserError, match="would be replaced"):
            rewritten(origin, tmp_path / "%d.png")
    assert (tmp_path / "1.png").read_bytes() == before


@pytest.mark.parametrize("missing", [2, 5])
def test_a_picture_that_is_missing(tmp_path, missing):
    write(tmp_path / "%03d.png", 6)
    (tmp_path / f"{missing:03d}.png").unlink()
    with pytest.raises(UserError, match=rf"there is no {missing:03d}\.png"):
        probe(tmp_path / "%03d.png")


def test_no_pictures_at_all(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"There are no pictures .*, such as face_0001\.png"):
            probe(folder / "face_%04d.png")


def test_a_file_of_that_very_name(tmp_path):
    path = tmp_path / "%d.png"
    Image.fromarray(noise(0)).save(path)
    assert not is_sequence(path)
    with pytest.raises(UserError, match="is a picture, not a video"):
        probe(path)


@pytest.mark.parametrize("ending", ["jpg", "tif"])
def test_other_kinds_of_pictures(tmp_path, ending):
    for i in range(3):
        Image.fromarray(np.full((48, 64, 3), 40 * (i + 1), np.uint8)).save(tmp_path / f"{i}.{ending}")
    with VideoReader.open(tmp_path / f"%d.{ending}") as reader:
        for i, frame in enumerate(reader.read(range(3))):
            assert np.abs(frame.astype(int) - 40 * (i + 1)).max() <= 1


@pytest.mark.parametrize("kind", ["L", "P", "I;16"])
def test_gray_and_palette(tmp_path, kind):
    for i in range(3):
        gray = np.full((48, 64), 60 * (i + 1), np.uint8)
        image = Image.fromarray(gray.astype(np.uint16) * 257) if kind == "I;16" else Image.fromarray(gray).convert(kind)
        image.save(tmp_path / f"{i}.png")
    with VideoReader.open(tmp_path / "%d.png") as reader:
        for i, frame in enumerate(reader.read(range(3))):
            assert np.abs(frame.astype(int) - 60 * (i + 1)).max() <= 1


@pytest.mark.parametrize(("rate", "start", "wanted"), [(25, 0, 10), (50, Fraction(1, 10), 5), (10, Fraction(1, 2), 5)])
def test_the_rate_is_that_of_stills(tmp_path, rate, start, wanted):
    write(tmp_path / "%d.png", 10)
    with open_source(tmp_path / "%d.png", Settings(still_fps=rate), Cut(Fraction(start))) as (source, shown):
        assert (shown.fps, shown.frames, shown.still) == (rate, wanted, False)
        assert np.array_equal(next(iter(source.read([0]))), noise(10 - wanted))
        with pytest.raises(UserError, match="have no sound; give a speech"):
            sound_part(tmp_path / "%d.png", None, shown, Cut())


@pytest.mark.parametrize("rate", [25, 50])
def test_a_part_of_deep_pictures(tmp_path, rate):
    from latentsync.media.output import deep_frames

    for i in range(8):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((*SIZE[::-1], 3), 257 * i + 5000, np.uint16))
    settings = Settings(still_fps=rate)
    with open_source(tmp_path / "%d.png", settings, Cut(Fraction(3, rate))) as (_, shown):
        pairs = list(deep_frames(tmp_path / "%d.png", settings, shown, range(5)))
    assert [int(deep[0, 0, 0]) for _, deep in pairs] == [257 * i + 5000 for i in range(3, 8)]


def test_another_picture_is_another_clip(tmp_path):
    write(tmp_path / "%d.png", 3)
    name = tmp_path / "%d.png"
    before = fingerprint({}, name)
    assert fingerprint({}, name) == before
    shutil.copyfile(tmp_path / "3.png", tmp_path / "4.png")
    assert fingerprint({}, name) != before
