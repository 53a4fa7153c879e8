"""`db.merge_operator`: operands under a key and their fold."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import meles
import pytest
from meles.engine.background import idling
from waiting import wait_until

pytestmark = pytest.mark.leak_guard
OpenDB = Callable[..., meles.DB]
SELDOM = 3600.0


def joined(existing: bytes, new: bytes) -> bytes:
    return existing + b"," + new


def test_operands_fold_in_the_order_they_were_added(db: meles.DB) -> None:
    with db.merge_operator(b"m", joined, every=SELDOM) as merge:
        merge.add(b"a")
        assert merge.get() == b"a"
        merge.add(bytearray(b"b"))
        merge.add(memoryview(b"c"))
        assert merge.get() == b"a,b,c"
    assert db[b"m"] == b"a,b,c"


def test_nothing_added_is_key_not_found(db: meles.DB) -> None:
    with db.merge_operator(b"m", joined, every=SELDOM) as merge:
        with pytest.raises(meles.KeyNotFoundError):
            merge.get()
        merge.add(b"a")
        db.delete(b"m")
        with pytest.raises(meles.KeyNotFoundError):
            merge.get()


def test_a_plain_set_is_the_new_base_value(db: meles.DB) -> None:
    db[b"m"] = b"base"
    with db.merge_operator(b"m", joined, every=SELDOM) as merge:
        assert merge.get() == b"base"
        merge.add(b"a")
        assert merge.get() == b"base,a"
        db[b"m"] = b"fresh"
        assert merge.get() == b"fresh"
        merge.add(b"b")
        assert merge.get() == b"fresh,b"


@pytest.mark.parametrize("every", [0.01, timedelta(milliseconds=10)])
def test_it_folds_every_so_often(open_db: OpenDB, every: Any) -> None:
    db = open_db(num_versions_to_keep=100)
    with db.merge_operator(b"m", joined, every=every) as merge:
        for n in range(5):
            merge.add(b"%d" % n)
        wait_until(lambda: db.get(b"m") == b"0,1,2,3,4")
        assert merge.get() == b"0,1,2,3,4"
        merge.add(b"5")
        assert merge.get() == b"0,1,2,3,4,5"


def test_folding_is_what_frees_the_operands(open_db: OpenDB) -> None:
    db = open_db()
    with db.merge_operator(b"m", joined, every=SELDOM) as merge:
        for n in range(20):
            merge.add(b"%d" % n)
    db.flush()
    db.flatten()
    assert len(list(db.iterate(all_versions=True))) == 1


def test_operands_survive_compaction_until_they_are_folded(open_db: OpenDB) -> None:
    db = open_db()
    merge = db.merge_operator(b"m", joined, every=SELDOM)
    for n in range(6):
        merge.add(b"%d" % n)
        db.flush()
    db.flatten()
    assert merge.get() == b"0,1,2,3,4,5"
    merge.stop()


def test_they_survive_reopening(open_db: OpenDB) -> None:
    with open_db() as db:
        merge = db.merge_operator(b"m", joined, every=SELDOM)
        merge.add(b"a")
        merge.add(b"b")
    with open_db() as db, db.merge_operator(b"m", joined, every=SELDOM) as merge:
        assert merge.get() == b"a,b"


def test_many_threads_lose_no_operand(open_db: OpenDB) -> None:
    db = open_db(memtable_size="64KiB")

    def count(existing: bytes, new: bytes) -> bytes:
        return b"%d" % (int(existing) + int(new))

    with db.merge_operator(b"m", count, every=0.005) as merge:

        def work() -> None:
            for _ in range(50):
                merge.add(b"1")

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert merge.get() == b"200"
    assert db[b"m"] == b"200"


def test_after_stop_it_is_closed(db: meles.DB) -> None:
    merge = db.merge_operator(b"m", joined, every=SELDOM)
    merge.add(b"a")
    merge.stop()
    merge.stop()
    with pytest.raises(meles.ClosedError):
        merge.add(b"b")
    with merge:
        pass
    assert db[b"m"] == b"a"


def test_after_closing_the_database_it_is_closed(db: meles.DB) -> None:
    merge = db.merge_operator(b"m", joined, every=SELDOM)
    merge.add(b"a")
    db.close()
    for use in (lambda: merge.add(b"b"), merge.get):
        with pytest.raises(meles.ClosedError):
            use()
    merge.stop()


@pytest.mark.parametrize("every", [0, -1, float("nan"), timedelta(0)])
def test_other_intervals_are_value_errors(db: meles.DB, every: Any) -> None:
    with pytest.raises(ValueError, match="every"):
        db.merge_operator(b"m", joined, every=every)


@pytest.mark.parametrize("every", ["1", None, True])
def test_what_is_no_interval_is_a_type_error(db: meles.DB, every: Any) -> None:
    with pytest.raises(TypeError, match="every"):
        db.merge_operator(b"m", joined, every=every)


@pytest.mark.parametrize("every", [float("inf"), 1e300, 10**400, timedelta.max])
def test_an_interval_without_end(db: meles.DB, every: Any) -> None:
    with db.merge_operator(b"m", joined, every=every) as merge:
        merge.add(b"a")


def test_the_function_is_one_and_gives_bytes(db: meles.DB) -> None:
    with pytest.raises(TypeError):
        db.merge_operator(b"m", None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        db.merge_operator(b"m", joined, 1.0)  # type: ignore[misc]
    bad = db.merge_operator(b"m", lambda a, b: "text", every=SELDOM)  # type: ignore[arg-type, return-value]
    bad.add(b"a")
    bad.add(b"b")
    with pytest.raises(TypeError, match="encode"):
        bad.get()
    with pytest.raises(TypeError, match="encode"):
        bad.stop()
    gc.collect()
    assert db.stats().readers == 0


def test_a_fold_is_no_change_for_subscribers(db: meles.DB) -> None:
    """Badger publishes folds again."""
    with db.subscribe() as changes:
        with db.merge_operator(b"m", joined, every=SELDOM) as merge:
            merge.add(b"a")
            merge.add(b"b")
        db[b"end"] = b"v"
        assert [next(changes).value for _ in range(3)] == [b"a", b"b", b"v"]


def test_no_operand_is_lost_whatever_detect_conflicts_says(open_db: OpenDB) -> None:
    """A fold must notice an operand that came in while it was made."""
    db = open_db(detect_conflicts=False)
    late = [b"c", b"d"]

    def while_others_add(existing: bytes, new: bytes) -> bytes:
        if late:
            other.add(late.pop(0))
        return joined(existing, new)

    with db.merge_operator(b"m", joined, every=SELDOM) as other:
        with db.merge_operator(b"m", while_others_add, every=SELDOM) as merge:
            merge.add(b"a")
            merge.add(b"b")
        assert not late
        assert db[b"m"] == other.get() == b"a,b,c,d"


def test_a_fold_too_large_for_a_transaction_leaves_the_operands(open_db: OpenDB) -> None:
    limits = {"memtable_size": "64KiB", "value_threshold": "1MiB"}
    db = open_db(**limits)
    with db.merge_operator(b"m", bytes.__add__, every=SELDOM) as merge:
        for number in range(10):
            merge.add(b"%d" % number * 3000)
    expected = b"".join(b"%d" % number * 3000 for number in range(10))
    assert len(expected) > db.options.txn_limit
    db.close()
    db = open_db(**limits)
    with db.merge_operator(b"m", bytes.__add__, every=0.01) as merge:
        assert merge.get() == expected
        merge.add(b"!")
        assert merge.get() == expected + b"!"


def test_why_it_cannot_fold_is_logged_once_for_as_long_as_it_lasts(
    db: meles.DB, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idling, "QUIET_SECONDS", 0.01)
    monkeypatch.setattr(idling, "DOZE_SECONDS", 0.01)
    tries = []
    may_fold = threading.Event()
    away = f"{db.path}.away"

    def counted(existing: bytes, new: bytes) -> bytes:
        assert may_fold.wait(60)
        tries.append(new)
        return existing + new

    def is_folded() -> bool:
        with db.iterate() as items:
            return not next(items).is_merge

    with db.merge_operator(b"m", counted, every=0.001) as merge:
        for times in (1, 2):
            may_fold.clear()
            merge.add(b"a")
            merge.add(b"b")
            os.rename(db.path, away)
            wait_until(lambda: db.wait_idle(10) and db.health().status == "degraded")
            tried = len(tries)
            may_fold.set()
            wait_until(lambda tried=tried: len(tries) > tried + 5)
            logged = [record for record in caplog.records if record.name == "meles.merge"]
            assert len(logged) == times
            os.rename(away, db.path)
            wait_until(is_folded)


def test_the_largest_of_all_operands(open_db: OpenDB) -> None:
    """Badger's own example: `max` over 8-byte numbers."""
    db = open_db()
    with db.merge_operator(b"m", max, every=0.001) as merge:
        for number in (3, 900, 17, 255, 256):
            merge.add(number.to_bytes(8, "big"))
        assert int.from_bytes(merge.get(), "big") == 900
    assert int.from_bytes(db[b"m"], "big") == 900


def test_the_function_may_use_one_buffer_for_all_results(open_db: OpenDB) -> None:
    """Badger wants results that share no memory with anything."""
    buffer = bytearray()

    def into_the_buffer(existing: bytes, new: bytes) -> Any:
        buffer[:] = existing + b"," + new
        return buffer

    with open_db() as db, db.merge_operator(b"m", into_the_buffer, every=SELDOM) as merge:
        for operand in (b"a", b"b", b"c"):
            merge.add(operand)
        first = merge.get()
        merge.add(b"d")
        assert (first, merge.get()) == (b"a,b,c", b"a,b,c,d")
        buffer[:] = b"something else"
    with open_db() as db:
        assert db[b"m"] == b"a,b,c,d"
