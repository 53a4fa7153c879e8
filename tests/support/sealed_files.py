"""Changing files of an encrypted directory as somebody would who can write to them: every checksum
is put right again, so that nothing but a seal can tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from struct import Struct

from meles.engine.codec.checksum import crc32c
from meles.engine.codec.columns import Columns
from meles.engine.codec.header import (
    HEADER_BYTES,
    MAGIC_MANIFEST,
    MAGIC_TABLE,
    MAGIC_WAL,
    FileHeader,
    decode_header,
)
from meles.engine.crypt.file_cipher import TAG_BYTES
from meles.engine.fs.files import Directory
from meles.engine.log.frame import PREFIX, PREFIX_BYTES, aligned
from meles.engine.table.block import encode_columns
from meles.engine.table.layout import BLOCK_HEAD, BLOCK_HEAD_BYTES, place_seed
from meles.engine.table.reader import Table
from meles.engine.vlog.layout import CHECKED_FROM, ENTRY, ENTRY_BYTES, POINTER, SEAL_BYTES

_RECORD = Struct("<IIQ")


class Sealed:
    """A file as bytes to be changed. `parts` are (offset, bytes) of what is sealed in it."""

    magic = b""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = bytearray(path.read_bytes())

    @property
    def header(self) -> FileHeader:
        return decode_header(bytes(self.data[:HEADER_BYTES]), self.magic, str(self.path))

    @property
    def parts(self) -> list[tuple[int, int]]:
        """Offset and length of each sealed thing, head included."""
        return list(self._walk())

    def _walk(self) -> Iterator[tuple[int, int]]:
        raise NotImplementedError

    def mend(self, offset: int) -> None:
        """Put the checksum of the thing at `offset` right."""
        raise NotImplementedError

    def put(self, offset: int, stored: bytes) -> None:
        """Store a thing, head included, and put its checksum right."""
        self.data[offset : offset + len(stored)] = stored
        self.mend(offset)

    def flip(self, at: int) -> None:
        """Change a bit in the last byte but some of the thing that holds `at`."""
        for offset, length in self.parts:
            if offset <= at < offset + length:
                self.data[at] ^= 1
                self.mend(offset)
                return
        raise AssertionError(at)

    def save(self) -> None:
        self.path.write_bytes(self.data)


class SealedTable(Sealed):
    magic = MAGIC_TABLE

    def _walk(self) -> Iterator[tuple[int, int]]:
        at = HEADER_BYTES
        end = int.from_bytes(self.data[-64:-60], "little")  # where the filter begins
        while at < end:
            length = BLOCK_HEAD_BYTES + BLOCK_HEAD.unpack_from(self.data, at)[0]
            yield at, length
            at += length

    def mend(self, offset: int) -> None:
        length = BLOCK_HEAD.unpack_from(self.data, offset)[0]
        body = bytes(self.data[offset + 8 : offset + BLOCK_HEAD_BYTES + length])
        crc = crc32c(body, place_seed(self.header.seed, offset, length))
        self.data[offset + 4 : offset + 8] = crc.to_bytes(4, "little")


FORGED = b"forged"


def forge_plain_blocks(directory: Directory, table_id: int) -> list[int]:
    """In the place of each sealed block one that is not: whole, of the same keys, in the same
    room, with a checksum that fits and another value. Whoever reads it in place answers with that.
    Returns where they are.
    """
    with Table(directory, table_id) as table:
        blocks = [table.load(number).columns() for number in range(len(table.index.offsets))]
    file = SealedTable(Path(directory.path) / f"{table_id:06d}.sst")
    for (offset, length), columns in zip(file.parts, blocks, strict=True):
        payload = _with_another_value(columns)
        size = len(payload)
        assert size == length - BLOCK_HEAD_BYTES
        file.put(offset, BLOCK_HEAD.pack(size, 0, size, 0, bytes(3)) + payload)
    file.save()
    return [offset for offset, _ in file.parts]


def _with_another_value(columns: Columns) -> bytes:
    """A payload as long as the sealed one: the tag's room goes to the first plain value."""
    values = list(columns.values)
    at = columns.metas.index(0)
    values[at] = (FORGED * 100)[: len(values[at]) + TAG_BYTES]
    return encode_columns(
        columns.keys, columns.versions, columns.metas, columns.expiries, values,
        multi=len(set(columns.keys)) < len(columns.keys),
    )  # fmt: skip


class SealedValues(Sealed):
    """Of a file that was appended to: what is logical is physical."""

    magic = b"MELESVLG"

    def _walk(self) -> Iterator[tuple[int, int]]:
        at = HEADER_BYTES
        while at + ENTRY_BYTES <= len(self.data):
            length = ENTRY_BYTES + SEAL_BYTES + ENTRY.unpack_from(self.data, at)[1]
            if at + length > len(self.data):
                return
            yield at, length
            at += length

    def mend(self, offset: int) -> None:
        length = ENTRY.unpack_from(self.data, offset)[1]
        stop = offset + ENTRY_BYTES + SEAL_BYTES + length
        pointer = POINTER.pack(self.header.file_id, offset, length)
        crc = crc32c(bytes(self.data[offset + CHECKED_FROM : stop]), crc32c(pointer))
        self.data[offset : offset + 4] = crc.to_bytes(4, "little")


class SealedLog(Sealed):
    magic = MAGIC_WAL

    def _walk(self) -> Iterator[tuple[int, int]]:
        at = HEADER_BYTES
        while at + PREFIX_BYTES < len(self.data):
            length = PREFIX.unpack_from(self.data, at)[0]
            if not length:
                return
            size = PREFIX_BYTES + length + TAG_BYTES
            yield at, size
            at = aligned(at + size)

    def mend(self, offset: int) -> None:
        length = PREFIX.unpack_from(self.data, offset)[0]
        start = offset + PREFIX_BYTES
        stored = bytes(self.data[start : start + length + TAG_BYTES])
        self.data[offset : offset + 8] = PREFIX.pack(
            length, crc32c(stored, self.header.seed ^ length)
        )


class SealedManifest(Sealed):
    magic = MAGIC_MANIFEST

    def _walk(self) -> Iterator[tuple[int, int]]:
        at = HEADER_BYTES
        while at < len(self.data):
            size = _RECORD.size + _RECORD.unpack_from(self.data, at)[0]
            yield at, size
            at += size

    def mend(self, offset: int) -> None:
        length, _, number = _RECORD.unpack_from(self.data, offset)
        payload = bytes(self.data[offset + _RECORD.size : offset + _RECORD.size + length])
        crc = crc32c(number.to_bytes(8, "little") + payload, self.header.seed ^ length)
        self.data[offset : offset + 8] = _RECORD.pack(length, crc, number)[:8]
