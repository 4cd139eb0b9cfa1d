"""Depth, chroma, HDR and transparency of a source come through; what cannot, is said. Codecs can be chosen."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from latentsync.errors import UserError
from latentsync.media import encoding
from latentsync.media.audio_track import AudioTrack
from latentsync.media.color import Color, Scaler
from latentsync.media.encoding import Kind, choose_encoding, ending_for
from latentsync.media.hdr import HLG, PQ, curve, in_16_bits, tone_mapped
from latentsync.media.output import open_output
from latentsync.media.probe import probe
from latentsync.media.reader import VideoReader
from latentsync.media.source import open_source
from latentsync.settings import Settings
from latentsync.timeline import Cut, fit_timeline

SIZE, COUNT = (128, 96), 6
TELLS_LIGHT = int(av.__version__.split(".")[0]) < 19
"""Whether frames of HEVC say what their brightest light is: those of PyAV 19.0 do not."""
HDR10 = "hdr10=1:master-display=G(8500,39850)B(6550,2300)R(35400,14600)WP(15635,16450)L(10000000,50):max-cll=1000,400"


def ramp(i=0):
    """16-bit RGB: a fine slope that 8 bits cannot show, no color at an edge."""
    x = np.linspace(0.2, 0.6, SIZE[0])[None] + np.linspace(0, 0.1, SIZE[1])[:, None] + i / 200
    return np.round(np.stack([x, x * 0.9, x * 0.8], -1) * 65535).astype(np.uint16)


def clip(path, codec, pix_fmt, options, color=(1, 1, 1, 1), alpha=False):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height = SIZE
        stream.pix_fmt = pix_fmt
        context = stream.codec_context
        context.colorspace, context.color_range, context.color_primaries, context.color_trc = color
        if codec == "libvpx-vp9" and alpha:
            stream.metadata["alpha_mode"] = "1"
        scaler = Scaler(pix_fmt, *SIZE, Color(*color), inward=False)
        for i in range(COUNT):
            deep = ramp(i)
            if alpha:
                seen = np.zeros((*deep.shape[:2], 1), np.uint16)
                seen[:, SIZE[0] // 2 :] = 65535
                deep = np.concatenate([deep, seen], 2)
            frame = scaler(av.VideoFrame.from_ndarray(deep, format="rgba64le" if alpha else "rgb48le"))
            frame.pts, frame.time_base = i, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def voice(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16000)
        stream.codec_context.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000 * COUNT // 25), np.int16), format="s16", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
    return path


BOX = slice(60, 80), slice(70, 100)


def rewritten(origin, out, paint=None, **settings):
    """Through source, writer and all between, a box of each frame painted anew; the notes."""
    chosen = Settings(**settings)
    sound = voice(out.with_name("voice.wav"))
    with open_source(origin, chosen, Cut()) as (source, shown):
        timeline = fit_timeline(shown.fps, shown.frames, Fraction(COUNT, 25), "trim", still=shown.still)
        with open_output(out, origin, shown, timeline, chosen, AudioTrack(sound)) as (writer, notes):
            for frame in source.read(timeline.source_indices()):
                if paint is not None:
                    frame = frame.copy()
                    frame[BOX] = paint
                writer.write(frame)
    return notes


def planes(path, decoder=None):
    """Luma of each frame as numbers, the format, and the frames."""
    with av.open(str(path)) as container:
        if decoder:
            other = av.CodecContext.create(decoder, "r")
            frames = [f for p in container.demux(video=0) for f in other.decode(p if p.size else None)]
        else:
            frames = list(container.decode(video=0))
    out = []
    for frame in frames:
        kind = np.uint16 if frame.format.components[0].bits > 8 else np.uint8
        plane = frame.planes[0]
        rows = np.frombuffer(bytes(plane), kind).reshape(plane.height, -1)[:, : plane.width]
        out.append(rows.astype(int))
    return out, frames[0].format.name, frames


def outside():
    mask = np.ones(SIZE[::-1], bool)
    mask[BOX[0].start - 2 : BOX[0].stop + 2, BOX[1].start - 2 : BOX[1].stop + 2] = False
    return mask


LOSSLESS = {"crf": "4", "preset": "veryfast"}
DEEP = [
    ("a.mp4", "libx265", "yuv420p10le", ".mp4", "hevc"),
    ("a.mp4", "libx264", "yuv420p10le", ".mp4", "h264"),
    ("a.mp4", "libx265", "yuv422p10le", ".mkv", "hevc"),
    ("a.mp4", "libx265", "yuv444p10le", ".mp4", "hevc"),
    ("a.mov", "prores_ks", "yuv422p10le", ".mov", "prores"),
    ("a.mov", "prores_ks", "yuv422p10le", ".mp4", "hevc"),
    ("a.mkv", "ffv1", "yuv420p10le", ".mp4", "hevc"),
    ("a.mkv", "libsvtav1", "yuv420p10le", ".webm", "libdav1d"),
]


@pytest.mark.parametrize(("name", "codec", "pix_fmt", "suffix", "written"), DEEP)
def test_ten_bits_stay_ten_bits(tmp_path, name, codec, pix_fmt, suffix, written):
    options = LOSSLESS if codec.startswith("libx") else {"crf": "4", "preset": "9"} if "av1" in codec else {}
    origin = clip(tmp_path / name, codec, pix_fmt, options)
    out = tmp_path / f"out{suffix}"
    notes = rewritten(origin, out, (200, 120, 90), quality=100)
    before, form, _ = planes(origin)
    after, made, frames = planes(out)
    assert (form, made) == (pix_fmt, pix_fmt)
    with av.open(str(out)) as container:
        assert container.streams.video[0].codec_context.name == written
    assert not notes
    assert len(after) == COUNT
    for a, b in zip(before, after, strict=True):
        difference = np.abs(a - b)[outside()]
        assert difference.mean() < (2 if written == "libdav1d" else 1)
        assert abs((a - b)[outside()].mean()) < (2 if written == "libdav1d" else 0.5)  # 8 bits would step by 4
    painted = Scaler("rgb24", *SIZE, probe(out).color, inward=True)(frames[2]).to_ndarray()[BOX][4:-4, 4:-4]
    assert np.abs(painted.reshape(-1, 3).mean(0) - (200, 120, 90)).max() < 4


def test_chroma_stays(tmp_path):
    for pix_fmt in ("yuv422p", "yuv444p", "yuv420p"):
        origin = clip(tmp_path / f"{pix_fmt}.mp4", "libx264", pix_fmt, LOSSLESS)
        assert not rewritten(origin, tmp_path / "out.mp4")
        assert planes(tmp_path / "out.mp4")[1] == pix_fmt


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_hdr_stays_hdr(tmp_path, transfer):
    color, params = (9, 1, 9, transfer), HDR10 if transfer == PQ else "log-level=error"
    origin = clip(tmp_path / "a.mp4", "libx265", "yuv420p10le", LOSSLESS | {"x265-params": params}, color)
    out = tmp_path / "out.mp4"
    assert not rewritten(origin, out, (128, 128, 128), quality=100)
    info, was = probe(out), probe(origin)
    assert info.color == was.color
    assert (info.color.transfer, info.color.primaries) == (transfer, 9)
    assert info.screen == was.screen
    if transfer == PQ:
        light = {"max-cll": "1000,400"} if TELLS_LIGHT else {}
        assert info.screen == {"master-display": HDR10.split("master-display=")[1].split(":")[0], **light}
    before, after = planes(origin)[0], planes(out)[0]
    for a, b in zip(before, after, strict=True):
        assert np.abs(a - b)[outside()].mean() < 1.5
    with VideoReader.open(out) as reader:
        painted = next(iter(reader.read([2])))[BOX][4:-4, 4:-4]
    assert np.abs(painted.reshape(-1, 3).mean(0) - 128).max() < 4


P3 = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(40000000,1)"


TOLD = [HDR10, f"hdr10=1:master-display={P3}", *(["hdr10=1:max-cll=4000,0"] if TELLS_LIGHT else [])]


@pytest.mark.parametrize("told", TOLD)
@pytest.mark.parametrize("out", ["out.mp4", "out.mkv", "out.webm"])
def test_av1_tells_the_screen_of_hdr(tmp_path, told, out):
    origin = clip(tmp_path / "a.mp4", "libx265", "yuv420p10le", LOSSLESS | {"x265-params": told}, (9, 1, 9, PQ))
    assert not rewritten(origin, tmp_path / out, codec="av1")
    screen = probe(origin).screen
    assert screen
    assert probe(tmp_path / out).screen == screen


UNTOLD = [("o.mov", "prores"), ("o.mkv", "h264"), ("%d.png", "copy-like-source")]


@pytest.mark.parametrize(("out", "codec"), UNTOLD)
def test_what_cannot_tell_the_screen_of_hdr_says_so(tmp_path, out, codec):
    origin = clip(tmp_path / "a.mp4", "libx265", "yuv420p10le", LOSSLESS | {"x265-params": HDR10}, (9, 1, 9, PQ))
    notes = rewritten(origin, tmp_path / out, codec=codec)
    assert [note for note in notes if note.startswith("HDR that states the screen")] == list(notes)
    assert len(notes) == 1
    assert (probe(tmp_path / out).screen, probe(tmp_path / out).color.transfer) == ({}, PQ)


def test_hdr_in_eight_bits_is_never_said_to_be_hdr(tmp_path):
    options = LOSSLESS | {"x265-params": HDR10}
    origin = clip(tmp_path / "a.mp4", "libx265", "yuv420p10le", options, (9, 1, 9, PQ))
    notes = rewritten(origin, tmp_path / "out.mp4", codec="h264", pixel_format="yuv420p")
    assert any("HDR" in note for note in notes)
    info = probe(tmp_path / "out.mp4")
    assert (info.color.transfer, info.color.primaries, info.color.matrix, info.screen) == (1, 1, 1, {})


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_the_tone_curve(transfer):
    """Paper white of HDR is bright and not clipped; gray in the middle is gray; it rises all the way and goes back."""
    levels = curve(transfer)
    assert (np.diff(levels) >= 0).all()
    white = 0.58 if transfer == PQ else 0.75  # of 203 cd/m² (ITU-R BT.2408)
    assert 215 < levels[round(white * 4095)] < 250
    assert 95 < levels[round(0.38 * 4095)] < 135  # 18 % gray of that white
    some = np.arange(20, 240)
    back = tone_mapped(in_16_bits(some[None, :, None].repeat(3, 2), transfer).astype(np.uint16), transfer)
    assert np.abs(back[0, :, 0].astype(int) - some).max() <= 1


# --- transparency --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "suffix", "made"),
    [
        ("a.webm", "libvpx-vp9", "yuva420p", ".webm", "yuva420p"),
        ("a.mov", "prores_ks", "yuva444p10le", ".mov", "yuva444p10le"),
        ("a.webm", "libvpx-vp9", "yuva420p", ".mov", "yuva444p10le"),
        ("a.webm", "libvpx-vp9", "yuva420p", ".mp4", None),
    ],
)
def test_transparency_stays_where_it_can(tmp_path, name, codec, pix_fmt, suffix, made):
    options = {"crf": "8", "b": "0", "auto-alt-ref": "0", "cpu-used": "5"} if "vp9" in codec else {"profile": "4"}
    origin = clip(tmp_path / name, codec, pix_fmt, options, alpha=True)
    assert probe(origin).kind.alpha
    out = tmp_path / f"out{suffix}"
    notes = rewritten(origin, out)
    if made is None:
        assert any("laid on white" in note for note in notes)
        with VideoReader.open(out, "#ff0000") as reader:
            frame = next(iter(reader.read([2])))
        assert not probe(out).alpha
        assert frame[20:70, 4:50].min() > 245
        return
    assert all("of 12 bits; written with 10" in note for note in notes)  # ProRes 4444 here
    _, form, frames = planes(out, "libvpx-vp9" if suffix == ".webm" else None)
    assert form.startswith(made[:5])
    alpha = frames[2].planes[3]
    kind = np.uint8 if frames[2].format.components[3].bits == 8 else np.uint16
    rows = np.frombuffer(bytes(alpha), kind).reshape(alpha.height, -1)[:, : SIZE[0]] / (
        2 ** frames[2].format.components[3].bits - 1
    )
    assert rows[:, :56].max() < 0.03
    assert rows[:, 72:].min() > 0.97
    with VideoReader.open(out, "#00ff00") as reader, VideoReader.open(origin, "#00ff00") as was:
        new, old = next(iter(reader.read([2]))).astype(int), next(iter(was.read([2]))).astype(int)
    assert np.abs(new - old)[:, 72:].mean() < 2
    assert np.abs(new[:, :50] - (0, 255, 0)).max() <= 6


def test_a_transparent_still_stays_so_in_webm(tmp_path):
    from PIL import Image

    pixels = np.zeros((96, 128, 4), np.uint8)
    pixels[:, 64:] = (10, 200, 30, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert not rewritten(tmp_path / "a.png", tmp_path / "out.webm")
    assert probe(tmp_path / "out.webm").alpha
    with VideoReader.open(tmp_path / "out.webm", "#0000ff") as reader:
        frame = next(iter(reader.read([1]))).astype(int)
    assert np.abs(frame[48, 20] - (0, 0, 255)).max() <= 6
    assert np.abs(frame[48, 110] - (10, 200, 30)).max() <= 6


# --- the choice ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "suffix", "written"),
    [("h264", ".mp4", "h264"), ("h265", ".mp4", "hevc"), ("av1", ".mp4", "libdav1d"), ("vp9", ".webm", "vp9"),
     ("prores", ".mov", "prores"), ("av1", ".webm", "libdav1d"), ("vp9", ".mp4", "vp9")],
)  # fmt: skip
def test_codecs_can_be_chosen(tmp_path, codec, suffix, written):
    origin = clip(tmp_path / "a.mp4", "libx264", "yuv420p", LOSSLESS)
    out = tmp_path / f"out{suffix}"
    rewritten(origin, out, codec=codec)
    with av.open(str(out)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == written
        assert codec != "h265" or stream.codec_context.codec_tag == "hvc1"
    assert probe(out).frames == COUNT
    with VideoReader.open(out) as reader, VideoReader.open(origin) as was:
        pairs = zip(reader.read(range(COUNT)), was.read(range(COUNT)), strict=True)
        assert max(np.abs(a.astype(int) - b).mean() for a, b in pairs) < 2


def test_the_sources_family_is_kept(tmp_path):
    origin = clip(tmp_path / "a.mp4", "libx265", "yuv420p", LOSSLESS | {"x265-params": "log-level=error"})
    for suffix, family in ((".mp4", "hevc"), (".webm", "vp9")):
        rewritten(origin, tmp_path / f"out{suffix}")
        with av.open(str(tmp_path / f"out{suffix}")) as container:
            assert container.streams.video[0].codec_context.name == family
    plain = choose_encoding("mp4", (64, 48), Kind(), Settings())
    assert (plain.encoder, plain.pix_fmt, plain.options["crf"]) == ("libx264", "yuv420p", "18")


def test_quality_is_the_encoders_strength():
    strengths = []
    for quality in (20, 80, 100):
        chosen = choose_encoding("mp4", (128, 96), Kind(), Settings(quality=quality))
        strengths.append(int(chosen.options["crf"]))
    assert strengths == [51, 18, 0]


def test_wrong_choices_are_one_sentence(monkeypatch):
    with pytest.raises(UserError, match=r"'prores'.*holds vp9, av1"):
        choose_encoding("webm", (64, 48), Kind(), Settings(codec="prores"))
    with pytest.raises(UserError, match=r"'rgb555'.*yuv420p"):
        choose_encoding("mp4", (64, 48), Kind(), Settings(pixel_format="rgb555"))
    monkeypatch.setitem(encoding.ENCODERS, "av1", "libnothing")
    with pytest.raises(UserError, match=r"no libnothing; take one of h264"):
        choose_encoding("mp4", (64, 48), Kind(), Settings(codec="av1"))
    with pytest.raises(UserError, match="codec"):
        Settings(codec="mpeg2")


@pytest.mark.parametrize(
    ("codec", "source", "ending"),
    [
        ("copy-like-source", "a.MOV", ".mov"),
        ("copy-like-source", "a.webm", ".webm"),
        ("copy-like-source", "a.avi", ".mp4"),
        ("copy-like-source", "a.png", ".mp4"),
        ("h264", "a.webm", ".mp4"),
        ("av1", "a.mov", ".mp4"),
        ("vp9", "a.mp4", ".webm"),
        ("prores", "a.mp4", ".mov"),
    ],
)
def test_the_ending_that_suits_a_codec(codec, source, ending):
    assert ending_for(codec, Path(source)) == ending
