"""A memtable: the newest writes, as an index over the write-ahead log that holds them.

Runs in: supervisor. One thread at a time writes; any number read without a lock.
Owns: its log writer while active; only a mapping once sealed or replayed.
Invariants: (1) the index holds offsets, never values: a value is sliced from the mapping; (2) a
record links to the previous version of its key, so a version chain costs no memory; (3) bytes are
stored before the index points at them; (4) chains descend by version unless `ordered` is False.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from typing import Final

from meles.engine.codec.columns import Columns
from meles.engine.log.frame import BODY_BYTES, PREFIX_BYTES, RECORD_BYTES
from meles.engine.log.sealed import SealedLogWriter
from meles.engine.log.writer import LogWriter
from meles.engine.memtable.log_index import Found, LogIndex
from meles.engine.memtable.ordered_keys import OrderedKeys

__all__ = ["Found", "Memtable"]

_FIRST_CHUNK: Final = 32
_LARGEST_CHUNK: Final = 1024
_FRAME_SLACK: Final = PREFIX_BYTES + BODY_BYTES


class Memtable:
    """Writes of one log. `id` is the log's; larger is newer."""

    __slots__ = ("first_ts", "id", "index", "keys", "log", "vlog_ids")

    def __init__(
        self,
        mem_id: int,
        mapping: mmap.mmap | bytes,
        log: LogWriter | None,
        *,
        expected: int = 0,
        gap: int = 0,
    ) -> None:
        """`expected`: bytes of log at which it is full, as far as that is known; `gap`: bytes kept
        free behind the frames of a replayed log.
        """
        self.id = mem_id
        self.log = log  # None once sealed, or when replayed
        if log is None:
            self.index = LogIndex(mapping, len(mapping), 0, gap=gap)
        else:
            self.index = LogIndex(
                mapping, log.end, log.seed, writable=True, expected=expected, gap=log.gap
            )
        self.keys = OrderedKeys(self.index)
        self.first_ts = 0
        self.vlog_ids: set[int] = set()  # logical value-log files it points into

    @staticmethod
    def create(log: LogWriter, expected: int = 0) -> Memtable:
        """The active memtable over a fresh log."""
        kind = SealedMemtable if log.gap else Memtable
        return kind(log.id, log.map, log, expected=expected)

    @property
    def map(self) -> mmap.mmap | bytes:
        """The log, mapped."""
        return self.index.map

    @property
    def end(self) -> int:
        """Bytes of log that matter."""
        return self.index.end

    @property
    def records(self) -> int:
        return self.index.records

    @property
    def last_ts(self) -> int:
        return self.index.last_ts

    @last_ts.setter
    def last_ts(self, ts: int) -> None:
        self.index.last_ts = ts

    @property
    def ordered(self) -> bool:
        """Whether the versions of every key were written in order."""
        return self.index.ordered

    @ordered.setter
    def ordered(self, ordered: bool) -> None:
        self.index.ordered = ordered

    # -- writing ---------------------------------------------------------------------------------

    def put(self, key: bytes, value: bytes, meta: int, user: int, expiry: int, ts: int) -> None:
        """Append a one-record transaction. `OSError` leaves the memtable unchanged."""
        if not self.index.put(key, value, meta, user, expiry, ts):
            self._extend(len(key) + len(value) + RECORD_BYTES)
            self.index.put(key, value, meta, user, expiry, ts)

    def put_many(
        self,
        keys: Sequence[bytes],
        values: Sequence[bytes],
        metas: Sequence[int],
        expiries: Sequence[int],
        ts: int,
        versions: Sequence[int] | None = None,
    ) -> None:
        """Append one transaction of several records (`metas` as in Columns).

        Without `versions` each key occurs once and has version `ts`. `OSError` leaves the memtable
        unchanged.
        """
        if not self.index.put_many(keys, values, metas, expiries, ts, versions):
            self._extend(sum(map(len, keys)) + sum(map(len, values)) + len(keys) * RECORD_BYTES)
            self.index.put_many(keys, values, metas, expiries, ts, versions)

    def _extend(self, record_bytes: int) -> None:
        """Have room for a frame with that many bytes of records."""
        log = self.log
        assert log is not None  # noqa: S101 - the writer only holds an active memtable
        log.end = self.index.end
        log.reserve(record_bytes + _FRAME_SLACK)
        self.index.rebase(log.map)

    def seal(self) -> None:
        """No more writes: end record, descriptor closed. Readers go on."""
        log = self.log
        assert log is not None  # noqa: S101
        log.end, log.records = self.index.end, self.index.records
        log.seal(self.last_ts)
        if log.map is not self.index.map:
            self.index.rebase(log.map)
        self.index.seal(log.end)
        self.log = None

    def discard(self) -> None:
        """Remove the log; for a memtable that never held anything."""
        log = self.log
        assert log is not None  # noqa: S101
        self.index.release()
        self.log = None
        log.discard()

    # -- reading ---------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Bytes of log written."""
        return self.index.end

    def get(self, key: bytes, ts: int) -> Found | None:
        """The newest version <= ts, whatever it is (also a tombstone)."""
        return self.index.get(key, ts)

    def newest_version(self, key: bytes) -> int:
        """Version of the key's newest record, 0 when there is none."""
        found = self.index.chain(key)
        if not found:
            return 0
        return found[0][0] if self.ordered else max(item[0] for item in found)

    def scan(
        self, low: bytes | None, high: bytes | None, ts: int, *, all_versions: bool = False,
        reverse: bool = False,
    ) -> Iterator[Columns]:  # fmt: skip
        """Versions <= ts of keys in [low, high), in batches that ascend inside.

        Batches themselves come in key order, or from the last to the first in reverse. Without
        `all_versions` only the newest version <= ts of each key is given, tombstones included.
        """
        size = _FIRST_CHUNK
        while True:
            keys = self.keys.chunk(low, high, size, reverse=reverse)
            if not keys:
                return
            if reverse:
                high = keys[-1]
                keys.reverse()
            else:
                low = keys[-1] + b"\0"
            exhausted = len(keys) < size
            batch = self._versions(keys, ts, all_versions=all_versions)
            if batch.keys:
                yield batch
            if exhausted:
                return
            size = min(size * 4, _LARGEST_CHUNK)

    def _versions(self, keys: list[bytes], ts: int, *, all_versions: bool) -> Columns:
        newest = None if all_versions else self.index.newest(keys, ts)
        if newest is not None:
            versions, metas, expiries, values = newest
            return Columns(keys, versions, metas, expiries, values)
        out = Columns()
        for key in keys:
            found = [item for item in self.index.chain(key) if item[0] <= ts]
            if not self.ordered:
                found = list({item[0]: item for item in reversed(found)}.values())
                found.sort(key=lambda item: -item[0])
            for version, meta, expiry, value in found if all_versions else found[:1]:
                out.append(key, version, meta, expiry, value)
        return out

    def check(self) -> None:
        """Raise `AssertionError` unless index and order agree."""
        self.keys.check()


class SealedMemtable(Memtable):
    """A memtable whose log is sealed: what was put into it is sealed into the file at once."""

    __slots__ = ()

    def put(self, key: bytes, value: bytes, meta: int, user: int, expiry: int, ts: int) -> None:
        super().put(key, value, meta, user, expiry, ts)
        self._publish()

    def put_many(
        self,
        keys: Sequence[bytes],
        values: Sequence[bytes],
        metas: Sequence[int],
        expiries: Sequence[int],
        ts: int,
        versions: Sequence[int] | None = None,
    ) -> None:
        super().put_many(keys, values, metas, expiries, ts, versions)
        self._publish()

    def _publish(self) -> None:
        """Also what an interrupted call has left."""
        log = self.log
        assert isinstance(log, SealedLogWriter)  # noqa: S101 - it was made with one
        log.publish(self.index.end)
