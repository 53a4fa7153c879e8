"""The write path at its edges: rotation, stalls, the value log's end, several threads."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import meles
import pytest
from fault_fs import FailNth, FaultDisk
from meles.engine.fs.names import Kind, parse_name
from waiting import wait_until

OpenDB = Callable[..., meles.DB]


@pytest.fixture
def open_db(tmp_path: Path) -> Iterator[OpenDB]:
    with ExitStack() as opened:

        def make(**options: Any) -> meles.DB:
            given = {"workers": "inline", "sync": "none", "memtable_size": "64KiB", **options}
            return opened.enter_context(meles.open(tmp_path / "db", **given))

        yield make


@dataclass
class Hold:
    """Keeps every operation of a kind on files of an ending waiting until it is let go."""

    kind: str
    ending: str
    entered: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)

    def __call__(self, kind: str, name: str) -> None:
        if kind == self.kind and name.endswith(self.ending):
            self.entered.set()
            assert self.release.wait(60)


def names(db: meles.DB, kind: Kind) -> list[int]:
    found = (parse_name(name) for name in os.listdir(db.path))
    return sorted(parsed[1] for parsed in found if parsed is not None and parsed[0] is kind)


# -- rotation ------------------------------------------------------------------------------------


def test_a_full_memtable_is_flushed(open_db: OpenDB) -> None:
    db = open_db()
    for n in range(200):
        db[b"%03d" % n] = bytes(900)
    stats = db.stats()
    assert stats.flushes == 2
    assert stats.entries_written == 200
    assert stats.bytes_written == 200 * 903
    assert names(db, Kind.WAL) == [3]
    (active,) = stats.memtables
    flushed = sum(table.entries for table in db.tables())
    assert (active.id, active.state) == (3, "active")
    assert active.records == active.keys == 200 - flushed
    assert active.bytes < 64 << 10 < 900 * flushed


def test_flush_puts_everything_onto_tables(open_db: OpenDB) -> None:
    db = open_db()
    db.flush()
    assert db.tables() == []
    db[b"k"] = b"v"
    db.flush()
    db.flush(timeout=0)
    assert [table.entries for table in db.tables()] == [1]
    assert db[b"k"] == b"v"


def test_a_transaction_larger_than_what_is_left_stays_whole(open_db: OpenDB) -> None:
    db = open_db()
    for n in range(64):
        db[b"%02d" % n] = bytes(990)
    with db.update() as txn:
        for n in range(9):
            txn[b"txn%d" % n] = bytes(990)
    assert len(list(db.keys(b"txn"))) == 9
    assert {item.version for item in db.iterate(b"txn")} == {65}


# -- stalls --------------------------------------------------------------------------------------


def test_a_writer_waits_for_room_and_goes_on(open_db: OpenDB, fault_disk: FaultDisk) -> None:
    db = open_db(workers="thread", num_memtables=1)
    db.wait_idle()
    fault_disk.before = hold = Hold("create", ".sst")

    def write() -> None:
        for n in range(300):
            db[b"%03d" % n] = bytes(900)

    writer = threading.Thread(target=write)
    writer.start()
    assert hold.entered.wait(60)
    wait_until(lambda: db._control._writer.counters.stalls == 1)  # type: ignore[attr-defined]
    assert db[b"000"] == bytes(900)  # readers wait for nobody
    hold.release.set()
    writer.join(60)
    fault_disk.before = None
    assert len(list(db.keys())) == 300
    stalls = db.stats().stalls
    assert stalls.count >= 1
    assert 0 < stalls.longest <= stalls.seconds


def test_writers_are_slowed_down_before_they_are_stopped(open_db: OpenDB) -> None:
    """Half of the sealed memtables there may be wait: delays come, and stats() shows them."""
    db = open_db(workers="process", num_memtables=6, write_stall_timeout=0.05)
    flusher = wait_until(lambda: [w.pid for w in db.workers() if w.state == "idle" and
                                  w.kind == "flusher"])[0]  # fmt: skip
    assert flusher is not None
    os.kill(flusher, signal.SIGSTOP)
    seen: list[tuple[int, int]] = []
    with pytest.raises(meles.WriteStallError):  # noqa: PT012
        for n in range(3_000):
            db[b"%04d" % n] = bytes(900)
            stalls = db.stats().stalls
            seen.append((stalls.slowdowns, stalls.count))
    os.kill(flusher, signal.SIGCONT)
    assert seen[0] == (0, 0)
    assert seen[-1][0] >= 3, "no delays before the stop"
    assert [count for _, count in seen] == [0] * len(seen)  # stopped only at the very end
    stalls = db.stats().stalls
    assert stalls.count == 1
    assert stalls.slowdown_seconds >= stalls.slowdowns * 0.001
    wait_until(lambda: len(db.stats().memtables) == 1)
    slowed = db.stats().stalls.slowdowns
    db[b"after"] = bytes(900)
    assert db.stats().stalls.slowdowns == slowed  # the delay ends with its reason


class SlowToSay(list[Any]):
    """An empty list of hooks that says so only when it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()
        self.release = threading.Event()

    def __bool__(self) -> bool:
        self.asked.set()
        assert self.release.wait(60)
        return False


def test_whether_plain_commits_may_pass_is_no_answer_from_before(open_db: OpenDB) -> None:
    """One thread is about to let them pass while another ends writing."""
    writer = open_db()._engine.writer
    hooks = SlowToSay()
    first = threading.Thread(target=writer.set_hooks, args=(hooks, []))
    second = threading.Thread(target=writer.fail, args=(OSError(errno.EIO, "for good"),))
    first.start()
    assert hooks.asked.wait(60)
    second.start()
    second.join(0.2)  # it ends, if nothing holds it
    hooks.release.set()
    first.join(60)
    second.join(60)
    assert writer.ended
    assert not writer.plain.open


def test_a_writer_waits_no_longer_than_it_is_told_to(
    open_db: OpenDB, fault_disk: FaultDisk
) -> None:
    db = open_db(workers="thread", num_memtables=1, write_stall_timeout=0.05)
    db.wait_idle()
    fault_disk.before = hold = Hold("create", ".sst")
    written = 0
    with pytest.raises(meles.WriteStallError, match="memtables wait") as caught:  # noqa: PT012
        for n in range(300):
            db[b"%03d" % n] = bytes(900)
            written += 1
    assert isinstance(caught.value, TimeoutError)
    with pytest.raises(meles.WriteStallError):
        db.flush(timeout=0.05)
    assert len(list(db.keys())) == written
    hold.release.set()
    fault_disk.before = None
    wait_until(lambda: not _stalled(db))
    assert len(list(db.keys())) == written + 1


def test_flush_waits_as_long_as_it_was_told_and_not_as_a_writer(
    open_db: OpenDB, fault_disk: FaultDisk
) -> None:
    db = open_db(workers="thread", num_memtables=1, write_stall_timeout=0.01)
    db.wait_idle()
    fault_disk.before = hold = Hold("create", ".sst")
    with pytest.raises(meles.WriteStallError):  # noqa: PT012
        for n in range(300):
            db[b"%03d" % n] = bytes(900)
    failed: list[Exception] = []

    def flush() -> None:
        try:
            db.flush(timeout=60)
        except meles.Error as error:
            failed.append(error)

    stalls = db.stats().stalls.count
    flusher = threading.Thread(target=flush)
    flusher.start()
    wait_until(lambda: db._control._writer.counters.stalls > stalls)  # type: ignore[attr-defined]
    with pytest.raises(meles.WriteStallError):  # the writer's patience ends before the flush's
        db[b"more"] = bytes(40 << 10)
    hold.release.set()
    fault_disk.before = None
    flusher.join(60)
    assert failed == []
    assert [memtable.records for memtable in db.stats().memtables] == [0]


def _stalled(db: meles.DB) -> bool:
    try:
        db[b"again"] = b"x"
    except meles.WriteStallError:
        return True
    return False


def test_closing_frees_a_writer_that_waits(open_db: OpenDB, fault_disk: FaultDisk) -> None:
    db = open_db(workers="thread", num_memtables=1)
    db.wait_idle()
    fault_disk.before = hold = Hold("create", ".sst")
    errors: list[BaseException] = []
    written: list[bytes] = []

    def write() -> None:
        try:
            for n in range(300):
                db[b"%03d" % n] = bytes(900)
                written.append(b"%03d" % n)
        except meles.Error as error:
            errors.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    assert hold.entered.wait(60)
    wait_until(lambda: db._control._writer.counters.stalls == 1)  # type: ignore[attr-defined]
    closer = threading.Thread(target=db.close)
    closer.start()
    writer.join(60)
    hold.release.set()
    closer.join(60)
    fault_disk.before = None
    assert [type(error) for error in errors] == [meles.ClosedError]
    db = open_db()
    assert list(db.keys()) == written


@pytest.mark.parametrize("compact", [False, True])
def test_several_threads_may_drive_one_inline_database(open_db: OpenDB, compact: bool) -> None:
    """Whoever finds no room while another thread flushes waits for it, and is not refused."""
    db = open_db(num_memtables=1, num_level_zero_tables=2, num_level_zero_tables_stall=3)
    errors: list[BaseException] = []
    begin = threading.Barrier(4)

    def write(nth: int) -> None:
        try:
            begin.wait()
            for n in range(150):
                db[b"%d.%03d" % (nth, n)] = bytes(900)
                if n % 20 == nth:
                    db.flush()
                if compact and n % 50 == nth:
                    assert db.wait_idle(60)
        except BaseException as error:  # noqa: BLE001 - told to the test
            errors.append(error)

    threads = [threading.Thread(target=write, args=(nth,)) for nth in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert len(list(db.keys())) == 600
    assert db.verify().ok


# -- the value log's end -------------------------------------------------------------------------


def test_value_log_files_are_sealed_when_they_are_full(open_db: OpenDB) -> None:
    db = open_db(value_log_max_entries=10, gc=False)
    for n in range(35):
        db[b"%02d" % n] = b"%02d" % n * 600
    sealed = [vlog.sealed for vlog in db._store.version.vlogs]
    assert sealed == [True, True, True, False]
    assert [vlog.entries for vlog in db._store.version.vlogs][:3] == [10, 10, 10]
    assert [value[:2] for value in db.values()] == [b"%02d" % n for n in range(35)]


def test_a_transaction_goes_to_one_value_log_file(open_db: OpenDB) -> None:
    db = open_db(value_log_max_entries=10, gc=False)
    for count in (4, 8, 12, 1):
        with db.update() as txn:
            for n in range(count):
                txn[b"%d.%d" % (count, n)] = bytes(2000)
    db.flush()
    db.close()
    db = open_db(gc=False)
    assert [vlog.entries for vlog in db._store.version.vlogs] == [4, 8, 12, 1]


def test_values_that_a_failed_commit_left_are_never_seen(
    open_db: OpenDB, fault_disk: FaultDisk
) -> None:
    """The value is in the value log, its record found no room in the log."""
    db = open_db(value_threshold=1000, memtable_size="1MiB")
    db[b"before"] = bytes(2000)
    for n in range(70):
        db[b"%02d" % n] = bytes(900)  # the log has to grow next
    fault_disk.plan = FailNth(1, errno.ENOSPC, sticky=True, kinds=frozenset({"allocate"}))
    refused = 0
    for n in range(90):
        with db.update() as txn:
            txn[b"x%02d" % n] = bytes(2000)
            for k in range(20):
                txn[b"y%02d.%d" % (n, k)] = bytes(900)
            try:
                txn.commit()
            except meles.DiskFullError:
                refused += 1
                break
    ts = db.max_version()
    assert refused == 1
    assert db.get(b"x%02d" % n) is None
    fault_disk.plan = None
    db[b"after"] = b"v" * 2000
    assert db.max_version() == ts + 1
    assert db[b"after"] == b"v" * 2000
    db.close()
    db = open_db()
    assert db.get(b"x%02d" % n) is None
    assert db[b"after"] == b"v" * 2000
    assert db.verify(values=True).ok


# -- ids -----------------------------------------------------------------------------------------


def test_ids_are_never_used_twice(open_db: OpenDB) -> None:
    """Not of files that are gone, and not after reopening."""
    seen: dict[Kind, set[int]] = {kind: set() for kind in Kind}
    for _ in range(3):
        db = open_db(value_log_max_entries=3)
        before = {kind: set(ids) for kind, ids in seen.items()}
        for n in range(30):
            db[b"%02d" % (n % 7)] = bytes(3000)
            if n % 5 == 0:
                db.flush()
            for kind in (Kind.TABLE, Kind.VLOG):
                seen[kind].update(names(db, kind))
        db.flatten()
        seen[Kind.TABLE].update(names(db, Kind.TABLE))
        db.close()
        for kind in (Kind.TABLE, Kind.VLOG):
            fresh = seen[kind] - before[kind]
            assert not before[kind] or min(fresh) > max(before[kind])


def test_a_file_a_job_needs_stays_until_the_job_lets_go(open_db: OpenDB) -> None:
    db = open_db()
    db[b"k"] = b"v"
    db.flush()
    store = db._store
    (table,) = names(db, Kind.TABLE)
    store.pin([(Kind.TABLE, table), (Kind.TABLE, table)])
    db[b"k"] = b"w"
    db.flush()
    db.flatten()
    assert table in names(db, Kind.TABLE)
    assert table not in store.version.tables
    store.unpin([(Kind.TABLE, table)])
    assert table in names(db, Kind.TABLE)
    store.unpin([(Kind.TABLE, table)])
    assert table not in names(db, Kind.TABLE)


def test_a_file_that_can_not_be_removed_is_removed_at_the_next_opening(
    open_db: OpenDB, fault_disk: FaultDisk
) -> None:
    db = open_db()
    db[b"k"] = b"v"
    fault_disk.plan = FailNth(1, sticky=True, kinds=frozenset({"unlink"}))
    db.flush()
    db[b"k"] = b"w"
    db.flush()
    db.flatten()
    fault_disk.plan = None
    assert db.health().status == "ok"
    assert len(names(db, Kind.WAL)) == 3
    assert len(names(db, Kind.TABLE)) == 3
    db.close()
    db = open_db()
    assert db[b"k"] == b"w"
    assert len(names(db, Kind.TABLE)) == 1
    assert db.stats().recovery.removed_files == 4


# -- syncing by time -----------------------------------------------------------------------------


def test_an_idle_database_does_not_sync(open_db: OpenDB) -> None:
    db = open_db(sync="interval", sync_interval=0.001)
    db[b"k"] = b"v"
    wait_until(lambda: db.stats().syncs > 0)
    syncs = db.stats().syncs
    end = time.monotonic() + 0.1
    wait_until(lambda: time.monotonic() > end)
    assert db.stats().syncs == syncs
