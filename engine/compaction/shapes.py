"""Which tables go together: the tables of a plan, given where it starts. Pure.

Runs in: supervisor.
Invariants: (1) with a table of L0 go all older tables of L0 that overlap it, or they would come to
lie above newer entries; (2) with tables that go to a level go all tables there within their hull;
(3) a plan uses no table and writes to no range that a running plan has.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Final

from meles.engine.compaction.drops import PrefixDrop, may_hold
from meles.engine.compaction.in_flight import InFlight
from meles.engine.compaction.plan import GRANDPARENTS, Kind, Plan, fits_one_table, hull
from meles.engine.compaction.targets import Targets
from meles.engine.manifest.version import TableMeta, Version
from meles.engine.options import Options

MAX_L0_TABLES: Final = 64  # sources of one merge; only overlap forces more
MAX_FORCED: Final = 1024  # ... and no more than these: a job names every table, a merge maps them
_MAX_SEEDS: Final = 32  # starting points tried on L0 before giving up
_MAX_MOVED: Final = 16  # tables of one move
_L0_TO_L0: Final = 4  # fewer tables are not worth writing again for
_MAX_INPUT: Final = 25  # bytes of a plan, in outputs, beyond which no optional table is added
_JOIN_RATIO: Final = 4  # a neighbour is joined when it is at most so many times larger
_CRUMB: Final = 8  # a table below this part of the target size is joined to any merge beside it


@dataclass(frozen=True, slots=True)
class Look:
    """Everything a decision is made from. `drops` are those that may be carried out."""

    version: Version
    options: Options
    in_flight: InFlight
    targets: Targets
    discard_ts: int
    now: float
    drops: tuple[PrefixDrop, ...]

    def dirty(self, table: TableMeta) -> bool:
        """Whether rewriting the table would let go of something, as far as its properties tell."""
        if any(may_hold(table, drop) for drop in self.drops):
            return True
        if table.max_version > self.discard_ts:
            return False
        stale = table.stale_bytes / weight(table)
        share = stale + expired(table, self.now) / table.count
        return stale >= GARBAGE_SHARE or share >= EXPIRED_SHARE


GARBAGE_SHARE: Final = 0.2  # of a table's bytes; below it, rewriting costs more than it frees
EXPIRED_SHARE: Final = 0.4  # the same with what expires meanwhile: that grows, and is waited for
_ENTRY_BYTES: Final = 16  # a block's words for an entry: `stale_bytes` counts them, `raw_bytes` not


def weight(table: TableMeta) -> int:
    """Bytes of a table's entries, before compression."""
    return table.raw_bytes + _ENTRY_BYTES * table.count


def expired(table: TableMeta, now: float) -> float:
    """Entries that have expired since the table was made, to an eighth of those that will."""
    if not table.expiries:
        return 0.0
    passed = bisect_right(table.expiries, int(now * 1000))
    return table.expiring * passed / len(table.expiries)


def expired_at(table: TableMeta, entries: float) -> float | None:
    """When `expired` will have reached so many entries, in unix seconds; None if never."""
    marks = table.expiries
    if not marks or entries > table.expiring:
        return None
    return marks[max(0, ceil(entries * len(marks) / table.expiring) - 1)] / 1000


# -- L0 ------------------------------------------------------------------------------------------


def _with_older(oldest_first: Sequence[TableMeta], at: int, in_flight: InFlight) -> set[int] | None:
    """Positions of a table and of all older ones it must not leave behind; None if one is busy."""
    chosen, ask = {at}, [at]
    while ask:
        position = ask.pop()
        table = oldest_first[position]
        if in_flight.busy(table):
            return None
        for older in range(position):
            if older not in chosen and table.overlaps(
                oldest_first[older].min_key, oldest_first[older].max_key
            ):
                chosen.add(older)
                ask.append(older)
    return chosen


def level_zero_plan(look: Look, seeds: Sequence[TableMeta] | None = None) -> Plan | None:
    """L0 to the base level: from the oldest table (or the oldest of `seeds`) that can be had."""
    oldest_first = look.version.levels[0][::-1]
    wanted = None if seeds is None else {table.id for table in seeds}
    tried = 0
    for at, table in enumerate(oldest_first):
        if wanted is not None and table.id not in wanted:
            continue
        chosen = _with_older(oldest_first, at, look.in_flight)
        if chosen is None:
            continue
        if len(chosen) > MAX_FORCED:  # in parts then: the oldest of them overlaps nothing older
            chosen = {min(chosen)}
        plan = _moved_from_zero(look, oldest_first, chosen) or _merged_from_zero(
            look, oldest_first, chosen
        )
        if plan is not None:
            return plan
        tried += 1
        if tried == _MAX_SEEDS:
            break
    return None


def _moved_from_zero(
    look: Look, oldest_first: Sequence[TableMeta], chosen: set[int]
) -> Plan | None:
    """Tables of L0 that meet nothing on their way to the base level, nor anything on L0."""
    if len(chosen) != 1:
        return None
    base = look.targets.base_level
    moved: list[TableMeta] = []
    for at in range(min(chosen), len(oldest_first)):
        if len(moved) == _MAX_MOVED or _with_older(oldest_first, at, look.in_flight) != {at}:
            break
        table = oldest_first[at]
        newer = oldest_first[at + 1 :]
        if any(table.overlaps(other.min_key, other.max_key) for other in newer):
            break  # to be merged sooner or later: better at once
        if not _may_move(look, (*moved, table), base):
            break
        moved.append(table)
    return _move(look, 0, base, tuple(moved[::-1])) if moved else None


def _merged_from_zero(
    look: Look, oldest_first: Sequence[TableMeta], chosen: set[int]
) -> Plan | None:
    """As many tables of L0 as overlap or are small, with what they meet on the base level."""
    base = look.targets.base_level
    low, high = hull(oldest_first[at] for at in chosen)
    size = sum(oldest_first[at].size for at in chosen)
    for at in range(min(chosen) + 1, len(oldest_first)):
        table = oldest_first[at]
        if at in chosen:
            continue
        small = size + table.size <= look.targets.table_sizes[base]
        if not small and not table.overlaps(low, high):
            continue
        more = _with_older(oldest_first, at, look.in_flight)
        if more is None:
            continue
        more |= chosen
        if len(more) > MAX_L0_TABLES:
            break
        chosen = more
        low, high = hull(oldest_first[at] for at in chosen)
        size = sum(oldest_first[at].size for at in chosen)
    top = tuple(oldest_first[at] for at in sorted(chosen, reverse=True))
    return plan_into(look, "l0_to_base", 0, base, top)


def within_zero_plan(look: Look) -> Plan | None:
    """L0 to one table of L0, when the way down is busy: fewer tables to search, no stall yet.

    The tables are neighbours in age, so that their merge can take their place.
    """
    best: list[TableMeta] = []
    run: list[TableMeta] = []
    for table in look.version.levels[0]:
        too_large = table.size >= 2 * look.options.memtable_size
        if too_large or look.in_flight.busy(table) or not fits_one_table([*run, table]):
            run = []
            continue
        run.append(table)
        best = max(best, run, key=len).copy()
    best = best[:MAX_L0_TABLES]
    if len(best) < _L0_TO_L0:
        return None
    target = 2 * sum(table.size + weight(table) for table in best)
    return Plan("l0_to_l0", 0, 0, tuple(best), (), target, *hull(best), look.now)


# -- deeper levels -------------------------------------------------------------------------------


def plan_into(
    look: Look, kind: Kind, from_level: int, to_level: int, top: tuple[TableMeta, ...]
) -> Plan | None:
    """Merge `top` with what it meets on the next level; None if something of that is busy."""
    version, in_flight = look.version, look.in_flight
    target = look.targets.table_sizes[to_level]
    low, high = hull(top)
    bottom = version.overlapping(to_level, low, high)
    if from_level > 0 and bottom:
        top, bottom = _more_top(look, from_level, to_level, top, bottom)
    bottom = _with_neighbours(look, to_level, top, bottom, target)
    low, high = hull(top + bottom)
    if any(map(in_flight.busy, top + bottom)) or in_flight.blocks(to_level, low, high):
        return None
    return Plan(kind, from_level, to_level, top, bottom, target, low, high, look.now)


def _more_top(
    look: Look,
    from_level: int,
    to_level: int,
    top: tuple[TableMeta, ...],
    bottom: tuple[TableMeta, ...],
) -> tuple[tuple[TableMeta, ...], tuple[TableMeta, ...]]:
    """Further tables of the upper level that meet nothing but what is rewritten anyway."""
    version = look.version
    low, high = hull(top + bottom)
    have = {table.id for table in top}
    size = sum(table.size for table in top + bottom)
    most = _MAX_INPUT * look.targets.table_sizes[to_level]
    taken = list(top)
    for table in version.overlapping(from_level, low, high):
        if table.id in have or look.in_flight.busy(table) or size + table.size > most:
            continue
        met = version.overlapping(to_level, *hull([*taken, table]))
        if len(met) == len(bottom):
            taken.append(table)
            size += table.size
    taken.sort(key=lambda table: table.min_key)
    return tuple(taken), bottom


def _with_neighbours(
    look: Look,
    level: int,
    top: tuple[TableMeta, ...],
    bottom: tuple[TableMeta, ...],
    target: int,
) -> tuple[TableMeta, ...]:
    """Add a small table on either side of the range: crumbs become whole tables.

    Every merge may end in one, so every merge takes in those it can reach. While the whole is
    small itself, a neighbour may be a few times larger than what joins it: a table that grows by
    crumbs is rewritten a logarithmic number of times.
    """
    size = sum(table.size for table in top + bottom)
    tables = look.version.levels[level]
    if not tables:
        return bottom
    low, high = hull(top + bottom)
    left = _last_before(look.version, level, low)
    right = left + 1 + len(bottom)
    found = list(bottom)
    for at in (left, right):
        if not 0 <= at < len(tables):
            continue
        table = tables[at]
        fits = table.size <= target // _CRUMB or (
            size + table.size <= target and table.size <= _JOIN_RATIO * size
        )
        low, high = hull([*top, *found, table])
        if fits and not look.in_flight.busy(table) and not look.in_flight.blocks(level, low, high):
            found.append(table)
            size += table.size
    found.sort(key=lambda table: table.min_key)
    return tuple(found)


def _last_before(version: Version, level: int, key: bytes) -> int:
    """Position of the last table of a level that ends before `key`, or -1."""
    return bisect_left(version.levels[level].max_keys, key) - 1


def move_plan(look: Look, from_level: int, top: tuple[TableMeta, ...]) -> Plan | None:
    """Only change the level of tables, if nothing stands in the way and merging gains nothing."""
    to_level = from_level + 1
    return _move(look, from_level, to_level, top) if _may_move(look, top, to_level) else None


def _move(look: Look, from_level: int, to_level: int, top: tuple[TableMeta, ...]) -> Plan:
    target = look.targets.table_sizes[to_level]
    return Plan("move", from_level, to_level, top, (), target, *hull(top), look.now)


def _may_move(look: Look, top: tuple[TableMeta, ...], to_level: int) -> bool:
    """Nothing there within the hull, no running plan writes there, no garbage, no crumbs."""
    version = look.version
    low, high = hull(top)
    table = top[-1]
    if version.overlapping(to_level, low, high) or look.in_flight.blocks(to_level, low, high):
        return False
    if look.dirty(table) or look.in_flight.busy(table):
        return False
    if 2 * table.size < look.targets.table_sizes[to_level] and version.levels[to_level]:
        return not _with_neighbours(
            look, to_level, (table,), (), look.targets.table_sizes[to_level]
        )
    below = to_level + 1
    if below < len(version.levels):
        met = version.overlapping(below, table.min_key, table.max_key)
        return len(met) <= GRANDPARENTS
    return True
