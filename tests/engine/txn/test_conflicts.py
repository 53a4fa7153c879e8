"""Conflicts: a commit fails exactly when something it read was committed to since its snapshot."""

from __future__ import annotations

import errno
import gc
import random
import threading
import tracemalloc
from collections.abc import Callable

import meles
import pytest
from fault_fs import GROWING, FailNth, FaultDisk
from meles.engine.txn.cursor import Cursor

OpenDB = Callable[..., meles.DB]
Read = Callable[[meles.Txn], object]


@pytest.fixture(params=["memory", "flushed", "compacted"])
def filled(open_db: OpenDB, request: pytest.FixtureRequest) -> meles.DB:
    """Keys a0..a9, b0..b9, c0..c9, wherever they are."""
    db = open_db()
    for n in range(30):
        db[b"abc"[n // 10 : n // 10 + 1] + b"%d" % (n % 10)] = b"0"
    if request.param != "memory":
        db.flush()
    if request.param == "compacted":
        db.flatten()
    return db


def conflicts(
    db: meles.DB, read: Read, write: Callable[[], object], *, flush: bool = False
) -> bool:
    txn = db.update()
    read(txn)
    txn[b"result"] = b"x"
    write()
    if flush:
        db.flush()
    try:
        txn.commit()
    except meles.ConflictError:
        assert b"result" not in db
        return True
    assert db[b"result"] == b"x"
    del db[b"result"]
    return False


def take(count: int, cursor: Cursor[object]) -> None:
    for _ in range(count):
        next(cursor)


POINTS: list[tuple[str, Read, bytes, bool]] = [
    ("get", lambda t: t.get(b"a1"), b"a1", True),
    ("get", lambda t: t.get(b"a1"), b"a2", False),
    ("in", lambda t: b"a1" in t, b"a1", True),
    ("item", lambda t: t.item(b"a1"), b"a1", True),
    ("miss", lambda t: t.get(b"a1+"), b"a1+", True),
    ("miss", lambda t: t.get(b"a1+"), b"a1", False),
    ("nothing", lambda t: None, b"a1", False),
]
RANGES: list[tuple[str, Read, bytes, bool]] = [
    ("all", lambda t: list(t.keys()), b"zzz", True),
    ("all", lambda t: list(t.keys()), b"\0", True),
    ("all", lambda t: list(t.items()), b"b5", True),
    ("values", lambda t: list(t.values()), b"b5", True),
    ("items", lambda t: list(t.iterate()), b"b5", True),
    ("keys only", lambda t: list(t.iterate(keys_only=True)), b"b5", True),
    ("prefix", lambda t: list(t.keys(b"b")), b"b", True),
    ("prefix", lambda t: list(t.keys(b"b")), b"b\xff\xff", True),
    ("prefix", lambda t: list(t.keys(b"b")), b"c", False),
    ("prefix", lambda t: list(t.keys(b"b")), b"a9\xff", False),
    ("prefix of ff", lambda t: list(t.keys(b"\xff")), b"\xff\xff\xff", True),
    ("empty prefix", lambda t: list(t.keys(b"q")), b"q1", True),
    ("start", lambda t: list(t.keys(start=b"b5")), b"b5", True),
    ("start", lambda t: list(t.keys(start=b"b5")), b"b4\xff", False),
    ("stop", lambda t: list(t.keys(stop=b"b5")), b"b5", False),
    ("stop", lambda t: list(t.keys(stop=b"b5")), b"b4\xff", True),
    ("empty range", lambda t: list(t.keys(start=b"c", stop=b"b")), b"b5", False),
    ("not begun", lambda t: t.keys(), b"a0", False),
    ("one", lambda t: take(1, t.keys()), b"a0", True),
    ("one", lambda t: take(1, t.keys()), b"\0", True),
    ("one", lambda t: take(1, t.keys()), b"a0+", False),
    ("early stop", lambda t: take(5, t.keys(b"b")), b"b4", True),
    ("early stop", lambda t: take(5, t.keys(b"b")), b"b3+", True),
    ("early stop", lambda t: take(5, t.keys(b"b")), b"b4+", False),
    ("early stop", lambda t: take(5, t.keys(b"b")), b"b5", False),
    ("limit", lambda t: list(t.keys(b"b", limit=5)), b"b4", True),
    ("limit", lambda t: list(t.keys(b"b", limit=5)), b"b4+", False),
    ("limit of the whole", lambda t: list(t.keys(b"b", limit=11)), b"b9+", True),
    ("limit 0", lambda t: list(t.keys(limit=0)), b"a0", False),
    ("reverse", lambda t: list(t.keys(b"b", reverse=True)), b"b0", True),
    ("reverse", lambda t: list(t.keys(b"b", reverse=True)), b"b", True),
    ("reverse", lambda t: list(t.keys(b"b", reverse=True)), b"c", False),
    ("reverse, early", lambda t: take(3, t.keys(b"b", reverse=True)), b"b7", True),
    ("reverse, early", lambda t: take(3, t.keys(b"b", reverse=True)), b"b9+", True),
    ("reverse, early", lambda t: take(3, t.keys(b"b", reverse=True)), b"b6+", False),
    ("reverse, limit", lambda t: list(t.keys(reverse=True, limit=3)), b"c6", False),
    ("reverse, limit", lambda t: list(t.keys(reverse=True, limit=3)), b"c7", True),
    ("reverse, limit", lambda t: list(t.keys(reverse=True, limit=3)), b"d", True),
]


@pytest.mark.parametrize(
    ("what", "read", "key", "expected"), POINTS + RANGES, ids=lambda v: repr(v)[:24]
)
@pytest.mark.parametrize("flush", [False, True], ids=["in memory", "flushed meanwhile"])
def test_what_was_read_must_not_change(
    filled: meles.DB, what: str, read: Read, key: bytes, expected: bool, flush: bool
) -> None:
    assert conflicts(filled, read, lambda: filled.set(key, b"1"), flush=flush) is expected
    if key in filled:
        assert conflicts(filled, read, lambda: filled.delete(key), flush=flush) is expected


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (b"a1", True), (b"a1+", False), (b"b2+", False), (b"b3", True), (b"b3+", True),
        (b"b4+", False), (b"c", True), (b"c0", True), (b"c0+", False),
    ],
)  # fmt: skip
def test_a_moved_iterator_has_read_everything_it_was_at(
    filled: meles.DB, key: bytes, expected: bool
) -> None:
    def read(txn: meles.Txn) -> None:
        cursor = txn.keys()
        take(2, cursor)  # a0 a1
        cursor.seek(b"b3")
        take(2, cursor)  # b3 b4
        cursor.seek(b"c")
        take(1, cursor)  # c0
        cursor.close()

    assert conflicts(filled, read, lambda: filled.set(key, b"1")) is expected


def test_a_rewound_iterator_too(filled: meles.DB) -> None:
    def read(txn: meles.Txn) -> None:
        cursor = txn.keys(b"b", reverse=True)
        take(3, cursor)  # b9 b8 b7
        cursor.rewind()
        take(1, cursor)

    assert conflicts(filled, read, lambda: filled.set(b"b7", b"1"))
    assert not conflicts(filled, read, lambda: filled.set(b"b6", b"1"))


def test_a_gap_seen_by_a_seek_is_read(filled: meles.DB) -> None:
    def read(txn: meles.Txn) -> None:
        cursor = txn.keys()
        cursor.seek(b"b9+")
        take(1, cursor)  # c0

    assert conflicts(filled, read, lambda: filled.set(b"b9++", b"1"))
    assert not conflicts(filled, read, lambda: filled.set(b"b9*", b"1"))


def test_an_iterator_that_found_nothing_has_read_its_range(db: meles.DB) -> None:
    def read(txn: meles.Txn) -> None:
        assert list(txn.keys(b"q")) == []

    assert conflicts(db, read, lambda: db.set(b"q", b"1"))


def test_a_closed_iterator_can_not_read_in_secret(filled: meles.DB) -> None:
    """What an iterator gives after it was closed would be read and not covered."""
    txn = filled.update()
    cursor = txn.keys()
    cursor.close()
    assert list(cursor) == []
    for move in (lambda: cursor.seek(b"a"), cursor.rewind):
        with pytest.raises(meles.ClosedError):
            move()
    assert list(cursor) == []
    txn.discard()


def test_own_writes_are_no_reads(filled: meles.DB) -> None:
    def read(txn: meles.Txn) -> None:
        txn[b"a1"] = b"mine"
        assert txn[b"a1"] == b"mine"

    assert not conflicts(filled, read, lambda: filled.set(b"a1", b"theirs"))
    assert filled[b"a1"] == b"mine"


def test_blind_writes_never_conflict(filled: meles.DB) -> None:
    txns = [filled.update() for _ in range(5)]
    for n, txn in enumerate(txns):
        txn[b"a1"] = b"%d" % n
        txn.delete(b"b1")
    assert [txn.commit() for txn in txns] == sorted(txn.commit_ts for txn in txns)
    assert filled[b"a1"] == b"4"


def test_a_transaction_that_wrote_nothing_never_conflicts(filled: meles.DB) -> None:
    with filled.update() as update, filled.view() as view:
        for txn in (update, view):
            list(txn.items())
            txn.get(b"a1")
        filled[b"a1"] = b"1"
        assert (update.commit(), view.commit()) == (0, 0)


def test_detection_can_be_turned_off(open_db: OpenDB) -> None:
    db = open_db(detect_conflicts=False)
    assert not conflicts(db, lambda t: list(t.keys()), lambda: db.set(b"k", b"1"))
    assert not conflicts(db, lambda t: t.get(b"k"), lambda: db.set(b"k", b"1"))


def test_a_conflict_leaves_nothing_and_the_next_run_succeeds(filled: meles.DB) -> None:
    before = dict(filled.items())
    txn = filled.update()
    txn[b"new"] = txn[b"a1"]
    filled[b"a1"] = b"changed"
    ts = filled.max_version()
    with pytest.raises(meles.ConflictError):
        txn.commit()
    assert filled.max_version() == ts
    assert dict(filled.items()) == {**before, b"a1": b"changed"}
    filled.transact(lambda t: t.set(b"new", t[b"a1"]))
    assert (filled[b"new"], filled.max_version()) == (b"changed", ts + 1)


def test_a_drop_changes_what_was_read(filled: meles.DB) -> None:
    def drop() -> None:
        filled.drop_prefix(b"b", b"q")

    assert not conflicts(filled, lambda t: t.get(b"a1"), drop)
    assert not conflicts(filled, lambda t: list(t.keys(b"c")), drop)
    filled[b"b1"] = b"1"
    assert conflicts(filled, lambda t: t.get(b"b1"), drop)
    filled[b"b1"] = b"1"
    assert conflicts(filled, lambda t: list(t.keys(b"b")), drop)
    filled[b"b1"] = b"1"
    assert conflicts(filled, lambda t: list(t.keys()), filled.drop_all)


def test_phantoms_can_not_commit(db: meles.DB) -> None:
    """Two doctors: each leaves duty if another one is left. One must stay."""
    db[b"duty/a"], db[b"duty/b"] = b"", b""
    txns = [db.update(), db.update()]
    for name, txn in zip((b"duty/a", b"duty/b"), txns, strict=True):
        assert len(list(txn.keys(b"duty/"))) == 2
        del txn[name]
    txns[0].commit()
    with pytest.raises(meles.ConflictError):
        txns[1].commit()
    assert list(db.keys(b"duty/")) == [b"duty/b"]


@pytest.mark.parametrize("flushing", [False, True])
def test_money_moved_by_many_threads_stays_the_same(open_db: OpenDB, flushing: bool) -> None:
    db = open_db(memtable_size="64KiB" if flushing else "1MiB", num_memtables=50)
    accounts = [b"%02d" % n for n in range(8)]
    for account in accounts:
        db[account] = b"100"
    errors: list[BaseException] = []

    def move(seed: int) -> None:
        chance = random.Random(seed)

        def once(txn: meles.Txn) -> None:
            source, target = chance.sample(accounts, 2)
            amount = chance.randint(1, 20)
            txn[source] = b"%d" % (int(txn[source]) - amount)
            txn[target] = b"%d" % (int(txn[target]) + amount)
            txn[b"pad%d" % seed] = bytes(700)

        try:
            for _ in range(60):
                db.transact(once, retries=1000)
                with db.view() as txn:
                    assert sum(int(value) for _, value in txn.items(stop=b"pad")) == 800
        except BaseException as error:  # noqa: BLE001 - told to the test
            errors.append(error)

    threads = [threading.Thread(target=move, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert sum(int(value) for _, value in db.items(stop=b"pad")) == 800
    assert db.stats().readers == 0
    assert (db.stats().flushes > 0) == flushing


def test_a_commit_that_failed_conflicts_with_nobody(open_db: OpenDB, fault_disk: FaultDisk) -> None:
    """Badger remembers what a failed commit would have written."""
    db = open_db(value_threshold=64)
    db[b"k"] = b"old"
    with db.update() as txn:
        assert (txn[b"k"], list(txn)) == (b"old", [b"k"])
        fault_disk.plan = FailNth(1, errno.ENOSPC, sticky=True, kinds=GROWING)
        with pytest.raises(meles.DiskFullError):
            db[b"k"] = bytes(100_000)
        fault_disk.plan = None
        txn[b"l"] = b"v"
        assert txn.commit() == 2
    assert list(db.items()) == [(b"k", b"old"), (b"l", b"v")]


def test_what_conflicts_are_found_by_does_not_grow_while_a_reader_stays(open_db: OpenDB) -> None:
    """Badger keeps every commit's keys until the oldest reader has ended."""
    db = open_db(memtable_size="64KiB")
    db[b"0"] = b""
    txn = db.update()
    assert b"0" in txn

    def held_after(commits: int) -> int:
        for number in range(commits):
            with db.update() as other:
                other.get(b"%d" % (number % 500))
                other[b"%d" % (number % 500 + 1)] = b"v"
        gc.collect()
        taken = tracemalloc.take_snapshot().filter_traces(
            [tracemalloc.Filter(True, f"*/engine/{name}") for name in ("txn/*", "writer.py")]
        )
        return sum(trace.size for trace in taken.traces)

    tracemalloc.start()
    try:
        before = held_after(1000)
        assert held_after(4000) < before + 4096
    finally:
        tracemalloc.stop()
    txn[b"late"] = b""
    txn.commit()
