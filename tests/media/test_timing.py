"""Interlaced material, variable rates, long groups of pictures: the right frame at the right time."""

from fractions import Fraction

import av
import numpy as np
import pytest

from latentsync.errors import UserError
from latentsync.media import reader as reading
from latentsync.media.probe import probe
from latentsync.media.reader import VideoReader
from latentsync.media.source import open_source
from latentsync.settings import Settings
from latentsync.timeline import Cut

SIZE = (128, 64)


def bar(x, width, height):
    """A bright bar whose left edge is at x, 24 wide."""
    picture = np.full((height, width, 3), 40, np.uint8)
    picture[:, x : x + 24] = 200
    return picture


def fields(i, top_first=True):
    """Two moments, 1/50 s apart, woven: the bar moves by 4 pixels from field to field."""
    early, late = (bar(8 + 4 * t, *SIZE) for t in (2 * i, 2 * i + 1))
    frame = early.copy()
    frame[1 if top_first else 0 :: 2] = late[1 if top_first else 0 :: 2]
    return frame


def interlaced(path, count=10, top_first=True, g=12, codec="libx264"):
    """Marked as cameras mark it: which field comes first is said by the frames."""
    marked = av.filter.Graph()
    source = marked.add_buffer(width=SIZE[0], height=SIZE[1], format="yuv422p", time_base=Fraction(1, 25))
    marks, sink = marked.add("setfield", "tff" if top_first else "bff"), marked.add("buffersink")
    source.link_to(marks)
    marks.link_to(sink)
    marked.configure()
    with av.open(str(path), "w") as container:
        options = {"g": str(g), "flags": "+ilme+ildct", "bf": "0"}
        options |= {"crf": "8"} if codec == "libx264" else {"qmin": "1", "qmax": "2"}
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv422p"
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(fields(i, top_first), format="rgb24").reformat(format="yuv422p")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            marked.push(frame)
            container.mux(stream.encode(marked.pull()))
        container.mux(stream.encode(None))
    return path


def comb(frame):
    """How much lines differ from the mean of their neighbors."""
    y = frame.astype(float).mean(2)
    return np.abs(y[1:-1] - (y[:-2] + y[2:]) / 2)[2:-2].mean()


@pytest.mark.parametrize("top_first", [True, False])
@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "libx264"), ("mp4", "libx264"), ("ts", "mpeg2video")])
def test_fields_become_whole_frames(tmp_path, top_first, suffix, codec):
    path = interlaced(tmp_path / f"a.{suffix}", top_first=top_first, codec=codec)
    info = probe(path)
    assert (info.interlaced, info.frames, info.fps) == (True, 10, 25)
    with VideoReader(info) as reader:
        frames = list(reader.read(range(10)))
    for i in range(1, 9):
        assert comb(fields(i, top_first)) > 3
        assert comb(frames[i]) < 1
        edge = np.flatnonzero(frames[i][32].mean(1) > 120)[0]
        assert abs(edge - (8 + 8 * i)) <= 2  # the moment of the first field, at the same rate
    with open_source(path, Settings(), Cut()) as (_, shown):
        assert any("interlaced" in note for note in shown.notes)


def test_any_order_gives_the_same_whole_frames(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "HELD_FRAMES", 4)
    path = interlaced(tmp_path / "a.mkv", 30, g=5)
    with VideoReader.open(path) as reader:
        assert len(reader.info.index.keys) > 3
        frames = list(reader.read(range(30)))
    for order in ([*range(29, -1, -1)], [20, 5, 10, 11, 10, 25, 0], [25, 11, 10], [16, 15]):
        with VideoReader.open(path) as reader:
            reader._recent.clear()
            for k, frame in zip(order, reader.read(order), strict=True):
                assert np.array_equal(frame, frames[k]), k


def test_whole_frames_stay_bit_for_bit(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for i in range(10):
            frame = av.VideoFrame.from_ndarray(bar(8 + 8 * i, *SIZE), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    info = probe(path)
    assert not info.interlaced
    from latentsync.media.fields import deinterlaced

    with av.open(str(path)) as container:
        whole = list(container.decode(video=0))
        passed = [frame for _, frame in deinterlaced(enumerate(whole))]
    assert len(passed) == len(whole)
    for before, after in zip(whole, passed, strict=True):
        assert np.array_equal(before.to_ndarray(), after.to_ndarray())


def test_reported_camcorder(media):
    info = probe(media / "reports" / "camcorder_interlaced_50i.mpg")
    assert (info.interlaced, info.frames, info.fps) == (True, 20, 25)
    with VideoReader(info) as reader:
        assert max(comb(frame) for frame in reader.read(range(20))) < 1.5


# --- variable rates ------------------------------------------------------------------------------------------------


def variable(path, stamps):
    """Stamps in ms."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for i, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(
                np.full((SIZE[1], SIZE[0], 3), 20 + i % 100 * 2, np.uint8), format="rgb24"
            )
            frame.pts, frame.time_base = stamp, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def phone(rng, count=90):
    """Around 30 fps with jitter, and slower for a while, as in bad light."""
    steps = np.where((np.arange(count) > 40) & (np.arange(count) < 60), 42, 33) + rng.integers(-5, 6, count)
    return np.cumsum([0, *steps]).tolist()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_each_frame_is_shown_within_half_a_frame_of_its_time(tmp_path, seed, suffix):
    stamps = phone(np.random.default_rng(seed))
    info = probe(variable(tmp_path / f"a.{suffix}", stamps))
    assert info.variable_rate
    first = {}
    for i in range(info.frames):
        first.setdefault(info.source(i), i)
    assert list(first) == sorted(first)
    late = [float(i / info.fps) * 1000 - stamps[k] for k, i in first.items()]
    half = 500 / float(info.fps)
    assert max(map(abs, late)) <= half + 1
    assert float(info.deviation()) * 1000 == pytest.approx(max(map(abs, late)), abs=1.01)
    with open_source(info.path, Settings(), Cut()) as (_, shown):
        (note,) = shown.notes
    assert f"{float(info.fps):.4g} fps" in note
    assert f"{float(info.deviation()) * 1000:.1f} ms" in note
    assert abs(float(info.duration) * 1000 - stamps[-1] - 33) < 2 * half + 10


# --- long groups of pictures ---------------------------------------------------------------------------------------


def one_group(path, count, size=SIZE, first=0):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=25, options={"g": "999", "preset": "ultrafast", "sc_threshold": "0"}
        )
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for i in range(count):
            picture = np.full((size[1], size[0], 3), 20 + i % 200, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = first + i, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("most", [None, 20])
def test_to_and_fro_decodes_each_frame_a_few_times(tmp_path, monkeypatch, most):
    """most: frames that the disk takes; the group is then decoded once for each so many, not once for each few."""
    count, decoded = 200, [0]
    original = reading._decode

    def counting(packet, decoder=None):
        frames = original(packet, decoder)
        decoded[0] += len(frames)
        return frames

    monkeypatch.setattr(reading, "_decode", counting)
    info = probe(one_group(tmp_path / "a.mp4", count))
    order = [*range(count), *range(count - 2, -1, -1), *range(1, count)]
    monkeypatch.setattr(reading, "HELD_FRAMES", 8)
    with VideoReader(info) as reader:
        if most:
            monkeypatch.setattr(reading, "MOST_BYTES", most * reader._bytes())
        frames = [round(float(frame.mean())) for frame in reader.read(order)]
        assert len(reader._recent) <= 8
    with VideoReader(info) as reader:
        plain = [round(float(frame.mean())) for frame in reader.read(range(count))]
    assert frames == [plain[i] for i in order]
    assert decoded[0] - count <= (3 * count if most is None else count * (count // most))


def test_spilled_frames_are_the_same_bit_for_bit(tmp_path):
    path = one_group(tmp_path / "a.mkv", 60, (130, 66))
    with VideoReader.open(path) as reader:
        forward = list(reader.read(range(60)))
        back = list(reader.read(range(59, -1, -1)))[::-1]
    assert all(np.array_equal(a, b) for a, b in zip(forward, back, strict=True))


def test_a_full_disk_costs_only_time(tmp_path, monkeypatch):
    from latentsync.media import spill

    def full(*_args, **_more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spill.tempfile, "TemporaryFile", full)
    with VideoReader.open(one_group(tmp_path / "a.mp4", 60)) as reader:
        forward = list(reader.read(range(60)))
        assert all(np.array_equal(a, b) for a, b in zip(forward[::-1], reader.read(range(59, -1, -1)), strict=True))


# --- shapes --------------------------------------------------------------------------------------------------------


def test_a_stream_that_changes_its_size_is_blamed(tmp_path):
    first, second = one_group(tmp_path / "1.ts", 10), one_group(tmp_path / "2.ts", 10, (64, 128), 10)
    (tmp_path / "both.ts").write_bytes(first.read_bytes() + second.read_bytes())
    with (
        VideoReader.open(tmp_path / "both.ts") as reader,
        pytest.raises(UserError, match=r"both\.ts changes its size from 128 × 64 to 64 × 128"),
    ):
        list(reader.read(range(reader.info.frames)))


@pytest.mark.parametrize("size", [(20000, 1), (1, 20000), (17000, 20), (8, 8)])
def test_absurd_shapes_are_blamed(tmp_path, size):
    from PIL import Image

    Image.new("RGB", size).save(tmp_path / "thin.png")
    with (
        pytest.raises(UserError, match=r"thin\.png is "),
        open_source(tmp_path / "thin.png", Settings(max_side=0), Cut()),
    ):
        pass
