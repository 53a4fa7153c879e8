"""The index cache: indexes and filters of open tables under one budget of bytes.

Runs in: supervisor.
Owns: the right to keep an index in memory; the parts themselves hang on their tables.
Invariants: (1) a look-up in an index that is there takes no lock: it stores one attribute; (2) the
parts of all tables cost no more than the budget and those of the one loaded last, which stays even
when it alone is larger; (3) a table nobody holds any more is forgotten with its parts.

A table loses all its parts at once, and reads them again from the file when next asked. One that
came in is on trial: used again, it stays, else it goes first, so that a scan over all tables drives
out none of those asked for again and again. Among these a clock chooses: a table used since the
hand last passed gets another round. Who is reading through parts that were evicted keeps them until
done: one table for each scan that is under way.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from itertools import islice
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


_TRIAL_SHARE: Final = 4  # of the budget, as a divisor


class _Queue:
    """Tables in order of arrival with the cost of their parts."""

    def __init__(self) -> None:
        self.held: dict[int, tuple[ref[Owner], int]] = {}
        self.size = 0

    def add(self, key: int, owner: ref[Owner], cost: int) -> None:
        self.held[key] = (owner, cost)
        self.size += cost

    def grow(self, key: int, cost: int) -> None:
        owner, before = self.held[key]
        self.held[key] = (owner, before + cost)
        self.size += cost

    def take(self, key: int) -> tuple[ref[Owner], int]:
        owner, cost = self.held.pop(key)
        self.size -= cost
        return owner, cost

    def oldest_but(self, newest: int) -> int | None:
        return next((key for key in islice(self.held, 2) if key != newest), None)


class IndexCache:
    """At most `capacity` bytes of indexes and filters; 0: as many as there are."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._lock = threading.Lock()
        self._gone: deque[int] = deque()  # owners collected; appending needs no lock
        # under _lock
        self._trial = _Queue()
        self._main = _Queue()
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
            self._loads += 1
            queue = self._queue_of_locked(key)
            if queue is None:
                gone = self._gone
                self._trial.add(key, ref(owner, lambda _: gone.append(key)), cost)
                owner.index_used = False  # what brought it says nothing
            else:
                queue.grow(key, cost)
            if self.bounded:
                self._evict_locked(key)

    def _queue_of_locked(self, key: int) -> _Queue | None:
        for queue in (self._trial, self._main):
            if key in queue.held:
                return queue
        return None

    def _forget_gone_locked(self) -> None:
        while self._gone:
            key = self._gone.popleft()
            queue = self._queue_of_locked(key)
            if queue is not None and queue.held[key][0]() is None:  # not a new one at its address
                queue.take(key)

    def _size_locked(self) -> int:
        return self._trial.size + self._main.size

    def _evict_locked(self, newest: int) -> None:
        trial, main = self._trial, self._main
        mercy = len(main.held)  # readers set marks meanwhile: one round of it, no more
        while self._size_locked() > self.capacity:
            on_trial = trial.oldest_but(newest)
            key = main.oldest_but(newest)
            if on_trial is not None and (key is None or trial.size > self.capacity // _TRIAL_SHARE):
                key = on_trial
            if key is None:
                return
            queue = trial if key == on_trial else main
            place, cost = queue.take(key)
            owner = place()
            if owner is not None and owner.index_used and (queue is trial or mercy > 0):
                mercy += 1 if queue is trial else -1
                owner.index_used = False
                main.add(key, place, cost)
                continue
            self._evictions += 1
            if owner is not None:
                owner.forget_index()

    def release(self, owner: Owner) -> None:
        """A table is closed: its parts are gone."""
        key = id(owner)
        with self._lock:
            queue = self._queue_of_locked(key)
            if queue is not None:
                queue.take(key)

    def stats(self) -> IndexCacheStats:
        with self._lock:
            self._forget_gone_locked()
            tables = len(self._trial.held) + len(self._main.held)
            return IndexCacheStats(
                self._loads, self._evictions, tables, self._size_locked(), self.capacity
            )
