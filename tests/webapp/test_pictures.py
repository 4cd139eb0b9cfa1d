"""The pictures of the app show the page of today: its words, its labels and its defaults. Otherwise: make pictures."""

import re
import shutil
from fractions import Fraction
from threading import Event

import numpy as np
import pytest

from latentsync.webapp import streamlit_session
from latentsync.webapp.config import AppSettings

from ..docs.record import shown as recorded
from ..nodes.clips import VOICE
from ..tiny import pan, write_clip, write_speech
from .drawn import finished, give, shown
from .parts import FPS
from .test_people import add
from .test_queue import wait_until

pytest.importorskip("streamlit.testing.v1", reason="Streamlit draws the page: pip install streamlit")
PAGES = {said["page"]: said for said in recorded().values() if "page" in said}
FIELDS = ("radio", "selectbox", "number_input", "slider", "checkbox", "text_input")
SAME = ("title", "header", "button", *FIELDS)
"""What does not depend on the files that were given."""
TOLD = (*SAME, "markdown", "caption", "file_uploader")
WHOLE = ("ready", "advanced", "voices")
"""Pages that look alike with any files."""
TAB = {"advanced": "Mouth", "voices": "More voices"}
"""What is open in a picture with Advanced."""


@pytest.fixture
def settings(tiny, tmp_path):
    """As the app is in the pictures: started without options, by whoever sits before it."""
    return AppSettings(folder=str(tmp_path / "app"), device="cpu")


@pytest.fixture
def draw(screen, service, tmp_path, monkeypatch):
    """The page in the state that a picture shows."""
    monkeypatch.setattr(streamlit_session, "is_owner", lambda st, settings: True)
    go = Event()

    def draw(page):
        two = np.stack([np.concatenate((frame, frame[:, ::-1]), 1) for frame in pan(10, 160, 140)])
        write_clip(tmp_path / "two_people.mp4", two, FPS, audio=write_speech(tmp_path / "own.wav", 0.4))
        shutil.copy(VOICE, tmp_path / "voice.flac")
        write_speech(tmp_path / "say.wav", 0.5)
        anna = give(service, tmp_path, "two_people.mp4", VOICE.name)
        write_clip(tmp_path / "clip.mp4", pan(10, 160, 140), FPS)
        if page == "voices":
            add(service, tmp_path, 1, Fraction("4.32"))  # when the first voice has ended
        if page == "running":
            anna.run = service._queues["local"].submit(lambda job: (job.report("sample", 3, 12), go.wait(60)))
            assert wait_until(lambda: anna.run.done == 3)
        if page in ("result", "narrow"):
            finished(service, anna, tmp_path)
        return shown(screen)

    yield draw
    go.set()


def parts(block, tab=None):
    """The elements of a page in their order, without those behind Advanced; tab: which part of it is open."""
    for child in block.children.values():
        if child.type == "tab" and child.label != tab:
            continue
        if child.type == "expander":
            yield child
            if tab is None:
                continue
        yield from parts(child, tab) if getattr(child, "children", None) else [child]


def words(element):
    """The lines that an element has on the page."""
    kind = element.type
    if kind in ("markdown", "caption", "title", "header"):
        return plain(element.value).splitlines()
    if kind == "radio":
        named = [] if element.proto.label_visibility.value else [element.label]
        return [*named, *element.options]
    return [plain(element.label)]


def plain(text):
    """Without Markdown."""
    return text.replace("**", "").replace("\\", "")


def value(element):
    if element.type == "selectbox":
        return element.options[element.index]
    found = element.value
    if isinstance(found, bool):
        return str(found).lower()
    return str(found[0] if isinstance(found, tuple) else found)


def same(text):
    """Without numbers, which are the files', and without the symbols that Streamlit writes as words."""
    return re.sub(r"\d[\d.:]*", "#", text).strip()


def alike(one, other):
    try:
        return float(one) == float(other)
    except ValueError:
        return one == other


@pytest.mark.parametrize("page", PAGES)
def test_what_is_on_the_page_is_in_the_picture(draw, page):
    said = {same(line) for line in PAGES[page]["text"]}
    kinds = SAME if page in ("running", "result", "narrow") else TOLD
    drawn = [one for one in parts(draw(page).main, TAB.get(page)) if one.type in (*kinds, "expander")]
    missing = [line for one in drawn for line in words(one) if line and same(line) not in said]
    assert not missing, "make pictures"


@pytest.mark.parametrize("page", WHOLE)
def test_what_is_in_the_picture_is_on_the_page(draw, page):
    drawn = list(parts(draw(page).main, TAB.get(page)))
    known = {same(line) for one in drawn if one.type in (*TOLD, "expander") for line in words(one)}
    known |= {"Mouth", "Length and sound", "More voices", "File"} if page in TAB else set()
    gone = [line for line in PAGES[page]["text"] if same(line) not in known and not re.fullmatch("# s|#", same(line))]
    assert not gone, "make pictures"


@pytest.mark.parametrize("page", WHOLE)
def test_fields_have_the_values_in_the_picture(draw, page):
    fields = [one for one in parts(draw(page).main, TAB.get(page)) if one.type in FIELDS]
    drawn = {one.label: value(one) for one in fields}
    for label, seen in PAGES[page]["fields"].items():
        assert alike(drawn[label], seen), (label, "make pictures")


def test_another_word_or_default_is_noticed(draw, monkeypatch):
    said = PAGES["advanced"]
    monkeypatch.setitem(PAGES, "advanced", said | {"fields": said["fields"] | {"Steps": "7"}})
    with pytest.raises(AssertionError, match="Steps"):
        test_fields_have_the_values_in_the_picture(draw, "advanced")
    monkeypatch.setitem(PAGES, "advanced", said | {"text": ["Solver of today", *said["text"]]})
    with pytest.raises(AssertionError, match="Solver of today"):
        test_what_is_in_the_picture_is_on_the_page(draw, "advanced")
