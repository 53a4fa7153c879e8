"""Sizes, records and checksums of the table file. FORMAT.md beside this file has the picture.

Runs in: supervisor and workers.
Invariants: (1) every offset is a sum of sizes named here; (2) every byte of a table is under a
checksum that also covers its place and length; (3) all numbers are little-endian.
Fails with: `CorruptionError`.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from typing import Final, NamedTuple

from meles.engine.codec.checksum import crc32c
from meles.engine.codec.header import HEADER_BYTES
from meles.engine.errors import CorruptionError
from meles.engine.fs.files import Buffer
from meles.engine.kernel import NATIVE

BLOCK_HEAD: Final = struct.Struct("<IIIB3s")  # stored_len, crc, raw_len, codec, zero
BLOCK_HEAD_BYTES: Final = 16
BLOCK_HEAD_TAIL: Final = struct.Struct("<IB3s")  # raw_len, codec, zero: checked with the bytes
SEALED_ABOUT: Final = struct.Struct("<IB")  # raw_len, codec: a sealed block opens with these alone
BLOCK_HEAD_CHECKED: Final = BLOCK_HEAD_BYTES - BLOCK_HEAD_TAIL.size
PAYLOAD_HEAD: Final = struct.Struct("<IHHQQ")  # count, flags, zero, max_version, min_version
PAYLOAD_HEAD_BYTES: Final = 24
BLOOM_HEAD: Final = struct.Struct("<IB3sQ")  # lines, pattern bits, zero, zero
BLOOM_HEAD_BYTES: Final = 16
U64: Final = struct.Struct("<Q")
U32: Final = struct.Struct("<I")
U32_PAIR: Final = struct.Struct("<II")
INDEX_HEAD: Final = struct.Struct("<II")  # blocks, zero
INDEX_HEAD_BYTES: Final = 8
INDEX_ROW_BYTES: Final = 8 + 8 + 4 + 4 + 4 + 2  # offset, max_version, size, entries, key end, flags
FOOTER: Final = struct.Struct("<9IIQI")  # three sections of 3, blocks, file id, zero
FOOTER_CRC: Final = struct.Struct("<I")
FOOTER_MAGIC: Final = b"MELESEND"
FOOTER_BYTES: Final = 64

BLOCKS_OFFSET: Final = HEADER_BYTES
CACHE_LINE: Final = 64
VLOG_ENTRY_HEADER_BYTES: Final = 16  # what an entry of the value log takes beside its value

FLAG_TOMBSTONE: Final = 0x01  # some entry is a tombstone
FLAG_EXPIRY: Final = 0x02  # some entry expires: the expiry column is there
FLAG_POINTER: Final = 0x04  # some value is a ValuePointer
FLAG_MULTI: Final = 0x08  # some key has several versions here, or goes on in the next block
FLAG_META: Final = 0x10  # some entry has meta bits: the meta column is there
FLAG_USER: Final = 0x20  # some entry has a user byte: the user column is there
FLAG_MASK: Final = 0x3F

assert sys.byteorder == "little", "columns are read in place"  # noqa: S101
assert BLOCK_HEAD.size == BLOCK_HEAD_BYTES, "FORMAT.md says 16"  # noqa: S101
assert PAYLOAD_HEAD.size == PAYLOAD_HEAD_BYTES, "FORMAT.md says 24"  # noqa: S101
assert BLOOM_HEAD.size == BLOOM_HEAD_BYTES, "FORMAT.md says 16"  # noqa: S101
assert INDEX_HEAD.size == INDEX_HEAD_BYTES, "FORMAT.md says 8"  # noqa: S101
assert FOOTER.size + FOOTER_CRC.size + len(FOOTER_MAGIC) == FOOTER_BYTES, "FORMAT says 64"  # noqa: S101


def crc_of_file(data: Buffer, crc: int) -> int:
    """Of the next part of a whole file: as `crc32c`, without the GIL where there is a kernel."""
    return crc32c(data, crc) if NATIVE is None else int(NATIVE.crc32c(data, crc))


class Section(NamedTuple):
    """Where a section lies, in bytes, and its checksum."""

    offset: int
    length: int
    crc: int

    @property
    def end(self) -> int:
        return self.offset + self.length


@dataclass(frozen=True, slots=True)
class Footer:
    """The last 64 bytes of a table, checked."""

    bloom: Section
    index: Section
    properties: Section
    blocks: int
    file_id: int


def place_seed(seed: int, offset: int, length: int) -> int:
    """Start of the checksum of `length` stored bytes at `offset`: data moved or cut fails."""
    return seed ^ offset ^ length


def section(data: bytes, offset: int, seed: int) -> Section:
    """Describe a section about to be written at `offset`."""
    return Section(offset, len(data), crc32c(data, place_seed(seed, offset, len(data))))


def lines_offset(section_offset: int) -> int:
    """Where the filter's lines begin: on a cache line, after the section's head."""
    return -(-(section_offset + BLOOM_HEAD_BYTES) // CACHE_LINE) * CACHE_LINE


def encode_footer(footer: Footer, seed: int) -> bytes:
    fixed = FOOTER.pack(
        *footer.bloom, *footer.index, *footer.properties, footer.blocks, footer.file_id, 0
    )
    return fixed + FOOTER_CRC.pack(crc32c(fixed, seed)) + FOOTER_MAGIC


def decode_footer(data: bytes, seed: int, file_id: int, file_size: int, path: str) -> Footer:
    """Parse and check the footer of a file of `file_size` bytes."""
    at = file_size - FOOTER_BYTES

    def damaged(what: str) -> CorruptionError:
        return CorruptionError(what, path=path, offset=at, kind="table footer")

    if data[-len(FOOTER_MAGIC) :] != FOOTER_MAGIC or len(data) != FOOTER_BYTES:
        raise damaged("the file does not end in a table footer")
    if FOOTER_CRC.unpack_from(data, FOOTER.size)[0] != crc32c(data[: FOOTER.size], seed):
        raise damaged("footer checksum does not match")
    numbers = FOOTER.unpack_from(data)
    footer = Footer(
        Section(*numbers[0:3]), Section(*numbers[3:6]), Section(*numbers[6:9]), *numbers[9:11]
    )
    if footer.file_id != file_id:
        raise damaged(f"the footer belongs to table {footer.file_id}")
    ends = (footer.bloom.end, footer.index.end, footer.properties.end)
    if ends != (footer.index.offset, footer.properties.offset, at) or numbers[11]:
        raise damaged("sections do not join")
    if footer.blocks < 1:
        raise damaged("there are no blocks")
    return footer
