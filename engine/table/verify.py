"""Checks a whole table: every checksum, the order of entries, and all that the file tells twice.

Runs in: supervisor and workers.
Invariants: (1) reads only; (2) the first contradiction ends it and names its place.
Fails with: `CorruptionError`, `ClosedError`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import reduce
from itertools import pairwise
from operator import or_
from typing import TYPE_CHECKING

from meles.engine.codec.columns import Columns
from meles.engine.codec.entry import META_DELETE, META_POINTER, POINTER_BYTES, ValuePointer
from meles.engine.errors import CorruptionError
from meles.engine.manifest.version import TableMeta
from meles.engine.table.block import Block
from meles.engine.table.bloom import key_hash
from meles.engine.table.index import expiry_shares
from meles.engine.table.layout import (
    FLAG_EXPIRY,
    FLAG_META,
    FLAG_MULTI,
    FLAG_POINTER,
    FLAG_TOMBSTONE,
    FLAG_USER,
    VLOG_ENTRY_HEADER_BYTES,
)

if TYPE_CHECKING:
    from meles.engine.table.reader import Table


def verify_table(table: Table) -> tuple[int, int]:
    """(blocks, entries) of a table in which everything agrees."""
    meta = table.meta
    if meta.crc and table.file_crc() != meta.crc:
        raise CorruptionError(
            "checksum of the whole file does not match", path=table.path, offset=0, kind="table"
        )
    totals = _Totals()
    for number, block, columns, following in _blocks(table):
        what = _block_fault(table, number, block, columns, following) or totals.add(columns)
        if what:
            offset = table.index.offsets[number]
            raise CorruptionError(what, path=table.path, offset=offset, kind="table block")
    wrong = totals.disagreement(meta)
    if wrong:
        raise CorruptionError(
            f"properties and entries disagree on {wrong}",
            path=table.path,
            offset=0,
            kind="table properties",
        )
    return len(table.index), totals.count


def _blocks(table: Table) -> Iterator[tuple[int, Block, Columns, bytes | None]]:
    """Each block with its number, its entries and the first key of the next block."""
    block = table.load(0)
    columns = block.columns()
    for number in range(1, len(table.index)):
        after = table.load(number)
        columns_after = after.columns()
        yield number - 1, block, columns, columns_after.keys[0]
        block, columns = after, columns_after
    yield len(table.index) - 1, block, columns, None


def _block_fault(
    table: Table, number: int, block: Block, columns: Columns, following: bytes | None
) -> str | None:
    """What is wrong with a block beside the index, its own header and the filter."""
    index = table.index
    keys, versions = columns.keys, columns.versions
    row = (index.entries[number], index.flags[number], index.max_versions[number])
    if row != (block.count, block.flags, block.max_version) or keys[-1] != index.last_keys[number]:
        return "block and index disagree"
    if _flags(columns, following) != block.flags:
        return "flags do not describe the block"
    if (max(versions), min(versions)) != (block.max_version, block.min_version):
        return "versions and block header disagree"
    if not all(map(table.may_contain, map(key_hash, keys))):
        return "the filter denies a key of the block"
    return None


def _flags(columns: Columns, following: bytes | None) -> int:
    """The flags a block of these entries has; `following` is the next block's first key."""
    keys = columns.keys
    union = reduce(or_, columns.metas)
    return (
        (FLAG_TOMBSTONE if union & META_DELETE else 0)
        | (FLAG_POINTER if union & META_POINTER else 0)
        | (FLAG_META if union & 0xFF else 0)
        | (FLAG_USER if union > 0xFF else 0)
        | (FLAG_EXPIRY if any(columns.expiries) else 0)
        | (FLAG_MULTI if len(set(keys)) < len(keys) or keys[-1] == following else 0)
    )


class _Totals:
    """What the properties claim, counted again."""

    def __init__(self) -> None:
        self.count = 0
        self._min_key = b""
        self._last = (b"", 0)
        self._versions: list[int] = []
        self._tombstones = 0
        self._expiring = 0
        self._expiries: list[int] = []
        self._raw_bytes = 0
        self._vlog_bytes: Counter[int] = Counter()
        self._vlog_entries: Counter[int] = Counter()

    def add(self, columns: Columns) -> str | None:
        """Count a block's entries; what is wrong with their order or pointers."""
        order = [self._last]
        order += zip(columns.keys, [-version for version in columns.versions], strict=True)
        if any(before >= after for before, after in pairwise(order)):
            return "entries are out of order"
        self._last = order[-1]
        self._min_key = self._min_key or columns.keys[0]
        self.count += len(columns)
        self._versions += (min(columns.versions), max(columns.versions))
        self._tombstones += sum(meta & META_DELETE for meta in columns.metas)
        self._expiring += sum(map(bool, columns.expiries))
        self._expiries += filter(None, columns.expiries)
        self._raw_bytes += sum(map(len, columns.keys)) + sum(map(len, columns.values))
        for meta, value in zip(columns.metas, columns.values, strict=True):
            if meta & META_POINTER:
                if len(value) != POINTER_BYTES:
                    return "a value pointer does not have 12 bytes"
                pointer = ValuePointer.decode(value)
                self._vlog_bytes[pointer.file_id] += pointer.length + VLOG_ENTRY_HEADER_BYTES
                self._vlog_entries[pointer.file_id] += 1
        return None

    def disagreement(self, meta: TableMeta) -> str | None:
        """The first property that is not what was counted."""
        value_log = tuple(
            (file_id, self._vlog_bytes[file_id], entries)
            for file_id, entries in sorted(self._vlog_entries.items())
        )
        counted = {
            "count": self.count,
            "min_key": self._min_key,
            "max_key": self._last[0],
            "min_version": min(self._versions),
            "max_version": max(self._versions),
            "tombstones": self._tombstones,
            "expiring": self._expiring,
            "raw_bytes": self._raw_bytes,
            "value_log": value_log,
        }
        if meta.expiries:  # a file may leave them out
            built = round(meta.created * 1000)
            counted["expiries"] = expiry_shares(at for at in self._expiries if at > built)
        return next((name for name, value in counted.items() if getattr(meta, name) != value), None)
