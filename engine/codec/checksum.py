"""CRC-32C, the checksum of every frame, block and record.

Runs in: supervisor and workers. The library computes it with the CPU's own instruction
(measured: 4 KiB in 0.21 us, `zlib.crc32` 0.83 us).
"""

from __future__ import annotations

from crc32c import crc32c

__all__ = ["crc32c"]
