"""The block index and the properties: what a reader knows of a table without reading its blocks.

Runs in: supervisor and workers.
Invariants: (1) last keys ascend; equal neighbours mean that one key's versions fill several blocks;
(2) blocks join without gaps from the header to the filter; (3) properties are `TableMeta` without
size and checksum, which a file cannot hold of itself.
Fails with: `CorruptionError`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Final

import msgpack
from meles.engine.errors import CorruptionError
from meles.engine.kernel import offsets, split
from meles.engine.manifest.version import TableMeta
from meles.engine.table.layout import (
    BLOCK_HEAD_BYTES,
    BLOCKS_OFFSET,
    FLAG_MASK,
    INDEX_HEAD,
    INDEX_HEAD_BYTES,
    INDEX_ROW_BYTES,
)

_ROW_COST: Final = 4 * 40 + 8 + 41  # of memory, per block: four numbers, the flags, a key
_SHARES: Final = 8  # finer than what a rewrite is decided by


@dataclass(slots=True)
class Index:
    """One row per block, as columns. `sizes` include the block header."""

    offsets: list[int] = field(default_factory=list)
    max_versions: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    entries: list[int] = field(default_factory=list)
    flags: list[int] = field(default_factory=list)
    last_keys: list[bytes] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.offsets)

    def encode(self) -> bytes:
        return b"".join(
            (
                INDEX_HEAD.pack(len(self), 0),
                array("Q", self.offsets).tobytes(),
                array("Q", self.max_versions).tobytes(),
                array("I", self.sizes).tobytes(),
                array("I", self.entries).tobytes(),
                offsets(self.last_keys),
                array("H", self.flags).tobytes(),
                *self.last_keys,
            )
        )


def decode_index(data: bytes, blocks: int, blocks_end: int, offset: int, path: str) -> Index:
    """Parse the section found at `offset`; it must describe `blocks` blocks up to `blocks_end`."""

    def damaged(what: str) -> CorruptionError:
        return CorruptionError(what, path=path, offset=offset, kind="table index")

    fixed = INDEX_HEAD_BYTES + blocks * INDEX_ROW_BYTES + 4
    if len(data) < fixed or INDEX_HEAD.unpack_from(data) != (blocks, 0):
        raise damaged("index does not have the footer's number of blocks")
    view = memoryview(data)
    at = INDEX_HEAD_BYTES
    starts = view[at : (at := at + 8 * blocks)].cast("Q").tolist()
    max_versions = view[at : (at := at + 8 * blocks)].cast("Q").tolist()
    sizes = view[at : (at := at + 4 * blocks)].cast("I").tolist()
    entries = view[at : (at := at + 4 * blocks)].cast("I").tolist()
    key_words = data[at : (at := at + 4 * blocks + 4)]
    flags = view[at : (at := at + 2 * blocks)].cast("H").tolist()
    ends = list(accumulate(sizes, initial=BLOCKS_OFFSET))
    if ends.pop() != blocks_end or ends != starts or min(sizes) <= BLOCK_HEAD_BYTES:
        raise damaged("blocks do not join")
    last_keys = split(key_words, data[at:])
    if last_keys is None or last_keys != sorted(last_keys) or not last_keys[0]:
        raise damaged("last keys are out of order")
    if not min(entries) or max(flags) > FLAG_MASK:
        raise damaged("entry counts or flags are not valid")
    return Index(starts, max_versions, sizes, entries, flags, last_keys)


def index_cost(index: Index, encoded: int) -> int:
    """Bytes of memory a decoded index takes; `encoded` are those of its section."""
    return encoded + len(index) * (_ROW_COST - INDEX_ROW_BYTES)


def expiry_shares(expiries: Iterable[int]) -> tuple[int, ...]:
    """Times by which further eighths of the entries have expired: `TableMeta.expiries`."""
    ordered = sorted(expiries)
    parts = min(_SHARES, len(ordered))
    return tuple([ordered[len(ordered) * part // parts - 1] for part in range(1, parts + 1)])


def encode_properties(meta: TableMeta) -> bytes:
    plain = meta.to_plain()
    del plain["s"], plain["c"]
    packed: bytes = msgpack.packb(plain)
    return packed


def decode_properties(
    data: bytes, *, size: int, crc: int, offset: int, path: str, known: TableMeta | None = None
) -> TableMeta:
    """The table's metadata; `size` and `crc` of the file come from the caller.

    `known`, what the MANIFEST says of it, is returned itself if the properties say the same: to
    write it as it is written there takes a fifth of the time of reading them.
    """
    if known is not None and _says(data, size, crc, known):
        return known
    try:
        plain: Any = msgpack.unpackb(data)
        if not isinstance(plain, dict) or not all(
            isinstance(plain.get(name), kind) for name, kind in _PROPERTY_TYPES.items()
        ):
            raise TypeError("a property is missing or of another type")
        meta = TableMeta.from_plain({**plain, "s": size, "c": crc})
    except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
        raise CorruptionError(
            f"properties do not parse: {error}", path=path, offset=offset, kind="table properties"
        ) from error
    if _contradicts(meta):
        raise CorruptionError(
            "properties contradict themselves", path=path, offset=offset, kind="table properties"
        )
    return meta


def _says(data: bytes, size: int, crc: int, meta: TableMeta) -> bool:
    same_file = (meta.size, meta.crc) == (size, crc)
    return same_file and encode_properties(meta) == data and not _contradicts(meta)


def _contradicts(meta: TableMeta) -> bool:
    return not meta.min_key or meta.min_key > meta.max_key or meta.count < 1


_PROPERTY_TYPES = {
    name: type(value)
    for name, value in TableMeta(1, 0, 0, 1, b"k", b"k", 0, 0).to_plain().items()
    if name not in ("s", "c")
}
