"""Reads a table: point lookups in place, scans block by block.

Runs in: supervisor and workers.
Owns: the mapping of the file.
Invariants: (1) nothing from the file is used before its checksum and bounds held: header, footer
and properties when opened, filter and index on first use, a block whenever it is loaded; (2) data
leaves the mapping as copies, so closing never pulls bytes from under a reader; (3) every method may
be called from several threads at once.
Fails with: `CorruptionError`, `FormatVersionError`, `EncryptionKeyError`, `ConfigError` (codec not
installed), `ClosedError`, `OSError` (the file cannot be opened).
"""

from __future__ import annotations

import contextlib
import errno
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Final
from weakref import ref

from meles.engine.codec.checksum import crc32c
from meles.engine.codec.columns import Columns
from meles.engine.codec.compression import NONE, decompress
from meles.engine.codec.header import HEADER_BYTES, MAGIC_TABLE, decode_header
from meles.engine.crypt.file_cipher import SealBroken, What
from meles.engine.crypt.keys import cipher_for
from meles.engine.errors import ClosedError, CorruptionError
from meles.engine.fs.files import AROUND_BYTES, NO_MAPPING, Directory, forget_pages
from meles.engine.fs.names import Kind, file_name
from meles.engine.fs.pages import Pages
from meles.engine.giving_way import give_way
from meles.engine.kernel import NATIVE
from meles.engine.manifest.version import TableMeta
from meles.engine.table.block import Block, Found
from meles.engine.table.bloom import bloom_lines, decode_bloom, key_hash
from meles.engine.table.cache import BlockCache
from meles.engine.table.index import Index, decode_index, decode_properties, index_cost
from meles.engine.table.index_cache import IndexCache
from meles.engine.table.layout import (
    BLOCK_HEAD,
    BLOCK_HEAD_BYTES,
    BLOCK_HEAD_CHECKED,
    FLAG_MULTI,
    FLAG_POINTER,
    FOOTER_BYTES,
    SEALED_ABOUT,
    Section,
    crc_of_file,
    decode_footer,
    place_seed,
)

_STEP_BYTES: Final = 1 << 20
FORGET_BYTES: Final = 256 << 10  # a job passes so many of a table before they are forgotten


def _damaged_block(path: str, what: str, offset: int) -> CorruptionError:
    return CorruptionError(what, path=path, offset=offset, kind="table block")


class Table:
    """An open table file. `meta` is what its properties say."""

    def __init__(
        self,
        directory: Directory,
        table_id: int,
        *,
        crc: int = 0,
        known: TableMeta | None = None,
        cache: BlockCache | None = None,
        indexes: IndexCache | None = None,
        pages: Pages | None = None,
        once: bool = False,
    ) -> None:
        """Map the file and check its frame. `crc` is the whole file's, 0 = not known; `known` is
        what the MANIFEST says, which spares reading it again where the file says the same.

        `pages` bounds what of it is resident, whoever reads it. `once`: it is read from one end to
        the other, and what was passed need not stay resident.
        """
        name = file_name(Kind.TABLE, table_id)
        self.id = table_id
        self._keys = directory.keys
        self.path = directory.join(name)
        give_way()
        try:
            self._map = directory.map(name)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise self._damaged("file is empty", 0, "table header") from error
        try:
            give_way()
            self._open(crc if known is None else known.crc, known)
            give_way()
        except BaseException:
            self._map.close()
            raise
        forget_pages(self._map, 0, self.meta.size)  # all that was read is a copy
        self._once = once
        self._marks = None if pages is None else pages.watch(self._map)
        self._indexes = indexes
        self._cache = cache
        self._shelf: dict[int, Block] = {} if cache is None else cache.open(table_id)

    def _open(self, crc: int, known: TableMeta | None) -> None:
        size = len(self._map)
        header = decode_header(self._map[:HEADER_BYTES], MAGIC_TABLE, self.path)
        if header.file_id != self.id:
            raise self._damaged(f"the file is table {header.file_id}", 0, "table header")
        self._cipher = cipher_for(self._keys, header, self.path)
        if size < HEADER_BYTES + FOOTER_BYTES:
            raise self._damaged("file is shorter than header and footer", 0, "table footer")
        self._seed = header.seed
        footer = self._map[size - FOOTER_BYTES :]
        self._footer = decode_footer(footer, self._seed, self.id, size, self.path)
        give_way()
        section = self._footer.properties
        properties = self._section(section, "table properties", What.PROPERTIES)
        give_way()
        self.meta = decode_properties(
            properties,
            size=size,
            crc=crc,
            offset=section.offset,
            path=self.path,
            known=known,
        )
        if self.meta.id != self.id:
            raise self._damaged("properties of another table", section.offset, "table properties")
        if header.key_id and (self.meta.key_id, self.meta.salt) != (header.key_id, header.salt):
            raise self._damaged("header and properties disagree", 0, "table header")
        self.index_used = False
        self._index: Index | None = None
        self._probe: Callable[[int], bool] | None = None
        self._readers: list[Any] = []  # the first is everybody's
        self._evicted: list[ref[Any]] = []  # readers that somebody may still hold

    def _damaged(self, what: str, offset: int, kind: str) -> CorruptionError:
        return CorruptionError(what, path=self.path, offset=offset, kind=kind)

    def _read(self, start: int, end: int) -> bytes:
        try:
            return self._map[start:end]
        except ValueError:
            raise self._refusal() from None

    def _section(self, section: Section, kind: str, what: What) -> bytes:
        data = self._read(section.offset, section.end)
        if crc32c(data, place_seed(self._seed, section.offset, section.length)) != section.crc:
            raise self._damaged("section checksum does not match", section.offset, kind)
        self.forget_between(section.offset, section.end)
        return self._opened(data, what, section.offset, kind)

    def _opened(self, data: bytes, what: What, offset: int, kind: str, about: bytes = b"") -> bytes:
        """The data behind the seal, where there is one."""
        if self._cipher is None:
            return data
        try:
            return self._cipher.open(data, what, offset, about)
        except SealBroken as error:
            raise self._damaged(str(error), offset, kind) from None

    def file_crc(self) -> int:
        """CRC-32C of the whole file."""
        crc = 0
        try:
            with memoryview(self._map) as view:
                for start in range(0, self.meta.size, _STEP_BYTES):
                    stop = start + _STEP_BYTES
                    crc = crc_of_file(view[start:stop], crc)
                    self.forget_between(start, stop)
        except ValueError:
            raise self._refusal() from None
        return crc

    @property
    def index(self) -> Index:
        """The block index, decoded on first use. Not to be changed."""
        index = self._index
        self.index_used = True
        if index is None:
            section = self._footer.index
            data = self._section(section, "table index", What.INDEX)
            blocks_end = self._footer.bloom.offset
            index = decode_index(data, self._footer.blocks, blocks_end, section.offset, self.path)
            self._index = index
            self._charge(index_cost(index, len(data)))
        return index

    def extent(self) -> tuple[int, bytes]:
        """How many entries the index counts, and its last key."""
        if NATIVE is not None:
            found: tuple[int, bytes] = self.blocks().extent()
            return found
        return sum(self.index.entries), self.index.last_keys[-1]

    def _charge(self, cost: int) -> None:
        indexes = self._indexes
        if indexes is not None:
            indexes.charge(self, cost)

    def forget_index(self) -> None:
        """Let go of index, filter and compiled reader; they are read again when next needed."""
        readers, self._readers = self._readers, []
        still = [evicted for evicted in self._evicted if evicted() is not None]
        self._evicted = still + [ref(reader) for reader in readers]
        self._index = self._probe = None

    def may_contain(self, digest: int) -> bool:
        """False only if no key with this `key_hash` is here."""
        probe = self._probe
        self.index_used = True
        if probe is None:
            section = self._footer.bloom
            data = self._section(section, "table filter", What.FILTER)
            probe = self._probe = decode_bloom(data, section.offset, self.path)
            self._charge(len(data))
        return probe(digest)

    def blocks(self) -> Any:
        """The compiled reader of this table, made on first use (`kernel.NATIVE.TableBlocks`)."""
        readers = self._readers
        self.index_used = True
        if not readers:
            indexes = self._indexes
            footer, mapping = self._footer, self._map
            index = self._section(footer.index, "table index", What.INDEX)
            give_way()
            bloom = self._section(footer.bloom, "table filter", What.FILTER)
            give_way()
            lines, pattern_bits = bloom_lines(bloom, footer.bloom.offset, self.path)
            try:
                blocks = NATIVE.TableBlocks(
                    mapping, self._seed, index, footer.blocks, footer.bloom.offset, lines,
                    pattern_bits, self._fetcher(), partial(_damaged_block, self.path),
                    partial(ClosedError, f"table {self.path} is closed"),
                    lasting=indexes is None or not indexes.bounded,
                    sealed=self._cipher is not None, pages=self._marks,
                )  # fmt: skip
            except ValueError as error:
                if self._map is not mapping:
                    raise self._refusal() from None
                raise self._damaged(str(error), footer.index.offset, "table index") from error
            readers.append(blocks)  # several threads may: `close` has to know of each
            if self._map is not mapping:  # closed meanwhile, and `close` did not see it
                blocks.close()
                raise self._refusal()
            if self._readers is not readers:  # evicted meanwhile: `close` has to know of it still
                self._evicted.append(ref(blocks))
            self._charge(blocks.memory)
        return readers[0]

    def _refusal(self) -> ClosedError:
        return ClosedError(f"table {self.path} is closed")

    def _fetcher(self) -> Callable[[int, bool], bytes]:
        """Gives payloads of blocks with a codec or a seal, without keeping the table alive."""
        table = ref(self)

        def fetch(number: int, scanning: bool) -> bytes:
            found = table()
            if found is None:
                raise ClosedError("the table is closed")
            if scanning:  # one scan must not empty the cache
                return (found._shelf.get(number) or found.load(number)).raw
            return found._block(number).raw

        return fetch

    def load(self, number: int) -> Block:
        """Read, check and parse a block, past the cache."""
        index = self.index
        offset = index.offsets[number]
        data = self._read(offset, offset + index.sizes[number])
        if self._marks is not None:
            self._marks.used(offset, offset + len(data))
        stored_len, crc, raw_len, codec, _ = BLOCK_HEAD.unpack_from(data)
        start_value = place_seed(self._seed, offset, stored_len)
        if stored_len != len(data) - BLOCK_HEAD_BYTES or crc != crc32c(
            memoryview(data)[BLOCK_HEAD_CHECKED:], start_value
        ):
            raise self._damaged("block checksum does not match", offset, "table block")
        stored = data[BLOCK_HEAD_BYTES:]
        if self._cipher is not None:
            about = SEALED_ABOUT.pack(raw_len, codec)
            stored = self._opened(stored, What.BLOCK, offset, "table block", about)
        if codec != NONE or raw_len != len(stored):
            try:
                stored = decompress(codec, stored, raw_len)
            except ValueError as error:
                what = f"block does not decompress: {error}"
                raise self._damaged(what, offset, "table block") from error
        return Block(stored, self.path, offset)

    def _block(self, number: int) -> Block:
        """A block for a point lookup: from the cache, or into it."""
        block = self._shelf.get(number)
        cache = self._cache
        if block is not None:
            block.used = True
            if cache is not None:
                cache.hits += 1
            return block
        block = self.load(number)
        if cache is not None:
            cache.misses += 1
            cache.put(self.id, number, block)
            if self._marks is not None:
                self._marks.pages.took(block.cost)
        return block

    def get(self, key: bytes, ts: int) -> Found | None:
        """The newest version <= ts of the key: (version, user << 8 | meta, expiry ms, value)."""
        probe = self._probe
        self.index_used = True
        digest = key_hash(key)
        if not (self.may_contain(digest) if probe is None else probe(digest)):
            return None
        index = self.index
        last_keys = index.last_keys
        number = bisect_left(last_keys, key)
        while number < len(last_keys):
            found = self._block(number).find(key, ts)
            if found is not None:
                return found
            if last_keys[number] != key or not index.flags[number] & FLAG_MULTI:
                return None
            number += 1
        return None

    def _blocks_between(self, start: bytes | None, stop: bytes | None) -> range:
        last_keys = self.index.last_keys
        first = 0 if start is None else bisect_left(last_keys, start)
        end = len(last_keys) if stop is None else bisect_left(last_keys, stop) + 1
        return range(first, min(end, len(last_keys)))

    def _clipped(self, number: int, start: bytes | None, stop: bytes | None) -> Columns:
        columns = (self._shelf.get(number) or self.load(number)).columns()
        keys = columns.keys
        low = 0 if start is None or keys[0] >= start else bisect_left(keys, start)
        high = len(keys) if stop is None or keys[-1] < stop else bisect_left(keys, stop)
        return columns if high - low == len(keys) else columns.slice(low, max(low, high))

    def scan(self, start: bytes | None = None, stop: bytes | None = None) -> Iterator[Columns]:
        """All versions of keys in [start, stop), ascending, a batch per block. None: unbounded."""
        for number in self._forgetting(self._blocks_between(start, stop)):
            columns = self._clipped(number, start, stop)
            if columns.keys:
                yield columns

    def _forgetting(self, numbers: Iterable[int]) -> Iterator[int]:
        """These blocks, ascending; read once, the pages of those passed are forgotten in steps."""
        offsets, behind = self.index.offsets, 0
        for number in numbers:
            if self._once and offsets[number] - behind >= FORGET_BYTES:
                self.forget_between(behind, offsets[number])
                behind = offsets[number]
            yield number

    def forget_between(self, start: int, stop: int) -> None:
        """Bytes of the file that need not stay resident, nor what came with them: whoever asked for
        them is done.
        """
        forget_pages(self._map, max(0, start - AROUND_BYTES), stop)

    def scan_reverse(
        self, start: bytes | None = None, stop: bytes | None = None
    ) -> Iterator[Columns]:
        """The batches of `scan` from the last to the first; each is ascending in itself."""
        for number in reversed(self._blocks_between(start, stop)):
            columns = self._clipped(number, start, stop)
            if columns.keys:
                yield columns

    def pointers(self) -> Iterator[bytes]:
        """For each block with value pointers: all of them, 12 bytes each, concatenated."""
        flags = self.index.flags
        for number in self._forgetting(range(len(flags))):
            if flags[number] & FLAG_POINTER:
                found = (self._shelf.get(number) or self.load(number)).pointers()
                if found:
                    yield found

    def verify(self) -> tuple[int, int]:
        """Check every byte and every claim of the file; (blocks, entries). `CorruptionError`."""
        from meles.engine.table.verify import verify_table

        return verify_table(self)

    def close(self) -> None:
        """Unmap. Reads that are under way finish; later ones raise `ClosedError`."""
        mapping, self._map = self._map, NO_MAPPING
        cache, self._cache = self._cache, None
        self._shelf = {}
        self._index = self._probe = None
        readers, self._readers = self._readers, []
        for nth in range(len(readers)):
            readers[nth].close()
        for evicted in self._evicted:
            if (reader := evicted()) is not None:
                reader.close()
                del reader
        indexes, self._indexes = self._indexes, None
        if indexes is not None:
            indexes.release(self)
        del readers  # with them the mapping goes, if nobody else looks at it
        if cache is not None:
            cache.close(self.id)
        with contextlib.suppress(BufferError):  # somebody looks at it: it goes with that
            mapping.close()
        if self._marks is not None:
            self._marks.release()

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
