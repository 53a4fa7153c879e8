"""Write batches: blind writes that split themselves."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import meles
import pytest

OpenDB = Callable[..., meles.DB]


def test_a_batch_writes_when_it_is_left(db: meles.DB) -> None:
    db[b"gone"] = b"x"
    with db.write_batch() as batch:
        batch.set(b"a", b"1")
        batch[b"b"] = b"2"
        del batch[b"gone"]
        batch.delete(b"absent")
        assert db.get(b"a") is None
    assert list(db.items()) == [(b"a", b"1"), (b"b", b"2")]
    assert db.max_version() == 2  # one commit
    assert batch.committed == 4


def test_the_last_write_of_a_key_counts(db: meles.DB) -> None:
    with db.write_batch() as batch:
        batch.set(b"k", b"1", meta=7, ttl=100)
        batch.set(b"k", b"2")
        batch.set(b"d", b"1")
        batch.delete(b"d")
        batch.delete(b"s")
        batch.set(b"s", b"1", meta=3)
    assert list(db.items()) == [(b"k", b"2"), (b"s", b"1")]
    items = {item.key: (item.meta, item.expires_at) for item in db.iterate()}
    assert items == {b"k": (0, 0), b"s": (3, 0)}


def test_an_error_inside_cancels_what_was_not_flushed(db: meles.DB) -> None:
    def load() -> None:
        with db.write_batch() as batch:
            batch.set(b"kept", b"1")
            batch.flush()
            batch.set(b"lost", b"1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        load()
    assert list(db.keys()) == [b"kept"]


def test_it_is_usable_after_flush_and_not_after_the_end(db: meles.DB) -> None:
    batch = db.write_batch()
    batch.set(b"a", b"1")
    batch.flush()
    batch.flush()
    batch.set(b"b", b"1")
    batch.cancel()
    batch.cancel()
    with db.write_batch() as left:
        left.set(b"c", b"1")
    for ended in (batch, left):
        calls: list[Callable[[], object]] = [
            lambda e=ended: e.set(b"x", b""), lambda e=ended: e.set(b"x", b"", meta=1),
            lambda e=ended: e.delete(b"x"), ended.flush, ended.__enter__,
        ]  # type: ignore[misc]  # fmt: skip
        for call in calls:
            with pytest.raises(meles.TransactionFinishedError):
                call()
    assert list(db.keys()) == [b"a", b"c"]


def test_cancel_inside_writes_nothing(db: meles.DB) -> None:
    with db.write_batch() as batch:
        batch.set(b"a", b"1")
        batch.cancel()
    assert list(db.keys()) == []


@pytest.mark.parametrize("value_bytes", [0, 100, 3000])
def test_it_splits_itself(open_db: OpenDB, value_bytes: int) -> None:
    """By size, and also when what it holds goes to the value log."""
    db = open_db(memtable_size="64KiB", value_log_file_size="1MiB")
    with db.write_batch() as batch:
        for n in range(1000):
            batch.set(b"%04d" % n, b"x" * value_bytes)
    assert len(list(db.keys())) == batch.committed == 1000
    limit = 64 * 1024 * 15 // 100
    smallest = 4 + 28 + (12 if value_bytes >= 1024 else value_bytes)
    assert db.max_version() >= 1000 * smallest // limit
    db.close()
    db = open_db(memtable_size="64KiB", value_log_file_size="1MiB")
    assert sum(map(len, db.values())) == 1000 * value_bytes


@pytest.mark.parametrize("threshold", [0, 100, "1KiB", "2MiB"])
@pytest.mark.parametrize("size", [1, 99, 100, 1023, 1024, 70_000, (1 << 20) + 1])
def test_plain_or_not_an_entry_counts_the_same(
    open_db: OpenDB, threshold: object, size: int
) -> None:
    """`bytes` take the short way into a batch or transaction, other buffers the long one."""
    db = open_db(memtable_size="16MiB", value_threshold=threshold, value_log_file_size="2MiB")
    short, long = db.write_batch(), db.write_batch()
    short.set(b"k", bytes(size))
    long.set(b"k", bytearray(size))
    assert short._size == long._size > 0
    with db.update() as one, db.update() as other:
        one.set(b"k", bytes(size))
        other.set(b"k", bytearray(size))
        assert one._size == other._size > 0
        one.discard()
        other.discard()


def test_it_splits_by_number_of_entries(db: meles.DB) -> None:
    with db.write_batch() as batch:
        for n in range(10_000):
            batch.set(b"%05d" % n, b"")
    assert db.max_version() == 3
    assert len(list(db.keys())) == 10_000


def test_a_batch_never_conflicts(db: meles.DB) -> None:
    with db.write_batch() as batch:
        batch.set(b"k", b"batch")
        db[b"k"] = b"other"
    assert db[b"k"] == b"batch"


def test_a_batch_makes_a_reader_conflict(db: meles.DB) -> None:
    txn = db.update()
    txn.get(b"k")
    txn[b"j"] = b"1"
    with db.write_batch() as batch:
        batch.set(b"k", b"1")
    with pytest.raises(meles.ConflictError):
        txn.commit()


def test_time_to_live_and_meta(db: meles.DB) -> None:
    with db.write_batch() as batch:
        batch.set(b"k", b"v", ttl=1000, meta=9, discard_earlier=True)
        for bad in ({"ttl": 0}, {"meta": 256}, {"ttl": -1.0}):
            with pytest.raises(ValueError, match="="):
                batch.set(b"x", b"v", **bad)  # type: ignore[arg-type]
        for args in (("k", b"v"), (b"k", "v"), (b"k", 1)):
            with pytest.raises(TypeError):
                batch.set(*args)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            batch.delete("k")  # type: ignore[arg-type]
        for key in (b"", b"k" * 65_001):
            with pytest.raises(meles.InvalidKeyError):
                batch.set(key, b"v")
    (item,) = db.iterate()
    assert (item.key, item.meta, item.discards_earlier) == (b"k", 9, True)
    assert item.expires_at > 0


def test_a_batch_ends_with_the_database(db: meles.DB) -> None:
    batch = db.write_batch()
    batch.set(b"a", b"1")
    db.close()
    calls: list[Callable[[], object]] = [
        lambda: batch.set(b"x", b""), lambda: batch.delete(b"x"), batch.flush, batch.__enter__,
        db.write_batch,
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(meles.ClosedError):
            call()
    batch.cancel()


def test_a_read_only_handle_has_none(open_db: OpenDB, tmp_path: Any) -> None:
    open_db().close()
    with meles.open(tmp_path / "db", mode="read_only") as db, pytest.raises(meles.ReadOnlyError):
        db.write_batch()


@pytest.mark.parametrize("seed", range(3))
def test_values_of_every_size_in_one_batch(open_db: OpenDB, seed: int) -> None:
    """Small ones stay in the log, large ones are copied together, the largest written alone."""
    rng = random.Random(seed)
    sizes = [0, 1, 99, 100, 101, 131_071, 131_072, 131_073, 262_127, 262_128, 262_129, 700_000]
    sizes = [*sizes, *rng.choices([50, 100, 3000, 40_000, 131_072, 131_073], k=60)]
    rng.shuffle(sizes)
    entries = {rng.randbytes(8): rng.randbytes(size) for size in sizes}
    db = open_db(value_threshold=100)
    before = db.max_version()
    with db.write_batch() as batch:
        for key, value in entries.items():
            batch.set(key, value)
    with db.update() as txn:
        for key, value in entries.items():
            txn.set(key + b"t", value)
    assert db.max_version() > before + 1
    wanted = entries | {key + b"t": value for key, value in entries.items()}
    assert {key: db.get(key) for key in wanted} == wanted
    db.close()
    db = open_db(value_threshold=100)
    assert dict(db.items()) == wanted
    assert db.verify(values=True).ok
