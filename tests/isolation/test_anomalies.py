"""Each classic anomaly has a workload that provokes it; none may be seen, conflicts must be."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import meles
import pytest
from checkers.threads import run_by_lot, run_threads

THREADS = 4
ROUNDS = [1000, pytest.param(10_000, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]
OpenTiny = Callable[..., meles.DB]


class Tally:
    """Runs transactions on several threads and counts how they ended."""

    def __init__(self, rounds: int) -> None:
        self._left = iter(range(rounds))
        self._lock = threading.Lock()
        self.conflicts = 0
        self.commits = 0

    def commit(self, txn: Any) -> None:
        try:
            txn.commit()
        except meles.ConflictError:
            with self._lock:
                self.conflicts += 1
        else:
            self.committed()

    def committed(self) -> None:
        with self._lock:
            self.commits += 1

    def run(self, body: Callable[[random.Random], object], threads: int = THREADS) -> None:
        """`body` again and again on several threads until the rounds are used up."""

        def client(number: int) -> Callable[[], None]:
            rng = random.Random(number)

            def loop() -> None:
                for _ in self._left:
                    body(rng)

            return loop

        run_threads([client(number) for number in range(threads)])


def step_aside() -> None:
    """Let the other clients come between two operations."""
    time.sleep(0)


# -- write skew ----------------------------------------------------------------------------------


def both(txn: Any, rng: random.Random, pair: int) -> tuple[int, int]:
    """x and y of a pair, read in one of the ways there are."""
    x, y = b"pair/%02d/x" % pair, b"pair/%02d/y" % pair
    how = rng.randrange(4)
    if how == 0:
        return int(txn[x]), int(txn[y])
    if how == 1:
        found = dict(txn.items(x[:-1]))
    elif how == 2:
        found = dict(txn.items(x[:-1], reverse=True))
    else:
        found = {item.key: item.value for item in txn.iterate(start=x, limit=2)}
    return int(found[x]), int(found[y])


@pytest.mark.parametrize("rounds", ROUNDS)
def test_no_write_skew(open_tiny: OpenTiny, rounds: int) -> None:
    """x + y stays at 0 or more, although each transaction writes only one of them."""
    db = open_tiny()
    pairs = 3
    for pair in range(pairs):
        db[b"pair/%02d/x" % pair] = db[b"pair/%02d/y" % pair] = b"1"
    tally = Tally(rounds)

    def body(rng: random.Random) -> None:
        pair = rng.randrange(pairs)
        txn = db.update()
        x, y = both(txn, rng, pair)
        assert x + y >= 0
        name, old = rng.choice([(b"x", x), (b"y", y)])
        step_aside()
        change = 2 if x + y < 2 else -rng.randint(1, x + y)
        txn.set(b"pair/%02d/%s" % (pair, name), b"%d" % (old + change))
        step_aside()
        tally.commit(txn)

    tally.run(body)
    with db.view() as txn:
        for pair in range(pairs):
            assert sum(both(txn, random.Random(0), pair)) >= 0
    assert tally.conflicts > 0
    assert tally.commits > 0


# -- predicate skew ------------------------------------------------------------------------------


def row_of(txn: Any, prefix: bytes, rng: random.Random) -> bytes | None:
    """A row with the prefix, if there is any, by one of the ways to look."""
    how = rng.randrange(8)
    stop = prefix[:-1] + b"0"
    if how == 0:
        return next(txn.keys(prefix), None)
    if how == 1:
        return next(txn.keys(prefix, reverse=True), None)
    if how == 2:
        return next(iter([key for key, _ in txn.items(prefix)]), None)
    if how == 3:
        return next(iter(list(txn.keys(start=prefix, stop=stop, reverse=True))), None)
    if how == 4:
        item = next(txn.iterate(prefix, keys_only=True, limit=1), None)
        return None if item is None else item.key
    if how == 5:  # stops at the first key behind the prefix, if it is not the end
        key = next(txn.keys(start=prefix), None)
        return key if key is not None and key.startswith(prefix) else None
    cursor = txn.keys(prefix, reverse=how == 6)
    cursor.seek(prefix + b"\xff" if how == 6 else prefix)
    return next(cursor, None)


@pytest.mark.parametrize("rounds", ROUNDS)
def test_no_predicate_skew(open_tiny: OpenTiny, rounds: int) -> None:
    """At most one row under each prefix, and a counter beside it that always says how many."""
    db = open_tiny()
    prefixes = [b"rows/%d/" % number for number in range(3)]
    for prefix in prefixes:
        db[b"count/" + prefix] = b"0"
    tally = Tally(rounds)
    numbers = itertools.count()

    def check(rng: random.Random) -> None:
        with db.view() as txn:
            prefix = rng.choice(prefixes)
            rows = list(txn.keys(prefix, reverse=rng.random() < 0.5))
            assert len(rows) <= 1
            assert int(txn[b"count/" + prefix]) == len(rows)

    def body(rng: random.Random) -> None:
        check(rng)
        prefix = rng.choice(prefixes)
        txn = db.update()
        row = row_of(txn, prefix, rng)
        step_aside()
        if row is None:  # insert under a key nobody else uses
            txn.set(prefix + b"%06d" % (next(numbers) * 7919 % 1_000_000), b"row")
            txn.set(b"count/" + prefix, b"1")
        else:  # delete the range
            for key in list(txn.keys(prefix)):
                txn.delete(key)
            txn.set(b"count/" + prefix, b"0")
        step_aside()
        tally.commit(txn)

    tally.run(body)
    check(random.Random(0))
    assert tally.conflicts > 0
    assert tally.commits > 0


@pytest.mark.parametrize("how", ["drop_prefix", "drop_all"])
@pytest.mark.parametrize("read", ["key", "range", "reverse", "first"])
def test_a_drop_conflicts_with_what_it_removed(open_tiny: OpenTiny, read: str, how: str) -> None:
    db = open_tiny(workers="inline")
    db[b"gone/1"] = db[b"stays"] = b""
    txn, blind, other = db.update(), db.update(), db.update()
    if read == "key":
        assert b"gone/1" in txn
    elif read == "first":
        assert next(txn.keys()) == b"gone/1"
    else:
        assert list(txn.keys(b"gone", reverse=read == "reverse")) == [b"gone/1"]
    assert b"stays" in other
    for each in (txn, blind, other):
        each.set(b"result", b"")
    if how == "drop_all":
        db.drop_all()
        with pytest.raises(meles.ConflictError):
            other.commit()
    else:
        db.drop_prefix(b"gone")
        other.commit()
    with pytest.raises(meles.ConflictError):
        txn.commit()
    blind.commit()


# -- lost update ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", ROUNDS)
def test_no_lost_update(open_tiny: OpenTiny, rounds: int) -> None:
    """As many increments are there as were acknowledged, with and without automatic retries."""
    db = open_tiny()
    counters = [b"counter/%d" % number for number in range(3)]
    tally = Tally(rounds)

    def increment(txn: Any, rng: random.Random, key: bytes) -> None:
        value = txn.get(key, b"0") if rng.random() < 0.5 else next(txn.values(key), b"0")
        step_aside()
        txn.set(key, b"%d" % (int(value) + 1))
        step_aside()

    def body(rng: random.Random) -> None:
        key = rng.choice(counters)
        if rng.random() < 0.25:
            db.transact(lambda txn: increment(txn, rng, key), retries=10_000)
            tally.committed()
        else:
            txn = db.update()
            increment(txn, rng, key)
            tally.commit(txn)

    tally.run(body)
    assert sum(int(db[key]) for key in counters) == tally.commits
    assert tally.conflicts > 0


# -- the read-only anomaly -----------------------------------------------------------------------


@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_reader_fits_into_the_order_of_writers(open_tiny: OpenTiny, rounds: int) -> None:
    """Under snapshot isolation the two writers are serializable, but not with a reader between.

    One deposits 20 into y; the other takes 10 from x, and 1 more when x + y goes below 0. A reader
    who sees the deposit and no withdrawal proves that the deposit came first: then no fine is due.
    """
    db = open_tiny()
    refused_after_a_look = conflicts = 0
    for number in range(rounds):
        x, y = b"account/%05d/x" % number, b"account/%05d/y" % number
        db[x] = db[y] = b"0"
        seen: list[tuple[int, int]] = []
        refused: list[str] = []

        def deposit(x: bytes = x, y: bytes = y, refused: list[str] = refused) -> Iterator[None]:
            txn = db.update()
            yield
            balance = int(txn[y])
            yield
            txn.set(y, b"%d" % (balance + 20))
            yield
            try_to_commit(txn, refused, "deposit")

        def withdraw(x: bytes = x, y: bytes = y, refused: list[str] = refused) -> Iterator[None]:
            txn = db.update()
            yield
            balance = int(txn[x])
            yield
            fine = 1 if balance + int(txn[y]) < 10 else 0
            yield
            txn.set(x, b"%d" % (balance - 10 - fine))
            yield
            try_to_commit(txn, refused, "withdraw")

        def look(x: bytes = x, y: bytes = y, seen: list[tuple[int, int]] = seen) -> Iterator[None]:
            yield
            yield
            yield
            txn = db.view()
            yield
            one = int(txn[x])
            yield
            seen.append((one, int(txn[y])))
            txn.discard()

        run_by_lot([deposit(), withdraw(), look()], number)
        final = (int(db[x]), int(db[y]))
        assert (seen[0], final) in possible(refused), (number, refused)
        conflicts += len(refused)
        refused_after_a_look += seen[0] == (0, 20) and "withdraw" in refused
    assert conflicts > 0
    assert refused_after_a_look > 0  # what snapshot isolation would have let through


def try_to_commit(txn: Any, refused: list[str], name: str) -> None:
    try:
        txn.commit()
    except meles.ConflictError:
        refused.append(name)


def possible(refused: list[str]) -> set[tuple[tuple[int, int], tuple[int, int]]]:
    """What the reader may see and how it may end, over all serial orders of what was committed."""
    done = [name for name in ("deposit", "withdraw") if name not in refused]
    found = set()
    for order in itertools.permutations([*done, "look"]):
        x = y = 0
        seen = (0, 0)
        for name in order:
            if name == "deposit":
                y += 20
            elif name == "withdraw":
                x -= 10 if x + y >= 10 else 11
            else:
                seen = (x, y)
        found.add((seen, (x, y)))
    return found
