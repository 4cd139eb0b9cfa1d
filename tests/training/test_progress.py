"""What is said of work that takes long: how far it is, how fast, and when it will be done."""

import pytest
import torch

from latentsync.cli import console, train
from latentsync.errors import UserError
from latentsync.models import device
from latentsync.training.distributed import make_accelerator
from latentsync.training.progress import Pace, duration


class Clock:
    """Seconds that pass when they are told to."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (48, "48 s"), (288, "4 min 48 s"), (7500, "2 h 5 min"), (273_600, "3 d 4 h"), (59.6, "1 min 0 s")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_the_rate_and_the_time_left():
    """Resumed at step 100: 40 steps in 25 s, so 360 more take 225 s."""
    clock = Clock()
    pace = Pace("step", 500, lambda line: None, done=100, clock=clock)
    assert str(pace) == "step 100 of 500"
    clock.now = 25
    pace.update(140)
    assert str(pace) == "step 140 of 500, 1.6 per second, 3 min 45 s left"
    pace.update(500)
    assert str(pace) == "step 500 of 500, 16 per second"


def test_a_line_every_ten_seconds():
    clock, told = Clock(), []
    pace = Pace("clip", 30, told.append, clock=clock)
    for done in range(1, 31):
        clock.now += 1
        pace.update(done)
    assert [line.split(",")[0] for line in told] == ["clip 10 of 30", "clip 20 of 30", "clip 30 of 30"]
    quick = Pace("clip", 3, told.append, clock=clock)
    for done in (1, 2, 3):
        quick.update(done)
    assert len(told) == 3  # nothing of what is done at once


@pytest.mark.parametrize(("terminal", "rank", "bars"), [(True, "0", 2), (True, "1", 0), (False, "0", 0)])
def test_a_bar_below_the_lines(monkeypatch, capsys, terminal, rank, bars):
    monkeypatch.setattr(console, "_terminal", lambda: terminal)
    monkeypatch.setattr(console.LinesAndBar, "PAUSE", 0.0)
    monkeypatch.setenv("RANK", rank)
    report = console.LinesAndBar()
    pace = Pace("step", 2, report, lines=False)
    pace.update(1)
    report("a line")
    pace.update(2)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("█" * 12 + "░" * 12 + " step 1 of 2") == bars  # before the line, and again below it
    assert "a line\n" in said.err
    assert said.err.endswith("\n" if not bars else "\r\033[K")  # when all is done it is gone


# ---- processes and threads -------------------------------------------------------------------------------------------


def test_one_process_where_several_were_asked_for_is_refused(monkeypatch):
    """As `accelerate launch --cpu --num_processes 2` leaves it; torchrun sets WORLD_SIZE as well."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert make_accelerator("fp32", 1, cpu=True).num_processes == 1  # one was asked for
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(UserError, match=r"asked for several processes and started one.*torchrun"):
        make_accelerator("fp32", 1, cpu=True)


@pytest.mark.parametrize(
    ("cores", "load", "free"), [(2, 0.1, 2), (2, 7.8, 1), (2, 0.9, 1), (64, 10.2, 54), (8, 0.0, 8)]
)
def test_free_cores(monkeypatch, cores, load, free):
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setattr(device.os, "getloadavg", lambda: (load, 0, 0), raising=False)
    assert device.free_cores() == free


@pytest.mark.parametrize(("threads", "limit", "wanted"), [(0, None, 1), (0, "4", 3), (2, None, 2), (2, "4", 2)])
def test_threads_of_a_run(monkeypatch, capsys, threads, limit, wanted):
    """Those that were asked for; else the environment's; else as many as cores are free."""
    monkeypatch.setattr(device, "free_cores", lambda: 1)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if limit:
        monkeypatch.setenv("OMP_NUM_THREADS", limit)
    torch.set_num_threads(3)
    train._use_free_cores(threads, cpu=True)
    assert torch.get_num_threads() == wanted
    assert ("1 of 3 threads" in capsys.readouterr().err) == (wanted == 1)
