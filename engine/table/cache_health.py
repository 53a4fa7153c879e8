"""Whether the caches are large enough, judged from what they did in the last minute.

Runs in: supervisor, on the control thread.
Invariants: (1) judging is pure: two pictures in, a sentence or nothing out; (2) misses of blocks
never seen before are no reason: only a cache that evicts can be too small.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from meles.engine.table.cache import CacheStats
from meles.engine.table.index_cache import IndexCacheStats

log = logging.getLogger("meles.cache")
WINDOW_SECONDS: Final = 60.0
LEAST_LOOKUPS: Final = 10_000  # fewer say little
POOR_RATIO: Final = 0.4  # as Badger's
MANY_RELOADS: Final = 1000  # a reload costs about as much as a hundred lookups

Picture = tuple[CacheStats, IndexCacheStats]


def judge(before: Picture, now: Picture) -> list[str]:
    """What to tell the user of the time between two pictures."""
    advice = []
    (blocks, indexes), (blocks_now, indexes_now) = before, now
    hits, misses = blocks_now.hits - blocks.hits, blocks_now.misses - blocks.misses
    evicted = blocks_now.evictions - blocks.evictions
    if evicted > 0 and hits + misses >= LEAST_LOOKUPS and hits < POOR_RATIO * (hits + misses):
        ratio = hits / (hits + misses)
        advice.append(
            f"block_cache_size ({blocks_now.capacity:,}) may be too small: "
            f"{ratio:.0%} of {hits + misses:,} lookups found their block"
        )
    reloads = indexes_now.evictions - indexes.evictions
    if reloads >= MANY_RELOADS:
        advice.append(
            f"index_cache_size ({indexes_now.capacity:,}) may be too small: "
            f"{reloads:,} tables lost their index"
        )
    return advice


class CacheHealth:
    """Looks at the caches every `WINDOW_SECONDS` and logs a warning when they are too small."""

    def __init__(self, picture: Callable[[], Picture], now: float) -> None:
        self._picture = picture
        self._before = picture()
        self._since = now

    def look(self, now: float) -> None:
        """Called now and then; `now` is monotonic."""
        if now - self._since < WINDOW_SECONDS:
            return
        picture = self._picture()
        for advice in judge(self._before, picture):
            log.warning("%s", advice)
        self._before, self._since = picture, now
