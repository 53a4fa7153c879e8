"""Workers that hang or die at every job: replaced or given up on; everything else goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import meles
import psutil
import pytest
from waiting import wait_until

KINDS = ("flusher", "compactor", "value_gc")
DEADLINE = 80.0
MARGIN = 40.0  # seconds over the budget: a close that waits for a hung worker takes longer

OPTIONS = {
    "memtable_size": 256 << 10,
    "base_table_size": 16 << 10,
    "base_level_size": 64 << 10,
    "level_size_multiplier": 2,
    "num_level_zero_tables": 2,
    "num_level_zero_tables_stall": 6,
    "value_log_file_size": 1 << 20,
    "gc_discard_ratio": 0.3,
    "num_compactors": 1,
    "sync": "none",
    "worker_heartbeat": 0.1,
    "close_timeout": 60.0,
}


@pytest.fixture
def opened(tmp_path):
    """Opens the directory of the test; closes what the test left open."""
    made = []

    def open_it(**options):
        made.append(meles.open(tmp_path / "db", wait=30.0, **{**OPTIONS, **options}))
        return made[-1]

    yield open_it
    for db in made:
        db.close()


def worker(db, kind):
    return next(worker for worker in db.workers() if worker.kind == kind)


def wait_for_state(db, kind, *states):
    return wait_until(lambda: (w := worker(db, kind)).state in states and w, DEADLINE)


def fill(db, rounds, *, first=0):
    """Overwrite the same keys again and again: work for every kind of worker."""
    for number in range(first, first + rounds):
        with db.write_batch() as batch:
            for key in range(100):
                batch.set(b"k%03d" % key, b"%d/%d " % (number, key) + bytes(400))
                batch.set(b"v%03d" % key, b"%d/%d " % (number, key) + bytes(4000))


def expect_round(db, number):
    for key in range(100):
        start = b"%d/%d " % (number, key)
        assert db.get(b"k%03d" % key).startswith(start)
        assert db.get(b"v%03d" % key).startswith(start)


def work(db, kind):
    """Have a job of this kind done; returns when it is."""
    if kind == "flusher":
        db.flush(DEADLINE)
    elif kind == "value_gc":
        db.flush(DEADLINE)
        db.gc(0.3, timeout=DEADLINE)
    else:
        db.flush(DEADLINE)
        db.flatten(timeout=DEADLINE)


# -- hung ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_worker_is_replaced_and_its_job_done(opened, kind):
    db = opened(worker_hang_timeout=1.0)
    hung = wait_for_state(db, kind, "idle")
    os.kill(hung.pid, signal.SIGSTOP)
    fill(db, 12)
    work(db, kind)
    fill(db, 1, first=12)
    expect_round(db, 12)
    assert worker(db, kind).pid != hung.pid
    assert worker(db, kind).restarts >= 1
    assert not psutil.pid_exists(hung.pid)
    report = db.close()
    assert report.clean, report
    assert db.health().status == "closed"


def test_workers_that_hang_without_a_job_are_replaced_too(opened):
    db = opened(worker_hang_timeout=0.5)
    hung = {kind: wait_for_state(db, kind, "idle").pid for kind in KINDS}
    for pid in hung.values():
        os.kill(pid, signal.SIGSTOP)
    for kind in KINDS:
        wait_until(lambda kind=kind: worker(db, kind).pid not in (None, hung[kind]), DEADLINE)
    fill(db, 12)
    work(db, "compactor")
    expect_round(db, 11)


def test_reads_and_commits_go_on_while_all_workers_hang(opened):
    db = opened(worker_hang_timeout=60.0, memtable_size=1 << 20)
    for kind in KINDS:
        os.kill(wait_for_state(db, kind, "idle").pid, signal.SIGSTOP)
    fill(db, 40)
    expect_round(db, 39)
    assert len(db.stats().memtables) > 1
    for kind in KINDS:
        os.kill(worker(db, kind).pid, signal.SIGCONT)
    db.flush(DEADLINE)
    expect_round(db, 39)


@pytest.mark.parametrize("kind", [*KINDS, "all"])
def test_closing_with_hung_workers_is_bounded_and_leaves_nothing(opened, tmp_path, kind):
    db = opened(worker_hang_timeout=60.0, close_timeout=2.0)
    stopped = [wait_for_state(db, each, "idle").pid for each in KINDS if kind in (each, "all")]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    fill(db, 4)
    pids = [w.pid for w in db.workers()]
    began = time.monotonic()
    report = db.close()
    assert time.monotonic() - began < 2.0 + MARGIN, report
    assert not report.clean or kind in ("compactor", "value_gc"), report
    assert not any(psutil.pid_exists(pid) for pid in pids if pid is not None)
    again = opened(workers="inline")
    expect_round(again, 3)


def test_a_second_close_draws_the_deadline_closer(opened):
    db = opened(worker_hang_timeout=600.0, close_timeout=600.0)
    for kind in KINDS:
        os.kill(wait_for_state(db, kind, "idle").pid, signal.SIGSTOP)
    fill(db, 4)
    reports = []
    closing = threading.Thread(target=lambda: reports.append(db.close()))
    closing.start()
    wait_until(lambda: db.closed, DEADLINE)
    threading.Event().wait(0.3)  # by now it waits for the first of the hung
    report = db.close(timeout=1.0)
    closing.join()
    assert reports == [report]
    assert not report.clean
    expect_round(opened(workers="inline"), 3)


def test_closing_while_workers_die_is_bounded_and_clean(opened):
    db = opened()
    for kind in KINDS:
        wait_for_state(db, kind, "idle")
    fill(db, 4)
    for each in db.workers():
        os.kill(each.pid, signal.SIGKILL)
    report = db.close()
    assert report.clean, report


def test_a_supervisor_that_slept_does_not_blame_its_workers(campaign):
    """Stopped as a whole for longer than the hang timeout: nobody is killed for that."""
    load = campaign.start(worker_hang_timeout=1.0, worker_heartbeat=0.1)
    load.expect("open")
    ready = wait_until(lambda: (states := _workers(load)) and states, DEADLINE)
    for _ in range(2):
        os.kill(load.pid, signal.SIGSTOP)
        threading.Event().wait(2.5)
        os.kill(load.pid, signal.SIGCONT)
        assert _workers(load) == ready
    campaign.stop()
    campaign.done()


def _workers(load):
    """Process ids by worker name, once all are at work."""
    load.say("workers")
    rows, status = load.reply("workers")
    if any(state not in ("idle", "busy") for *_, state in rows):
        return None
    assert status == "ok"
    return {name: pid for name, _, pid, _ in rows}


# -- dying at every job --------------------------------------------------------------------------


class Killer:
    """Kills every worker of a kind as soon as it has a job."""

    def __init__(self, db, kind):
        self._db, self._kind = db, kind
        self._over = threading.Event()
        self.kills = 0
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        with contextlib.suppress(meles.ClosedError):
            while not self._over.wait(0.0005):
                for each in self._db.workers():
                    if each.kind == self._kind and each.state == "busy" and each.pid is not None:
                        self._kill(each.pid)

    def _kill(self, pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self.kills += 1

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()


def parked(db):
    health = db.health()
    return any("given up" in reason or "parked" in reason for reason in health.reasons) and health


@pytest.mark.parametrize("kind", ["flusher", "compactor"])
def test_a_job_that_ends_every_worker_is_parked(opened, kind):
    """Reads and writes go on until memtables pile up; then writes say so, and closing is short."""
    db = opened(memtable_size=2 << 20, num_memtables=2, write_stall_timeout=0.3, close_timeout=3.0)
    wait_for_state(db, kind, "idle")
    written = 0
    with Killer(db, kind) as killer:
        stalled = False
        while not (stalled and parked(db)):
            try:
                fill(db, 1, first=written)
                written += 1
                stalled = False
            except meles.WriteStallError:
                stalled = True
        assert killer.kills >= 3
        assert parked(db).status == "degraded"
        expect_reads(db, written)
        began = time.monotonic()
        report = db.close()
        assert time.monotonic() - began < 3.0 + MARGIN, report
    again = opened(workers="inline")
    expect_reads(again, written)


def expect_reads(db, written):
    """Every key shows the last round that was acknowledged, or the one that then stalled."""
    starts = [b"%d/" % (written - 1), b"%d/" % written]
    for key in range(100):
        assert db.get(b"k%03d" % key).startswith(tuple(starts))
        assert db.get(b"v%03d" % key).startswith(tuple(starts))


def test_a_collection_that_ends_every_worker_stops_nothing_else(opened):
    db = opened(value_log_file_size=8 << 20, memtable_size=1 << 20)
    wait_for_state(db, "value_gc", "idle")
    written = 0
    with Killer(db, "value_gc"):
        until = time.monotonic() + DEADLINE
        while not parked(db):
            assert time.monotonic() < until, db.health()
            fill(db, 1, first=written)
            written += 1
        assert parked(db).status == "degraded"
        fill(db, 5, first=written)
        expect_round(db, written + 4)
        db.flush(DEADLINE)
        assert db.wait_idle(DEADLINE)
    report = db.close()
    assert report.clean, report
