"""Dropped prefixes: which tables still hold what was dropped, and when a drop is spent. Pure.

Runs in: supervisor and workers.
Invariants: (1) a drop is carried out only once every reader is at or after it; (2) compaction cuts
its outputs where a dropped prefix begins and ends, so that key range and version range of a table
alone say whether it can hold dropped entries: no table is rewritten twice for one drop.
"""

from __future__ import annotations

from collections.abc import Iterable

from meles.engine.manifest.version import TableMeta, Version

PrefixDrop = tuple[bytes, int]  # versions <= the timestamp of keys with the prefix are gone


def prefix_end(prefix: bytes) -> bytes | None:
    """The smallest key after all keys with the prefix; None if there is none."""
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1]) if trimmed else None


def due_drops(version: Version, discard_ts: int) -> tuple[PrefixDrop, ...]:
    """The drops that compaction may carry out now."""
    return tuple(
        (prefix, drop.ts)
        for drop in version.drops
        if drop.ts <= discard_ts
        for prefix in drop.prefixes
    )


def may_hold(table: TableMeta, drop: PrefixDrop) -> bool:
    """Whether the table can have an entry that this drop removes."""
    prefix, ts = drop
    if table.min_version > ts or table.max_key < prefix:
        return False
    return table.min_key <= prefix or table.min_key.startswith(prefix)


def is_dead(table: TableMeta, drops: Iterable[PrefixDrop]) -> bool:
    """Whether one of the drops removes every entry of the table."""
    return any(
        table.max_version <= ts
        and table.min_key.startswith(prefix)
        and table.max_key.startswith(prefix)
        for prefix, ts in drops
    )


def spent_drops(version: Version, oldest_in_memory: int) -> tuple[int, ...]:
    """Timestamps of drops that no file can need any more.

    `oldest_in_memory` is the lowest version any memtable may hold.
    """
    return tuple(
        drop.ts
        for drop in version.drops
        if drop.ts < oldest_in_memory
        and not any(
            may_hold(table, (prefix, drop.ts))
            for _, table in version.walk()
            for prefix in drop.prefixes
        )
    )
