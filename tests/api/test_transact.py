"""`transact` and `transactional`: run, commit, and run again after a conflict."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import meles
import pytest

OpenDB = Callable[..., meles.DB]


def conflicting(db: meles.DB, times: int) -> tuple[Callable[[meles.Txn], int], list[int]]:
    """A function that meets a conflict so many times, and the list of its calls."""
    calls: list[int] = []

    def fn(txn: meles.Txn) -> int:
        calls.append(len(calls))
        txn.get(b"k")
        txn[b"l"] = b"%d" % len(calls)
        if len(calls) <= times:
            db[b"k"] = b"changed"
        return len(calls)

    return fn, calls


def test_transact_returns_what_the_function_does(db: meles.DB) -> None:
    def fn(txn: meles.Txn) -> str:
        txn[b"k"] = b"v"
        return "done"

    assert db.transact(fn) == "done"
    assert db[b"k"] == b"v"


@pytest.mark.parametrize("times", [0, 1, 8])
def test_it_runs_again_after_conflicts(db: meles.DB, times: int) -> None:
    fn, calls = conflicting(db, times)
    assert db.transact(fn) == times + 1
    assert len(calls) == times + 1
    assert db[b"l"] == b"%d" % (times + 1)


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_retries_are_the_attempts_after_the_first(db: meles.DB, retries: int) -> None:
    fn, calls = conflicting(db, 100)
    with pytest.raises(meles.ConflictError):
        db.transact(fn, retries=retries)
    assert len(calls) == retries + 1
    assert b"l" not in db


def test_eight_retries_by_default(db: meles.DB) -> None:
    fn, calls = conflicting(db, 100)
    with pytest.raises(meles.ConflictError):
        db.transact(fn)
    assert len(calls) == 9


def test_other_errors_pass_and_nothing_is_written(db: meles.DB) -> None:
    def fn(txn: meles.Txn) -> None:
        txn[b"k"] = b"v"
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        db.transact(fn)
    assert list(db) == []
    assert db.stats().readers == 0


def test_a_function_may_end_its_transaction_itself(db: meles.DB) -> None:
    def commits(txn: meles.Txn) -> int:
        txn[b"k"] = b"v"
        return txn.commit()

    def discards(txn: meles.Txn) -> int:
        txn[b"l"] = b"w"
        txn.discard()
        return 5

    assert db.transact(commits) == 1
    assert db.transact(discards) == 5
    assert list(db) == [b"k"]


def test_a_transactional_function_is_called_without_its_transaction(db: meles.DB) -> None:
    @db.transactional(retries=3)
    def move(txn: meles.Txn, source: bytes, target: bytes, *, keep: bool = False) -> bytes:
        """Moves."""
        txn[target] = txn[source]
        if not keep:
            del txn[source]
        return txn[target]

    db[b"a"] = b"v"
    assert move(b"a", b"b", keep=True) == b"v"
    assert move(b"a", target=b"c") == b"v"
    assert list(db.keys()) == [b"b", b"c"]
    assert (move.__name__, move.__doc__) == ("move", "Moves.")


def test_a_transactional_function_runs_again_too(db: meles.DB) -> None:
    fn, calls = conflicting(db, 2)
    assert db.transactional(retries=2)(fn)() == 3
    calls.clear()
    with pytest.raises(meles.ConflictError):
        db.transactional(retries=1)(fn)()


@pytest.mark.parametrize("retries", [-1, 1.5, "8", None, True])
def test_other_retries_are_refused_at_once(db: meles.DB, retries: Any) -> None:
    with pytest.raises(ValueError, match="retries"):
        db.transact(lambda txn: None, retries=retries)
    with pytest.raises(ValueError, match="retries"):
        db.transactional(retries=retries)


def test_forgetting_the_parentheses_is_told(db: meles.DB) -> None:
    with pytest.raises(TypeError, match="transactional"):
        db.transactional(lambda txn: None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        db.transact(None)  # type: ignore[arg-type]


def test_many_threads_lose_no_update(open_db: OpenDB) -> None:
    db = open_db(memtable_size="64KiB")
    db[b"n"] = b"0"

    @db.transactional(retries=1000)
    def add(txn: meles.Txn) -> None:
        txn[b"n"] = b"%d" % (int(txn[b"n"]) + 1)

    def work() -> None:
        for _ in range(25):
            add()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert db[b"n"] == b"100"
