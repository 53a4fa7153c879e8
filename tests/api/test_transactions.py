"""`Txn`: snapshots, own writes, commit and discard, the limits, and what ends with it."""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Callable
from typing import Any

import meles
import pytest
from checkers.threads import run_threads

OpenDB = Callable[..., meles.DB]


# -- view and update -----------------------------------------------------------------------------


def test_a_view_sees_its_snapshot_and_writes_nothing(db: meles.DB) -> None:
    db[b"k"] = b"1"
    with db.view() as txn:
        db[b"k"] = b"2"
        db[b"l"] = b"2"
        assert (txn[b"k"], txn.get(b"l"), list(txn.items())) == (b"1", None, [(b"k", b"1")])
        for write in (
            lambda: txn.set(b"k", b"v"),
            lambda: txn.__setitem__(b"k", b"v"),
            lambda: txn.delete(b"k"),
            lambda: txn.__delitem__(b"k"),
        ):
            with pytest.raises(meles.ReadOnlyError):
                write()
        assert txn.commit() == 0
    assert db[b"k"] == b"2"


def test_a_snapshot_holds_every_commit_acknowledged_before_it_began(db: meles.DB) -> None:
    for n in range(20):
        db[b"%d" % n] = b"v"
        with db.view() as txn:
            assert len(list(txn.keys())) == n + 1
            assert txn.read_ts == db.max_version() == n + 1


def test_an_update_commits_on_a_clean_exit(db: meles.DB) -> None:
    with db.update() as txn:
        txn.set(b"a", b"1")
        txn[b"b"] = b"2"
        assert (txn[b"a"], txn.get(b"b"), list(txn)) == (b"1", b"2", [b"a", b"b"])
        assert list(db) == []
    assert list(db.items()) == [(b"a", b"1"), (b"b", b"2")]
    assert txn.commit_ts == db.max_version() == 1


def test_an_update_is_discarded_by_an_exception(db: meles.DB) -> None:
    txn = db.update()

    def fail() -> None:
        with txn:
            txn[b"k"] = b"v"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(db) == []
    assert txn.commit_ts == 0
    with pytest.raises(meles.TransactionFinishedError):
        txn.get(b"k")


def test_commit_gives_the_timestamp_and_0_for_nothing(db: meles.DB) -> None:
    txn = db.update()
    assert (txn.read_ts, txn.commit_ts) == (0, 0)
    txn[b"k"] = b"v"
    assert txn.commit_ts == 0
    assert txn.commit() == txn.commit_ts == 1
    empty = db.update()
    empty.get(b"k")
    assert (empty.commit(), empty.commit_ts, db.max_version()) == (0, 0, 1)
    with db.update() as untouched:
        pass
    assert untouched.commit_ts == 0


def test_commit_order_is_timestamp_order(db: meles.DB) -> None:
    first, second = db.update(), db.update()
    second[b"k"] = b"second"
    first[b"k"] = b"first"
    assert (second.commit(), first.commit()) == (1, 2)
    assert db[b"k"] == b"first"
    assert next(db.iterate(all_versions=True)).value == b"first"


def test_reading_at_a_timestamp_works_everywhere(open_db: OpenDB) -> None:
    db = open_db(num_versions_to_keep=10)
    for n in range(1, 4):
        db[b"k"] = b"%d" % n
    for at, expected in ((0, None), (1, b"1"), (2, b"2"), (3, b"3")):
        with db.view(at=at) as txn:
            assert (txn.get(b"k"), txn.read_ts) == (expected, at)
    db.flush()
    with db.view(at=2) as txn:
        assert txn[b"k"] == b"2"
        assert list(txn.values()) == [b"2"]
    for bad in (4, -1, 2**64, 10**5000, 1.0, "1", True, [], float("nan")):
        with pytest.raises(ValueError, match="at="):
            db.view(at=bad)  # type: ignore[arg-type]


# -- own writes ----------------------------------------------------------------------------------


def test_own_writes_are_visible_in_every_way(db: meles.DB) -> None:
    db[b"a"], db[b"b"] = b"old", b"old"
    with db.update() as txn:
        txn[b"a"] = b"new"
        del txn[b"b"]
        txn.set(b"c", b"", meta=9)
        assert (txn[b"a"], txn.get(b"b"), b"b" in txn, txn[b"c"]) == (b"new", None, False, b"")
        assert txn.item(b"b") is None
        with pytest.raises(meles.KeyNotFoundError):
            txn[b"b"]
        assert list(txn.items()) == [(b"a", b"new"), (b"c", b"")]
        assert list(txn.items(reverse=True)) == [(b"c", b""), (b"a", b"new")]
        assert list(txn) == list(txn.keys()) == [b"a", b"c"]
        assert list(txn.values()) == [b"new", b""]
        txn[b"b"] = b"again"
        assert txn[b"b"] == b"again"


def test_own_writes_are_seen_in_an_empty_database(db: meles.DB) -> None:
    with db.update() as txn:
        txn[b"k"] = b"v"
        assert list(txn.items()) == [(b"k", b"v")]
        assert [item.version for item in txn.iterate(all_versions=True)] == [0]


def test_reading_ones_own_write_is_no_read(db: meles.DB) -> None:
    with db.update() as txn:
        txn[b"k"] = b"mine"
        assert txn[b"k"] == b"mine"
        db[b"k"] = b"other"
    assert db[b"k"] == b"mine"


def test_of_several_writes_of_a_key_the_last_counts(db: meles.DB) -> None:
    with db.update() as txn:
        txn.set(b"k", b"1", meta=1, ttl=1000)
        txn[b"k"] = b"2"
        txn.delete(b"l")
        txn[b"l"] = b"3"
        txn[b"m"] = b"4"
        txn.delete(b"m")
    assert list(db.items()) == [(b"k", b"2"), (b"l", b"3")]
    assert [(item.meta, item.expires_at) for item in db.iterate(b"k")] == [(0, 0)]


# -- finished ------------------------------------------------------------------------------------

USES: dict[str, Callable[[meles.Txn], Any]] = {
    "get": lambda txn: txn.get(b"k"),
    "subscript": lambda txn: txn[b"k"],
    "in": lambda txn: b"k" in txn,
    "item": lambda txn: txn.item(b"k"),
    "set": lambda txn: txn.set(b"k", b"v"),
    "delete": lambda txn: txn.delete(b"k"),
    "setitem": lambda txn: txn.__setitem__(b"k", b"v"),
    "delitem": lambda txn: txn.__delitem__(b"k"),
    "iterate": lambda txn: txn.iterate(),
    "items": lambda txn: txn.items(),
    "keys": lambda txn: txn.keys(),
    "values": lambda txn: txn.values(),
    "commit": lambda txn: txn.commit(),
    "enter": lambda txn: txn.__enter__(),
}


@pytest.mark.parametrize("how", ["commit", "discard", "conflict", "exit"])
def test_a_finished_transaction_raises_on_any_use(db: meles.DB, how: str) -> None:
    db[b"k"] = b"v"
    txn = db.update()
    txn[b"l"] = b"w"
    if how == "conflict":
        txn.get(b"k")
        db[b"k"] = b"other"
        with pytest.raises(meles.ConflictError):
            txn.commit()
    elif how == "exit":
        with txn:
            pass
    else:
        getattr(txn, how)()
    for name, use in USES.items():
        with pytest.raises(meles.TransactionFinishedError) as caught:
            use(txn)
        assert isinstance(caught.value, ValueError), name
    txn.discard()
    txn.discard()
    assert db.stats().readers == 0
    assert txn.read_ts == 1


@pytest.mark.parametrize("how", ["commit", "discard"])
def test_ending_a_transaction_ends_its_iterators(db: meles.DB, how: str) -> None:
    """Badger panics when an iterator is still open."""
    for n in range(10):
        db[b"%d" % n] = b"v"
    txn = db.update()
    txn[b"x"] = b"y"
    cursors: list[Any] = [txn.keys(), txn.items(), txn.iterate(), txn.values(reverse=True)]
    for cursor in cursors:
        next(cursor)
    getattr(txn, how)()
    for cursor in cursors:
        for use in (next, lambda c: c.seek(b"1"), lambda c: c.rewind()):
            with pytest.raises(meles.TransactionFinishedError):
                use(cursor)
        cursor.close()
        cursor.close()


def test_closing_the_database_ends_everything_with_closed_error(db: meles.DB) -> None:
    db[b"k"] = b"v"
    running, finished, view = db.update(), db.update(), db.view()
    finished.discard()
    running[b"l"] = b"w"
    cursors: list[Any] = [running.keys(), view.items(), db.iterate()]
    closed = db.keys()
    closed.close()
    db.close()
    for txn in (running, finished, view):
        for use in USES.values():
            with pytest.raises(meles.ClosedError):
                use(txn)
        txn.discard()
    for cursor in (*cursors, closed):
        for use in (next, lambda c: c.seek(b"1"), lambda c: c.rewind()):
            with pytest.raises(meles.ClosedError):
                use(cursor)
        cursor.close()


def test_a_block_whose_database_was_closed_does_not_end_as_if_it_had_committed(
    open_db: OpenDB,
) -> None:
    def write_and_close(*, commit: bool) -> None:
        with open_db() as db, db.update() as txn:
            txn[b"k"] = b"v"
            if commit:
                txn.commit()
            db.close()

    with pytest.raises(meles.ClosedError):
        write_and_close(commit=False)
    with open_db() as db:
        assert list(db) == []
    write_and_close(commit=True)
    with open_db() as db:
        assert list(db) == [b"k"]


def test_a_forgotten_transaction_lets_go_of_its_snapshot(db: meles.DB) -> None:
    """Badger keeps the garbage of a transaction that was committed without writes for ever."""
    txn = db.view()
    assert db.stats().readers == 1
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del txn
        gc.collect()
    assert "transaction" in str(caught[0].message)
    assert db.stats().readers == 0
    empty = db.update()
    empty.commit()
    assert db.stats().readers == 0


# -- conflicts -----------------------------------------------------------------------------------


def test_what_was_read_and_changed_since_is_a_conflict(db: meles.DB) -> None:
    db[b"k"] = b"1"
    txn = db.update()
    txn[b"l"] = txn[b"k"]
    db[b"k"] = b"2"
    with pytest.raises(meles.ConflictError):
        txn.commit()
    assert b"l" not in db


@pytest.mark.parametrize("arguments", [{}, {"reverse": True}, {"prefix": b"b"}])
def test_phantoms_conflict(db: meles.DB, arguments: dict[str, Any]) -> None:
    """Badger tracks the items an iterator gave, so what was not there is not seen to come."""
    txn = db.update()
    assert list(txn.keys(**arguments)) == []
    txn[b"count"] = b"0"
    db[b"b1"] = b"new"
    with pytest.raises(meles.ConflictError):
        txn.commit()


def test_what_was_not_covered_does_not_conflict(db: meles.DB) -> None:
    for n in range(100):
        db[b"%02d" % n] = b"v"
    with db.update() as txn:
        cursor = txn.keys()
        assert [next(cursor) for _ in range(10)][-1] == b"09"
        txn[b"seen"] = b"10"
        db[b"10"] = b"new"  # one behind the last item yielded, though it was fetched by then
    txn = db.update()
    next(txn.keys())
    txn[b"seen"] = b"1"
    db[b"00"] = b"new"
    with pytest.raises(meles.ConflictError):
        txn.commit()


def test_blind_writes_and_read_only_transactions_never_conflict(db: meles.DB) -> None:
    first, second, reader = db.update(), db.update(), db.view()
    assert list(reader.keys()) == []
    first[b"k"], second[b"k"] = b"1", b"2"
    assert first.commit() < second.commit()
    assert reader.commit() == 0


def test_detection_can_be_turned_off(open_db: OpenDB) -> None:
    db = open_db(detect_conflicts=False)
    with db.update() as txn:
        txn.get(b"k")
        list(txn.keys())
        txn[b"l"] = b"w"
        db[b"k"] = b"v"
    assert db[b"l"] == b"w"


# -- limits --------------------------------------------------------------------------------------


def test_a_transaction_takes_15_percent_of_a_memtable_and_stays_usable(open_db: OpenDB) -> None:
    db = open_db(memtable_size="1MiB")
    limit = (1 << 20) * 15 // 100
    with db.update() as txn:
        n = limit // 1100
        for i in range(n):
            txn.set(b"%05d" % i, b"v" * 1000)
        too_big = b"%05d" % n
        with pytest.raises(meles.TransactionTooBigError) as caught:
            txn.set(too_big * 10_000, b"v" * 900)
        assert isinstance(caught.value, ValueError)
        assert caught.value.limit == limit
        assert caught.value.size > limit
        assert too_big not in txn
        txn[b"small"] = b"fits"
        assert len(list(txn)) == n + 1
    assert len(list(db)) == n + 1


def test_large_values_count_as_their_pointers(open_db: OpenDB) -> None:
    db = open_db(memtable_size="64KiB")
    with db.update() as txn:
        for n in range(100):
            txn.set(b"%02d" % n, b"v" * 5000)
    assert [len(value) for value in db.values()] == [5000] * 100


def test_a_value_larger_than_a_value_log_file_is_too_big(open_db: OpenDB) -> None:
    db = open_db(value_log_file_size="1MiB")
    value = bytes((1 << 20) + 1)
    with db.update() as txn, db.write_batch() as batch:
        for target in (db, txn, batch):
            with pytest.raises(meles.TransactionTooBigError) as caught:
                target.set(b"k", value)
            assert (caught.value.limit, caught.value.size) == (1 << 20, len(value))
            target.set(b"k", value[1:])
    assert len(db[b"k"]) == 1 << 20


# -- threads -------------------------------------------------------------------------------------


def test_a_transaction_may_move_to_another_thread(db: meles.DB) -> None:
    txn = db.update()
    txn[b"a"] = b"1"

    def work() -> None:
        assert txn[b"a"] == b"1"
        txn[b"b"] = b"2"
        txn.commit()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert list(db.items()) == [(b"a", b"1"), (b"b", b"2")]


def test_two_threads_at_once_get_clear_errors_and_one_whole_commit(db: meles.DB) -> None:
    """One thread at a time is the rule; breaking it must not break the data."""
    for number in range(40):
        txn = db.update()
        names = [b"%d-%d" % (number, n) for n in range(30)]
        for name in names:
            txn[name] = b"v"
        crowd = Crowd(txn)
        assert crowd.wrong == []
        assert len(crowd.committed) == 1
        assert set(names) <= set(db.keys(b"%d-" % number))
        assert db.stats().readers == 0
        db.drop_all()


class Crowd:
    """Four threads on one transaction: two commit it, two go on using it."""

    def __init__(self, txn: meles.Txn) -> None:
        self.txn = txn
        self.start = threading.Barrier(4)
        self.committed: list[int] = []
        self.wrong: list[Exception] = []
        work = (self._commit, self._commit, self._use, self._use)
        threads = [threading.Thread(target=self._run, args=(one,)) for one in work]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _commit(self) -> None:
        self.committed.append(self.txn.commit())

    def _use(self) -> None:
        for n in range(100):
            self.txn[b"extra%d" % n] = b"v"
            self.txn.get(b"%d" % n)
            list(self.txn.keys(b"extra"))

    def _run(self, work: Callable[[], None]) -> None:
        self.start.wait()
        try:
            work()
        except meles.TransactionFinishedError:
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, the test tells
            self.wrong.append(error)


def test_a_replaced_write_does_not_count_towards_the_limit(open_db: OpenDB) -> None:
    """Badger charges for each write of the same key."""
    db = open_db(memtable_size="64KiB", value_threshold="1MiB")
    with db.update() as txn:
        for number in range(2000):
            txn[b"counter"] = b"%04d" % number * 20
        with pytest.raises(meles.TransactionTooBigError):
            txn[b"counter"] = b"v" * 10_000
        assert txn[b"counter"] == b"1999" * 20
        txn.delete(b"counter")
        for number in range(9):
            txn[b"%d" % number] = b"v" * 1000
        with pytest.raises(meles.TransactionTooBigError):
            txn[b"counter"] = b"v" * 900
    assert len(list(db)) == 9


@pytest.mark.parametrize(("bad", "error"), [("exit", TypeError), (-1, ValueError)])
def test_that_it_has_ended_is_said_before_what_is_wrong_with_the_arguments(
    db: meles.DB, bad: Any, error: type[Exception]
) -> None:
    for kind in (db.update, db.write_batch):
        ended = kind()
        with pytest.raises(error):
            ended.set(b"k", b"v", ttl=bad)
        ended.discard() if isinstance(ended, meles.Txn) else ended.cancel()
        for value, ttl in ((bad, None), (b"v", bad)):
            with pytest.raises(meles.TransactionFinishedError):
                ended.set(b"k", value, ttl=ttl)
    with db.view() as txn, pytest.raises(meles.ReadOnlyError):
        txn.set(b"k", b"v", ttl=bad)


@pytest.mark.parametrize("call", ["items", "keys", "iterate"])
def test_two_threads_on_one_iterator_get_an_error_and_no_crash(open_db: OpenDB, call: str) -> None:
    db = open_db(value_threshold=64)
    with db.write_batch() as batch:
        for number in range(3000):
            batch.set(b"%05d" % number, b"v" * (number % 2) * 100)
    refused: list[str] = []
    for limit in (None, 10_000) * 5:
        with db.update() as txn:
            for source in (db, txn):
                shared = getattr(source, call)(limit=limit)

                def read(shared: Any = shared) -> None:
                    try:
                        for _ in shared:
                            pass
                    except meles.Error as error:
                        refused.append(str(error))

                run_threads([read] * 3)
    assert all("two threads" in text for text in refused)
    assert len(list(db)) == 3000
