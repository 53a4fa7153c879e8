"""Opening and closing over and over: descriptors, children, threads and mappings stay as many."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

import meles
import psutil


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


def test_thirty_openings_with_workers_leave_nothing(tmp_path):
    use(tmp_path / "db", 0).close()  # imports, and caches of the interpreter
    before = held()
    for number in range(1, 31):
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
