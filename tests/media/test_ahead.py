"""Threads that work ahead: order, errors, leaving early."""

import contextvars
import threading
import time

import pytest

from latentsync.media.ahead import ahead

WHO = contextvars.ContextVar("who", default="nobody")


def test_items_come_in_order_and_only_so_many_ahead():
    made = []

    def items():
        for i in range(20):
            made.append(i)
            yield i

    taken = []
    for item in ahead(items(), 3):
        time.sleep(0.005)
        assert len(made) <= item + 1 + 3 + 1  # those that wait, and the one in hand
        taken.append(item)
    assert taken == list(range(20))


def test_what_goes_wrong_there_is_raised_here_after_what_went_well():
    def items():
        yield 1
        raise ValueError("torn")

    made = ahead(items(), 4)
    assert next(made) == 1
    with pytest.raises(ValueError, match="torn"):
        next(made)


def test_leaving_early_ends_the_thread_and_closes_its_work():
    closed, stop = [], threading.Event()

    def items():
        try:
            while True:
                yield 0
        finally:
            closed.append(stop.is_set())

    before = threading.active_count()
    made = ahead(items(), 2, stop)
    next(made)
    made.close()
    assert closed == [True]
    assert threading.active_count() == before


def test_the_thread_knows_who_is_running():
    def items():
        yield WHO.get()

    token = WHO.set("node 7")
    try:
        assert list(ahead(items(), 1)) == ["node 7"]
    finally:
        WHO.reset(token)
