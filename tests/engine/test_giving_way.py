"""Background steps let others run in between, and are not kept waiting by a thread that commits.

The interpreter switches threads by itself after an interval; here that is longer than any test, so
whoever runs gave up the interpreter on purpose.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import meles
import pytest
from meles.engine.giving_way import give_way, in_background
from twins import NATIVE, needs_native_run

STEPS = 20
PATIENCE = 30.0


@pytest.fixture
def no_switching() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(2 * PATIENCE)
    yield
    sys.setswitchinterval(before)


def work(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def seen_between_steps(begin: Callable[[], None], step_seconds: float) -> set[int]:
    """What another thread sees of the steps done by one that gives way after each."""
    done = [0]
    ended = threading.Event()

    def run() -> None:
        begin()
        for _ in range(STEPS):
            work(step_seconds)
            done[0] += 1
            give_way()
        ended.set()

    seen = set()
    thread = threading.Thread(target=run)
    thread.start()
    while not ended.is_set():
        seen.add(done[0])
        time.sleep(1e-5)  # the other one needs the interpreter back
    thread.join(PATIENCE)
    return seen


@pytest.mark.usefixtures("no_switching")
def test_others_run_between_two_steps() -> None:
    assert len(seen_between_steps(in_background, 2e-4)) > STEPS // 2


@pytest.mark.usefixtures("no_switching")
def test_a_thread_that_is_not_in_the_background_goes_on() -> None:
    """Inline the work is done by the committing thread itself."""
    assert len(seen_between_steps(lambda: None, 2e-4)) <= 2


@needs_native_run
@pytest.mark.usefixtures("no_switching")
@pytest.mark.parametrize("how", ["set", "write_batch"])
def test_a_commit_hands_the_interpreter_over(tmp_path: Path, how: str) -> None:
    """One that never waits for anything keeps no background thread waiting.

    Some threads, as one that has no processor at its moment is left to the interpreter's interval.
    """
    came = []
    threads = [
        threading.Thread(target=lambda nth=nth: came.append(NATIVE.nap(0.02 * nth)))
        for nth in range(1, 20)
    ]

    def commit(db: meles.DB) -> None:
        if how == "write_batch":
            with db.write_batch() as batch:
                batch.set(b"k", b"v")
        else:
            db.set(b"k", b"v")

    with meles.open(tmp_path, workers="inline", sync="none") as db:
        for thread in threads:
            thread.start()
        for _ in range(60_000):  # the log need not grow for them, which would give it up
            if came:
                break
            work(1e-4)
            commit(db)
        there = len(came)
    for thread in threads:
        thread.join(PATIENCE)
    assert there > 0


def in_turn(nth: int) -> None:
    NATIVE.nap(1e-5)
    if nth % 2:  # a commit that waits for this one is let go, and nobody else's
        NATIVE.step_aside()


@needs_native_run
def test_many_that_nap_at_once_all_go_on(tmp_path: Path) -> None:
    naps = [threading.Thread(target=lambda: [in_turn(nth) for nth in range(50)]) for _ in range(4)]
    with meles.open(tmp_path, workers="inline", sync="none") as db:
        for thread in naps:
            thread.start()
        while any(thread.is_alive() for thread in naps):
            db.set(b"k", b"v")
    assert not any(thread.is_alive() for thread in naps)
