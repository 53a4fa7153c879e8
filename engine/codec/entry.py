"""Meta bits of an entry and the address of a value in the value log.

Runs in: supervisor and workers.
The bits are Badger's, without its transaction bits: a frame of ours is a whole transaction.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

META_DELETE: Final = 0x01  # tombstone; the value is empty
META_POINTER: Final = 0x02  # the value is a ValuePointer
META_DISCARD_EARLIER: Final = 0x04  # older versions of the key may go
META_MERGE: Final = 0x08  # an operand of a merge operator
META_MASK: Final = 0x0F

_POINTER: Final = struct.Struct("<III")
POINTER_BYTES: Final = _POINTER.size


class ValuePointer(NamedTuple):
    """Logical address of a value: stable for its life, whichever file holds it now.

    `offset` is where the entry's header begins in the file it was first written to; `length` is the
    value's bytes without that header.
    """

    file_id: int
    offset: int
    length: int

    def encode(self) -> bytes:
        return _POINTER.pack(*self)

    @staticmethod
    def decode(data: bytes) -> ValuePointer:
        """`struct.error` when `data` is not 12 bytes: the caller names the place."""
        return ValuePointer(*_POINTER.unpack(data))
