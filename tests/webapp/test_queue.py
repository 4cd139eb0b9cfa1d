"""The queue: form, places, cancelling, failures, the end."""

import threading

import pytest

from latentsync.errors import UserError
from latentsync.webapp.queue import CANCELLED, DONE, FAILED, WAITING, Job, Queue
from latentsync.webapp.result import clock, plain, progress_text


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
        raise UserError("The sound is silent; give another one.")

    def broken(job):
        raise ZeroDivisionError("secret detail")

    said, unsaid, good = queue.submit(wrong), queue.submit(broken), queue.submit(lambda job: 7)
    assert ended(good).value == 7
    assert (said.state, said.error) == (FAILED, "The sound is silent; give another one.")
    assert unsaid.state == FAILED
    assert "secret" not in unsaid.error
    assert "secret detail" in caplog.text, "who runs the app can read what it was"


def test_a_full_queue_says_so(queue):
    gate = Gate()
    running = queue.submit(gate)
    assert gate.begun.wait(30)
    waiting = [queue.submit(lambda job: 1) for _ in range(3)]
    with pytest.raises(UserError, match="3 runs are waiting"):
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


def test_progress_in_words():
    job: Job[int] = Job(lambda job: 1)
    assert progress_text(job) == "Waiting for others"
    job.state = "running"
    job.report("sample", 3, 12)
    text = progress_text(job)
    assert text.startswith("Step 2 of 2: sampling the mouth · 3 of 12")
    assert text.endswith("left")
    job.report("words of a server")
    assert progress_text(job).startswith("words of a server")
    assert job.remaining_s is None
    assert job.state != WAITING


def test_small_words():
    assert clock(65.4) == "1:05"
    assert plain("a*b_[c](d)") == r"a\*b\_\[c\]\(d\)"
