"""Encoders of graphics cards: which is chosen, with what, and the way back. None is run: others stand for them."""

from fractions import Fraction

import av
import numpy as np
import pytest

from latentsync.errors import UserError
from latentsync.media import hardware
from latentsync.media.encoding import Kind, choose_encoding
from latentsync.media.probe import probe
from latentsync.media.writer import VideoWriter
from latentsync.settings import Settings

WANTED = Settings(codec="h264", encoder="hardware")
SIZE = (128, 96)


@pytest.fixture
def opening(monkeypatch):
    """Those of the names in the set open, for any film in these formats."""
    here: set[str] = set()
    takes = {"nvenc": ("yuv420p", "p010le"), "videotoolbox": ("nv12", "p010le"), "qsv": ("nv12",), "amf": ("nv12",)}

    def opens(name, form, _size, _options):
        return name in here and form in takes[name.partition("_")[2]]

    monkeypatch.setattr(hardware, "_opens", opens)
    return here


def test_software_is_the_usual_one(opening):
    opening.add("h264_nvenc")
    assert choose_encoding("mp4", SIZE, Kind(), Settings()).encoder == "libx264"


@pytest.mark.parametrize(
    ("here", "codec", "encoder", "form", "told"),
    [
        ({"h264_nvenc", "h264_qsv"}, "h264", "h264_nvenc", "yuv420p", {"rc": "vbr", "cq": "18", "b": "0"}),
        ({"h264_qsv"}, "h264", "h264_qsv", "nv12", {"global_quality": "18"}),
        ({"h264_amf"}, "h264", "h264_amf", "nv12", {"rc": "cqp", "qp_i": "18", "qp_p": "18"}),
        ({"h264_videotoolbox"}, "h264", "h264_videotoolbox", "nv12", {"flags": "+qscale", "global_quality": "9440"}),
        ({"hevc_nvenc"}, "h265", "hevc_nvenc", "yuv420p", {"cq": "18"}),
        ({"av1_amf"}, "av1", "av1_amf", "nv12", {"qp_i": "104"}),
    ],
)
def test_the_first_that_opens_with_its_own_words_for_quality(opening, here, codec, encoder, form, told):
    opening |= here
    found = choose_encoding("mp4", SIZE, Kind(), Settings(codec=codec, encoder="hardware"))
    assert (found.encoder, found.pix_fmt, found.notes) == (encoder, form, ())
    assert found.options.items() >= told.items()


def test_ten_bits_go_where_they_are_taken(opening):
    opening |= {"hevc_nvenc", "hevc_qsv"}
    deep, wanted = Kind("h265", 10), Settings(codec="h265", encoder="hardware")
    found = choose_encoding("mp4", SIZE, deep, wanted)
    assert (found.encoder, found.pix_fmt, found.deep) == ("hevc_nvenc", "p010le", True)
    opening.remove("hevc_nvenc")
    found = choose_encoding("mp4", SIZE, deep, wanted)
    assert (found.encoder, found.pix_fmt) == ("libx265", "yuv420p10le")


@pytest.mark.parametrize(
    ("size", "kind", "settings"),
    [
        (SIZE, Kind(), WANTED),  # none opens
        ((127, 96), Kind(), WANTED),
        (SIZE, Kind(chroma="444"), WANTED),
        (SIZE, Kind(), Settings(codec="h264", encoder="hardware", quality=100)),
    ],
)
def test_software_with_a_word_where_none_fits(opening, size, kind, settings):
    if (size, kind, settings) != (SIZE, Kind(), WANTED):
        opening.add("h264_nvenc")
    found = choose_encoding("mp4", size, kind, settings)
    plain = choose_encoding("mp4", size, kind, Settings(codec="h264", quality=settings.quality))
    assert (found.encoder, found.pix_fmt, found.options) == (plain.encoder, plain.pix_fmt, plain.options)
    assert any("written by libx264: no hardware here" in note for note in found.notes)


@pytest.mark.parametrize("family", hardware.ENCODERS)
def test_what_is_listed_but_does_not_open_is_not_taken(family):
    """On this machine itself, whatever it has: what is chosen must open."""
    found = hardware.open_one(family, "yuv420p", (256, 256), 80, 18)
    if found is not None:
        context = av.CodecContext.create(found[0], "w")
        assert context.codec.name == found[0]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_file_is_written_by_the_chosen_one(tmp_path, monkeypatch, suffix):
    """The first is not in this FFmpeg, the second does not take the format; MPEG-4 Visual stands for the third."""
    monkeypatch.setattr(hardware, "ENCODERS", {"h264": ("nothing_nvenc", "prores_ks", "mpeg4")})
    monkeypatch.setattr(hardware, "_options", lambda *_: {})
    chosen = choose_encoding("mp4", SIZE, Kind(), WANTED)
    assert (chosen.encoder, chosen.pix_fmt) == ("mpeg4", "yuv420p")
    out = tmp_path / f"out{suffix}"
    with VideoWriter(out, *SIZE, Fraction(25), encoding=chosen) as writer:
        for i in range(10):
            writer.write(np.full((96, 128, 3), 20 * i, np.uint8))
    info = probe(out)
    assert (info.frames, info.width, info.height, info.fps) == (10, 128, 96, 25)


def test_another_word_is_blamed():
    with pytest.raises(UserError, match="encoder is 'gpu'; it must be one of software, hardware"):
        Settings(encoder="gpu")
