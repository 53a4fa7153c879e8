"""When the caches are called too small, and when not."""

from __future__ import annotations

import logging

import pytest
from meles.engine.table.cache import NO_BLOCKS, CacheStats
from meles.engine.table.cache_health import WINDOW_SECONDS, CacheHealth, Picture, judge
from meles.engine.table.index_cache import NO_INDEXES, IndexCacheStats

NOTHING: Picture = (NO_BLOCKS, NO_INDEXES)


def picture(hits: int, misses: int, evictions: int, reloads: int = 0) -> Picture:
    blocks = CacheStats(hits, misses, 1, 1, 1 << 20, evictions)
    return blocks, IndexCacheStats(reloads, reloads, 1, 1, 1 << 16)


@pytest.mark.parametrize(
    ("now", "named"),
    [
        (picture(3_000, 7_000, 1), "block_cache_size (1,048,576) may be too small: 30% of 10,000"),
        (picture(0, 0, 0, 1000), "index_cache_size (65,536) may be too small: 1,000 tables"),
        (picture(3_000, 7_000, 0), None),  # nothing evicted: they were read for the first time
        (picture(3_000, 6_000, 100), None),  # too few to tell
        (picture(4_000, 6_000, 100), None),
        (picture(0, 0, 0, 999), None),
    ],
)
def test_advice(now: Picture, named: str | None) -> None:
    advice = judge(NOTHING, now)
    assert len(advice) == (named is not None)
    assert named is None or advice[0].startswith(named)


def test_only_the_last_window_counts(caplog: pytest.LogCaptureFixture) -> None:
    pictures = iter([NOTHING, picture(0, 20_000, 9), picture(50_000, 20_000, 9)])
    health = CacheHealth(lambda: next(pictures), 100.0)
    with caplog.at_level(logging.WARNING, "meles.cache"):
        health.look(100.0 + WINDOW_SECONDS / 2)
        assert caplog.messages == []
        health.look(100.0 + WINDOW_SECONDS)
        assert len(caplog.messages) == 1
        health.look(100.0 + 2 * WINDOW_SECONDS)
        assert len(caplog.messages) == 1
