"""Opening and closing over and over: descriptors, children, threads and mappings stay as many."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

import meles
import psutil
import pytest
from waiting import wait_until


def held():
    """Descriptors, children, threads and mappings of files, of this process."""
    gc.collect()
    me = psutil.Process()
    maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if "/db/" in line]
    return me.num_fds(), len(me.children(recursive=True)), threading.active_count(), len(maps)


def use(path, number, **options):
    """Open, make every kind of worker busy, look around, close."""
    db = meles.open(
        path, memtable_size=64 << 10, value_log_file_size=1 << 20, num_compactors=1, sync="none",
        close_timeout=60,
        **options,
    )  # fmt: skip
    for key in range(150):
        db.set(b"k%03d" % key, bytes([number]) * 600)
        db.set(b"v%03d" % key, bytes([number]) * 2000)
    assert db.get(b"v007") == bytes([number]) * 2000
    assert sum(1 for _ in db.items()) == 300
    db.stats()
    return db


def test_openings_with_workers_leave_nothing(tmp_path):
    use(tmp_path / "db", 0).close()  # imports, and caches of the interpreter
    before = held()
    for number in range(1, 13):
        assert use(tmp_path / "db", number).close().clean
    assert held() == before
    assert not os.path.exists(tmp_path / "db" / "LOCK")


def test_openings_that_fail_leave_nothing(tmp_path):
    with use(tmp_path / "db", 0) as db:
        assert db.wait_idle(60)  # files prepared ahead are open by then
        before = held()
        for _ in range(10):
            try:
                meles.open(tmp_path / "db")
            except meles.LockedError:
                continue
            raise AssertionError("opened twice")
        assert held() == before


def test_readers_that_outlive_the_handle_keep_no_process(tmp_path):
    """What a host still holds after closing, items and iterators, holds no worker and no lock."""
    use(tmp_path / "db", 0).close()
    before = held()
    db = use(tmp_path / "db", 1)
    item = next(iter(db.iterate(b"v")))
    cursor = db.items()
    next(cursor)
    assert db.close().clean
    assert held()[1:3] == before[1:3]
    with meles.open(tmp_path / "db", mode="read_only"):
        pass
    assert item.key == b"v000"
    del db, item, cursor
    assert held() == before


def gone_and_held():
    """Files that were removed and that this process still has open, or mapped."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    found = [line.split(maxsplit=5)[5] for line in maps if "/db/" in line]
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:  # the one that listed them
            continue
    return [target for target in found if "/db/" in target and target.endswith(" (deleted)")]


@pytest.mark.parametrize("workers", ["process", "thread", "inline"])
def test_files_that_are_gone_do_not_wait_for_the_cyclic_collector(tmp_path, workers):
    """It comes when it likes to, in some hosts never: nothing that has a file is in a cycle."""
    use(tmp_path / "db", 0).close()  # with what imports leave
    gc.collect()
    gc.disable()
    try:
        with use(tmp_path / "db", 1, workers=workers) as db:
            for number in range(2, 12):
                with db.update() as txn:
                    txn[b"last"] = txn.get(b"k007", b"")[:1]
                for key in range(150):
                    db.set(b"v%03d" % key, bytes([number]) * 8000)
                with db.view() as txn:
                    assert len(list(txn.items(b"v"))) == len(list(txn.keys(b"v", reverse=True)))
                assert db.get_many([b"k001", b"v001"])[1] == bytes([number]) * 8000
            db.flush(60)
            db.flatten(timeout=60)
            db.gc(0.1, timeout=60)
            wait_until(lambda: gone_and_held() == [], 60, "removed files let go of")
            stats = db.stats()
            assert stats.value_log.gc_dropped_files + stats.value_log.gc_relocated_files
    finally:
        gc.enable()
