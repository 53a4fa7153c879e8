"""One block: columns of a run of entries, encoded and decoded with a handful of bulk operations.

Runs in: supervisor and workers.
Invariants: (1) keys ascend, versions of one key descend; (2) the flags say what the block may hold,
and an optional column is there exactly when its flag is; (3) every count and offset is checked
against the payload's length before it is used.
Fails with: `CorruptionError`.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from functools import lru_cache, reduce
from operator import or_
from typing import Final

from meles.engine.codec.columns import Columns
from meles.engine.codec.entry import META_DELETE, META_POINTER, POINTER_BYTES
from meles.engine.errors import CorruptionError
from meles.engine.kernel import find_part, offsets, split
from meles.engine.table.layout import (
    FLAG_EXPIRY,
    FLAG_MASK,
    FLAG_META,
    FLAG_MULTI,
    FLAG_POINTER,
    FLAG_TOMBSTONE,
    FLAG_USER,
    PAYLOAD_HEAD,
    PAYLOAD_HEAD_BYTES,
    U32,
    U32_PAIR,
    U64,
)

Found = tuple[int, int, int, bytes]  # version, user << 8 | meta, expiry ms, value

ENTRY_BYTES: Final = 8 + 4 + 4  # version, key offset, value offset
_COLUMN_FLAGS: Final = FLAG_EXPIRY | FLAG_META | FLAG_USER
_OBJECT_BYTES: Final = 400  # a Block with its attributes and list heads, for the cache's budget
_PART_BYTES: Final = 41  # a `bytes` object beyond its data and its place in a list


def encode_block(columns: Columns, start: int, stop: int, *, continues: bool = False) -> bytes:
    """The payload of entries [start, stop), at least one. `continues`: the last key goes on."""
    keys = columns.keys[start:stop]
    return encode_columns(
        keys,
        columns.versions[start:stop],
        columns.metas[start:stop],
        columns.expiries[start:stop],
        columns.values[start:stop],
        multi=continues or len(set(keys)) < len(keys),
    )


def encode_columns(
    keys: list[bytes],
    versions: list[int],
    metas: list[int],
    expiries: list[int],
    values: list[bytes],
    *,
    multi: bool,
) -> bytes:
    """As `encode_block`, for a caller that knows whether a key has several versions."""
    flags = FLAG_MULTI if multi else 0
    expiry_column = meta_column = user_column = b""
    if any(expiries):
        flags |= FLAG_EXPIRY
        expiry_column = array("Q", expiries).tobytes()
    if any(metas):
        union = reduce(or_, metas)
        if union & META_DELETE:
            flags |= FLAG_TOMBSTONE
        if union & META_POINTER:
            flags |= FLAG_POINTER
        if union & 0xFF:
            flags |= FLAG_META
            meta_column = bytes(metas) if union < 256 else bytes([meta & 255 for meta in metas])
        if union > 255:
            flags |= FLAG_USER
            user_column = bytes([meta >> 8 for meta in metas])
    return b"".join(
        (
            PAYLOAD_HEAD.pack(len(keys), flags, 0, max(versions), min(versions)),
            array("Q", versions).tobytes(),
            expiry_column,
            offsets(keys),
            offsets(values),
            meta_column,
            user_column,
            *keys,
            *values,
        )
    )


@lru_cache(maxsize=1024)
def _places(count: int, column_flags: int) -> tuple[int, int, int, int, int]:
    """Where key offsets, value offsets, metas, user bytes and keys of a payload begin."""
    offsets_at = PAYLOAD_HEAD_BYTES + 8 * count * (2 if column_flags & FLAG_EXPIRY else 1)
    value_offsets_at = offsets_at + 4 * (count + 1)
    metas_at = value_offsets_at + 4 * (count + 1)
    user_at = metas_at + (count if column_flags & FLAG_META else 0)
    return (
        offsets_at,
        value_offsets_at,
        metas_at,
        user_at,
        user_at + (count if column_flags & FLAG_USER else 0),
    )


class Block:
    """A payload that can be searched in place or decoded. Safe to share between threads."""

    __slots__ = (
        "_keys",
        "_keys_at",
        "_metas_at",
        "_offset",
        "_offsets_at",
        "_path",
        "_searched",
        "_user_at",
        "_value_offsets_at",
        "_values_at",
        "count",
        "flags",
        "max_version",
        "min_version",
        "raw",
        "used",
    )

    def __init__(self, raw: bytes, path: str = "block", offset: int = 0) -> None:
        """`path` and `offset` say where the block was stored, for messages."""
        self.raw = raw
        self.used = False  # set by a cache hit, cleared by the cache's clock
        self._path = path
        self._offset = offset
        self._keys: list[bytes] | None = None
        self._searched = False
        if len(raw) < PAYLOAD_HEAD_BYTES:
            raise self._damaged("payload is shorter than its header")
        count, flags, zero, self.max_version, self.min_version = PAYLOAD_HEAD.unpack_from(raw)
        self.count: int = count
        self.flags: int = flags
        self._offsets_at, self._value_offsets_at, self._metas_at, self._user_at, at = _places(
            count, flags & _COLUMN_FLAGS
        )
        self._keys_at = at
        if zero or not count or flags & ~FLAG_MASK or at > len(raw):
            raise self._damaged("payload header does not fit the payload")
        self._values_at = at = at + U32.unpack_from(raw, self._value_offsets_at - 4)[0]
        if at + U32.unpack_from(raw, self._metas_at - 4)[0] != len(raw):
            raise self._damaged("keys and values do not fill the payload")

    def _damaged(self, what: str) -> CorruptionError:
        return CorruptionError(what, path=self._path, offset=self._offset, kind="table block")

    @property
    def cost(self) -> int:
        """Bytes of memory once searched: payload, decoded keys, objects."""
        key_list = self._values_at - self._keys_at + _PART_BYTES * self.count
        size: int = len(self.raw) + key_list + _OBJECT_BYTES
        return size

    def keys(self) -> list[bytes]:
        """All keys, in order, decoded once. Not to be changed."""
        keys = self._keys
        if keys is None:
            raw = self.raw
            keys = split(
                raw[self._offsets_at : self._value_offsets_at], raw[self._keys_at : self._values_at]
            )
            if keys is None:
                raise self._damaged("key offsets are out of order")
            self._keys = keys
        return keys

    def values(self) -> list[bytes]:
        raw = self.raw
        values = split(raw[self._value_offsets_at : self._metas_at], raw[self._values_at :])
        if values is None:
            raise self._damaged("value offsets are out of order")
        return values

    def versions(self) -> list[int]:
        end = PAYLOAD_HEAD_BYTES + 8 * self.count
        return memoryview(self.raw)[PAYLOAD_HEAD_BYTES:end].cast("Q").tolist()

    def expiries(self) -> list[int]:
        if not self.flags & FLAG_EXPIRY:
            return [0] * self.count
        start = PAYLOAD_HEAD_BYTES + 8 * self.count
        return memoryview(self.raw)[start : self._offsets_at].cast("Q").tolist()

    def metas(self) -> list[int]:
        """Meta bits with the user's byte above them."""
        flags = self.flags
        if not flags & (FLAG_META | FLAG_USER):
            return [0] * self.count
        raw = self.raw
        bits = raw[self._metas_at : self._user_at] if flags & FLAG_META else bytes(self.count)
        if not flags & FLAG_USER:
            return list(bits)
        users = raw[self._user_at : self._keys_at]
        return [user << 8 | meta for user, meta in zip(users, bits, strict=True)]

    def columns(self) -> Columns:
        """All entries, in lists of the caller's own."""
        return Columns(
            self.keys().copy(), self.versions(), self.metas(), self.expiries(), self.values()
        )

    def find(self, key: bytes, ts: int) -> Found | None:
        """The newest version <= ts of the key in this block."""
        keys = self._keys
        raw = self.raw
        if keys is None:
            nth = -2
            if not self._searched:
                # Most blocks loaded for one key are never asked again: no list of keys for them.
                self._searched = True
                nth = find_part(
                    raw,
                    key,
                    words_at=self._offsets_at,
                    count=self.count,
                    start=self._keys_at,
                    end=self._values_at,
                )
            if nth == -1:
                return None
            if nth == -2:
                keys = self.keys()
                nth = bisect_left(keys, key)
        else:
            nth = bisect_left(keys, key)
        if keys is not None and (nth == self.count or keys[nth] != key):
            return None
        version = U64.unpack_from(raw, PAYLOAD_HEAD_BYTES + 8 * nth)[0]
        if version > ts:
            if not self.flags & FLAG_MULTI:
                return None
            end = bisect_right(self.keys(), key, nth)
            versions = self.versions()
            nth = bisect_left(versions, -ts, nth, end, key=int.__neg__)
            if nth == end:
                return None
            version = versions[nth]
        start, end = U32_PAIR.unpack_from(raw, self._value_offsets_at + 4 * nth)
        base = self._values_at
        if not start <= end <= len(raw) - base:
            raise self._damaged("value offsets are out of order")
        value = raw[base + start : base + end]
        flags = self.flags
        if not flags & _COLUMN_FLAGS:
            return version, 0, 0, value
        meta = raw[self._metas_at + nth] if flags & FLAG_META else 0
        if flags & FLAG_USER:
            meta |= raw[self._user_at + nth] << 8
        expiry = 0
        if flags & FLAG_EXPIRY:
            expiry = U64.unpack_from(raw, PAYLOAD_HEAD_BYTES + 8 * (self.count + nth))[0]
        return version, meta, expiry, value

    def pointers(self) -> bytes:
        """The value pointers of the block's pointer entries, 12 bytes each, concatenated."""
        metas = self.raw[self._metas_at : self._user_at]
        if not self.flags & FLAG_META or not self.flags & FLAG_POINTER:
            return b""
        values = self.values()
        found = [v for v, meta in zip(values, metas, strict=True) if meta & META_POINTER]
        if any(len(pointer) != POINTER_BYTES for pointer in found):
            raise self._damaged("a value pointer does not have 12 bytes")
        return b"".join(found)
