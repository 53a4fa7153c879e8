"""The block cache: its budget holds, what is used stays, and deleted tables leave it."""

from __future__ import annotations

import random
import threading

import pytest
from meles.engine.codec.columns import Columns
from meles.engine.table.block import Block, encode_block
from meles.engine.table.cache import BlockCache


def block(size: int = 100) -> Block:
    return Block(encode_block(Columns([b"key"], [1], [0], [0], [b"v" * size]), 0, 1))


COST = block().cost


def test_cost_covers_payload_and_decoded_keys() -> None:
    columns = Columns([b"key%d" % n for n in range(9)], [1] * 9, [0] * 9, [0] * 9, [b"v"] * 9)
    raw = encode_block(columns, 0, 9)
    assert Block(raw).cost > len(raw) + 9 * (33 + 4)


def test_get_finds_what_was_put() -> None:
    cache = BlockCache(10 * COST)
    cache.open(1)
    cache.open(2)
    first = block()
    cache.put(1, 0, first)
    assert cache.get(1, 0) is first
    assert cache.get(1, 1) is None
    assert cache.get(2, 0) is None
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.blocks, stats.size) == (1, 2, 1, COST)


def test_budget_holds() -> None:
    cache = BlockCache(5 * COST)
    cache.open(1)
    for number in range(50):
        cache.put(1, number, block())
        assert cache.stats().size <= 5 * COST
    assert cache.stats().blocks == 5
    assert [n for n in range(50) if cache.get(1, n)] == [45, 46, 47, 48, 49]


def test_used_blocks_outlive_a_stream_of_others() -> None:
    cache = BlockCache(10 * COST)
    cache.open(1)
    cache.put(1, 0, block())
    for number in range(1, 200):
        assert cache.get(1, 0) is not None
        cache.put(1, number, block())
    assert cache.get(1, 0) is not None


def test_one_use_long_ago_does_not_keep_a_block() -> None:
    cache = BlockCache(4 * COST)
    cache.open(1)
    cache.put(1, 0, block())
    cache.get(1, 0)
    for number in range(1, 20):
        cache.put(1, number, block())
        cache.get(1, number)
    assert cache.get(1, 0) is None


def test_eviction_ends_when_all_are_in_use() -> None:
    cache = BlockCache(4 * COST)
    shelf = cache.open(1)
    for number in range(4):
        cache.put(1, number, block())
    for kept in shelf.values():
        kept.used = True
    cache.put(1, 9, block())
    assert cache.stats().size <= 4 * COST


@pytest.mark.parametrize("capacity", [0, COST - 1])
def test_a_block_over_the_budget_is_not_kept(capacity: int) -> None:
    cache = BlockCache(capacity)
    cache.open(1)
    cache.put(1, 0, block())
    assert cache.stats().blocks == 0


def test_a_second_copy_is_not_counted() -> None:
    cache = BlockCache(10 * COST)
    cache.open(1)
    first = block()
    cache.put(1, 0, first)
    cache.put(1, 0, block())
    assert cache.get(1, 0) is first
    assert cache.stats().size == COST


def test_drop_forgets_one_table_for_good() -> None:
    cache = BlockCache(10 * COST)
    for table in (1, 2):
        cache.open(table)
        for number in range(3):
            cache.put(table, number, block())
    cache.drop(1)
    assert cache.get(1, 0) is None
    assert cache.get(2, 0) is not None
    cache.put(1, 0, block())
    assert cache.get(1, 0) is None, "a late reader of a deleted table does not bring it back"
    assert cache.stats().size == 3 * COST
    for number in range(50):
        cache.put(2, 10 + number, block())
    assert cache.stats().size == 10 * COST
    cache.close(1)


def test_shelf_lasts_as_long_as_its_last_user() -> None:
    cache = BlockCache(10 * COST)
    assert cache.open(1) is cache.open(1)
    cache.put(1, 0, block())
    cache.close(1)
    assert cache.get(1, 0) is not None
    cache.close(1)
    assert cache.stats().size == 0


def test_threads_keep_the_books_straight() -> None:
    cache = BlockCache(20 * COST)
    for table in range(4):
        cache.open(table)

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(3000):
            table, number = rng.randrange(4), rng.randrange(40)
            if cache.get(table, number) is None:
                cache.put(table, number, block())

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = cache.stats()
    held = sum(cache.get(table, n) is not None for table in range(4) for n in range(40))
    assert stats.blocks == held
    assert stats.size == held * COST <= cache.capacity
