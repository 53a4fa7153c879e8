"""Which versions of a key a compaction keeps. Pure.

Runs in: workers.
Invariants: (1) for every ts >= discard_ts, what a reader at ts finds is unchanged; (2) versions
above `discard_ts` always stay; (3) a tombstone goes only where no older version of its key can lie
outside the compaction; (4) a batch with nothing to drop passes through as the object it is.

The rules are Badger's. Of the versions <= discard_ts, newest first, each counts unless it is a
merge operand; a tombstone, an expired entry, one with the discard-earlier bit, and the last one to
keep each end the key: what is older goes. Unlike Badger's, the question whether a tombstone still
hides something is asked per key, and an expired entry that must stay becomes a bare tombstone.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from itertools import chain, compress, count, islice
from operator import eq, ne
from typing import Final

from meles.engine.codec.columns import Columns
from meles.engine.codec.entry import META_DELETE, META_DISCARD_EARLIER, META_MERGE
from meles.engine.compaction.drops import PrefixDrop, prefix_end

_NO_KEY: Final = (None,)


@dataclass(frozen=True, slots=True)
class Dropped:
    """What went: entries in all, and how many of them were tombstones or expired."""

    entries: int = 0
    tombstones: int = 0


_NOTHING: Final = Dropped()


@dataclass(frozen=True)
class Policy:
    """`below` are disjoint ascending key ranges [low, high] that may hold older versions.

    `now_ms` is unix milliseconds. Drops above `discard_ts` are not carried out.
    """

    discard_ts: int
    versions_to_keep: int
    now_ms: int
    below: tuple[tuple[bytes, bytes], ...] = ()
    drops: tuple[PrefixDrop, ...] = ()
    _lows: list[bytes] = field(init=False, repr=False, compare=False)
    _due: tuple[tuple[bytes, bytes | None, int], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_lows", [low for low, _ in self.below])
        due = tuple((p, prefix_end(p), ts) for p, ts in self.drops if ts <= self.discard_ts)
        object.__setattr__(self, "_due", due)

    def hides_nothing(self, key: bytes) -> bool:
        """Whether no older version of the key can lie outside the compaction."""
        at = bisect_right(self._lows, key) - 1
        return at < 0 or self.below[at][1] < key

    def without_dropped(self, columns: Columns) -> Columns:
        """The entries no drop removes."""
        for prefix, end, ts in self._due:
            keys = columns.keys
            if not keys or keys[-1] < prefix or (end is not None and keys[0] >= end):
                continue
            start = bisect_left(keys, prefix)
            stop = len(keys) if end is None else bisect_left(keys, end)
            versions = columns.versions
            if start < stop and min(versions[start:stop]) <= ts:
                inside = [at for at in range(start, stop) if versions[at] > ts]
                columns = columns.take([*range(start), *inside, *range(stop, len(keys))])
        return columns


def retain(columns: Columns, policy: Policy) -> tuple[Columns, Dropped]:
    """The entries of a batch that stay. All versions of a key are in one batch."""
    total = len(columns.keys)
    if policy._due:
        columns = policy.without_dropped(columns)
    keys = columns.keys
    several = any(map(eq, keys, islice(keys, 1, None)))
    kinds = set(columns.metas)
    deletes = any(meta & META_DELETE for meta in kinds)
    expired = any(columns.expiries) and _some_expired(columns.expiries, policy.now_ms)
    if not several and not deletes and not expired:
        left = len(keys)
        return columns, _NOTHING if left == total else Dropped(total - left)
    if max(columns.versions) <= policy.discard_ts and (
        not several
        or (policy.versions_to_keep == 1 and not any(meta & META_MERGE for meta in kinds))
    ):
        order = list(compress(count(), map(ne, keys, chain(_NO_KEY, keys))))
    else:
        order = _by_version(columns, policy)
    buried: list[int] = []
    gone = 0
    if deletes or expired:
        order, gone, buried = _without_tombstones(columns, order, policy)
    kept = columns if len(order) == len(keys) else columns.take(order)
    if buried:
        kept = _as_tombstones(kept, buried)
    return kept, Dropped(total - len(order), gone)


def _some_expired(expiries: list[int], now_ms: int) -> bool:
    return min(filter(None, expiries)) <= now_ms


def _by_version(columns: Columns, policy: Policy) -> list[int]:
    """Positions that stay by version and count; tombstones among them."""
    discard_ts, to_keep, now = policy.discard_ts, policy.versions_to_keep, policy.now_ms
    order: list[int] = []
    last: bytes | None = None
    counted = 0
    ended = False
    for at, (key, version, meta, expiry) in enumerate(
        zip(columns.keys, columns.versions, columns.metas, columns.expiries, strict=True)
    ):
        if key != last:
            last, counted, ended = key, 0, False
        elif ended:
            continue
        order.append(at)
        if version <= discard_ts and not meta & META_MERGE:
            counted += 1
            ended = (
                counted == to_keep
                or bool(meta & (META_DELETE | META_DISCARD_EARLIER))
                or 0 < expiry <= now
            )
    return order


def _without_tombstones(
    columns: Columns, order: list[int], policy: Policy
) -> tuple[list[int], int, list[int]]:
    """The positions without tombstones that hide nothing; how many went; where expired ones stay.

    The last are positions in the new order, whose entries must become tombstones.
    """
    keys, versions, metas = columns.keys, columns.versions, columns.metas
    expiries, now, discard_ts = columns.expiries, policy.now_ms, policy.discard_ts
    staying: list[int] = []
    buried: list[int] = []
    for at in order:
        meta = metas[at]
        if (
            (meta & META_DELETE or 0 < expiries[at] <= now)
            and versions[at] <= discard_ts
            and not meta & META_MERGE
        ):
            if policy.hides_nothing(keys[at]):
                continue
            if not meta & META_DELETE:
                buried.append(len(staying))
        staying.append(at)
    return staying, len(order) - len(staying), buried


def _as_tombstones(columns: Columns, positions: list[int]) -> Columns:
    """A copy in which these entries are bare tombstones of the same version."""
    changed = columns.slice(0, len(columns.keys))
    for at in positions:
        changed.metas[at] = META_DELETE
        changed.expiries[at] = 0
        changed.values[at] = b""
    return changed
