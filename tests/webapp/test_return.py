"""A visitor who comes back finds the work by the key in the address; nobody else does. And who counts as the owner."""

import types

import pytest

from latentsync.webapp import streamlit_session
from latentsync.webapp.config import AppSettings
from latentsync.webapp.server import Address

from .drawn import button, by_key, finished, page, shown, text
from .test_queue import Gate, wait_until

current_session = streamlit_session.current_session


@pytest.fixture
def visit(service, monkeypatch):
    """Open the page in a new tab at an address with this key; what is drawn."""
    testing = pytest.importorskip("streamlit.testing.v1", reason="Streamlit draws the page: pip install streamlit")
    monkeypatch.setattr(streamlit_session, "current_session", current_session)

    def visit(key=""):
        screen = testing.AppTest.from_function(page, default_timeout=120)
        if key:
            screen.query_params["s"] = key
        return shown(screen)

    return visit


def key_of(screen):
    found = screen.query_params["s"]
    return found[0] if isinstance(found, list) else found


def with_example(visit):
    screen = visit()
    button(screen, "Try it with an example face and voice").click().run()
    assert not screen.exception
    return screen


def test_a_reload_finds_files_and_settings(visit):
    screen = with_example(visit)
    by_key(screen.selectbox, "codec").set_value("prores").run()
    by_key(screen.number_input, "seed").set_value(77).run()
    by_key(screen.text_input, "spans").set_value("0.5-1").run()
    again = visit(key_of(screen))
    assert key_of(again) == key_of(screen)
    assert r"astronaut\.jpg" in text(again)
    assert r"voice\.flac" in text(again)
    assert "gone" not in text(again)
    assert by_key(again.selectbox, "codec").value == "prores"
    assert by_key(again.number_input, "seed").value == 77
    assert by_key(again.text_input, "spans").value == "0.5-1"
    assert not button(again, "Make the video").disabled


def test_a_reload_finds_a_run_under_way_and_then_its_result(visit, service, material):
    screen, gate = with_example(visit), Gate()
    session = service.sessions.get(key_of(screen))

    def work(job):
        job.report("sample", 1, 4)
        gate(job)

    session.run = service._queues["local"].submit(work)
    assert gate.begun.wait(30)
    again = visit(key_of(screen))
    assert button(again, "Cancel") is not None
    assert not [one for one in again.button if one.label == "Make the video"]
    gate.go.set()
    assert wait_until(lambda: session.run.over)
    finished(service, session, material)
    for number in range(3):
        later = visit(key_of(screen))
        assert "Your video" in [one.value for one in later.header]
        assert [one.value for one in later.toast] == (["Your video is ready."] if number == 0 else []), "said once"


def test_two_visitors_stay_apart(visit, service):
    anna, ben = with_example(visit), visit()
    assert key_of(anna) != key_of(ben)
    assert "astronaut" not in text(ben)
    one, other = (service.sessions.get(key_of(screen)) for screen in (anna, ben))
    assert one.folder != other.folder
    assert not list(other.folder.iterdir())


@pytest.mark.parametrize("key", ["made-up-by-somebody", "../../x", "a" * 5000, "<b>"])
def test_a_key_that_is_not_known_is_not_taken_over(visit, service, key):
    screen = visit(key)
    assert key_of(screen) != key
    assert not service.sessions.has(key)
    assert "Your earlier files and result are gone" in text(screen)
    assert "closed for 15 minutes" in text(screen)


def test_a_new_visitor_is_told_nothing_of_earlier_files(visit):
    assert "gone" not in text(visit())


def test_the_back_button_does_not_lose_the_work(visit):
    screen = with_example(visit)
    key = key_of(screen)
    del screen.query_params["s"]
    shown(screen)
    assert key_of(screen) == key
    assert r"astronaut\.jpg" in text(screen)


def context(host="localhost:8501", ip=None, **headers):
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return types.SimpleNamespace(context=types.SimpleNamespace(headers={"Host": host} | names, ip_address=ip))


@pytest.mark.parametrize(
    ("st", "private", "owner"),
    [
        (context(), True, True),
        (context("127.0.0.1:9000"), True, True),
        (context("[::1]:8501"), True, True),
        (context(), False, False),
        (context(ip="192.168.1.7"), True, False),
        (context("sync.example.com"), True, False),
        (context("localhost.example.com"), True, False),
        (context(X_Forwarded_For="10.0.0.3"), True, False),
        (context(Via="1.1 proxy"), True, False),
        (context(Forwarded="for=10.0.0.3"), True, False),
        (context(""), True, False),
    ],
)
def test_who_is_the_owner(st, private, owner):
    assert streamlit_session.is_owner(st, AppSettings(private=private)) == owner


@pytest.mark.parametrize(
    ("address", "private"),
    [
        (Address(), True),
        (Address("localhost"), True),
        (Address("::1"), True),
        (Address("0.0.0.0"), False),
        (Address("192.168.1.7"), False),
        (Address(share=True), False),
        (Address(base="/sync/"), False),
    ],
)
def test_which_addresses_are_this_computers_alone(address, private):
    assert address.private == private


def test_only_the_owner_can_get_a_model(screen, service, monkeypatch):
    asked = []
    monkeypatch.setattr(service, "get_model", asked.append)
    monkeypatch.setattr("latentsync.webapp.getting.is_here", lambda name: False)
    shown(screen)
    assert "Get LatentSync" not in str([one.label for one in screen.button])
    assert "1.6" not in text(screen)
    assert "latentsync download" not in text(screen)
    monkeypatch.setattr(streamlit_session, "is_owner", lambda st, settings: True)
    (get,) = [one for one in shown(screen).button if one.label.startswith("Get LatentSync 1.6 (5.4")]
    get.click().run()
    assert asked == ["1.6"]
    assert "OpenRAIL++" in text(screen)
    monkeypatch.setattr(service, "backends", {"comfyui": service.backends["local"]})
    assert "Get LatentSync" not in str([one.label for one in shown(screen).button]), "it would not be there"


def test_settings_of_a_tab_that_are_no_settings_are_not_kept():
    session = types.SimpleNamespace(form={})
    state = {"seed": 3, "points": object(), "face-0": "upload", "cancel": True, "part-x": (0.0, 1.0), "s": "key"}
    with streamlit_session.form_kept(types.SimpleNamespace(session_state=state), session):
        pass
    assert session.form == {"seed": 3, "part-x": (0.0, 1.0)}
