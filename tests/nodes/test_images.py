"""What goes between ComfyUI's tensors and the engine: nothing is lost, nothing is copied twice, nonsense is refused."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ..pack import pack_module

images = pack_module("nodes.images")
UserError = pack_module("latentsync.errors").UserError
timeline = pack_module("latentsync.timeline")
clips = pack_module("latentsync.face.aligned")
track = pack_module("latentsync.face.track")
Layer = pack_module("latentsync.face.composite").Layer


def batch(frames=3, height=8, width=10, channels=3, seed=0):
    return torch.rand(frames, height, width, channels, generator=torch.Generator().manual_seed(seed))


def test_every_colour_comes_back():
    values = torch.arange(256).repeat(3, 1).T.reshape(1, 16, 16, 3)
    frame = images.frames_of(values.float() / 255)[0]
    assert frame.dtype == np.uint8
    assert np.array_equal(frame, values[0].numpy())


def test_between_two_colors_the_nearer_one_and_never_beyond_the_ends():
    frame = images.frames_of(
        torch.tensor([-3.0, 0.4999 / 255, 0.51 / 255, 254.6 / 255, 1.7, torch.inf]).reshape(1, 1, 2, 3)
    )[0]
    assert frame.ravel().tolist() == [0, 0, 1, 255, 255, 255]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats(dtype):
    pictures = (batch() * 4).round() / 4
    made = images.frames_of(pictures.to(dtype))[1]
    assert np.abs(made.astype(int) - images.frames_of(pictures)[1]).max() <= 1


def test_frames_are_contiguous_rgb_whatever_the_input():
    with_alpha = batch(channels=4)
    turned = batch(height=10, width=8).transpose(1, 2)
    for pictures in (with_alpha, turned, with_alpha[::2], batch()[:, ::2]):
        for frame, picture in zip(images.frames_of(pictures), pictures, strict=True):
            assert frame.flags["C_CONTIGUOUS"]
            assert np.array_equal(frame, (picture[..., :3] * 255).round().byte().numpy())


def test_a_sequence_that_makes_one_frame_at_a_time():
    pictures = batch(5)
    frames = images.frames_of(pictures)
    assert frames.images.data_ptr() == pictures.data_ptr()
    assert len(frames) == 5
    assert frames.size == (10, 8)
    assert np.array_equal(frames[-1], frames[4])
    assert [f.tolist() for f in frames[1:3]] == [frames[1].tolist(), frames[2].tolist()]
    assert [f.tolist() for f in frames.read([4, 0, 4])] == [frames[k].tolist() for k in (4, 0, 4)]
    assert len(list(frames)) == len(list(iter(frames))) == 5
    with pytest.raises(IndexError):
        frames[5]
    pictures[2, 0, 0] = torch.nan  # is not looked at before it is asked for
    assert np.array_equal(frames[1], images.frames_of(pictures)[1])


def test_pixels_are_not_rounded():
    pictures = batch(channels=4)
    pixels = images.frames_of(pictures).pixels(2)
    assert pixels.dtype == np.float32
    assert pixels.shape == (8, 10, 3)
    assert np.array_equal(pixels, (pictures[2, ..., :3] * 255).numpy())


@pytest.mark.parametrize(
    ("pictures", "words"),
    [
        (torch.zeros(8, 10, 3), r"crops is torch.float32 of shape \(8, 10, 3\)"),
        (torch.zeros(2, 8, 10, 1), "or 4 with alpha"),
        (torch.zeros(2, 3, 8, 10), "frames, height, width, 3"),
        (torch.zeros(2, 8, 10, 5), "frames, height, width, 3"),
        (torch.zeros(2, 8, 10, 3, dtype=torch.uint8), "uint8"),
        (torch.zeros(0, 8, 10, 3), "crops is empty"),
        (torch.zeros(2, 0, 10, 3), "at least one picture"),
    ],
)
def test_what_is_no_picture_is_one_sentence(pictures, words):
    with pytest.raises(UserError, match=words):
        images.frames_of(pictures, "crops")


@pytest.mark.parametrize("read", [lambda f: f[1], lambda f: f.pixels(1), list])
def test_nan_is_one_sentence_that_names_the_frame(read):
    pictures = batch()
    pictures[1, 3, 3, 1] = torch.nan
    with pytest.raises(UserError, match=r"Frame 1 of images .*NaN"):
        read(images.frames_of(pictures))


@pytest.mark.parametrize("channels", [3, 4])
def test_pixels_outside_the_mask_and_alpha_stay_bit_for_bit(channels):
    pictures = batch(channels=channels) * 3 - 1  # beyond 0 … 1, and no multiples of 1/255
    before = pictures.clone()
    over = layer(np.linspace(0, 1, 20).reshape(4, 5))
    mask = images.lay(pictures[1], over)
    assert torch.equal(mask[2:6, 3:8], torch.from_numpy(over.alpha))
    old, share = before[1, 2:6, 3:8, :3].double(), torch.from_numpy(over.alpha).double()[..., None]
    wanted = old + share * (torch.from_numpy(over.pixels).double() / 255 - old)
    assert (pictures[1, 2:6, 3:8, :3] - wanted).abs().max() < 1e-6  # floats all the way: 1/255 is 4e-3
    assert torch.equal(pictures[1][mask == 0], before[1][mask == 0])
    assert torch.equal(pictures[..., 3:], before[..., 3:])
    assert torch.equal(pictures[[0, 2]], before[[0, 2]])


def layer(alpha):
    """At rows 2 to 5, columns 3 to 7."""
    pixels = np.random.default_rng(1).uniform(0, 255, (4, 5, 3)).astype(np.float32)
    return Layer((slice(2, 6), slice(3, 8)), pixels, alpha.astype(np.float32))


def test_nothing_in_the_mask_changes_nothing():
    picture = batch()[0]
    before = picture.clone()
    assert not images.lay(picture, layer(np.zeros((4, 5)))).any()
    assert torch.equal(picture, before)


def test_what_is_kept_out_stays_as_it_was():
    picture = batch()[0]
    before, kept = picture.clone(), torch.zeros(8, 10)
    kept[:, 5:] = 1
    kept[3] = 0.25
    mask = images.lay(picture, layer(np.ones((4, 5))), kept)
    assert torch.equal(mask[2:6, 3:8], 1 - kept[2:6, 3:8])
    assert torch.equal(picture[kept == 1], before[kept == 1])
    new = torch.from_numpy(layer(np.ones((4, 5))).pixels) / 255
    assert torch.allclose(picture[2, 3:5, :3], new[0, :2], atol=1e-6)
    assert torch.allclose(picture[3, 3:8, :3], 0.25 * before[3, 3:8, :3] + 0.75 * new[1], atol=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("rate", [8000, 44100, 192000])
def test_sound_of_any_channels_and_rate(channels, rate):
    waveform = torch.rand(1, channels, 500) - 0.5
    got, got_rate = images.speech_of({"waveform": waveform, "sample_rate": rate})
    assert got_rate == rate
    assert got.dtype == torch.float32
    assert torch.equal(got, waveform[0])


def test_sound_of_other_shapes_and_kinds():
    waveform = torch.rand(1, 2, 50).double() - 0.5
    for stored in (waveform, waveform[0], waveform.half()):
        assert images.speech_of({"waveform": stored, "sample_rate": 16000})[0].shape == (2, 50)
    assert images.speech_of({"waveform": waveform[0, 0], "sample_rate": 16000.0})[0].shape == (1, 50)


def test_whole_numbers_as_a_file_stores_them():
    for dtype, low, high in (
        (torch.int16, -(2**15), 2**15 - 1),
        (torch.int32, -(2**31), 2**31 - 1),
        (torch.uint8, 0, 255),
    ):
        middle = 128 if dtype == torch.uint8 else 0
        stored = torch.tensor([[[low, middle, high]]], dtype=dtype)
        got, _ = images.speech_of({"waveform": stored, "sample_rate": 16000})
        assert got[0].tolist() == pytest.approx([-1, 0, 1], abs=0.01)
        assert got[0, 1] == 0


def sound(waveform=None, **more):
    return {"waveform": torch.zeros(1, 1, 9) if waveform is None else waveform, "sample_rate": 16000} | more


@pytest.mark.parametrize(
    ("audio", "words"),
    [
        (None, "There is no audio"),
        ({}, "no waveform and no sample_rate"),
        ({"waveform": torch.zeros(1, 1, 9)}, "no sample_rate"),
        (sound(torch.zeros(3, 1, 9)), "3 recordings in a batch; give one, for example"),
        (sound(torch.zeros(1, 2, 0)), "empty"),
        (sound(torch.zeros(1, 0, 9)), "empty"),
        (sound(torch.zeros(0, 1, 9)), "empty"),
        (sound(torch.zeros(1, 1, 1, 9)), r"shape \(1, 1, 1, 9\)"),
        (sound(torch.tensor(0.5)), r"shape \(\)"),
        (sound(torch.tensor([[[0.1, torch.nan]]])), "not numbers"),
        (sound(torch.tensor([[[0.1, -torch.inf]]])), "not numbers"),
        (sound(sample_rate=0), "0 samples per second"),
        (sound(sample_rate=-16000), "-16000 samples per second"),
    ],
)
def test_what_is_no_sound_is_one_sentence(audio, words):
    with pytest.raises(UserError, match=words):
        images.speech_of(audio)


@pytest.mark.parametrize(
    ("fps", "rate"),
    [
        (25.0, Fraction(25)),
        (25, Fraction(25)),
        (29.97, Fraction(30000, 1001)),
        (float(Fraction(30000, 1001)), Fraction(30000, 1001)),
        (23.976, Fraction(24000, 1001)),
        (23.97602, Fraction(24000, 1001)),
        (59.94, Fraction(60000, 1001)),
        (119.88, Fraction(120000, 1001)),
        (30.0, Fraction(30)),
        (24.0, Fraction(24)),
        (12.5, Fraction(25, 2)),
        (29.9, Fraction(299, 10)),
        (23.98, Fraction(1199, 50)),
        (Fraction(30000, 1001), Fraction(30000, 1001)),
        (Fraction(2997, 100), Fraction(2997, 100)),
    ],
)
def test_frame_rates_are_exact(fps, rate):
    assert images.rate_of(fps) == rate


@pytest.mark.parametrize("fps", [0, 0.0, None, -25.0, float("nan"), float("inf"), float("-inf"), 1e-9])
def test_no_frame_rate_is_one_sentence(fps):
    with pytest.raises(
        UserError, match=r"The frame rate is .*; connect the fps output of Get Video Components or type it\."
    ):
        images.rate_of(fps)


def test_pictures_that_stay_are_not_copied():
    pictures = batch(5)
    same = images.in_order(pictures, timeline.Timeline(Fraction(25), 5, 5, "trim"))
    fewer = images.in_order(pictures, timeline.Timeline(Fraction(25), 3, 5, "loop"))
    assert same is pictures
    assert len(fewer) == 3
    assert fewer.data_ptr() == pictures.data_ptr()


@pytest.mark.parametrize(
    ("fit", "order"), [("loop", [0, 1, 2, 0, 1]), ("pingpong", [0, 1, 2, 1, 0]), ("hold", [0, 1, 2, 2, 2])]
)
def test_pictures_in_the_order_of_the_timeline(fit, order):
    pictures = batch(3, channels=4)
    assert torch.equal(images.in_order(pictures, timeline.Timeline(Fraction(25), 5, 3, fit)), pictures[order])


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from([Fraction(25), Fraction(30000, 1001), Fraction(24000, 1001), Fraction(12)]),
    st.integers(1, 40),
    st.integers(1, 30000),
    st.sampled_from([8000, 16000, 44100, 48000]),
)
def test_sound_is_as_long_as_the_picture_to_the_sample(fps, frames, samples, rate):
    audio = {"waveform": torch.arange(1.0, 2 * samples + 1).reshape(1, 2, samples), "sample_rate": rate, "more": 1}
    got = images.sound_for(audio, timeline.Timeline(fps, frames, frames, "silence"))
    length = got["waveform"].shape[-1]
    kept = min(length, samples)
    assert abs(length - frames / fps * rate) <= Fraction(1, 2)
    assert torch.equal(got["waveform"][..., :kept], audio["waveform"][..., :kept])
    assert not got["waveform"][..., kept:].any()
    assert (got["sample_rate"], got["more"]) == (rate, 1)
    assert audio["waveform"].shape[-1] == samples


def test_sound_never_vanishes():
    audio = {"waveform": torch.ones(1, 1, 50), "sample_rate": 100}
    assert images.sound_for(audio, timeline.Timeline(Fraction(240), 1, 1, "trim"))["waveform"].shape == (1, 1, 1)


def test_sound_that_fits_is_handed_on():
    audio = {"waveform": torch.zeros(1, 1, 6400), "sample_rate": 16000}
    assert images.sound_for(audio, timeline.Timeline(Fraction(25), 10, 10, "trim")) is audio


def face_clip(frames=3, size=(10, 8), resolution=16):
    points = np.tile(np.array([(2, 2), (6, 2), (4, 4)], np.float32), (frames, 1, 1))
    present = np.ones(frames, bool)
    found = track.FaceTrack(0, points, np.zeros((frames, 68, 2), np.float32), present, ((0, frames),), size)
    return clips.AlignedFace.from_track(found, resolution)


def test_pictures_and_crops_of_the_clip_pass():
    images.check_frames(images.frames_of(batch()), face_clip())
    images.check_crops(images.frames_of(batch(3, 32, 32, 4)), face_clip())


@pytest.mark.parametrize(
    ("check", "given", "words"),
    [
        ("check_frames", batch(2), "2 images and the FACE_TRACK has 3 frames"),
        ("check_frames", batch(3, 10, 8), "8×10 px and the face was found in 10×8"),
        ("check_crops", batch(4, 16, 16), "4 crops and the FACE_TRACK has 3"),
        ("check_crops", batch(3, 16, 20), "20×16 px and must be square"),
    ],
)
def test_what_belongs_to_another_clip_is_one_sentence(check, given, words):
    with pytest.raises(UserError, match=words):
        getattr(images, check)(images.frames_of(given), face_clip())


def test_a_track_of_another_pack_is_one_sentence():
    with pytest.raises(UserError, match="face_track is a dict"):
        images.check_frames(images.frames_of(batch()), {"boxes": []})
