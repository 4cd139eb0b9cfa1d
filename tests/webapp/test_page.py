"""The page as Streamlit draws it, without a browser: what is there in which state, and that nothing raises."""

import dataclasses
from fractions import Fraction
from pathlib import Path

import pytest

from latentsync.face.spans import Span
from latentsync.settings import CODECS, ENCODERS, FITS, SILENCES, WATERMARKS, Settings
from latentsync.timeline import Cut
from latentsync.webapp import streamlit_session
from latentsync.webapp.advanced import (
    CODEC_LABELS,
    ENCODER_LABELS,
    FIT_LABELS,
    SILENCE_LABELS,
    WATERMARK_LABELS,
    used_part,
)
from latentsync.webapp.backends import LipSyncRequest, LipSyncResult, NotReadyError
from latentsync.webapp.config import Limits, qualities
from latentsync.webapp.examples import FACES, VOICES
from latentsync.webapp.faces import look
from latentsync.webapp.queue import CANCELLED, FAILED
from latentsync.webapp.uploads import FACE_ENDINGS, VOICE_ENDINGS, Media, take_face, take_file, take_voice
from latentsync.weights.load import default_settings

from ..tiny import link
from .drawn import Told, button, by_key, finished, give, shown, text
from .test_queue import wait_until

pytest.importorskip("streamlit.testing.v1", reason="Streamlit draws the page: pip install streamlit")


def test_an_empty_page_says_what_to_do(screen):
    shown(screen)
    assert [one.value for one in screen.title] == ["LatentSync"]
    assert [one.value for one in screen.header] == ["1 · The face", "2 · The voice", "3 · Model and quality"]
    assert not screen.subheader, "no level of headings is left out"
    assert "At most 9 seconds long." in text(screen)
    assert "Give a face first." in text(screen)
    assert button(screen, "Make the video").disabled


def test_the_sample_voice_is_two_clicks_away(screen, service):
    shown(screen)
    next(one for one in screen.radio if one.key == "voice-from").set_value("Example").run()
    assert "Speech made with flite" in text(screen)
    button(screen, "Use this voice").click().run()
    assert not screen.exception
    assert service.sessions.get("anna").voice.name == "voice.flac"
    assert "voice\\.flac" in text(screen)


def test_one_click_gives_an_example_face_and_voice(screen, service):
    button(shown(screen), "Try it with an example face and voice").click().run()
    assert not screen.exception
    anna = service.sessions.get("anna")
    assert (anna.face.name, anna.voice.name) == ("astronaut.jpg", "voice.flac")
    assert len(anna.shot.boxes) == 1
    assert not button(screen, "Make the video").disabled
    assert not [one for one in screen.button if one.label.startswith("Try it")]


def test_every_example_is_accepted_and_says_whose_it_is(screen, service, tmp_path):
    for offered, take, endings in ((FACES, take_face, FACE_ENDINGS), (VOICES, take_voice, VOICE_ENDINGS)):
        assert len({one.title for one in offered}) == len(offered)
        for one in offered:
            assert one.credit
            assert one.path.suffix[1:] in endings
            assert take_file(one.path, take, tmp_path, Limits()).path.is_file()


def test_faces_can_be_chosen_by_buttons_too(screen, service, material):
    anna = give(service, material)
    shown(screen)
    assert "Who speaks?" in text(screen)
    picked = anna.picked
    button(screen, ["Face 1 (right)", "Face 0 (left)"][picked]).click().run()
    assert not screen.exception
    assert anna.picked == 1 - picked
    assert not button(screen, "Make the video").disabled
    assert "agreed to it" in text(screen)


def test_without_a_face_nothing_can_be_made(screen, service, material, tmp_path):
    import cv2
    import numpy as np

    cv2.imwrite(str(tmp_path / "gray.png"), np.full((100, 100, 3), 120, np.uint8))
    give(service, tmp_path, "gray.png", str(material / "say.wav"))
    shown(screen)
    assert "No face was found here" in text(screen)
    assert button(screen, "Make the video").disabled


def test_the_run_gets_what_was_chosen(screen, service, material, monkeypatch):
    anna = give(service, material)
    forms = []
    monkeypatch.setattr(service, "start", lambda session, form: forms.append((session, form)))
    shown(screen)
    next(one for one in screen.selectbox if one.key == "fit").set_value("hold").run()
    next(one for one in screen.selectbox if one.key == "watermark").set_value("visible").run()
    button(screen, "Face 1 (right)").click().run()
    button(screen, "Make the video").click().run()
    ((session, form),) = forms
    assert session is anna
    assert (form.backend, form.checkpoint, form.own_sound) == ("local", "nano", False)
    assert form.settings.steps == default_settings("nano").steps
    assert (form.settings.fit, form.settings.watermark) == ("hold", "visible")
    assert form.settings.face == look(anna.face).point(1)


def test_the_file_and_the_pauses_are_chosen_too(screen, service, material, forms):
    give(service, material, "clip.mp4")
    shown(screen)
    button(screen, "Make the video").click().run()
    by_key(screen.selectbox, "codec").set_value("prores").run()
    by_key(screen.selectbox, "encoder").set_value("hardware").run()
    by_key(screen.selectbox, "silence").set_value("close").run()
    by_key(screen.slider, "encoding-quality").set_value(35).run()
    by_key(screen.checkbox, "strip").check().run()
    button(screen, "Make the video").click().run()
    assert not screen.exception, screen.exception
    usual, chosen = forms
    assert usual.settings == dataclasses.replace(
        default_settings("nano"), codec="h264", face=look(service.sessions.get("anna").face).point(0)
    )
    assert chosen.settings == dataclasses.replace(
        usual.settings, codec="prores", encoder="hardware", silence="close", quality=35, strip_metadata=True
    )
    assert usual.cut == chosen.cut == Cut()


def test_every_choice_has_its_words():
    pairs = [(CODECS, CODEC_LABELS), (SILENCES, SILENCE_LABELS), (FITS, FIT_LABELS)]
    pairs += [(WATERMARKS, WATERMARK_LABELS), (ENCODERS, ENCODER_LABELS)]
    for names, labels in pairs:
        assert set(labels) == set(names)
        assert len(set(labels.values())) == len(labels)


def test_a_part_of_a_clip(screen, service, material, forms):
    """The face is picked within the part, and its frame is counted from the part's beginning, as the engine does."""
    anna = give(service, material, "clip.mp4")
    shown(screen)
    assert anna.shot.frame == 0
    assert by_key(screen.slider, "part").value == (0.0, 1.2)
    by_key(screen.slider, "part").set_value((0.4, 0.8)).run()
    assert not screen.exception, screen.exception
    assert anna.shot.frame == 10
    moment = by_key(screen.slider, "moment")
    assert (moment.min, moment.max) == (pytest.approx(0.4), pytest.approx(0.76))
    moment.set_value(0.6).run()
    assert anna.shot.frame == 15
    button(screen, "Make the video").click().run()
    by_key(screen.slider, "part").set_value((0.4, 1.2)).run()
    button(screen, "Make the video").click().run()
    assert [form.cut for form in forms] == [
        Cut(Fraction(10, 25), Fraction(10, 25)), Cut(Fraction(10, 25), None),
    ]  # fmt: skip
    assert forms[0].settings.face == look(anna.face, 15).point(0, 10)
    assert forms[0].settings.face.endswith(",5")


def test_the_part_of_a_long_clip_is_typed(screen, service, material, forms, monkeypatch):
    anna = give(service, material, "clip.mp4")
    monkeypatch.setattr("latentsync.webapp.advanced.LONG", 1.0)
    shown(screen)
    assert not [one for one in screen.slider if (one.key or "").startswith("part-")]
    begin, end = (one for one in screen.number_input if (one.key or "").startswith("part-"))
    assert (begin.value, end.value) == (0.0, 1.2)
    begin.set_value(0.4).run()
    next(one for one in screen.number_input if (one.key or "").endswith("-to")).set_value(0.8).run()
    assert anna.shot.frame == 10
    button(screen, "Make the video").click().run()
    assert forms[0].cut == Cut(Fraction(10, 25), Fraction(10, 25))


def test_the_part_of_one_clip_is_not_that_of_another(screen, service, material, forms):
    anna = give(service, material, "clip.mp4")
    shown(screen)
    by_key(screen.slider, "part").set_value((0.4, 0.8)).run()
    anna.remove("face")
    give(service, material, "clip.mp4")
    shown(screen)
    assert by_key(screen.slider, "part").value == (0.0, 1.2)
    give(service, material, "face.png")
    anna.shot = None
    shown(screen)
    assert not [one for one in screen.slider if (one.key or "").startswith("part-")]
    button(screen, "Make the video").click().run()
    assert forms[-1].cut == Cut()


def test_a_part_between_two_frames_has_one():
    @dataclasses.dataclass
    class Drawn:
        session_state: dict

    face = Media(Path("x.mp4"), "x.mp4", "video", Fraction(30, 25), 30)
    for begin, end, wanted in [(0, 1.2, range(30)), (0.4, 0.4, range(10, 11)), (1.2, 1.2, range(29, 30)),
                               (0.41, 0.79, range(10, 20))]:  # fmt: skip
        assert used_part(Drawn({"part-x": (begin, end)}), face) == wanted
    assert used_part(Drawn({}), face) == range(30)


def test_a_sound_track_is_chosen_only_where_there_are_several(screen, service, material, forms):
    anna = give(service, material, "clip.mp4")
    shown(screen)
    assert not [one for one in screen.selectbox if one.label == "Audio track"]
    anna.voice = dataclasses.replace(anna.voice, tracks=((0, "Track 0: eng, stereo"), (2, "Track 2: fra, mono")))
    shown(screen)
    offered = by_key(screen.selectbox, "track").options
    assert offered == ["The default one", "Track 0: eng, stereo", "Track 2: fra, mono"]
    button(screen, "Make the video").click().run()
    by_key(screen.selectbox, "track").set_value(2).run()
    button(screen, "Make the video").click().run()
    assert [form.settings.audio_track for form in forms] == [-1, 2]


def test_what_could_not_stay_as_it_was_is_said(screen, service, material):
    anna = give(service, material, "clip.mp4")
    finished(service, anna, material, report=Told(notes=("interlaced; made [whole]", "HDR; written as SDR")))
    said = text(shown(screen))
    assert r"What you gave is interlaced; made \[whole\]." in said
    assert "What you gave is HDR; written as SDR." in said
    assert "as it is stored" not in said


def test_a_table_says_what_was_synced_and_why_not(screen, service, material):
    anna = give(service, material, "clip.mp4")
    spans = (
        Span(0, 30, "synced", ""),
        Span(30, 45, "passed through", "no face | turned away"),
        Span(45, 1545, "synced", ""),
    )
    finished(service, anna, material, report=Told(spans=spans))
    shown(screen)
    (one,) = [box for box in screen.expander if box.label.startswith("What was done")]
    assert one.label == "What was done: 1 min 1 s synced, 0.6 s passed through"
    assert one.markdown[0].value.splitlines()[2:] == [
        "| 0:00.00 | 0:01.20 | synced |  |",
        r"| 0:01.20 | 0:01.80 | passed through | no face \| turned away |",
        "| 0:01.80 | 1:01.80 | synced |  |",
    ]


def test_the_table_stays_short_and_is_left_out_where_all_was_synced(screen, service, material):
    anna = give(service, material, "clip.mp4")
    spans = tuple(Span(i, i + 1, "passed" if i % 2 else "synced", "blurred" if i % 2 else "") for i in range(30))
    finished(service, anna, material, report=Told(spans=spans))
    shown(screen)
    (one,) = [box for box in screen.expander if box.label.startswith("What was done")]
    lines = one.markdown[0].value.splitlines()
    assert (len(lines), lines[-1]) == (2 + 12 + 1, "| … | | 18 more | |")
    for report in (Told(spans=(Span(0, 30, "synced", ""),)), Told(), None):
        finished(service, anna, material, report=report)
        assert not [box for box in shown(screen).expander if box.label.startswith("What was done")]


def test_what_browsers_do_not_play_is_shown_as_a_copy_and_downloaded_as_it_is(screen, service, material, monkeypatch):
    offered = []
    monkeypatch.setattr("streamlit.download_button", lambda *a, **k: offered.append(a))
    anna = give(service, material, "clip.mp4")
    copy = anna.folder / "copy.mp4"
    link(copy, material / "clip.mp4")
    finished(service, anna, material, ".mov", preview=copy)
    assert "Not every browser plays this .mov file" in text(shown(screen))
    ((label, file, name, kind),) = offered
    assert (label, name, kind) == ("Download the video", "my clip_latentsync.mov", "video/quicktime")
    with file() as stream:
        assert Path(stream.name) == anna.folder / "made.mov"


def test_the_settings_are_those_that_suit_the_checkpoint(screen, service, material, monkeypatch, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(material / "tiny.safetensors", "pt") as file:
        said = {**(file.metadata() or {}), "default_steps": "5", "default_guidance": "1.2"}
    save_file(load_file(material / "tiny.safetensors"), tmp_path / "fast.safetensors", said)
    monkeypatch.setattr(service.backends["local"], "_extra_checkpoints", (str(tmp_path / "fast.safetensors"),))
    give(service, material)
    forms = []
    monkeypatch.setattr(service, "start", lambda session, form: forms.append(form.settings))
    shown(screen)
    for name in (str(tmp_path / "fast.safetensors"), "nano"):
        next(one for one in screen.selectbox if one.label == "Model").set_value(name).run()
        quality = [one for one in screen.radio if one.key == "quality"]
        assert bool(quality) == (name != "nano"), "a choice of one is none: nano is made for one step"
        if quality:
            quality[0].set_value("Finest").run()
        button(screen, "Make the video").click().run()
    assert (forms[0].steps, forms[0].guidance) == (10, 1.2)
    usual = default_settings("nano")
    assert (forms[1].steps, forms[1].guidance) == (usual.steps, usual.guidance)


def test_no_two_qualities_are_the_same():
    def steps(default, most):
        return {name: (one.mode, one.steps) for name, one in qualities(Settings(steps=default), most).items()}

    draft, quick = ("draft", 4), ("fast", 6)
    assert steps(20, 60) == {"Draft": draft, "Quick look": quick, "Good": ("exact", 20), "Finest": ("exact", 40)}
    assert steps(20, 30)["Finest"] == ("exact", 30)
    assert steps(5, 60) == {"Draft": draft, "Good": ("exact", 5), "Finest": ("exact", 10)}
    assert steps(1, 60) == {"Good": ("exact", 1)}
    assert steps(20, 5) == {"Draft": draft, "Good": ("exact", 5)}
    assert qualities(Settings(steps=20, guidance=1.5), 60)["Quick look"] == Settings(
        steps=6, guidance=1.5, mode="fast", solver="dpm++"
    )


def test_the_mark_of_the_house_leaves_no_choice(screen, service, material, monkeypatch):
    give(service, material)
    forms = []
    monkeypatch.setattr(service, "settings", dataclasses.replace(service.settings, watermark="visible"))
    monkeypatch.setattr(service, "start", lambda session, form: forms.append(form))
    shown(screen)
    assert "watermark" not in [one.key for one in screen.selectbox]
    button(screen, "Make the video").click().run()
    assert forms[0].settings.watermark == "visible"


def test_why_a_run_ended_is_said(screen, service, material):
    anna = give(service, material)

    def wrong(job):
        from latentsync.errors import UserError

        raise UserError("The *sound* is silent; give [another](x).")

    anna.run = service._queues["local"].submit(wrong)
    assert wait_until(lambda: anna.run.over)
    assert anna.run.state == FAILED
    assert r"The \*sound\* is silent; give \[another\]\(x\)\." in text(shown(screen))
    anna.run = service._queues["local"].submit(lambda job: job.cancel() or job.report(""))
    assert wait_until(lambda: anna.run.state == CANCELLED)
    assert "Cancelled; nothing was kept." in text(shown(screen))


def test_while_it_runs_nothing_can_be_changed(screen, service, material):
    import threading

    anna, go = give(service, material), threading.Event()

    def work(job):
        job.report("sample", 3, 12)
        go.wait(60)

    anna.run = service._queues["local"].submit(work)
    assert wait_until(lambda: anna.run.done == 3)
    shown(screen)
    assert button(screen, "Cancel") is not None
    changes = ("Change the face", "Change the voice", "Face 0 (left)")
    assert [one.disabled for one in screen.button if one.label in changes] == [True] * 3
    assert all(one.disabled for one in [*screen.selectbox, *screen.radio])
    assert not [one for one in screen.button if one.label == "Make the video"]
    button(screen, "Cancel").click().run()
    assert anna.run.stopping
    go.set()


@pytest.mark.parametrize("face", ["face.png", "clip.mp4"])
def test_a_result_stays_when_the_face_is_changed(screen, service, material, face):
    anna = give(service, material, face)
    video, given = anna.folder / "made.mp4", anna.face.path
    link(video, material / "clip.mp4")
    wish = LipSyncRequest(given, anna.voice.path, video, "nano", Settings(), is_image=face.endswith(".png"))
    anna.run = service._queues["local"].submit(lambda job: LipSyncResult(video, wish, 1, given, "this computer", face))
    assert wait_until(lambda: anna.run.over)
    assert "**Before**" in text(shown(screen))
    next(one for one in screen.button if one.key == "face-change").click().run()
    assert not screen.exception, screen.exception
    assert anna.face is None
    assert "**Before**" in text(screen)
    assert given.exists(), "shown beside the result"
    anna.reset()
    assert list(anna.folder.iterdir()) == [anna.voice.path]


def test_a_refused_file_is_named(screen, service):
    service.sessions.get("anna").errors["face"] = "notes.mp4 is not a video."
    assert r"notes\.mp4 is not a video\." in text(shown(screen))


class Storage:
    """Streamlit's, whose files have their content's hash for a name; reads: files that were read whole."""

    def __init__(self):
        self.files, self.reads = {}, []

    def load_and_get_id(self, path_or_data, mimetype, kind, filename=None):
        data = path_or_data
        if isinstance(path_or_data, str):
            self.reads.append(path_or_data)
            data = Path(path_or_data).read_bytes()
        name = f"{hash((data, mimetype, filename))}"
        self.files[name] = data
        return name

    def get_file(self, name):
        return self.files[name]


def test_a_video_is_read_once_and_not_at_every_rerun(tmp_path):
    storage, path = Storage(), tmp_path / "made.mp4"
    streamlit_session.remember_files(storage)
    path.write_bytes(b"film")
    names = {storage.load_and_get_id(str(path), "video/mp4", "media") for _ in range(5)}
    assert (len(names), len(storage.reads)) == (1, 1)
    path.write_bytes(b"another film")
    (other,) = {storage.load_and_get_id(str(path), "video/mp4", "media") for _ in range(5)} - names
    assert storage.get_file(other) == b"another film"
    del storage.files[other]  # nobody showed it for a while
    assert storage.load_and_get_id(str(path), "video/mp4", "media") == other
    assert len(storage.reads) == 3
    assert storage.get_file(storage.load_and_get_id(b"bytes", "image/png", "media")) == b"bytes"


def test_the_storage_of_streamlit_is_as_remember_files_takes_it():
    from streamlit.runtime.media_file_manager import MediaFileManager
    from streamlit.runtime.memory_media_file_storage import MemoryMediaFileStorage

    storage = MediaFileManager(MemoryMediaFileStorage("/media"))._storage
    assert hasattr(storage, "load_and_get_id")
    assert hasattr(storage, "get_file")


def test_a_result_is_read_only_when_it_is_downloaded(screen, service, material, monkeypatch):
    anna = give(service, material)
    video = anna.folder / "made.mp4"
    link(video, material / "clip.mp4")
    request = LipSyncRequest(anna.face.path, anna.voice.path, video, "nano", Settings(), is_image=True)
    result = LipSyncResult(video, request, 1, anna.face.path, "this computer", "face.png")
    anna.run = service._queues["local"].submit(lambda job: result)
    assert wait_until(lambda: anna.run.over)
    opened, open_file = [], Path.open

    def watched(path, *arguments, **options):
        opened.append(path)
        return open_file(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", watched)
    for _ in range(3):
        assert "**After**" in text(shown(screen))
    assert video not in opened


def test_a_server_that_has_not_answered_does_not_stop_the_page(screen, service, material):
    class Silent:
        title, concurrency = "ComfyUI", 1

        def checkpoints(self):
            raise NotReadyError("Asking ComfyUI at http://gpu:8188 for its models …")

        def close(self): ...

    give(service, material)
    service.backends = {"comfyui": Silent()}
    said = text(shown(screen))
    assert "Asking ComfyUI" in said
    assert "No model is available right now." in said
