"""Curves and samples in trackers: TensorBoard's files are read back; modules with the same calls act for the others."""

import json
import sys
import types

import cv2
import numpy as np
import pytest

from latentsync.errors import UserError
from latentsync.training.logging import RunLog
from latentsync.training.recipes import RunSettings
from latentsync.training.trackers import IDENTITY, choose, media_name, start_trackers

from .test_trainer import trainer_of


def curves(folder):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = event_accumulator.EventAccumulator(str(folder / "tensorboard"))
    return found.Reload()


@pytest.fixture
def module(monkeypatch):
    """A library of the name that is asked for, which writes down what it is told."""

    def make(name):
        fake = types.ModuleType(name)
        fake.__spec__ = types.SimpleNamespace(name=name)
        fake.calls, fake.config = [], types.SimpleNamespace(update=lambda values, **_: fake.calls.append(values))
        log = lambda values, step=None: fake.calls.append((step, values))  # noqa: E731
        run = types.SimpleNamespace(log=log, finish=lambda: fake.calls.append("finish"))
        fake.init = lambda **given: fake.calls.append(given) or run
        for kind in ("Image", "Video"):
            setattr(fake, kind, lambda value, kind=kind, **_: (kind, value))
        fake.Audio = lambda samples, sample_rate: ("Audio", len(samples) / sample_rate)
        monkeypatch.setitem(sys.modules, name, fake)
        return fake

    return make


def test_tensorboard_has_curves_strip_and_audio(clips, tmp_path):
    pytest.importorskip("tensorboard")
    trainer_of(clips, tmp_path, steps=4, validate_every=2, save_every=4).fit()
    found = curves(tmp_path)
    tags = found.Tags()
    assert [event.step for event in found.Scalars("loss/noise")] == [1, 2, 3, 4]
    logged = [
        json.loads(line)["loss/noise"]
        for line in (tmp_path / "log.jsonl").read_text().splitlines()
        if "loss/noise" in line
    ]
    assert [event.value for event in found.Scalars("loss/noise")] == pytest.approx(logged, rel=1e-6)
    assert tags["images"] == ["samples/sample"]
    assert [event.step for event in found.Images("samples/sample")] == [2, 4]
    strip = cv2.imdecode(np.frombuffer(found.Images("samples/sample")[1].encoded_image_string, np.uint8), 1)
    np.testing.assert_array_equal(strip, cv2.imread(str(tmp_path / "samples" / "step-00000004.png")))
    (_, sound) = found.Audio("samples/sample")
    assert (sound.sample_rate, sound.length_frames) == (16000, 10240)  # 16 frames of 25 a second


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_other_trackers(clips, tmp_path, module, name):
    fake = module(name)
    trainer_of(clips, tmp_path / "mine", steps=2, validate_every=2, trackers=(name,)).fit()
    start, recipe, *rest = fake.calls
    key = json.loads((tmp_path / "mine" / IDENTITY).read_text())["id"]
    assert start["project"] == "latentsync"
    assert start["resume"] == "allow"
    assert (start.get("id"), start["name"]) == ((key, "mine") if name == "wandb" else (None, f"mine-{key}"))
    assert recipe["steps"] == 2
    scalars = [(step, values["loss/noise"]) for step, values in rest[:-1] if "loss/noise" in values]
    assert [step for step, _ in scalars] == [1, 2]
    media = {key: value for _, values in rest[:-1] for key, value in values.items() if key.startswith("samples/")}
    folder = tmp_path / "mine" / "samples"
    assert media["samples/sample audio"] == ("Audio", 0.64)
    assert ("Video", str(folder / "step-00000002.mp4")) in [v for _, values in rest[:-1] for v in values.values()]
    assert ("Image", str(folder / "step-00000002.png")) in [v for _, values in rest[:-1] for v in values.values()]
    assert rest[-1] == "finish"
    assert not (tmp_path / "mine" / "tensorboard").exists()


def test_a_run_goes_on_under_its_name(tmp_path, module):
    fake = module("wandb")
    for _ in range(2):
        start_trackers(RunSettings(trackers=("wandb",)), tmp_path).finish()
    first, second = (call for call in fake.calls if isinstance(call, dict) and "project" in call)
    assert first == second


def test_new_files_only(tmp_path):
    told = []
    log = RunLog(tmp_path, trackers=types.SimpleNamespace(log_media=lambda paths, step: told.append((paths, step))))
    for name in ("time.png", "old.png"):
        (tmp_path / name).write_bytes(b"before")
    with log.new_media(tmp_path, 7):
        for name in ("step-00000007.mp4", "time.png", "notes.txt"):
            (tmp_path / name).write_bytes(b"new")
    assert told == [([tmp_path / "step-00000007.mp4", tmp_path / "time.png"], 7)]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("step-00000007.png", "sample"), ("step-00000007-offsets.png", "offsets"), ("people.png", "people")],
)
def test_names_are_the_same_at_every_step(tmp_path, name, wanted):
    assert media_name(tmp_path / name, 7) == wanted


def test_which_trackers(module, monkeypatch):
    module("wandb")
    assert choose(["none", "wandb"]) == []
    assert choose(["wandb", "wandb"]) == ["wandb"]
    assert set(choose(["auto", "wandb"])) <= {"wandb", "tensorboard"}
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(UserError, match="tracker trackio is not installed; type: pip install trackio"):
        choose(["trackio"])
    with pytest.raises(UserError, match="trackers has 'board'; known are auto, none, tensorboard, wandb, trackio"):
        RunSettings(trackers=("board",))


def test_a_tracker_that_cannot_start_is_named(clips, tmp_path, module):
    module("wandb").init = lambda **_: (_ for _ in ()).throw(RuntimeError("no API key"))
    with pytest.raises(UserError, match=r"The tracker wandb could not start \(no API key\)"):
        trainer_of(clips, tmp_path, steps=1, trackers=("wandb",)).fit()
