"""Managed mode: the caller supplies the timestamps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import meles
import pytest

OpenDB = Callable[..., meles.DB]
BAD_TIMES = (-1, 1.0, "1", None, True, 2**63 - 1, 2**64, 10**400, float("nan"))


@pytest.fixture
def db(open_db: OpenDB) -> meles.DB:
    return open_db(managed=True, num_versions_to_keep=10)


def put(db: meles.DB, ts: int, key: bytes = b"k") -> None:
    with db.update() as txn:
        txn[key] = b"%d" % ts
        assert txn.commit_at(ts) == txn.commit_ts == ts


def test_versions_are_the_callers(db: meles.DB) -> None:
    for ts in (10, 20, 30):
        put(db, ts)
    assert db.max_version() == 30
    assert [item.version for item in db.iterate(all_versions=True)] == [30, 20, 10]
    for at, expected in ((0, None), (9, None), (10, b"10"), (19, b"10"), (30, b"30")):
        with db.view(at=at) as txn:
            assert txn.get(b"k") == expected
        with db.update(at=at) as txn:
            assert (txn.get(b"k"), txn.read_ts) == (expected, at)
            txn.discard()
    with db.update() as txn:
        assert txn.read_ts == 30
        txn.discard()


@pytest.mark.parametrize("flushed", [False, True])
def test_versions_may_come_in_any_order(db: meles.DB, flushed: bool) -> None:
    for ts in (30, 10, 20, 10):
        put(db, ts)
        if flushed:
            db.flush()
    assert db.max_version() == 30
    assert db[b"k"] == b"30"
    assert [item.version for item in db.iterate(all_versions=True)] == [30, 20, 10]
    with db.view(at=25) as txn:
        assert txn[b"k"] == b"20"


def test_plain_commit_raises_and_the_transaction_goes_on(db: meles.DB) -> None:
    txn = db.update()
    with pytest.raises(meles.Error, match="commit_at"):
        txn.commit()
    txn[b"k"] = b"v"
    with pytest.raises(meles.Error, match="commit_at"):
        txn.commit()
    assert txn.commit_at(5) == 5
    assert db[b"k"] == b"v"
    with pytest.raises(meles.TransactionFinishedError):
        txn.commit_at(6)


def test_leaving_a_block_without_commit_at_raises(db: meles.DB) -> None:
    def forget() -> None:
        with db.update() as txn:
            txn[b"k"] = b"v"

    with pytest.raises(meles.Error, match="commit_at"):
        forget()
    with db.update():
        pass
    assert list(db) == []
    assert db.stats().readers == 0


def test_writes_without_a_timestamp_raise(db: meles.DB) -> None:
    for write in (
        lambda: db.set(b"k", b"v"), lambda: db.delete(b"k"), db.write_batch,
        lambda: db.sequence(b"s"), lambda: db.merge_operator(b"m", lambda a, b: a),
        lambda: db.transact(lambda txn: txn.set(b"k", b"v")),
    ):  # fmt: skip
        with pytest.raises(meles.Error):
            write()
    assert list(db) == []


def test_a_batch_at_a_timestamp(db: meles.DB) -> None:
    with db.write_batch(at=7) as batch:
        for n in range(10):
            batch[b"%d" % n] = b"v"
    assert {item.version for item in db.iterate()} == {7}
    with db.write_batch(at=3) as batch:
        batch[b"0"] = b"older"
        batch.delete(b"1")
    assert db[b"0"] == db[b"1"] == b"v"
    with db.view(at=3) as txn:
        assert list(txn.items()) == [(b"0", b"older")]


def test_conflicts_are_found_by_the_callers_timestamps(db: meles.DB) -> None:
    put(db, 10)
    txn = db.update(at=10)
    txn.get(b"k")
    txn[b"l"] = b"v"
    put(db, 11)
    with pytest.raises(meles.ConflictError):
        txn.commit_at(12)


def test_the_caller_says_which_versions_may_go(open_db: OpenDB) -> None:
    db = open_db(managed=True)
    for ts in range(1, 6):
        put(db, ts)
    db.flush()
    db.flatten()
    assert len(list(db.iterate(all_versions=True))) == 5
    db.set_discard_ts(3)
    put(db, 9, b"other")
    db.flush()
    db.flatten()
    kept = [item.version for item in db.iterate(b"k", all_versions=True)]
    assert kept[:3] == [5, 4, 3]
    with db.view(at=3) as txn:
        assert txn[b"k"] == b"3"


@pytest.mark.parametrize("ts", BAD_TIMES)
def test_other_timestamps_are_value_errors(db: meles.DB, ts: Any) -> None:
    with db.update() as txn:
        txn[b"k"] = b"v"
        with pytest.raises(ValueError, match="ts="):
            txn.commit_at(ts)
        txn.discard()
    if ts is not None:
        with pytest.raises(ValueError, match="at="):
            db.write_batch(at=ts)
    if ts not in (None, 2**63 - 1):
        with pytest.raises(ValueError, match="at="):
            db.update(at=ts)
        with pytest.raises(ValueError, match="ts="):
            db.set_discard_ts(ts)
    assert list(db) == []


def test_no_timestamp_is_0(db: meles.DB) -> None:
    with db.update() as txn:
        txn[b"k"] = b"v"
        with pytest.raises(ValueError, match="ts=0"):
            txn.commit_at(0)
        txn.discard()
    with pytest.raises(ValueError, match="at=0"):
        db.write_batch(at=0)


def test_outside_managed_mode_timestamps_are_the_engines(open_db: OpenDB) -> None:
    db = open_db()
    db[b"k"] = b"v"
    with db.update() as txn:
        txn[b"k"] = b"w"
        with pytest.raises(meles.Error, match="managed"):
            txn.commit_at(9)
    for use in (
        lambda: db.update(at=1), lambda: db.write_batch(at=9), lambda: db.set_discard_ts(1),
    ):  # fmt: skip
        with pytest.raises(meles.Error, match="managed"):
            use()
    assert db[b"k"] == b"w"


def test_either_mode_opens_the_same_database(open_db: OpenDB) -> None:
    with open_db(managed=True) as db:
        put(db, 10)
    with open_db() as db:
        db[b"k"] = b"plain"
        assert db.max_version() == 11
    with open_db(managed=True) as db:
        assert db[b"k"] == b"plain"


def test_a_key_written_twice_at_one_timestamp_has_the_last_value(db: meles.DB) -> None:
    with db.write_batch(at=5) as batch:
        batch[b"k"] = b"1"
        batch.flush()
        batch[b"k"] = b"2"
    for move in (lambda: None, db.flush, db.flatten):
        move()
        assert db[b"k"] == b"2"
        for reverse in (False, True):
            items = db.iterate(all_versions=True, reverse=reverse)
            assert [(item.version, item.value) for item in items] == [(5, b"2")]
    with db.update() as txn:
        txn[b"k"] = b"3"
        txn.commit_at(5)
    for move in (lambda: None, db.flush, db.flatten):
        move()
        assert list(db.items()) == [(b"k", b"3")]
