"""Names and tags as people have them: what FFmpeg takes for an address, what is no text; and clocks that are wrong."""

import os
import shutil
import socket
import wave
from fractions import Fraction

import av
import numpy as np
import pytest

from latentsync.audio.load import from_waveform, load_audio
from latentsync.cli.console import write_json
from latentsync.errors import UserError
from latentsync.media.audio_track import AudioTrack, has_audio
from latentsync.media.probe import probe
from latentsync.media.reader import VideoReader
from latentsync.media.writer import VideoWriter

from .clicks import TIMES, click_times, click_wave, write_clicks

NAMES = [
    "12:30 take", "http:x", "https:__x.com", "concat:a|b", "-x", "-", "take%d", "%03d", "pipe:", "pipe:1", "subfile,,a",
    "file:x", "data:,x", "a'b\"$;&", "C:x", "文件 名", "e\u0301é", "[1]*?", os.fsdecode(b"M\xfcller"),
    os.fsdecode(b"\xc4\xe3"),
]  # fmt: skip


def film(path, audio=None, frames=25):
    with VideoWriter(path, 32, 32, Fraction(25), audio=audio) as writer:
        for i in range(frames):
            writer.write(np.full((32, 32, 3), 8 * i % 256, np.uint8))
    return path


def named(folder, name):
    try:
        (folder / name).touch()
    except OSError:
        pytest.skip("this file system does not take the name")
    return name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_any_name_is_a_file(tmp_path, monkeypatch, name, suffix):
    monkeypatch.chdir(tmp_path)  # relative names are what looks like an address
    voice = named(tmp_path, f"{name}.wav")
    write_clicks(tmp_path / "v.wav", "pcm_s16le")
    shutil.move("v.wav", voice)
    assert np.abs(np.subtract(click_times(load_audio(voice).waveform, 16000), TIMES)).max() < 0.005
    out = film(f"{name}{suffix}", AudioTrack(voice))
    assert probe(out).frames == 25
    assert has_audio(out)
    with VideoReader(probe(out)) as reader:
        assert abs(int(next(reader.read([10]))[0, 0, 0]) - 80) < 4
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([voice, out])
    write_json(tmp_path / "report.json", {"out": out})
    assert (tmp_path / "report.json").read_text("utf-8")


def test_a_playlist_names_no_address(tmp_path):
    path = tmp_path / "list.m3u8"
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{address}\n#EXT-X-ENDLIST\n")
        with pytest.raises(UserError, match=r"list\.m3u8"):
            load_audio(path)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody called
            server.accept()


@pytest.mark.parametrize("tag", [b"\xa9 2024 M\xfcller", b"\xc4\xe3\xba\xc3", b"\xff\xfe\x00"])
@pytest.mark.parametrize("suffix", [".wav", ".mp4", ".mkv", ".mp3"])
def test_tags_in_any_encoding(tmp_path, tag, suffix):
    plain = b"PLACEHOLDER PLACEHOLDER"[: len(tag)]
    codec = {".wav": "pcm_s16le", ".mp4": "aac", ".mkv": "libopus", ".mp3": "libmp3lame"}[suffix]
    write_clicks(tmp_path / f"a{suffix}", codec)
    path = tmp_path / f"b{suffix}"
    with av.open(str(tmp_path / f"a{suffix}")) as container, av.open(str(path), "w") as out:
        target = out.add_stream_from_template(container.streams.audio[0])
        out.metadata["title"] = plain.decode()
        for packet in container.demux(container.streams.audio[0]):
            if packet.size:
                packet.stream = target
                out.mux(packet)
    assert plain in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(plain, tag))
    assert len(click_times(load_audio(path).waveform, 16000)) == len(TIMES)
    assert probe(film(tmp_path / "out.mkv", AudioTrack(path))).frames == 25


@pytest.mark.parametrize("name", ["clip_gbk_tag.mp4", "voice_latin1_copyright_tag.wav"])
def test_tags_of_real_files(media, name):
    assert load_audio(media / "reports" / name).seconds > 0.4


# --- clocks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1, 10, 999, 4_000_000])
def test_no_rate_for_speech(tmp_path, rate):
    path = tmp_path / "slow.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(bytes(2 * 5000))
    with pytest.raises(UserError, match=rf"slow\.wav has {rate} samples per second"):
        load_audio(path)
    with pytest.raises(UserError, match=rf"slow\.wav has {rate} samples per second"):
        film(tmp_path / "out.mp4", AudioTrack(path))
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize("rate", [1000, 4000, 11025, 96001, 192000, 768000])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
def test_odd_rates(tmp_path, rate, suffix):
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((np.sin(np.arange(rate) * 2 * np.pi * 100 / rate) * 9000).astype("<i2").tobytes())
    assert abs(float(load_audio(film(tmp_path / f"o{suffix}", AudioTrack(path)), Fraction(0)).seconds) - 1) < 0.03


def test_slow_mp3_goes_into_mp4(tmp_path):
    path = write_clicks(tmp_path / "a.mp3", "libmp3lame", rate=8000, wave=click_wave(rate=8000))
    found = click_times(load_audio(film(tmp_path / "o.mp4", AudioTrack(path), 75), Fraction(0)).waveform, 16000)
    assert np.abs(np.subtract(found, TIMES)).max() < 0.01


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
@pytest.mark.parametrize("leap", [700, 20000])
def test_a_leap_blames_the_file_that_has_it(tmp_path, suffix, leap):
    path = tmp_path / f"leap.{suffix}"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 32
        stream.codec_context.time_base = Fraction(1, 25)
        for i in range(50):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = i + (25 * leap if i >= 30 else 0), Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with pytest.raises(UserError, match=rf"frames of .*leap\.{suffix} jump by {leap} s after 1\.16 s"):
        probe(path)


@pytest.mark.parametrize("leap", [700, 20000])
def test_a_leap_of_the_sound_blames_the_sound(tmp_path, leap):
    path = tmp_path / "leap.mkv"
    write_clicks(tmp_path / "a.mkv", "libopus")
    with av.open(str(tmp_path / "a.mkv")) as container, av.open(str(path), "w") as out:
        target = out.add_stream_from_template(container.streams.audio[0])
        for packet in container.demux(container.streams.audio[0]):
            if packet.size and packet.pts is not None:
                packet.pts = packet.dts = packet.pts + (leap * 1000 if packet.pts > 1500 else 0)
                packet.stream = target
                out.mux(packet)
    with pytest.raises(UserError, match=rf"audio of .*leap\.mkv jump by {leap} s after 1\.5"):
        load_audio(path)
    with pytest.raises(UserError, match=rf"audio of .*leap\.mkv starts {leap} s after"):
        load_audio(write_clicks(tmp_path / "leap.mkv", "libopus", late=leap), Fraction(0))


# --- channels that cancel ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "wanted"),
    [(-1.0, 1.0), (-0.8, 1.0), (-1.25, -1.25), (-0.5, 1.0), (1.0, 1.0), (0.0, 0.5), (0.5, 0.75), (-0.1, 0.45)],
)
def test_a_channel_turned_over(tmp_path, right, wanted):
    """The loudness of what is heard, by how strong the other channel is."""
    left = 0.5 * click_wave()
    pair = np.stack([left, right * left], 1)
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((2, 2, 48000, 0, "NONE", ""))
        file.writeframes((pair * 32767).astype("<i2").tobytes())
    heard = load_audio(path).waveform
    assert float(heard.abs().max()) == pytest.approx(abs(wanted) * 0.3, rel=0.05)
    in_memory = from_waveform(pair.T, 48000).waveform
    assert float((heard[: len(in_memory)] - in_memory[: len(heard)]).abs().max()) < 0.02


def test_antiphase_of_a_real_voice(media):
    heard = load_audio(media / "reports" / "voice_stereo_antiphase.wav").waveform
    with wave.open(str(media / "reports" / "voice_stereo_antiphase.wav")) as file:
        pair = np.frombuffer(file.readframes(10**9), "<i2").reshape(-1, 2) / 32768
    assert float(heard.square().mean().sqrt()) == pytest.approx(np.sqrt((pair[:, 0] ** 2).mean()), rel=0.03)
