"""The index cache: indexes and filters of open tables under one budget of bytes.

Runs in: supervisor.
Owns: the right to keep an index in memory; the parts themselves hang on their tables.
Invariants: (1) a look-up in an index that is there takes no lock: it stores one attribute; (2) the
parts of all tables cost no more than the budget and those of the one loaded last, which stays even
when it alone is larger; (3) a table nobody holds any more is forgotten with its parts.

A table loses all its parts at once, and reads them again from the file when next asked. A clock
chooses: a table used since the hand last passed gets another round. Who is reading through parts
that were evicted keeps them until done: one table for each scan that is under way.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Final, Protocol
from weakref import ref


class Owner(Protocol):
    """A table: `index_used` is set whenever its parts are used."""

    index_used: bool

    def forget_index(self) -> None:
        """Let go of all parts. Called with the cache's lock held: loads and charges nothing."""


@dataclass(frozen=True, slots=True)
class IndexCacheStats:
    """`loads` counts parts read from files, `evictions` tables that lost theirs; sizes in bytes."""

    loads: int
    evictions: int
    tables: int
    size: int
    capacity: int


NO_INDEXES: Final = IndexCacheStats(0, 0, 0, 0, 0)


class IndexCache:
    """At most `capacity` bytes of indexes and filters; 0: as many as there are."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._lock = threading.Lock()
        self._gone: deque[int] = deque()  # owners collected; appending needs no lock
        # under _lock
        self._held: dict[int, tuple[ref[Owner], int]] = {}  # in the order of the clock
        self._size = 0
        self._loads = 0
        self._evictions = 0

    @property
    def bounded(self) -> bool:
        return self.capacity > 0

    def charge(self, owner: Owner, cost: int) -> None:
        """`owner` has read a part of `cost` bytes; others may lose theirs for it.

        Two threads that read the same part are charged twice, until the table is evicted.
        """
        key = id(owner)
        with self._lock:
            self._forget_gone_locked()
            known = self._held.get(key)
            if known is None:
                gone = self._gone
                known = (ref(owner, lambda _: gone.append(key)), 0)
            self._held[key] = (known[0], known[1] + cost)
            self._size += cost
            self._loads += 1
            if self.bounded:
                self._evict_locked(key)

    def _forget_gone_locked(self) -> None:
        while self._gone:
            key = self._gone.popleft()
            held = self._held.get(key)
            if held is not None and held[0]() is None:  # not another table at the same address
                del self._held[key]
                self._size -= held[1]

    def _evict_locked(self, newest: int) -> None:
        mercy = len(self._held)  # readers set marks meanwhile: one round of it, no more
        while self._size > self.capacity and len(self._held) > 1:
            key = next(iter(self._held))
            held = self._held.pop(key)
            owner = held[0]()
            if key == newest or (owner is not None and owner.index_used and mercy > 0):
                mercy -= 1
                if owner is not None:
                    owner.index_used = False
                self._held[key] = held
                continue
            self._size -= held[1]
            self._evictions += 1
            if owner is not None:
                owner.forget_index()

    def release(self, owner: Owner) -> None:
        """A table is closed: its parts are gone."""
        with self._lock:
            held = self._held.pop(id(owner), None)
            if held is not None:
                self._size -= held[1]

    def stats(self) -> IndexCacheStats:
        with self._lock:
            self._forget_gone_locked()
            return IndexCacheStats(
                self._loads, self._evictions, len(self._held), self._size, self.capacity
            )
