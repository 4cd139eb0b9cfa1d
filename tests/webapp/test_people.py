"""Several voices, parts to dub and a face pointed out by hand: on the page, and what the engine is asked for."""

import dataclasses
from fractions import Fraction

import numpy as np
import pytest

from latentsync.errors import UserError
from latentsync.face.spans import Span
from latentsync.pipeline import Speaker, lipsync_file
from latentsync.settings import Settings
from latentsync.timeline import Cut
from latentsync.webapp.faces import look, places
from latentsync.webapp.queue import DONE
from latentsync.webapp.service import FormValues
from latentsync.webapp.sessions import OtherVoice
from latentsync.webapp.uploads import take_voice
from latentsync.weights.bundle import load_models

from .drawn import LIMITS, Told, button, by_key, finished, give, shown, text
from .parts import alike
from .test_queue import wait_until

QUICK = Settings(steps=1, guidance=1.0, codec="h264")


def add(service, material, picked, start=Fraction(0)):
    """One more voice in anna's session, for a face of the picture that is shown."""
    anna = service.sessions.get("anna")
    anna.shot = anna.shot or look(anna.face)
    with (material / "say.wav").open("rb") as stream:
        media = take_voice(stream, "second.wav", anna.folder, LIMITS)
    anna.others.append(OtherVoice(media, anna.shot, picked, start))
    return anna.others[-1]


def start(service, settings=QUICK, **rest):
    anna = service.sessions.get("anna")
    checkpoint = service.backends["local"].checkpoints()[-1]
    form = FormValues("local", checkpoint, dataclasses.replace(settings, face=anna.shot.point(0)), **rest)
    service.start(anna, form)
    assert wait_until(lambda: anna.run.over, 240)
    return anna.run


def test_two_voices_make_what_the_engine_makes_of_two_speakers(service, material, tmp_path):
    anna = give(service, material)
    add(service, material, 1, Fraction("0.6"))
    run = start(service)
    assert (run.state, run.error) == (DONE, "")
    starts, say = (Fraction(0), Fraction("0.6")), material / "say.wav"
    people = [Speaker(look(anna.face).point(i), say, when) for i, when in enumerate(starts)]
    with load_models(material / "tiny.safetensors", dtype=service.backends["local"]._loaded[1].dtype) as models:
        how = {"models": models, "settings": dataclasses.replace(QUICK, face=people[0].face)}
        wanted = lipsync_file(material / "couple.png", people, tmp_path / "wanted.mp4", **how)
        lipsync_file(material / "couple.png", material / "say.wav", tmp_path / "alone.mp4", **how)
    assert alike(run.value.video, tmp_path / "wanted.mp4")
    assert not alike(run.value.video, tmp_path / "alone.mp4")
    assert run.value.report.frames == wanted.frames == round((0.6 + 1.3) * 25)
    assert anna.score is None, "one voice would be held against all of them"
    assert set(anna.folder.iterdir()) == {media.path for media in anna.uploads} | {run.value.video}
    anna.remove("face")
    assert not anna.others
    assert {path for path in anna.folder.iterdir() if path.suffix == ".wav"} == {anna.voice.path}


def test_what_cannot_be_with_several_voices_is_said_before_anything_runs(service, material):
    anna = give(service, material)
    other = add(service, material, 1)
    for settings, rest, said in [
        (dataclasses.replace(QUICK, points="1,1,9,1,5,5"), {}, "pointed out by hand speaks alone"),
        (QUICK, {"own_sound": True}, "has no sound of its own"),
    ]:
        with pytest.raises(UserError, match=said):
            start(service, settings, **rest)
    other.picked = 0
    with pytest.raises(UserError, match=r"The face of second\.wav has another voice already"):
        start(service)
    other.picked, other.start = 1, Fraction(8)
    with pytest.raises(UserError, match=r"second\.wav would end at 9\.3 s; at most 9 s"):
        start(service)
    with pytest.raises(UserError, match="spans has 'x'"):
        start(service, dataclasses.replace(QUICK, spans="x"))
    anna.remove("face")
    give(service, material, "clip.mp4")
    anna.shot = look(anna.face, 20)
    add(service, material, 0)
    anna.shot = look(anna.face)
    with pytest.raises(UserError, match="outside the part"):
        start(service, cut=Cut(duration=Fraction(8, 25)))
    with pytest.raises(UserError, match="give a recording instead"):
        start(service, own_sound=True)


def test_the_page_takes_another_voice_and_lets_it_go(screen, service, material):
    give(service, material)
    assert "give a face and a voice first" not in text(shown(screen))
    anna, other = service.sessions.get("anna"), add(service, material, 0, Fraction("1.5"))
    shown(screen)
    assert "**second\\.wav** · 1.3 s" in text(screen)
    who = by_key(screen.selectbox, "who")
    assert (who.options, who.value) == (["Face 0 (left)", "Face 1 (right)"], 0)
    who.set_value(1).run()
    by_key(screen.number_input, "begins").set_value(2.25).run()
    assert (other.picked, other.start) == (1, Fraction("2.25"))
    by_key(screen.button, "remove").click().run()
    assert not screen.exception
    assert not anna.others
    assert not other.media.path.exists()


def test_an_added_voice_gets_the_next_face_and_begins_after_the_last(screen, service, material):
    from latentsync.webapp.people import MorePeople

    anna = give(service, material)
    shown(screen)
    media = dataclasses.replace(anna.voice, seconds=Fraction(2))
    MorePeople(None, anna, LIMITS, None)._add(media)
    MorePeople(None, anna, LIMITS, None)._add(media)
    assert [(one.picked, float(one.start)) for one in anna.others] == [
        (1 - anna.picked, round(float(anna.voice.seconds), 2)), (0, round(float(anna.voice.seconds), 2) + 2),
    ]  # fmt: skip


@pytest.mark.parametrize(("face", "said"), [("couple.png", ""), ("face.png", "no second face"), (None, "first")])
def test_the_page_says_why_there_can_be_no_other_voice(screen, service, material, face, said):
    if face:
        give(service, material, face)
    reason = [one.value for one in shown(screen).caption if "several speakers" in one.value]
    assert bool(reason) == bool(said)
    assert all(said in one for one in reason)


def test_only_these_parts(screen, service, material, forms):
    give(service, material, "clip.mp4")
    shown(screen)
    by_key(screen.text_input, "spans").set_value("0.5-1, 1.1-").run()
    button(screen, "Make the video").click().run()
    by_key(screen.text_input, "spans").set_value("from 3 on").run()
    assert "spans has 'from 3 on'" in text(screen).replace("\\", "")
    by_key(screen.text_input, "spans").set_value("").run()
    button(screen, "Make the video").click().run()
    assert [form.settings.spans for form in forms] == ["0.5-1, 1.1-", ""]


def test_parts_are_dubbed_and_told_of(service, material):
    anna = give(service, material, "clip.mp4")
    anna.shot = look(anna.face)
    run = start(service, dataclasses.replace(QUICK, spans="0.4-0.8"))
    assert (run.state, run.error) == (DONE, "")
    assert [(one.start, one.stop, one.state) for one in run.value.report.spans if one.state == "passed through"] == [
        (0, 10, "passed through"), (20, 33, "passed through"),
    ]  # fmt: skip


DRAWN = "60, 50, 100, 50, 80, 80"


@pytest.fixture
def drawing(tmp_path):
    """A picture without a face that could be found."""
    import cv2

    random = np.random.default_rng(0)
    cv2.imwrite(str(tmp_path / "drawing.png"), random.integers(90, 130, (140, 160, 3), np.uint8))
    return tmp_path / "drawing.png"


def test_a_face_that_is_not_found_is_pointed_out(screen, service, material, drawing, forms):
    anna = give(service, drawing.parent, "drawing.png", str(material / "say.wav"))
    shown(screen)
    assert "No face was found here" in text(screen)
    field = by_key(screen.text_input, "points")
    for given, said in [("60, 50", ""), ("60, 50, 100, 50, 80, nose", "'60, 50, 100, 50, 80, nose'"),
                        ("10, 10, 20, 20, 30, 30", "make no face")]:  # fmt: skip
        field.set_value(given).run()
        assert said in text(screen).replace("\\", "")
        assert bool([one for one in screen.error if "not accepted" not in one.value]) == bool(said)
        assert button(screen, "Make the video").disabled
    field.set_value(DRAWN).run()
    button(screen, "Make the video").click().run()
    assert forms[0].settings.points == "60,50,100,50,80,80,0"
    assert forms[0].settings.face == Settings.face
    assert anna.points


def test_points_are_counted_from_the_part_and_stay_with_their_frame(screen, service, material, forms):
    anna = give(service, material, "clip.mp4")
    shown(screen)
    by_key(screen.checkbox, "by-hand").check().run()
    assert button(screen, "Make the video").disabled
    by_key(screen.slider, "part").set_value((0.4, 1.2)).run()
    by_key(screen.slider, "moment").set_value(0.6).run()
    by_key(screen.text_input, "points").set_value(DRAWN).run()
    button(screen, "Make the video").click().run()
    assert forms[0].settings.points == "60,50,100,50,80,80,5"
    by_key(screen.checkbox, "by-hand").uncheck().run()
    button(screen, "Make the video").click().run()
    assert not forms[1].settings.points
    assert forms[1].settings.face == look(anna.face, 15).point(0, 10)


def test_places_of_a_text():
    assert places("") == places("12") == places("nothing") == []
    assert places("1, 2.5, 3") == [(1, 2.5)]
    assert places("1,2,3,4 5;6,7") == [(1, 2), (3, 4), (5, 6)]


def test_what_becomes_of_each_of_several(screen, service, material):
    anna = give(service, material, "clip.mp4")
    spans = (Span(0, 30, "synced", ""), Span(0, 10, "passed through", "why"), Span(10, 30, "synced", ""))
    finished(service, anna, material, report=Told(spans=spans))
    (one,) = [box for box in shown(screen).expander if box.label.startswith("What was done")]
    assert one.label == "What was done: voice 1: 1.2 s synced; voice 2: 0.4 s passed through, 0.8 s synced"
    assert one.markdown[0].value.count("| from |") == 2
    finished(service, anna, material, report=Told(spans=(Span(0, 30, "synced", ""),) * 2))
    assert not [box for box in shown(screen).expander if box.label.startswith("What was done")]
