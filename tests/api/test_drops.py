"""`drop_all` and `drop_prefix`: gone at once for who comes later, still there for who was here."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import meles
import pytest
from checkers.threads import run_threads

OpenDB = Callable[..., meles.DB]


@pytest.fixture(params=["memory", "tables"])
def filled(request: pytest.FixtureRequest, open_db: OpenDB) -> meles.DB:
    """a0..a9, b0..b9, c0..c9; large values under every second key."""
    db = open_db(value_threshold=100)
    for name in (b"a", b"b", b"c"):
        for n in range(10):
            db[name + b"%d" % n] = name * (200 if n % 2 else 3)
    if request.param == "tables":
        db.flush()
    return db


def test_drop_prefix_removes_what_begins_so(filled: meles.DB) -> None:
    filled.drop_prefix(b"b", bytearray(b"c1"))
    expected = [b"a%d" % n for n in range(10)] + [b"c%d" % n for n in range(10) if n != 1]
    for _ in range(2):
        assert list(filled) == list(filled.keys(reverse=True))[::-1] == expected
        assert (filled.get(b"b1"), b"b2" in filled, filled.get_many([b"c1", b"a1"])) == (
            None, False, [None, b"a" * 200],
        )  # fmt: skip
        assert list(filled.iterate(b"b", all_versions=True)) == []
        filled.flush()
        filled.flatten()


def test_drop_all_removes_everything_and_keeps_time_and_options(filled: meles.DB) -> None:
    """Badger's timestamps begin again after the next open."""
    before = filled.max_version()
    filled.drop_all()
    assert list(filled) == []
    assert filled.max_version() > before
    filled[b"a1"] = b"new"
    assert list(filled.items()) == [(b"a1", b"new")]
    assert filled.options.value_threshold == 100


def test_a_drop_lasts(open_db: OpenDB) -> None:
    with open_db() as db:
        db[b"a"], db[b"b"] = b"v", b"v"
        db.drop_prefix(b"a")
        version = db.max_version()
    with open_db() as db:
        assert list(db) == [b"b"]
        assert db.max_version() >= version
        db[b"a"] = b"again"
    with open_db() as db:
        assert list(db) == [b"a", b"b"]
        db.drop_all()
        version = db.max_version()
    with open_db() as db:
        assert list(db) == []
        assert db.max_version() >= version


def test_snapshots_older_than_a_drop_keep_seeing_its_data(filled: meles.DB) -> None:
    with filled.view() as old, filled.update() as writing:
        cursor = filled.items()
        first = next(cursor)
        before = list(old.items())
        filled.drop_prefix(b"a")
        filled.drop_all()
        for _ in range(2):
            assert list(old.items()) == before
            assert old[b"a1"] == b"a" * 200
            assert b"c9" in old
            assert list(writing.keys()) == [key for key, _ in before]
            filled.flush()
            filled.gc(0.01)
            filled.flatten()
        assert [first, *cursor] == before
        with filled.view(at=old.read_ts) as again:
            assert list(again.items()) == before
    assert list(filled) == []


def test_readers_are_never_blocked(filled: meles.DB) -> None:
    """Badger holds its lock for the whole call; here a drop waits for nobody but writers."""
    stop = threading.Event()
    seen: list[int] = []

    def read() -> None:
        while not stop.is_set():
            seen.append(len(list(filled.keys(b"a"))))

    reader = threading.Thread(target=read)
    reader.start()
    filled.drop_prefix(b"a")
    stop.set()
    reader.join(30)
    assert set(seen) <= {0, 10}


def test_a_drop_gives_the_space_back(open_db: OpenDB, tmp_path: Path) -> None:
    db = open_db(value_log_file_size="1MiB")
    for n in range(100):
        db[b"%02d" % n] = bytes(50_000)
    db.drop_all()
    db.flush()
    db.gc(0.5)
    db.wait_idle()
    assert sum(path.stat().st_size for path in (tmp_path / "db").glob("*.vlog")) < 2 << 20
    assert db.tables() == []


def test_a_drop_conflicts_with_who_has_read_it(filled: meles.DB) -> None:
    txn = filled.update()
    txn.get(b"a1")
    txn[b"z"] = b"v"
    filled.drop_prefix(b"a")
    with pytest.raises(meles.ConflictError):
        txn.commit()


def test_drop_prefix_takes_at_least_one(db: meles.DB) -> None:
    db[b"k"] = b"v"
    with pytest.raises(ValueError, match="drop_all"):
        db.drop_prefix()
    assert list(db) == [b"k"]
    db.drop_prefix(b"absent", b"x" * 65_001, b"x" * 1_000_000)
    assert list(db) == [b"k"]
    db.drop_prefix(b"")
    assert list(db) == []


def test_very_many_prefixes_at_once(open_db: OpenDB) -> None:
    """More than one compaction can carry out: each gets further, and there is an end."""
    db = open_db()
    keys = [b"k%04d" % n for n in range(1000)]
    with db.write_batch() as batch:
        for key in keys:
            batch[key] = b"v"
    db.flush()
    db.drop_prefix(*keys[1:])
    assert db.wait_idle(timeout=60)
    assert list(db) == keys[:1]
    assert sum(table.entries for table in db.tables()) == 1


def test_writers_go_on_while_something_is_dropped(open_db: OpenDB) -> None:
    """Badger refuses their commits meanwhile. Here each is before the drop or after it."""
    db = open_db(workers="thread", memtable_size="64KiB")
    done = threading.Event()

    def write(number: int) -> Callable[[], None]:
        def loop() -> None:
            for step in range(300):
                db[b"%d/%03d" % (number, step)] = b"v" * 100

        return loop

    def drop() -> None:
        while not done.is_set():
            db.drop_all()
            db.drop_prefix(b"0/", b"1/")

    def write_all() -> None:
        try:
            run_threads([write(number) for number in range(3)])
        finally:
            done.set()

    run_threads([write_all, drop])
    db[b"2/300"] = b"after the drops"
    assert b"2/300" in db
