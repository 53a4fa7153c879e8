"""Namespaces: 8 bytes of a key, banned for good."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import meles
import pytest

OpenDB = Callable[..., meles.DB]
OFFSET = 2


def key(namespace: int, name: bytes = b"name") -> bytes:
    return b"ab" + namespace.to_bytes(8, "big") + name


@pytest.fixture
def db(open_db: OpenDB) -> meles.DB:
    return open_db(namespace_offset=OFFSET)


def test_a_banned_namespace_can_be_neither_read_nor_written(db: meles.DB) -> None:
    bad, good = key(7), key(8)
    db[bad], db[good] = b"v", b"w"
    open_txn = db.update()
    db.ban_namespace(7)
    batch = db.write_batch()
    uses: list[Callable[[], Any]] = [
        lambda: db.get(bad), lambda: db[bad], lambda: bad in db, lambda: db.get_many([good, bad]),
        lambda: db.set(bad, b"v"), lambda: db.delete(bad), lambda: batch.set(bad, b"v"),
        lambda: batch.delete(bad), lambda: db.sequence(bad),
        lambda: db.merge_operator(bad, lambda a, b: a), lambda: open_txn.get(bad),
        lambda: open_txn[bad], lambda: bad in open_txn, lambda: open_txn.item(bad),
        lambda: open_txn.set(bad, b"v"), lambda: open_txn.delete(bad),
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(meles.BannedKeyError):
            use()
    with db.view(at=1) as old, pytest.raises(meles.BannedKeyError):
        old.get(bad)
    assert db[good] == open_txn[good] == b"w"
    open_txn.discard()
    batch.cancel()


def test_what_was_begun_before_the_ban_does_not_get_around_it(db: meles.DB) -> None:
    batch = db.write_batch()
    batch[key(7)] = b"v"
    db.ban_namespace(7)
    with pytest.raises(meles.BannedKeyError):
        batch.flush()
    txn = db.update()
    txn[key(8)] = b"v"
    db.ban_namespace(8)
    with pytest.raises(meles.BannedKeyError):
        txn.commit()
    with pytest.raises(meles.TransactionFinishedError):
        txn.commit()
    assert db.stats().readers == 0
    assert list(db.iterate(all_versions=True)) == []


def test_scans_leave_banned_keys_out(db: meles.DB) -> None:
    for n in range(5):
        db[key(n)] = b"v"
    with db.view() as old:
        db.ban_namespace(2)
        expected = [key(n) for n in (0, 1, 3, 4)]
        assert list(db.keys()) == list(old.keys()) == expected
        assert list(db.keys(reverse=True)) == expected[::-1]
        assert [item.key for item in db.iterate(all_versions=True)] == expected


def test_keys_too_short_to_have_a_name_are_never_banned(db: meles.DB) -> None:
    short = key(7, b"")
    db[short], db[b"ab"] = b"v", b"w"
    db.ban_namespace(7)
    assert (db[short], db[b"ab"]) == (b"v", b"w")
    assert key(7, b"x") not in list(db)
    with pytest.raises(meles.BannedKeyError):
        db[key(7, b"x")]


def test_bans_last_and_are_listed_in_order(open_db: OpenDB) -> None:
    with open_db(namespace_offset=OFFSET) as db:
        assert db.banned_namespaces() == []
        for n in (2**64 - 1, 5, 0, 5):
            db.ban_namespace(n)
        assert db.banned_namespaces() == [0, 5, 2**64 - 1]
    with open_db(namespace_offset=OFFSET, mode="read_only") as db:
        assert db.banned_namespaces() == [0, 5, 2**64 - 1]
        with pytest.raises(meles.BannedKeyError):
            db.get(key(5))


@pytest.mark.parametrize("n", [-1, 2**64, 10**400, 1.0, "1", None, True, b"1"])
def test_a_namespace_is_a_number_of_64_bits(db: meles.DB, n: Any) -> None:
    with pytest.raises(ValueError, match="namespace"):
        db.ban_namespace(n)
    assert db.banned_namespaces() == []


def test_without_an_offset_there_are_no_namespaces(open_db: OpenDB) -> None:
    db = open_db()
    with pytest.raises(meles.Error, match="namespace"):
        db.ban_namespace(1)
    assert db.banned_namespaces() == []
