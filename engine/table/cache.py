"""The block cache: parsed blocks of all tables under one budget of bytes.

Runs in: supervisor and workers.
Owns: the blocks in it.
Invariants: (1) a hit takes no lock: it is one dict look-up in the table's own shelf and a store of
an attribute; (2) insertion and eviction hold the lock; (3) costs never stay above the budget; (4) a
block asked for once, or for a while only, never drives out one that is asked for again and again.

A block passes three queues. `fresh` outlasts the run of lookups that brought it, whose hits say
nothing: they are forgotten when it leaves. In `trial` a hit counts: who had one goes to `main`, who
had none goes, and if it is missed soon (`ghosts` remembers who went) comes back to `main` at once.
`main` is a clock: a block hit since the hand last passed gets another round. Scans look here but do
not insert.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Final

from meles.engine.table.block import Block

_FRESH_SHARE: Final = 10  # of the budget, as a divisor
_TRIAL_SHARE: Final = 10
_GHOST_SHARE: Final = 2  # of the number of blocks in the cache
_LEAST_GHOSTS: Final = 16

Place = tuple[int, int]  # table, number of the block


@dataclass(frozen=True, slots=True)
class CacheStats:
    """`hits` and `misses` are approximate when several threads read at once; sizes in bytes."""

    hits: int
    misses: int
    blocks: int
    size: int
    capacity: int
    evictions: int = 0

    @property
    def hit_ratio(self) -> float:
        """Share of lookups that found their block; 0 when there was none."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0


NO_BLOCKS: Final = CacheStats(0, 0, 0, 0, 0)


class _Queue:
    """Blocks in order of arrival, and what they cost together."""

    __slots__ = ("places", "size")

    def __init__(self) -> None:
        self.places: deque[Place] = deque()
        self.size = 0

    def add(self, place: Place, cost: int) -> None:
        self.places.append(place)
        self.size += cost


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
        self._fresh, self._trial, self._main = _Queue(), _Queue(), _Queue()
        self._ghosts: dict[Place, None] = {}
        self._evictions = 0

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
        """Keep a block, at the expense of those least worth it."""
        cost = block.cost
        if cost > self.capacity:
            return
        place = (table_id, number)
        with self._lock:
            shelf = self._shelves.get(table_id)
            if shelf is None or number in shelf:
                return  # the table was dropped, or another thread was first
            known = place in self._ghosts
            if known:
                del self._ghosts[place]
            self._evict_locked(self.capacity - cost)
            shelf[number] = block
            (self._main if known else self._fresh).add(place, cost)
            self._settle_locked()

    @property
    def size(self) -> int:
        """Bytes the blocks take; while somebody puts one, that of a moment ago or to come."""
        return self._fresh.size + self._trial.size + self._main.size

    def _size_locked(self) -> int:
        return self.size

    def _settle_locked(self) -> None:
        """Move from `fresh` to `trial` what its share has no room for."""
        while self._fresh.size > self.capacity // _FRESH_SHARE:
            place, block = self._take_locked(self._fresh)
            block.used = False
            self._trial.add(place, block.cost)

    def _evict_locked(self, room: int) -> None:
        """Until at most `room` bytes are taken."""
        mercy = len(self._main.places)  # readers set marks meanwhile: one round of it, no more
        while self._size_locked() > room:
            trial, main = self._trial, self._main
            if trial.size > self.capacity // _TRIAL_SHARE or not main.places:
                place, block = self._take_locked(trial if trial.places else self._fresh)
                if block.used:
                    block.used = False
                    main.add(place, block.cost)
                    mercy += 1
                    continue
                self._remember_locked(place)
            else:
                place, block = self._take_locked(main)
                if block.used and mercy > 0:
                    mercy -= 1
                    block.used = False
                    main.add(place, block.cost)
                    continue
            self._evictions += 1
            del self._shelves[place[0]][place[1]]

    def _take_locked(self, queue: _Queue) -> tuple[Place, Block]:
        place = queue.places.popleft()
        block = self._shelves[place[0]][place[1]]
        queue.size -= block.cost
        return place, block

    def _remember_locked(self, place: Place) -> None:
        self._ghosts[place] = None
        most = (len(self._trial.places) + len(self._main.places)) // _GHOST_SHARE
        while len(self._ghosts) > max(_LEAST_GHOSTS, most):
            del self._ghosts[next(iter(self._ghosts))]

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
        if not shelf:
            return
        for queue in (self._fresh, self._trial, self._main):
            gone = [place for place in queue.places if place[0] == table_id]
            if gone:
                queue.size -= sum(shelf[number].cost for _, number in gone)
                queue.places = deque(place for place in queue.places if place[0] != table_id)
        shelf.clear()

    def stats(self) -> CacheStats:
        with self._lock:
            blocks = sum(len(queue.places) for queue in (self._fresh, self._trial, self._main))
            size = self._size_locked()
            return CacheStats(self.hits, self.misses, blocks, size, self.capacity, self._evictions)
