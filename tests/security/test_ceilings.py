"""Ceilings: at the limit it works, one beyond it is a typed error and nothing happened."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import meles
import pytest

LIMIT = (128 << 10) * 15 // 100  # of a transaction, with this memtable


@pytest.fixture
def db(tmp_path: Path) -> Iterator[meles.DB]:
    with meles.open(
        tmp_path / "db", workers="inline", memtable_size=128 << 10, value_log_file_size=1 << 20,
        value_threshold=1 << 10,
    ) as opened:  # fmt: skip
        yield opened


def test_keys(db: meles.DB) -> None:
    with meles.open(None, mode="memory", workers="inline") as roomy:
        roomy[b"k" * 65_000] = b"v"
        assert roomy[b"k" * 65_000] == b"v"
        for bad in (b"", b"k" * 65_001, b"!meles!x"):
            with pytest.raises(meles.InvalidKeyError):
                roomy.set(bad, b"v")
        assert len(list(roomy.keys())) == 1


def test_values(db: meles.DB) -> None:
    db[b"k"] = bytes(1 << 20)
    with pytest.raises(meles.TransactionTooBigError) as caught:
        db.set(b"k", bytes((1 << 20) + 1))
    assert caught.value.size > caught.value.limit
    assert len(db[b"k"]) == 1 << 20


def test_transactions(db: meles.DB) -> None:
    txn = db.update()
    fits = 0
    error: meles.TransactionTooBigError | None = None
    while error is None:
        try:
            txn.set(b"%04d" % fits, bytes(1000))
            fits += 1
        except meles.TransactionTooBigError as caught:
            error = caught
    assert error.limit <= LIMIT < error.size + 1200
    txn.commit()  # it stays usable, without what did not fit
    assert len(list(db.keys())) == fits > 5


def test_queues_of_subscribers(db: meles.DB) -> None:
    with db.subscribe(queue=10, on_overflow="raise") as changes:
        for n in range(11):
            db[b"%d" % n] = b"v"
        with pytest.raises(meles.WriteStallError):
            list(zip(changes, range(11), strict=False))
    assert len(list(db.keys())) == 11
