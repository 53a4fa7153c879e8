"""Workers without memory: refused by their own limit, or killed by the kernel for want of it.

The job is done by another, or given up on and said so; reads and commits go on meanwhile, and all
is well once there is memory again.
"""

from __future__ import annotations

import contextlib
import os
import resource
import threading
import time
from pathlib import Path

import meles
import psutil
import pytest
from waiting import wait_until

CGROUPS = Path("/sys/fs/cgroup/memory")  # of version 1; version 2 names its files otherwise
DEADLINE = 60.0
TIMES = int(os.environ.get("MELES_STARVED", "50"))
FILLS = 5  # between two jobs that are asked for
ROUNDS = 10  # of that, at most, for one death
KINDS = ("flusher", "compactor", "value_gc")
OPTIONS = {
    "memtable_size": 4 << 20, "num_memtables": 2, "base_table_size": 256 << 10,
    "base_level_size": 1 << 20, "num_level_zero_tables": 2, "value_log_file_size": 4 << 20,
    "gc_discard_ratio": 0.3, "num_compactors": 1, "sync": "none", "worker_heartbeat": 0.1,
    "write_stall_timeout": 0.5, "close_timeout": 30.0,
}  # fmt: skip


@pytest.fixture
def db(tmp_path):
    opened = meles.open(tmp_path / "db", **OPTIONS)
    yield opened
    opened.close()


def fill(db, number):
    for part in range(10):
        with db.write_batch() as batch:
            for nth in range(10):  # stays: or files die whole, unread
                batch.set(b"kept %d %d %d" % (number, part, nth), os.urandom(4000))
            for key in range(part * 40, part * 40 + 40):
                batch.set(b"k%03d" % key, b"%d/%d " % (number, key) + os.urandom(900))
                batch.set(b"v%03d" % key, b"%d/%d " % (number, key) + bytes(4000))


def expect_round(db, *numbers):
    starts = [tuple(b"%d/%d " % (number, key) for number in numbers) for key in range(400)]
    for key, start in enumerate(starts):
        assert db.get(b"k%03d" % key).startswith(start)
        assert db.get(b"v%03d" % key).startswith(start)


def worker(db, kind):
    return next(each for each in db.workers() if each.kind == kind)


def work(db, kind):
    db.flush(DEADLINE)
    if kind == "compactor":
        db.flatten(timeout=DEADLINE)
    elif kind == "value_gc":
        db.gc(0.3, timeout=DEADLINE)


class Starving:
    """Takes from each worker of a kind, as it appears, all memory it has not used yet."""

    def __init__(self, db, kind):
        self._db, self._kind = db, kind
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.starved = set()

    def _run(self):
        with contextlib.suppress(meles.ClosedError):
            while not self._over.wait(0.002):
                each = worker(self._db, self._kind)
                if each.pid is not None and each.state in ("idle", "busy"):
                    self._take(each.pid)

    def _take(self, pid):
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if pid not in self.starved:
                used = psutil.Process(pid).memory_info().vms
                _, most = resource.prlimit(pid, resource.RLIMIT_AS)
                resource.prlimit(pid, resource.RLIMIT_AS, (used, most))
                self.starved.add(pid)

    def __enter__(self):
        self._thread.start()
        wait_until(lambda: self.starved, DEADLINE)
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()
        for pid in self.starved:
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                _, most = resource.prlimit(pid, resource.RLIMIT_AS)
                resource.prlimit(pid, resource.RLIMIT_AS, (most, most))


def test_a_flusher_without_memory_is_said_so_and_heals(db, tally):
    fill(db, 0)
    db.flush(DEADLINE)
    done, number = db.stats().flushes, 1
    with Starving(db, "flusher") as starving:
        until = time.monotonic() + DEADLINE
        while db.health().status == "ok":
            assert time.monotonic() < until, "nobody said that flushing fails"
            with contextlib.suppress(meles.WriteStallError):
                fill(db, number)
                number += 1
        expect_round(db, number - 1, number)
        assert db.stats().flushes == done
        assert len(starving.starved) < 10  # it does not go round and round
    tally("worker without memory", len(starving.starved))
    wait_until(lambda: flushed(db), DEADLINE)
    wait_until(lambda: db.health().status == "ok", DEADLINE)
    fill(db, number + 1)
    expect_round(db, number + 1)
    assert db.close().clean


def flushed(db):
    try:
        db.flush(5.0)
    except (meles.WriteStallError, meles.WorkerFailedError):
        return False
    return True


@contextlib.contextmanager
def small_group(pid):
    """A group of processes with the memory this one has and next to nothing more."""
    group = CGROUPS / f"meles-test-{os.getpid()}-{pid}"
    try:
        group.mkdir()
        (group / "cgroup.procs").write_text(str(pid))
        (group / "memory.limit_in_bytes").write_text("128K")
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip(f"no memory cgroup: {error}")
    try:
        yield group
    finally:
        wait_until(lambda: (group / "cgroup.procs").read_text() == "", DEADLINE)
        group.rmdir()


def kill_for_memory(db, tally, kind, times):
    reached = filled = 0
    for _ in range(times):
        victim = wait_until(lambda: (w := worker(db, kind)).state == "idle" and w, DEADLINE)
        with small_group(victim.pid) as group:
            for _ in range(ROUNDS):  # a job may be too small to be noticed, or not needed
                for _ in range(FILLS):
                    filled += 1
                    fill(db, filled)
                    db.flush(DEADLINE)
                work(db, kind)
                if not psutil.pid_exists(victim.pid):
                    break
            if psutil.pid_exists(victim.pid):
                os.kill(victim.pid, 9)
            killed = "oom_kill 0" not in (group / "memory.oom_control").read_text()
            wait_until(lambda: worker(db, kind).pid not in (None, victim.pid), DEADLINE)  # noqa: B023
        tally(f"{kind} killed for memory", 1, killed)
        reached += killed
        expect_round(db, filled)
    assert reached, "void: there was memory enough"
    assert db.health().status == "ok"
    assert db.close().clean


@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_killed_for_memory_is_replaced(db, tally, kind):
    kill_for_memory(db, tally, kind, 1)


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("kind", KINDS)
def test_many_workers_killed_for_memory(db, tally, kind):
    kill_for_memory(db, tally, kind, TIMES)
