"""The usual commit, whole: one plain entry, nothing to wait for.

Runs in: supervisor, on whichever thread of the host commits.
Invariants: (1) what passes here is exactly what `Writer.put` would have done; (2) whatever is not
plain is declined with nothing changed, and the caller takes the writer's long way; (3) `open` is
True only while nothing but the log and the timestamp have to know of a commit.
Fails with: nothing; it declines.

A `set` pays for every Python frame on its way; this is the way with the fewest. `PlainWriterPy` is
the readable definition, the compiled twin is engine/kernel/plain_writer.pxi.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from meles.engine.ids import MAX_KEY_BYTES, RESERVED_PREFIX
from meles.engine.kernel import NATIVE
from meles.engine.memtable.log_index import LogIndex
from meles.engine.txn.entry_buffer import EntryBuffer
from meles.engine.txn.oracle import Published

_FIRST_RESERVED: Final = RESERVED_PREFIX[0]


class PlainWriterPy:
    """Commits one plain entry, or declines. What it may do is set by the writer, under `lock`.

    `dirty`: somebody already sees to it that the log is synced. `rotate_at` and the limits are in
    bytes; `entries` and `size` (of keys and values) count since open.
    """

    __slots__ = (
        "dirty", "entries", "entry_limit", "index", "lock", "on_error", "open", "published",
        "rotate_at", "size", "value_limit", "values", "vlog_ids",
    )  # fmt: skip

    # The compiled twin appends large values itself, with these; here they take the long way.
    values: Any
    vlog_ids: set[int]
    on_error: Callable[[OSError], Exception]

    def __init__(self, lock: threading.Lock, published: Published, index: LogIndex) -> None:
        self.lock = lock
        self.published = published
        self.index = index
        self.open = False
        self.dirty = False
        self.rotate_at = 0
        self.value_limit = 0
        self.entry_limit = 0
        self.entries = 0
        self.size = 0

    def put(self, key: object, value: object) -> int:
        """Commit an entry that has neither expiry nor meta; its timestamp. 0: take the long way."""
        if not (self.open and self.dirty) or type(key) is not bytes or type(value) is not bytes:
            return 0
        size = len(key) + len(value)
        if (
            not 0 < len(key) <= MAX_KEY_BYTES
            or key[0] == _FIRST_RESERVED
            or len(value) >= self.value_limit
            or size > self.entry_limit
            or not self.lock.acquire(False)
        ):
            return 0
        try:
            ts = self.published.ts + 1
            done = self._may_append() and self.index.put(key, value, 0, 0, 0, ts)
            return self._publish(1, size) if done else 0
        finally:
            self.lock.release()

    def _may_append(self) -> bool:
        """Asked under the lock: whether what was true before it still is."""
        return self.open and self.index.end < self.rotate_at

    def _publish(self, count: int, size: int) -> int:
        ts = self.published.ts + 1
        self.index.last_ts = self.published.ts = ts
        self.entries += count
        self.size += size
        return ts

    def commit(self, buffer: EntryBuffer, snapshot: int = -1) -> int:
        """Commit what was collected as one transaction; its timestamp. 0: take the long way.

        With a `snapshot`: only if nothing was committed since, so that no read can conflict.
        """
        values = buffer._writes.copy()  # whatever another thread does to it now
        if not self.open or not self.dirty or buffer._special or not values:
            return 0
        sizes = list(map(len, values.values()))
        if max(sizes) >= self.value_limit or not self.lock.acquire(False):
            return 0
        try:
            ts = self.published.ts + 1
            done = (
                self._may_append()
                and snapshot in (-1, self.published.ts)
                and self.index.put_plain(values, ts)
            )
            if not done:
                return 0
            return self._publish(len(values), sum(map(len, values)) + sum(sizes))
        finally:
            self.lock.release()


if TYPE_CHECKING or NATIVE is None:
    Lock = threading.Lock
    PlainWriter = PlainWriterPy
else:
    Lock = NATIVE.Lock
    PlainWriter = NATIVE.PlainWriter
