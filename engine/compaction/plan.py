"""A compaction that was decided on, and the jobs it is made of. Pure.

Runs in: supervisor.
Invariants: (1) the sub-ranges of a plan are half-open, disjoint, and cover every key; (2) the
`below` of a job covers every table outside it that may hold an older version of a key in it:
elsewhere a tombstone hides nothing; (3) what a job carries is bounded, to fit one message.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Final, Literal

from meles.engine.compaction.drops import PrefixDrop, is_dead, may_hold, prefix_end
from meles.engine.ids import MAX_FILE_BYTES
from meles.engine.jobs import BuildOptions, CompactJob
from meles.engine.manifest.version import TableMeta, Version
from meles.engine.options import Options

Kind = Literal["l0_to_base", "l0_to_l0", "level", "last_level", "rewrite", "move"]
SubRange = tuple[bytes | None, bytes | None]
KeyRange = tuple[bytes, bytes]

GRANDPARENTS: Final = 10  # tables of the level after next that one output may overlap
# A job is one message of at most 1 MiB. What it may carry, at the worst: keys of ranges and of
# splits 2 x 192 KiB, drops and the splits around them 3 x 64 KiB, start and stop 127 KiB, and in
# the 336 KiB that are left 30,000 table ids of 10 bytes.
BOUND_BYTES: Final = 192 << 10  # keys of the ranges, and again of the splits
MAX_BELOW: Final = 512  # ranges
MAX_SPLITS: Final = 512
MAX_JOB_TABLES: Final = 30_000
_MAX_DROP_BYTES: Final = 64 << 10
_TABLES_APART: Final = 20_000  # that begin in one sub-range; those that reach into it come on top
_ENTRY_BYTES: Final = 16  # a block's words for an entry, beside key and value
_FILL: Final = 0.95  # share of the target size at which outputs are cut


@dataclass(frozen=True)
class Plan:
    """What to compact. Keys inclusive; `low` and `high` enclose all its tables.

    `top` are tables of `from_level` (L0: newest first), `bottom` those of `to_level` that overlap
    them. "l0_to_l0", "last_level" and "rewrite" stay on their level and have no bottom. A "move"
    only changes the level. `target_size` is the bytes of an output; `decided` is in unix seconds.
    """

    kind: Kind
    from_level: int
    to_level: int
    top: tuple[TableMeta, ...]
    bottom: tuple[TableMeta, ...]
    target_size: int
    low: bytes
    high: bytes
    decided: float = 0.0

    @property
    def inputs(self) -> tuple[TableMeta, ...]:
        return self.top + self.bottom


def hull(tables: Iterable[TableMeta]) -> KeyRange:
    """Smallest and largest key of some tables, at least one."""
    tables = tuple(tables)
    return min(table.min_key for table in tables), max(table.max_key for table in tables)


def subranges(plan: Plan, version: Version, parallel: int) -> list[SubRange]:
    """Up to `parallel` ranges of about the same bytes, each worth at least two outputs.

    Borders are where tables of the lower level begin; without one, those of the upper level. A
    plan with more tables than one job can name is cut by their number.
    """
    del version
    if len(plan.inputs) > _TABLES_APART and plan.kind != "l0_to_l0":
        return _ranges_by_number(plan)
    tables = [table for table in plan.bottom or plan.top if table.min_key > plan.low]
    tables.sort(key=lambda table: table.min_key)
    total = sum(table.size for table in plan.inputs)
    parts = min(parallel, total // (2 * plan.target_size), len(tables) + 1)
    if parts < 2 or plan.kind == "l0_to_l0":
        return [(None, None)]
    # The share of input before a border, as the sizes of the tables between borders give it.
    before = list(accumulate(table.size for table in tables))
    borders: list[bytes] = []
    for part in range(1, parts):
        at = bisect_right(before, before[-1] * part // parts)
        key = tables[min(at, len(tables) - 1)].min_key
        if not borders or key > borders[-1]:
            borders.append(key)
    edges: list[bytes | None] = [None, *borders, None]
    return list(pairwise(edges))


def _ranges_by_number(plan: Plan) -> list[SubRange]:
    """Ranges in which few enough tables begin. Those of L0 are few (`shapes.MAX_FORCED`)."""
    tables = plan.bottom if plan.from_level == 0 else plan.inputs
    begins = sorted({table.min_key for table in tables})
    edges: list[bytes | None] = [None, *begins[_TABLES_APART::_TABLES_APART], None]
    return list(pairwise(edges))


def jobs_for(
    plan: Plan,
    version: Version,
    options: Options,
    *,
    reserve: Callable[[int], int],
    discard_ts: int,
    now_ms: int,
    drops: Sequence[PrefixDrop],
    parallel: int,
    build: BuildOptions | None = None,
) -> list[CompactJob]:
    """The jobs of a plan other than a move, at least one. `reserve(n)` gives the first of n ids.

    With `options.managed` the caller must keep `discard_ts` below the versions still in memtables:
    there a tombstone could have an older version of its key above it.
    """
    # Only drops that have something to do here take up room in the job: each job then gets further.
    due = _bounded_drops(
        [
            drop
            for drop in drops
            if drop[1] <= discard_ts and any(may_hold(table, drop) for table in plan.inputs)
        ]
    )
    alive = [table for table in plan.inputs if not is_dead(table, due)]
    # Newer sources hold newer versions, unless callers choose the versions.
    ordered = not options.managed and all(table.ordered for _, table in version.walk())
    outside = _older_outside(plan, version) if ordered else _outside(plan, version)
    jobs: list[CompactJob] = []
    for start, stop in subranges(plan, version, parallel):
        inputs = [table for table in alive if _within(table, start, stop)]
        if not inputs and (jobs or stop is not None):
            continue
        ceiling = min(discard_ts, max((table.max_version for table in inputs), default=0))
        below = [
            (table.min_key, table.max_key)
            for table in outside
            if table.min_version <= ceiling and _within(table, start, stop)
        ]
        touching = tuple(drop for drop in due if any(may_hold(table, drop) for table in inputs))
        splits = _splits(plan, version, touching, inputs, (start, stop))
        max_tables = _count_outputs(plan, inputs) + len(splits)
        jobs.append(
            CompactJob(
                inputs=_groups(plan, inputs),
                from_level=plan.from_level,
                level=plan.to_level,
                start=start,
                stop=stop,
                first_table_id=reserve(max_tables),
                max_tables=max_tables,
                target_size=plan.target_size,
                discard_ts=discard_ts,
                versions_to_keep=options.num_versions_to_keep,
                now_ms=now_ms,
                below=bound_ranges(below),
                build=build or _build_options(options),
                created_ms=now_ms,
                drops=touching,
                splits=splits,
                ordered=all(table.ordered for table in inputs),
            )
        )
    return jobs


def _build_options(options: Options) -> BuildOptions:
    return BuildOptions(
        options.block_size, options.compression, options.zstd_level, options.bloom_false_positive
    )


def _within(table: TableMeta, start: bytes | None, stop: bytes | None) -> bool:
    """Whether the table may have keys in [start, stop)."""
    return (stop is None or table.min_key < stop) and (start is None or table.max_key >= start)


def _groups(plan: Plan, inputs: list[TableMeta]) -> tuple[tuple[int, ...], ...]:
    """Ids by source, newest first: tables of L0 one by one, those of another level together."""
    chosen = {table.id for table in inputs}
    top = [table.id for table in plan.top if table.id in chosen]
    bottom = tuple(table.id for table in plan.bottom if table.id in chosen)
    groups = [(table_id,) for table_id in top] if plan.from_level == 0 else [tuple(top)]
    return tuple(group for group in [*groups, bottom] if group)


def _count_outputs(plan: Plan, inputs: list[TableMeta]) -> int:
    """The most outputs the inputs can fill, all entries kept and uncompressed."""
    most = sum(max(table.size, table.raw_bytes + _ENTRY_BYTES * table.count) for table in inputs)
    return int(most / (_FILL * plan.target_size)) + 2


def _outside(plan: Plan, version: Version) -> list[TableMeta]:
    """All tables but the plan's that may share a key with it."""
    inside = {table.id for table in plan.inputs}
    return [
        table
        for level in range(len(version.levels))
        for table in version.overlapping(level, plan.low, plan.high)
        if table.id not in inside
    ]


def _older_outside(plan: Plan, version: Version) -> list[TableMeta]:
    """Of those, the tables that readers come to after the plan's."""
    inside = {table.id for table in plan.inputs}
    first = plan.to_level + 1
    older: list[TableMeta] = []
    if plan.to_level == 0:
        tables = version.levels[0]
        at = next(n for n, table in enumerate(tables) if table.id in inside)
        older += [table for table in tables[at:] if table.id not in inside]
    for level in range(first, len(version.levels)):
        older += version.overlapping(level, plan.low, plan.high)
    return older


def bound_ranges(ranges: list[KeyRange]) -> tuple[KeyRange, ...]:
    """The union of some ranges, ascending; neighbours are joined until it is small enough."""
    union: list[KeyRange] = []
    for low, high in sorted(ranges):
        if union and low <= union[-1][1]:
            union[-1] = (union[-1][0], max(high, union[-1][1]))
        else:
            union.append((low, high))
    while len(union) > MAX_BELOW or _key_bytes(union) > BOUND_BYTES:
        union = [
            (pair[0][0], pair[-1][1])
            for pair in (union[at : at + 2] for at in range(0, len(union), 2))
        ]
    return tuple(union)


def _key_bytes(ranges: list[KeyRange]) -> int:
    return sum([len(low) + len(high) for low, high in ranges])


def _splits(
    plan: Plan,
    version: Version,
    drops: tuple[PrefixDrop, ...],
    inputs: list[TableMeta],
    span: SubRange,
) -> tuple[bytes, ...]:
    """Keys at which outputs are cut: around dropped prefixes, and where the next level is dense."""
    start, stop = span
    edges: set[bytes] = set()
    if plan.to_level > 0:
        for prefix, _ in drops:
            edges |= {prefix, prefix_end(prefix) or b""}
    after = plan.to_level + 1
    if 1 < after < len(version.levels) and inputs:
        low, high = hull(inputs)
        low, high = max(low, start or low), min(high, stop or high)
        dense = [table.min_key for table in version.overlapping(after, low, high)]
        keys = dense[GRANDPARENTS::GRANDPARENTS]
        # Not so many that outputs would be crumbs.
        most = min(4 * sum(table.size for table in inputs) // plan.target_size, MAX_SPLITS)
        step = max(1, -(-len(keys) // most) if most else len(keys) + 1)
        while sum(map(len, keys[::step])) > BOUND_BYTES:
            step *= 2
        edges.update(keys[step - 1 :: step])
    return tuple(
        sorted(
            key
            for key in edges
            if key and (start is None or key > start) and (stop is None or key < stop)
        )
    )


def _bounded_drops(drops: list[PrefixDrop]) -> tuple[PrefixDrop, ...]:
    """As many as fit in a message, oldest first; the others wait for a later compaction."""
    taken: list[PrefixDrop] = []
    room = _MAX_DROP_BYTES
    for prefix, ts in sorted(drops, key=lambda drop: drop[1]):
        room -= len(prefix) + 8
        if room < 0 or len(taken) >= MAX_SPLITS // 2:
            break
        taken.append((prefix, ts))
    return tuple(taken)


def fits_one_table(tables: Iterable[TableMeta]) -> bool:
    """Whether everything in these tables may go into one file, with room to spare."""
    most = sum(max(table.size, table.raw_bytes + _ENTRY_BYTES * table.count) for table in tables)
    return most < MAX_FILE_BYTES // 2
