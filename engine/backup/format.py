"""The stream of a backup as bytes: header, frames, and what is in them. See FORMAT.md.

Runs in: supervisor.
Invariants: (1) bytes in, values out: nothing here reads or writes; (2) a length is judged before
anything is read or allocated for it, and what a frame holds fills it exactly; (3) the checksum of a
frame covers its length and its number and begins with the stream's own: none can be left out,
repeated, moved or taken from another stream.
Fails with: `CorruptionError`, `FormatVersionError`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import accumulate, pairwise, repeat
from operator import gt
from typing import Final, NamedTuple

from meles.engine.codec.checksum import crc32c
from meles.engine.codec.columns import Columns
from meles.engine.codec.entry import META_DELETE, META_MASK, META_POINTER
from meles.engine.codec.header import MAGIC_BACKUP, FileHeader, decode_header
from meles.engine.errors import CorruptionError
from meles.engine.ids import MAX_KEY_BYTES, MAX_VERSION, RESERVED_PREFIX

MAX_FRAME_BYTES: Final = 512 << 10  # of a payload: what a hostile length can make us allocate
FRAME_TARGET: Final = 256 << 10  # a frame ends before this, but for one entry
PART_BYTES: Final = FRAME_TARGET  # a value of at least so many bytes comes in parts of this size
MAX_VALUE_BYTES: Final = (2 << 30) - 1  # the largest value_log_file_size there is

HEAD: Final = struct.Struct("<IIQ")  # payload bytes, checksum, number
_NUMBER: Final = struct.Struct("<Q")
_KIND: Final = struct.Struct("<B3xI")  # kind, count
_START: Final = struct.Struct("<QQ")  # since, token
_END: Final = struct.Struct("<QQQ")  # entries, bytes, token
_ROW: Final = struct.Struct("<QQIIHH")  # version, expiry, key bytes, value bytes, meta, zero
_REFERENCE: Final = struct.Struct("<I")
ROW_BYTES: Final = _ROW.size

START, ENTRIES, LARGE, PART, END = 1, 2, 3, 4, 5  # kinds
KEPT: Final = META_POINTER  # in a stream: the value is in the streams before it
_LATEST: Final = 1 << 63
_HINT: Final = "take the backup from another copy; nothing was made of this one"


@dataclass(frozen=True, slots=True)
class Start:
    """What a stream holds: versions above `since` up to `token`; and the banned namespaces."""

    since: int
    token: int
    banned: tuple[int, ...] = ()


class End(NamedTuple):
    """What a stream held: entries, and bytes of their keys and values."""

    entries: int
    size: int
    token: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where in which stream, for messages."""

    path: str
    offset: int

    def damage(self, what: str) -> CorruptionError:
        return damage(what, self.path, self.offset)


def damage(what: str, path: str, offset: int) -> CorruptionError:
    return CorruptionError(what, path=path, offset=offset, kind="backup stream", hint=_HINT)


def make_header(salt: bytes) -> FileHeader:
    """The header of a new stream; its salt is random, 16 bytes."""
    return FileHeader(MAGIC_BACKUP, 0, salt=salt)


def read_header(data: bytes, path: str) -> FileHeader:
    """The header of a stream, checked."""
    try:
        return decode_header(data, MAGIC_BACKUP, path)
    except CorruptionError as error:
        error.hint = _HINT
        raise


# -- frames --------------------------------------------------------------------------------------


def encode_frame(payload: bytes, number: int, seed: int) -> bytes:
    """A frame, the `number`-th of its stream from 1 on."""
    crc = crc32c(payload, crc32c(_NUMBER.pack(number), seed ^ len(payload)))
    return HEAD.pack(len(payload), crc, number) + payload


def payload_bytes(head: bytes, number: int, place: Place) -> int:
    """How many bytes follow a frame's head. To be asked before they are read."""
    length, _, found = HEAD.unpack(head)
    if not _KIND.size <= length <= MAX_FRAME_BYTES:
        raise place.damage(f"a frame of {length:,} bytes; at most {MAX_FRAME_BYTES:,} are allowed")
    if found != number:
        raise place.damage(f"frame {found} where {number} belongs")
    return int(length)


def check_payload(head: bytes, payload: bytes, seed: int, place: Place) -> int:
    """The kind of a frame whose checksum holds."""
    length, crc, number = HEAD.unpack(head)
    if crc != crc32c(payload, crc32c(_NUMBER.pack(number), seed ^ length)):
        raise place.damage("frame checksum does not match")
    return int(payload[0])


# -- payloads ------------------------------------------------------------------------------------


def encode_start(start: Start) -> bytes:
    count = len(start.banned)
    return (
        _KIND.pack(START, count)
        + _START.pack(start.since, start.token)
        + struct.pack(f"<{count}Q", *start.banned)
    )


def decode_start(payload: bytes, place: Place) -> Start:
    count, body = _opened(payload, START, place)
    if len(body) != _START.size + 8 * count:
        raise place.damage("the first frame is not as long as it says")
    since, token = _START.unpack_from(body)
    banned = struct.unpack_from(f"<{count}Q", body, _START.size)
    if not since <= token < MAX_VERSION:
        raise place.damage(f"versions above {since} up to {token}")
    if any(a >= b for a, b in pairwise(banned)):
        raise place.damage("banned namespaces are out of order")
    return Start(since, token, banned)


def encode_end(end: End) -> bytes:
    return _KIND.pack(END, 0) + _END.pack(*end)


def decode_end(payload: bytes, place: Place) -> End:
    count, body = _opened(payload, END, place)
    if count or len(body) != _END.size:
        raise place.damage("the last frame is not as long as it says")
    return End(*_END.unpack(body))


def encode_entries(columns: Columns) -> bytes:
    """Entries whose values are in the frame."""
    keys, values = columns.keys, columns.values
    rows = map(
        _ROW.pack, columns.versions, columns.expiries, map(len, keys), map(len, values),
        columns.metas, repeat(0),
    )  # fmt: skip
    return b"".join((_KIND.pack(ENTRIES, len(keys)), *rows, *keys, *values))


def decode_entries(payload: bytes, start: Start, place: Place) -> Columns:
    """The entries of a frame, each of them one that may be in this stream, in order."""
    count, body = _opened(payload, ENTRIES, place)
    if not count or count * ROW_BYTES > len(body):
        raise place.damage(f"{count:,} entries in a frame of {len(payload):,} bytes")
    versions, expiries, key_sizes, value_sizes, metas, zeros = map(
        list, zip(*_ROW.iter_unpack(body[: count * ROW_BYTES]), strict=True)
    )
    bounds = list(accumulate((*key_sizes, *value_sizes), initial=count * ROW_BYTES))
    if bounds[-1] != len(body) or any(zeros):
        raise place.damage("keys and values do not fill the frame")
    parts = [body[a:b] for a, b in pairwise(bounds)]
    columns = Columns(parts[:count], versions, metas, expiries, parts[count:])
    check_entries(columns, start, place)
    return columns


def encode_large(key: bytes, version: int, meta: int, expiry: int, size: int) -> bytes:
    """The frame in front of the parts of a value of `size` bytes."""
    return _KIND.pack(LARGE, 1) + _ROW.pack(version, expiry, len(key), size, meta, 0) + key


def decode_large(payload: bytes, start: Start, place: Place) -> tuple[Columns, int]:
    """An entry without its value, and how many bytes of that follow in parts."""
    count, body = _opened(payload, LARGE, place)
    if count != 1 or len(body) < ROW_BYTES:
        raise place.damage("a frame of a large value that is too short")
    version, expiry, key_bytes, size, meta, zero = _ROW.unpack_from(body)
    if len(body) != ROW_BYTES + key_bytes or zero:
        raise place.damage("the key does not fill the frame")
    if not 0 < size <= MAX_VALUE_BYTES or meta & (META_DELETE | KEPT):
        raise place.damage(f"a large value of {size:,} bytes and kind {meta & META_MASK}")
    columns = Columns([body[ROW_BYTES:]], [version], [meta], [expiry], [b""])
    check_entries(columns, start, place)
    return columns, size


def encode_part(data: bytes | memoryview) -> bytes:
    return _KIND.pack(PART, 0) + data


def decode_part(payload: bytes, left: int, place: Place) -> bytes:
    """A part of a value of which `left` bytes are still to come."""
    count, body = _opened(payload, PART, place)
    if count or not 0 < len(body) <= left:
        raise place.damage(f"a part of {len(body):,} bytes where {left:,} are left")
    return body


def _opened(payload: bytes, kind: int, place: Place) -> tuple[int, bytes]:
    if len(payload) < _KIND.size:
        raise place.damage(f"a payload of {len(payload)} bytes")
    found, count = _KIND.unpack_from(payload)
    if found != kind or any(payload[1:4]):
        raise place.damage(f"a frame of kind {found} where one of kind {kind} belongs")
    return count, payload[_KIND.size :]


def check_entries(columns: Columns, start: Start, place: Place) -> None:
    """Whether these entries can be in a stream that begins so; order is the reader's business."""
    keys, versions, metas = columns.keys, columns.versions, columns.metas
    sizes = set(map(len, keys))
    if not 0 < min(sizes) <= max(sizes) <= MAX_KEY_BYTES:
        raise place.damage("a key that no entry may have")
    if any(map(bytes.startswith, keys, repeat(RESERVED_PREFIX))):
        raise place.damage("a reserved key")
    if not 0 < min(versions) <= max(versions) <= start.token:
        raise place.damage("a version that the stream says it does not have")
    if max(columns.expiries) >= _LATEST:
        raise place.damage("an expiry time out of range")
    kinds = set(metas)
    if any(meta & 0xFF & ~META_MASK for meta in kinds):
        raise place.damage("an entry of a kind that is not known")
    special = META_DELETE | KEPT
    if min(versions) <= start.since or any(meta & special for meta in kinds):
        for version, meta, value in zip(versions, metas, columns.values, strict=True):
            fault = _fault(version, meta, value, start.since)
            if fault:
                raise place.damage(fault)


def _fault(version: int, meta: int, value: bytes, since: int) -> str:
    """What is wrong with a tombstone, a reference, or an old version."""
    if meta & KEPT:
        if version > since or meta & META_DELETE or len(value) != _REFERENCE.size:
            return "a reference to what cannot be in an earlier stream"
    elif meta & META_DELETE:
        if value:
            return "a tombstone with a value"
    elif version <= since:
        return "a version that belongs into an earlier stream"
    return ""


def in_order(columns: Columns, last: tuple[bytes, int]) -> bool:
    """Whether these follow `last` (key and negated version) and ascend."""
    order = list(zip(columns.keys, [-version for version in columns.versions], strict=True))
    return order[0] > last and all(map(gt, order[1:], order))


# -- references ----------------------------------------------------------------------------------


def reference(size: int) -> bytes:
    """The value of an entry that an earlier stream holds: how long its value is there."""
    return _REFERENCE.pack(size)


def refers_to(kept: tuple[int, int, bytes], entry: tuple[int, int, bytes]) -> bool:
    """Whether meta, expiry and value of a reference are those of this entry."""
    meta, expiry, value = entry
    return kept == (meta | KEPT, expiry, _REFERENCE.pack(len(value)))
