"""The control loop."""

import os
import threading

import pytest
from meles.workers.parent.control import READ, ControlLoop

DEADLINE = 80.0


@pytest.fixture
def errors():
    return []


@pytest.fixture
def loop(errors):
    loop = ControlLoop("under-test", errors.append)
    loop.start()
    yield loop
    loop.stop()
    assert loop.join(DEADLINE)


def test_calls_run_in_order_on_one_thread(loop):
    seen, done = [], threading.Event()
    for number in range(100):
        loop.call_soon(lambda number=number: seen.append((number, threading.get_ident())))
    loop.call_soon(done.set)
    assert done.wait(DEADLINE)
    assert [number for number, _ in seen] == list(range(100))
    assert {ident for _, ident in seen} != {threading.get_ident()}
    assert len({ident for _, ident in seen}) == 1


def test_timers_run_in_the_order_they_are_due(loop):
    seen, done = [], threading.Event()
    loop.call_later(0.06, lambda: (seen.append("last"), done.set()))
    loop.call_later(0.02, lambda: seen.append("middle"))
    loop.call_later(-1, lambda: seen.append("first"))
    assert done.wait(DEADLINE)
    assert seen == ["first", "middle", "last"]


def test_a_descriptor_is_served_until_it_is_forgotten(loop):
    read, write = os.pipe()
    got, first, forgotten, last = [], *(threading.Event() for _ in range(3))

    def readable(_events):
        got.append(os.read(read, 10))
        first.set()

    loop.call_soon(lambda: loop.watch(read, READ, readable))
    os.write(write, b"one")
    assert first.wait(DEADLINE)
    loop.call_soon(lambda: loop.unwatch(read))
    loop.call_soon(forgotten.set)
    assert forgotten.wait(DEADLINE)
    os.write(write, b"two")
    loop.call_later(0.01, last.set)
    assert last.wait(DEADLINE)
    assert got == [b"one"]
    os.close(read)
    os.close(write)


def test_an_error_in_a_callback_is_reported_and_the_loop_goes_on(loop, errors):
    done = threading.Event()
    loop.call_soon(lambda: 1 // 0)
    loop.call_later(0, lambda: {}["absent"])
    loop.call_later(0.001, done.set)
    assert done.wait(DEADLINE)
    assert [type(error) for error in errors] == [ZeroDivisionError, KeyError]


def test_what_was_called_before_stop_still_runs_and_nothing_after(errors):
    loop = ControlLoop("under-test", errors.append)
    seen = []
    loop.call_soon(lambda: seen.append("before start"))
    loop.start()
    loop.call_soon(lambda: loop.call_soon(lambda: seen.append("nested")))
    loop.stop()
    assert loop.join(DEADLINE)
    assert seen == ["before start", "nested"]
    assert loop.call_soon(lambda: seen.append("too late")) is False
    loop.call_later(0, lambda: seen.append("too late"))
    assert seen == ["before start", "nested"]


def test_a_callback_that_calls_itself_for_ever_does_not_keep_the_loop_alive(errors):
    loop = ControlLoop("under-test", errors.append)

    def again():
        loop.call_soon(again)

    loop.start()
    loop.call_soon(again)
    loop.stop()
    assert loop.join(DEADLINE)


def test_an_idle_loop_sleeps(loop):
    """It wakes for the timer and the call that are there, not to look around."""
    looks = []
    select = loop._selector.select
    loop._selector.select = lambda wait: looks.append(wait) or select(wait)
    done = threading.Event()
    loop.call_later(0.3, done.set)
    assert done.wait(DEADLINE)
    assert len(looks) <= 4
