"""Handing calls out: every call has one outcome, whatever becomes of the workers."""

import os
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from latentsync.batch.parallel.dispatch import QUEUED, map_calls
from latentsync.batch.parallel.processes import InProcessPool, ProcessPool
from latentsync.batch.parallel.worker import Call, SetupError
from latentsync.batch.results import short_traceback
from latentsync.batch.worker import ModelSpec
from latentsync.errors import UserError

from .parts import Plain, Unreadable, Unready

SPEC = ModelSpec()
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def processes():
    pool = ProcessPool(SPEC, 2, Plain)
    yield pool
    pool.close()


@pytest.fixture
def here():
    return InProcessPool(SPEC, Plain)


def doubles(numbers):
    return [Call("double", (n,)) for n in numbers]


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("kind", ["here", "processes"])
def test_every_call_once(request, kind, ordered):
    pool = request.getfixturevalue(kind)
    got = [(pending.index, outcome.value) for pending, outcome in map_calls(doubles(range(9)), pool, ordered=ordered)]
    assert (got if ordered else sorted(got)) == [(n, 2 * n) for n in range(9)]
    assert list(map_calls([], pool)) == []


def test_a_failure_is_an_outcome(here):
    calls = [Call("fail"), Call("double", (4,))]
    failed, done = (outcome for _, outcome in map_calls(calls, here))
    assert (failed.status, failed.error) == ("failed", "KeyError: 'why'")
    assert (done.status, done.value) == ("done", 8)


@pytest.mark.parametrize("kind", [InProcessPool, partial(ProcessPool, size=1)])
def test_models_that_cannot_be_loaded_end_it(kind):
    pool = kind(SPEC, make_worker=Unready)
    with pytest.raises(SetupError, match="could not load the models: ValueError: no such weights"):
        list(map_calls(doubles([1, 2]), pool))
    pool.close()
    assert issubclass(SetupError, UserError)


@pytest.mark.parametrize("ordered", [False, True])
def test_a_worker_that_dies_loses_no_call(processes, tmp_path, ordered):
    calls = [Call("die_once", (tmp_path / "marker", n)) for n in range(7)]
    told = list(map_calls(calls, processes, ordered=ordered))
    assert sorted(outcome.value for _, outcome in told) == list(range(7))
    assert sorted(pending.attempts for pending, _ in told) == [1] * 6 + [2]
    if ordered:
        assert [pending.index for pending, _ in told] == list(range(7))


def test_a_deadly_call_is_given_up_and_harms_no_other(processes, tmp_path):
    other = tmp_path / ".out.mp4.1-abc.part"
    other.touch()
    deadly = Call("unfinished", (tmp_path / "out.mp4",), output_path=tmp_path / "out.mp4")
    told = list(map_calls([*doubles(range(3)), deadly, *doubles(range(3))], processes, retries=1, ordered=True))
    assert [outcome.status for _, outcome in told] == ["done"] * 3 + ["failed"] + ["done"] * 3
    assert [pending.attempts for pending, _ in told] == [1, 1, 1, 2, 1, 1, 1]
    assert "died 2 times (exit code 3)" in told[3][1].error
    assert list(tmp_path.iterdir()) == [other]  # of another run into the same path


def test_look_ahead_is_bounded(processes):
    """In order, with a caller that takes its time: no more than the workers can be kept busy with."""
    taken = []

    def calls():
        for n in range(40):
            taken.append(n)
            yield Call("double", (n,))

    listening = map_calls(calls(), processes, ordered=True)
    for seen in range(1, 6):
        next(listening)
        time.sleep(0.05)
        assert len(taken) <= seen + QUEUED * processes.size + 1
    listening.close()


def test_who_stops_listening_stops_the_work(processes, tmp_path):
    calls = [Call("double", (1,)), *(Call("wait", (tmp_path / f"{n}.txt",)) for n in range(2))]
    listening = map_calls(calls, processes)
    assert next(listening)[1].value == 2
    threading.Event().wait(0.5)
    start = time.monotonic()
    listening.close()
    assert time.monotonic() - start < 20
    assert (tmp_path / "0.txt").read_text() == "cleaned up"
    assert [o.value for _, o in map_calls(doubles([5]), processes)] == [10]


def test_a_call_that_cannot_be_read_is_a_failure(processes):
    told = list(map_calls([Call("double", (Unreadable(),)), Call("double", (3,))], processes, retries=0, ordered=True))
    assert [(outcome.status, outcome.value) for _, outcome in told] == [("failed", None), ("done", 6)]


ORPHANS = """
import sys
from pathlib import Path
from latentsync.batch.parallel.processes import ProcessPool
from latentsync.batch.parallel.worker import Call
from tests.batch.parts import Plain
if __name__ == "__main__":
    pool = ProcessPool(None, 2, Plain)
    for name in "01":
        pool.start(Call("wait", (Path(sys.argv[1]) / name,)), 1)
    pool.wait()
"""


@pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
def testworkers_of_a_killed_parent_clean_up_and_end(tmp_path):
    (script := tmp_path / "script.py").write_text(ORPHANS)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, script, tmp_path], env=environment, stderr=subprocess.PIPE)
    files = [tmp_path / f"{n}.begun" for n in "01"]
    _until(lambda: all(file.exists() for file in files))
    parent.kill()
    _until(lambda: all((tmp_path / n).exists() for n in "01"))
    assert [(tmp_path / n).read_text() for n in "01"] == ["cleaned up"] * 2
    parent.communicate(timeout=100)  # its workers hold the other end until they have ended


def _until(true):
    for _ in range(1200):
        if true():
            return
        time.sleep(0.1)
    pytest.fail("that never happened")


@pytest.mark.parametrize("kind", ["here", "processes"])
def test_programming_errors_are_logged_with_their_traceback(request, kind, caplog):
    """And errors that are for a person to read are not."""
    (_, failed), (_, refused) = map_calls([Call("fail"), Call("refuse")], request.getfixturevalue(kind), ordered=True)
    assert 'parts.py", line' in caplog.text
    assert "in fail" in caplog.text
    assert "KeyError: 'why'" in caplog.text
    assert short_traceback(failed.traceback)[-1].startswith("parts.py:")
    assert short_traceback(failed.traceback)[-1].endswith(" in fail")
    assert (refused.error, refused.traceback) == ("There is no bread; bake some.", "")
    assert "bread" not in caplog.text
