"""`get`, `set`, `delete` and their operators on a database, a transaction and a batch."""

from __future__ import annotations

import array
import ctypes
import mmap
from collections.abc import Callable
from typing import Any

import meles
import pytest

OpenDB = Callable[..., meles.DB]
LONGEST = 65_000


def c_array(data: bytes) -> Any:
    return (ctypes.c_ubyte * len(data)).from_buffer_copy(data)


def mapped(data: bytes) -> mmap.mmap:
    region = mmap.mmap(-1, len(data))
    region[:] = data
    return region


BYTES_LIKE: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes,
    "bytearray": bytearray,
    "memoryview": memoryview,
    "memoryview of some": lambda data: memoryview(b"<" + data + b">")[1:-1],
    "memoryview with steps": lambda data: memoryview(bytes(b for c in data for b in (c, 0)))[::2],
    "array": lambda data: array.array("B", data),
    "array of wide items": lambda data: array.array("H", data),
    "ctypes": c_array,
    "mmap": mapped,
    "subclass of bytes": type("Mine", (bytes,), {}),
}
NOT_BYTES = (5, None, 1.5, [b"k"], (b"k",), {b"k"}, object(), True, 10**400)


# -- reading -------------------------------------------------------------------------------------


def test_get_gives_the_newest_committed_value_or_the_default(db: meles.DB) -> None:
    assert db.get(b"k") is None
    assert db.get(b"k", b"default") == b"default"
    assert db.get(b"k", 5) == 5
    db.set(b"k", b"1")
    db.set(b"k", b"2")
    assert db.get(b"k", b"default") == b"2"
    db.delete(b"k")
    assert db.get(b"k", default=b"gone") == b"gone"


def test_subscripting_an_absent_key_raises_key_not_found(db: meles.DB) -> None:
    for target in (db, db.view()):
        with pytest.raises(meles.KeyNotFoundError) as caught:
            target[b"absent"]
        assert isinstance(caught.value, KeyError)
        if isinstance(target, meles.Txn):
            target.discard()


def test_the_operators(db: meles.DB) -> None:
    db[b"k"] = b"v"
    assert (db[b"k"], b"k" in db, b"absent" in db) == (b"v", True, False)
    del db[b"k"]
    del db[b"absent"]
    assert b"k" not in db
    with db.update() as txn:
        txn[b"k"] = b"w"
        assert (txn[b"k"], b"k" in txn, b"absent" in txn) == (b"w", True, False)
        del txn[b"k"]
        del txn[b"absent"]
        assert b"k" not in txn
        txn[b"k"] = b"x"
    with db.write_batch() as batch:
        batch[b"l"] = b"y"
        del batch[b"k"]
    assert list(db) == [b"l"]


def test_deleting_an_absent_key_is_fine(db: meles.DB) -> None:
    db.delete(b"absent")
    with db.update() as txn:
        txn.delete(b"absent")
    with db.write_batch() as batch:
        batch.delete(b"absent")
    assert db.max_version() == 3


def test_get_many_is_one_snapshot_in_the_order_asked_for(db: meles.DB) -> None:
    db[b"a"], db[b"b"] = b"1", b"2"
    assert db.get_many([b"b", b"none", b"a", b"b"]) == [b"2", None, b"1", b"2"]
    assert db.get_many(key for key in (b"a",)) == [b"1"]
    assert db.get_many([]) == []


def test_get_many_sees_transactions_whole(open_db: OpenDB) -> None:
    import threading

    db = open_db(memtable_size="64KiB")
    keys = [b"%d" % n for n in range(20)]
    stop = threading.Event()

    def write() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            with db.update() as txn:
                for key in keys:
                    txn[key] = b"%d" % n

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(300):
            assert len(set(db.get_many(keys))) == 1
    finally:
        stop.set()
        writer.join()


# -- what goes in --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BYTES_LIKE.values(), ids=BYTES_LIKE)
def test_anything_bytes_like_goes_in_and_bytes_come_out(
    db: meles.DB, kind: Callable[[bytes], Any]
) -> None:
    key, value = b"key1", b"val1"
    db.set(kind(key), kind(value))
    db[kind(b"key2")] = kind(b"") if kind is not mapped else b""
    assert type(db.get(kind(key))) is bytes
    assert db.get(kind(key)) == db[kind(key)] == value
    assert kind(key) in db
    assert db.get_many([kind(key)]) == [value]
    assert db[b"key2"] == b""
    with db.update() as txn:
        txn.set(kind(b"key3"), kind(value))
        txn[kind(b"key4")] = kind(value)
        txn.delete(kind(b"key2"))
        item = txn.item(kind(b"key3"))
        assert item is not None
        assert (type(item.key), type(item.value), item.value) == (bytes, bytes, value)
        assert (txn[kind(key)], kind(key) in txn, txn.get(kind(key))) == (value, True, value)
        found = list(txn.items(kind(b"ke"), start=kind(b"key2"), stop=kind(b"key4")))
        assert found == [(b"key3", value)]
        cursor = txn.keys()
        cursor.seek(kind(b"key3"))
        assert next(cursor) == b"key3"
    with db.write_batch() as batch:
        batch.set(kind(b"key5"), kind(value))
        batch.delete(kind(b"key4"))
    del db[kind(b"key3")]
    assert list(db.keys(prefix=kind(b"ke"))) == [b"key1", b"key5"]
    assert {type(key) for key in db} == {bytes}
    assert db.estimate_size(kind(b"ke")) >= 0
    db.drop_prefix(kind(b"key5"))
    assert list(db) == [b"key1"]


def test_what_went_in_is_copied_when_it_is_set(db: meles.DB) -> None:
    """Badger keeps the caller's slices until commit."""
    buffer = bytearray(b"first")
    with db.update() as txn, db.write_batch() as batch:
        txn.set(b"t", buffer)
        batch.set(b"b", memoryview(buffer))
        db.set(b"d", buffer)
        buffer[:] = b"other"
        batch.set(buffer, b"key")
        txn.set(memoryview(buffer), b"key")
        buffer[:] = b"third"
    assert [db[key] for key in (b"t", b"b", b"d", b"other")] == [b"first"] * 3 + [b"key"]
    assert b"third" not in db


USES: dict[str, Callable[[meles.DB, Any], Any]] = {
    "get": lambda db, key: db.get(key),
    "subscript": lambda db, key: db[key],
    "in": lambda db, key: key in db,
    "get_many": lambda db, key: db.get_many([key]),
    "set": lambda db, key: db.set(key, b""),
    "value": lambda db, key: db.set(b"k", key),
    "delete": lambda db, key: db.delete(key),
    "del": lambda db, key: db.__delitem__(key),
    "txn.get": lambda db, key: db.view().get(key),
    "txn.item": lambda db, key: db.view().item(key),
    "txn.in": lambda db, key: key in db.view(),
    "txn.set": lambda db, key: db.update().set(key, b""),
    "txn.value": lambda db, key: db.update().set(b"k", key),
    "txn.delete": lambda db, key: db.update().delete(key),
    "batch.set": lambda db, key: db.write_batch().set(key, b""),
    "batch.value": lambda db, key: db.write_batch().set(b"k", key),
    "batch.value with ttl": lambda db, key: db.write_batch().set(b"k", key, ttl=5),
    "batch.delete": lambda db, key: db.write_batch().delete(key),
    "seek": lambda db, key: db.keys().seek(key),
    "sequence": lambda db, key: db.sequence(key),
    "merge_operator": lambda db, key: db.merge_operator(key, lambda a, b: a),
}
RANGES: dict[str, Callable[[meles.DB, Any], Any]] = {
    "prefix": lambda db, key: db.keys(key),
    "start": lambda db, key: db.items(start=key),
    "stop": lambda db, key: db.values(stop=key),
    "txn.prefix": lambda db, key: db.view().iterate(prefix=key),
    "subscribe": lambda db, key: db.subscribe(key),
    "drop_prefix": lambda db, key: db.drop_prefix(key),
    "estimate_size": lambda db, key: db.estimate_size(key),
}


@pytest.mark.filterwarnings("ignore:a transaction was neither:ResourceWarning")
@pytest.mark.parametrize("use", [*USES.values(), *RANGES.values()], ids=[*USES, *RANGES])
def test_a_str_is_a_type_error_that_says_to_encode(
    db: meles.DB, use: Callable[[meles.DB, Any], Any]
) -> None:
    with pytest.raises(TypeError, match="encode"):
        use(db, "text")
    assert list(db) == []


@pytest.mark.filterwarnings("ignore:a transaction was neither:ResourceWarning")
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_what_is_not_bytes_like_is_a_type_error(
    db: meles.DB, use: Callable[[meles.DB, Any], Any]
) -> None:
    for key in NOT_BYTES:
        with pytest.raises(TypeError, match="bytes-like"):
            use(db, key)
    assert list(db) == []


def test_options_of_set_are_keywords(db: meles.DB) -> None:
    with db.update() as txn, db.write_batch() as batch:
        for target in (db, txn, batch):
            with pytest.raises(TypeError):
                target.set(b"k", b"v", 5)  # type: ignore[misc]


# -- which keys ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 8, LONGEST])
def test_keys_of_1_to_65000_bytes(db: meles.DB, size: int) -> None:
    key = b"k" * size
    db[key] = b"v"
    with db.update() as txn:
        txn.set(b"l" * size, b"w")
    with db.write_batch() as batch:
        batch.set(b"m" * size, b"x")
    db.flush()
    assert (db[key], db[b"l" * size], db[b"m" * size]) == (b"v", b"w", b"x")


@pytest.mark.parametrize("key", [b"", b"k" * (LONGEST + 1), b"!meles!", b"!meles!x"])
def test_keys_no_entry_may_have(db: meles.DB, key: bytes) -> None:
    with db.update() as txn, db.write_batch() as batch:
        for target in (db, txn, batch):
            for write in (lambda t: t.set(key, b"v"), lambda t: t.delete(key)):
                with pytest.raises(meles.InvalidKeyError) as caught:
                    write(target)
                assert isinstance(caught.value, ValueError)
    with pytest.raises(meles.InvalidKeyError):
        db.sequence(key)
    with pytest.raises(meles.InvalidKeyError):
        db.merge_operator(key, lambda a, b: a)
    assert db.max_version() == 0


@pytest.mark.parametrize("key", [b"!", b"!meles", b"!meles?", b"!Meles!", b"meles!"])
def test_only_the_prefix_is_reserved(db: meles.DB, key: bytes) -> None:
    db[key] = b"v"
    assert db[key] == b"v"


def test_a_key_that_no_write_could_create_is_simply_absent(db: meles.DB) -> None:
    for key in (b"k" * (LONGEST + 1), b"!meles!", b"!meles!x", bytes(1 << 20)):
        for target in (db, db.view()):
            assert target.get(key, b"default") == b"default"
            assert key not in target
            with pytest.raises(meles.KeyNotFoundError):
                target[key]
            if isinstance(target, meles.Txn):
                assert target.item(key) is None
                target.discard()
        assert db.get_many([key]) == [None]


def test_the_empty_key_is_invalid_to_read_too(db: meles.DB) -> None:
    with db.view() as txn:
        for read in (
            lambda: db.get(b""), lambda: db[b""], lambda: b"" in db, lambda: db.get_many([b""]),
            lambda: txn.get(b""), lambda: txn[b""], lambda: b"" in txn, lambda: txn.item(b""),
            lambda: db.get(bytearray()),
        ):  # fmt: skip
            with pytest.raises(meles.InvalidKeyError):
                read()


# -- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0, 1, 1024])
def test_an_empty_value_is_empty_bytes_not_none(open_db: OpenDB, threshold: int) -> None:
    """Badger gives nil for it."""
    with open_db(value_threshold=threshold) as db:
        db[b"k"] = b""
        with db.update() as txn:
            txn[b"l"] = b""
            assert (txn[b"l"], txn.get(b"l", b"x"), b"l" in txn) == (b"", b"", True)
        for _ in range(2):
            assert (db[b"k"], db.get(b"k", b"x"), b"k" in db) == (b"", b"", True)
            assert db.get_many([b"k", b"none"]) == [b"", None]
            assert list(db.items()) == [(b"k", b""), (b"l", b"")]
            db.flush()
    assert open_db()[b"k"] == b""


@pytest.mark.parametrize("size", [1, 1023, 1024, 1025, 1 << 20, (3 << 20) + 1])
def test_values_of_any_size(open_db: OpenDB, size: int) -> None:
    value = bytes(n % 251 for n in range(min(size, 1000))) * (size // 1000 + 1)
    with open_db() as db:
        db[b"k"] = value[:size]
        assert db[b"k"] == value[:size]
        db.flush()
        assert db[b"k"] == value[:size]
    assert open_db()[b"k"] == value[:size]


@pytest.mark.parametrize("meta", [0, 1, 128, 255])
def test_a_byte_of_ones_own_goes_with_an_entry(db: meles.DB, meta: int) -> None:
    db.set(b"d", b"v", meta=meta)
    with db.write_batch() as batch:
        batch.set(b"b", b"v" * 5000, meta=meta)
    with db.update() as txn:
        txn.set(b"t", b"v", meta=meta)
        assert {item.meta for item in txn.iterate()} == {meta}
    db.flush()
    assert {item.meta for item in db.iterate()} == {meta}


@pytest.mark.parametrize("meta", [-1, 256, 1.0, True, False, "1", None, b"1", 10**400])
def test_other_metas_are_refused(db: meles.DB, meta: Any) -> None:
    with db.update() as txn, db.write_batch() as batch:
        for target in (db, txn, batch):
            with pytest.raises(ValueError, match="meta"):
                target.set(b"k", b"v", meta=meta)
    assert b"k" not in db


def test_discard_earlier_ends_the_history_of_a_key(open_db: OpenDB) -> None:
    db = open_db(num_versions_to_keep=100)
    db[b"k"] = b"1"
    db[b"k"] = b"2"
    db.set(b"k", b"3", discard_earlier=True)
    db[b"k"] = b"4"
    db.flush()
    db.flatten()
    assert [item.value for item in db.iterate(all_versions=True)] == [b"4", b"3"]
