"""The command that draws the grids of docs/settings.md, with a tiny model."""

import json
import sys

import cv2
import numpy as np
import pytest

from benchmarks import settings
from latentsync.settings import FITS

from ..tiny import face_model, link, tiny_checkpoint, whisper_file
from ..webapp.parts import clip, portrait
from .pages import ROOT


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grids")
    clip(folder / "clip.mp4", 20)
    portrait(folder / "face.png", width=160, height=140)
    tiny_checkpoint(folder / "tiny.safetensors")
    link(folder / "face_landmarker.task", face_model())
    whisper_file(folder / "whisper-tiny.en.safetensors")
    return folder


def draw(monkeypatch, samples, out, *words):
    monkeypatch.setenv("LATENTSYNC_MODELS", str(samples))
    monkeypatch.setitem(settings.VALUES, "seed", (1247, 1))
    monkeypatch.setitem(settings.VALUES, "steps", (1, 2))
    model = ["--checkpoint", str(samples / "tiny.safetensors"), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["settings", *model, *map(str, words)])
    settings.main()
    return json.loads((out / "settings.json").read_text(encoding="utf-8"))


def test_grids_of_a_clip(monkeypatch, samples, tmp_path):
    facts = draw(
        monkeypatch, samples, tmp_path, "--clip", samples / "clip.mp4", "--seconds", 0.4, "--grids", "seed", "steps"
    )
    assert [row["row"] for row in facts["seed"]] == ["seed 1247", "seed 1"]
    assert facts["seed"][0]["differs"] == 0 < facts["seed"][1]["differs"]
    assert facts["steps"][1]["differs"] == 0 < facts["steps"][0]["differs"], "against the most steps"
    assert all("correlation" in row for row in facts["seed"]), "its own sound"
    picture = cv2.imread(str(tmp_path / "seed.jpg"))
    assert picture.shape[1] > settings.MARGIN + settings.COLUMNS * settings.FACE
    assert picture[:, settings.MARGIN :].std() > 20, "faces"
    source, first, second = np.array_split(picture[settings.LINE + 6 :, settings.MARGIN :], 3)
    assert np.abs(first.astype(int) - source).mean() > 1
    assert np.abs(first.astype(int) - second).mean() > 0.5


def test_fit_says_which_frame_is_seen(monkeypatch, samples, tmp_path):
    monkeypatch.setattr(settings, "FIT_SECONDS", 0.6)
    facts = draw(monkeypatch, samples, tmp_path, "--clip", samples / "clip.mp4", "--grids", "fit")
    longer, shorter = facts["fit"][: len(FITS)], facts["fit"][len(FITS) :]
    assert [row["fit"] for row in longer] == [row["fit"] for row in shorter] == list(FITS)
    frames = {row["fit"]: row["frames"] for row in longer}
    assert frames["loop"] == frames["pingpong"] == frames["hold"] == 15 > frames["trim"] == frames["silence"] == 6
    assert {row["fit"]: row["frames"] for row in shorter} == dict.fromkeys(FITS, 6) | {"silence": 15}
    assert next(row for row in longer if row["fit"] == "hold")["shown"][-1] == 5


def test_a_picture_has_no_fit(monkeypatch, samples, tmp_path):
    given = ["--clip", samples / "face.png", "--seconds", 0.4, "--grids", "seed", "fit"]
    facts = draw(monkeypatch, samples, tmp_path, *given)
    assert "fit" not in facts
    assert not (tmp_path / "fit.jpg").exists()


def test_the_pages_grids_are_all_of_them():
    drawn = {path.stem for path in (ROOT / "docs" / "settings").glob("*.jpg")}
    assert drawn == {*settings.VALUES, "fit"}
    assert all(path.stat().st_size < 500_000 for path in (ROOT / "docs" / "settings").glob("*.jpg"))
