"""Rewriting tables for what can leave: dropped prefixes, tombstones, the expired and superseded.

Runs in: supervisor.
Invariants: (1) nothing is rewritten for garbage that the oldest reader still holds: a table counts
once `discard_ts` has reached its newest version, and then one rewrite frees all there is; (2) a
rewrite that freed nothing is not repeated at once (`InFlight.may_rewrite`).
Badger by default never rewrites the last level, so deleted and expired entries stay for good there.
"""

from __future__ import annotations

from typing import Final

from meles.engine.compaction.drops import is_dead, may_hold
from meles.engine.compaction.in_flight import FIRST_WAIT
from meles.engine.compaction.plan import Kind, Plan, hull
from meles.engine.compaction.shapes import Look, level_zero_plan, plan_into, weight
from meles.engine.compaction.targets import facts
from meles.engine.manifest.version import TableMeta

_TOMBSTONE_SHARE: Final = 0.5  # of a table's entries, at which it is pushed down without pressure
_TOMBSTONES_PER_ENTRY: Final = 0.01  # of the entries it would rewrite: garbage up to that may wait
_EXPIRING_SHARE: Final = 0.25  # of a table's entries, at which it is looked at for expired ones
_MAX_REWRITTEN: Final = 16  # tables of one rewrite
_MAX_REMOVED: Final = 1000  # tables removed unread in one edit
_MAX_TRIED: Final = 64  # busy candidates passed over before giving up


def garbage_plan(look: Look) -> Plan | None:
    """The most useful rewrite there is, or None."""
    return purge_plan(look) or _tombstone_plan(look) or _last_level_plan(look)


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
    """Push a table of tombstones to where they meet what they delete."""
    version = look.version
    last = deepest_level(look)
    for level in range(last + 1 if last == 0 else last):
        tried = 0
        for table in facts(version.levels[level]).with_tombstones:
            if table.tombstones < _TOMBSTONE_SHARE * table.count:
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


def _worthwhile(plan: Plan) -> bool:
    """Whether the tombstones of a plan may remove a noticeable part of what it rewrites."""
    tombstones = sum(table.tombstones for table in plan.top)
    return tombstones >= _TOMBSTONES_PER_ENTRY * sum(table.count for table in plan.bottom)


# -- the last level ------------------------------------------------------------------------------


def _last_level_plan(look: Look) -> Plan | None:
    """Rewrite a table of the deepest level that holds much garbage, with such neighbours."""
    level = deepest_level(look)
    if level == 0 or not look.options.lmax_compaction:
        return None
    tried = 0
    for table in facts(look.version.levels[level]).with_garbage:
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
    """Whether rewriting the table now should free a good part of it.

    When entries expire is not in the properties: a table that holds many is tried some time after
    it was made, and then ever more rarely.
    """
    if look.in_flight.busy(table) or not look.in_flight.may_rewrite(table, look.now):
        return False
    if table.max_version > look.discard_ts:
        return False
    expiring = table.expiring >= _EXPIRING_SHARE * table.count
    return look.dirty(table) or (expiring and look.now >= table.created + FIRST_WAIT)


def _with_ripe_neighbours(look: Look, level: int, table: TableMeta) -> tuple[TableMeta, ...]:
    """The tables after it too, as long as what stays of all fits one output."""
    tables = look.version.levels[level]
    at = tables.index(table)
    taken = [table]
    kept = table.size * (1 - table.stale_bytes / weight(table))
    for after in tables[at + 1 : at + _MAX_REWRITTEN]:
        kept += after.size * (1 - after.stale_bytes / weight(after))
        if kept > look.targets.table_sizes[level] or not _ripe(look, after):
            break
        taken.append(after)
    return tuple(taken)
