"""The SyncNet measures: cepstra, shifts found with their sign, gaps, cuts and ends, and Chung's own conventions."""

import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentsync.audio.mfcc import mfcc
from latentsync.audio.syncnet_mel import mel_span, sync_mel
from latentsync.dataset import FPS
from latentsync.errors import UserError
from latentsync.evaluation.syncnet_sync import (
    CHUNG_SIDE,
    ChungScorer,
    StableScorer,
    chung_boxes,
    chung_crop,
    mel_rows,
    sync_offset,
)
from latentsync.face.track import FaceTrack
from latentsync.models.syncnet import ChungSyncNet, StableSyncNet
from latentsync.weights.syncnet_files import load_syncnet

from .talking import RATE, TINY, faces, learnt, opening, voice

# ---- cepstra

# python_speech_features 0.6: mfcc(samples, 16000)[3] of 0.1 s of a sine of 440 Hz at 0.3
SINE = [
    19.478, 26.0517, 9.4193, -7.5513, -21.8856, -29.196, -25.8721, -15.2115, -0.1863, 12.4741, 19.9867, 19.1085, 12.2757
]  # fmt: skip


def test_cepstra_are_those_of_the_usual_library():
    t = np.arange(1600) / RATE
    assert np.abs(mfcc(0.3 * np.sin(2 * np.pi * 440 * t))[3] - SINE).max() < 1e-3


def test_cepstra_of_noise_by_loops_and_scipy():
    """The formulas once more, one number at a time; the library itself agrees with ours to 2e-6."""
    fft = pytest.importorskip("scipy.fft")
    sound = np.random.default_rng(0).standard_normal(1000) * 0.1
    samples = np.round(sound * 32768)
    samples = np.append(samples[0], samples[1:] - 0.97 * samples[:-1])
    row = np.append(samples[640:1000], np.zeros(40))  # the fifth window hangs over the end
    power = [abs(sum(row[n] * np.exp(-2j * np.pi * k * n / 512) for n in range(400))) ** 2 / 512 for k in range(257)]
    edges = [700 * (10 ** (2595 * np.log10(1 + 8000 / 700) * i / 27 / 2595) - 1) for i in range(28)]
    bins = [int(513 * hertz // RATE) for hertz in edges]
    bands = []
    for low, peak, high in zip(bins, bins[1:], bins[2:], strict=False):
        up = sum(power[k] * (k - low) / (peak - low) for k in range(low, peak))
        bands.append(up + sum(power[k] * (high - k) / (high - peak) for k in range(peak, high)))
    wanted = fft.dct(np.log(bands), type=2, norm="ortho")[:13] * [1 + 11 * np.sin(np.pi * n / 22) for n in range(13)]
    wanted[0] = np.log(sum(power))
    got = mfcc(sound)
    assert got.shape == (5, 13)
    assert np.abs(got[4] - wanted).max() < 1e-3


def test_cepstra_of_silence_and_scraps_are_numbers():
    assert mfcc(np.zeros(5)).shape == (1, 13)
    assert np.isfinite(mfcc(torch.zeros(4000))).all()
    long = np.random.default_rng(1).standard_normal(160 * 5000) * 0.01  # more than one block
    assert np.allclose(mfcc(long)[4090:4100], mfcc(long[4000 * 160 - 1600 :])[100:110], atol=1e-4)


# ---- shifts


@pytest.mark.parametrize("late", range(-6, 7))
def test_a_shift_is_found_with_its_sign(late):
    """Positive: the sound comes after the picture. On talkers that the network has not seen."""
    for seed in (1, 2):
        curve = opening(90, seed)
        found = sync_offset(learnt(), faces(curve, seed), voice(curve, seed + 50, late))
        assert found.offset == late
        assert found.confidence > 0.15
        assert found.distance == found.distances.min()
        assert found.shifts.tolist() == list(range(-15, 16))


def test_unrelated_sound_is_less_sure():
    curve = opening(150, 3)
    own = sync_offset(learnt(), faces(curve, 3), voice(curve, 3))
    other = sync_offset(learnt(), faces(curve, 3), voice(opening(150, 4), 4))
    assert other.confidence < 0.6 * own.confidence
    assert other.distance > own.distance + 0.1
    assert own.distance_at_zero == own.distance


def by_hand(net, pictures, sound, reach):
    """Every pair of windows on its own."""
    scorer = StableScorer(net, sound, None)
    frames = torch.stack([scorer.frame(f) for f in pictures]) / 127.5 - 1
    mel, n = sync_mel(sound), TINY.frames
    windows = [frames[i : i + n].flatten(0, 1) for i in range(len(frames) - n + 1)]
    starts = [mel_span(i, FPS, n)[0] for i in range(len(frames))]
    starts = [a for a in starts if a + TINY.mels[1] <= mel.shape[1]]
    seen = net.visual_encoder(torch.stack(windows))
    heard = net.audio_encoder(torch.stack([mel[:, a : a + TINY.mels[1]] for a in starts])[:, None])
    table = 1 - seen @ heard.T
    shifts = range(-reach, reach + 1)
    means = [np.mean([float(table[i, i + s]) for i in range(len(seen)) if 0 <= i + s < len(heard)]) for s in shifts]
    return np.array(means), len(heard)


@pytest.mark.parametrize(("frames", "batch"), [(40, 7), (33, 16), (24, 64)])
def test_batches_and_the_running_sound_change_nothing(frames, batch):
    curve = opening(frames, 9)
    pictures, sound = faces(curve, 9), voice(curve, 9)
    found = sync_offset(learnt(), iter(pictures), sound, max_shift=5, batch=batch)
    wanted, heard = by_hand(learnt(), pictures, sound, 5)
    assert np.abs(found.distances - wanted).max() < 1e-5
    assert heard == StableScorer(learnt(), sound, None).audio_windows
    assert found.frames == frames
    assert found.windows == frames - TINY.frames + 1


def test_confidence_over_time_falls_where_the_sound_is_another():
    curve = opening(200, 11)
    sound = voice(curve, 11)
    sound[4 * RATE :] = voice(opening(200, 12), 12)[4 * RATE :]
    found = sync_offset(learnt(), faces(curve, 11), sound)
    assert found.offset == 0
    assert len(found.per_frame) == 200
    assert np.isnan(found.per_frame[:4]).all()
    assert np.nanmean(found.per_frame[10:90]) > np.nanmean(found.per_frame[110:]) + 0.15


def test_windows_do_not_reach_across_a_cut():
    curve = opening(120, 13)
    pictures, sound = faces(curve, 13), voice(curve, 13)
    pictures[50:70] = np.random.default_rng(0).integers(0, 256, pictures[50:70].shape)
    whole = sync_offset(learnt(), pictures, sound)
    parts = sync_offset(learnt(), pictures, sound, segments=[(0, 50), (70, 120)])
    assert parts.windows == 2 * (50 - TINY.frames + 1)
    assert parts.confidence > whole.confidence + 0.02
    assert np.isnan(parts.per_frame[50:70]).all()


def test_short_clips_try_fewer_shifts_and_shorter_ones_are_refused():
    curve = opening(20, 14)
    found = sync_offset(learnt(), faces(curve, 14), voice(curve, 14))
    assert 4 <= found.shifts[-1] < 15
    with pytest.raises(UserError, match=r"give 8 windows of 8 frames; at least 10 are needed \(0.68 s"):
        sync_offset(learnt(), faces(curve[:15], 14), voice(curve, 14))
    with pytest.raises(UserError, match="silent"):
        sync_offset(learnt(), faces(curve, 14), torch.zeros(RATE))
    with pytest.raises(UserError, match=r"windows of 8 frames; at least 10"):
        sync_offset(learnt(), faces(curve, 14), voice(curve, 14), segments=[(0, 12), (12, 20)])


def test_progress_tells_frames_and_an_interrupt_ends_it():
    curve = opening(60, 15)
    seen = []
    sync_offset(learnt(), faces(curve, 15), voice(curve, 15), on_progress=lambda p: seen.append((p.done, p.total)))
    assert seen[-1] == (60, 60)
    assert [n for n, _ in seen] == sorted(n for n, _ in seen)

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sync_offset(learnt(), faces(curve, 15), voice(curve, 15), on_progress=stop)


@settings(max_examples=25, deadline=None)
@given(start=st.integers(0, 230), length=st.integers(1, 10))
def test_a_stretch_of_the_mel_is_the_mel(start, length):
    sound = voice(opening(75, 1), 1)
    stop = min(start + length, 241)
    assert torch.allclose(mel_rows(sound, start, stop), sync_mel(sound)[:, start:stop], atol=1e-3)


def test_any_size_of_crop_will_do():
    curve = opening(60, 16)
    large = faces(curve, 16, side=96)
    assert sync_offset(learnt(), large, voice(curve, 16, 3)).offset == 3


def test_latents_come_from_the_given_vae():
    from dataclasses import replace

    class Halves:
        factor = 2

        def encode(self, pixels):
            assert pixels.shape[2:] == (64, 64)
            return pixels[:, :, ::2, ::2]

    config = replace(TINY, space="latent", size=(32, 32), visual=replace(TINY.visual, factors=(4, 4, 2)))
    net = StableSyncNet(config).eval()
    with pytest.raises(UserError, match="name the VAE"):
        sync_offset(net, [], voice(opening(60, 1), 1))
    found = sync_offset(net, faces(opening(40, 1), 1, side=64), voice(opening(60, 1), 1), vae=Halves())
    assert found.windows == 33


# ---- Chung's


class Counting(ChungSyncNet):
    """The picture's vector is the frame's gray over 10, the sound's the row of its first cepstra: both tell time."""

    def __init__(self):
        super().__init__()
        self.netcnnlip = self.netcnnaud = torch.nn.Identity()  # type: ignore[assignment]
        self.netfclip = self.netfcaud = torch.nn.Identity()  # type: ignore[assignment]
        self.one = torch.nn.Parameter(torch.ones(1), requires_grad=False)


def test_chungs_windows_hold_bgr_frames_and_their_cepstra():
    speech = voice(opening(50, 1), 1)
    scorer = ChungScorer(Counting(), speech)
    pictures = [np.full((224, 224, 3), (i, 100 + i, 200), np.uint8) for i in range(12)]
    seen = scorer.embed_video(torch.stack([scorer.frame(p) for p in pictures])).view(8, 3, 5, 224, 224)
    assert seen[2, :, 3, 0, 0].tolist() == [200, 105, 5]
    heard = scorer.embed_audio(3, 6).view(3, 13, 20)
    assert torch.equal(heard[1], torch.from_numpy(mfcc(speech)[16:36].T))
    assert scorer.audio_windows == 45  # 50 frames of sound less the window, as its authors count
    assert scorer.embed_audio(44, 45).shape == (1, 260)


def test_chungs_ends_meet_zeros():
    """So published figures were made: beyond the clip a distance is the vector's own length."""
    torch.manual_seed(0)
    net = ChungSyncNet().eval().requires_grad_(False)
    sound = voice(opening(24, 1), 1)
    pictures = np.random.default_rng(0).integers(0, 256, (24, 224, 224, 3), np.uint8)
    found = sync_offset(net, pictures, sound, max_shift=3)
    scorer = ChungScorer(net, sound)
    seen = scorer.embed_video(torch.stack([scorer.frame(p) for p in pictures]))
    heard = scorer.embed_audio(0, scorer.audio_windows)
    count = min(len(seen), len(heard))
    padded = torch.nn.functional.pad(heard[:count], (0, 0, 3, 3))
    wanted = [float(np.mean([(seen[i] - padded[i + j]).norm() for i in range(count)])) for j in range(7)]
    assert np.abs(found.distances - wanted).max() < 1e-3
    assert found.network == "chung"
    assert found.confidence == pytest.approx(np.median(wanted) - min(wanted), abs=1e-4)
    assert found.windows == count


def track(centers, half=50.0):
    """A face whose 68 points fill a square; segments: one."""
    count = len(centers)
    points = np.zeros((count, 68, 2), np.float32)
    points[:, 0], points[:, 8] = np.array(centers) - half, np.array(centers) + half
    points[:, 1:8] = points[:, 9:] = np.array(centers)[:, None]
    return FaceTrack(0, points[:, :3], points, np.ones(count, bool), ((0, count),), (640, 480))


def test_chungs_crop_is_wide_and_steady():
    centers = np.tile([300.0, 200.0], (30, 1))
    centers[15] += 40  # one bad frame does not move a median
    boxes = chung_boxes(track(centers))
    half = 50 * 1.17
    assert np.allclose(boxes, [300, 200 - 0.17 * 50, half])
    frame = np.zeros((480, 640, 3), np.uint8)
    x, y = 300, 200 - 0.17 * 50
    top, bottom, left, right = y - half, y + 1.8 * half, x - 1.4 * half, x + 1.4 * half
    frame[round(top) : round(bottom), round(left) : round(right)] = 255
    crop = chung_crop(frame, boxes[0])
    assert crop.shape == (CHUNG_SIDE, CHUNG_SIDE, 3)
    assert crop[4:-4, 4:-4].min() == 255
    frame[round(top) + 6 : round(bottom) - 6, round(left) + 6 : round(right) - 6] = 0
    assert chung_crop(frame, boxes[0])[[2, -3]].mean() > 200  # its edge lies just inside the crop's


def test_chungs_crop_is_grey_outside_and_survives_faces_at_the_edge():
    frame = np.full((100, 100, 3), 7, np.uint8)
    crop = chung_crop(frame, np.array([0.0, 50.0, 20.0]))
    assert (crop[:, :90] == 110).all()
    assert (crop[:, -90:] == 7).all()
    assert (chung_crop(frame, np.array([-500.0, -500.0, 20.0])) == 110).all()


def test_the_track_at_25_a_second():
    from latentsync.evaluation.clips import _pick

    found = _pick(track(np.arange(120).reshape(60, 2)), np.array([int(i * Fraction(50, 25)) for i in range(30)]))
    assert found.frames == 30
    assert found.segments == ((0, 30),)
    assert found.landmarks[3, 1].tolist() == [12, 13]


# ---- a network that learnt real faces


@pytest.mark.media
def test_real_clips_shifted(media):
    """LATENTSYNC_SYNCNET: a file of `latentsync train syncnet`."""
    from latentsync.evaluation.clips import sync_clip, track_clip
    from latentsync.face.detect import FaceFinder

    from ..tiny import face_model

    path = Path(os.environ.get("LATENTSYNC_SYNCNET", ""))
    if not path.is_file():
        pytest.skip("LATENTSYNC_SYNCNET names no trained SyncNet; this test needs one")
    net = load_syncnet(path)
    with FaceFinder(face_model()) as finder:
        clip = track_clip(media / "clips" / "latentsync_demo1.mp4", finder)
    speech = clip.speech()
    straight = sync_clip(net, clip, speech).offset
    assert abs(straight) <= 2
    for late in (-6, -3, 3, 6):
        step = late * RATE // 25
        moved = torch.nn.functional.pad(speech, (step, -step))  # a negative pad cuts
        assert sync_clip(net, clip, moved).offset == straight + late
