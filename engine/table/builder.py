"""Builds a table file from entries in order.

Runs in: workers (flusher, compactors), supervisor in inline mode.
Owns: the file it creates, until `finish` or `abandon`.
Invariants: (1) the file is created exclusively and complete only once its footer is synced; (2) a
block is cut at the entry that reaches the block size, uncompressed; (3) entries out of order are
refused, not written.
Fails with: `FileExistsError`, `OSError`, `DiskFullError`, `ConfigError` (codec not installed),
`InvariantError` (entries out of order, none, or more than a file may hold).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from dataclasses import dataclass, replace
from itertools import accumulate, count, islice
from operator import add, lt
from typing import Final

from meles.engine.codec.checksum import crc32c
from meles.engine.codec.columns import Columns
from meles.engine.codec.compression import CODEC_IDS, MAX_RAW_BYTES, NONE, compress, require
from meles.engine.codec.entry import META_DELETE, META_POINTER, POINTER_BYTES
from meles.engine.codec.header import MAGIC_TABLE, FileHeader
from meles.engine.errors import InvariantError
from meles.engine.fs.files import Directory
from meles.engine.fs.names import Kind, file_name
from meles.engine.ids import MAX_FILE_BYTES
from meles.engine.jobs import BuildOptions
from meles.engine.manifest.version import TableMeta
from meles.engine.table.block import ENTRY_BYTES, encode_columns
from meles.engine.table.bloom import encode_bloom, key_hash
from meles.engine.table.index import Index, encode_properties, expiry_shares
from meles.engine.table.layout import (
    BLOCK_HEAD_BYTES,
    BLOCK_HEAD_TAIL,
    FLAG_POINTER,
    PAYLOAD_HEAD,
    U32_PAIR,
    VLOG_ENTRY_HEADER_BYTES,
    Footer,
    encode_footer,
    place_seed,
    section,
)

_BATCH_BYTES: Final = (
    256 << 10
)  # pending entries are cut into blocks at this size, or that of four blocks
_WRITE_BYTES: Final = 1 << 20  # blocks are written to the file at this size


@dataclass(frozen=True, slots=True)
class BuiltTable:
    """A finished table: bytes, CRC-32C of the whole file, and what it holds."""

    id: int
    size: int
    crc: int
    meta: TableMeta


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
    ) -> None:
        """Creates the file. `ordered`: no newer source holds older versions (see TableMeta)."""
        require(options.compression)
        self._directory = directory
        self._options = options
        self._created_ms = created_ms
        self._ordered = ordered
        self._batch_bytes = max(_BATCH_BYTES, 4 * options.block_size)
        self._name = file_name(Kind.TABLE, table_id)
        self._header = FileHeader(MAGIC_TABLE, table_id)
        self._seed = self._header.seed
        self._file = directory.create(self._name)
        self._open = True
        self._chunks: list[bytes] = [self._header.encode()]
        self._chunk_bytes = len(self._chunks[0])
        self._written = 0
        self._crc = 0
        self._pending = Columns()
        self._pending_bytes = 0
        self._index = Index()
        self._hashes = array("Q")
        self._min_key = b""
        self._min_version = 0
        self._last_accounted = b""
        self._stale_bytes = 0
        self._tombstones = 0
        self._expiring = 0
        self._expiries = array("Q")  # those to come
        self._raw_bytes = 0
        self._value_log: dict[int, list[int]] = {}
        self.count = 0

    @property
    def size(self) -> int:
        """Bytes of blocks so far, those still pending at their uncompressed size."""
        return self._written + self._chunk_bytes + self._pending_bytes

    def add(self, columns: Columns) -> None:
        """Append entries; all keys and versions must come after those added before."""
        if not columns.keys:
            return
        self._pending.extend(columns)
        self.count += len(columns.keys)
        entry_bytes = sum(map(len, columns.keys)) + sum(map(len, columns.values))
        self._raw_bytes += entry_bytes
        self._pending_bytes += entry_bytes + ENTRY_BYTES * len(columns.keys)
        if self._pending_bytes >= self._batch_bytes:
            self._cut(last=False)

    def _cut(self, *, last: bool) -> None:
        """Turn pending entries into blocks; unless `last`, what does not fill one stays pending."""
        pending = self._pending
        keys, versions, values = pending.keys, pending.versions, pending.values
        total = len(keys)
        strict = all(map(lt, keys, islice(keys, 1, None)))
        if not strict:
            _check_order(keys, versions)
        if not self._min_key:
            if not keys[0]:
                raise InvariantError("a table holds no empty key")
            self._min_key = keys[0]
            self._min_version = versions[0]
        ends = list(
            map(
                add,
                accumulate(map(add, map(len, keys), map(len, values)), initial=0),
                count(0, ENTRY_BYTES),
            )
        )
        block_size = self._options.block_size
        start = 0
        while start < total:
            # The entry that crosses the block size still belongs to the block.
            stop = bisect_left(ends, ends[start] + block_size, start + 1, total)
            if stop == total and not last:
                break
            self._write_block(start, stop, strict)
            start = stop
        if start:
            self._account(start, strict)
        self._pending = pending.slice(start, total)
        self._pending_bytes = ends[total] - ends[start]

    def _write_block(self, start: int, stop: int, strict: bool) -> None:
        pending = self._pending
        keys = pending.keys[start:stop]
        continues = stop < len(pending.keys) and pending.keys[stop] == keys[-1]
        raw = encode_columns(
            keys,
            pending.versions[start:stop],
            pending.metas[start:stop],
            pending.expiries[start:stop],
            pending.values[start:stop],
            multi=not strict and (continues or len(set(keys)) < len(keys)),
        )
        entries, flags, _, max_version, min_version = PAYLOAD_HEAD.unpack_from(raw)
        codec, stored = NONE, raw
        options = self._options
        if options.compression != "none" and len(raw) <= MAX_RAW_BYTES:
            packed = compress(options.compression, raw, options.zstd_level)
            if len(packed) <= len(raw) - len(raw) // 8:  # else decompressing is not worth it
                codec, stored = CODEC_IDS[options.compression], packed
        offset = self._written + self._chunk_bytes
        tail = BLOCK_HEAD_TAIL.pack(len(raw), codec, bytes(3))
        crc = crc32c(stored, crc32c(tail, place_seed(self._seed, offset, len(stored))))
        index = self._index
        index.offsets.append(offset)
        index.max_versions.append(max_version)
        index.sizes.append(BLOCK_HEAD_BYTES + len(stored))
        index.entries.append(entries)
        index.flags.append(flags)
        index.last_keys.append(keys[-1])
        self._min_version = min(self._min_version, min_version)
        if flags & FLAG_POINTER:
            self._tally_pointers(pending.metas[start:stop], pending.values[start:stop])
        self._chunks += (U32_PAIR.pack(len(stored), crc), tail, stored)
        self._chunk_bytes += BLOCK_HEAD_BYTES + len(stored)
        if self._chunk_bytes >= _WRITE_BYTES:
            self._flush()

    def _account(self, stop: int, strict: bool) -> None:
        """Count the entries [0, stop) that were just written."""
        pending = self._pending
        keys, metas, expiries = pending.keys[:stop], pending.metas[:stop], pending.expiries[:stop]
        self._hashes.extend(map(key_hash, keys if strict else dict.fromkeys(keys)))
        previous, self._last_accounted = self._last_accounted, keys[-1]
        if strict and keys[0] != previous and not any(metas) and not any(expiries):
            return
        self._tombstones += sum([meta & META_DELETE for meta in metas])
        self._expiring += sum(map(bool, expiries))
        now = self._created_ms
        self._expiries.extend([expiry for expiry in expiries if expiry > now])
        stale = 0
        for key, meta, expiry, value in zip(keys, metas, expiries, pending.values, strict=False):
            if meta & META_DELETE or key == previous or 0 < expiry <= now:
                stale += len(key) + len(value) + ENTRY_BYTES
            previous = key
        self._stale_bytes += stale

    def _tally_pointers(self, metas: list[int], values: list[bytes]) -> None:
        pointers = [v for v, meta in zip(values, metas, strict=True) if meta & META_POINTER]
        if any(len(pointer) != POINTER_BYTES for pointer in pointers):
            raise InvariantError("a value pointer does not have 12 bytes")
        words = memoryview(b"".join(pointers)).cast("I").tolist()
        tallies = self._value_log
        for file_id, length in zip(words[0::3], words[2::3], strict=True):
            tally = tallies.setdefault(file_id, [0, 0])
            tally[0] += length + VLOG_ENTRY_HEADER_BYTES
            tally[1] += 1

    def _append(self, data: bytes) -> None:
        self._chunks.append(data)
        self._chunk_bytes += len(data)

    def _flush(self) -> None:
        data = b"".join(self._chunks)
        if self._written + len(data) > MAX_FILE_BYTES:
            raise InvariantError(f"table {self._name} would grow beyond {MAX_FILE_BYTES} bytes")
        self._file.pwrite(data, self._written)
        self._crc = crc32c(data, self._crc)
        self._written += len(data)
        self._chunks = []
        self._chunk_bytes = 0

    def finish(self) -> BuiltTable:
        """Write what is left, sync and close the file. The caller syncs the directory."""
        if not self.count:
            raise InvariantError("a table has at least one entry")
        if self._pending.keys:
            self._cut(last=True)
        index = self._index
        meta = TableMeta(
            id=self._header.file_id,
            size=0,
            crc=0,
            count=self.count,
            min_key=self._min_key,
            max_key=index.last_keys[-1],
            min_version=self._min_version,
            max_version=max(index.max_versions),
            tombstones=self._tombstones,
            expiring=self._expiring,
            stale_bytes=self._stale_bytes,
            raw_bytes=self._raw_bytes,
            value_log=tuple(
                (file_id, size, entries)
                for file_id, (size, entries) in sorted(self._value_log.items())
            ),
            compression=self._options.compression,
            key_id=self._header.key_id,
            created=self._created_ms / 1000,
            ordered=self._ordered,
            expiries=expiry_shares(self._expiries),
        )
        self._write_sections(meta)
        self._file.sync()
        self._file.close()
        self._open = False
        meta = replace(meta, size=self._written, crc=self._crc)
        return BuiltTable(meta.id, meta.size, meta.crc, meta)

    def _write_sections(self, meta: TableMeta) -> None:
        wanted = self._options.bloom_false_positive
        at = self._written + self._chunk_bytes
        sections = []
        for data in (
            encode_bloom(self._hashes, len(self._hashes), wanted, at),
            self._index.encode(),
            encode_properties(meta),
        ):
            sections.append(section(data, at, self._seed))
            self._append(data)
            at += len(data)
        bloom, index, properties = sections
        footer = Footer(bloom, index, properties, len(self._index), meta.id)
        self._append(encode_footer(footer, self._seed))
        self._flush()

    def abandon(self) -> None:
        """Close and remove the unfinished file. Does nothing after `finish` or a second time."""
        if self._open:
            self._open = False
            self._file.close()
            self._directory.unlink(self._name)


def _check_order(keys: list[bytes], versions: list[int]) -> None:
    """`InvariantError` unless keys ascend and the versions of each key descend."""
    for nth in range(1, len(keys)):
        if keys[nth] <= keys[nth - 1] and (
            keys[nth] < keys[nth - 1] or versions[nth] >= versions[nth - 1]
        ):
            raise InvariantError("entries for a table are not in order")
