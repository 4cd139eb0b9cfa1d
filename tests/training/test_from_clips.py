"""From real clips to a U-Net and a SyncNet with three commands, in a test's size."""

import pytest
from typer.testing import CliRunner

from latentsync.cli.main import app
from latentsync.training.logging import read_log
from latentsync.weights.load import load_unet
from latentsync.weights.syncnet_files import load_syncnet

from ..tiny import face_model, find_model
from .parts import write_files

pytestmark = [pytest.mark.slow, pytest.mark.media]


def command(*words):
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    return done.output


def test_three_commands(media, tmp_path):
    pytest.importorskip("scenedetect")
    face_model()
    data, unet, judge = (tmp_path / name for name in ("data", "unet", "judge"))
    whisper = find_model("tiny.en") or write_files(tmp_path)["whisper"]
    fast = tmp_path / "fast.yaml"
    fast.write_text("holdout_time: 0.3\nsample_clips: 1\nsample_frames: 16\nsample_steps: 2\nvalidate_windows: 2\n")
    skip = ("--skip", "sync", "--skip", "quality", "--min-seconds", 2, "--workers", 1)
    short = (
        "--device",
        "cpu",
        "--precision",
        "fp32",
        "--workers",
        0,
        "--steps",
        3,
        "--validate-every",
        2,
        "--log-every",
        1,
    )
    command("prepare", media / "clips", data, "--only", "grid/p[ABC]_*", "--resolution", 64, *skip)
    command("train", "unet", data, "--size", "tiny", "--vae", "nano", "--whisper", whisper, "--resolution", 64,
            "--config", fast, "-o", unet, *short)  # fmt: skip
    command("train", "syncnet", data, "--preset", "small", "-o", judge, *short)
    assert load_unet(unet / "unet.safetensors").config.resolution == 64
    assert load_syncnet(judge / "syncnet.safetensors").config.frames == 10
    for run in (unet, judge):
        assert (run / "charts.png").stat().st_size > 10_000
        lines = read_log(run)
        assert [line["step"] for line in lines if "loss/total" in line] == [1, 2, 3]
        assert [line["step"] for line in lines if "validation/total" in line] == [2, 3]
    assert len(list((unet / "samples").glob("*.mp4"))) == 2
