"""Chooses the next compaction. Pure: the same picture gives the same plan.

Runs in: supervisor, on the control thread.
Invariants: (1) a plan keeps every key's newer versions above its older ones: L0 goes down with all
older tables it overlaps, a level goes to the next one only; (2) a plan uses nothing that a running
plan has; (3) repeated picking comes to an end: each plan moves data down, merges tables, or removes
garbage it will not look for again.

Order of need: L0 when it is due (after a base level that is fuller still, unless writers are near
their stop), then the fullest level, then what can be freed.
"""

from __future__ import annotations

from heapq import nsmallest
from typing import Final

from meles.engine.compaction.drops import due_drops
from meles.engine.compaction.garbage import deepest_level, garbage_plan, next_look
from meles.engine.compaction.in_flight import InFlight
from meles.engine.compaction.plan import Plan, hull
from meles.engine.compaction.shapes import (
    Look,
    level_zero_plan,
    move_plan,
    plan_into,
    weight,
    within_zero_plan,
)
from meles.engine.compaction.targets import LevelScore, level_targets, scores
from meles.engine.manifest.version import TableMeta, Version
from meles.engine.options import Options

_MAX_LOOKED_AT: Final = 512  # oldest tables of a level that are compared
_CANDIDATES: Final = 32  # of them, those tried while what they need is busy
_SETTLED_BYTES: Final = 1 << 20  # that a level may hold for good
_SETTLED_SHARE: Final = 0.1  # of what it overlaps
_FLATTEN_INPUT: Final = 16  # outputs' worth of upper tables in one plan of a flatten


def keeps_for_level_zero(free: int, options: Options, in_flight: InFlight) -> bool:
    """Whether the last free one of several workers takes nothing deeper: none works on L0 yet."""
    working = any(plan.from_level == 0 for plan in in_flight.plans)
    return options.num_compactors > 1 and free == 1 and not working


def most_jobs(plan: Plan, free: int, options: Options, in_flight: InFlight) -> int:
    """Into how many jobs a plan may be split: a deeper one leaves a worker to L0."""
    working = any(other.from_level == 0 for other in in_flight.plans if other is not plan)
    if plan.from_level == 0 or working or options.num_compactors == 1:
        return free
    return max(1, free - 1)


def pick(
    version: Version,
    options: Options,
    in_flight: InFlight,
    *,
    l0_only: bool = False,
    now: float,
    discard_ts: int,
) -> Plan | None:
    """The next compaction, or None if nothing is due or all that is due is under way.

    `now` is in unix seconds; no reader is below `discard_ts`. `l0_only` keeps a worker for L0.
    """
    look = _look(version, options, in_flight, now, discard_ts)
    score = scores(version, look.targets, in_flight, options)
    pressure = _under_pressure(version, options)
    # A base level far over its target is emptied first, or each step of L0 would rewrite all of it.
    zero_first = l0_only or pressure or score[0].adjusted >= 1
    plan = _zero_due(look, score[0], pressure=pressure) if zero_first else None
    if plan is not None or l0_only:
        return plan
    due = [item for item in score[1:-1] if item.score >= 1 and item.adjusted >= 1]
    for item in sorted(due, key=lambda item: -item.adjusted):
        plan = _down(look, item.level)
        if plan is not None:
            return plan
    if not zero_first:
        plan = _zero_due(look, score[0], pressure=pressure)
    return plan or garbage_plan(look)


def _zero_due(look: Look, score: LevelScore, *, pressure: bool) -> Plan | None:
    """L0 down; or together, when that cannot be and writers are near their stop."""
    if score.score < 1:
        return None
    plan = level_zero_plan(look)
    return within_zero_plan(look) if plan is None and pressure else plan


def pick_again_at(
    version: Version, options: Options, in_flight: InFlight, *, now: float, discard_ts: int
) -> float | None:
    """When `pick` may find something that it does not find now, though nothing else changes."""
    return next_look(_look(version, options, in_flight, now, discard_ts))


def pick_level_zero(version: Version, options: Options, in_flight: InFlight) -> Plan | None:
    """A compaction of L0 into the base level, however few tables there are."""
    return level_zero_plan(_look(version, options, in_flight, 0.0, 0))


def pick_settling(version: Version, options: Options, in_flight: InFlight) -> Plan | None:
    """What else is worth doing while nobody writes: a level down, if it may hide much.

    What its tables supersede further down is garbage that nobody can count before they meet it.
    """
    look = _look(version, options, in_flight, 0.0, 0)
    for level in range(deepest_level(look) or 1):
        if _may_hide_much(version, level):
            plan = level_zero_plan(look) if level == 0 else _down(look, level)
            if plan is not None:
                return plan
    return None


def _may_hide_much(version: Version, level: int) -> bool:
    tables = version.levels[level]
    if not tables:
        return False
    low, high = hull(tables)
    met = sum(
        _held(table)
        for deeper in range(level + 1, len(version.levels))
        for table in version.overlapping(deeper, low, high)
    )
    if not met and (level > 0 or len(tables) == 1):
        return False
    return sum(map(_held, tables)) >= max(_SETTLED_BYTES, _SETTLED_SHARE * met)


def _held(table: TableMeta) -> int:
    """Bytes of a table's entries and of the values they point to."""
    return weight(table) + sum([size for _, size, _ in table.value_log])


def pick_flatten(version: Version, options: Options, in_flight: InFlight) -> Plan | None:
    """The next step towards a single level with data; None when that is reached or under way."""
    look = _look(version, options, in_flight, 0.0, 0)
    if version.levels[0]:
        return level_zero_plan(look)
    first = next((n for n, level in enumerate(version.levels) if level), 0)
    if first == deepest_level(look):
        return None
    return _everything_down(look, first)


def _look(
    version: Version, options: Options, in_flight: InFlight, now: float, discard_ts: int
) -> Look:
    targets = level_targets(version, options)
    drops = due_drops(version, discard_ts)
    return Look(version, options, in_flight, targets, discard_ts, now, drops)


def _under_pressure(version: Version, options: Options) -> bool:
    """Whether L0 is half-way from being due to stalling writers."""
    limit = options.num_level_zero_tables + options.num_level_zero_tables_stall
    return 2 * len(version.levels[0]) >= limit


def _down(look: Look, level: int) -> Plan | None:
    """One table of a level to the next: of the oldest, the one that meets the least there.

    Overlap is relative to the table's size, so dense parts of a level go down before sparse ones:
    by age alone, tables written by one merge would go down in key order, the same ones every time.
    """
    after = look.version.levels[level + 1]
    costs: list[tuple[float, int, TableMeta]] = []
    for age, table in enumerate(look.version.levels[level].oldest_first[:_MAX_LOOKED_AT]):
        if not look.in_flight.busy(table):
            cost = after.bytes_between(table.min_key, table.max_key) / table.size
            costs.append((cost, age, table))
    for _, _, table in nsmallest(_CANDIDATES, costs):
        plan = move_plan(look, level, (table,)) or plan_into(
            look, "level", level, level + 1, (table,)
        )
        if plan is not None:
            return plan
    return None


def _everything_down(look: Look, level: int) -> Plan | None:
    """A run of tables of a level to the next, moved when they are clean and meet nothing."""
    most = _FLATTEN_INPUT * look.targets.table_sizes[level + 1]
    run: list[TableMeta] = []
    for table in look.version.levels[level]:
        clean = not table.tombstones and not table.stale_bytes
        if not run and clean and not look.in_flight.busy(table):
            plan = move_plan(look, level, (table,))
            if plan is not None:
                return plan
        if look.in_flight.busy(table) or sum(t.size for t in run) >= most:
            if run:
                break
            continue
        run.append(table)
    return plan_into(look, "level", level, level + 1, tuple(run)) if run else None
