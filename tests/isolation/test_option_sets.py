"""The same transactions under any options: the same history, and a serializable one.

One thread, interleavings drawn by lot from a seed, so what is read, what conflicts and every
timestamp are the same each time. Only where the data lies, and who moves it, differs.
`MELES_TRANSACTIONS` sets how many the long run has, over all option sets.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import meles
import pytest
from checkers.append import check_lists
from checkers.threads import run_by_lot, run_on_threads
from checkers.timestamps import check_timestamps
from checkers.workload import Workload
from tally import Tally

KIB, MIB = 1 << 10, 1 << 20
ROUND = 20_000  # transactions whose history is held at once
LONG = int(os.environ.get("MELES_TRANSACTIONS", "1000000"))
SMALL: dict[str, Any] = {
    "base_table_size": 16 * KIB, "base_level_size": 64 * KIB, "level_size_multiplier": 2,
    "num_level_zero_tables": 2, "num_level_zero_tables_stall": 8, "max_levels": 5,
    "block_size": 1024, "value_log_file_size": 1 * MIB, "value_log_max_entries": 200,
}  # fmt: skip
# Workers, compactors, memtable, value threshold, compression, sync, and what else there is to turn.
SETS: list[tuple[str, int, int, int, str, str, dict[str, Any]]] = [
    ("inline", 1, 64 * KIB, 0, "none", "none", {}),
    ("inline", 0, 256 * KIB, 32, "snappy", "none", {"block_cache_size": 0}),
    ("inline", 2, 1 * MIB, 1 * MIB, "zstd", "none", {"bloom_false_positive": 0.0}),
    ("inline", 1, 64 * KIB, 32, "lz4", "commit", {"index_cache_size": 16 * KIB}),
    ("thread", 1, 64 * KIB, 32, "lz4", "none", {"num_memtables": 2}),
    ("thread", 2, 512 * KIB, 1 * MIB, "none", "interval", {"num_versions_to_keep": 3}),
    ("thread", 3, 8 * MIB, 0, "zstd", "none", {}),
    ("thread", 0, 64 * KIB, 0, "none", "commit", {}),
    ("process", 1, 64 * KIB, 0, "none", "none", {"num_memtables": 2}),
    ("process", 2, 64 * KIB, 32, "snappy", "interval", {"block_size": 512}),
    ("process", 3, 256 * KIB, 1 * MIB, "zstd", "none", {"gc_discard_ratio": 0.2}),
    ("process", 0, 8 * MIB, 32, "none", "interval", {}),
    ("process", 1, 1 * MIB, 0, "lz4", "commit", {"level_size_multiplier": 10}),
]


def name_of(index: int) -> str:
    return "-".join(map(str, SETS[index][:6]))


def opened(path: Path, index: int) -> meles.DB:
    workers, compactors, memtable, threshold, compression, sync, more = SETS[index]
    options = {
        **SMALL, "workers": workers, "num_compactors": compactors, "memtable_size": memtable,
        "value_threshold": threshold, "compression": compression, "sync": sync, **more,
    }  # fmt: skip
    db = meles.open(path, **options)
    for half in range(2):  # other keys on deeper levels
        for number in range(half, 2000, 2):  # a batch would split, and take timestamps, by options
            db[b"m/%05d" % (number * 10)] = b"%d" % number * 30
        db.flush(120.0)
    db.flatten(timeout=120.0)
    return db


def digest(work: Workload) -> str:
    found = hashlib.sha256()
    for txn in work.history:
        found.update(repr(txn).encode())
    return found.hexdigest()


def run(db: meles.DB, seed: int, transactions: int, *, appends: bool, by_lot: bool) -> Workload:
    """One round, checked."""
    work = Workload(db, seed, transactions, appends, ballast=True, name=b"%d/" % seed)
    clients = [work.client(number) for number in range(work.clients)]
    if by_lot:
        run_by_lot(clients, seed)
    else:
        run_on_threads(clients)
    final = work.finish()
    assert len(work.history) == transactions + 1
    assert work.conflicts > transactions // 200, "void: nothing met"
    assert check_timestamps(work.history, initial=work.initial(), stored=work.stored()) == []
    assert check_lists(work.lists, final) == []
    return work


def was_busy(db: meles.DB) -> bool:
    """Whether reads had tables on deeper levels below them, and flushes beside them."""
    db.flush(120.0)
    assert db.wait_idle(120.0)
    deep = any(level.tables for level in db.levels()[1:])
    return deep and db.stats().flushes > 2 and db.stats().compactions > 0


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], str]:
    """The digest of a round under the first option set, run once."""
    known: dict[tuple[int, int], str] = {}

    def of(seed: int, transactions: int) -> str:
        if (seed, transactions) not in known:
            with opened(tmp_path_factory.mktemp("reference") / "db", 0) as db:
                work = run(db, seed, transactions, appends=bool(seed % 2), by_lot=True)
            known[seed, transactions] = digest(work)
        return known[seed, transactions]

    return of


@pytest.mark.parametrize("index", range(1, len(SETS)), ids=name_of)
def test_the_same_history(
    tmp_path: Path, tally: Tally, reference: Callable[[int, int], str], index: int
) -> None:
    for seed in (1, 2):
        with opened(tmp_path / str(seed), index) as db:
            work = run(db, seed, 400, appends=bool(seed % 2), by_lot=True)
            assert digest(work) == reference(seed, 400)
            assert was_busy(db)
        tally("transactions checked, option sets", 400)


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("index", range(len(SETS)), ids=name_of)
def test_serializable_under_all_options(tmp_path: Path, tally: Tally, index: int) -> None:
    """Half of the rounds by lot, half on threads."""
    share = LONG // len(SETS) + 1
    with opened(tmp_path / "db", index) as db:
        for seed in range(-(-share // ROUND)):
            run(db, seed, ROUND, appends=bool(seed % 2), by_lot=bool(seed & 2))
            tally("transactions checked, option sets", ROUND)
        assert was_busy(db)


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("index", range(1, len(SETS)), ids=name_of)
def test_the_same_long_history(
    tmp_path: Path, tally: Tally, reference: Callable[[int, int], str], index: int
) -> None:
    for seed in (1, 2):
        with opened(tmp_path / str(seed), index) as db:
            work = run(db, seed, 5000, appends=bool(seed % 2), by_lot=True)
            assert digest(work) == reference(seed, 5000)
            assert was_busy(db)
        tally("transactions checked, option sets", 5000)
