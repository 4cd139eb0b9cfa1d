"""Pictures as people have them: color profiles, HEIC, moving ones, transparent ones, large ones, any name."""

import ast
import re
import struct
import sys
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from latentsync.errors import UserError
from latentsync.media import image as stills
from latentsync.media.image import flattened, is_animation, is_image, read_image, read_picture, within
from latentsync.media.probe import probe
from latentsync.media.reader import VideoReader
from latentsync.media.source import open_source
from latentsync.settings import Settings, scaled_place
from latentsync.timeline import Cut

ROOT = Path(__file__).resolve().parents[2]


def patch(*color, mode="RGB", size=(16, 8)):
    return Image.new(mode, size, color if len(color) > 1 else color[0])


# --- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["脸.png", "人物 👩‍🦰.jpg", "größe ñ.webp", "a b%20#1.tiff"])
def test_any_name_is_read(tmp_path, name):
    patch(10, 200, 30).save(tmp_path / name, quality=100)
    assert is_image(tmp_path / name)
    assert np.abs(read_image(tmp_path / name).astype(int) - (10, 200, 30)).max() <= 2


def test_no_path_is_given_to_opencv():
    """On Windows it opens no name outside the system's own letters."""
    takes_paths = {"imread", "imwrite", "imreadmulti", "imcount", "haveImageReader", "haveImageWriter", "VideoCapture",
                   "VideoWriter", "FileStorage", "imreadanimation", "imwriteanimation"}  # fmt: skip
    found = []
    for path in [path for top in ("latentsync", "nodes") for path in (ROOT / top).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "cv2":
                found += [(path.name, node.attr)] if node.attr in takes_paths else []
    assert not found


# --- color profiles ------------------------------------------------------------------------------------------------

D50 = (0.96420, 1.0, 0.82491)
P3 = [(0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)]
ADOBE = [(0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)]
SRGB = [(0.43604, 0.22249, 0.01392), (0.38512, 0.71690, 0.09706), (0.14305, 0.06061, 0.71393)]
P3_TO_SRGB = np.array([(1.22494, -0.22494, 0), (-0.04206, 1.04206, 0), (-0.01964, -0.07864, 1.09827)])
ADOBE_TO_SRGB = np.array([(1.39836, -0.39836, 0), (0, 1, 0), (0, -0.04293, 1.04293)])
"""Linear light, from the primaries of each standard (SMPTE EG 432-1, Adobe RGB (1998), IEC 61966-2-1)."""


def fixed(*numbers):
    return struct.pack(f">{len(numbers)}i", *(round(n * 65536) for n in numbers))


def xyz(values):
    return b"XYZ \0\0\0\0" + fixed(*values)


SRGB_CURVE = b"para\0\0\0\0\0\3\0\0" + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def gamma(value):
    return b"curv\0\0\0\0\0\0\0\1" + struct.pack(">H", round(value * 256)) + b"\0\0"


def icc(space, tags, pcs=b"XYZ ", kind=b"mntr"):
    """A minimal ICC profile, version 4."""
    text = b"mluc\0\0\0\0\0\0\0\1\0\0\0\x0cenUS\0\0\0\2\0\0\0\x1c\0x\0\0"
    tags = {b"desc": text, b"cprt": text, b"wtpt": xyz(D50)} | tags
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    head = struct.pack(">I", 128 + len(table) + len(body)) + b"\0\0\0\0\4\0\0\0" + kind + space + pcs
    head = head.ljust(36, b"\0") + b"acsp"
    return (head.ljust(68, b"\0") + fixed(*D50)).ljust(128, b"\0") + table + body


def rgb_profile(primaries, curve):
    return icc(b"RGB ", {a: xyz(p) for a, p in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)}
               | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))  # fmt: skip


def coded(light):
    light = np.clip(light, 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def linear(level):
    value = np.asarray(level) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("color", [(200, 120, 100), (90, 140, 70), (255, 255, 255), (0, 0, 0), (40, 60, 180)])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff"])
def test_display_p3_becomes_srgb(tmp_path, color, suffix):
    right = coded(P3_TO_SRGB @ linear(color))
    path = tmp_path / f"p3.{suffix}"
    patch(*color).save(path, icc_profile=rgb_profile(P3, SRGB_CURVE), quality=100, subsampling=0, lossless=True)
    assert np.abs(read_image(path) - right).max() <= 3


def test_adobe_rgb_becomes_srgb(tmp_path):
    right = coded(ADOBE_TO_SRGB @ (np.array((190, 120, 90)) / 255) ** (563 / 256))
    patch(190, 120, 90).save(tmp_path / "a.png", icc_profile=rgb_profile(ADOBE, gamma(563 / 256)))
    assert np.abs(read_image(tmp_path / "a.png") - right).max() <= 2
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA005] = {1: "R03\0"}  # as cameras say it, without a profile
    patch(190, 120, 90).save(tmp_path / "b.jpg", exif=exif, quality=100, subsampling=0)
    assert np.abs(read_image(tmp_path / "b.jpg") - right).max() <= 3


def test_gray_and_cmyk_profiles(tmp_path):
    """Linear gray: 55 of 255 is L* 50. Ink: half of black is L* 50, by a table with two points a side."""
    patch(55, mode="L").save(tmp_path / "gray.png", icc_profile=icc(b"GRAY", {b"kTRC": gamma(1)}))
    assert np.abs(read_image(tmp_path / "gray.png").astype(int) - 128).max() <= 2
    ramp = bytes(range(256))
    grid = b"".join(bytes((0 if i & 1 else 255, 128, 128)) for i in range(16))  # black is the last of four
    table = b"mft1\0\0\0\0\4\3\2\0" + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1) + ramp * 4 + grid + ramp * 3
    ink = icc(b"CMYK", {b"A2B0": table, b"A2B1": table}, b"Lab ", b"prtr")
    for name in ("ink.jpg", "ink.tiff"):
        patch(0, 0, 0, 128, mode="CMYK").save(tmp_path / name, icc_profile=ink, quality=100)
        assert np.abs(read_image(tmp_path / name).astype(int) - 118).max() <= 3, name


def test_srgb_stays_bit_for_bit(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png", icc_profile=rgb_profile(SRGB, SRGB_CURVE))
    assert np.array_equal(read_image(tmp_path / "a.png"), noise)


@pytest.mark.parametrize(
    "profile", [b"no profile", rgb_profile(P3, SRGB_CURVE)[:200], icc(b"GRAY", {b"kTRC": gamma(1)})]
)
def test_a_broken_or_wrong_profile_is_ignored_with_a_word(tmp_path, caplog, profile):
    patch(200, 120, 100).save(tmp_path / "a.png", icc_profile=profile)
    with caplog.at_level("WARNING"):
        assert np.array_equal(read_image(tmp_path / "a.png")[0, 0], (200, 120, 100))
    assert "a.png: its color profile" in caplog.text


def test_a_profile_goes_with_orientation_and_transparency(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = patch(200, 120, 100, 128, mode="RGBA")
    picture.save(tmp_path / "a.png", icc_profile=rgb_profile(P3, SRGB_CURVE), exif=exif)
    got = read_picture(tmp_path / "a.png")
    assert got.shape == (16, 8, 4)
    assert np.abs(got[0, 0, :3] - coded(P3_TO_SRGB @ linear((200, 120, 100)))).max() <= 2
    assert got[0, 0, 3] == 128


# --- HEIC, AVIF ----------------------------------------------------------------------------------------------------


def test_a_heic_is_a_picture(media, monkeypatch):
    path = media / "reports" / "photo_iphone_tiles.heic"
    assert is_image(path)
    with pytest.raises(UserError, match="picture"):
        probe(path)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(stills, "_known", lambda: set(Image.OPEN) - {"HEIF"})
    with pytest.raises(UserError, match=re.escape('pip install "pillow-heif>=0.16"')):
        read_image(path)


def test_a_heic_is_read_whole(media):
    pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    assert read_image(media / "reports" / "photo_iphone_tiles.heic").shape[2] == 3
    assert min(read_image(media / "reports" / "photo_iphone_tiles.heic").shape[:2]) > 512


def test_a_kind_of_heic_by_its_first_bytes(tmp_path):
    for brand in (b"heic", b"heix", b"mif1", b"heim"):
        (tmp_path / "a.bin").write_bytes(b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic")
        assert is_image(tmp_path / "a.bin")
        with pytest.raises(UserError, match="HEIC"):
            read_image(tmp_path / "a.bin")


def test_a_still_avif(tmp_path):
    if ".avif" not in Image.registered_extensions():
        pytest.skip("this Pillow writes no AVIF")
    patch(10, 200, 30, size=(64, 48)).save(tmp_path / "a.avif", quality=95)
    assert is_image(tmp_path / "a.avif")
    assert np.abs(read_image(tmp_path / "a.avif").astype(int) - (10, 200, 30)).max() <= 4
    with pytest.raises(UserError, match="picture"):
        probe(tmp_path / "a.avif")


# --- moving pictures -----------------------------------------------------------------------------------------------

DURATIONS = [100, 50, 50, 200, 100]
LEVELS = [0, 40, 80, 120, 160]


def moving(path, durations=DURATIONS, size=(64, 48)):
    first, *rest = [patch(level, level, level, size=size) for level in LEVELS[: len(durations)]]
    first.save(path, save_all=True, append_images=rest, duration=durations, lossless=True, quality=100)
    return path


@pytest.mark.parametrize("suffix", ["webp", "png", "gif", "avif"])
def test_a_moving_picture_plays_with_its_own_timing(tmp_path, suffix):
    if f".{suffix}" not in Image.registered_extensions():
        pytest.skip(f"this Pillow writes no {suffix}")
    path = moving(tmp_path / f"a.{suffix}")
    assert is_animation(path)
    assert not is_image(path)
    info = probe(path)
    assert [1000 * (t - info.index.times[0]) * info.index.base for t in info.index.times] == [0, 100, 150, 200, 400]
    assert (info.frames, info.duration, info.fps) == (10, Fraction(1, 2), 20)
    assert not info.alpha  # it is opaque, though it is decoded with alpha
    right = [0, 0, 40, 80, 120, 120, 120, 120, 160, 160]
    with VideoReader(info) as reader:
        for order in (range(10), range(9, -1, -1)):
            seen = [float(frame.mean()) for frame in reader.read(order)]
            assert seen == pytest.approx([right[i] for i in order], abs=2)


def test_a_slide_show_gets_a_rate_on_which_lips_move(tmp_path):
    info = probe(moving(tmp_path / "a.webp", [1000, 1000, 1000]))
    assert (info.fps, info.frames) == (25, 75)
    assert [info.source(i) for i in (0, 12, 25, 37, 50, 74)] == [0, 0, 1, 1, 2, 2]


def test_a_still_stays_a_still(tmp_path):
    for suffix in ("webp", "png", "gif", "jpg"):
        patch(90, 20, 30).save(tmp_path / f"a.{suffix}")
        assert is_image(tmp_path / f"a.{suffix}")
        if suffix != "gif":  # a film of one frame to FFmpeg
            with pytest.raises(UserError, match="picture"):
                probe(tmp_path / f"a.{suffix}")


def jpeg(level, size=(64, 48)):
    data = BytesIO()
    patch(level, level, level, size=size).save(data, "JPEG", quality=95)
    return data.getvalue()


def test_jpegs_in_a_row_play(tmp_path):
    (tmp_path / "a.mjpeg").write_bytes(b"".join(map(jpeg, LEVELS)))
    (tmp_path / "a.jpg").write_bytes(b"".join(map(jpeg, LEVELS)))
    for path in (tmp_path / "a.mjpeg", tmp_path / "a.jpg"):
        assert not is_image(path)
        with VideoReader.open(path) as reader:
            assert (reader.info.fps, reader.info.frames) == (25, 5)
            assert [round(float(f.mean())) for f in reader.read([0, 4, 2, 1, 3])] == [0, 160, 80, 40, 120]


def test_what_cameras_append_is_no_film(tmp_path):
    """A preview, a short film, nothing sensible; the second picture of a pair of eyes."""
    for rest in (jpeg(9, (16, 8)), b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 20, b"\xff\xd8\xff\xd8garbage" * 9):
        (tmp_path / "a.jpg").write_bytes(jpeg(50) + rest)
        assert is_image(tmp_path / "a.jpg")
    patch(1, 2, 3).save(tmp_path / "b.jpg", "MPO", save_all=True, append_images=[patch(9, 9, 9)])
    assert is_image(tmp_path / "b.jpg")


def test_reported_moving_pictures(media):
    webp, mjpeg = media / "reports" / "clip_animated.webp", media / "reports" / "clip_raw.mjpeg"
    assert (probe(webp).frames, probe(webp).fps) == (15, Fraction(25, 2))
    assert (probe(mjpeg).frames, probe(mjpeg).fps) == (15, 25)
    for path in (webp, mjpeg):
        assert not is_image(path)
        with VideoReader.open(path) as reader:
            frames = list(reader.read(range(15)))
        assert len({frame.tobytes() for frame in frames}) == 15


# --- stills in a run -----------------------------------------------------------------------------------------------


def test_a_film_of_one_frame_is_a_still(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_image(patch(9, 9, 9, size=(64, 48)))))
        container.mux(stream.encode(None))
    with open_source(tmp_path / "a.mp4", Settings(still_fps=30), Cut()) as (_, shown):
        assert (shown.still, shown.fps, shown.frames) == (True, 30, 1)


@pytest.mark.parametrize(
    ("size", "side", "made"),
    [((8064, 6048), 1920, (1920, 1440)), ((4000, 3000), 0, (4000, 3000)), ((1920, 1080), 1920, (1920, 1080)),
     ((1001, 333), 1000, (1000, 332)), ((333, 2001), 500, (84, 500)), ((301, 201), 1920, (301, 201))],
)  # fmt: skip
def test_large_pictures_are_made_smaller_and_said(tmp_path, size, side, made):
    patch(90, 120, 40, size=size).save(tmp_path / "a.png")
    with open_source(tmp_path / "a.png", Settings(max_side=side), Cut()) as (source, shown):
        assert (shown.width, shown.height) == made
        frame = next(iter(source.read([0])))
    assert frame.shape == (made[1], made[0], 3)
    assert np.array_equal(frame[0, 0], (90, 120, 40))
    assert bool(shown.notes) == (made != size)
    assert made == size or f"{size[0]} × {size[1]}" in shown.notes[0]
    assert shown.scale == pytest.approx(made[0] / size[0], abs=0.01)


def test_a_point_on_a_face_goes_with_the_picture():
    assert scaled_place("1000,500.5,0", 0.5) == "500.000,250.250,0"
    assert scaled_place("left", 0.5) == "left"
    assert scaled_place("10,20,3", 1) == "10,20,3"


# --- transparency --------------------------------------------------------------------------------------------------


def test_hidden_colors_never_show(tmp_path):
    pixels = np.zeros((40, 60, 4), np.uint8)
    pixels[...] = (255, 0, 255, 0)
    pixels[:, 30:] = (10, 200, 30, 255)
    pixels[:20, 30:, 3] = 128
    for name in ("a.png", "a.webp", "a.tiff"):
        Image.fromarray(pixels).save(tmp_path / name, lossless=True, exact=True)
        white, green = read_image(tmp_path / name), read_image(tmp_path / name, "#00ff00")
        assert np.array_equal(white[0, 0], (255, 255, 255)), name
        assert np.array_equal(green[0, 0], (0, 255, 0)), name
        assert np.array_equal(white[30, 50], (10, 200, 30)), name
        assert np.abs(white[5, 50].astype(int) - (132, 227, 142)).max() <= 1, name
    small = flattened(within(pixels, 30))
    assert small[..., 0].max() == 255
    assert (small[:, 15].astype(int)[:, 1] >= 198).all()  # no magenta at the edge


def test_reported_cutout(media):
    got = read_image(media / "reports" / "cutout_alpha_hidden_magenta.png")
    assert np.array_equal(got[0, 0], (255, 255, 255))
    magenta = (got[..., 0].astype(int) - got[..., 1] > 100) & (got[..., 2].astype(int) - got[..., 1] > 100)
    assert not magenta.any()


def test_a_transparent_film_is_laid_on_a_background(media):
    path = media / "reports" / "clip_alpha_background_removed.webm"
    assert probe(path).alpha
    with VideoReader.open(path, "#00ff00") as reader:
        frame = next(iter(reader.read([0])))
    assert np.array_equal(frame[0, 0], (0, 255, 0))


def test_a_background_is_a_color():
    with pytest.raises(UserError, match="background"):
        read_image_on("nocolor")


def read_image_on(background):
    return flattened(np.zeros((2, 2, 4), np.uint8), background)
