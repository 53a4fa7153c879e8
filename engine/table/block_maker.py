"""Cuts entries in order into blocks, and keeps what a table must say of them.

`BlockMakerPy` is the readable one; `kernel/block_maker.pxi` is its compiled twin, which makes the
same bytes and measures the same sizes.

Runs in: workers (flusher, compactors), supervisor in inline mode.
Invariants: (1) a block is cut at the entry that reaches the block size, uncompressed; (2) what is
made, and every size told, depends on the entries and their order alone, not on how they were
batched; (3) entries out of order are refused by `end` at the latest.
Fails with: `InvariantError` (entries out of order, or what no table may hold).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable
from itertools import accumulate, count, islice
from operator import add, lt
from typing import Any, Final, NamedTuple, Protocol

from meles.engine.codec.checksum import crc32c
from meles.engine.codec.columns import Columns
from meles.engine.codec.compression import CODEC_IDS, MAX_RAW_BYTES, NONE, compress
from meles.engine.codec.entry import META_DELETE, META_POINTER, POINTER_BYTES
from meles.engine.crypt.file_cipher import FileCipher, What
from meles.engine.errors import InvariantError
from meles.engine.fs.files import Buffer
from meles.engine.jobs import BuildOptions
from meles.engine.kernel import bloom_build
from meles.engine.table.block import ENTRY_BYTES, encode_columns
from meles.engine.table.bloom import key_hash
from meles.engine.table.index import Index
from meles.engine.table.layout import (
    BLOCK_HEAD_BYTES,
    BLOCK_HEAD_TAIL,
    BLOCKS_OFFSET,
    FLAG_POINTER,
    PAYLOAD_HEAD,
    SEALED_ABOUT,
    U32_PAIR,
    VLOG_ENTRY_HEADER_BYTES,
    place_seed,
)

Pack = Callable[[bytes], tuple[int, bytes] | None]  # (codec, packed), None to store as it is

# Pending entries are cut into blocks at this size, or that of four blocks. The size of a table
# under construction is measured at these points, which the compiled twin keeps to.
_BATCH_BYTES: Final = 256 << 10


class Tally(NamedTuple):
    """What a table's properties say of its entries, see TableMeta."""

    min_key: bytes
    max_key: bytes
    min_version: int
    max_version: int
    tombstones: int
    expiring: int
    stale_bytes: int
    raw_bytes: int
    value_log: tuple[tuple[int, int, int], ...]


class BlockMaker(Protocol):
    """What both kernels' makers do."""

    count: int  # entries added

    @property
    def size(self) -> int:
        """Where the blocks end in the file, those still pending at their uncompressed size."""

    @property
    def ready(self) -> int:
        """Bytes of the file that `take` would give."""

    def add(self, columns: Columns) -> None: ...
    def end(self) -> None: ...
    def take(self) -> Buffer: ...
    def tally(self) -> tuple[Any, ...]: ...
    def expiries(self) -> Iterable[int]: ...
    @property
    def keys(self) -> int: ...
    def filter_lines(self, lines: int, bits: int) -> bytes: ...
    def index(self) -> bytes: ...


def batch_bytes(options: BuildOptions) -> int:
    return max(_BATCH_BYTES, 4 * options.block_size)


def packer(options: BuildOptions, cipher: FileCipher | None = None) -> Pack | None:
    """What compresses a block when that is worth it, and seals it; None: it stays as it is."""
    pack = _compressor(options)
    return pack if cipher is None else _SealingPacker(pack, cipher)


class _SealingPacker:
    """Seals every block. They come in file order, each once, so it knows where each will be."""

    def __init__(self, pack: Pack | None, cipher: FileCipher) -> None:
        self._pack = pack
        self._cipher = cipher
        self._offset = BLOCKS_OFFSET

    def __call__(self, raw: bytes) -> tuple[int, bytes]:
        packed = None if self._pack is None else self._pack(raw)
        codec, stored = (NONE, raw) if packed is None else packed
        about = SEALED_ABOUT.pack(len(raw), codec)
        sealed = self._cipher.seal(stored, What.BLOCK, self._offset, about)
        self._offset += BLOCK_HEAD_BYTES + len(sealed)
        return codec, sealed


def _compressor(options: BuildOptions) -> Pack | None:
    name, level = options.compression, options.zstd_level
    if name == "none":
        return None
    codec = CODEC_IDS[name]

    def pack(raw: bytes) -> tuple[int, bytes] | None:
        if len(raw) > MAX_RAW_BYTES:
            return None
        packed = compress(name, raw, level)
        if len(packed) > len(raw) - len(raw) // 8:  # decompressing is not worth it
            return None
        return codec, packed

    return pack


class BlockMakerPy:
    """Takes entries in batches of any size, gives finished blocks. Not thread-safe."""

    def __init__(
        self,
        head: bytes,
        seed: int,
        options: BuildOptions,
        now_ms: int,
        cipher: FileCipher | None = None,
    ) -> None:
        """`head` begins the file, `seed` its checksums; what expired before `now_ms` is stale."""
        self._seed = seed
        self._block_size = options.block_size
        self._batch_bytes = batch_bytes(options)
        self._pack = packer(options, cipher)
        self._now_ms = now_ms
        self._chunks = [head]
        self.ready = len(head)
        self._taken_to = 0
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
        self._to_come = array("Q")
        self._raw_bytes = 0
        self._value_log: dict[int, list[int]] = {}
        self.count = 0

    @property
    def size(self) -> int:
        return self._taken_to + self.ready + self._pending_bytes

    @property
    def until_cut(self) -> int:
        """Bytes of entries, 16 more for each, after which `size` is measured anew."""
        return self._batch_bytes - self._pending_bytes

    def add(self, columns: Columns) -> None:
        """Append entries; all keys and versions must come after those added before."""
        total = len(columns.keys)
        if not total:
            return
        sizes = list(map(add, map(len, columns.keys), map(len, columns.values)))
        entry_bytes = sum(sizes)
        self.count += total
        self._raw_bytes += entry_bytes
        if entry_bytes + ENTRY_BYTES * total < self.until_cut:
            self._pending.extend(columns)
            self._pending_bytes += entry_bytes + ENTRY_BYTES * total
            return
        ends = [0, *map(add, accumulate(sizes), count(ENTRY_BYTES, ENTRY_BYTES))]
        start = 0
        while start < total:
            stop = bisect_left(ends, ends[start] + self.until_cut, start + 1, total)
            self._pending.extend(columns.slice(start, stop))
            self._pending_bytes += ends[stop] - ends[start]
            if self.until_cut <= 0:
                self._cut(last=False)
            start = stop

    def end(self) -> None:
        """Make a block of what is left."""
        if self._pending.keys:
            self._cut(last=True)

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
        block_size = self._block_size
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
        packed = None if self._pack is None else self._pack(raw)
        codec, stored = (NONE, raw) if packed is None else packed
        offset = self._taken_to + self.ready
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
        self.ready += BLOCK_HEAD_BYTES + len(stored)

    def _account(self, stop: int, strict: bool) -> None:
        """Count the entries [0, stop) that were just written."""
        pending = self._pending
        keys, metas, expiries = pending.keys[:stop], pending.metas[:stop], pending.expiries[:stop]
        previous, self._last_accounted = self._last_accounted, keys[-1]
        distinct = keys if strict else list(dict.fromkeys(keys))
        known = 1 if keys[0] == previous else 0
        self._hashes.extend(map(key_hash, islice(distinct, known, None)))
        if strict and not known and not any(metas) and not any(expiries):
            return
        self._tombstones += sum([meta & META_DELETE for meta in metas])
        self._expiring += sum(map(bool, expiries))
        now = self._now_ms
        self._to_come.extend([expiry for expiry in expiries if expiry > now])
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

    def take(self) -> bytes:
        """Hand out what is ready, to be written where the last such part ended."""
        data = b"".join(self._chunks)
        self._chunks = []
        self._taken_to += len(data)
        self.ready = 0
        return data

    def tally(self) -> Tally:
        """After `end`."""
        index = self._index
        return Tally(
            self._min_key,
            index.last_keys[-1],
            self._min_version,
            max(index.max_versions),
            self._tombstones,
            self._expiring,
            self._stale_bytes,
            self._raw_bytes,
            tuple(
                (file_id, size, entries)
                for file_id, (size, entries) in sorted(self._value_log.items())
            ),
        )

    def expiries(self) -> Iterable[int]:
        """When entries will expire, in no order."""
        return self._to_come

    @property
    def keys(self) -> int:
        """Distinct keys."""
        return len(self._hashes)

    def filter_lines(self, lines: int, bits: int) -> bytes:
        return bloom_build(self._hashes, lines, bits)

    def index(self) -> bytes:
        """The index section."""
        return self._index.encode()


def _check_order(keys: list[bytes], versions: list[int]) -> None:
    """`InvariantError` unless keys ascend and the versions of each key descend."""
    for nth in range(1, len(keys)):
        if keys[nth] <= keys[nth - 1] and (
            keys[nth] < keys[nth - 1] or versions[nth] >= versions[nth - 1]
        ):
            raise InvariantError("entries for a table are not in order")
