"""One frame of the write-ahead log = one transaction under one checksum. See FORMAT.md.

Runs in: supervisor (writes, replays) and flusher (reads).
Invariants: (1) offsets are sums of named sizes; (2) a frame is published by its first eight bytes,
length and checksum, stored last and at once, so a follower of the mapped file never sees half a
frame; (3) the checksum covers the length, by way of its start value.
"""

from __future__ import annotations

import struct
from typing import Final

PREFIX: Final = struct.Struct("<II")  # length of the body, checksum
BODY: Final = struct.Struct("<QIHH")  # timestamp, records, frame kind, zero
RECORD: Final = struct.Struct(
    "<QQIIHBB"
)  # version, expiry ms, value bytes, previous, key bytes, meta, user
SINGLE: Final = struct.Struct("<QIHHQQIIHBB")  # BODY and RECORD of a one-record frame in one pack

PREFIX_BYTES: Final = PREFIX.size
BODY_BYTES: Final = BODY.size
RECORD_BYTES: Final = RECORD.size
FRAME_BYTES: Final = PREFIX_BYTES + BODY_BYTES  # from a frame's start to its first record
ALIGN: Final = 8

KIND_TXN: Final = 1
KIND_END: Final = 2  # written when the log is sealed; `records` then counts those before it
END_FRAME_BYTES: Final = FRAME_BYTES

assert SINGLE.size == BODY_BYTES + RECORD_BYTES, "SINGLE must equal its parts"  # noqa: S101
assert (PREFIX_BYTES, BODY_BYTES, RECORD_BYTES) == (8, 16, 28), "FORMAT.md"  # noqa: S101


def aligned(offset: int) -> int:
    """The first frame boundary at or after `offset`."""
    return (offset + ALIGN - 1) & -ALIGN
