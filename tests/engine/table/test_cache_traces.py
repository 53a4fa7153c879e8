"""The block cache under recorded traces: a hot set asked for by key, and full scans in between."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import meles
import pytest
from meles.engine.codec.columns import Columns
from meles.engine.table.block import Block, encode_block
from meles.engine.table.cache import BlockCache

BLOCK = Block(encode_block(Columns([b"key"], [1], [0], [0], [b"v" * 100]), 0, 1))
COST = BLOCK.cost
HOT, COLD = range(200), range(1000, 5000)


def blocks_of(trace: list[tuple[str, int]], capacity: int) -> float:
    """Play a trace of (who, block); the hit ratio of `hot` lookups, after the first tenth."""
    cache = BlockCache(capacity)
    cache.open(1)
    hits = asked = 0
    for nth, (who, number) in enumerate(trace):
        hit = cache.get(1, number) is not None
        if not hit:
            cache.put(1, number, Block(BLOCK.raw))
        if who == "hot" and nth > len(trace) // 10:
            hits, asked = hits + hit, asked + 1
        assert cache.stats().size <= capacity
    return hits / asked


def trace_of(*, sweeps: bool, repeats: int = 1) -> list[tuple[str, int]]:
    """Zipf-like lookups of the hot set; every 2,000 of them a sweep over all cold blocks, each
    asked for `repeats` times in a row as lookups of neighbouring keys do.
    """
    rng = random.Random(11)
    trace: list[tuple[str, int]] = []
    for nth in range(20_000):
        trace.append(("hot", HOT[int(len(HOT) * rng.random() ** 2)]))
        if sweeps and nth % 2000 == 1999:
            for number in COLD:
                trace += [("sweep", number)] * repeats
                if number % 10 == 0:  # others go on meanwhile
                    trace.append(("hot", HOT[int(len(HOT) * rng.random() ** 2)]))
    return trace


@pytest.mark.parametrize("room", [150, 250])
@pytest.mark.parametrize("repeats", [1, 8])
def test_sweeps_by_key_leave_the_hot_set_in_place(room: int, repeats: int) -> None:
    capacity = room * COST
    alone = blocks_of(trace_of(sweeps=False), capacity)
    beside = blocks_of(trace_of(sweeps=True, repeats=repeats), capacity)
    assert alone > 0.6
    assert beside >= 0.9 * alone


def test_a_hot_set_that_moves_is_followed() -> None:
    rng = random.Random(5)
    first = [("cold", rng.randrange(100)) for _ in range(5000)]
    then = [("hot", rng.randrange(500, 600)) for _ in range(5000)]
    assert blocks_of(first + then, 120 * COST) > 0.9


OpenAt = Callable[..., meles.DB]


def hot_ratio(path: Path, scan: Callable[[meles.DB], object] | None) -> float:
    """Hit ratio of lookups of a hot tenth of the keys, with full scans in between or without."""
    options: dict[str, Any] = {
        "workers": "inline", "sync": "none", "block_size": 1024, "compression": "zstd",
        "block_cache_size": "192KiB", "memtable_size": "1MiB",
    }  # fmt: skip
    rng = random.Random(3)
    with meles.open(path, **options) as db:
        for n in range(12_000):
            db[b"%08d" % n] = b"%d-" % (n * 7919) * 8
        db.flush()
        assert db.size().lsm_bytes > 192 << 10
        hits = asked = 0
        for round_ in range(12):
            before = db.stats()
            for _ in range(500):
                n = 5000 + int(600 * rng.random() ** 2)
                assert db[b"%08d" % n].startswith(b"%d-" % (n * 7919))
            after = db.stats()
            assert after.cache_bytes <= 192 << 10
            if round_ > 1:
                hits += after.cache_hits - before.cache_hits
                asked += 500
            if scan is not None:
                scan(db)
    return hits / asked


SCANS: dict[str, Callable[[meles.DB], object]] = {
    "forward": lambda db: sum(1 for _ in db.items()),
    "reverse": lambda db: sum(1 for _ in db.items(reverse=True)),
    "versions": lambda db: sum(1 for _ in db.iterate(all_versions=True)),
    "by key": lambda db: [db.get(b"%08d" % n) for n in range(0, 12_000, 3)],
}


@pytest.mark.parametrize("name", SCANS)
def test_full_scans_of_a_database_leave_the_hot_set_in_place(tmp_path: Path, name: str) -> None:
    alone = hot_ratio(tmp_path / "alone", None)
    beside = hot_ratio(tmp_path / "beside", SCANS[name])
    assert alone > 0.9
    assert beside >= 0.9 * alone


def test_a_scan_puts_nothing_into_the_cache(tmp_path: Path) -> None:
    with meles.open(tmp_path, workers="inline", compression="zstd") as db:
        for n in range(3000):
            db[b"%08d" % n] = b"value" * 10
        db.flush()
        assert sum(1 for _ in db.items()) == 3000
        assert sum(1 for _ in db.keys(start=b"00000100", stop=b"00000200")) == 100
        stats = db.stats()
        assert (stats.cache_bytes, stats.cache_hits, stats.cache_misses) == (0, 0, 0)
        assert db[b"00000007"] == b"value" * 10
        assert db.stats().cache_bytes > 0
