"""`flush`, `sync`, `wait_idle`, `flatten`, `gc`: what holds when they return, and timeouts."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import meles
import pytest
from waiting import wait_until

OpenDB = Callable[..., meles.DB]
BLOCKING = ("flush", "wait_idle", "flatten", "gc", "close")


def test_flush_puts_the_active_memtable_on_level_zero(db: meles.DB) -> None:
    for n in range(10):
        db[b"%d" % n] = b"v"
    db.flush()
    assert db.levels()[0].tables == 1
    assert db.tables()[0].entries == 10
    assert [memtable.keys for memtable in db.stats().memtables] == [0]
    db.flush()  # nothing to do
    assert db.stats().flushes == 1


@pytest.mark.parametrize("workers", ["inline", "thread", "process"])
def test_what_is_flushed_needs_no_log(open_db: OpenDB, workers: str) -> None:
    db = open_db(workers=workers)
    db[b"k"] = b"v" * 5000
    db.flush(timeout=timedelta(seconds=60))
    assert db.levels()[0].tables == 1
    assert db[b"k"] == b"v" * 5000


def test_sync_covers_everything_acknowledged(open_db: OpenDB) -> None:
    """Badger's covers the current value log only."""
    db = open_db(sync="none")
    assert db.stats().syncs == 0
    db[b"k"] = b"v"
    db.sync()
    assert db.stats().syncs == 1
    db.sync()  # nothing new
    assert db.stats().syncs == 1


def test_wait_idle(open_db: OpenDB) -> None:
    db = open_db(workers="thread", memtable_size="64KiB", num_level_zero_tables=1)
    for n in range(3000):
        db[b"%04d" % n] = b"v" * 100
    assert db.wait_idle(timeout=60) is True
    assert db.stats().flushes > 0
    assert all(info.state == "idle" for info in db.workers())
    assert db.wait_idle(timeout=0) is True


def test_flatten_leaves_at_most_one_level_with_data(open_db: OpenDB) -> None:
    db = open_db(base_table_size="64KiB", base_level_size="64KiB", num_level_zero_tables=2)
    for round_number in range(6):
        for n in range(300):
            db[b"%03d" % n] = b"%d" % round_number * 100
        db.flush()
    db.flatten(workers=3, timeout=60)
    assert sum(level.tables > 0 for level in db.levels()) == 1
    assert db.levels()[0].tables == 0
    assert db[b"007"] == b"5" * 100
    empty = open_db(None, mode="memory")
    empty.flatten()


# -- gc ------------------------------------------------------------------------------------------


def test_gc_runs_until_no_file_qualifies_and_tells_of_each(open_db: OpenDB) -> None:
    """Badger does one file at most, of its choice, and calls nothing to do an error."""
    db = open_db(value_log_file_size="1MiB", gc=False)
    nothing = db.gc()
    assert isinstance(nothing, meles.GCReport)
    assert (nothing.rewritten, nothing.freed_bytes) == (0, 0)
    for round_number in range(3):
        for n in range(60):
            db[b"%02d" % n] = bytes([round_number]) * 40_000
        db.flush()
    db[b"00"] = b"small"
    db.flush()
    db.flatten()
    before = db.size().value_log_bytes
    report = db.gc(0.3, timeout=60)
    assert report.freed_bytes > 0
    assert db.size().value_log_bytes <= before - report.freed_bytes
    assert report.examined == len(report.files)
    for file_id, outcome, reason in report.files:
        assert isinstance(file_id, int)
        assert outcome in ("kept", "dropped", "rewritten")
        assert reason
    outcomes = [outcome for _, outcome, _ in report.files]
    assert report.rewritten == outcomes.count("rewritten")
    assert "dropped" in outcomes
    again = db.gc(0.3)
    assert (again.rewritten, again.freed_bytes) == (0, 0)
    assert {outcome for _, outcome, _ in again.files} <= {"kept"}
    assert db[b"07"] == bytes([2]) * 40_000


def test_deleted_keys_do_not_come_back(open_db: OpenDB) -> None:
    """Badger's collection re-inserts, so that they may (#2286)."""
    db = open_db(value_log_file_size="1MiB", num_versions_to_keep=1)
    for n in range(60):
        db[b"%02d" % n] = bytes(40_000)
    db.flush()
    for n in range(0, 60, 2):
        db.delete(b"%02d" % n)
    expected = [b"%02d" % n for n in range(1, 60, 2)]
    for step in (db.flush, lambda: db.gc(0.1), db.flatten, lambda: db.gc(0.01)):
        step()
        assert list(db) == expected
        assert b"02" not in db


@pytest.mark.parametrize("ratio", [0, 1, -0.5, 1.5, float("nan"), "0.5", None, True, [], 10**400])
def test_other_ratios_are_config_errors(db: meles.DB, ratio: Any) -> None:
    with pytest.raises(meles.ConfigError, match="discard_ratio"):
        db.gc(ratio)


def test_the_timeout_of_gc_is_a_keyword(db: meles.DB) -> None:
    with pytest.raises(TypeError):
        db.gc(0.5, 10)  # type: ignore[misc]


@pytest.mark.parametrize("call", ["gc", "flatten"])
def test_several_callers_at_once_all_come_back(open_db: OpenDB, call: str) -> None:
    db = open_db(workers="thread", memtable_size="256KiB", value_log_file_size="1MiB")
    for n in range(300):
        db[b"%03d" % (n % 50)] = bytes(20_000)
    came_back: list[object] = []
    threads = [
        threading.Thread(target=lambda: came_back.append(getattr(db, call)(timeout=60)))
        for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert len(came_back) == 5


# -- timeouts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BLOCKING)
def test_every_call_that_can_block_takes_a_timeout(db: meles.DB, name: str) -> None:
    assert inspect.signature(getattr(db, name)).parameters["timeout"].default is None
    for timeout in (60, 60.0, timedelta(seconds=60), None, 1e300, float("inf"), 10**400):
        getattr(db, name)(timeout=timeout)


@pytest.mark.parametrize("name", BLOCKING)
@pytest.mark.parametrize("timeout", ["1", True, [], object(), float("nan")])
def test_a_timeout_is_seconds(db: meles.DB, name: str, timeout: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="timeout"):
        getattr(db, name)(timeout=timeout)
    assert not db.closed


@pytest.mark.parametrize("timeout", [0, -1, timedelta(0), timedelta(-1)])
def test_a_deadline_that_has_passed_is_a_timeout(open_db: OpenDB, timeout: Any) -> None:
    db = open_db(workers="thread")
    db[b"k"] = b"v"
    with pytest.raises(meles.WriteStallError, match="flush"):
        db.flush(timeout=timeout)
    db.flush(timeout=60)
    assert db.levels()[0].tables == 1


@pytest.mark.parametrize("call", ["flush", "flatten", "gc", "wait_idle"])
def test_closing_wakes_who_waits_with_closed_error(open_db: OpenDB, call: str) -> None:
    db = open_db(workers="thread", memtable_size="64KiB", num_memtables=2)
    outcome: list[object] = []
    stop = threading.Event()

    def write() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            try:
                db[b"%d" % (n % 5000)] = b"v" * 200
            except meles.ClosedError:
                return

    def wait() -> None:
        try:
            while True:
                outcome.append(getattr(db, call)())
        except meles.Error as error:
            outcome.append(type(error))

    threads = [threading.Thread(target=write), threading.Thread(target=wait)]
    for thread in threads:
        thread.start()
    wait_until(lambda: db.stats().flushes >= 2)
    db.close()
    stop.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert outcome[-1] is meles.ClosedError


def test_care_leaves_the_directory_tidy(open_db: OpenDB, tmp_path: Path) -> None:
    db = open_db(memtable_size="64KiB", value_log_file_size="1MiB")
    for n in range(2000):
        db[b"%03d" % (n % 300)] = b"v" * 2000
    db.flush()
    db.flatten()
    db.gc(0.1)
    assert db.wait_idle(timeout=60)
    named = {f"{table.id:06d}.sst" for table in db.tables()}
    found = {path.name for path in (tmp_path / "db").glob("*.sst")}
    assert found == named
    assert not list((tmp_path / "db").glob("*.new"))
