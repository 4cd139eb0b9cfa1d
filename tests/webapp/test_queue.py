"""The queue: form, places, cancelling, failures, the end."""

import threading
from fractions import Fraction

import pytest

from latentsync.errors import UserError
from latentsync.webapp.queue import CANCELLED, DONE, FAILED, WAITING, Job, Queue
from latentsync.webapp.result import progress_text
from latentsync.webapp.words import MISSING, count, duration, length, plain, span, told


class Gate:
    """Work that begins, says so, and goes on when it is told to."""

    def __init__(self):
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, job):
        self.begun.set()
        assert self.go.wait(240)
        job.report("past the gate")
        return self


@pytest.fixture
def queue():
    queue = Queue(capacity=3)
    yield queue
    queue.close()


def ended(job):
    assert wait_until(lambda: job.over)
    return job


def wait_until(true, seconds=30):
    pause = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if true():
            return True
        pause.wait(0.01)
    return False


def test_one_at_a_time_in_the_order_of_coming(queue):
    gates = [Gate() for _ in range(3)]
    jobs = [queue.submit(gate) for gate in gates]
    assert gates[0].begun.wait(30)
    assert [queue.ahead(job) for job in jobs] == [0, 1, 2]
    assert not gates[1].begun.is_set()
    gates[0].go.set()
    assert gates[1].begun.wait(30)
    assert jobs[0].state == DONE
    assert jobs[0].value is gates[0]
    assert wait_until(lambda: [queue.ahead(job) for job in jobs] == [0, 0, 1])
    for gate in gates:
        gate.go.set()
    assert [ended(job).state for job in jobs] == [DONE] * 3


def test_several_at_once():
    queue, gates = Queue(concurrency=2), [Gate() for _ in range(3)]
    jobs = [queue.submit(gate) for gate in gates]
    assert gates[0].begun.wait(30)
    assert gates[1].begun.wait(30)
    assert queue.ahead(jobs[2]) == 2
    for gate in gates:
        gate.go.set()
    assert [ended(job).state for job in jobs] == [DONE] * 3
    queue.close()


def test_cancelled_while_waiting_it_never_begins(queue):
    first, second, third = Gate(), Gate(), Gate()
    running, waiting, last = queue.submit(first), queue.submit(second), queue.submit(third)
    assert first.begun.wait(30)
    waiting.cancel()
    assert not waiting.busy
    assert queue.ahead(last) == 1, "nobody waits for somebody who left"
    assert waiting.state == CANCELLED
    first.go.set()
    third.go.set()
    assert ended(last).state == DONE
    assert not second.begun.is_set()
    assert running.state == DONE


def test_cancelled_while_running_it_ends_at_its_next_word(queue):
    gate = Gate()
    job = queue.submit(gate)
    assert gate.begun.wait(30)
    job.cancel()
    assert job.busy
    assert job.stopping
    gate.go.set()
    assert ended(job).state == CANCELLED
    assert job.value is None


def test_a_failure_is_a_sentence_and_the_next_one_runs(queue, caplog):
    def wrong(job):
        raise UserError("The audio is silent; give another one.")

    def broken(job):
        raise ZeroDivisionError("secret detail")

    said, unsaid, good = queue.submit(wrong), queue.submit(broken), queue.submit(lambda job: 7)
    assert ended(good).value == 7
    assert (said.state, said.error) == (FAILED, "The audio is silent; give another one.")
    assert unsaid.state == FAILED
    assert "secret" not in unsaid.error
    assert "secret detail" in caplog.text, "who runs the app can read what it was"


def test_a_full_queue_says_so(queue):
    gate = Gate()
    running = queue.submit(gate)
    assert gate.begun.wait(30)
    waiting = [queue.submit(lambda job: 1) for _ in range(3)]
    with pytest.raises(UserError, match="3 runs are already waiting"):
        queue.submit(lambda job: 1)
    waiting[0].cancel()
    queue.submit(lambda job: 1)
    gate.go.set()
    assert ended(running).state == DONE


def test_closing_stops_everything():
    queue, gate = Queue(), Gate()
    running, waiting = queue.submit(gate), queue.submit(lambda job: 1)
    assert gate.begun.wait(30)
    gate.go.set()
    queue.close()
    assert ended(running).state in (CANCELLED, DONE)
    assert not waiting.busy or waiting.state == DONE
    with pytest.raises(UserError):
        queue.submit(lambda job: 1)


@pytest.fixture
def now(monkeypatch):
    """The time in seconds, as a list that a test changes."""
    now = [100.0]
    monkeypatch.setattr("latentsync.webapp.queue.time.monotonic", lambda: now[0])
    return now


def test_progress_in_words(now):
    job: Job[int] = Job(lambda job: 1)
    assert progress_text(job) == "Waiting for others"
    job.state = "running"
    job.report("loading")
    now[0] += 2
    job.report("track", 0, 4)
    now[0] += 2
    job.report("track", 1, 4)
    text = progress_text(job)
    assert text.startswith("Step 1 of 2: finding the face in every frame · 25 % · ")
    assert text.endswith("· 4 s so far, about 6 s left in this step")
    job.report("track", 4, 4)
    assert progress_text(job) == "Step 2 of 2: making the mouth · 0 % · 4 s so far", "it has begun, and does not say so"
    now[0] += 10
    job.report("sample", 1, 4)
    assert progress_text(job) == "Step 2 of 2: making the mouth · 25 % · 14 s so far, about 30 s left"
    now[0] += 8
    assert progress_text(job).endswith("· 22 s so far, about 22 s left"), "it counts down, not up"
    now[0] += 40
    assert progress_text(job).endswith("· 1 min 2 s so far"), "what was expected has passed: nothing is made up"
    job.report("sample", 4, 4)
    assert progress_text(job).startswith("Writing the file · "), "100 % is not the end of it"
    job.report("words of a server")
    assert progress_text(job).startswith("words of a server")
    assert job.remaining_s is None
    assert job.state != WAITING


def test_small_words():
    assert [count(number, "step") for number in (0, 1, 2)] == ["0 steps", "1 step", "2 steps"]
    assert [duration(seconds) for seconds in (0.4, 1, 23, 59.6, 65.4, 120, 3599.7, 3600, 5040)] == [
        "0 s", "1 s", "23 s", "1 min", "1 min 5 s", "2 min", "1 h", "1 h", "1 h 24 min",
    ]  # fmt: skip
    assert [span(seconds) for seconds in (0, 1, 2, 60, 90, 600, 3601)] == [
        "0 seconds", "1 second", "2 seconds", "1 minute", "1 minute 30 seconds", "10 minutes", "1 hour 1 second",
    ]  # fmt: skip
    assert [length(seconds) for seconds in (2.44, Fraction(1, 2), 600)] == ["2.4 s", "0.5 s", "10 min"]
    assert plain("a*b_[c](d)") == r"a\*b\_\[c\]\(d\)"


def test_no_command_is_shown_to_visitors():
    missing = "The face landmarker is not on this machine: type `latentsync download face-landmarker`."
    assert told(missing, owner=True) == plain(missing)
    for message in (missing, "It needs x; type: pip install x.", "type `python -m latentsync download nano`"):
        assert told(message, owner=False) == MISSING
    assert told("latentsync out.mp4 is no video.", owner=False) == plain("latentsync out.mp4 is no video.")


def test_what_was_there_before_makes_no_download_look_quick(now):
    job: Job[None] = Job(lambda job: None)
    job.report("downloading", 4e9, 5e9)
    assert job.remaining_s is None
    now[0] += 10
    job.report("downloading", 4.1e9, 5e9)
    assert job.remaining_s == pytest.approx(90)
    now[0] += 30
    assert job.remaining_s == pytest.approx(60)


def test_one_run_is_not_plural():
    queue, gate = Queue(capacity=1), Gate()
    queue.submit(gate)
    assert gate.begun.wait(30)
    queue.submit(lambda job: 1)
    with pytest.raises(UserError, match="1 run is already waiting"):
        queue.submit(lambda job: 1)
    gate.go.set()
    queue.close()
