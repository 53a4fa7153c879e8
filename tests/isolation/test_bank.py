"""A bank: money moves, accounts open and close, and every snapshot holds the same sum."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import meles
import pytest
from checkers.threads import run_threads

ACCOUNTS = 50
EACH = 100
WRITERS = 3
PREFIX = b"bank/"


def encoded(balance: int, number: int) -> bytes:
    """Some balances live in the value log."""
    return b"%d " % balance + b"." * (200 if number % 3 == 0 else 0)


def balance_of(value: bytes) -> int:
    return int(value.split(b" ")[0])


def name(number: int) -> bytes:
    return PREFIX + b"%04d" % number


def check_snapshot(db: meles.DB) -> None:
    """Scan, reverse scan and single reads agree; the sum is what it was, nobody is in debt."""
    with db.view() as txn:
        forward = list(txn.items(PREFIX))
        balances = [balance_of(value) for _, value in forward]
        assert sum(balances) == ACCOUNTS * EACH
        assert min(balances) >= 0
        assert list(txn.items(PREFIX, reverse=True)) == forward[::-1]
        assert [(key, txn.get(key)) for key, _ in forward] == forward
        assert list(txn.keys(PREFIX)) == [key for key, _ in forward]


def transfer(txn: Any, rng: random.Random) -> None:
    source, target = rng.sample(range(2 * ACCOUNTS), 2)
    source_value, target_value = txn.get(name(source)), txn.get(name(target))
    time.sleep(0)
    if source_value is None:
        return
    if target_value is None:  # close one account, open another
        if rng.random() < 0.1:
            txn.delete(name(source))
            txn.set(name(target), encoded(balance_of(source_value), target))
        return
    amount = rng.randint(0, balance_of(source_value))
    txn.set(name(source), encoded(balance_of(source_value) - amount, source))
    time.sleep(0)
    txn.set(name(target), encoded(balance_of(target_value) + amount, target))


@pytest.mark.parametrize("workers", ["process", "inline"])
@pytest.mark.parametrize(
    "rounds", [600, pytest.param(10_000, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]
)
def test_the_sum_stays(open_tiny: Callable[..., meles.DB], rounds: int, workers: str) -> None:
    db = open_tiny(workers=workers)
    with db.update() as txn:
        for number in range(ACCOUNTS):
            txn.set(name(number), encoded(EACH, number))
    left = iter(range(rounds))
    conflicts = [0] * WRITERS
    snapshots = 0
    done = threading.Event()
    finished = threading.Semaphore(0)

    def writer(number: int) -> Callable[[], None]:
        rng = random.Random(number)

        def loop() -> None:
            try:
                for _ in left:
                    txn = db.update()
                    transfer(txn, rng)
                    try:
                        txn.commit()
                    except meles.ConflictError:
                        conflicts[number] += 1
            finally:
                finished.release()
                if number == 0:
                    for _ in range(WRITERS):
                        finished.acquire()
                    done.set()

        return loop

    def reader() -> None:
        nonlocal snapshots
        while not done.is_set():
            check_snapshot(db)
            snapshots += 1

    run_threads([*(writer(number) for number in range(WRITERS)), reader])
    check_snapshot(db)
    assert sum(conflicts) > 0
    assert snapshots > 5
