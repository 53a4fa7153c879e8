"""Transactions: what they see, what they refuse, and what they hold while they live."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import meles
import pytest
from meles.engine import clock
from meles.engine.txn.entries import expiry_ms

OpenDB = Callable[..., meles.DB]
LIMIT = 9830  # 15 % of a memtable of 64 KiB
OVERHEAD = 28


@pytest.fixture
def small(open_db: OpenDB) -> meles.DB:
    return open_db(memtable_size="64KiB")


def readers(db: meles.DB) -> int:
    return db.stats().readers


# -- what is seen --------------------------------------------------------------------------------


def test_a_snapshot_stays_as_it_was(db: meles.DB) -> None:
    db.set(b"a", b"1")
    with db.view() as old:
        db.set(b"a", b"2")
        db.set(b"b", b"2")
        with db.view() as new:
            assert (old.get(b"a"), old.get(b"b")) == (b"1", None)
            assert (new.get(b"a"), new.get(b"b")) == (b"2", b"2")
            assert old.read_ts < new.read_ts == db.max_version()
            assert list(old.items()) == [(b"a", b"1")]


def test_a_snapshot_stays_as_it_was_through_flush_compaction_and_collection(
    open_db: OpenDB,
) -> None:
    db = open_db(memtable_size="64KiB", value_threshold=64, value_log_file_size="1MiB")
    for n in range(50):
        db.set(b"k%02d" % n, b"%d" % n * 100)
    with db.view() as txn:
        before = list(txn.items())
        for n in range(50):
            db.set(b"k%02d" % n, b"new" * 100)
        db.delete(b"k07")
        db.flush()
        db.flatten()
        db.gc(0.01)
        assert db.stats().flushes >= 1
        assert list(txn.items()) == before
        assert [txn.get(key) for key, _ in before] == [value for _, value in before]


def test_own_writes_are_seen_at_once_and_by_others_after_commit(db: meles.DB) -> None:
    db[b"a"] = b"old"
    with db.update() as txn:
        txn.set(b"a", b"new")
        txn[b"b"] = b"b"
        assert (txn[b"a"], txn.get(b"b"), b"b" in txn) == (b"new", b"b", True)
        assert (db.get(b"a"), db.get(b"b")) == (b"old", None)
        assert list(txn.keys()) == [b"a", b"b"]
    assert (db[b"a"], db[b"b"]) == (b"new", b"b")


def test_own_deletes_hide(db: meles.DB) -> None:
    db[b"a"], db[b"b"] = b"1", b"2"
    with db.update() as txn:
        del txn[b"a"]
        txn.delete(b"absent")
        assert (txn.get(b"a"), txn.get(b"a", b"default"), b"a" in txn) == (None, b"default", False)
        with pytest.raises(meles.KeyNotFoundError):
            txn[b"a"]
        assert txn.item(b"a") is None
        assert list(txn.items()) == [(b"b", b"2")]
        txn[b"a"] = b"again"
        assert txn[b"a"] == b"again"
        txn.delete(b"a")
    assert db.get(b"a") is None


def test_an_item_tells_everything(open_db: OpenDB) -> None:
    db = open_db(value_threshold=100)
    db.set(b"k", b"v" * 500, meta=7, ttl=1000)
    with db.update() as txn:
        item = txn.item(b"k")
        assert item is not None
        assert (item.key, item.value, item.value_size) == (b"k", b"v" * 500, 500)
        assert (item.version, item.meta, item.deleted) == (1, 7, False)
        assert abs(item.expires_at - clock.now_ms() / 1000 - 1000) < 60
        txn.set(b"own", b"x", meta=255)
        own = txn.item(b"own")
        assert own is not None
        assert (own.version, own.meta, own.expires_at, own.value) == (txn.read_ts, 255, 0, b"x")
        assert "vv" not in repr(item)


def test_an_empty_value_is_a_value(db: meles.DB) -> None:
    with db.update() as txn:
        txn.set(b"k", b"")
        assert txn.get(b"k") == b""
    assert (db.get(b"k"), b"k" in db, list(db.items())) == (b"", True, [(b"k", b"")])


def test_any_bytes_like_goes_in_and_bytes_come_out(db: meles.DB) -> None:
    for n, kind in enumerate((bytearray, memoryview, bytes)):
        key, value = b"key%d" % n, b"value%d" % n
        with db.update() as txn:
            txn.set(kind(key), kind(value))
            assert type(txn.get(kind(key))) is bytes
        assert db[kind(key)] == value
        assert kind(key) in db
        assert db.get_many([kind(key)]) == [value]
        assert list(db.items(prefix=kind(key))) == [(key, value)]
    changing = bytearray(b"mutable")
    with db.update() as txn:
        txn.set(changing, changing)
        changing[:] = b"changed"
    assert db[b"mutable"] == b"mutable"


@pytest.mark.parametrize(
    "call",
    [
        lambda t: t.get("k"), lambda t: t["k"], lambda t: "k" in t, lambda t: t.item("k"),
        lambda t: t.set("k", b""), lambda t: t.set(b"k", "v"), lambda t: t.delete("k"),
        lambda t: t.iterate("k"), lambda t: t.items(start="k"), lambda t: t.keys(stop="k"),
        lambda t: t.keys().seek("k"), lambda t: t.values(prefix="k"),
    ],
)  # fmt: skip
def test_a_str_is_refused_with_advice(db: meles.DB, call: Callable[[Any], object]) -> None:
    with db.update() as txn:
        for target in (txn, db):
            if hasattr(target, "item") or "item" not in call.__code__.co_names:
                with pytest.raises(TypeError, match="encode"):
                    call(target)


@pytest.mark.parametrize("value", [1, None, 1.5, [b"x"], object()])
def test_what_is_no_bytes_is_refused(db: meles.DB, value: Any) -> None:
    with pytest.raises(TypeError, match="bytes-like"):
        db.set(b"k", value)
    with pytest.raises(TypeError, match="bytes-like"):
        db.get(value)
    with db.update() as txn:
        with pytest.raises(TypeError, match="bytes-like"):
            txn.set(b"k", value)
        with pytest.raises(TypeError, match="bytes-like"):
            txn.get(value)


# -- keys ----------------------------------------------------------------------------------------


def test_a_key_has_1_to_65000_bytes(small: meles.DB, open_db: OpenDB) -> None:
    long = b"k" * 65_000
    small.close()
    db = open_db()
    db.set(long, b"v")
    assert db[long] == b"v"
    for bad in (b"", long + b"k"):
        with db.update() as txn:
            with pytest.raises(meles.InvalidKeyError):
                txn.set(bad, b"v")
            with pytest.raises(meles.InvalidKeyError):
                txn.delete(bad)
            txn.set(b"still", b"usable")
        with pytest.raises(meles.InvalidKeyError):
            db.set(bad, b"v")
        with pytest.raises(meles.InvalidKeyError):
            db.delete(bad)
    assert db[b"still"] == b"usable"
    assert (db.get(long + b"k"), long + b"k" in db, db.get_many([long + b"k"])) == (
        None, False, [None],
    )  # fmt: skip
    for read in (lambda: db.get(b""), lambda: b"" in db, lambda: db.get_many([b""])):
        with pytest.raises(meles.InvalidKeyError):
            read()
    with db.view() as txn, pytest.raises(meles.InvalidKeyError):
        txn.get(b"")


def test_reserved_keys_can_not_be_written_and_are_absent(db: meles.DB) -> None:
    for key in (b"!meles!", b"!meles!x"):
        with pytest.raises(meles.InvalidKeyError):
            db.set(key, b"v")
        with db.update() as txn, pytest.raises(meles.InvalidKeyError):
            txn.delete(key)
        with db.write_batch() as batch, pytest.raises(meles.InvalidKeyError):
            batch.set(key, b"v")
        assert db.get(key) is None
    db.set(b"!meles", b"fine")
    db.set(b"!meles?", b"fine")


# -- limits --------------------------------------------------------------------------------------


@contextmanager
def setter(db: meles.DB, how: str) -> Iterator[Callable[[bytes, bytes], object]]:
    """The ways to write an entry."""
    if how == "set":
        yield db.set
        return
    with db.update() if how == "txn" else db.write_batch() as target:
        yield target.set


def test_a_transaction_takes_exactly_its_limit(small: meles.DB) -> None:
    """Each entry counts with its key, its value (under the threshold) and 28 bytes."""
    with small.update() as txn:
        for n in range(9):
            txn.set(b"%02d" % n, b"v" * 952)  # 982 each
        rest = LIMIT - 9 * 982 - OVERHEAD - 2
        with pytest.raises(meles.TransactionTooBigError) as caught:
            txn.set(b"09", b"v" * (rest + 1))
        assert (caught.value.limit, caught.value.size) == (LIMIT, LIMIT + 1)
        assert b"09" not in txn
        txn.set(b"09", b"v" * rest)  # still usable
        with pytest.raises(meles.TransactionTooBigError):
            txn.delete(b"x")
    assert len(list(small.keys())) == 10
    assert small[b"09"] == b"v" * rest


def test_a_large_value_counts_as_its_pointer(small: meles.DB) -> None:
    count = LIMIT // (3 + 12 + OVERHEAD)
    with small.update() as txn:
        for n in range(count):
            txn.set(b"%03d" % n, b"v" * 1024)
        with pytest.raises(meles.TransactionTooBigError):
            txn.set(b"xxx", b"v" * 1024)
    assert len(list(small.keys())) == count == 228


@pytest.mark.parametrize("how", ["set", "txn", "batch"])
def test_an_entry_that_no_transaction_holds_is_refused(small: meles.DB, how: str) -> None:
    key = b"k" * (LIMIT - OVERHEAD + 1)
    with setter(small, how) as write:
        with pytest.raises(meles.TransactionTooBigError) as caught:
            write(key, b"")
        assert (caught.value.limit, caught.value.size) == (LIMIT, LIMIT + 1)
        write(key[1:], b"")
    assert list(small.keys()) == [key[1:]]


@pytest.mark.parametrize("how", ["set", "txn", "batch"])
def test_a_value_larger_than_a_file_is_refused(open_db: OpenDB, how: str) -> None:
    db = open_db(value_log_file_size="1MiB")
    largest = bytes(1 << 20)
    with setter(db, how) as write:
        with pytest.raises(meles.TransactionTooBigError) as caught:
            write(b"k", largest + b"x")
        assert (caught.value.limit, caught.value.size) == (1 << 20, (1 << 20) + 1)
        write(b"k", largest)
    assert db[b"k"] == largest


@pytest.mark.parametrize("meta", [-1, 256, True, "1", 1.0, None])
def test_meta_is_a_byte(db: meles.DB, meta: Any) -> None:
    with db.update() as txn, pytest.raises((ValueError, TypeError)):
        txn.set(b"k", b"v", meta=meta)
    if meta is not None:
        with pytest.raises((ValueError, TypeError)):
            db.set(b"k", b"v", meta=meta)


# -- time to live --------------------------------------------------------------------------------


@pytest.mark.parametrize("ttl", [0, -1, -0.001, timedelta(0), float("nan")])
def test_a_time_to_live_is_positive(db: meles.DB, ttl: Any) -> None:
    with db.update() as txn, db.write_batch() as batch:
        for write in (db.set, txn.set, batch.set):
            with pytest.raises(ValueError, match="ttl"):
                write(b"k", b"v", ttl=ttl)


@pytest.mark.parametrize("ttl", ["1", True, object()])
def test_a_time_to_live_is_a_time(db: meles.DB, ttl: Any) -> None:
    with pytest.raises(TypeError, match="ttl"):
        db.set(b"k", b"v", ttl=ttl)


def test_expiry_is_kept_to_the_millisecond() -> None:
    now = clock.now_ms()
    assert 0 <= expiry_ms(1.5) - now - 1500 < 5000
    assert 0 <= expiry_ms(timedelta(milliseconds=1)) - now - 1 < 5000
    assert expiry_ms(1e300) == 1 << 62
    assert expiry_ms(float("inf")) == 1 << 62
    assert expiry_ms(None) == 0


def test_what_has_expired_is_gone(db: meles.DB, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock at read time, in own writes and old snapshots too."""
    db.set(b"a", b"1", ttl=100)
    db.set(b"b", b"1")
    with db.update() as txn:
        txn.set(b"own", b"1", ttl=100)
        assert list(txn.keys()) == [b"a", b"b", b"own"]
        later = clock.now_ms() + 100_001
        monkeypatch.setattr(clock, "time_ns", lambda: later * 1_000_000)
        assert list(txn.keys()) == [b"b"]
        assert (txn.get(b"a"), txn.get(b"own"), txn.item(b"a")) == (None, None, None)
        assert (db.get(b"a"), b"a" in db, db.get_many([b"a", b"b"])) == (None, False, [None, b"1"])
        versions = [(item.key, item.deleted) for item in txn.iterate(all_versions=True)]
        assert versions == [(b"a", True), (b"b", False), (b"own", True)]
        txn.discard()


# -- ending --------------------------------------------------------------------------------------


def test_commit_tells_the_timestamp(db: meles.DB) -> None:
    txn = db.update()
    txn.set(b"a", b"1")
    assert txn.commit_ts == 0
    assert txn.commit() == txn.commit_ts == db.max_version() == 1


def test_a_commit_of_nothing_is_0_and_lets_go_of_the_snapshot(db: meles.DB) -> None:
    txn = db.update()
    txn.get(b"a")
    assert readers(db) == 1
    assert txn.commit() == 0
    assert (readers(db), db.max_version()) == (0, 0)
    view = db.view()
    assert view.commit() == 0
    assert readers(db) == 0


@pytest.mark.parametrize("end", ["commit", "discard", "with", "with error", "conflict"])
def test_every_way_to_end_lets_go_of_the_snapshot(db: meles.DB, end: str) -> None:
    txn = db.update()
    txn.get(b"k")
    txn.set(b"a", b"1")
    assert readers(db) == 1
    if end == "commit":
        txn.commit()
    elif end == "discard":
        txn.discard()
        txn.discard()
    elif end == "with":
        with txn:
            pass
    elif end == "with error":
        with pytest.raises(ZeroDivisionError), txn:
            raise ZeroDivisionError
    else:
        db.set(b"k", b"changed")
        with pytest.raises(meles.ConflictError):
            txn.commit()
    assert readers(db) == 0
    assert (db.get(b"a") is not None) == (end in ("commit", "with"))
    calls: list[Callable[[], object]] = [
        lambda: txn.get(b"a"), lambda: txn[b"a"], lambda: b"a" in txn, lambda: txn.item(b"a"),
        lambda: txn.set(b"a", b""), lambda: txn.delete(b"a"), txn.iterate, txn.keys, txn.commit,
        txn.__enter__,
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(meles.TransactionFinishedError):
            call()
    txn.discard()


def test_a_finished_transaction_may_leave_its_block(db: meles.DB) -> None:
    with db.update() as txn:
        txn.set(b"a", b"1")
        txn.commit()
    with db.update() as txn:
        txn.set(b"a", b"2")
        txn.discard()
    assert db[b"a"] == b"1"


def test_a_view_does_not_write(db: meles.DB) -> None:
    with db.view() as txn:
        for call in (lambda: txn.set(b"a", b""), lambda: txn.delete(b"a")):
            with pytest.raises(meles.ReadOnlyError):
                call()


def test_a_forgotten_transaction_warns_and_lets_go(db: meles.DB) -> None:
    txn: Any = db.update()
    txn.set(b"a", b"1")
    assert readers(db) == 1
    with pytest.warns(ResourceWarning, match="neither committed nor discarded"):
        txn = gc.collect()
    assert readers(db) == 0
    assert db.get(b"a") is None


# -- reading in the past -------------------------------------------------------------------------


def test_reading_at_a_timestamp(open_db: OpenDB) -> None:
    db = open_db(num_versions_to_keep=10)
    for n in range(1, 6):
        db.set(b"k", b"%d" % n)
    for at in range(6):
        with db.view(at=at) as txn:
            assert txn.get(b"k") == (b"%d" % at if at else None)
            assert txn.read_ts == at
    for bad in (-1, 6, 1.0, True, "1"):
        with pytest.raises(ValueError, match="at="):
            db.view(at=bad)  # type: ignore[arg-type]
    with pytest.raises(meles.Error, match="managed"):
        db.update(at=1)


# -- managed mode --------------------------------------------------------------------------------


def put_at(db: meles.DB, key: bytes, value: bytes, ts: int) -> None:
    txn = db.update()
    txn.set(key, value)
    assert txn.commit_at(ts) == ts


def test_managed_versions_may_come_in_any_order(open_db: OpenDB) -> None:
    """Also when a lower one comes after a flush, and after a crash-free reopening."""
    options = {"managed": True, "num_versions_to_keep": 100}
    db = open_db(**options)
    expected: dict[int, bytes] = {}
    for step, ts in enumerate((100, 50, 70, 10, 200, 60)):
        value = b"v%d" % ts
        put_at(db, b"k", value, ts)
        expected[ts] = value
        if step % 2 == 0:
            db.flush()
        if step == 3:
            db.close()
            db = open_db(**options)
        assert db.health().status == "ok"
        newest = max(expected)
        assert (db[b"k"], db.max_version()) == (expected[newest], newest)
        for at in range(0, newest + 1, 10):
            best = max((ts for ts in expected if ts <= at), default=None)
            with db.view(at=at) as txn:
                value_then = None if best is None else expected[best]
                assert txn.get(b"k") == value_then
                assert list(txn.values()) == ([] if best is None else [value_then])
        versions = [i.version for i in db.iterate(all_versions=True)]
        assert versions == sorted(expected, reverse=True)
    db.flatten()
    assert [i.version for i in db.iterate(all_versions=True)] == sorted(expected, reverse=True)
    assert db.verify().ok


def test_managed_mode_wants_timestamps(open_db: OpenDB) -> None:
    db = open_db(managed=True)
    for call in (lambda: db.set(b"k", b"v"), lambda: db.delete(b"k"), db.write_batch):
        with pytest.raises(meles.Error):
            call()
    txn = db.update()
    txn.set(b"k", b"v")
    with pytest.raises(meles.Error, match="commit_at"):
        txn.commit()
    for bad in (0, -1, 1.5, "1", True, 1 << 63):
        with pytest.raises(ValueError, match="ts="):
            txn.commit_at(bad)  # type: ignore[arg-type]
    txn.commit_at(5)
    txn = db.update()
    txn.set(b"k", b"v2")
    with pytest.raises(meles.Error, match="commit_at"), txn:
        pass
    assert readers(db) == 0
    with db.write_batch(at=9) as batch:
        batch.set(b"b", b"9")
    assert [(i.key, i.version) for i in db.iterate()] == [(b"b", 9), (b"k", 5)]


def test_outside_managed_mode_the_engine_chooses(db: meles.DB) -> None:
    with db.update() as txn:
        txn.set(b"k", b"v")
        with pytest.raises(meles.Error, match="managed"):
            txn.commit_at(5)
    with pytest.raises(meles.Error):
        db.write_batch(at=5)
    with pytest.raises(meles.Error, match="managed"):
        db.set_discard_ts(1)


# -- running again -------------------------------------------------------------------------------


def test_transact_runs_again_after_a_conflict(db: meles.DB) -> None:
    db[b"n"] = b"0"
    runs = []

    def add(txn: meles.Txn) -> str:
        runs.append(txn.read_ts)
        number = int(txn[b"n"])
        if len(runs) < 4:
            db[b"n"] = b"%d" % (number + 10)  # somebody else
        txn[b"n"] = b"%d" % (number + 1)
        return "done"

    assert db.transact(add) == "done"
    assert len(runs) == 4
    assert db[b"n"] == b"31"


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_transact_gives_up_after_its_retries(db: meles.DB, retries: int) -> None:
    runs = []

    def spoiled(txn: meles.Txn) -> None:
        runs.append(txn.get(b"n"))
        db[b"n"] = b"x"
        txn[b"m"] = b"y"

    with pytest.raises(meles.ConflictError):
        db.transact(spoiled, retries=retries)
    assert len(runs) == retries + 1
    assert db.get(b"m") is None
    assert readers(db) == 0


def test_transact_passes_other_errors_on(db: meles.DB) -> None:
    def fail(txn: meles.Txn) -> None:
        txn[b"k"] = b"v"
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        db.transact(fail)
    assert (db.get(b"k"), readers(db)) == (None, 0)


def test_a_transactional_function_is_called_without_its_transaction(db: meles.DB) -> None:
    @db.transactional(retries=2)
    def move(txn: meles.Txn, source: bytes, *, target: bytes) -> bytes:
        """Move a value."""
        value = txn[source]
        txn[target] = value
        del txn[source]
        return value

    db[b"a"] = b"1"
    assert move(b"a", target=b"b") == b"1"
    assert list(db.items()) == [(b"b", b"1")]
    assert (move.__name__, move.__doc__) == ("move", "Move a value.")
    with pytest.raises(meles.KeyNotFoundError):
        move(b"a", target=b"c")
