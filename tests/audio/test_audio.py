"""Sound in: files, log-mel, Whisper features and their windows, against goldens, other libraries and arithmetic."""

import json
import math
import wave
from fractions import Fraction
from pathlib import Path

import av
import librosa
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from transformers import WhisperFeatureExtractor

from latentsync.audio import load as audio
from latentsync.audio import whisper_features
from latentsync.audio.load import load_audio
from latentsync.audio.mel import SAMPLE_RATE, mel_filters
from latentsync.audio.whisper_features import SpeechFeatures, audio_windows, encode_audio
from latentsync.errors import UserError
from latentsync.media.audio_track import audio_duration
from latentsync.media.probe import probe
from latentsync.weights.registry import find
from latentsync.weights.whisper_files import load_whisper

RATES = [Fraction(16), Fraction(24000, 1001), 24, 25, 29.97, Fraction(30000, 1001), 30, 50, 60, 12.5]


class Ear(nn.Module):
    """An encoder that hears no further than its own row: its features are the log-mel itself, two frames a row."""

    dim, layers, dtype, device = 160, 0, torch.float32, torch.device("cpu")

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.dtype, self.calls = dtype, 0

    def forward(self, mel):
        self.calls += 1
        assert mel.shape == (1, 80, 3000)
        assert mel.dtype == self.dtype
        return mel.mT.reshape(1, 1500, 1, 160)


@pytest.fixture(scope="session")
def tiny_en():
    try:
        return load_whisper(find("tiny.en"))
    except UserError as error:
        pytest.skip(f"Whisper's weights are needed: {error}")


@pytest.fixture(scope="session")
def speech(media):
    """95 s: three speakers, one after the other, twice."""
    voices = [load_audio(media / "audio" / f"latentsync_demo{i}_audio.wav").waveform for i in (1, 2, 3)]
    return torch.cat(voices * 2)[: 95 * SAMPLE_RATE]


def noise(seconds: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    sound = torch.randn(int(seconds * SAMPLE_RATE), generator=generator) * 0.1
    return sound * torch.linspace(0.2, 1, len(sound))


def tone(seconds: float, rate: int, hertz: float = 440, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def rms(sound) -> float:
    return float(torch.as_tensor(sound).square().mean().sqrt())


def relative(got, wanted) -> float:
    return float((got - wanted).norm() / wanted.norm())


def synthetic(seconds: int) -> torch.Tensor:
    """The waveform that the portable golden's README describes."""
    t = np.arange(seconds * 16000) / 16000
    phase = 2 * np.pi * np.cumsum(110 + 30 * np.sin(2 * np.pi * 0.7 * t)) / 16000
    buzz = sum(np.sin(k * phase) / k for k in range(1, 9))
    envelope = np.maximum(0, np.sin(2 * np.pi * 2.3 * t) + 0.3 * np.sin(2 * np.pi * 0.31 * t))
    return torch.from_numpy((0.25 * buzz * envelope).astype(np.float32))


# --- features against the reference -----------------------------------------------------------------------------------


def test_portable_features(golden_portable, tiny_en):
    wanted = load_file(golden_portable / "audio" / "synthetic.safetensors")
    sound = synthetic(47)
    assert torch.equal(sound[:64], wanted["waveform_head"])
    features = encode_audio(sound, SAMPLE_RATE, tiny_en, exact=True)
    assert len(features) == int(wanted["length"])
    assert relative(features[wanted["rows"]], wanted["features"]) < 1e-4


def test_full_features(golden, media, tiny_en):
    wanted = load_file(golden / "full" / "audio" / "demo1_whisper_tiny_en.safetensors")["whisper_features"]
    sound, rate = load_audio(media / "audio" / "latentsync_demo1_audio.wav")
    for exact in (True, False):
        features = encode_audio(sound, rate, tiny_en, exact=exact)
        assert features.shape == wanted.shape
        assert relative(features, wanted) < 1e-4


def test_full_features_over_a_seam(golden, speech, tiny_en):
    wanted = load_file(golden / "full" / "audio" / "concat_demo123_1_47s.safetensors")
    features = encode_audio(speech[: 47 * SAMPLE_RATE], SAMPLE_RATE, tiny_en, exact=True)
    assert len(features) == int(wanted["length"])
    assert relative(features[wanted["rows"]], wanted["features"]) < 1e-4


def test_window_indices(golden):
    wanted = json.loads((golden / "full" / "audio" / "window_indices.json").read_text())
    rows = torch.arange(wanted["feature_length"])[:, None, None]
    for fps, indices in wanted["indices_per_frame"].items():
        for rate in {float(fps), Fraction(fps)}:
            assert audio_windows(rows, rate, len(indices))[..., 0].tolist() == indices


def test_no_jump_where_blocks_meet(speech, tiny_en):
    features = encode_audio(speech, SAMPLE_RATE, tiny_en)
    steps = features.diff(dim=0).flatten(1).norm(dim=1)
    usual = steps.quantile(0.95)
    for seconds in (30, 60, 90):
        assert steps[seconds * 50 - 1] <= usual
    # Nor are the jumps elsewhere: the cross-fades are no rougher than the rest, and no seam is as high as the hard one.
    stride = whisper_features.BLOCK_ROWS - whisper_features.OVERLAP_ROWS
    for k in (1, 2, 3):
        assert (steps[k * stride : k * stride + whisper_features.OVERLAP_ROWS] > usual).float().mean() < 0.1
    hard = encode_audio(speech, SAMPLE_RATE, tiny_en, exact=True).diff(dim=0).flatten(1).norm(dim=1)
    assert min(hard[s * 50 - 1] for s in (30, 60, 90)) > 2 * usual


def test_fading_keeps_the_features_strength(speech, tiny_en):
    """Two opposed vectors would cancel where they are mixed."""
    features = encode_audio(speech, SAMPLE_RATE, tiny_en)
    middle = whisper_features.BLOCK_ROWS - whisper_features.OVERLAP_ROWS // 2
    norms = features.norm(dim=-1)
    mixed = norms[middle - 50 : middle + 50].median(dim=0).values
    assert (mixed / norms.median(dim=0).values).min() > 0.8


def test_lazy_rows_are_the_same_with_real_weights(speech, tiny_en):
    sound = speech[: 40 * SAMPLE_RATE]
    whole = audio_windows(encode_audio(sound, SAMPLE_RATE, tiny_en), 25, 1000)
    lazy = SpeechFeatures(sound, SAMPLE_RATE, tiny_en)
    for start in (0, 590, 640, 984):
        assert torch.equal(lazy.windows(25, start, start + 16), whole[start : start + 16])


# --- log-mel and blocks, by an encoder that gives back what it hears --------------------------------------------------


def test_mel_filters_are_librosas():
    wanted = librosa.filters.mel(sr=16000, n_fft=400, n_mels=80)
    assert np.abs(mel_filters().numpy() - wanted).max() < 1e-7


def mel_of(features: torch.Tensor) -> torch.Tensor:
    return features[:, 0].reshape(-1, 80).T


@pytest.mark.parametrize("seconds", [0.5, 30, 30.02, 47, 71.3])
@pytest.mark.parametrize("exact", [True, False])
def test_log_mel_is_whispers_over_any_blocks(seconds, exact):
    """The maximum is over the whole clip; where blocks meet or fade, nothing is lost, doubled or shifted."""
    sound = noise(seconds)
    extract = WhisperFeatureExtractor(feature_size=80)
    wanted = torch.from_numpy(extract._np_extract_fbank_features(sound.numpy()[None], "cpu")[0])
    got = mel_of(encode_audio(sound, SAMPLE_RATE, Ear(), exact=exact))
    assert got.shape[1] == 2 * (len(sound) // 160 // 2)
    assert (got - wanted[:, : got.shape[1]]).abs().max() < 1e-4


@settings(max_examples=25, deadline=None)
@given(st.integers(2400, 5000))
def test_length_is_half_the_mel_frames(samples):
    features = encode_audio(noise(1)[:samples], SAMPLE_RATE, Ear())
    assert features.shape == (samples // 160 // 2, 1, 160)
    assert features.dtype == torch.float32


def test_short_clips_are_padded_with_zeros_of_the_mel():
    heard = []

    class Listener(Ear):
        def forward(self, mel):
            heard.append(mel)
            return super().forward(mel)

    encode_audio(noise(1.005), SAMPLE_RATE, Listener())
    assert (heard[0][:, :, 100:] == 0).all()
    assert (heard[0][:, :, :100] != 0).any(1).all()


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("fps", RATES)
def test_lazy_windows_are_the_gathered_rows(exact, fps):
    ear = Ear()
    lazy = SpeechFeatures(noise(70), SAMPLE_RATE, ear, exact=exact)
    frames = math.ceil(72 * Fraction(str(fps)))
    whole = audio_windows(encode_audio(noise(70), SAMPLE_RATE, Ear(), exact=exact), fps, frames)
    pieces = [lazy.windows(fps, i, min(i + 16, frames)) for i in range(0, frames, 16)]
    assert torch.equal(torch.cat(pieces), whole)
    assert ear.calls == lazy.blocks


def test_memory_is_two_blocks_and_any_order_works():
    ear = Ear()
    lazy = SpeechFeatures(noise(120), SAMPLE_RATE, ear)
    whole = lazy.rows(0, lazy.length)
    for start in (5000, 1300, 1310, 0, 3700, 1200, 1320):
        assert torch.equal(lazy.rows(start, start + 100), whole[start : start + 100])
        assert len(lazy._held) <= 2
    calls = ear.calls
    for start in range(1200, 1500, 10):  # Two blocks in turn: neither throws the other out.
        lazy.rows(start, start + 20)
    assert ear.calls == calls


def test_half_precision_encoder_gives_float32():
    features = encode_audio(noise(2), SAMPLE_RATE, Ear(torch.bfloat16))
    assert features.dtype == torch.float32
    assert relative(features, encode_audio(noise(2), SAMPLE_RATE, Ear())) < 1e-2


def test_features_may_be_trained_on():
    features = encode_audio(noise(1), SAMPLE_RATE, Ear())
    weight = torch.ones((), requires_grad=True)
    (features * weight).sum().backward()
    assert weight.grad is not None


# --- windows ----------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.fractions(1, 240, max_denominator=1001), st.integers(0, 100_000), st.integers(1, 40), st.integers(1, 20_000))
def test_window_rows_follow_the_formula(fps, start, count, length):
    rows = whisper_features.window_rows(fps, start, start + count, length)
    for n, i in enumerate(range(start, start + count)):
        center = int(i * 50 / fps)
        assert rows[n].tolist() == [min(max(center + d, 0), length - 1) for d in range(-4, 6)]


def test_tokens_are_rows_by_states():
    features = torch.arange(100 * 5 * 3).reshape(100, 5, 3)
    window = audio_windows(features, 25, 40)[20]
    assert window.shape == (50, 3)
    assert torch.equal(window.reshape(10, 5, 3), features[36:46])


@pytest.mark.parametrize("fps", [0, -25, float("nan"), float("inf"), Fraction(0)])
def test_impossible_frame_rates(fps):
    with pytest.raises(UserError, match="frame rate"):
        audio_windows(torch.zeros(10, 5, 3), fps, 3)


# --- loudness and silence ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", RATES)
def test_loudness_of_each_frame(fps):
    rate = Fraction(str(fps))
    sound = noise(2)
    got = audio.loudness(sound, fps, math.ceil(2 * rate) + 3)
    for i in (0, 7, math.floor(2 * rate) - 1):
        piece = sound[math.floor(i * 16000 / rate) : math.floor((i + 1) * 16000 / rate)]
        assert got[i] == pytest.approx(20 * math.log10(rms(piece)), abs=1e-3)
    assert (got[-3:] == audio.FLOOR_DB).all()


def test_full_scale_sine_is_three_decibels_down():
    assert audio.loudness(torch.from_numpy(tone(1, 16000, level=1)), 25, 25)[5] == pytest.approx(-3.01, abs=0.05)


def test_check_speech():
    audio.check_speech(noise(1) * 0.02)
    for silent in (torch.zeros(16000), torch.full((16000,), 3e-5), torch.zeros(0)):
        with pytest.raises(UserError, match="silent"):
            audio.check_speech(silent)


def test_silent_file(media):
    sound, _ = load_audio(media / "edge" / "silent_audio_stereo48k.mp4")
    with pytest.raises(UserError, match="silent"):
        audio.check_speech(sound)
    assert encode_audio(sound, SAMPLE_RATE, Ear()).isfinite().all()


# --- files ------------------------------------------------------------------------------------------------------------


def write_audio(path: Path, sound: np.ndarray, rate: int, *, codec: str, layout: str = "mono", late: int = 0) -> Path:
    """sound (T,) goes to every channel; late samples pass before it, with a video track from zero if there are any."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=25) if late else None
        stream = container.add_stream(codec, rate=rate, layout=layout)
        if video:
            video.width = video.height = 32
            for packet in (p for i in range(50) for p in video.encode(gray(i))):
                container.mux(packet)
        fifo = av.AudioFifo()
        fifo.write(audio_frame(sound, rate, layout, stream.format.name))
        size, position = stream.codec_context.frame_size or 1024, late
        while (frame := fifo.read(size, partial=True)) is not None:
            frame.pts, frame.time_base = position, Fraction(1, rate)
            position += frame.samples
            container.mux(stream.encode(frame))
        for each in filter(None, (stream, video)):
            container.mux(each.encode(None))
    return path


def gray(index: int) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 99, np.uint8), format="rgb24")
    frame.pts, frame.time_base = index, Fraction(1, 25)
    return frame


def audio_frame(sound: np.ndarray, rate: int, layout: str, kind: str) -> av.AudioFrame:
    channels = av.AudioLayout(layout).nb_channels
    planes = np.ascontiguousarray(np.repeat(sound[None].astype(np.float32), channels, 0))
    frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=layout)
    frame.sample_rate = rate
    (converted,) = av.AudioResampler(format=kind, layout=layout, rate=rate).resample(frame)
    return converted


# LAME lowers the level by 5 % of itself; few bits make AAC in 5.1 coarse.
FORMATS = [
    ("wav", "pcm_s16le", 44100, "stereo", 1e-3),
    ("wav", "pcm_f32le", 48000, "mono", 1e-3),
    ("wav", "pcm_u8", 8000, "mono", 2e-2),
    ("wav", "pcm_s24le", 96000, "5.1", 1e-3),
    ("flac", "flac", 22050, "mono", 1e-3),
    ("mp3", "libmp3lame", 44100, "stereo", 0.06),
    ("ogg", "libopus", 24000, "mono", 5e-2),
    ("webm", "libopus", 48000, "stereo", 5e-2),
    ("m4a", "aac", 11025, "mono", 3e-2),
    ("mp4", "aac", 48000, "5.1", 0.1),
    ("wav", "pcm_s16le", 16000, "mono", 1e-4),
]


@pytest.mark.parametrize(("suffix", "codec", "rate", "layout", "error"), FORMATS)
def test_any_format_rate_and_channels(suffix, codec, rate, layout, error, tmp_path):
    """A tone keeps its level, pitch, phase and length."""
    path = write_audio(tmp_path / f"a.{suffix}", tone(2, rate), rate, codec=codec, layout=layout)
    loaded = load_audio(path)
    sound, sample_rate = loaded
    assert sample_rate == SAMPLE_RATE
    assert sound.dtype == torch.float32
    assert len(sound) == math.ceil(loaded.seconds * SAMPLE_RATE)
    if codec.startswith("pcm") or codec == "flac":
        assert loaded.seconds == 2
    assert 2 <= loaded.seconds < 2.15
    inner = slice(3200, 28800)
    assert (sound[inner] - torch.from_numpy(tone(2, SAMPLE_RATE))[inner]).abs().max() < 0.5 * error + 1e-3


def test_channels_are_mixed_not_added(tmp_path):
    """Full scale in, full scale out: libswresample's own stereo downmix of floats gains 3 dB."""
    for layout in ("stereo", "quad", "5.1"):
        path = write_audio(
            tmp_path / f"{layout}.wav", tone(1, 16000, level=0.9), 16000, codec="pcm_f32le", layout=layout
        )
        assert load_audio(path).waveform.abs().max() == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("rate", [22050, 44100, 48000, 96000])
def test_what_16k_cannot_hold_does_not_fold_back(rate, tmp_path):
    path = write_audio(tmp_path / "a.wav", tone(1, rate, hertz=9500), rate, codec="pcm_f32le")
    assert rms(load_audio(path).waveform[2000:-2000]) < 1e-4
    path = write_audio(tmp_path / "b.wav", tone(1, rate, hertz=6800), rate, codec="pcm_f32le")
    assert rms(load_audio(path).waveform[2000:-2000]) == pytest.approx(0.5 / math.sqrt(2), rel=0.01)


def test_resampling_agrees_with_librosa(media):
    path = media / "audio" / "jfk_1961_11s.flac"
    wanted, _ = librosa.load(path, sr=SAMPLE_RATE)
    loaded = load_audio(path)
    assert loaded.seconds == 11
    assert relative(loaded.waveform, torch.from_numpy(wanted)) < 1e-3


def test_a_tensor_and_a_file_agree(tmp_path):
    stereo = np.stack([tone(1, 44100), tone(1, 44100, hertz=700)])
    mixed = audio.to_mono_16k(torch.from_numpy(stereo), 44100)
    path = write_audio(tmp_path / "a.wav", stereo.mean(0), 44100, codec="pcm_f32le")
    assert len(mixed) == SAMPLE_RATE
    assert (mixed - load_audio(path).waveform)[200:-200].abs().max() < 1e-3


def test_a_sound_track_that_begins_late_keeps_its_place(tmp_path):
    path = write_audio(tmp_path / "a.mkv", tone(1, 16000), 16000, codec="pcm_s16le", late=8000)
    wanted = torch.from_numpy(tone(1, 16000))
    starts = {None: 0, Fraction(0): 8000, Fraction(1, 2): 0, Fraction(3, 4): -4000}
    for start, shift in starts.items():
        loaded = load_audio(path, start)
        assert loaded.seconds == 1 + Fraction(shift, 16000)
        assert len(loaded.waveform) == 16000 + shift
        assert (loaded.waveform[: max(shift, 0)] == 0).all()
        assert (loaded.waveform[max(shift, 0) :] - wanted[max(-shift, 0) :]).abs().max() < 1e-3
    with pytest.raises(UserError, match="lasts 0 s"):
        load_audio(path, Fraction(9))


def test_a_late_sound_track_of_a_phone(media):
    path = media / "edge" / "face_then_noface_vfr_hevc.mov"
    loaded = load_audio(path, probe(path).start)
    assert (loaded.waveform[:38800] == 0).all()
    assert loaded.waveform[38800:38880].abs().max() < 0.01  # the resampler rings a little before the first sample
    assert loaded.seconds == audio_duration(path) + probe(path).audio_start
    alone = load_audio(path).waveform
    # the lead is no whole number of samples: exact to a part of one
    both = torch.corrcoef(torch.stack([loaded.waveform[38880 : 38880 + len(alone)], alone]))
    assert both[0, 1] > 0.95


def test_rate_that_changes_midway(tmp_path):
    """Two MP3s end to end, as podcasts are cut together."""
    parts = [write_audio(tmp_path / f"{r}.mp3", tone(1, r), r, codec="libmp3lame") for r in (44100, 22050)]
    both = tmp_path / "both.mp3"
    both.write_bytes(b"".join(p.read_bytes() for p in parts))
    sound, _ = load_audio(both)
    assert 2 * SAMPLE_RATE <= len(sound) < 2.3 * SAMPLE_RATE
    assert rms(sound[20_000:30_000]) == pytest.approx(0.5 / math.sqrt(2), rel=0.1)


def test_every_real_clip_loads_with_the_length_of_its_sound(media):
    paths = [p for folder in ("clips", "edge", "audio") for p in sorted((media / folder).glob("*.*"))]
    heard = [p for p in paths if "noaudio" not in p.name and "no_audio" not in p.name and "head_turn" not in p.name]
    assert len(heard) > 20
    for path in heard:
        loaded = load_audio(path)
        assert loaded.seconds == audio_duration(path)
        assert len(loaded.waveform) == math.ceil(loaded.seconds * SAMPLE_RATE)


# --- bad input --------------------------------------------------------------------------------------------------------


def bad_file(kind: str, folder: Path) -> Path:
    path = folder / "bad.wav"
    if kind == "text":
        path.write_text("la la la\n" * 50)
    elif kind == "empty file":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "no samples":
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", ""))
            file.writeframes(b"")
    elif kind in ("tenth", "nan", "infinite"):
        sound = tone(0.1 if kind == "tenth" else 1, 16000)
        sound[700] = {"nan": np.nan, "infinite": np.inf}.get(kind, 0)
        write_audio(path, sound, 16000, codec="pcm_f32le")
    elif kind == "no sound track":
        with av.open(str(path.with_suffix(".mp4")), "w") as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.width = stream.height = 32
            container.mux(stream.encode(gray(0)))
            container.mux(stream.encode(None))
        return path.with_suffix(".mp4")
    elif kind == "cut mp4":
        whole = write_audio(folder / "whole.m4a", tone(1, 16000), 16000, codec="aac")
        path.write_bytes(whole.read_bytes()[:2000])
    return path


BAD = {
    "absent": "no file",
    "folder": "folder",
    "text": "cannot be read as|text file",
    "empty file": "cannot be read as",
    "cut mp4": "cannot be read as",
    "no sound track": "no audio",
    "no samples": "without sound",
    "tenth": "lasts 0.1 s",
    "nan": "not numbers",
    "infinite": "not numbers",
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_get_one_sentence(kind, tmp_path):
    with pytest.raises(UserError, match=BAD[kind]) as caught:
        load_audio(bad_file(kind, tmp_path))
    assert "\n" not in str(caught.value)


BAD_TENSORS = {
    "nan": (torch.full((16000,), float("nan")), 16000, "not numbers"),
    "short": (torch.zeros(1600), 16000, "lasts 0.1 s"),
    "none": (torch.zeros(0), 44100, "lasts 0 s"),
    "integers": (torch.zeros(16000, dtype=torch.int16), 16000, "int16"),
    "batch": (torch.zeros(1, 1, 16000), 16000, r"\(1, 1, 16000\)"),
    "rate": (torch.zeros(16000), 0, "at 0 Hz"),
}


@pytest.mark.parametrize("kind", BAD_TENSORS)
def test_bad_tensors_get_one_sentence(kind):
    sound, rate, sentence = BAD_TENSORS[kind]
    with pytest.raises(UserError, match=sentence):
        encode_audio(sound, rate, Ear())
