"""Where in the log each key's newest record is, and the append end of that log.

Runs in: supervisor. One thread at a time appends; any number read without a lock.
Invariants: (1) values are never held, only offsets: they are sliced from the mapping; (2) a record
links to the one before it of the same key; (3) bytes are stored before the index points at them,
and a frame's head last of all; (4) `ordered` is True while versions of a key were written in order.
Fails with: nothing of its own. An append that finds no room in the mapping writes nothing.

`LogIndexPy` is the readable definition; the compiled twin is engine/kernel/log_index.pxi, which
holds no Python object per entry: a put of 16 B + 100 B costs it 0.15 us, this one 1.1 us.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from itertools import accumulate, chain, repeat
from typing import TYPE_CHECKING, TypeAlias

from meles.engine.codec.checksum import crc32c
from meles.engine.kernel import NATIVE
from meles.engine.log.frame import (
    BODY,
    BODY_BYTES,
    FRAME_BYTES,
    KIND_TXN,
    PREFIX,
    PREFIX_BYTES,
    RECORD,
    RECORD_BYTES,
    SINGLE,
    aligned,
)

Found: TypeAlias = tuple[int, int, int, bytes]  # version, user << 8 | meta, expiry ms, value
Newest: TypeAlias = tuple[list[int], list[int], list[int], list[bytes]]

_pack_single = SINGLE.pack
_pack_prefix = PREFIX.pack
_unpack_record = RECORD.unpack_from


class LogIndexPy:
    """Key to newest record of one log. `end` is where its frames end, `map` where they lie."""

    __slots__ = (
        "_fresh", "_gap", "_offsets", "_room", "_seed", "end", "last_ts", "map", "ordered",
        "records",
    )  # fmt: skip

    def __init__(
        self,
        mapping: mmap.mmap | bytes,
        end: int,
        seed: int,
        *,
        writable: bool = False,
        expected: int = 0,  # noqa: ARG002 - the compiled twin makes room for it
        gap: int = 0,
    ) -> None:
        """`seed` starts the frames' checksums; `expected` is the log's size when it is full; `gap`
        bytes stay free behind every frame.
        """
        self.map = mapping
        self.end = end
        self.records = 0
        self.last_ts = 0
        self.ordered = True
        self._seed = seed
        self._gap = gap
        self._room = len(mapping) - gap if writable else 0
        self._offsets: dict[bytes, int] = {}
        self._fresh: list[bytes] = []

    def rebase(self, mapping: mmap.mmap) -> None:
        """Go on in a larger mapping of the same log."""
        self.map = mapping
        self._room = len(mapping) - self._gap

    def seal(self, end: int) -> None:
        """No more appends; the log ends at `end`."""
        self._room = 0
        self.end = end

    def release(self) -> None:
        """Let go of the mapping: there is nothing here any more."""
        self.map = b""
        self._offsets, self._fresh = {}, []
        self._room = self.end = 0

    def __len__(self) -> int:
        return len(self._offsets)

    def add(self, key: bytes, offset: int) -> int:
        """Index a record that is in the log already; the offset of the one before it, or 0."""
        previous = self._offsets.get(key, 0)
        if not previous:
            self._fresh.append(key)
        self._offsets[key] = offset
        self.records += 1
        return previous

    # -- writing ---------------------------------------------------------------------------------

    def put(self, key: bytes, value: bytes, meta: int, user: int, expiry: int, ts: int) -> bool:
        """Append a transaction of one record; False when the mapping has no room for it."""
        offsets = self._offsets
        previous = offsets.get(key, 0)
        body = (
            _pack_single(
                ts, 1, KIND_TXN, 0, ts, expiry, len(value), previous, len(key), meta, user
            ) + key + value
        )  # fmt: skip
        length = len(body)
        end = self.end
        start = end + PREFIX_BYTES
        if start + length > self._room:
            return False
        mapping: mmap.mmap = self.map  # type: ignore[assignment]
        mapping[start : start + length] = body
        mapping[end:start] = _pack_prefix(length, crc32c(body, self._seed ^ length))
        self.end = (start + length + self._gap + 7) & -8
        self.records += 1
        offsets[key] = start + BODY_BYTES
        if not previous:
            self._fresh.append(key)
        return True

    def put_many(
        self,
        keys: Sequence[bytes],
        values: Sequence[bytes],
        metas: Sequence[int],
        expiries: Sequence[int],
        ts: int,
        versions: Sequence[int] | None = None,
    ) -> bool:
        """Append one transaction (`metas` as in Columns); False when there is no room for it.

        Without `versions` each key occurs once and has version `ts`.
        """
        count = len(keys)
        key_lens = list(map(len, keys))
        value_lens = list(map(len, values))
        length = BODY_BYTES + count * RECORD_BYTES + sum(key_lens) + sum(value_lens)
        start = self.end + PREFIX_BYTES
        if start + length > self._room:
            return False
        sizes = map(sum, zip(key_lens, value_lens, repeat(RECORD_BYTES), strict=False))
        places = list(accumulate(sizes, initial=self.end + FRAME_BYTES))
        del places[-1]
        previous = self._links(keys, versions or [ts] * count, places)
        heads = map(
            RECORD.pack, repeat(ts) if versions is None else versions, expiries, value_lens,
            previous, key_lens, [meta & 0xFF for meta in metas], [meta >> 8 for meta in metas],
        )  # fmt: skip
        body = b"".join(
            chain((BODY.pack(ts, count, KIND_TXN, 0),), *zip(heads, keys, values, strict=True))
        )
        mapping: mmap.mmap = self.map  # type: ignore[assignment]
        mapping[start : start + length] = body
        mapping[self.end : start] = _pack_prefix(length, crc32c(body, self._seed ^ length))
        self.end = aligned(start + length + self._gap)
        self.records += count
        self._offsets.update(zip(keys, places, strict=True))
        if 0 in previous:
            self._fresh += [key for key, link in zip(keys, previous, strict=True) if not link]
        return True

    def _links(
        self, keys: Sequence[bytes], versions: Sequence[int], places: Sequence[int]
    ) -> list[int]:
        """The record before each; a frame may hold several versions of a key (managed mode)."""
        links = list(map(self._offsets.get, keys, repeat(0)))
        several = len(set(keys)) < len(keys)
        if not several and not any(links):
            return links
        newest: dict[bytes, tuple[int, int]] = {}
        for nth, (key, version, place) in enumerate(zip(keys, versions, places, strict=True)):
            if key in newest:
                links[nth], before = newest[key]
            elif links[nth]:
                before = _unpack_record(self.map, links[nth])[0]
            else:
                before = 0
            self.ordered = self.ordered and before < version
            if several:
                newest[key] = (place, version)
        return links

    def put_plain(self, entries: dict[bytes, bytes], ts: int) -> bool:
        """`put_many` of plain entries, key to value."""
        zeros = [0] * len(entries)
        return self.put_many(list(entries), list(entries.values()), zeros, zeros, ts)

    # -- reading ---------------------------------------------------------------------------------

    def get(self, key: bytes, ts: int) -> Found | None:
        """The newest version <= ts, whatever it is (also a tombstone)."""
        offset = self._offsets.get(key)
        if offset is None:
            return None
        if not self.ordered:
            return self._get_unordered(key, ts)
        mapping = self.map
        while offset:
            version, expiry, value_len, before, key_len, meta, user = _unpack_record(
                mapping, offset
            )
            if version <= ts:
                at = offset + RECORD_BYTES + key_len
                return version, user << 8 | meta, expiry, mapping[at : at + value_len]
            offset = before
        return None

    def _get_unordered(self, key: bytes, ts: int) -> Found | None:
        best: Found | None = None
        for found in self.chain(key):
            if found[0] <= ts and (best is None or found[0] > best[0]):
                best = found
        return best

    def offset_of(self, key: bytes) -> int:
        """Offset of the key's newest record, 0 when there is none."""
        return self._offsets.get(key, 0)

    def chain(self, key: bytes) -> list[Found]:
        """All versions of a key as `get` gives them, latest written first."""
        offset = self._offsets.get(key, 0)
        mapping = self.map
        found = []
        while offset:
            version, expiry, value_len, before, key_len, meta, user = _unpack_record(
                mapping, offset
            )
            at = offset + RECORD_BYTES + key_len
            found.append((version, user << 8 | meta, expiry, mapping[at : at + value_len]))
            offset = before
        return found

    def newest(self, keys: list[bytes], ts: int) -> Newest | None:
        """Versions, metas, expiries and values of the keys' newest records, each a list.

        None when that is not what a reader at `ts` sees of them.
        """
        if not self.ordered:
            return None
        offsets = list(map(self._offsets.__getitem__, keys))
        mapping = self.map
        heads = [_unpack_record(mapping, offset) for offset in offsets]
        versions, expiries, value_lens, _, key_lens, metas, users = map(
            list, zip(*heads, strict=True)
        )
        if max(versions) > ts:
            return None
        values = [
            mapping[(at := offset + RECORD_BYTES + key_len) : at + value_len]
            for offset, key_len, value_len in zip(offsets, key_lens, value_lens, strict=True)
        ]
        if any(users):
            metas = [user << 8 | meta for user, meta in zip(users, metas, strict=True)]
        return versions, metas, expiries, values

    def take_fresh(self) -> list[bytes]:
        """The keys that are new since the last call, in the order they came."""
        count = len(self._fresh)
        keys = self._fresh[:count]
        del self._fresh[:count]  # what came meanwhile stays
        return keys


if TYPE_CHECKING or NATIVE is None:
    LogIndex = LogIndexPy
else:
    LogIndex = NATIVE.LogIndex
