"""The read view: everything a reader looks at, in one immutable object.

Runs in: supervisor.
Invariants: (1) a view never changes, the store replaces it by one assignment and readers take no
lock; (2) for every key, each version in a newer source is newer than each version in an older one
(active memtable, sealed memtables, L0 by age, L1, ...), so a point read stops at the first hit,
unless a source says it is not `ordered`; (3) a view keeps its files readable for as long as it
lives.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from meles.engine.clock import now_ms
from meles.engine.codec.entry import META_DELETE, META_POINTER
from meles.engine.ids import MAX_VERSION
from meles.engine.kernel import NATIVE
from meles.engine.manifest.version import Version
from meles.engine.memtable.memtable import Found, Memtable
from meles.engine.table.reader import Table
from meles.engine.vlog.value_log import ValueLogView

NAMESPACE_BYTES: Final = 8  # a namespace is 8 bytes big-endian inside the key, as Badger's


@dataclass(frozen=True)
class ReadView:
    """`levels` pairs, for each non-empty level below L0, the tables' largest keys with the
    tables.
    """

    active: Memtable
    sealed: tuple[Memtable, ...]
    level_zero: tuple[Table, ...]
    levels: tuple[tuple[list[bytes], list[Table]], ...]
    version: Version
    values: ValueLogView
    ordered: bool

    @cached_property
    def points(self) -> Any:
        """The compiled twin of `find` and, where no drop hides anything, of `value_of`."""
        return NATIVE.Points(
            [memtable.index for memtable in (self.active, *self.sealed)],
            self.level_zero,
            [tables for _, tables in self.levels],
            self.values.read,
            now_ms,
        )

    def find(self, key: bytes, ts: int) -> Found | None:
        """The newest version <= ts of a key, whatever it is (also a tombstone)."""
        if not self.ordered or not self.active.ordered:
            return self._find_unordered(key, ts)
        if NATIVE is not None:
            found: Found | None = self.points.find(key, ts)
            return found
        found = self.active.get(key, ts)
        if found is not None:
            return found
        for memtable in self.sealed:
            found = memtable.get(key, ts)
            if found is not None:
                return found
        for table in self.level_zero:
            meta = table.meta
            if meta.min_key <= key <= meta.max_key:
                found = table.get(key, ts)
                if found is not None:
                    return found
        for max_keys, tables in self.levels:
            at = bisect_left(max_keys, key)
            if at < len(tables) and tables[at].meta.min_key <= key:
                found = tables[at].get(key, ts)
                if found is not None:
                    return found
        return None

    def sources_of(self, key: bytes) -> list[Memtable | Table]:
        """Every source that may hold a version of the key, newest first."""
        sources: list[Memtable | Table] = [self.active, *self.sealed]
        sources += [t for t in self.level_zero if t.meta.min_key <= key <= t.meta.max_key]
        for max_keys, tables in self.levels:
            at = bisect_left(max_keys, key)
            if at < len(tables) and tables[at].meta.min_key <= key:
                sources.append(tables[at])
        return sources

    def _find_unordered(self, key: bytes, ts: int) -> Found | None:
        best: Found | None = None
        for source in self.sources_of(key):
            found = source.get(key, ts)
            if found is not None and (best is None or found[0] > best[0]):
                best = found
        return best

    def newest_version(self, key: bytes, above: int) -> int:
        """The key's newest version if it is > `above`, else 0. For conflict detection."""
        for source in self.sources_of(key):
            if isinstance(source, Memtable):
                version = source.newest_version(key)
            elif source.meta.max_version <= above:
                continue
            else:
                found = source.get(key, MAX_VERSION)
                version = found[0] if found is not None else 0
            if version > above:
                return version
        return 0

    def range_changed(self, low: bytes | None, high: bytes | None, above: int) -> bool:
        """Whether any key in [low, high) has a version > `above`. For conflict detection."""
        for memtable in (self.active, *self.sealed):
            if memtable.last_ts > above or not memtable.ordered:
                batches = memtable.scan(low, high, MAX_VERSION)
                if any(max(batch.versions) > above for batch in batches):
                    return True
        tables = [*self.level_zero, *(table for _, level in self.levels for table in level)]
        for table in tables:
            meta = table.meta
            if meta.max_version > above and meta.overlaps(low, high):
                batches = table.scan(low, high)
                if any(batch.keys and max(batch.versions) > above for batch in batches):
                    return True
        return False

    def dropped_since(self, ts: int) -> tuple[bytes, ...]:
        """Prefixes of the drops after `ts`. For conflict detection."""
        drops = self.version.drops
        return tuple(prefix for drop in drops if drop.ts > ts for prefix in drop.prefixes)

    def hidden(self, key: bytes, version: int, ts: int) -> bool:
        """Whether a drop made this version invisible to a reader at `ts`."""
        return any(
            version <= drop.ts <= ts and key.startswith(drop.prefixes)
            for drop in self.version.drops
        )

    def hiding(self, ts: int, namespace_offset: int) -> Callable[[bytes, int], bool]:
        """Whether a scan at `ts` leaves an entry out: dropped, or in a banned namespace."""
        drops = self.version.drops
        banned = self.version.banned if namespace_offset >= 0 else ()
        end = namespace_offset + NAMESPACE_BYTES

        def hidden(key: bytes, version: int) -> bool:
            if drops and self.hidden(key, version, ts):
                return True
            return (
                bool(banned)
                and len(key) > end
                and int.from_bytes(key[namespace_offset:end], "big") in banned
            )

        return hidden

    def live(self, key: bytes, ts: int) -> Found | None:
        """The key's entry at `ts` unless it is deleted, expired or dropped."""
        found = self.find(key, ts)
        if found is None or found[1] & META_DELETE:
            return None
        if found[2] and found[2] <= now_ms():
            return None
        if self.version.drops and self.hidden(key, found[0], ts):
            return None
        return found

    def has_value(self, key: bytes, ts: int) -> bool:
        """Whether the key is alive at `ts`; touches no value log."""
        return self.live(key, ts) is not None

    def value_of(self, key: bytes, ts: int) -> bytes | None:
        """The live value of a key at `ts`, or None. `CorruptionError` when it is damaged."""
        if NATIVE is not None and self.ordered and self.active.ordered and not self.version.drops:
            value: bytes | None = self.points.value_of(key, ts)
            return value
        found = self.live(key, ts)
        if found is None:
            return None
        if found[1] & META_POINTER:
            return self.values.read(found[3], found[0])
        return found[3]
