"""Types and limits of the numbers that name things.

Runs in: supervisor and workers.
"""

from __future__ import annotations

from typing import Final, NewType

TableId = NewType("TableId", int)
MemId = NewType("MemId", int)
VlogId = NewType("VlogId", int)
JobId = NewType("JobId", int)
Generation = NewType("Generation", int)

MAX_KEY_BYTES: Final = 65_000  # Badger's limit; a u16 holds it
MAX_VERSION: Final = (1 << 63) - 1  # fits a signed and an unsigned 64-bit word
MAX_FILE_BYTES: Final = (1 << 32) - 4096  # offsets inside a file are u32
MAX_FILE_ID: Final = 999_999_999_999  # twelve digits in a file name
RESERVED_PREFIX: Final = b"!meles!"  # internal keys; users may not write them
MAX_LEVELS: Final = 16
