"""Background steps let others run in between, and are not kept waiting by a thread that commits.

The interpreter switches threads by itself after an interval; here that is longer than any test, so
whoever runs gave up the interpreter on purpose.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import meles
import pytest
from meles.engine.giving_way import give_way, in_background, rest
from twins import NATIVE, needs_native_run

STEPS = 20
PATIENCE = 30.0
NEVER_READY = os.eventfd(0, os.EFD_CLOEXEC)
MANY_BYTES = bytes(100_000)


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


def seen_between_steps(where: AbstractContextManager[None], step_seconds: float) -> set[int]:
    """What another thread sees of the steps done by one that gives way after each."""
    done = [0]
    ended = threading.Event()

    def run() -> None:
        with where:
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
    assert len(seen_between_steps(in_background(), 2e-4)) > STEPS // 2


@pytest.mark.usefixtures("no_switching")
def test_a_thread_that_is_not_in_the_background_goes_on() -> None:
    """Inline the work is done by the committing thread itself."""
    assert len(seen_between_steps(nullcontext(), 2e-4)) <= 2


def nap() -> None:
    NATIVE.nap(0.02)


def rest_for_a_while() -> None:
    rest(NEVER_READY, 0.02)


def check_bytes() -> None:
    NATIVE.crc32c(MANY_BYTES)


def wait_unannounced() -> None:
    """A call that lets go of the interpreter and does not say so to anybody."""
    time.sleep(0.001)


def set_one(db: meles.DB) -> None:
    db.set(b"k", b"v")


def write_a_batch(db: meles.DB) -> None:
    with db.write_batch() as batch:
        batch.set(b"k", b"v")


def comes_back(path: Path, away: Callable[[], None], commit: Callable[[meles.DB], None]) -> bool:
    """Whether a background thread does that goes away often, while this one is busy and commits."""
    came = threading.Event()

    def run() -> None:
        with in_background():
            for _ in range(STEPS):
                away()
        came.set()

    thread = threading.Thread(target=run)
    with meles.open(path, workers="inline", sync="none") as db:
        thread.start()
        for _ in range(60_000):  # the log need not grow for them, which would give it up
            if came.is_set():
                break
            work(1e-4)
            commit(db)
        there = came.is_set()
    thread.join(PATIENCE)
    return there


@needs_native_run
@pytest.mark.usefixtures("no_switching")
@pytest.mark.parametrize("commit", [set_one, write_a_batch])
@pytest.mark.parametrize("away", [nap, rest_for_a_while, check_bytes, wait_unannounced])
def test_commits_let_a_background_thread_come_back(
    tmp_path: Path, away: Callable[[], None], commit: Callable[[meles.DB], None]
) -> None:
    """Commits that never wait for anything keep no background thread waiting, wherever it was."""
    assert comes_back(tmp_path, away, commit)


@needs_native_run
def test_a_background_thread_comes_back_beside_one_that_lets_go_for_a_moment(
    tmp_path: Path,
) -> None:
    """Each time it is woken, comes too late, and would wait anew."""
    with open(os.devnull, "rb", buffering=0) as source:

        def read_and_set(db: meles.DB) -> None:
            source.read(1)
            set_one(db)

        assert comes_back(tmp_path, wait_unannounced, read_and_set)


def in_turn(nth: int) -> None:
    NATIVE.nap(1e-5)
    if nth % 2:  # a commit that waits for this one is let go, and nobody else's
        NATIVE.step_aside()


def nap_often() -> None:
    with in_background():
        for nth in range(50):
            in_turn(nth)


@needs_native_run
def test_many_that_nap_at_once_all_go_on(tmp_path: Path) -> None:
    naps = [threading.Thread(target=nap_often) for _ in range(4)]
    with meles.open(tmp_path, workers="inline", sync="none") as db:
        for thread in naps:
            thread.start()
        while any(thread.is_alive() for thread in naps):
            db.set(b"k", b"v")
    assert not any(thread.is_alive() for thread in naps)
