"""Which resident pages of a mapped file to let go of: a clock over marks, one for each chunk.

Runs in: supervisor.
Invariants: (1) pure: marks in, marks and ranges out; (2) a chunk used since the last round stays
for another one; (3) when pages go, so does everything without a mark around them: the kernel maps
more than was asked for, and a reader may have been looking while its mark was taken.
"""

from __future__ import annotations

import re
from typing import Final

CHUNK_BITS: Final = 16  # 64 KiB: what the kernel maps at once at least, where it is in its cache
CHUNK_BYTES: Final = 1 << CHUNK_BITS

ABSENT: Final = 0
IDLE: Final = 1  # resident, and not used since the last round
USED: Final = 2  # kernel/mapped.pxi has the same numbers

_AGED: Final = bytes((ABSENT, ABSENT, IDLE, *range(3, 256)))
_GOING: Final = re.compile(rb"[\x00\x01]+")


def aged(marks: bytes) -> tuple[bytes, list[tuple[int, int]]]:
    """The marks after a round, and the ranges of bytes, as (start, stop), whose pages go."""
    going = []
    if IDLE in marks:
        going = [(m.start() << CHUNK_BITS, m.end() << CHUNK_BITS) for m in _GOING.finditer(marks)]
    return marks.translate(_AGED), going


def resident(marks: bytes | bytearray) -> int:
    """Bytes with a mark, to whole chunks."""
    return (len(marks) - marks.count(ABSENT)) << CHUNK_BITS
