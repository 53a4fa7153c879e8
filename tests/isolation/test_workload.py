"""Random transactions on threads beside the workers: strictly serializable, by two checkers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import meles
import pytest
from checkers.append import check_lists
from checkers.threads import run_by_lot, run_on_threads
from checkers.timestamps import check_timestamps
from checkers.workload import Workload

ROUND = 20_000  # transactions whose history is held at once


def run_round(
    db: meles.DB, seed: int, transactions: int, *, appends: bool, on_threads: bool
) -> int:
    """Run and check; returns how many conflicts there were."""
    work = Workload(db, seed, transactions, appends, ballast=True, name=b"%d/" % seed)
    clients: list[Iterator[None]] = [work.client(number) for number in range(work.clients)]
    if on_threads:
        run_on_threads(clients)
    else:
        run_by_lot(clients, seed)
    final = work.finish()
    assert len(work.history) == transactions + 1
    assert check_timestamps(work.history, initial=work.initial(), stored=work.stored()) == []
    assert check_lists(work.lists, final) == []
    return work.conflicts


def was_busy(db: meles.DB) -> bool:
    """Whether reads have had to cross memtables, L0 and deeper levels; else nothing was tried."""
    db.flush(60.0)
    assert db.wait_idle(60.0)
    stats = db.stats()
    deep = any(level.tables for level in db.levels()[1:])
    return deep and stats.flushes > 10 and stats.compactions > 5


@pytest.mark.parametrize("appends", [True, False], ids=["lists", "values"])
@pytest.mark.parametrize("workers", ["process", "inline"])
def test_serializable(open_tiny: Callable[..., meles.DB], workers: str, appends: bool) -> None:
    """Threads beside worker processes; and, all in one thread, interleavings drawn by lot."""
    db = open_tiny(workers=workers)
    transactions = 4000 if workers == "process" else 1500
    conflicts = run_round(db, 1, transactions, appends=appends, on_threads=workers == "process")
    assert conflicts > 20
    assert was_busy(db)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("appends", [True, False], ids=["lists", "values"])
@pytest.mark.parametrize("workers", ["process", "thread", "inline"])
def test_serializable_for_long(
    open_tiny: Callable[..., meles.DB], workers: str, appends: bool
) -> None:
    db = open_tiny(workers=workers)
    rounds = 10 if workers == "process" else 2
    conflicts = sum(
        run_round(db, seed, ROUND, appends=appends, on_threads=workers != "inline")
        for seed in range(rounds)
    )
    assert conflicts > 200 * rounds
    assert was_busy(db)
