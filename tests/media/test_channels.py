"""1 to 16 channels, in and out, in a process of their own: what fails here, fails by ending it."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from fractions import Fraction
from pathlib import Path
import av
import numpy as np
from latentsync.audio.load import load_audio
from latentsync.media.audio_track import AudioTrack, audio_duration
from latentsync.media.writer import VideoWriter
from tests.media.clicks import TIMES, click_times, click_wave, heard_in, picture_start, write_clicks

folder, suffix, codec, rate, most = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
default = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1", 16: "hexadecagonal"}
if codec == "libopus":
    default[3], default[4] = "3.0", "quad"
for channels in range(1, most + 1):
    for layout in {default.get(channels), f"{channels} channels" if codec.startswith("pcm") else None} - {None}:
        path = folder / f"{channels}{suffix}"
        write_clicks(path, codec, layout=layout, rate=rate, wave=click_wave(rate=rate, seconds=3))
        loaded = load_audio(path)
        found = click_times(loaded.waveform, 16000)
        assert len(found) == len(TIMES) and np.abs(np.subtract(found, TIMES)).max() < 0.005, (channels, layout, found)
        level = float(loaded.waveform.abs().max())
        assert 0.2 < level < 0.75, (channels, layout, level)
        for out in (".mp4", ".mov", ".mkv", ".webm"):
            for pad in (None, Fraction(4)):
                with VideoWriter(folder / f"out{out}", 32, 32, Fraction(5), audio=AudioTrack(path, pad_to=pad)) as to:
                    for _ in range(20):
                        to.write(np.zeros((32, 32, 3), np.uint8))
                heard = load_audio(folder / f"out{out}", Fraction(picture_start(folder / f"out{out}"))).waveform
                found = click_times(heard, 16000)
                assert np.abs(np.subtract(found, TIMES)).max() < 0.01, (channels, layout, out, pad, found)
                assert 0.15 < float(heard.abs().max()) < 0.9, (channels, layout, out, float(heard.abs().max()))
        print(channels, layout, round(level, 2))
"""


@pytest.mark.parametrize(
    ("suffix", "codec", "rate", "most"),
    [
        (".wav", "pcm_s16le", 16000, 16),
        (".mkv", "pcm_f32le", 16000, 16),
        (".flac", "flac", 16000, 8),
        (".opus", "libopus", 16000, 8),
        (".m4a", "aac", 16000, 8),
        (".mp4", "ac3", 32000, 6),
    ],
)
def test_any_number_of_channels(tmp_path, suffix, codec, rate, most):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), suffix, codec, str(rate), str(most)]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout[-500:]}\n{done.stderr[-1500:]}"
    assert len(done.stdout.split("\n")) > most
