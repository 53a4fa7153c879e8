"""The index cache: the budget bounds what tables keep of themselves, and readers notice nothing."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import meles
import pytest
from meles.engine.codec.columns import Columns
from meles.engine.errors import ClosedError
from meles.engine.kernel import NATIVE
from meles.engine.table.index_cache import IndexCache
from meles.engine.table.reader import Table
from twins import needs_native_run


class Part:
    """An owner without a file."""

    def __init__(self) -> None:
        self.index_used = False
        self.forgotten = 0

    def forget_index(self) -> None:
        self.forgotten += 1


def test_the_budget_holds_but_for_the_newest() -> None:
    cache = IndexCache(100)
    owners = [Part() for _ in range(10)]
    for owner in owners:
        cache.charge(owner, 30)
        assert cache.stats().size <= 100
    assert [owner.forgotten for owner in owners] == [1] * 7 + [0] * 3
    large = Part()
    cache.charge(large, 500)
    stats = cache.stats()
    assert (stats.tables, stats.size, large.forgotten) == (1, 500, 0)
    cache.charge(owners[0], 10)
    assert (cache.stats().size, large.forgotten) == (10, 1)
    assert (cache.stats().loads, cache.stats().evictions) == (12, 11)


def test_without_a_budget_nothing_is_evicted_and_all_is_counted() -> None:
    cache = IndexCache(0)
    owners = [Part() for _ in range(50)]
    for owner in owners:
        cache.charge(owner, 1 << 20)
    assert cache.stats().size == 50 << 20
    assert not any(owner.forgotten for owner in owners)


def test_what_is_used_outlives_what_is_not() -> None:
    cache = IndexCache(100)
    hot = Part()
    cache.charge(hot, 20)
    others = [Part() for _ in range(50)]
    for other in others:
        hot.index_used = True
        cache.charge(other, 20)
    assert hot.forgotten == 0
    assert sum(other.forgotten for other in others) == 46


def test_scans_over_all_tables_leave_those_in_place_that_are_asked_again() -> None:
    cache = IndexCache(1000)
    hot = [Part() for _ in range(6)]
    for owner in hot:
        cache.charge(owner, 100)
        owner.index_used = True
    cold = [Part() for _ in range(40)]
    for _ in range(3):
        for owner in cold:  # nobody asks for the hot ones during a scan
            owner.index_used = True
            cache.charge(owner, 100)
        assert not any(owner.forgotten for owner in hot)
        for owner in hot:
            owner.index_used = True
    assert cache.stats().size <= 1000


def test_parts_of_one_table_count_and_go_together() -> None:
    cache = IndexCache(100)
    first, second = Part(), Part()
    for _ in range(3):
        cache.charge(first, 20)
    cache.charge(second, 60)
    assert (cache.stats().size, first.forgotten) == (60, 1)


def test_eviction_ends_when_all_are_in_use() -> None:
    cache = IndexCache(100)
    owners = [Part() for _ in range(9)]
    for owner in owners:
        owner.index_used = True
        cache.charge(owner, 25)
        for used in owners:
            used.index_used = True
    assert cache.stats().size <= 100


def test_a_table_that_is_gone_is_forgotten() -> None:
    cache = IndexCache(100)
    owners = [Part() for _ in range(4)]
    for owner in owners:
        cache.charge(owner, 20)
    cache.release(owners[0])
    cache.release(owners[0])
    assert cache.stats().size == 60
    del owners, owner
    gc.collect()
    assert (cache.stats().size, cache.stats().tables) == (0, 0)


# -- tables --------------------------------------------------------------------------------------


@pytest.fixture
def tables(
    build: Callable[..., Any], open_table: Callable[..., Table], plain: Callable[..., Columns]
) -> Callable[[IndexCache], list[Table]]:
    """Twelve open tables of 400 entries that share a cache."""
    for table_id in range(1, 13):
        build(plain(400, b"%d" % table_id), table_id=table_id, block_size=256)

    def make(cache: IndexCache) -> list[Table]:
        return [open_table(table_id, indexes=cache) for table_id in range(1, 13)]

    return make


KEYS = [b"user%08d" % (number * 2) for number in range(400)]


def cost_of_one(tables: Callable[[IndexCache], list[Table]]) -> int:
    cache = IndexCache(0)
    table = tables(cache)[0]
    table.get(KEYS[0], 9)
    if NATIVE is not None:
        table.blocks()
    return cache.stats().size


def test_tables_answer_the_same_whatever_is_evicted(
    tables: Callable[[IndexCache], list[Table]],
) -> None:
    one = cost_of_one(tables)
    cache = IndexCache(3 * one)
    opened = tables(cache)
    rng = random.Random(7)
    for _ in range(600):
        nth, key = rng.randrange(12), rng.choice(KEYS)
        expected = (1, 0, 0, b"%d" % (nth + 1))
        table = opened[nth]
        assert table.get(key, 9) == expected
        assert table.get(key + b"x", 9) is None
        assert cache.stats().size <= 3 * one
        held = sum(t._index is not None or t._probe is not None for t in opened)
        assert held <= 3
    assert cache.stats().evictions > 100
    batch = next(opened[0].scan())
    assert batch.keys[0] == KEYS[0]


@needs_native_run
def test_compiled_readers_and_views_let_go_as_well(
    tables: Callable[[IndexCache], list[Table]],
) -> None:
    cache = IndexCache(1)  # one table at a time
    opened = tables(cache)
    points = [NATIVE.Points([], (), [[table]], None, None) for table in opened]
    for _ in range(2):
        for nth, asked in enumerate(points):
            assert asked.value_of(KEYS[nth], 9) == b"%d" % (nth + 1)
            assert cache.stats().tables == 1
            assert sum(bool(table._readers) for table in opened) == 1
    gc.collect()
    for table in opened:
        assert not any(evicted() is not None for evicted in table._evicted)


@needs_native_run
def test_a_scan_keeps_what_it_reads_through_and_closing_reaches_it(
    tables: Callable[[IndexCache], list[Table]],
) -> None:
    cache = IndexCache(1)
    opened = tables(cache)
    scan = NATIVE.Scan([[opened[0]]], None, None, 9, 0, 0, None)
    found = list(scan.next_batch()[0])
    for table in opened[1:]:
        table.blocks().get(KEYS[0], 9)
    assert not opened[0]._readers
    while len(found) < 100:
        found += scan.next_batch()[0]
    assert found == KEYS[: len(found)]
    opened[0].close()
    with pytest.raises(ClosedError):
        list(iter(scan.next_batch, None))


def test_threads_read_while_others_evict(tables: Callable[[IndexCache], list[Table]]) -> None:
    cache = IndexCache(1)
    opened = tables(cache)
    wrong: list[object] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        try:
            for _ in range(400):
                nth, key = rng.randrange(12), rng.choice(KEYS)
                found = [opened[nth].get(key, 9)]
                if NATIVE is not None:
                    found.append(opened[nth].blocks().get(key, 9))
                if any(entry != (1, 0, 0, b"%d" % (nth + 1)) for entry in found):
                    wrong.append(found)
        except BaseException as error:  # noqa: BLE001 - told to the test
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    for table in opened:
        table.close()
    assert (cache.stats().tables, cache.stats().size) == (0, 0)


# -- a database ----------------------------------------------------------------------------------


def test_a_database_with_many_tables_stays_within_the_option(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "workers": "inline", "memtable_size": "256KiB", "base_table_size": "16KiB",
        "block_size": 512, "index_cache_size": "64KiB", "sync": "none",
    }  # fmt: skip
    with meles.open(tmp_path, **options) as db:
        keys = [b"%08d" % (n * 7919 % 100_003) for n in range(20_000)]
        for key in keys:
            db[key] = key * 3
        db.flush()
        assert len(db.tables()) > 30
        for key in keys[::3]:
            assert db[key] == key * 3
            assert db.get(key + b"-") is None
        assert sum(1 for _ in db.items()) == len(keys)
        stats = db.stats()
        assert stats.index_cache_evictions > 30
        largest = 32 << 10  # of one table, which may come on top
        assert 0 < stats.index_cache_bytes <= (64 << 10) + largest
    with meles.open(tmp_path, **{**options, "index_cache_size": 0}) as db:
        assert all(db.get(key) == key * 3 for key in keys[::5])
        stats = db.stats()
        assert stats.index_cache_evictions == 0
        assert stats.index_cache_bytes > 64 << 10
