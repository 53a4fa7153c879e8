"""Time to live: kept to the millisecond, begins at `set`, judged by the clock at read time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import meles
import pytest
from meles.engine.background import compacting
from waiting import wait_until

OpenDB = Callable[..., meles.DB]
WAYS = ("db", "txn", "batch")


@contextmanager
def setter(db: meles.DB, way: str) -> Iterator[Callable[..., None]]:
    if way == "db":
        yield db.set
    elif way == "txn":
        with db.update() as txn:
            yield txn.set
    else:
        with db.write_batch() as batch:
            yield batch.set


def only(db: meles.DB) -> meles.Item:
    (item,) = db.iterate(all_versions=True)
    return item


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ttl", [100, 100.0, timedelta(seconds=100)])
def test_a_time_to_live_is_seconds_or_a_timedelta(
    db: meles.DB, clock: Any, way: str, ttl: Any
) -> None:
    before = clock.now
    with setter(db, way) as put:
        put(b"k", b"v", ttl=ttl)
    assert before + 100 <= only(db).expires_at <= clock.now + 100.001
    clock.turn(99)
    assert db.get(b"k") == b"v"
    clock.turn(1.001)
    assert db.get(b"k") is None


def test_no_time_to_live_is_for_ever(db: meles.DB, clock: Any) -> None:
    db.set(b"k", b"v")
    db.set(b"k2", b"v", ttl=None)
    assert [item.expires_at for item in db.iterate()] == [0, 0]
    clock.turn(1e9)
    assert db[b"k"] == b"v"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "ttl", [0, -1, -0.001, timedelta(0), timedelta(-1), float("nan"), -(10**400)]
)
def test_a_ttl_of_0_or_less_is_a_value_error(db: meles.DB, way: str, ttl: Any) -> None:
    with setter(db, way) as put, pytest.raises(ValueError, match="ttl"):
        put(b"k", b"v", ttl=ttl)
    assert b"k" not in db


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ttl", ["1", b"1", True, [], object(), 1j])
def test_what_is_no_time_is_a_type_error(db: meles.DB, way: str, ttl: Any) -> None:
    with setter(db, way) as put, pytest.raises(TypeError, match="ttl"):
        put(b"k", b"v", ttl=ttl)
    assert b"k" not in db


@pytest.mark.parametrize("ttl", [1e300, float("inf"), 10**400, timedelta.max, 2**63])
def test_a_ttl_beyond_measure_is_very_long(db: meles.DB, clock: Any, ttl: Any) -> None:
    db.set(b"k", b"v", ttl=ttl)
    clock.turn(1e9)
    assert db[b"k"] == b"v"
    assert only(db).expires_at > clock.now + 1e9
    db.flush()
    assert only(db).expires_at > clock.now + 1e9


def test_it_is_kept_to_the_millisecond(db: meles.DB, monkeypatch: pytest.MonkeyPatch) -> None:
    """Badger keeps seconds: 900 ms lived 561."""
    at = [1_700_000_000_123]
    monkeypatch.setattr("meles.engine.clock.time_ns", lambda: at[0] * 1_000_000)
    db.set(b"k", b"v", ttl=0.900)
    assert only(db).expires_at == 1_700_000_001.023
    at[0] += 899
    assert db.get(b"k") == b"v"
    at[0] += 1  # expired when expires_at <= now
    assert db.get(b"k") is None
    db.set(b"k", b"v", ttl=0.0000001)
    assert db.get(b"k") is None


def test_it_begins_at_set_not_at_commit(db: meles.DB, clock: Any) -> None:
    with db.update() as txn:
        txn.set(b"k", b"v", ttl=10)
        clock.turn(11)
        assert txn.get(b"k") is None
        assert b"k" not in txn
    assert db.get(b"k") is None
    with db.write_batch() as batch:
        batch.set(b"l", b"v", ttl=10)
        clock.turn(11)
    assert db.get(b"l") is None


def test_what_has_expired_is_gone_everywhere(db: meles.DB, clock: Any) -> None:
    db.set(b"k", b"v", ttl=10)
    db.set(b"l", b"w")
    old = db.view()
    held = old.item(b"k")
    assert held is not None
    assert not held.deleted
    clock.turn(11)
    assert (db.get(b"k"), b"k" in db, db.get_many([b"k", b"l"])) == (None, False, [None, b"w"])
    assert list(db.items()) == list(db.items(reverse=True)) == [(b"l", b"w")]
    with pytest.raises(meles.KeyNotFoundError):
        db[b"k"]
    # expiry is by the clock at read time, in old snapshots too
    assert (old.get(b"k"), old.item(b"k"), b"k" in old) == (None, None, False)
    assert list(old.keys()) == [b"l"]
    assert held.deleted
    # all_versions includes it, and says so
    assert [(i.key, i.deleted) for i in old.iterate(all_versions=True)] == [
        (b"k", True), (b"l", False),
    ]  # fmt: skip
    old.discard()


def test_setting_again_without_ttl_is_for_ever(db: meles.DB, clock: Any) -> None:
    db.set(b"k", b"1", ttl=10)
    db.set(b"k", b"2")
    db.set(b"l", b"1")
    db.set(b"l", b"2", ttl=10)
    with db.write_batch() as batch:
        batch.set(b"m", b"1", ttl=10, meta=3)
        batch.set(b"m", b"2")
    clock.turn(11)
    assert db.get_many([b"k", b"l", b"m"]) == [b"2", None, b"2"]  # an older version stays hidden
    assert [item.meta for item in db.iterate(b"m")] == [0]


def test_it_survives_flush_compaction_and_reopening(open_db: OpenDB, db: meles.DB) -> None:
    db.set(b"k", b"v", ttl=1000)
    db.set(b"l", b"v" * 5000, ttl=1000.5)
    before = [item.expires_at for item in db.iterate()]
    db.flush()
    db.flatten()
    assert [item.expires_at for item in db.iterate()] == before
    db.close()
    again = open_db()
    assert [item.expires_at for item in again.iterate()] == before


@pytest.mark.parametrize("level", [0, 6])
def test_the_expired_leave_the_disk_by_themselves(open_db: OpenDB, level: int) -> None:
    """Nobody writes, reads or asks: the tables know when it is worth a rewrite."""
    db = open_db(workers="thread")
    for n in range(2_000):
        db.set(b"%05d" % n, b"v" * 20, ttl=0.6)
    db.flush(60)
    if level:
        db.flatten(timeout=60)
    wait_until(lambda: not db.tables(), what="the last table gone")
    assert list(db.iterate(all_versions=True)) == []


def test_what_a_reader_held_leaves_after_it(
    open_db: OpenDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers end without a word to anybody."""
    monkeypatch.setattr(compacting, "_READER_NAP", 0.05)
    db = open_db(workers="thread")
    for n in range(2_000):
        db.set(b"%05d" % n, b"v" * 20)
    with db.view():
        for n in range(2_000):
            db.delete(b"%05d" % n)
        db.flush(60)
        db.flatten(timeout=60)
        assert sum(table.entries for table in db.tables()) == 4_000
    wait_until(lambda: not db.tables(), what="the last table gone")
