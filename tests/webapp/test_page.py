"""The page as Streamlit draws it, without a browser: what is there in which state, and that nothing raises."""

import dataclasses

import pytest

from latentsync.settings import Settings
from latentsync.webapp import streamlit_session as app_sessions
from latentsync.webapp.backends import Made, Wish
from latentsync.webapp.config import AppSettings, Limits, qualities
from latentsync.webapp.faces import look
from latentsync.webapp.queue import CANCELLED, FAILED
from latentsync.webapp.service import Studio
from latentsync.webapp.uploads import take_face, take_voice
from latentsync.weights.load import default_settings

from ..tiny import link
from .test_jobs import wait_until

testing = pytest.importorskip("streamlit.testing.v1", reason="Streamlit draws the page: pip install latentsync[app]")
LIMITS = Limits(megabytes=7, seconds=9)


def page():
    from latentsync.webapp.streamlit_app import main

    main()


@pytest.fixture
def studio(tiny, tmp_path, monkeypatch):
    samples = tmp_path / "samples"
    samples.mkdir()
    settings = AppSettings(
        limits=LIMITS, folder=str(tmp_path / "app"), checkpoints=(tiny,), device="cpu", samples=str(samples)
    )
    (tmp_path / "app").mkdir()
    studio = Studio(settings, lambda session: True)
    app_sessions.studio.cache_clear()
    monkeypatch.setattr(app_sessions, "studio", lambda: studio)
    monkeypatch.setattr(app_sessions, "session_id", lambda: "anna")
    yield studio
    studio.close()


@pytest.fixture
def screen(studio):
    return testing.AppTest.from_function(page, default_timeout=120)


def shown(screen):
    screen.run()
    assert not screen.exception, screen.exception
    return screen


def text(screen):
    kinds = (screen.title, screen.subheader, screen.markdown, screen.caption, screen.error, screen.info, screen.warning)
    return "\n".join(str(element.value) for kind in kinds for element in kind)


def button(screen, label):
    return next(one for one in screen.button if one.label == label)


def give(studio, material, face="couple.png", voice="say.wav"):
    anna = studio.visitors.get("anna")
    with (material / face).open("rb") as stream:
        anna.face = take_face(stream, face, anna.folder, LIMITS)
    with (material / voice).open("rb") as stream:
        anna.voice = take_voice(stream, voice, anna.folder, LIMITS)
    return anna


def test_an_empty_page_says_what_to_do(screen):
    shown(screen)
    assert [one.value for one in screen.subheader] == ["1 · The face", "2 · The voice", "3 · Model and quality"]
    assert "At most 9 seconds long." in text(screen)
    assert "Give a face first." in text(screen)
    assert button(screen, "Make the video").disabled


def test_the_sample_voice_is_two_clicks_away(screen, studio):
    shown(screen)
    next(one for one in screen.radio if one.key == "voice-from").set_value("Example").run()
    button(screen, "Take this one").click().run()
    assert not screen.exception
    assert studio.visitors.get("anna").voice.name == "voice.flac"
    assert "voice\\.flac" in text(screen)


def test_faces_can_be_chosen_by_buttons_too(screen, studio, material):
    anna = give(studio, material)
    shown(screen)
    assert "Who speaks?" in text(screen)
    picked = anna.picked
    button(screen, ["Face 2 (right)", "Face 1 (left)"][picked]).click().run()
    assert not screen.exception
    assert anna.picked == 1 - picked
    assert not button(screen, "Make the video").disabled
    assert "agreed to say" in text(screen)


def test_without_a_face_nothing_can_be_made(screen, studio, material, tmp_path):
    import cv2
    import numpy as np

    cv2.imwrite(str(tmp_path / "gray.png"), np.full((100, 100, 3), 120, np.uint8))
    give(studio, tmp_path, "gray.png", str(material / "say.wav"))
    shown(screen)
    assert "No face was found here" in text(screen)
    assert button(screen, "Make the video").disabled


def test_the_run_gets_what_was_chosen(screen, studio, material, monkeypatch):
    anna = give(studio, material)
    orders = []
    monkeypatch.setattr(studio, "start", lambda visitor, order: orders.append((visitor, order)))
    shown(screen)
    next(one for one in screen.selectbox if one.key == "fit").set_value("hold").run()
    next(one for one in screen.selectbox if one.key == "mark").set_value("file").run()
    button(screen, "Face 2 (right)").click().run()
    button(screen, "Make the video").click().run()
    ((visitor, order),) = orders
    assert visitor is anna
    assert (order.backend, order.checkpoint, order.own_sound) == ("local", "nano", False)
    assert order.settings.steps == default_settings("nano").steps
    assert (order.settings.fit, order.settings.mark) == ("hold", "file")
    assert order.settings.face == look(anna.face).point(1)


def test_the_settings_are_those_that_suit_the_checkpoint(screen, studio, material, monkeypatch, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(material / "tiny.safetensors", "pt") as file:
        said = {**(file.metadata() or {}), "default_steps": "5", "default_guidance": "1.2"}
    save_file(load_file(material / "tiny.safetensors"), tmp_path / "fast.safetensors", said)
    monkeypatch.setattr(studio.backends["local"], "_more", (str(tmp_path / "fast.safetensors"),))
    give(studio, material)
    orders = []
    monkeypatch.setattr(studio, "start", lambda visitor, order: orders.append(order.settings))
    shown(screen)
    for name in (str(tmp_path / "fast.safetensors"), "nano"):
        next(one for one in screen.selectbox if one.label == "Model").set_value(name).run()
        quality = next(one for one in screen.radio if one.key == "quality")
        if "Finest" in quality.options:  # nano, made for one step, has none
            quality.set_value("Finest").run()
        button(screen, "Make the video").click().run()
    assert (orders[0].steps, orders[0].guidance) == (10, 1.2)
    usual = default_settings("nano")
    assert (orders[1].steps, orders[1].guidance) == (usual.steps, usual.guidance)


def test_no_two_qualities_are_the_same():
    assert qualities(20, 60) == {"Quick look": 8, "Good": 20, "Finest": 40}
    assert qualities(20, 30) == {"Quick look": 8, "Good": 20, "Finest": 30}
    assert qualities(1, 60) == {"Good": 1}
    assert qualities(20, 5) == {"Good": 5}


def test_the_mark_of_the_house_leaves_no_choice(screen, studio, material, monkeypatch):
    give(studio, material)
    orders = []
    monkeypatch.setattr(studio, "settings", dataclasses.replace(studio.settings, mark="visible"))
    monkeypatch.setattr(studio, "start", lambda visitor, order: orders.append(order))
    shown(screen)
    assert "mark" not in [one.key for one in screen.selectbox]
    button(screen, "Make the video").click().run()
    assert orders[0].settings.mark == "picture"


def test_why_a_run_ended_is_said(screen, studio, material):
    anna = give(studio, material)

    def wrong(job):
        from latentsync.errors import UserError

        raise UserError("The *sound* is silent; give [another](x).")

    anna.run = studio._queues["local"].submit(wrong)
    assert wait_until(lambda: anna.run.over)
    assert anna.run.state == FAILED
    assert r"The \*sound\* is silent; give \[another\]\(x\)\." in text(shown(screen))
    anna.run = studio._queues["local"].submit(lambda job: job.cancel() or job.tell(""))
    assert wait_until(lambda: anna.run.state == CANCELLED)
    assert "Cancelled; nothing was kept." in text(shown(screen))


def test_while_it_runs_nothing_can_be_changed(screen, studio, material):
    import threading

    anna, go = give(studio, material), threading.Event()

    def work(job):
        job.tell("sample", 3, 12)
        go.wait(60)

    anna.run = studio._queues["local"].submit(work)
    assert wait_until(lambda: anna.run.done == 3)
    shown(screen)
    assert button(screen, "Cancel") is not None
    assert all(one.disabled for one in screen.button if one.label in ("Change", "Face 1 (left)"))
    assert all(one.disabled for one in [*screen.selectbox, *screen.radio])
    assert not [one for one in screen.button if one.label == "Make the video"]
    button(screen, "Cancel").click().run()
    assert anna.run.stopping
    go.set()


@pytest.mark.parametrize("face", ["face.png", "clip.mp4"])
def test_a_result_stays_when_the_face_is_changed(screen, studio, material, face):
    anna = give(studio, material, face)
    video, given = anna.folder / "made.mp4", anna.face.path
    link(video, material / "clip.mp4")
    wish = Wish(given, anna.voice.path, video, "nano", Settings(), still=face.endswith(".png"))
    anna.run = studio._queues["local"].submit(lambda job: Made(video, wish, 1, given, "this computer", face))
    assert wait_until(lambda: anna.run.over)
    assert "**Before**" in text(shown(screen))
    next(one for one in screen.button if one.key == "face-change").click().run()
    assert not screen.exception, screen.exception
    assert anna.face is None
    assert "**Before**" in text(screen)
    assert given.exists(), "shown beside the result"
    anna.tidy()
    assert list(anna.folder.iterdir()) == [anna.voice.path]


def test_a_refused_file_is_named(screen, studio):
    studio.visitors.get("anna").note["face"] = "notes.mp4 is not a video."
    assert r"notes\.mp4 is not a video\." in text(shown(screen))
