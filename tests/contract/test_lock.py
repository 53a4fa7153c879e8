"""Lock: as `threading.Lock`, also under a Condition, a signal, and a fork."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from twins import NATIVE, needs_native

both = pytest.mark.parametrize(
    "make",
    [
        pytest.param(threading.Lock, id="python"),
        pytest.param(None if NATIVE is None else NATIVE.Lock, id="native", marks=needs_native),
    ],
)
PATIENCE = 30.0


@both
def test_one_at_a_time(make: Any) -> None:
    lock = make()
    assert lock.acquire()
    assert lock.locked()
    assert not lock.acquire(False)
    assert not lock.acquire(blocking=False)
    assert not lock.acquire(True, 0)
    assert not lock.acquire(timeout=0.01)
    lock.release()
    assert not lock.locked()
    with lock as held:
        assert held is True
        assert lock.locked()
    with pytest.raises(RuntimeError):
        lock.release()
    assert lock.acquire(timeout=PATIENCE)


@both
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((True, -2), ValueError),
        ((True, float("nan")), ValueError),
        ((False, 1), ValueError),
        ((False, 0), ValueError),
        ((True, 1e13), OverflowError),
        ((True, float("inf")), OverflowError),
        ((True, "x"), TypeError),
    ],
)
def test_timeouts_that_are_none(make: Any, arguments: tuple[Any, ...], error: Any) -> None:
    for held in (False, True):
        lock = make()
        if held:
            lock.acquire()
        with pytest.raises(error):
            lock.acquire(*arguments)
        assert lock.locked() is held


@both
def test_another_thread_may_release_it(make: Any) -> None:
    lock = make()
    lock.acquire()
    thread = threading.Thread(target=lock.release)
    thread.start()
    assert lock.acquire(timeout=PATIENCE)
    thread.join()


@both
def test_many_threads_count(make: Any) -> None:
    lock, count = make(), [0]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def add() -> None:
        for _ in range(500):
            with lock:
                seen = count[0]
                count[0] = seen + len(str(seen)) // len(str(seen))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(before)
    assert count == [2000]
    assert not lock.locked()


@both
def test_under_a_condition(make: Any) -> None:
    condition = threading.Condition(make())
    items: list[int] = []
    taken: list[int] = []

    def take() -> None:
        with condition:
            assert condition.wait_for(lambda: items, timeout=PATIENCE)
            taken.append(items.pop())

    threads = [threading.Thread(target=take) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(3):
        with condition:
            items.append(number)
            condition.notify()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [0, 1, 2]
    with pytest.raises(RuntimeError):
        condition.notify()
    with condition:
        assert not condition.wait(timeout=0.01)


@both
@pytest.mark.parametrize("timeout", [-1, PATIENCE])
def test_a_signal_ends_the_waiting(make: Any, timeout: float) -> None:
    lock = make()
    lock.acquire()

    class Interrupted(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        with pytest.raises(Interrupted):
            lock.acquire(timeout=timeout)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert lock.locked()
    lock.release()
    assert lock.acquire(False)


@both
def test_a_signal_that_is_dealt_with_goes_on_waiting(make: Any) -> None:
    lock, seen = make(), []
    lock.acquire()

    def note(*_: object) -> None:
        seen.append(1)
        if len(seen) == 3:
            lock.release()

    before = signal.signal(signal.SIGALRM, note)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        assert lock.acquire(timeout=PATIENCE)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(seen) >= 3


@both
def test_a_held_lock_in_a_forked_child(make: Any) -> None:
    """It stays held there, a new one works, and the child ends as usual."""
    lock = make()
    lock.acquire()
    child = os.fork()
    if child == 0:
        try:
            fresh = make()
            fine = not lock.acquire(False) and not lock.acquire(timeout=0.01) and fresh.acquire()
            lock.release()
            fine = fine and lock.acquire(False)
            del lock
        finally:
            os._exit(0 if fine else 1)
    deadline = time.monotonic() + PATIENCE
    while (done := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.001)
    assert done == (child, 0)
    assert lock.locked()


@both
def test_the_interpreter_ends_with_a_held_lock_and_a_waiter(make: Any) -> None:
    name = "threading.Lock" if make is threading.Lock else "k.choose({}).Lock"
    code = (
        "import threading, meles.engine.kernel as k\n"
        f"lock = {name}()\nlock.acquire()\n"
        "threading.Thread(target=lock.acquire, daemon=True).start()\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], timeout=60, check=False)
    assert done.returncode == 0
