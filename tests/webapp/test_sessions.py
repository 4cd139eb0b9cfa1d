"""Folders of their own, which go when their owners go."""

import os
import threading

import pytest

from latentsync.webapp.queue import Queue
from latentsync.webapp.sessions import Sessions

from .test_queue import Gate, wait_until


class Hall:
    """Visitors whose comings and goings, and whose time, a test says."""

    def __init__(self, root):
        self.here, self.now = {"anna", "ben"}, 0.0
        self.sessions = Sessions(root, self.here.__contains__, 60, lambda: self.now)

    def later(self, seconds):
        self.now += seconds
        self.sessions.collect_garbage()


@pytest.fixture
def hall(tmp_path):
    return Hall(tmp_path)


def test_each_has_a_folder_that_cannot_be_guessed(hall, tmp_path):
    anna, ben = hall.sessions.get("anna"), hall.sessions.get("ben")
    assert anna.folder != ben.folder
    assert "anna" not in anna.folder.name
    assert anna.folder.parent == ben.folder.parent == tmp_path
    if os.name == "posix":
        assert anna.folder.stat().st_mode & 0o077 == 0, "other users of the machine cannot look in"
    assert hall.sessions.get("anna") is anna


def test_who_leaves_is_forgotten_after_a_while(hall, tmp_path):
    anna, ben = hall.sessions.get("anna"), hall.sessions.get("ben")
    (anna.folder / "face.mp4").write_bytes(b"x")
    hall.here.discard("anna")
    hall.later(50)
    assert anna.folder.is_dir(), "somebody whose connection broke may come back"
    hall.here.add("anna")
    hall.later(50)
    hall.here.discard("anna")
    hall.later(50)
    assert anna.folder.is_dir()
    hall.later(11)
    assert list(tmp_path.iterdir()) == [ben.folder]
    assert hall.sessions.get("anna") is not anna


def test_files_stay_until_the_run_has_let_go(hall):
    anna, queue, gate = hall.sessions.get("anna"), Queue(), Gate()
    anna.run = queue.submit(gate)
    assert gate.begun.wait(30)
    hall.here.discard("anna")
    hall.later(61)
    assert anna.run.stopping
    assert anna.folder.is_dir()
    gate.go.set()
    assert wait_until(lambda: anna.run.over)
    hall.later(0)
    assert not anna.folder.exists()
    queue.close()


def test_closing_removes_all(hall, tmp_path):
    for name in ("anna", "ben"):
        (hall.sessions.get(name).folder / "x").write_bytes(b"x")
    hall.sessions.close()
    assert not list(tmp_path.iterdir())
    assert not hall.sessions._sessions


def test_many_at_once_get_one_each(hall):
    hall.here.update(map(str, range(20)))
    got = []
    threads = [threading.Thread(target=lambda i=i: got.append(hall.sessions.get(str(i % 10)))) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(session) for session in got}) == 10
    assert len({session.folder for session in got}) == 10


def test_a_key_finds_the_same_work_from_another_tab_and_cannot_be_guessed(hall):
    keys = {hall.sessions.new_key() for _ in range(50)}
    assert len(keys) == 50
    assert all(len(key) >= 22 for key in keys), "128 bits"
    key = keys.pop()
    assert hall.sessions.has(key)
    assert not hall.sessions.has(key[:-1])
    assert hall.sessions.get(key, "tab 1") is hall.sessions.get(key, "tab 2")
    assert not {key, *keys} & {folder.name for folder in hall.sessions._root.iterdir()}, "folders do not give keys away"


def test_work_stays_while_any_tab_shows_it(hall):
    key = hall.sessions.new_key()
    session = hall.sessions.get(key, "phone")
    hall.sessions.get(key, "laptop")
    hall.here.add("laptop")
    hall.later(61)
    assert hall.sessions.has(key)
    hall.here.discard("laptop")
    hall.later(59)
    assert hall.sessions.has(key), "a reload comes back within this time"
    assert hall.sessions.get(key, "laptop, reloaded") is session
    hall.later(61)
    assert not hall.sessions.has(key)
    assert not session.folder.exists()
