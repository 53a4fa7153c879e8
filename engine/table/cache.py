"""The block cache: parsed blocks of all tables under one budget of bytes.

Runs in: supervisor and workers.
Owns: the blocks in it.
Invariants: (1) a hit takes no lock: it is one dict look-up in the table's own shelf and a store of
an attribute; (2) insertion and eviction hold the lock; (3) costs never stay above the budget.
Eviction is a clock: a block that was hit since the hand last passed gets another round. Scans look
here but do not insert, so one scan cannot empty it.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from meles.engine.table.block import Block


@dataclass(frozen=True, slots=True)
class CacheStats:
    """`hits` and `misses` are approximate when several threads read at once; sizes in bytes."""

    hits: int
    misses: int
    blocks: int
    size: int
    capacity: int


class BlockCache:
    """A cache of at most `capacity` bytes; 0 caches nothing."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.hits = 0
        self.misses = 0
        self._lock = threading.Lock()
        # Under the lock, except that shelves are read without it:
        self._shelves: dict[int, dict[int, Block]] = {}
        self._users: dict[int, int] = {}
        self._clock: deque[tuple[int, int]] = deque()
        self._size = 0

    def open(self, table_id: int) -> dict[int, Block]:
        """The shelf of a table: its blocks by number, to be read only; they come and go.

        Whoever opens a shelf closes it: it lasts as long as its last user.
        """
        with self._lock:
            self._users[table_id] = self._users.get(table_id, 0) + 1
            return self._shelves.setdefault(table_id, {})

    def get(self, table_id: int, number: int) -> Block | None:
        """A block if it is here; counts as use."""
        block = self._shelves.get(table_id, {}).get(number)
        if block is None:
            self.misses += 1
            return None
        self.hits += 1
        block.used = True
        return block

    def put(self, table_id: int, number: int, block: Block) -> None:
        """Keep a block, at the expense of those not used for longest."""
        cost = block.cost
        if cost > self.capacity:
            return
        with self._lock:
            shelf = self._shelves.get(table_id)
            if shelf is None or number in shelf:
                return  # the table was dropped, or another thread was first
            shelf[number] = block
            self._clock.append((table_id, number))
            self._size += cost
            self._evict_locked()

    def _evict_locked(self) -> None:
        chances = len(self._clock)  # readers set marks meanwhile: one round of mercy, no more
        while self._size > self.capacity:
            table_id, number = self._clock.popleft()
            shelf = self._shelves[table_id]
            block = shelf[number]
            if block.used and chances > 0:
                chances -= 1
                block.used = False
                self._clock.append((table_id, number))
            else:
                del shelf[number]
                self._size -= block.cost

    def close(self, table_id: int) -> None:
        """One user of a table's shelf is done; the last one takes the blocks with it."""
        with self._lock:
            users = self._users.get(table_id, 0) - 1
            if users > 0:
                self._users[table_id] = users
            else:
                self._drop_locked(table_id)

    def drop(self, table_id: int) -> None:
        """Forget a table for good: it is deleted. Its last readers go on without the cache."""
        with self._lock:
            self._drop_locked(table_id)

    def _drop_locked(self, table_id: int) -> None:
        self._users.pop(table_id, None)
        shelf = self._shelves.pop(table_id, None)
        if shelf:
            self._size -= sum(block.cost for block in shelf.values())
            self._clock = deque(place for place in self._clock if place[0] != table_id)
            shelf.clear()

    def stats(self) -> CacheStats:
        with self._lock:
            return CacheStats(self.hits, self.misses, len(self._clock), self._size, self.capacity)
