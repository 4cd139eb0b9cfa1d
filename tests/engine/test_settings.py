"""Settings: what is allowed, what is refused and in which words, and that defaults are written once."""

import dataclasses
import inspect
from fractions import Fraction

import pytest

from latentsync import pipeline, sampling
from latentsync.errors import UserError
from latentsync.evaluation import clips
from latentsync.settings import FITS, GUIDANCE, SOLVERS, STEPS, WATERMARKS, Settings
from latentsync.weights.bundle import load_models

from ..tiny import pan, write_clip

GOOD = [
    ("steps", (0, 1, 20, 1000)),
    ("guidance", (0.0, 1, 1.5, 20.0)),
    ("seed", (0, 1247, 2**63 - 1)),
    ("window_batch", (1, 64)),
    ("still_fps", (1, 25, 120)),
    ("fit", FITS),
    ("solver", SOLVERS),
    ("watermark", WATERMARKS),
    ("face", ("largest", "left", "right", "0", "12", "3.5,-2,0", " 10 , 20 , 3")),
]
BAD = [
    ("steps", (-1, 1001)),
    ("guidance", (-1, -0.01, 20.5, float("nan"), float("inf"))),
    ("seed", (-1, 2**63)),
    ("window_batch", (0, 65)),
    ("still_fps", (0, 121)),
    ("fit", ("", "Loop", "cut")),
    ("solver", ("euler", "DDIM")),
    ("watermark", ("yes", "")),
    ("face", ("", "biggest", "-1", "1,2", "1,2,3,4", "a,b,c", "1,2,x", "1.5", "nan,1,2")),
]


def pairs(table):
    return [(name, value) for name, values in table for value in values]


@pytest.mark.parametrize(("name", "value"), pairs(GOOD))
def test_accepted(name, value):
    assert getattr(Settings(**{name: value}), name) == value


@pytest.mark.parametrize(("name", "value"), pairs(BAD))
def test_refused_in_one_sentence_that_names_setting_and_value(name, value):
    with pytest.raises(UserError) as caught:
        Settings(**{name: value})
    text = str(caught.value)
    assert text.startswith(f"{name} is ")
    assert str(value) in text
    assert "must" in text
    assert "\n" not in text


def test_a_wrong_word_for_a_face_is_refused_before_any_frame_is_looked_at(tmp_path, monkeypatch):
    """At every door that takes one."""
    clip = write_clip(tmp_path / "clip.mp4", pan(5), Fraction(25))

    def never(*_, **__):
        raise AssertionError("faces were looked for")

    monkeypatch.setattr("latentsync.evaluation.clips.find_tracks", never)
    monkeypatch.setattr("latentsync.prepared.find_tracks", never)
    doors = {
        "evaluation": lambda: clips.track_clip(clip, object(), face="lefft"),
        "settings": lambda: Settings(face="lefft"),
    }
    for door in doors.values():
        with pytest.raises(UserError, match="face is 'lefft'; it must be"):
            door()


def test_settings_cannot_be_changed_but_replaced():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().steps = 3  # type: ignore[misc]
    with pytest.raises(UserError):
        dataclasses.replace(Settings(), steps=-1)


@pytest.mark.parametrize("function", [sampling.denoise, sampling.denoise_window])
@pytest.mark.parametrize(("name", "value"), [("steps", STEPS), ("guidance", GUIDANCE), ("solver", Settings.solver)])
def test_defaults_of_the_sampler_are_those_of_the_settings(function, name, value):
    assert inspect.signature(function).parameters[name].default == value


@pytest.mark.parametrize(
    ("asked", "own", "wanted"),
    [
        ((0, 0.0), (1, 2.0), (1, 2.0)),
        ((0, 1.2), (1, 2.0), (1, 1.2)),
        ((7, 0.0), (20, 1.5), (7, 1.5)),
        ((7, 1.2), (20, 1.5), (7, 1.2)),
    ],
)
def test_zero_is_the_checkpoints_own(asked, own, wanted):
    settings = Settings(steps=asked[0], guidance=asked[1], seed=3)
    found = settings.resolved(Settings(steps=own[0], guidance=own[1], seed=9))
    assert (found.steps, found.guidance, found.seed) == (*wanted, 3)


@pytest.mark.parametrize(
    ("asked", "own", "wanted"),
    [
        ({"mode": "exact"}, (20, 1.5), (20, 1.5, "ddim")),
        ({"mode": "fast"}, (20, 1.5), (6, 1.5, "dpm++")),
        ({"mode": "turbo"}, (20, 1.5), (4, 1.0, "dpm++")),
        ({"mode": "draft"}, (20, 1.5), (4, 1.0, "dpm++")),
        ({"mode": "turbo", "steps": 8, "guidance": 2.0, "solver": "unipc"}, (20, 1.5), (8, 2.0, "unipc")),
        ({"mode": "fast"}, (1, 1.0), (1, 1.0, "ddim")),  # nano's one step is as fast as it gets
        ({"mode": "draft"}, (1, 1.0), (1, 1.0, "ddim")),
    ],
)
def test_modes(asked, own, wanted):
    found = Settings(**asked).resolved(Settings(steps=own[0], guidance=own[1]))
    assert (found.steps, found.guidance, found.solver) == wanted
    assert found.resolved(Settings(steps=own[0], guidance=own[1])) == found  # settings are resolved more than once


def test_the_pipeline_repeats_no_default():
    """Settings come as one object; a parameter of the same name would be a second place for a default."""
    names = {field.name for field in dataclasses.fields(Settings)}
    for function in (pipeline.lipsync, pipeline.lipsync_file, load_models):
        assert not names & set(inspect.signature(function).parameters)
