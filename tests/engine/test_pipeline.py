"""The whole story with a tiny real model: lengths, masks, windows, gaps, cancelling, and what a report says."""

import dataclasses
import json
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from latentsync import rendering
from latentsync.audio.load import load_audio
from latentsync.errors import UserError
from latentsync.face.aligned import shown_segments
from latentsync.face.choose import choose
from latentsync.face.track import find_tracks
from latentsync.media import animation, output, tags
from latentsync.media import sound as hearing
from latentsync.media.audio_track import audio_duration
from latentsync.media.probe import probe
from latentsync.media.reader import VideoReader
from latentsync.media.writer import VideoWriter
from latentsync.models.vae import VAE
from latentsync.pipeline import lipsync, lipsync_file
from latentsync.settings import FITS, Progress, Settings
from latentsync.timeline import fit_timeline
from latentsync.weights.bundle import Models, load_models

from ..tiny import (
    RATE,
    face_model,
    link,
    pan,
    speech,
    tiny_checkpoint,
    tiny_models,
    tiny_whisper,
    write_clip,
    write_speech,
)

QUICK = Settings(steps=1, guidance=1)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    with tiny_models(tmp_path_factory.mktemp("models")) as models:
        yield models


@pytest.fixture(scope="module")
def smaller_models(tmp_path_factory):
    with tiny_models(tmp_path_factory.mktemp("models"), resolution=32, motion="none") as models:
        yield models


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """20 frames at 25 fps, 0.8 s, with sound as long."""
    folder = tmp_path_factory.mktemp("clip")
    return write_clip(folder / "clip.mp4", pan(20), Fraction(25), audio=write_speech(folder / "own.wav", 0.8))


def changed(before, after):
    return (before != after).any(-1)


class CountingVAE(VAE):
    """Remembers how many frames were encoded together."""

    def encode(self, pixels):
        self.calls = [*getattr(self, "calls", []), len(pixels)]
        return super().encode(pixels)


def counted(models):
    vae = CountingVAE(models.vae.model, scaling=models.vae.scaling)
    return dataclasses.replace(models, vae=vae), vae


def numbered(frames):
    """Frames that tell their number in a corner which no mouth reaches."""
    frames = frames.copy()
    frames[:, :4, :4] = 9 * np.arange(len(frames), dtype=np.uint8)[:, None, None, None]
    return frames


def numbers(frames):
    return (frames[:, 0, 0, 0] // 9).tolist()


def gap(frames, start, stop):
    frames = frames.copy()
    frames[start:stop] = 90
    return frames


def test_arrays(models):
    source = pan(20)
    steps: list[Progress] = []
    result = lipsync(source, speech(0.8), RATE, 25, models=models, settings=QUICK, on_step=steps.append)
    assert result.frames.shape == source.shape
    assert result.frames.dtype == np.uint8
    assert result.mask.shape == source.shape[:3]
    assert result.mask.dtype == np.float32
    assert 0 <= result.mask.min() < result.mask.max() <= 1
    different = changed(source, result.frames)
    assert not different[result.mask == 0].any()
    assert different[result.mask > 0.5].mean() > 0.9
    assert different.any((1, 2)).all()
    assert [(s.stage, s.done, s.total) for s in steps] == [
        *(("track", i, 20) for i in range(1, 21)),
        *(("sample", i, 2) for i in (1, 2)),
    ]
    assert all((s.clean is not None) == (s.stage == "sample") for s in steps)
    assert steps[-1].clean is not None
    assert steps[-1].clean.shape == (1, 4, 16, 8, 8)


def test_report(models):
    report = lipsync(pan(20), speech(0.8), RATE, 25, models=models, settings=QUICK).report
    assert (report.frames, report.source_frames, report.fps, report.size) == (20, 20, Fraction(25), (128, 112))
    assert (report.faces, report.segments, report.repainted, report.checkpoint) == (1, [(0, 20)], 20, "nano")
    facts = json.loads(json.dumps(report.as_dict()))
    assert facts["fps"] == "25"
    assert facts["settings"]["steps"] == 1
    assert facts["repainted"] == 20
    assert {"track", "read", "crop", "encode", "hear", "sample", "decode", "paste"} <= facts["timings"].keys()


def test_same_seed_same_frames_another_seed_others(models):
    source, sound = pan(6), speech(0.24)
    first = lipsync(source, sound, RATE, 25, models=models, settings=QUICK)
    again = lipsync(source, sound, RATE, 25, models=models, settings=QUICK)
    assert np.array_equal(first.frames, again.frames)
    assert np.array_equal(first.mask, again.mask)
    other = lipsync(source, sound, RATE, 25, models=models, settings=dataclasses.replace(QUICK, seed=1))
    assert not np.array_equal(first.frames, other.frames)
    assert np.array_equal(first.mask, other.mask)


@pytest.mark.parametrize("fit", ["pingpong", "loop"])
def test_window_batch_changes_nothing(models, fit):
    """Neither where windows end nor which frames were encoded together may show: frames come back in these fits."""
    source, sound, runs, calls = pan(36), speech(2.9), [], []  # more frames than are remembered
    for number in (1, 4):
        counting, vae = counted(models)
        settings = dataclasses.replace(QUICK, fit=fit, window_batch=number)
        runs.append(lipsync(source, sound, RATE, 25, models=counting, settings=settings))
        calls.append(vae.calls)
    assert runs[0].report.frames == 73
    assert len(calls[0]) >= 6
    assert calls[0] == calls[1]
    assert np.array_equal(runs[0].frames, runs[1].frames)
    assert np.array_equal(runs[0].mask, runs[1].mask)


ORDERS = {
    # 8 frames of 0.4 s at 20 fps against 0.73 s of sound = 14.6 frames
    ("loop", 0.73): [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6],
    ("pingpong", 0.73): [0, 1, 2, 3, 4, 5, 6, 7, 6, 5, 4, 3, 2, 1, 0],
    ("hold", 0.73): [0, 1, 2, 3, 4, 5, 6, 7, 7, 7, 7, 7, 7, 7, 7],
    ("trim", 0.73): list(range(8)),
    ("silence", 0.73): list(range(8)),
    # and 0.23 s = 4.6 frames
    ("loop", 0.23): list(range(5)),
    ("pingpong", 0.23): list(range(5)),
    ("hold", 0.23): list(range(5)),
    ("trim", 0.23): list(range(5)),
    ("silence", 0.23): list(range(8)),
}


@pytest.mark.parametrize(("fit", "seconds"), ORDERS)
def test_fits(models, fit, seconds):
    source = numbered(pan(8))
    settings = dataclasses.replace(QUICK, fit=fit)
    result = lipsync(source, speech(seconds), RATE, 20, models=models, settings=settings)
    assert numbers(result.frames) == ORDERS[fit, seconds]


def test_windows_end_at_cuts_and_at_the_jump_of_a_loop(models):
    moved = np.concatenate([pan(10)[:, :, 30:], 255 - pan(10)[:, :, :30]], 2)  # the same face in another place
    source = np.concatenate([pan(10), moved])
    calls = []
    settings = dataclasses.replace(QUICK, fit="loop")
    result = lipsync(pan(10), speech(1.0), RATE, 25, models=models, settings=settings, on_step=calls.append)
    assert result.report.segments == [(0, 10), (10, 20), (20, 25)]
    assert [c.done for c in calls if c.stage == "sample"] == [1, 2, 3]
    pingpong = lipsync(pan(10), speech(1.0), RATE, 25, models=models, settings=QUICK)
    assert pingpong.report.segments == [(0, 25)]
    cut = lipsync(source, speech(0.8), RATE, 25, models=models, settings=QUICK)
    assert cut.report.segments == [(0, 10), (10, 20)]


def test_frames_without_the_face_pass_through(models):
    source = gap(pan(30), 10, 20)
    result = lipsync(source, speech(1.2), RATE, 25, models=models, settings=QUICK)
    assert result.report.segments == [(0, 10), (20, 30)]
    assert np.array_equal(result.frames[10:20], source[10:20])
    assert not result.mask[10:20].any()
    assert changed(source, result.frames)[:10].any((1, 2)).all()


def test_fades_where_a_face_comes_and_goes(models):
    """Three frames of ramp where it leaves the picture and comes back, none at the clip's own ends."""
    source = pan(30, 256, 256, scale=0.5)
    source[12:20, 22:92, 72:150] = 120
    track = choose(find_tracks(source, models.finder), "largest")
    assert not track.cuts
    result = lipsync(source, speech(1.2), RATE, 25, models=models, settings=QUICK)
    assert result.report.segments == [(0, 12), (20, 30)]
    peaks = result.mask.max((1, 2))
    assert np.allclose(peaks[:12], [1] * 9 + [0.75, 0.5, 0.25], atol=0.02)
    assert not peaks[12:20].any()
    assert np.allclose(peaks[20:], [0.25, 0.5, 0.75] + [1] * 7, atol=0.02)


def test_a_still_image_is_encoded_once(models):
    """Two passes of one picture, with and without the mouth, in three windows."""
    models, vae = counted(models)
    result = lipsync(pan(1), speech(1.5), RATE, 25, models=models, settings=QUICK)
    assert sum(vae.calls) == 2
    assert len(result.frames) == 38
    assert result.report.source_frames == 1
    assert changed(result.frames[0], result.frames[5]).any()  # the mouth moves with the sound


def test_every_frame_is_encoded_once(models):
    """The last one is shifted back over its neighbor, whose frames are known still."""
    models, vae = counted(models)
    lipsync(pan(20), speech(0.8), RATE, 25, models=models, settings=QUICK)
    assert sum(vae.calls) == 2 * 20


def test_a_held_reference_is_encoded_once_for_each_segment(tmp_path, models):
    """Of a checkpoint that was trained so: each segment has a reference of its own."""
    with tiny_models(tmp_path, reference_mode="first_frame", whisper=models.whisper) as still:
        still, vae = counted(still)
        lipsync(pan(20), speech(0.8), RATE, 25, models=still, settings=QUICK)
        assert sum(vae.calls) == 20 + 1
        vae.calls = []
        settings = dataclasses.replace(QUICK, fit="loop")
        result = lipsync(pan(10), speech(1.0), RATE, 25, models=still, settings=settings)
        assert result.report.segments == [(0, 10), (10, 20), (20, 25)]
        assert sum(vae.calls) == 10 + 1  # the loops after the first one find all of it


def test_silence_follows_sound_that_ends_early(models):
    """Mouths after its end must not be those of its last syllable, but of silence, as if it had been recorded."""
    source, sound = pan(14), speech(0.4)
    settings = dataclasses.replace(QUICK, fit="silence")
    short = lipsync(source, sound, RATE, 20, models=models, settings=settings)
    padded = torch.nn.functional.pad(sound, (0, round(0.3 * RATE)))
    long = lipsync(source, padded, RATE, 20, models=models, settings=settings)
    assert np.array_equal(short.frames, long.frames)


def test_the_mouth_follows_the_sound(models):
    source = pan(16)
    one, other = (lipsync(source, speech(0.64, seed=s), RATE, 25, models=models, settings=QUICK) for s in (3, 4))
    assert changed(one.frames, other.frames)[one.mask > 0.5].mean() > 0.2


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_any_rate_and_channels(models, rate):
    sound = torch.stack((speech(0.4, rate), speech(0.4, rate)))
    assert len(lipsync(pan(5), sound, rate, 25, models=models, settings=QUICK).frames) == 10
    assert len(lipsync(pan(5), sound.numpy(), rate, 25, models=models, settings=QUICK).frames) == 10


@pytest.mark.parametrize("solver", ["dpm++", "unipc", "deis"])
def test_other_solvers_run(models, solver):
    settings = Settings(steps=2, guidance=1.5, solver=solver)
    result = lipsync(pan(4), speech(0.16), RATE, 25, models=models, settings=settings)
    assert changed(pan(4), result.frames).any()


REFUSED = [
    ({"frames": np.zeros((0, 8, 8, 3), np.uint8)}, "no frames"),
    ({"frames": np.zeros((2, 8, 8, 4), np.uint8)}, "wanted is uint8 RGB"),
    ({"frames": np.zeros((2, 8, 8, 3), np.float32)}, "float32"),
    ({"frames": np.zeros((8, 8, 3), np.uint8)}, "wanted is uint8 RGB"),
    ({"frames": [np.zeros((8, 8, 3), np.uint8), np.zeros((9, 8, 3), np.uint8)]}, "frame 1 is"),
    ({"frames": np.zeros((3, 64, 64, 3), np.uint8)}, "No face"),
    ({"fps": 0}, "frame rate"),
    ({"fps": -25}, "frame rate"),
    ({"fps": float("nan")}, "frame rate"),
    ({"fps": float("inf")}, "frame rate"),
    ({"waveform": torch.zeros(16000)}, "silent"),
    ({"waveform": torch.zeros(0)}, "of audio is needed"),
    ({"waveform": speech(0.1)}, "0.1 s"),
    ({"waveform": torch.full((16000,), float("nan"))}, "NaN"),
    ({"waveform": torch.ones(2, 2, 16000)}, "(samples,)"),
    ({"waveform": torch.ones(16000, dtype=torch.int16)}, "int16"),
    ({"sample_rate": 0}, "0 Hz"),
]


@pytest.mark.parametrize(("given", "said"), REFUSED)
@pytest.mark.parametrize("fit", ["pingpong", "silence"])
def test_bad_arrays_get_one_sentence(models, given, said, fit):
    settings = dataclasses.replace(QUICK, fit=fit)
    arguments = {"frames": pan(2), "waveform": speech(0.4), "sample_rate": RATE, "fps": 25} | given
    with pytest.raises(UserError) as caught:
        lipsync(**arguments, models=models, settings=settings)
    assert said.lower() in str(caught.value).lower()
    assert "\n" not in str(caught.value)


def test_a_face_that_is_not_there(models):
    with pytest.raises(UserError, match="the faces found"):
        lipsync(pan(3), speech(0.2), RATE, 25, models=models, settings=dataclasses.replace(QUICK, face="7"))


@pytest.mark.parametrize("size", [(101, 67), (128, 111), (97, 128)])
def test_odd_sizes(models, tmp_path, size):
    width, height = size
    source = pan(4, width, height)
    result = lipsync(source, speech(0.16), RATE, 25, models=models, settings=QUICK)
    assert result.frames.shape == (4, height, width, 3)
    out = tmp_path / "out.mp4"
    with VideoWriter(out, width, height, Fraction(25)) as writer:
        for frame in result.frames:
            writer.write(frame)
    assert (probe(out).width, probe(out).height) == (width, height)


# ---- files ---------------------------------------------------------------------------------------------------------


class Spy(VideoWriter):
    """Keeps what is written, as it is before the encoder."""

    written: list[np.ndarray]

    def __init__(self, *args, **options):
        Spy.written, Spy.options = [], options
        super().__init__(*args, **options)

    def write(self, frame):
        Spy.written.append(frame)
        super().write(frame)


def packets(path):
    with av.open(str(path)) as container:
        return [p.pts * p.time_base for p in container.demux(video=0) if p.size]


def sound_of(path, rate=48000):
    with av.open(str(path)) as container:
        resampler = av.AudioResampler("flt", "mono", rate)
        blocks = [f.to_ndarray() for frame in container.decode(audio=0) for f in resampler.resample(frame)]
        return np.concatenate([b.ravel() for b in blocks])


def test_arrays_and_files_agree(models, clip, tmp_path, monkeypatch):
    monkeypatch.setattr(output, "VideoWriter", Spy)
    info, steps = probe(clip), []
    report = lipsync_file(clip, None, tmp_path / "out.mp4", models=models, settings=QUICK, on_step=steps.append)
    with VideoReader(info) as reader:
        source = np.stack(list(reader.read(range(info.frames))))
    sound = load_audio(clip, info.start)
    arrays = lipsync(source, sound.waveform, RATE, info.fps, models=models, settings=QUICK)
    assert np.array_equal(np.stack(Spy.written), arrays.frames)
    assert report.segments == arrays.report.segments
    assert report.out == str(tmp_path / "out.mp4")
    assert "write" in report.timings
    assert [s.done for s in steps if s.stage == "sample"] == [1, 2]


CASES = [
    # fps, source frames, seconds of sound, fit
    ("16", 9, 0.7, "pingpong"),
    ("18", 7, 0.31, "loop"),
    ("24000/1001", 12, 0.5, "trim"),
    ("24", 5, 1.01, "hold"),
    ("25", 17, 0.2, "silence"),
    ("25", 1, 0.68, "loop"),
    ("30000/1001", 16, 0.9, "pingpong"),
    ("30", 33, 1.1, "trim"),
    ("50", 20, 0.77, "loop"),
    ("60", 10, 0.4, "silence"),
]


@pytest.mark.parametrize(("fps", "frames", "seconds", "fit"), CASES)
def test_frames_and_stamps_are_the_timelines(models, tmp_path, fps, frames, seconds, fit):
    fps = Fraction(fps)
    video = write_clip(tmp_path / "in.mp4", pan(frames), fps)
    audio, out = write_speech(tmp_path / "in.wav", seconds), tmp_path / "out.mp4"
    settings = dataclasses.replace(QUICK, fit=fit)
    report = lipsync_file(video, audio, out, models=models, settings=settings)
    timeline = fit_timeline(fps, frames, Fraction(round(seconds * RATE), RATE), fit)
    stamps = sorted(packets(out))
    assert len(stamps) == report.frames == timeline.frames
    assert stamps == [timeline.time(i) for i in range(timeline.frames)]
    assert probe(out).fps == fps
    wanted = timeline.duration if fit == "silence" else min(timeline.duration, Fraction(seconds))
    assert abs(audio_duration(out) - wanted) < Fraction(2, RATE)


def test_a_picture_becomes_a_video(models, tmp_path):
    import cv2

    picture, out = tmp_path / "face.png", tmp_path / "out.mp4"
    cv2.imwrite(str(picture), pan(1)[0][..., ::-1])
    settings = dataclasses.replace(QUICK, still_fps=20, fit="silence")
    report = lipsync_file(picture, write_speech(tmp_path / "a.wav", 0.52), out, models=models, settings=settings)
    assert (report.frames, report.fps, report.source_frames) == (11, Fraction(20), 1)
    assert len(packets(out)) == 11
    with pytest.raises(UserError, match="is a picture and has no sound"):
        lipsync_file(picture, None, out, models=models)


def test_another_sound_begins_with_the_first_frame_its_own_stays_in_step(models, tmp_path, monkeypatch):
    """The same recording twice: as the file's own sound, which starts 0.3 s late there, and given on its own."""
    sound = write_speech(tmp_path / "a.wav", 0.5)
    video = write_clip(tmp_path / "late.mkv", pan(20), Fraction(25), audio=sound, late=Fraction(3, 10))
    assert probe(video).audio_start == Fraction(3, 10)
    out = tmp_path / "out.mkv"
    monkeypatch.setattr(output, "VideoWriter", Spy)
    settings = dataclasses.replace(QUICK, fit="silence")
    for audio in (None, video):
        lipsync_file(video, audio, out, models=models, settings=settings)
        heard, true = sound_of(out, RATE), load_audio(sound).waveform.numpy()
        lag = int(np.argmax(np.correlate(heard, true)))
        assert abs(lag - 0.3 * RATE) <= 16
        own = np.stack(Spy.written)
    with VideoReader(probe(video)) as reader:
        source = np.stack(list(reader.read(range(20))))
    late = torch.nn.functional.pad(load_audio(sound).waveform, (round(0.3 * RATE), 0))
    assert np.array_equal(own, lipsync(source, late, RATE, 25, models=models, settings=settings).frames)
    lipsync_file(video, sound, out, models=models, settings=settings)
    assert int(np.argmax(np.correlate(sound_of(out, RATE), true))) <= 16


def test_colour_and_pixel_shape_go_through(models, tmp_path, monkeypatch):
    monkeypatch.setattr(output, "VideoWriter", Spy)
    video = write_clip(tmp_path / "in.mp4", pan(3), Fraction(25), aspect=Fraction(16, 15))
    lipsync_file(video, write_speech(tmp_path / "a.wav", 0.2), tmp_path / "out.mp4", models=models, settings=QUICK)
    assert Spy.options["color"] == probe(video).color
    assert probe(tmp_path / "out.mp4").aspect == Fraction(16, 15)


def test_sound_is_copied_unless_a_frame_or_more_of_silence_must_follow(models, tmp_path):
    folder = tmp_path
    aac = write_clip(folder / "a.m4a", None, Fraction(25), audio=write_speech(folder / "a.wav", 0.38))
    video, out = write_clip(folder / "in.mp4", pan(10), Fraction(25)), folder / "out.mp4"

    def sound_packets(path):
        with av.open(str(path)) as container:
            return [bytes(p) for p in container.demux(audio=0) if p.size]

    for fit in FITS:
        lipsync_file(video, aac, out, models=models, settings=dataclasses.replace(QUICK, fit=fit))
        assert sound_packets(out) == sound_packets(aac)[: len(sound_packets(out))]
        assert len(sound_packets(out)) >= len(sound_packets(aac)) - 1


class Cancelled(Exception):
    pass


@pytest.mark.parametrize("stage", ["track", "sample"])
def test_cancelling_leaves_nothing(models, clip, tmp_path, stage):
    def on_step(step):
        if step.stage == stage:
            raise Cancelled

    out = tmp_path / "out.mp4"
    out.write_bytes(b"from before")
    with pytest.raises(Cancelled):
        lipsync_file(clip, None, out, models=models, settings=QUICK, on_step=on_step)
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"]
    assert out.read_bytes() == b"from before"


def test_bad_places_are_told_before_any_work(models, clip, tmp_path):
    steps: list[Progress] = []
    for out in (tmp_path / "no" / "out.mp4", tmp_path, tmp_path / "out.txt"):
        with pytest.raises(UserError):
            lipsync_file(clip, None, out, models=models, settings=QUICK, on_step=steps.append)
    assert not steps
    assert not list(tmp_path.iterdir())


def test_no_face_leaves_no_file(models, tmp_path):
    video = write_clip(tmp_path / "in.mp4", np.full((6, 64, 96, 3), 120, np.uint8), Fraction(25))
    audio = write_speech(tmp_path / "a.wav", 0.3)
    with pytest.raises(UserError, match="No face was found in any of the 6 frames"):
        lipsync_file(video, audio, tmp_path / "out.mp4", models=models, settings=QUICK)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.wav", "in.mp4"]


# ---- models --------------------------------------------------------------------------------------------------------


def test_load_models(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    whisper = tiny_whisper()
    save_file(
        {f"encoder.{k}": v for k, v in whisper.encoder.state_dict().items()} | _final_norm(), tmp_path / "w.safetensors"
    )
    link(tmp_path / "face_landmarker.task", face_model())
    monkeypatch.setenv("LATENTSYNC_MODELS", str(tmp_path))
    path = tiny_checkpoint(tmp_path / "tiny.safetensors", resolution=64)
    with load_models(path, whisper=tmp_path / "w.safetensors") as models:
        assert isinstance(models, Models)
        assert (models.resolution, models.name, models.vae.channels) == (64, "nano", 4)
        assert (models.device.type, models.dtype) == ("cpu", torch.float32)
        assert len(lipsync(pan(2), speech(0.2), RATE, 10, models=models, settings=QUICK).frames) == 2
    with load_models(path, whisper=tmp_path / "w.safetensors", resolution=96, dtype=torch.bfloat16) as models:
        assert (models.resolution, models.dtype) == (96, torch.bfloat16)
        made = lipsync(pan(2), speech(0.2), RATE, 10, models=models, settings=QUICK)
        assert changed(pan(2), made.frames).any()
    eight = tiny_checkpoint(tmp_path / "eight.safetensors", latent_channels=8)
    with pytest.raises(UserError, match=r"The VAE has 8 latent channels and .* takes 4"):
        load_models(path, vae=eight, whisper=tmp_path / "w.safetensors")
    deaf = tiny_checkpoint(tmp_path / "deaf.safetensors", audio_dim=128)
    with pytest.raises(UserError, match=r"384 numbers per token and .* takes 128"):
        load_models(deaf, whisper=tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="nothing here"):
        load_models(tmp_path / "nothing here.pt")


def _final_norm():
    return {"encoder.layer_norm.weight": torch.ones(384), "encoder.layer_norm.bias": torch.zeros(384)}


# ---- real clips ----------------------------------------------------------------------------------------------------


def real(media):
    """One clip of each recording, and every hard case."""
    return [
        *sorted((media / "clips").glob("*.m*")),
        media / "clips/grid/pA_brbk7n.mpg",
        *sorted((media / "edge").iterdir()),
    ]


FIRST = {"noface_then_face_vfr_hevc.mov": 116, "face_then_noface_vfr_hevc.mov": 55, "black_3s_to_4s.mp4": 68}
"""Where something happens; the other clips are tried at their start."""


def test_pixels_outside_the_mask_on_every_real_clip(media, smaller_models):
    tried, quick = 0, dataclasses.replace(QUICK, fit="trim")
    for path in real(media):
        info = probe(path)
        start = min(FIRST.get(path.name, 0), info.frames - 1)
        with VideoReader(info) as reader:
            source = np.stack(list(reader.read(range(start, min(start + 8, info.frames)))))
        options = {"models": smaller_models, "settings": quick}
        if path.name.startswith("noface_c"):
            with pytest.raises(UserError, match="No face was found"):
                lipsync(source, speech(4.0), RATE, info.fps, **options)
            continue
        result = lipsync(source, speech(4.0), RATE, info.fps, **options)
        assert result.frames.shape == source.shape, path.name
        different = changed(source, result.frames)
        assert not different[result.mask == 0].any(), path.name
        painted = np.zeros(len(source), bool)
        for a, b in result.report.segments:
            painted[a:b] = True
        assert (result.mask.max((1, 2)) > 0)[painted].any(), path.name
        assert not result.mask[~painted].any(), path.name
        tried += 1
    assert tried >= 30


def test_a_black_second_passes_through(media, models):
    path = media / "edge" / "black_3s_to_4s.mp4"
    with VideoReader(probe(path)) as reader:
        source = np.stack(list(reader.read(range(70, 105))))
    result = lipsync(source, speech(1.4), RATE, 25, models=models, settings=QUICK)
    assert result.report.segments == [(0, 5), (31, 35)]
    assert np.array_equal(result.frames[5:31], source[5:31])
    assert not result.mask[5:31].any()


def test_own_sound_of_a_real_clip_stays_in_step(media, models, tmp_path):
    """This one's sound starts before its first picture; the loudest moment stays at its place against the frames."""
    path = media / "edge" / "five_frames.mp4"
    info, out = probe(path), tmp_path / "out.mp4"
    report = lipsync_file(path, None, out, models=models, settings=dataclasses.replace(QUICK, fit="silence"))
    assert report.frames == info.frames == 5
    made = probe(out)
    assert info.audio_start is not None
    assert made.audio_start is not None
    assert abs(made.audio_start - max(info.audio_start, 0)) < Fraction(1, 40)


def test_stretches_of_real_windows_are_disjoint_and_ordered(models):
    track = choose(find_tracks(gap(pan(24), 9, 16), models.finder), "largest")
    for fit in FITS:
        timeline = fit_timeline(Fraction(25), 24, Fraction(3), fit)
        runs = shown_segments(timeline, track)
        assert all(a < b for a, b in runs)
        assert all(b <= c for (_, b), (c, _) in pairwise(runs))
        shown = [timeline.source_index(i) for a, b in runs for i in range(a, b)]
        assert all(track.present[i] for i in shown)
        assert len(shown) == sum(bool(track.present[i]) for i in timeline.source_indices())


@pytest.mark.parametrize("sound", ["own", "aac", "wav"])
def test_clip_and_speech_are_opened_once_to_be_decoded(models, tmp_path, monkeypatch, sound):
    """The clip once in all, though it is read twice. The speech once more where the output takes its packets, which
    decodes nothing; a WAV file, which MP4 cannot hold, is decoded again for the new encoding."""
    voice = write_speech(tmp_path / "voice.wav", 1.3)
    clip = write_clip(tmp_path / "clip.mp4", pan(20), Fraction(25), audio=voice)
    speech_file = {"own": None, "wav": voice, "aac": write_clip(tmp_path / "s.mp4", pan(34), Fraction(25), audio=voice)}
    opened, decoding = [], []

    def open_media(path, *rest):
        opened.append(Path(path).name)
        return original(path, *rest)

    def pieces(self, *rest):
        decoding.append(self.path.name)
        return original_pieces(self, *rest)

    original, original_pieces = hearing.open_media, hearing.Sound.pieces
    for module in (animation, hearing, tags):
        monkeypatch.setattr(module, "open_media", open_media)
    monkeypatch.setattr(hearing.Sound, "pieces", pieces)
    settings = dataclasses.replace(QUICK, fit="loop")
    lipsync_file(clip, speech_file[sound], tmp_path / "out.mp4", models=models, settings=settings)
    if sound == "own":
        assert opened == ["clip.mp4"] * 3  # picture, speech, packets
        assert decoding == ["clip.mp4"]
    else:
        name = speech_file[sound].name
        assert sorted(opened) == sorted(["clip.mp4", name, name])
        assert decoding == [name] * (2 if sound == "wav" else 1)


def test_a_tiny_vae_paints_only_what_is_pasted(tmp_path, monkeypatch):
    models = tiny_models(tmp_path, taesd=True)
    source, settings = pan(20), dataclasses.replace(QUICK, steps=1)
    rows = []
    models.vae.model.decoder.layers[-1].register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[-2]))

    def made():
        rows.clear()
        return lipsync(source, speech(0.8), RATE, 25, models=models, settings=settings)

    part = made()
    assert max(rows) < 64
    monkeypatch.setattr(rendering, "first_row_read", lambda resolution: 0)
    whole = made()
    assert min(rows) == 64
    assert np.array_equal(part.frames, whole.frames)
    assert changed(part.frames, source).any()
