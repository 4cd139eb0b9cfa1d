"""`latentsync bench`: on tiny networks, what it measures and writes; meters; networks of the published size."""

import json
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass, replace
from itertools import pairwise

import av
import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from latentsync.cli.main import app
from latentsync.errors import UserError
from latentsync.evaluation import bench, meters
from latentsync.evaluation.bench import Plan, parse_size, run_bench, tables, write_clip
from latentsync.evaluation.bench_chart import draw_bench
from latentsync.evaluation.full_size import SD_VAE, at_resolution, random_unet, random_vae
from latentsync.models.unet import UNet
from latentsync.models.unet_config import UNetConfig
from latentsync.rendering import Timings

from ..tiny import tiny_config, tiny_models

RUN = {
    "mode": "", "resolution": 256, "steps": 20.0, "guidance": 1.5, "window_batch": 1, "windows": 7, "frames": 100,
    "repainted": 100, "seconds": 8.0, "seconds_per_second": 2.0, "first_frame_seconds": 0.5, "warm_up_seconds": 0.7,
    "cpu_seconds": 4.0, "cpu_seconds_per_second": 1.0, "idle_share": 0.25, "peak_rss_mb": 2345,
    "peak_vram_mb": {"allocated": 3600, "reserved": 4100}, "stages": {"sample": 6.0, "decode": 1.0, "other": 1.0},
    "stages_cpu": {"sample": 2.0, "decode": 1.0, "other": 1.0},
}  # fmt: skip
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")


def facts_of(*runs, weights="real"):
    card = {"gpu": "H100", "vram_gb": 80.0, "cuda": "12.8"}
    machine = meters.machine("cpu") | card
    clip = {"size": [1920, 1080], "frames": 100, "fps": 25, "seconds": 4.0}
    load = {"seconds": 1.0, "unet_numbers": 8_300_000}
    shown = {"machine": machine, "device": "cuda", "dtype": "fp16", "model": "full", "weights": weights}
    return shown | {"clip": clip, "load": load, "runs": list(runs)}


@pytest.fixture
def tiny_bench(tmp_path, monkeypatch):
    """The bench with networks of tests in place of those that it would load."""
    monkeypatch.setattr(bench, "_load", lambda plan: tiny_models(tmp_path))
    return tmp_path


# --- what is measured ------------------------------------------------------------------------------------------------


def test_a_run_is_measured_stage_by_stage(tiny_bench):
    said = []
    plan = Plan(size=(320, 240), seconds=0.8, steps=3)
    facts = run_bench(plan, tiny_bench, said.append)
    assert said == ["making the clip", "loading nano", "nano 64 px"]
    assert (facts["schema"], facts["weights"], facts["device"], facts["dtype"]) == (1, "real", "cpu", "fp32")
    assert facts["clip"] == {"size": [320, 240], "frames": 20, "fps": 25, "seconds": 0.8}
    (run,) = facts["runs"]
    assert (run["frames"], run["repainted"], run["windows"], run["steps"]) == (20, 20, 2, 3)
    assert set(run) == set(RUN)
    assert list(run["stages"]) == list(bench.STAGES) == list(run["stages_cpu"])
    assert sum(run["stages"].values()) == pytest.approx(run["seconds"], rel=0.01)
    assert sum(run["stages_cpu"].values()) == pytest.approx(run["cpu_seconds"], rel=0.05)
    assert run["seconds_per_second"] == pytest.approx(run["seconds"] / 0.8, abs=0.01)
    # the second of two windows comes after the first frame is written
    before = sum(run["stages"][stage] for stage in ("track", "crop")) * 0.4
    assert before < run["first_frame_seconds"] < run["seconds"]
    assert 0 <= run["idle_share"] <= 1
    assert run["peak_vram_mb"] is None
    assert run["warm_up_seconds"] is None
    assert run["peak_rss_mb"] > 150
    assert json.loads(json.dumps(facts)) == facts


def test_settings_of_a_plan():
    assert Plan(seconds=0.5).frames == 12
    assert Plan().frames == 100
    assert (Plan(model="full").frames, Plan(model="full").settings().steps) == (16, 1)
    card = Plan(model="full", device="cuda", window_batch=4)
    assert (card.frames, card.settings().steps, card.short_frames) == (100, 0, 64)
    assert Plan(model="full", steps=4, guidance=2).settings().guidance == 2


def test_modes_go_through_settings_alone(monkeypatch):
    """With Settings that have modes or none: they are handed over, and wrong ones are refused by Settings."""

    @dataclass(frozen=True)
    class WithModes:
        steps: int = 0
        guidance: float = 0.0
        window_batch: int = 1
        fit: str = "pingpong"
        mode: str = "exact"

        def __post_init__(self):
            if self.mode not in ("exact", "fast"):
                raise UserError(f"mode is {self.mode!r}")

    @dataclass(frozen=True)
    class WithoutModes:
        steps: int = 0

    monkeypatch.setattr(bench, "Settings", WithModes)
    plan = Plan(modes=("exact", "fast"), steps=2)
    assert plan.settings("fast") == WithModes(2, 0.0, 1, "trim", "fast")
    assert plan.settings() == WithModes(2, 0.0, 1, "trim", "exact")
    with pytest.raises(UserError, match="warp"):
        Plan(modes=("warp",))
    monkeypatch.setattr(bench, "Settings", WithoutModes)
    with pytest.raises(UserError, match="no mode 'fast'"):
        Plan(modes=("fast",))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"seconds": 0.01}, "--seconds is 0.01"),
        ({"seconds": -1.0}, "--seconds is -1"),
        ({"seconds": 601.0}, "--seconds is 601"),
        ({"resolutions": (256,)}, "goes with --model full"),
        ({"model": "1.5", "resolutions": (256, 512)}, "one resolution"),
        ({"model": "full", "resolutions": (250,)}, "multiple of 64"),
        ({"model": "full", "resolutions": (2048,)}, "64 to 1024"),
    ],
)
def test_plans_that_make_no_sense(wrong, words):
    with pytest.raises(UserError, match=words):
        Plan(**wrong)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1080p", (1920, 1080)),
        ("720P", (1280, 720)),
        ("4k", (3840, 2160)),
        ("1080x1920", (1080, 1920)),
        ("256×128", (256, 128)),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "big", "1080", "10x10", "0x500", "9000x9000", "1080p2", "-5x300"])
def test_no_sizes(text):
    with pytest.raises(UserError, match="--size"):
        parse_size(text)


def test_the_clip_has_the_asked_size_and_moves_slowly(tmp_path):
    picture, voice = write_clip(tmp_path, (322, 240), 30)
    with av.open(str(picture)) as clip:
        frames = [frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)]
    assert (len(frames), frames[0].shape) == (30, (240, 322, 3))
    steps = [np.abs(a.astype(int) - b).mean() for a, b in pairwise(frames)]
    assert max(steps) < 12
    assert np.abs(frames[0].astype(int) - frames[-1]).mean() > 5
    with av.open(str(voice)) as sound:
        samples = sum(frame.samples for frame in sound.decode(audio=0))
    assert samples == 30 * 16000 // 25


# --- meters ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="children are counted on Linux")
def test_memory_of_children_counts():
    code = "import time; held = bytearray(200_000_000); held[::4096] = b'x' * len(held[::4096]); time.sleep(60)"
    before = meters.resident()
    with meters.Memory() as memory, subprocess.Popen([sys.executable, "-c", code]) as child:
        until = time.time() + 20
        while (memory.peak or 0) < before + 200_000_000 and time.time() < until:
            time.sleep(0.05)
        child.kill()
    assert before + 200_000_000 <= memory.peak < before + 400_000_000


def test_what_several_streams_cover_counts_once():
    assert meters.covered([]) == 0
    assert meters.covered([(5, 7), (0, 2), (1, 3), (1.5, 1.6)]) == 5


def test_stages_wait_for_the_card_and_are_whole_again_afterwards():
    told, timings, plain = [], Timings(), Timings.measure
    with meters.watched_stages(lambda: told.append(sorted(timings))) as seen, timings.measure("sample"):
        told.append("work")
    with timings.measure("later"):
        pass
    # the second wait belongs to the stage: it is not yet noted then
    assert told == [[], "work", []]
    assert (list(seen.begun), list(seen.cpu)) == (["sample"], ["sample"])
    assert Timings.measure is plain


def test_stages_are_whole_again_after_an_error():
    plain = Timings.measure
    with pytest.raises(KeyError), meters.watched_stages():
        raise KeyError
    assert Timings.measure is plain


def test_overlapping_stages_leave_no_negative_rest():
    assert bench._ordered({"write": 3.0, "sample": 4.0, "whisper": 1.0}, 5.0) == {
        "sample": 4.0, "write": 3.0, "whisper": 1.0, "other": 0.0,
    }  # fmt: skip


def test_a_cpu_needs_no_waiting():
    assert meters.waiting("cpu")() is None
    assert meters.vram("cpu") is None


# --- what is shown ---------------------------------------------------------------------------------------------------


def test_tables():
    slow = RUN | {"mode": "exact", "resolution": 512, "peak_vram_mb": None, "peak_rss_mb": None, "idle_share": None}
    (titles, first, second), (stages, *rows) = tables(facts_of(RUN, slow))
    assert dict(zip(titles, first, strict=True)) == {
        "px": "256", "mode": "–", "steps": "20", "guidance": "1.5", "windows": "7", "s per s of video": "2.00",
        "CPU s per s": "1.00", "first frame": "0.50 s", "idle": "25 %", "RAM": "2,345 MB",
        "VRAM": "3,600 (4,100) MB",
    }  # fmt: skip
    assert second[:2] == ["512", "exact"]
    assert second[-3:] == ["–", "–", "–"]
    assert stages == ["ms a frame", "256 px", "of CPU", "512 px exact", "of CPU"]
    assert rows == [
        ["sample", "60.0", "20.0", "60.0", "20.0"],
        ["decode", "10.0", "10.0", "10.0", "10.0"],
        ["other", "10.0", "10.0", "10.0", "10.0"],
    ]


def test_chart_as_png_and_svg():
    facts = facts_of(
        RUN, RUN | {"mode": "fast", "steps": 1, "seconds": 4.0, "stages": {"sample": 3.0, "other": 1.0}},
        weights=bench.RANDOM,
    )  # fmt: skip
    drawing = draw_bench(facts)
    picture = cv2.imdecode(np.frombuffer(drawing.png(), np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (round(drawing.height), 960, 3)
    root = ET.fromstring(drawing.svg())
    words = "\n".join(part.text or "" for part in root.iter("{http://www.w3.org/2000/svg}text"))
    assert "full, random weights: speed only: 1920 x 1080, 100 frames" in words
    assert "H100 80 GB, CUDA 12.8" in words
    assert "256 px, 20 steps, guidance 1.5: 2.00 s" in words
    assert "256 px fast, 1 step, guidance 1.5: 2.00 s" in words
    red = [box for box in root.iter("{http://www.w3.org/2000/svg}rect") if box.get("fill") == "rgb(206, 52, 46)"]
    key, sampling, of_a_shorter_clip = (float(box.get("width", 0)) for box in red)
    assert key == 12
    # 6 of 8 seconds at 2 s per s are 1.5, and so are 3 of 4
    assert sampling == of_a_shorter_clip > 100
    left, top = (float(red[1].get(name, 0)) for name in ("x", "y"))
    assert picture[round(top) + 8, round(left) + 20].tolist() == [46, 52, 206]


def test_the_command_writes_all_it_was_asked_for(tiny_bench):
    table, chart = tiny_bench / "bench.json", tiny_bench / "bench.svg"
    words = ["bench", "--size", "320x240", "--seconds", "0.4", "--device", "cpu", "--dtype", "fp32"]
    done = CliRunner().invoke(app, [*words, "--json", str(table), "--chart", str(chart)])
    assert done.exit_code == 0, done.output
    facts = json.loads(table.read_text(encoding="utf-8"))
    assert facts["runs"][0]["frames"] == 10
    assert chart.read_bytes().startswith(b"<svg")
    for word in ("cores", "cpu, fp32", "10 frames of 320 × 240", "sample", "s per s of video", "64"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--chart", "bars.pdf"], ".png or .svg"),
        (["--resolution", "big", "--model", "full"], "'big'"),
        (["--size", "huge"], "--size"),
        (["--device", "tpu"], "device is 'tpu'"),
        (["--dtype", "fp8"], "dtype is 'fp8'"),
        (["--json", "no/such/folder/a.json"], "cannot be written"),
    ],
)
def test_wrong_words_end_in_one_sentence(words, said):
    done = CliRunner().invoke(app, ["bench", *words])
    assert done.exit_code == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


# --- the published size ----------------------------------------------------------------------------------------------


def test_the_full_size_is_that_of_the_published_weights():
    with torch.device("meta"):
        unet = UNet(UNetConfig())
    assert round(sum(p.numel() for p in unet.parameters()) / 1e6) == 1267
    with torch.device("meta"):
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        vae = AutoencoderKL(**SD_VAE)
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863  # stabilityai/sd-vae-ft-mse


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_networks_have_one_format_and_give_numbers(dtype):
    unet = random_unet(replace(tiny_config(), resolution=64), "cpu", dtype)
    small = {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}
    vae = random_vae(SD_VAE | small, "cpu", dtype)
    for network in (unet, vae):
        values = [*network.parameters(), *network.buffers()]
        assert {value.dtype for value in values} == {dtype}
        assert not any(value.is_meta or value.requires_grad for value in values)
    with torch.inference_mode():
        out = unet(torch.randn(1, 13, 4, 8, 8).to(dtype), 951, torch.randn(1, 4, 50, 384).to(dtype))
        pixels = vae.decode(vae.encode(torch.rand(2, 3, 64, 64).to(dtype) * 2 - 1))
    assert 0.05 < out.float().std() < 50
    assert torch.isfinite(pixels.float()).all()
    again = random_unet(unet.config, "cpu", dtype)
    assert torch.equal(again.conv_in.weight, unet.conv_in.weight)


def test_one_network_serves_two_resolutions(tmp_path):
    models = tiny_models(tmp_path)
    larger = at_resolution(models, 128)
    assert (larger.resolution, larger.unet.config.resolution, larger.unet is models.unet) == (128, 128, True)
    models.finder.close()


# --- on a card -------------------------------------------------------------------------------------------------------


@CUDA
def test_a_card_is_waited_for_and_its_memory_counted(tmp_path, monkeypatch):
    models = tiny_models(tmp_path)
    models = replace(models, unet=models.unet.cuda(), vae=models.vae.cuda(), whisper=models.whisper.cuda())
    monkeypatch.setattr(bench, "_load", lambda plan: models)
    facts = run_bench(Plan(size=(320, 240), seconds=0.8, steps=2, device="cuda"), tmp_path)
    (run,) = facts["runs"]
    assert facts["machine"]["gpu"]
    assert run["warm_up_seconds"] > 0
    assert run["peak_vram_mb"]["reserved"] >= run["peak_vram_mb"]["allocated"] > 0
    assert 0 <= run["idle_share"] < 1
    assert run["stages"]["sample"] > 0


@CUDA
def test_kernels_are_counted():
    left = torch.randn(4096, 4096, device="cuda")
    busy = meters.kernel_seconds(lambda: [left @ left for _ in range(20)])
    assert 0.001 < busy < 5
    assert meters.kernel_seconds(lambda: time.sleep(0.2)) < 0.05
