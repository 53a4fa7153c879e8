"""Rewriting tables for what can leave: dropped prefixes, tombstones, the expired and superseded.

Runs in: supervisor.
Invariants: (1) nothing is rewritten for garbage that the oldest reader still holds: a table counts
once `discard_ts` has reached its newest version, and then one rewrite frees all there is; (2) a
rewrite that freed nothing is not repeated at once (`InFlight.may_rewrite`); (3) what becomes due by
the passing of time alone is known beforehand (`next_look`), so nobody has to ask for it.
Badger by default never rewrites the last level, so deleted and expired entries stay for good there.
"""

from __future__ import annotations

from typing import Final

from meles.engine.compaction.drops import is_dead, may_hold
from meles.engine.compaction.in_flight import FIRST_WAIT
from meles.engine.compaction.plan import Kind, Plan, hull
from meles.engine.compaction.shapes import (
    EXPIRED_SHARE,
    GARBAGE_SHARE,
    Look,
    expired,
    expired_at,
    level_zero_plan,
    plan_into,
    weight,
)
from meles.engine.manifest.version import TableMeta

_TOMBSTONE_SHARE: Final = 0.5  # of a table's entries, at which it is pushed down without pressure
_TOMBSTONES_PER_ENTRY: Final = 0.01  # of the entries it would rewrite: garbage up to that may wait
_UNTIMED_SHARE: Final = 0.25  # of a table's entries expire, but its file does not say when
_MAX_REWRITTEN: Final = 16  # tables of one rewrite
_MAX_REMOVED: Final = 1000  # tables removed unread in one edit
_MAX_TRIED: Final = 64  # busy candidates passed over before giving up


def garbage_plan(look: Look) -> Plan | None:
    """The most useful rewrite there is, or None."""
    return (
        purge_plan(look)
        or _tombstone_plan(look)
        or _superseded_plan(look)
        or _last_level_plan(look)
    )


def next_look(look: Look) -> float | None:
    """When time alone will have made a rewrite due that is not yet, in unix seconds.

    None: never, as far as the tables tell.
    """
    last = deepest_level(look)
    moments: list[float] = []
    for number, level in enumerate(look.version.levels):
        for table in level.with_garbage:
            last_level = number == last > 0
            if last_level and not look.options.lmax_compaction:
                continue
            at = _due_at(table, last_level=last_level)
            if at is None and look.in_flight.tried(table):
                at = 0.0  # it was due, freed nothing, and will be tried again
            if at is not None:
                at = max(at, look.in_flight.may_rewrite_at(table))
                if at > look.now:
                    moments.append(at)
    return min(moments, default=None)


def _due_at(table: TableMeta, *, last_level: bool) -> float | None:
    """When enough of a table has expired; None if that will not be."""
    if table.expiring and not table.expiries:
        return table.created + FIRST_WAIT if _untimed(table) else None
    if last_level:
        stale = table.stale_bytes / weight(table)
        return expired_at(table, (EXPIRED_SHARE - stale) * table.count)
    return expired_at(table, _TOMBSTONE_SHARE * table.count - table.tombstones)


def _untimed(table: TableMeta) -> bool:
    """Whether many entries expire at times that the file does not tell."""
    return not table.expiries and table.expiring >= _UNTIMED_SHARE * table.count > 0


def deepest_level(look: Look) -> int:
    """The deepest level with data; 0 when only L0 has any."""
    return max((n for n, level in enumerate(look.version.levels) if level), default=0)


# -- drops ---------------------------------------------------------------------------------------


def purge_plan(look: Look) -> Plan | None:
    """Remove tables that a drop killed whole, or rewrite one that a drop touches."""
    if not look.drops:
        return None
    for level, tables in enumerate(look.version.levels):
        touched = [
            table
            for table in tables
            if any(may_hold(table, drop) for drop in look.drops) and not look.in_flight.busy(table)
        ]
        plan = _removal(look, level, touched)
        if plan is None and level == 0 and touched:
            plan = level_zero_plan(look, touched)
        if plan is not None:
            return plan
        for table in touched if level else ():
            plan = _rewrite(look, level, (table,))
            if plan is not None:
                return plan
    return None


def _removal(look: Look, level: int, touched: list[TableMeta]) -> Plan | None:
    """Tables of which a drop leaves nothing: they are not even read."""
    dead = [table for table in touched if is_dead(table, look.drops)][:_MAX_REMOVED]
    if not dead or look.in_flight.blocks(level, *hull(dead)):
        return None
    return Plan(
        "rewrite", level, level, tuple(dead), (), look.targets.table_sizes[level], *hull(dead),
        look.now,
    )  # fmt: skip


def _rewrite(look: Look, level: int, top: tuple[TableMeta, ...]) -> Plan | None:
    """Neighbours of one level in their place; None if busy or tried lately."""
    in_flight = look.in_flight
    if any(in_flight.busy(t) or not in_flight.may_rewrite(t, look.now) for t in top):
        return None
    low, high = hull(top)
    if in_flight.blocks(level, low, high):
        return None
    kind: Kind = "last_level" if level == deepest_level(look) else "rewrite"
    target = look.targets.table_sizes[level]
    return Plan(kind, level, level, top, (), target, low, high, look.now)


# -- tombstones on their way down ----------------------------------------------------------------


def _tombstone_plan(look: Look) -> Plan | None:
    """Push a table of tombstones, or of the expired, to where they meet what they hide."""
    version = look.version
    last = deepest_level(look)
    for level in range(last + 1 if last == 0 else last):
        tried = 0
        for table in version.levels[level].with_garbage:
            if _hiding(table, look.now) < _TOMBSTONE_SHARE * table.count:
                continue
            if table.max_version > look.discard_ts or look.in_flight.busy(table):
                continue
            if level == 0:
                plan = level_zero_plan(look, [table])
            else:
                plan = plan_into(look, "level", level, level + 1, (table,))
            if plan is not None and _worthwhile(plan):
                return plan
            tried += 1
            if tried == _MAX_TRIED:
                break
    return None


def _hiding(table: TableMeta, now: float) -> float:
    """Entries of a table that only hide older ones."""
    return table.tombstones + expired(table, now)


def _worthwhile(plan: Plan) -> bool:
    """Whether what only hides may remove a noticeable part of what the plan rewrites."""
    hiding = sum(_hiding(table, plan.decided) for table in plan.top)
    return hiding >= _TOMBSTONES_PER_ENTRY * sum(table.count for table in plan.bottom)


# -- superseded versions above the last level ----------------------------------------------------


def _superseded_plan(look: Look) -> Plan | None:
    """Rewrite in its place a table full of versions that a reader held who is gone now.

    Tombstones are no reason: they stay as long as something deeper has their keys.
    """
    for level in range(1, deepest_level(look)):
        tried = 0
        for table in look.version.levels[level].with_garbage:
            superseded = table.stale_bytes - table.tombstones * weight(table) / table.count
            if superseded < GARBAGE_SHARE * weight(table) or not look.dirty(table):
                continue
            plan = _rewrite(look, level, (table,))
            if plan is not None:
                return plan
            tried += 1
            if tried == _MAX_TRIED:
                break
    return None


# -- the last level ------------------------------------------------------------------------------


def _last_level_plan(look: Look) -> Plan | None:
    """Rewrite a table of the deepest level that holds much garbage, with such neighbours."""
    level = deepest_level(look)
    if level == 0 or not look.options.lmax_compaction:
        return None
    tried = 0
    for table in look.version.levels[level].with_garbage:
        if not _ripe(look, table):
            continue
        plan = _rewrite(look, level, _with_ripe_neighbours(look, level, table))
        if plan is not None:
            return plan
        tried += 1
        if tried == _MAX_TRIED:
            break
    return None


def _ripe(look: Look, table: TableMeta) -> bool:
    """Whether rewriting the table now should free a good part of it."""
    if look.in_flight.busy(table) or not look.in_flight.may_rewrite(table, look.now):
        return False
    if table.max_version > look.discard_ts:
        return False
    return look.dirty(table) or (_untimed(table) and look.now >= table.created + FIRST_WAIT)


def _with_ripe_neighbours(look: Look, level: int, table: TableMeta) -> tuple[TableMeta, ...]:
    """The tables after it too, as long as what stays of all fits one output."""
    tables = look.version.levels[level]
    at = tables.index(table)
    taken = [table]
    kept = _staying(table, look.now)
    for after in tables[at + 1 : at + _MAX_REWRITTEN]:
        kept += _staying(after, look.now)
        if kept > look.targets.table_sizes[level] or not _ripe(look, after):
            break
        taken.append(after)
    return tuple(taken)


def _staying(table: TableMeta, now: float) -> float:
    """Bytes that a rewrite of the table leaves, about."""
    gone = table.stale_bytes / weight(table) + expired(table, now) / table.count
    return table.size * max(0.0, 1 - gone)
