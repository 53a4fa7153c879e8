"""Builds a table file from entries in order.

Runs in: workers (flusher, compactors), supervisor in inline mode.
Owns: the file it creates, until `finish`, `settle` or `abandon`.
Invariants: (1) the file is created exclusively and complete only once its footer is synced; (2)
entries out of order are refused, not written; (3) the same entries make the same bytes, whatever
their batches and whichever kernel cuts them into blocks (`block_maker.py`).
Fails with: `FileExistsError`, `OSError`, `DiskFullError`, `ConfigError` (codec not installed),
`InvariantError` (entries out of order, none, or more than a file may hold).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from meles.engine.codec.columns import Columns
from meles.engine.codec.compression import require
from meles.engine.codec.header import MAGIC_TABLE
from meles.engine.crypt.file_cipher import FileCipher, What
from meles.engine.crypt.keys import new_header
from meles.engine.errors import InvariantError
from meles.engine.fs.files import Buffer, Directory
from meles.engine.fs.names import Kind, file_name
from meles.engine.ids import MAX_FILE_BYTES
from meles.engine.jobs import BuildOptions
from meles.engine.kernel import NATIVE
from meles.engine.manifest.version import TableMeta
from meles.engine.table.block_maker import BlockMaker, BlockMakerPy, Tally, batch_bytes, packer
from meles.engine.table.bloom import encode_bloom, shape
from meles.engine.table.index import encode_properties, expiry_shares
from meles.engine.table.layout import INDEX_HEAD, Footer, crc_of_file, encode_footer, section

_WRITE_BYTES: Final = 1 << 20  # blocks are written to the file at this size


@dataclass(frozen=True, slots=True)
class BuiltTable:
    """A finished table: bytes, CRC-32C of the whole file, and what it holds."""

    id: int
    size: int
    crc: int
    meta: TableMeta


def make_blocks(
    kernel: Any,
    head: bytes,
    seed: int,
    options: BuildOptions,
    now_ms: int,
    cipher: FileCipher | None = None,
) -> BlockMaker:
    """The maker of a compiled kernel, or without one (None) that in Python."""
    if kernel is None:
        return BlockMakerPy(head, seed, options, now_ms, cipher)
    sizes = (options.block_size, batch_bytes(options))
    maker: BlockMaker = kernel.BlockMaker(
        head, seed, *sizes, packer(options, cipher), now_ms, InvariantError
    )
    return maker


class TableBuilder:
    """Takes entries in order, in batches of any size, and writes one table. Not thread-safe."""

    def __init__(
        self,
        directory: Directory,
        table_id: int,
        options: BuildOptions,
        *,
        created_ms: int,
        ordered: bool = True,
        kernel: Any = NATIVE,
    ) -> None:
        """Creates the file. `ordered`: no newer source holds older versions (see TableMeta)."""
        require(options.compression)
        self._directory = directory
        self._options = options
        self._created_ms = created_ms
        self._ordered = ordered
        self._name = file_name(Kind.TABLE, table_id)
        self._header, self._cipher = new_header(directory.keys, MAGIC_TABLE, table_id)
        self._seed = self._header.seed
        self.blocks = make_blocks(
            kernel, self._header.encode(), self._seed, options, created_ms, self._cipher
        )
        self._file = directory.create(self._name)
        self._open = True
        self._written = 0
        self._crc = 0

    @property
    def size(self) -> int:
        """Bytes of blocks so far, those still pending at their uncompressed size."""
        return self.blocks.size

    @property
    def count(self) -> int:
        """Entries so far."""
        return self.blocks.count

    def add(self, columns: Columns) -> None:
        """Append entries; all keys and versions must come after those added before."""
        self.blocks.add(columns)
        self.drain()

    def drain(self) -> None:
        """Write the blocks that are ready, if there are enough of them."""
        if self.blocks.ready >= _WRITE_BYTES:
            self._write(self.blocks.take())

    def _write(self, data: Buffer) -> None:
        if self._written + len(data) > MAX_FILE_BYTES:
            raise InvariantError(f"table {self._name} would grow beyond {MAX_FILE_BYTES} bytes")
        self._file.pwrite(data, self._written)
        self._file.start_write_back(self._written, len(data))
        self._crc = crc_of_file(data, self._crc)
        self._written += len(data)

    def finish(self) -> BuiltTable:
        """Write what is left, sync and close the file. The caller syncs the directory."""
        built = self.complete()
        self.settle()
        return built

    def complete(self) -> BuiltTable:
        """Write what is left. The file is whole, and durable once `settle` was called, too."""
        if not self.count:
            raise InvariantError("a table has at least one entry")
        blocks = self.blocks
        blocks.end()
        self._write(blocks.take())
        meta = self._meta(Tally(*blocks.tally()))
        self._write(self._sections(meta))
        meta = replace(meta, size=self._written, crc=self._crc)
        return BuiltTable(meta.id, meta.size, meta.crc, meta)

    def settle(self) -> None:
        """Sync and close the complete file."""
        self._file.sync()
        self._file.close()
        self._open = False

    def _meta(self, tally: Tally) -> TableMeta:
        return TableMeta(
            id=self._header.file_id,
            size=0,
            crc=0,
            count=self.count,
            compression=self._options.compression,
            key_id=self._header.key_id,
            salt=self._header.salt if self._header.key_id else b"",
            created=self._created_ms / 1000,
            ordered=self._ordered,
            expiries=expiry_shares(self.blocks.expiries()),
            **tally._asdict(),
        )

    def _sections(self, meta: TableMeta) -> bytes:
        """What follows the blocks."""
        blocks, index = self.blocks, self.blocks.index()
        lines, bits = shape(blocks.keys, self._options.bloom_false_positive)
        filter_lines = blocks.filter_lines(lines, bits) if lines else b""
        at = self._written
        bloom = self._sealed(encode_bloom(filter_lines, bits, at), What.FILTER, at)
        bloom_at = section(bloom, at, self._seed)
        stored_index = self._sealed(index, What.INDEX, bloom_at.end)
        index_at = section(stored_index, bloom_at.end, self._seed)
        properties = self._sealed(encode_properties(meta), What.PROPERTIES, index_at.end)
        properties_at = section(properties, index_at.end, self._seed)
        count = INDEX_HEAD.unpack_from(index)[0]
        footer = Footer(bloom_at, index_at, properties_at, count, meta.id)
        return b"".join((bloom, stored_index, properties, encode_footer(footer, self._seed)))

    def _sealed(self, data: bytes, what: What, offset: int) -> bytes:
        return data if self._cipher is None else self._cipher.seal(data, what, offset)

    def abandon(self) -> None:
        """Close and remove the file. Does nothing once it is settled, or a second time."""
        if self._open:
            self._open = False
            self._file.close()
            self._directory.unlink(self._name)
