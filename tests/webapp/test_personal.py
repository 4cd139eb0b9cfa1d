"""A model of the person in the clip: made in the queue, by the owner alone, and used at once."""

import time
from dataclasses import replace

import pytest

from latentsync.errors import UnfinishedError, UserError
from latentsync.training.personal import run as personal
from latentsync.training.personal.judge import Figures
from latentsync.webapp import streamlit_session
from latentsync.webapp.queue import CANCELLED, DONE, FAILED

from ..weights.test_lora import write_lora
from .drawn import button, give, shown, text
from .test_queue import wait_until


@pytest.fixture
def mine(monkeypatch):
    monkeypatch.setattr(streamlit_session, "is_owner", lambda st, settings: True)


@pytest.fixture
def training(monkeypatch, tiny):
    """What is asked for, with the clip; and in place of minutes, a file that changes the tiny network. The training:
    tests/training/test_personal.py."""
    asked = []

    def personalize(request, report, should_stop):
        asked.append((request, request.clips[0].read_bytes()))
        report("step 1 of 2")
        while "slow" in request.person:
            if should_stop():
                raise UnfinishedError("stopped at step 1; the same command goes on from there.")
            time.sleep(0.01)
        for frame in range(3000 * ("footage" in request.person)):
            report.draw(frame / 3000, f"frame {frame}")
            time.sleep(0.01)
        if "bad" in request.person:
            raise UserError(f"These clips will not make a good model: {request.clips[0]}: too dark.")
        write_lora(request.out, tiny)
        request.page.write_text("page")
        before = Figures(0.5, 0.6, 0.2)
        return personal.PersonalModel(request.out, request.page, before, replace(before, sharpness=0.4), 2, 3.0, None)

    monkeypatch.setattr(personal, "personalize", personalize)
    return asked


def clip_of(service, material, name="ada.mp4"):
    anna = give(service, material, "clip.mp4")
    anna.face = replace(anna.face, name=name, has_sound=True)
    return anna


def test_the_owner_makes_a_model_and_uses_it(screen, service, material, mine, training, tiny):
    anna = clip_of(service, material)
    shown(screen)
    assert button(screen, "Make a model of this person").disabled
    next(one for one in screen.checkbox if one.key == "person-agreed").check()
    shown(screen)
    button(screen, "Make a model of this person").click()
    shown(screen)
    assert wait_until(lambda: anna.person.over)
    assert anna.person.state == DONE, anna.person.error
    ((request, clip),) = training
    assert [clip.name for clip in request.clips] == ["ada.mp4"], "not the name under which the app keeps it"
    assert clip == anna.face.path.read_bytes()
    assert not request.clips[0].exists(), "the copy is gone"
    assert (request.person, request.checkpoint) == ("ada", "nano")
    assert "| Sharpness | 0.20 | 0.40 |" in text(shown(screen))
    button(screen, "Use it").click()
    shown(screen)
    assert anna.lora.path == request.out
    anna.reset()
    assert request.out.is_file(), "a new run keeps it"


def test_visitors_are_not_offered_it(screen, service, material, training):
    clip_of(service, material)
    assert "Make a model of this person" not in [one.label for one in shown(screen).button]


def test_pictures_and_silent_clips_make_no_model(screen, service, material, mine, training):
    give(service, material, "face.png")
    assert "Make a model of this person" not in [one.label for one in shown(screen).button]


@pytest.mark.parametrize(("name", "stage"), [("slow.mp4", "step 1 of 2"), ("footage.mp4", "frame 9")])
def test_it_is_stopped_and_said(screen, service, material, mine, training, name, stage):
    anna = clip_of(service, material, name)
    service.make_person(anna, "nano")
    assert wait_until(lambda: anna.person.stage.startswith(stage))
    anna.person.cancel()
    assert wait_until(lambda: anna.person.over)
    assert anna.person.state == CANCELLED
    assert "The model was not made." in text(shown(screen))


def test_poor_footage_is_told_by_its_own_name(screen, service, material, mine, training):
    anna = clip_of(service, material, "bad.mp4")
    service.make_person(anna, "nano")
    assert wait_until(lambda: anna.person.over)
    assert anna.person.state == FAILED
    assert anna.person.error == "These clips will not make a good model: bad.mp4: too dark."
    assert "too dark" in text(shown(screen))
