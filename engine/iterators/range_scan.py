"""A range of keys as one reader sees it: every source of a view, merged and filtered.

Runs in: supervisor.
Invariants: (1) the view is fixed when the scan begins, so the bytes stay the same whatever is
flushed, compacted, collected or unlinked meanwhile; (2) work is proportional to what is consumed:
sources are opened for the range only and read a batch at a time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from meles.engine.codec.columns import Columns
from meles.engine.iterators.merge import merge, merge_reverse
from meles.engine.iterators.visible import Visibility, visible
from meles.engine.read_view import ReadView
from meles.engine.table.reader import Table


@dataclass(frozen=True, slots=True)
class KeyRange:
    """Keys in [low, high); None is unbounded."""

    low: bytes | None = None
    high: bytes | None = None

    def is_empty(self) -> bool:
        return self.high is not None and (self.low or b"") >= self.high

    def holds(self, key: bytes) -> bool:
        return (self.low is None or key >= self.low) and (self.high is None or key < self.high)


def prefix_range(prefix: bytes, start: bytes | None, stop: bytes | None) -> KeyRange:
    """The keys with `prefix` that lie in [start, stop)."""
    low = max(prefix, start or b"") or None
    highs = [high for high in (_after_prefix(prefix), stop) if high is not None]
    return KeyRange(low, min(highs) if highs else None)


def _after_prefix(prefix: bytes) -> bytes | None:
    """The smallest key behind all keys with this prefix; None when there is none."""
    head = prefix.rstrip(b"\xff")
    return head[:-1] + bytes([head[-1] + 1]) if head else None


Tables: TypeAlias = list[Table]  # disjoint, in key order


def _concatenated(tables: Tables, keys: KeyRange, *, reverse: bool) -> Iterator[Columns]:
    """Disjoint tables one after the other."""
    for table in reversed(tables) if reverse else tables:
        if reverse:
            yield from table.scan_reverse(keys.low, keys.high)
        else:
            yield from table.scan(keys.low, keys.high)


def _in_range(table: Table, keys: KeyRange) -> bool:
    meta = table.meta
    return (keys.high is None or meta.min_key < keys.high) and (
        keys.low is None or meta.max_key >= keys.low
    )


def sources(
    view: ReadView, keys: KeyRange, look: Visibility, *, reverse: bool, pending: Columns | None
) -> list[Tables | Iterator[Columns]]:
    """Where the view may hold entries of the range, newest first: runs of tables, and batches.

    `pending` are a transaction's own writes, of `OWN_VERSION`.
    """
    found: list[Tables | Iterator[Columns]] = []
    if pending is not None:
        first = 0 if keys.low is None else bisect_left(pending.keys, keys.low)
        stop = len(pending) if keys.high is None else bisect_left(pending.keys, keys.high)
        if first < stop:
            found.append(iter((pending.slice(first, stop),)))
    for memtable in (view.active, *view.sealed):
        if len(memtable.index):
            found.append(
                memtable.scan(
                    keys.low, keys.high, look.ts, all_versions=look.all_versions, reverse=reverse
                )
            )
    found += [[table] for table in view.level_zero if _in_range(table, keys)]
    for max_keys, tables in view.levels:
        first = 0 if keys.low is None else bisect_left(max_keys, keys.low)
        inside = [table for table in tables[first:] if _in_range(table, keys)]
        if inside:
            found.append(inside)
    return found


def scan(
    view: ReadView, keys: KeyRange, look: Visibility, *, reverse: bool = False,
    pending: Columns | None = None,
) -> Iterator[Columns]:  # fmt: skip
    """Batches of what the reader sees; each ascends inside, in reverse they come last first."""
    if keys.is_empty():
        return iter(())
    merged = (merge_reverse if reverse else merge)(
        [
            _concatenated(source, keys, reverse=reverse) if isinstance(source, list) else source
            for source in sources(view, keys, look, reverse=reverse, pending=pending)
        ],
        ordered=view.ordered and view.active.ordered,
    )
    return visible(merged, look)
