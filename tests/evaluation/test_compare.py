"""benchmarks/compare.py: the stand-ins, the table, and both sides of it where a checkout is named."""

import importlib
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import compare

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = os.environ.get("LATENTSYNC_REFERENCE", "")


def test_stand_ins_are_only_for_what_is_named(monkeypatch):
    stand = compare._Stand()
    monkeypatch.setattr(sys, "meta_path", [stand, *sys.meta_path])
    for name in ("decord", "insightface", "insightface.app"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert importlib.import_module("decord").VideoReader.__name__ == "VideoReader"
    assert importlib.import_module("insightface.app").FaceAnalysis() is not None
    assert stand.find_spec("torch") is None
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_package_here")


def test_the_resize_of_the_stand_in_is_torchvisions():
    """Nothing where the size is right; else antialiased bicubic, which keeps the mean."""
    picture = torch.rand(3, 64, 64)
    assert compare._Resize((64, 64))(picture) is picture
    smaller = compare._Resize((16, 24))(picture)
    assert smaller.shape == (3, 16, 24)
    assert smaller.mean().item() == pytest.approx(picture.mean().item(), abs=0.01)


@pytest.mark.parametrize("part", compare.PARTS)
def test_both_sides_get_the_same_inputs(part):
    first, second = (compare.inputs(part, 64) for _ in range(2))
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_table():
    figures = {"pass.wall": {"reference": 4.0, "ours": 2.0}, "peak_mb": {"reference": 900.0, "ours": 300.0}}
    row = {"part": "unet", "dtype": "float32", "figures": figures | {"pass.cpu": {"reference": 0.5, "ours": 0.25}}}
    lines = compare.table([row | {"same": {"pass": {"difference": 1e-5, "largest": 3.0}}}]).splitlines()
    assert [line.split() for line in lines[1:4]] == [
        ["unet", "float32,", "pass.wall,", "s", "4.00", "2.00", "2.00"],
        ["unet", "float32,", "peak,", "MB", "900.00", "300.00", "3.00"],
        ["unet", "float32,", "pass.cpu,", "ms", "500.00", "250.00", "2.00"],
    ]
    assert lines[4] == "unet float32, same pass: differs by 1e-05 of 3"


def test_what_is_no_checkout_is_said(tmp_path):
    command = [sys.executable, "-m", "benchmarks.compare", "--reference", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == f"{tmp_path} is no checkout of bytedance/LatentSync; clone it and give its folder."


@pytest.mark.slow
@pytest.mark.skipif(not REFERENCE, reason="LATENTSYNC_REFERENCE names no checkout of bytedance/LatentSync")
@pytest.mark.skipif(find_spec("kornia") is None or find_spec("einops") is None, reason="needs einops and kornia")
def test_both_sides_compute_the_same(tmp_path):
    table = tmp_path / "facts.json"
    words = ["--reference", REFERENCE, "--rounds", "1", "--dtypes", "float32", "--json", str(table)]
    small = ["--widths", "32", "64", "64", "64", "--vae-widths", "32", "32", "32", "32", "--resolution", "64"]
    same = {}
    # the reference's mask is resampled at other sizes than its own, 256
    for more in ([*small, "--parts", "unet", "vae"], ["--parts", "align", "paste", "masks"]):
        subprocess.run([sys.executable, "-m", "benchmarks.compare", *words, *more], cwd=ROOT, check=True)
        rows = json.loads(table.read_text(encoding="utf-8"))["rows"]
        same |= {name: found for row in rows for name, found in row["same"].items()}
    assert same.keys() == {"pass", "encode", "decode", "align", "paste", "masks"}
    for name in ("pass", "encode", "decode"):
        assert same[name]["difference"] < 1e-4 * max(1.0, same[name]["largest"]), name
    assert same["align"]["difference"] <= 2  # it rounds once more
    assert same["paste"]["difference"] <= 2
    assert same["masks"]["difference"] < 1e-5
