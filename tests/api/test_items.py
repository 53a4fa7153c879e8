"""`Item`: its fields, exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import meles
import pytest

OpenDB = Callable[..., meles.DB]


def item_of(txn: meles.Txn, key: bytes = b"k") -> meles.Item:
    item = txn.item(key)
    assert item is not None
    return item


@pytest.mark.parametrize("flushed", [False, True])
@pytest.mark.parametrize("size", [0, 3, 5000])
def test_the_fields_of_an_item(db: meles.DB, clock: Any, flushed: bool, size: int) -> None:
    db[b"before"] = b"x"
    before = clock.now
    db.set(b"k", b"v" * size, ttl=100, meta=7)
    if flushed:
        db.flush()
    with db.view() as txn:
        for item in (item_of(txn), *txn.iterate(b"k"), *txn.iterate(b"k", keys_only=True)):
            assert (item.key, item.value, item.value_size) == (b"k", b"v" * size, size)
            assert (item.version, item.meta, item.deleted) == (2, 7, False)
            assert before + 100 <= item.expires_at <= clock.now + 100.001
            assert "vvv" not in repr(item)


def test_never_is_0(db: meles.DB) -> None:
    db[b"k"] = b"v"
    with db.view() as txn:
        assert item_of(txn).expires_at == 0


def test_an_absent_key_has_no_item(db: meles.DB) -> None:
    db[b"gone"] = b"v"
    db.delete(b"gone")
    with db.view() as txn:
        assert (txn.item(b"absent"), txn.item(b"gone")) == (None, None)


def test_a_pending_item_has_the_version_of_the_snapshot(db: meles.DB) -> None:
    db[b"a"] = b"1"
    db[b"b"] = b"2"
    with db.update() as txn:
        txn.set(b"k", b"v" * 5000, meta=9, ttl=1000)
        item = item_of(txn)
        assert (item.version, txn.read_ts, txn.commit_ts) == (2, 2, 0)
        assert (item.value, item.value_size, item.meta, item.deleted) == (
            b"v" * 5000, 5000, 9, False,
        )  # fmt: skip
        assert item.expires_at > 0
        (iterated,) = txn.iterate(b"k")
        assert (iterated.version, iterated.value_size) == (2, 5000)
    assert [found.version for found in db.iterate(b"k")] == [3]


def test_deleted_is_true_for_tombstones_and_expired_entries(db: meles.DB, clock: Any) -> None:
    db[b"gone"] = b"v"
    db.delete(b"gone")
    db.set(b"old", b"v", ttl=1)
    db[b"there"] = b"v"
    clock.turn(2)
    found = [(i.key, i.version, i.deleted, i.value) for i in db.iterate(all_versions=True)]
    assert found == [
        (b"gone", 2, True, b""), (b"gone", 1, False, b"v"), (b"old", 3, True, b"v"),
        (b"there", 4, False, b"v"),
    ]  # fmt: skip


def test_the_value_is_read_when_it_is_asked_for(open_db: OpenDB) -> None:
    """An item outlives its step of the iterator, flush, compaction and collection."""
    db = open_db(value_log_file_size="1MiB")
    for n in range(50):
        db[b"%02d" % n] = b"%02d" % n * 20_000
    with db.view() as txn:
        items = list(txn.iterate())
        db.drop_all()
        db.flush()
        db.gc(0.01)
        db.flatten()
        for n, item in enumerate(items):
            assert item.value_size == 40_000
            assert item.value == b"%02d" % n * 20_000


def test_the_value_of_an_item_after_closing_is_not_made_up(db: meles.DB) -> None:
    db[b"k"] = b"v" * 5000
    db.flush()
    (item,) = db.iterate()
    db.close()
    try:
        assert item.value == b"v" * 5000
    except meles.ClosedError:
        pass


def test_what_an_item_says_of_the_versions_before_it(open_db: OpenDB) -> None:
    db = open_db(num_versions_to_keep=10)
    db[b"k"] = b"1"
    db.set(b"k", b"2", discard_earlier=True)
    merge = db.merge_operator(b"m", bytes.__add__, every=3600)
    merge.add(b"a")
    for move in (lambda: None, db.flush):
        move()
        found = [(i.discards_earlier, i.is_merge) for i in db.iterate(all_versions=True)]
        assert found[0] == (True, False)
        assert set(found[1:-1]) <= {(False, False)}
        assert found[-1] == (False, True)
    merge.stop()
