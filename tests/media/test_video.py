"""Video in and out. Clips are made here by PyAV, small; real ones come by the `media` fixture."""

import errno
import os
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentsync.errors import UserError
from latentsync.media import audio_track as soundtrack
from latentsync.media import writer
from latentsync.media.audio_track import AudioTrack, audio_duration, has_audio
from latentsync.media.color import Color, Scaler
from latentsync.media.image import is_image, read_image
from latentsync.media.probe import probe
from latentsync.media.reader import VideoReader
from latentsync.media.writer import VideoWriter
from latentsync.timeline import fit_timeline

FLAT = [(255, 255, 255), (0, 0, 0), (128, 128, 128), (255, 0, 0), (0, 0, 255), (200, 120, 80), (60, 180, 100)]


def numbered(i, height=48, width=64):
    """A picture that bears its number: 8 blocks, black or white."""
    frame = np.zeros((height, width, 3), np.uint8)
    for bit in range(8):
        if i >> bit & 1:
            frame[:, bit * width // 8 : (bit + 1) * width // 8] = 255
    return frame


def number_of(frame):
    width = frame.shape[1]
    middle = [frame[frame.shape[0] // 2, bit * width // 8 + width // 16].mean() > 127 for bit in range(8)]
    return sum(1 << bit for bit, white in enumerate(middle) if white)


def write(path, frames, fps=Fraction(25), size=(64, 48), **more):
    with VideoWriter(path, *size, Fraction(fps), **more) as out:
        for frame in frames:
            out.write(frame)
    return path


def read(path, indices=None):
    info = probe(path)
    with VideoReader(info) as reader:
        return list(reader.read(range(info.frames) if indices is None else indices))


def encode(path, codec, pix_fmt, stamps, rate=25, base=Fraction(1, 1000), options=None, size=(64, 48), form=None):
    """A clip with any time stamps, straight from PyAV."""
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = base
        for i, pts in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(numbered(i, size[1], size[0]), format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = pts, base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def tone(path, codec, seconds=1.5, rate=44100, layout="stereo"):
    """A chirp, so that a shift of one sample shows."""
    count = round(seconds * rate)
    t = np.arange(count) / rate
    wave = (0.4 * np.sin(2 * np.pi * (200 + 400 * t) * t)).astype(np.float32)
    channels = len(av.AudioLayout(layout).channels)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.codec_context.layout = layout
        stream.codec_context.time_base = Fraction(1, rate)
        resampler = av.AudioResampler(format=stream.codec_context.format.name, layout=layout, rate=rate)
        size = stream.codec_context.frame_size or 1024
        for start in range(0, count, size):
            piece = np.repeat(wave[None, start : start + size], channels, 0)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece), format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            for part in resampler.resample(frame):
                container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


def packets(path):
    with av.open(str(path)) as container:
        return [bytes(p) for p in container.demux(container.streams.audio[0]) if p.size]


def sound(path):
    """Mono samples as a player hears them, and the time of the first."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        frames = list(container.decode(stream))
        samples = [f.to_ndarray() for f in frames]
        planar = frames[0].format.is_planar
        first = frames[0].pts * stream.time_base
        width = 1 if planar else len(frames[0].layout.channels)
    wave = np.concatenate([s[0] if planar else s[0, ::width] for s in samples]).astype(np.float64)
    return wave / (32768 if frames[0].format.bytes == 2 else 2**31 if "s32" in frames[0].format.name else 1), first


def stream_end(path, kind):
    with av.open(str(path)) as container:
        stream = next(s for s in container.streams if s.type == kind)
        return ((stream.start_time or 0) + stream.duration) * stream.time_base


# --- what a file is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "fps", "frames", "rotation", "variable"),
    [
        ("edge/fps_24.mp4", (512, 512), "24", 120, 0, False),
        ("edge/fps_29.97.mp4", (512, 512), "30000/1001", 150, 0, False),
        ("edge/fps_50.mp4", (512, 512), "50", 250, 0, False),
        ("edge/fps_60.mp4", (512, 512), "60", 300, 0, False),
        ("edge/noface_cars_12.5fps.mp4", (768, 432), "25/2", 377, 0, False),
        ("edge/hand_over_mouth_23.976fps.mp4", (640, 360), "24000/1001", 472, 0, False),
        ("edge/rotation_metadata_portrait.mp4", (540, 960), "25", 125, 90, False),
        ("edge/vfr_dropped_frames.mp4", (512, 512), "25", 150, 0, True),
        ("edge/face_then_noface_vfr_hevc.mov", (960, 540), "30", 192, 0, True),
        ("edge/noface_then_face_vfr_hevc.mov", (960, 540), "30", 191, 0, True),
        ("edge/small_face_noaudio_noduration.mkv", (640, 480), "30", 65, 0, False),
        ("edge/mpegts_start_time_not_zero.ts", (512, 512), "25", 75, 0, False),
        ("edge/vp9_opus.webm", (512, 512), "25", 75, 0, False),
        ("edge/odd_size_333x301_yuv444.mp4", (333, 301), "25", 75, 0, False),
        ("edge/five_frames.mp4", (512, 512), "25", 5, 0, False),
        ("edge/noface_cartoon_4s.mp4", (960, 540), "24", 95, 0, False),  # an edit list hides three packets
        ("clips/grid/s2_swwp2s.mpg", (360, 288), "25", 75, 0, False),
        ("clips/latentsync_demo3.mp4", (1080, 1920), "30", 600, 0, False),
    ],
)
def test_probe_of_real_clips(media, name, size, fps, frames, rotation, variable):
    info = probe(media / name)
    assert (info.width, info.height, info.fps, info.frames) == (*size, Fraction(fps), frames)
    assert (info.rotation, info.variable_rate) == (rotation, variable)
    assert info.duration == frames / Fraction(fps)


def test_sound_position(media):
    assert probe(media / "edge/no_audio_stream.mp4").audio_start is None
    assert not probe(media / "edge/no_audio_stream.mp4").has_audio
    assert probe(media / "edge/mpegts_start_time_not_zero.ts").start == Fraction(133200, 90000)
    assert probe(media / "edge/mpegts_start_time_not_zero.ts").audio_start == Fraction(132218 - 133200, 90000)
    assert probe(media / "edge/face_then_noface_vfr_hevc.mov").audio_start == Fraction(107164, 44100)
    assert has_audio(media / "edge/fps_24.mp4")
    assert not has_audio(media / "edge/no_audio_stream.mp4")


def test_audio_duration_to_the_sample(media, tmp_path):
    assert audio_duration(media / "audio/latentsync_demo1_audio.wav") == Fraction(153600, 16000)
    assert audio_duration(media / "audio/jfk_1961_11s.flac") == 11
    assert audio_duration(tone(tmp_path / "a.m4a", "aac")) == Fraction(3, 2)  # not the padding of the last packet


def bad_files(folder):
    good = write(folder / "good.mp4", map(numbered, range(30)))
    data = good.read_bytes()
    files = {
        "missing.mp4": None,
        "text.txt": b"no video here, only words\n" * 50,
        "text.mp4": b"no video here, only words\n" * 50,
        "empty.mp4": b"",
        "page.mp4": b"<!DOCTYPE html><html><body>Not found</body></html>",
        "cut_in_moov.mp4": data[:300],
        "no_moov.mp4": data[: data.index(b"moov") - 4] + data[data.index(b"mdat") - 4 :],
        "noise.mkv": np.random.default_rng(0).bytes(5000),
    }
    for name, content in files.items():
        if content is not None:
            (folder / name).write_bytes(content)
    cv2.imwrite(str(folder / "still.png"), numbered(5))
    cv2.imwrite(str(folder / "still.jpg"), numbered(5))
    return [folder / n for n in (*files, "still.png", "still.jpg")] + [folder]


def test_bad_input_is_one_sentence(tmp_path):
    tone(tmp_path / "only_sound.m4a", "aac")
    tone(tmp_path / "only_sound.wav", "pcm_s16le")
    for path in [*bad_files(tmp_path), tmp_path / "only_sound.m4a", tmp_path / "only_sound.wav"]:
        for value in (path, str(path)):
            with pytest.raises(UserError) as caught:
                probe(value)
            message = str(caught.value)
            assert str(path) in message
            assert message.endswith(".")
            assert "\n" not in message


def test_bad_sound_is_one_sentence(tmp_path):
    silent = write(tmp_path / "silent.mp4", [numbered(1)])
    for path in [*bad_files(tmp_path), silent]:
        with pytest.raises(UserError, match=r"\.$"):
            audio_duration(path)
        with pytest.raises(UserError, match=r"\.$"):
            write(tmp_path / "out.mp4", [numbered(0)], audio=AudioTrack(path))
        assert not (tmp_path / "out.mp4").exists()


def test_truncated_data_gives_what_is_there(tmp_path):
    data = write(tmp_path / "a.mp4", map(numbered, range(60))).read_bytes()  # index first, so it can be opened
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 3 // 4])
    info = probe(tmp_path / "cut.mp4")
    assert 1 <= info.frames <= 60
    with VideoReader(info) as reader:
        assert len(list(reader.read(range(info.frames)))) == info.frames


# --- reading -------------------------------------------------------------------------------------------------------

ORDERS = {
    "pingpong": lambda n: list(fit_timeline(Fraction(25), n, Fraction(2 * n, 25), "pingpong").source_indices()),
    "loop": lambda n: [*range(n - 9, n), *range(9)],
    "backwards": lambda n: list(range(0, n, 3))[::-1],
    "jumps": lambda n: np.random.default_rng(0).integers(0, n, 12).tolist(),
    "held": lambda n: [0, 0, 0, n - 1, n - 1, n // 2, n // 2],
}


def plain_decode(path):
    with av.open(str(path)) as container:
        return [np.ascontiguousarray(f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]


@pytest.mark.parametrize(
    "name",
    [
        "edge/tiny_face_270x480.mp4",  # H.264, B-frames, one key frame, rows padded
        "edge/vp9_opus.webm",
        "edge/small_face_noaudio_noduration.mkv",
        "edge/mpegts_start_time_not_zero.ts",
        "edge/noface_cartoon_4s.mp4",
        "clips/grid/s2_swwp2s.mpg",
        "clips/grid_s1/s1_lbij7s.mpg",
        "clips/hdtf_wda_aoc.mp4",
    ],
)
def test_any_order_gives_the_frames_of_a_plain_decode(media, name):
    info = probe(media / name)
    with av.open(str(info.path)) as container:
        scaler = Scaler("rgb24", info.width, info.height, info.color, inward=True)
        truth = [scaler(f).to_ndarray()[::4, ::4].copy() for f in container.decode(video=0)]
    assert info.frames == len(truth) == len({f.tobytes() for f in truth})
    with VideoReader(info) as reader:
        for make in ORDERS.values():
            order = make(info.frames)
            for i, frame in zip(order, reader.read(order), strict=True):
                assert np.array_equal(frame[::4, ::4], truth[i])


@pytest.mark.parametrize("name", ["edge/fps_24.mp4", "edge/hand_over_mouth_23.976fps.mp4", "clips/hdtf_wda_aoc.mp4"])
def test_colors_are_those_of_swscale(media, name):
    ours, its = read(media / name, [0])[0].astype(int), plain_decode(media / name)[0].astype(int)
    assert np.abs(ours - its).mean() < 2
    assert np.abs(ours - its).max() <= 24


def test_frames_are_contiguous_and_the_callers_own(media):
    frames = read(media / "edge/tiny_face_270x480.mp4", [3, 3])
    assert all(f.flags.c_contiguous and f.flags.writeable and f.dtype == np.uint8 for f in frames)
    frames[0][:] = 0
    assert frames[1].any()


@pytest.mark.parametrize(
    ("suffix", "codec", "pix_fmt", "options"),
    [
        ("avi", "libx264", "yuv420p", {"bf": "3"}),  # time stamps are wrong
        ("h264", "libx264", "yuv420p", {"bf": "3"}),  # there are none
        ("avi", "mpeg4", "yuv420p", {"bf": "2"}),
        ("mkv", "libx264", "yuv420p", {"bf": "3", "g": "12", "x264-params": "open-gop=1"}),
        ("ts", "libx264", "yuv420p", {"bf": "3", "g": "12", "x264-params": "open-gop=1"}),
        ("mpg", "mpeg1video", "yuv420p", {"bf": "2", "g": "12"}),
        ("mov", "prores_ks", "yuva444p10le", {}),
        ("mov", "qtrle", "argb", {}),
        ("mov", "png", "rgba", {}),
        ("mkv", "ffv1", "gray", {}),
        ("mkv", "ffv1", "gray16le", {}),
        ("mp4", "libx264", "yuv444p", {}),
        ("mp4", "libx264", "yuv420p10le", {}),
        ("mkv", "mjpeg", "yuvj420p", {}),
        ("webm", "libvpx-vp9", "yuva420p", {}),
        ("webm", "libvpx", "yuv420p", {"auto-alt-ref": "1", "lag-in-frames": "16"}),
        ("gif", "gif", "rgb8", {}),
    ],
)
def test_kinds_of_video(tmp_path, suffix, codec, pix_fmt, options):
    path = encode(tmp_path / f"a.{suffix}", codec, pix_fmt, range(60), 25, Fraction(1, 25), options)
    info = probe(path)
    assert (info.width, info.height, info.fps, info.variable_rate) == (64, 48, 25, False)
    assert info.frames in (60, 59, 61)  # a raw stream or AVI may lose one at its end
    order = [*range(info.frames), *range(info.frames - 1, -1, -1), 40, 3, 59 % info.frames, 20]
    with VideoReader(info) as reader:
        assert [number_of(f) for f in reader.read(order)] == order


@pytest.mark.parametrize(("width", "height"), [(101, 67), (333, 301), (64, 49), (66, 48), (3840, 2160), (16, 16)])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
def test_sizes_come_back(tmp_path, width, height, suffix):
    count = 1 if width > 1000 else 3
    if width > 1000 and suffix != ".mp4":
        pytest.skip("4K is slow; once is enough")
    path = write(tmp_path / f"a{suffix}", [numbered(i, height, width) for i in range(count)], size=(width, height))
    frames = read(path)
    assert [f.shape for f in frames] == [(height, width, 3)] * count
    assert [number_of(f) for f in frames] == list(range(count))


def test_rotation_is_undone(media):
    info = probe(media / "edge/rotation_metadata_portrait.mp4")
    stored = plain_decode(info.path)[0].astype(int)
    with VideoReader(info) as reader:
        upright = next(reader.read([0])).astype(int)
    assert np.abs(upright - np.rot90(stored, -1)).mean() < 2


def test_mirrored_display_matrices():
    from latentsync.media.probe import _degrees, _orientation

    picture = np.arange(6).reshape(2, 3)
    cases = {
        (1, 0, 0, 1): (picture, 0),
        (0, 1, -1, 0): (np.rot90(picture, -1), 90),
        (-1, 0, 0, -1): (np.rot90(picture, 2), 180),
        (0, -1, 1, 0): (np.rot90(picture), 270),
        (-1, 0, 0, 1): (picture[:, ::-1], 0),
        (1, 0, 0, -1): (picture[::-1], 0),
    }
    for (a, b, c, d), (expected, degrees) in cases.items():
        matrix = np.array([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30], np.int32)
        turn = _orientation(_framed(matrix))
        transpose, flip_x, flip_y = turn
        image = picture.T if transpose else picture
        assert np.array_equal(image[:: -1 if flip_y else 1, :: -1 if flip_x else 1], expected)
        assert _degrees(turn) == degrees


def _framed(matrix):
    class Type:
        name = "DISPLAYMATRIX"

    class Data(bytes):
        type = Type

    class Frame:
        side_data = (Data(matrix.tobytes()),)

    return Frame


def test_variable_rate_shows_each_frame_near_its_time(media):
    info = probe(media / "edge/vfr_dropped_frames.mp4")
    times = [(t - info.index.times[0]) * info.index.base for t in info.index.times]
    for i in range(info.frames):
        shown = info.source(i)
        assert times[shown] <= (i + Fraction(1, 2)) / info.fps + info.index.base
        assert shown + 1 == len(times) or times[shown + 1] > (i + Fraction(1, 2)) / info.fps - info.index.base
    assert len(read(info.path)) == 150


@given(st.lists(st.sampled_from([33, 34, 67, 100, 250]), min_size=3, max_size=60))
def test_stamps_rounded_to_milliseconds_lose_no_frame(steps):
    from array import array

    from latentsync.media.probe import FrameIndex, VideoInfo, _own_rate

    exact = np.cumsum([0, *(round(s * 3 / 100) for s in steps)])  # whole frames at 30 fps …
    times = np.round(exact * 1000 / 30).astype(int)  # … as Matroska stores them
    index = FrameIndex(array("q", times.tolist()), array("q", [0]), Fraction(1, 1000))
    fps, count = _own_rate(index, [Fraction(30)], [(int(times[-1]), 33, False)])
    if fps != 30:  # a steady 15, 10 or 7.5 fps is that, though the last may be shown four times as often
        return
    info = VideoInfo(
        Path("x"), 1, 1, fps, count or len(times), 0, bool(count), False, Fraction(1), Fraction(0), None, Color(),
        Fraction(1), index,
    )  # fmt: skip
    assert sorted({info.source(i) for i in range(info.frames)}) == list(range(len(times)))
    if count:
        assert all(info.source(int(t)) == k for k, t in enumerate(exact))
        assert count == exact[-1] + 1


def test_reading_holds_few_frames(media):
    with VideoReader(probe(media / "clips/obama_a_20s.mp4")) as reader:
        for _ in reader.read([*range(200), *range(199, 100, -1)]):
            assert len(reader._recent) <= 32


# --- writing -------------------------------------------------------------------------------------------------------

RATES = ["16", "18", "24000/1001", "24", "25", "30000/1001", "30", "50", "60"]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_time_stamps_are_exact(tmp_path, rate, suffix):
    fps = Fraction(rate)
    for count in (1, 2, 47):
        path = write(tmp_path / f"{count}{suffix}", (numbered(i, 16, 64) for i in range(count)), fps, (64, 16))
        info = probe(path)
        assert (info.fps, info.frames, info.start, info.variable_rate) == (fps, count, 0, False)
        assert [t * info.index.base for t in info.index.times] == [i / fps for i in range(count)]
        assert stream_end(path, "video") == count / fps
        assert [number_of(f) for f in read(path)] == list(range(count))


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("suffix", [".mkv", ".webm"])
def test_rate_survives_millisecond_stamps(tmp_path, rate, suffix):
    path = write(tmp_path / f"a{suffix}", (numbered(i, 16, 64) for i in range(47)), Fraction(rate), (64, 16))
    info = probe(path)
    assert (info.fps, info.frames, info.variable_rate) == (Fraction(rate), 47, False)


@pytest.mark.parametrize("matrix", [1, 2, 5, 6, 7, 9])
@pytest.mark.parametrize("span", [0, 1, 2])
@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_flat_colors_come_back(tmp_path, matrix, span, suffix):
    color = Color(matrix, span, matrix if matrix != 2 else 2, 1)
    for name, size in (("even", (64, 48)), ("odd", (65, 49))):
        path = tmp_path / f"{name}{suffix}"
        write(path, (np.full((size[1], size[0], 3), c, np.uint8) for c in FLAT), size=size, color=color)
        for wanted, got in zip(FLAT, read(path), strict=True):
            assert np.abs(got[8:-8, 8:-8].astype(int) - wanted).max() <= 3, wanted
            assert np.abs(got[8:-8, 8:-8].astype(int).mean((0, 1)) - wanted).max() <= 2.1, wanted
        if suffix == ".mp4":
            again = probe(path).color
            assert (again.matrix, again.range) == (matrix, span or 1)  # players take unsaid for limited


def test_colour_is_bt709_limited_unless_told(tmp_path):
    assert probe(write(tmp_path / "a.mp4", [numbered(3)])).color == Color(1, 1, 1, 1)


@pytest.mark.parametrize(
    "name", ["edge/small_face_noaudio_noduration.mkv", "edge/fps_24.mp4", "clips/hdtf_wda_aoc.mp4"]
)
def test_source_colour_is_kept(media, tmp_path, name):
    info = probe(media / name)
    before = read(info.path, range(4))
    path = write(tmp_path / "a.mp4", before, info.fps, (info.width, info.height), color=info.color, crf=4)
    assert probe(path).color in (info.color, replace(info.color, range=1))
    for a, b in zip(before, read(path), strict=True):
        assert np.abs(a.astype(int).mean((0, 1)) - b.astype(int).mean((0, 1))).max() < 1
        assert np.abs(a.astype(int) - b.astype(int)).mean() < 3


@pytest.mark.parametrize("name", ["edge/fps_24.mp4", "clips/hdtf_wda_aoc.mp4", "edge/hand_over_mouth_23.976fps.mp4"])
def test_untouched_pixels_reach_the_encoder_unchanged(media, name):
    info = probe(media / name)
    with av.open(str(info.path)) as container:
        stored = next(container.decode(video=0))
    with VideoReader(info) as reader:
        again = av.VideoFrame.from_ndarray(next(reader.read([0])), format="rgb24")
    again.pts = 0
    again = Scaler("yuv420p", info.width, info.height, info.color, inward=False)(again)
    a, b = (f.to_ndarray().astype(int) for f in (stored, again))
    assert (a != b).mean() < 0.02  # colors outside RGB


def test_pixel_aspect_is_kept(tmp_path):
    assert probe(write(tmp_path / "a.mp4", [numbered(1)], aspect=Fraction(16, 15))).aspect == Fraction(16, 15)


def test_the_index_comes_first(tmp_path):
    data = write(tmp_path / "a.mp4", map(numbered, range(30))).read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_wrong_frames_are_refused(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", 64, 48, Fraction(25)) as out:
        out.write(numbered(0))
        for frame in (numbered(0, 50, 64), numbered(0).astype(float), numbered(0)[..., :2]):
            with pytest.raises(ValueError, match="uint8"):
                out.write(frame)


# --- nothing half-written ------------------------------------------------------------------------------------------


def test_bad_targets_are_one_sentence(tmp_path):
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / "folder.mp4").mkdir()
    for target, word in [
        (tmp_path, "folder"),
        (tmp_path / "folder.mp4", "folder"),
        (tmp_path / "a.avi", r"\.mp4, .*\.webm"),
        (tmp_path / "a", r"\.mp4"),
        (tmp_path / "missing" / "a.mp4", "no folder"),
        (tmp_path / "file.txt" / "a.mp4", "no folder"),
    ]:
        with pytest.raises(UserError, match=word):
            VideoWriter(target, 64, 48, Fraction(25))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file.txt", "folder.mp4"]


@pytest.mark.skipif(os.name == "nt" or getattr(os, "geteuid", lambda: 0)() == 0, reason="this user may write anywhere")
def test_unwritable_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="writ"):
        VideoWriter(tmp_path / "a.mp4", 64, 48, Fraction(25))
    tmp_path.chmod(0o700)


def test_refused_open_is_one_sentence(tmp_path, monkeypatch):
    def refuse(*_args, **_more):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(writer.av, "open", refuse)
    with pytest.raises(UserError, match="Permission denied"):
        VideoWriter(tmp_path / "a.mp4", 64, 48, Fraction(25))


def test_failure_leaves_the_old_file(tmp_path):
    target = write(tmp_path / "a.mp4", [numbered(9)])
    before = target.read_bytes()

    def broken_off():
        for i in range(70):
            yield numbered(i)
            assert target.read_bytes() == before
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(target, broken_off())
    assert target.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    write(target, map(numbered, range(5)))
    assert probe(target).frames == 5
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_no_frames_is_an_error(tmp_path):
    with pytest.raises(UserError, match="nothing was written"):
        VideoWriter(tmp_path / "a.mp4", 64, 48, Fraction(25)).close()
    assert not list(tmp_path.iterdir())


LIMITED = """
import resource, sys
from fractions import Fraction
import numpy as np
from latentsync.errors import UserError
from latentsync.media.audio_track import AudioTrack
from latentsync.media.writer import VideoWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
noise = np.random.default_rng(0)
try:
    with VideoWriter(sys.argv[1], 64, 48, Fraction(25), audio=AudioTrack(sys.argv[3])) as out:
        for i in range(40):
            out.write(noise.integers(0, 255, (48, 64, 3), np.uint8))
except UserError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limit to set")
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_a_full_disk_leaves_nothing(tmp_path, suffix):
    voice = tone(tmp_path / "voice.wav", "pcm_s16le")
    whole = write(tmp_path / f"whole{suffix}", map(numbered, range(2))).stat().st_size
    for limit in (0, whole // 2, 30_000, 100_000):
        target = tmp_path / f"out{suffix}"
        command = [sys.executable, "-c", LIMITED, str(target), str(limit), str(voice)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
        assert done.returncode == 0, done.stderr
        assert "could not be written" in done.stdout
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["voice.wav", f"whole{suffix}"])


def test_no_space_left_says_so(tmp_path, monkeypatch):
    out = VideoWriter(tmp_path / "a.mp4", 64, 48, Fraction(25))

    class Full:
        def mux(self, _packets):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(out, "_container", Full())
    with pytest.raises(UserError, match="disk is full"):
        out.write(numbered(0))
    assert not list(tmp_path.iterdir())


# --- sound ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "codec", "suffix"),
    [
        ("m4a", "aac", ".mp4"), ("m4a", "aac", ".mov"), ("m4a", "aac", ".mkv"), ("m4a", "alac", ".mp4"),
        ("mp3", "libmp3lame", ".mp4"), ("mp3", "libmp3lame", ".mov"), ("mp3", "libmp3lame", ".mkv"),
        ("flac", "flac", ".mp4"), ("flac", "flac", ".mkv"), ("ac3", "ac3", ".mp4"),
        ("ogg", "libopus", ".mkv"), ("ogg", "libopus", ".mp4"), ("ogg", "libopus", ".webm"),
        ("aac", "aac", ".mp4"), ("ts", "aac", ".mp4"),
    ],
)  # fmt: skip
def test_sound_is_copied_packet_for_packet(tmp_path, source, codec, suffix):
    voice = tone(tmp_path / f"voice.{source}", codec, rate=48000 if codec == "libopus" else 44100)
    frames = 40  # 1.6 s, longer than the sound
    path = write(tmp_path / f"a{suffix}", map(numbered, range(frames)), audio=AudioTrack(voice))
    assert [number_of(f) for f in read(path)] == list(range(frames))
    framing = 7 if source in ("aac", "ts") else 0  # the ADTS header, which MP4 says once for all
    assert [p[framing:] for p in packets(voice)] == packets(path)
    original, _ = sound(voice)
    copied, first = sound(path)
    info = probe(path)
    assert len(copied) >= len(original) - 1152
    assert delay(original, copied) / 44100 + first - info.start == pytest.approx(0, abs=0.002)


def delay(original, other):
    """Samples by which `other` is late, from the correlation of a stretch in the middle."""
    piece = original[20000:40000]
    spectrum = np.fft.rfft(other, 1 << 18) * np.conj(np.fft.rfft(piece, 1 << 18))
    shift = int(np.argmax(np.fft.irfft(spectrum)))
    return (shift if shift < 1 << 17 else shift - (1 << 18)) - 20000


@pytest.mark.parametrize(
    ("source", "codec", "rate", "layout", "suffix", "written"),
    [
        ("wav", "pcm_s16le", 44100, "stereo", ".mp4", "aac"), ("wav", "pcm_s16le", 16000, "mono", ".mp4", "aac"),
        ("wav", "pcm_s24le", 48000, "5.1", ".mp4", "aac"), ("wav", "pcm_s16le", 8000, "mono", ".mp4", "aac"),
        ("wav", "pcm_f32le", 96000, "stereo", ".mp4", "aac"), ("flac", "flac", 22050, "stereo", ".mov", "aac"),
        ("wav", "pcm_s16le", 44100, "stereo", ".mov", "pcm_s16le"),
        ("wav", "pcm_s24le", 44100, "mono", ".mkv", "pcm_s24le"),
        ("wav", "pcm_s16le", 48000, "stereo", ".webm", "opus"), ("wav", "pcm_s16le", 44100, "mono", ".webm", "opus"),
        ("m4a", "aac", 44100, "stereo", ".webm", "opus"),
    ],
)  # fmt: skip
def test_sound_is_encoded_to_the_sample(tmp_path, source, codec, rate, layout, suffix, written):
    voice = tone(tmp_path / f"voice.{source}", codec, rate=rate, layout=layout)
    path = write(tmp_path / f"a{suffix}", map(numbered, range(30)), audio=AudioTrack(voice))  # 1.2 s: cut
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        got = stream.codec_context
        assert (got.name.replace("lib", ""), len(got.layout.channels)) == (
            written,
            len(av.AudioLayout(layout).channels),
        )
        assert got.sample_rate == (48000 if suffix == ".webm" else rate)
        if suffix in (".mp4", ".mov"):
            assert stream.duration * stream.time_base == Fraction(30, 25)
    assert audio_duration(path) == pytest.approx(1.2, abs=0.001)
    if written.startswith("pcm"):
        assert np.array_equal(sound(path)[0], sound(voice)[0][: rate * 6 // 5])
    if rate == got.sample_rate == 44100:
        assert delay(sound(voice)[0], sound(path)[0]) + round(sound(path)[1] * rate) == 0


def test_short_cut_ends_with_the_picture(tmp_path):
    voice = tone(tmp_path / "voice.m4a", "aac", seconds=5, rate=16000)  # packets of 64 ms, longer than a frame
    for count in (1, 2, 7, 31, 100):
        path = write(tmp_path / "a.mp4", map(numbered, range(count)), Fraction(60), audio=AudioTrack(voice))
        assert stream_end(path, "audio") == pytest.approx(count / 60, abs=1 / 15000)
        assert stream_end(path, "video") == Fraction(count, 60)
        assert packets(path) == packets(voice)[: len(packets(path))]


def test_duration_and_padding(tmp_path):
    voice = tone(tmp_path / "voice.m4a", "aac")
    short = AudioTrack(voice, duration=Fraction(1, 2))
    cut = write(tmp_path / "a.mp4", map(numbered, range(40)), audio=short)
    assert stream_end(cut, "audio") == pytest.approx(0.5, abs=1e-4)
    padded = write(tmp_path / "b.mp4", map(numbered, range(100)), audio=AudioTrack(voice, pad_to=Fraction(4)))
    assert stream_end(padded, "audio") == 4
    wave = sound(padded)[0]
    assert np.abs(wave[round(1.6 * 44100) :]).max() < 1e-3 < 0.2 < np.abs(wave[: round(1.4 * 44100)]).max()
    enough = write(tmp_path / "c.mp4", map(numbered, range(25)), audio=AudioTrack(voice, pad_to=Fraction(1)))
    assert packets(enough) == packets(voice)[: len(packets(enough))]


@pytest.mark.parametrize("codec", ["aac", "pcm_s16le", "libmp3lame"])
def test_start_picks_the_sound_at_the_first_frame(tmp_path, codec):
    ending = {"aac": "m4a", "pcm_s16le": "wav", "libmp3lame": "mp3"}[codec]
    voice = tone(tmp_path / f"voice.{ending}", codec)
    early = 0 if codec != "libmp3lame" else Fraction(1105, 44100)
    for start in (Fraction(3, 10), Fraction(-3, 10)):
        track = AudioTrack(voice, start=start + early)
        path = write(tmp_path / "a.mp4", map(numbered, range(50)), audio=track)
        wave, first = sound(path)
        heard = delay(sound(voice)[0], wave) / 44100 + float(first)
        assert heard == pytest.approx(-float(start), abs=0.002)
        assert stream_end(path, "audio") == pytest.approx(1.5 - float(start), abs=0.03)


@pytest.mark.parametrize("name", ["edge/mpegts_start_time_not_zero.ts", "edge/face_then_noface_vfr_hevc.mov"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_own_sound_stays_in_step(media, tmp_path, name, suffix):
    info = probe(media / name)
    track = AudioTrack(info.path, start=info.start)
    path = tmp_path / f"a{suffix}"
    write(path, (numbered(i % 250) for i in range(info.frames)), info.fps, audio=track)
    (before, t0), (after, t1) = sound(info.path), sound(path)
    late = delay(before, after) / 44100 + float(t1 - probe(path).start) - float(t0 - info.start)
    assert late == pytest.approx(0, abs=0.003)


def test_real_sound_is_copied(media, tmp_path):
    info = probe(media / "edge/fps_29.97.mp4")
    path = write(
        tmp_path / "a.mp4", (numbered(i) for i in range(150)), info.fps, audio=AudioTrack(info.path, info.start)
    )
    assert packets(path) == packets(info.path)
    assert abs(stream_end(path, "audio") - stream_end(path, "video")) <= 1 / info.fps


def test_sound_is_interleaved(tmp_path):
    voice = tone(tmp_path / "voice.wav", "pcm_s16le", seconds=10)
    path = write(tmp_path / "a.mp4", (numbered(i % 256) for i in range(250)), audio=AudioTrack(voice))
    with av.open(str(path)) as container:
        order = sorted((p.pos, p.stream.type, float(p.dts * p.time_base)) for p in container.demux() if p.size)
    last = {"video": 0.0, "audio": 0.0}
    for _, kind, time in order:
        last[kind] = time
        assert abs(last["video"] - last["audio"]) < 1.5


def test_copy_table_is_what_containers_take(tmp_path):
    assert set(soundtrack.COPIED) == {*writer.ENDINGS.values(), "wav"}


# --- stills --------------------------------------------------------------------------------------------------------


def test_stills(media, tmp_path):
    rgb = read_image(media / "stills/nasa_astronaut_512.png")
    assert (rgb.shape, rgb.dtype, rgb.flags.c_contiguous) == ((512, 512, 3), np.uint8, True)
    assert rgb[..., 0].mean() > rgb[..., 2].mean()  # the suit is orange, not blue


def test_kinds_of_stills(tmp_path):
    color = numbered(5)
    color[..., 2] = 40
    bgr = color[..., ::-1]
    files = {
        "a.png": bgr,
        "a.webp": bgr,
        "a.tiff": bgr,
        "alpha.png": np.dstack([bgr, np.full(bgr.shape[:2], 255, np.uint8)]),
        "deep.png": bgr.astype(np.uint16) * 257,
    }
    for name, pixels in files.items():
        cv2.imwrite(str(tmp_path / name), pixels, [cv2.IMWRITE_WEBP_QUALITY, 101] if name == "a.webp" else [])
        got = read_image(tmp_path / name)
        assert np.array_equal(got, color), name
        assert (got.dtype, got.flags.c_contiguous) == (np.uint8, True)
        assert is_image(tmp_path / name)
    cv2.imwrite(str(tmp_path / "gray.png"), color[..., 0])
    assert np.array_equal(read_image(str(tmp_path / "gray.png")), np.repeat(color[..., :1], 3, 2))


def test_exif_rotation_is_undone(tmp_path):
    picture = numbered(15, 64, 128)
    data = cv2.imencode(".jpg", picture)[1].tobytes()
    # Exif, big-endian TIFF, one entry: tag 0x0112 (orientation), SHORT, 1 value: 6 = turn clockwise
    tiff = b"MM\x00\x2a\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00"
    exif = b"Exif\x00\x00" + tiff
    marked = data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:]
    (tmp_path / "a.jpg").write_bytes(marked)
    got = read_image(tmp_path / "a.jpg")
    assert got.shape == (128, 64, 3)
    assert np.abs(got.astype(int) - np.rot90(picture, -1)).mean() < 3


def test_bad_stills_are_one_sentence(tmp_path):
    video = write(tmp_path / "v.mp4", [numbered(0)])
    for name, content in {"text.png": b"words", "empty.png": b"", "cut.png": b"\x89PNG\r\n\x1a\n\x00\x00"}.items():
        (tmp_path / name).write_bytes(content)
    for path in [tmp_path, tmp_path / "no.png", video, *(tmp_path / n for n in ("text.png", "empty.png", "cut.png"))]:
        with pytest.raises(UserError, match=r"\.$"):
            read_image(path)
        assert not is_image(path) or path.name == "cut.png"


def test_gif_is_a_picture_only_when_it_stands_still(tmp_path):
    assert not is_image(encode(tmp_path / "a.gif", "gif", "rgb8", range(5), 25, Fraction(1, 25)))
    assert is_image(encode(tmp_path / "b.gif", "gif", "rgb8", range(1), 25, Fraction(1, 25)))
