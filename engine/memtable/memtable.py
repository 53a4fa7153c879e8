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
from itertools import accumulate, chain, repeat
from typing import Final

from meles.engine.codec.checksum import crc32c
from meles.engine.codec.columns import Columns
from meles.engine.log.frame import (
    BODY,
    BODY_BYTES,
    KIND_TXN,
    PREFIX,
    PREFIX_BYTES,
    RECORD,
    RECORD_BYTES,
    SINGLE,
)
from meles.engine.log.writer import LogWriter
from meles.engine.memtable.index import OrderedIndex

Found = tuple[int, int, int, bytes]  # version, user << 8 | meta, expiry ms, value
_FIRST_CHUNK: Final = 32
_LARGEST_CHUNK: Final = 1024

_pack_single = SINGLE.pack
_pack_prefix = PREFIX.pack
_unpack_record = RECORD.unpack_from


class Memtable:
    """Writes of one log. `id` is the log's; larger is newer."""

    __slots__ = (
        "_offsets", "end", "first_ts", "id", "index", "last_ts", "log", "map", "ordered",
        "records", "vlog_ids",
    )  # fmt: skip

    def __init__(self, mem_id: int, mapping: mmap.mmap | bytes, log: LogWriter | None) -> None:
        self.id = mem_id
        self.map = mapping
        self.log = log  # None once sealed, or when replayed
        self.index = OrderedIndex()
        self._offsets = self.index.offsets
        self.ordered = True
        self.records = 0
        self.first_ts = 0
        self.last_ts = 0
        self.end = log.end if log is not None else len(mapping)  # bytes of log that matter
        self.vlog_ids: set[int] = set()  # logical value-log files it points into

    @staticmethod
    def create(log: LogWriter) -> Memtable:
        """The active memtable over a fresh log."""
        return Memtable(log.id, log.map, log)

    # -- writing ---------------------------------------------------------------------------------

    def put(self, key: bytes, value: bytes, meta: int, user: int, expiry: int, ts: int) -> None:
        """Append a one-record transaction. `OSError` leaves the memtable unchanged."""
        log = self.log
        assert log is not None  # noqa: S101 - the writer only holds an active memtable
        offsets = self._offsets
        previous = offsets.get(key, 0)
        body = (
            _pack_single(
                ts, 1, KIND_TXN, 0, ts, expiry, len(value), previous, len(key), meta, user
            ) + key + value
        )  # fmt: skip
        length = len(body)
        end = log.end
        start = end + PREFIX_BYTES
        if start + length > log.room:
            log.reserve(length)
            self.map = log.map
        mapping = log.map
        mapping[start : start + length] = body
        mapping[end:start] = _pack_prefix(length, crc32c(body, log.seed ^ length))
        log.end = (start + length + 7) & -8
        log.records += 1
        offsets[key] = start + BODY_BYTES
        if not previous:
            self.index.fresh.append(key)

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
        log = self.log
        assert log is not None  # noqa: S101
        offsets = self._offsets
        count = len(keys)
        key_lens = list(map(len, keys))
        value_lens = list(map(len, values))
        body_bytes = BODY_BYTES + count * RECORD_BYTES + sum(key_lens) + sum(value_lens)
        log.reserve(body_bytes)
        self.map = log.map
        first = log.end + PREFIX_BYTES + BODY_BYTES
        sizes = map(sum, zip(key_lens, value_lens, repeat(RECORD_BYTES), strict=False))
        places = list(accumulate(sizes, initial=first))
        del places[-1]
        if versions is None:
            previous = list(map(offsets.get, keys, repeat(0)))
        else:
            previous = self._link_versions(keys, versions, places)
        heads = map(
            RECORD.pack, repeat(ts) if versions is None else versions, expiries, value_lens,
            previous, key_lens, [meta & 0xFF for meta in metas], [meta >> 8 for meta in metas],
        )  # fmt: skip
        body = b"".join(
            chain((BODY.pack(ts, count, KIND_TXN, 0),), *zip(heads, keys, values, strict=True))
        )
        log.append_body(body)
        log.records += count
        offsets.update(zip(keys, places, strict=True))
        if 0 in previous:
            fresh = [key for key, link in zip(keys, previous, strict=True) if not link]
            self.index.fresh.extend(fresh)

    def _link_versions(
        self, keys: Sequence[bytes], versions: Sequence[int], places: Sequence[int]
    ) -> list[int]:
        """Links when a frame may hold several versions of a key (managed mode, restored data)."""
        newest: dict[bytes, int] = {}
        last: dict[bytes, int] = {}
        links = []
        for key, version, place in zip(keys, versions, places, strict=True):
            link = newest.get(key) or self._offsets.get(key, 0)
            if link:
                before = last[key] if key in last else _unpack_record(self.map, link)[0]
                self.ordered = self.ordered and before < version
            newest[key], last[key] = place, version
            links.append(link)
        return links

    def seal(self) -> None:
        """No more writes: end record, descriptor closed. Readers go on."""
        log = self.log
        assert log is not None  # noqa: S101
        log.seal(self.last_ts)
        self.map, self.end, self.records = log.map, log.end, log.records
        self.log = None

    # -- reading ---------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Bytes of log written."""
        log = self.log  # sealing takes it away
        return log.end if log is not None else self.end

    @property
    def written(self) -> int:
        """Records in the log; `records` knows them once it is sealed."""
        log = self.log
        return log.records if log is not None else self.records

    def get(self, key: bytes, ts: int) -> Found | None:
        """The newest version <= ts, whatever it is (also a tombstone)."""
        offset = self._offsets.get(key)
        if offset is None:
            return None
        mapping = self.map
        if not self.ordered:
            return self._get_unordered(offset, ts)
        while offset:
            version, expiry, value_len, offset_before, key_len, meta, user = _unpack_record(
                mapping, offset
            )
            if version <= ts:
                at = offset + RECORD_BYTES + key_len
                return version, user << 8 | meta, expiry, mapping[at : at + value_len]
            offset = offset_before
        return None

    def _get_unordered(self, offset: int, ts: int) -> Found | None:
        best: Found | None = None
        for found in self._chain(offset):
            if found[0] <= ts and (best is None or found[0] > best[0]):
                best = found
        return best

    def _chain(self, offset: int) -> Iterator[Found]:
        mapping = self.map
        while offset:
            version, expiry, value_len, before, key_len, meta, user = _unpack_record(
                mapping, offset
            )
            at = offset + RECORD_BYTES + key_len
            yield version, user << 8 | meta, expiry, bytes(mapping[at : at + value_len])
            offset = before

    def newest_version(self, key: bytes) -> int:
        """Version of the key's newest record, 0 when there is none."""
        offset = self._offsets.get(key)
        if offset is None:
            return 0
        if not self.ordered:
            return max(found[0] for found in self._chain(offset))
        version: int = _unpack_record(self.map, offset)[0]
        return version

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
            keys = self.index.chunk(low, high, size, reverse=reverse)
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
        offsets = list(map(self._offsets.__getitem__, keys))
        mapping = self.map
        heads = [_unpack_record(mapping, offset) for offset in offsets]
        versions, expiries, value_lens, _, key_lens, metas, users = map(
            list, zip(*heads, strict=True)
        )
        if all_versions or not self.ordered or max(versions) > ts:
            return self._versions_by_chain(keys, offsets, ts, all_versions=all_versions)
        values = [
            mapping[(at := offset + RECORD_BYTES + key_len) : at + value_len]
            for offset, key_len, value_len in zip(offsets, key_lens, value_lens, strict=True)
        ]
        if any(users):
            metas = [user << 8 | meta for user, meta in zip(users, metas, strict=True)]
        return Columns(keys, versions, metas, expiries, values)

    def _versions_by_chain(
        self, keys: list[bytes], offsets: list[int], ts: int, *, all_versions: bool
    ) -> Columns:
        out = Columns()
        for key, offset in zip(keys, offsets, strict=True):
            found = [item for item in self._chain(offset) if item[0] <= ts]
            if not self.ordered:
                found = list({item[0]: item for item in reversed(found)}.values())
                found.sort(key=lambda item: -item[0])
            for version, meta, expiry, value in found if all_versions else found[:1]:
                out.append(key, version, meta, expiry, value)
        return out

    def check(self) -> None:
        """Raise `AssertionError` unless index and order agree."""
        self.index.check()
