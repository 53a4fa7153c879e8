"""`db.write_batch()`: blind writes that split themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import meles
import pytest

OpenDB = Callable[..., meles.DB]


def test_a_batch_writes_on_a_clean_exit(db: meles.DB) -> None:
    db[b"gone"] = b"v"
    with db.write_batch() as batch:
        batch.set(b"a", b"1")
        batch[b"b"] = b"2"
        batch.delete(b"gone")
        del batch[b"absent"]
        assert list(db) == [b"gone"]
    assert list(db.items()) == [(b"a", b"1"), (b"b", b"2")]


def test_set_takes_ttl_meta_and_discard_earlier(open_db: OpenDB) -> None:
    db = open_db(num_versions_to_keep=10)
    db[b"k"] = b"old"
    with db.write_batch() as batch:
        batch.set(b"k", b"v", ttl=1000, meta=7, discard_earlier=True)
        batch.set(b"plain", b"v")
    item, plain = db.iterate()
    assert (item.meta, item.expires_at > 0, plain.meta, plain.expires_at) == (7, True, 0, 0)
    db.flush()
    db.flatten()
    assert [item.value for item in db.iterate(b"k", all_versions=True)] == [b"v"]


def test_of_several_writes_of_a_key_the_last_counts(db: meles.DB) -> None:
    with db.write_batch() as batch:
        batch.set(b"k", b"1", meta=1)
        batch[b"k"] = b"2"
        batch.delete(b"l")
        batch.set(b"l", b"3")
        batch[b"m"] = b"4"
        batch.delete(b"m")
    assert [(i.key, i.value, i.meta) for i in db.iterate()] == [(b"k", b"2", 0), (b"l", b"3", 0)]


def test_an_exception_cancels_what_was_not_flushed(db: meles.DB) -> None:
    def fail() -> None:
        with db.write_batch() as batch:
            batch[b"flushed"] = b"v"
            batch.flush()
            batch[b"lost"] = b"v"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(db) == [b"flushed"]


def test_it_is_usable_again_after_flush(db: meles.DB) -> None:
    batch = db.write_batch()
    batch.flush()
    for n in range(3):
        batch[b"%d" % n] = b"v"
        batch.flush()
        assert len(list(db)) == n + 1
    batch.flush()
    batch.cancel()


@pytest.mark.parametrize("how", ["cancel", "exit", "exit by error"])
def test_it_is_not_usable_after_cancel_or_exit(db: meles.DB, how: str) -> None:
    batch = db.write_batch()
    if how == "cancel":
        batch[b"lost"] = b"v"
        batch.cancel()
    elif how == "exit":
        with batch:
            batch[b"kept"] = b"v"
    else:
        with pytest.raises(ZeroDivisionError), batch:
            raise ZeroDivisionError
    uses: tuple[Callable[[], Any], ...] = (
        lambda: batch.set(b"k", b"v"), lambda: batch.set(b"k", b"v", ttl=5),
        lambda: batch.delete(b"k"), batch.flush, batch.__enter__,
    )  # fmt: skip
    for use in uses:
        with pytest.raises(meles.TransactionFinishedError):
            use()
    batch.cancel()
    batch.cancel()
    assert list(db) == ([b"kept"] if how == "exit" else [])


def test_it_splits_itself_and_each_part_is_a_commit(open_db: OpenDB) -> None:
    db = open_db(memtable_size="256KiB")
    limit = db.options.txn_limit
    with db.write_batch() as batch:
        for n in range(1000):
            batch.set(b"%04d" % n, b"v" * 500)
        assert 0 < len(list(db)) < 1000  # so a batch is not atomic across its splits
    assert len(list(db)) == 1000
    parts: dict[int, int] = {}
    for item in db.iterate():
        parts[item.version] = parts.get(item.version, 0) + 504
    assert len(parts) > 1
    assert max(parts.values()) <= limit


def test_it_reads_nothing_and_never_conflicts(db: meles.DB) -> None:
    with db.write_batch() as one, db.write_batch() as two:
        one[b"k"], two[b"k"] = b"1", b"2"
        db[b"k"] = b"0"
    assert db[b"k"] == b"1"  # the outer block is left last


def test_one_entry_must_fit_a_transaction(open_db: OpenDB) -> None:
    db = open_db(memtable_size="64KiB", value_threshold="32KiB")
    with db.write_batch() as batch:
        batch[b"before"] = b"v"
        with pytest.raises(meles.TransactionTooBigError) as caught:
            batch.set(b"k", b"v" * 10_000)
        assert caught.value.limit == db.options.txn_limit < caught.value.size
        batch.set(b"k", b"v" * 9_000)
        batch.set(b"large", b"v" * 40_000)
    assert [len(value) for value in db.values()] == [1, 9_000, 40_000]


def test_a_database_closed_meanwhile_is_told(open_db: OpenDB) -> None:
    db = open_db()
    batch = db.write_batch()
    batch[b"k"] = b"v"
    db.close()
    for use in (lambda: batch.set(b"k", b"v"), lambda: batch.delete(b"k"), batch.flush):
        with pytest.raises(meles.ClosedError):
            use()
    batch.cancel()

    def write_and_close() -> None:
        with open_db() as db, db.write_batch() as batch:
            batch[b"k"] = b"v"
            db.close()

    with pytest.raises(meles.ClosedError):
        write_and_close()
    with open_db() as db, db.write_batch() as batch:
        assert list(db) == []


def test_an_error_of_a_split_ends_the_batch(open_db: OpenDB) -> None:
    """Badger's first error is sticky too."""
    db = open_db(namespace_offset=0)
    batch = db.write_batch()
    batch[bytes(8) + b"k"] = b"v"
    db.ban_namespace(0)
    with pytest.raises(meles.BannedKeyError):
        batch.flush()
    with pytest.raises(meles.TransactionFinishedError):
        batch.set(b"other", b"v")
    assert list(db) == []
