"""Every plan, whatever the shape and whatever runs already, keeps the order of versions."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from meles.engine.compaction.in_flight import InFlight
from meles.engine.compaction.picker import (
    _look,
    keeps_for_level_zero,
    most_jobs,
    pick,
    pick_flatten,
    pick_level_zero,
)
from meles.engine.compaction.plan import Plan
from meles.engine.compaction.shapes import MAX_FORCED, level_zero_plan
from meles.engine.compaction.targets import level_targets
from meles.engine.manifest.version import Drop, TableMeta, Version

KIB = 1 << 10


def key(number: int) -> bytes:
    return b"%03d" % number


def random_version(tools: Any, seed: int, levels: int) -> Version:
    rng = random.Random(seed)
    version = Version.empty(levels)
    next_id = 1
    for level in range(levels - 1, -1, -1):
        tables = rng.choice((0, 0, 1, 3, 8, 20))
        ends = sorted(rng.sample(range(200), 2 * tables))
        made: list[TableMeta] = []
        for number in range(tables):
            low, high = ends[2 * number], ends[2 * number + 1]
            if level == 0:
                low, high = sorted(rng.sample(range(200), 2))
            count = rng.randrange(1, 100)
            size = rng.choice((1, 10, 40, 200)) * KIB
            oldest = 100 * (levels - level) + number
            made.append(
                tools.meta(
                    next_id, key(low), key(high), size=size, versions=(oldest, oldest + 5),
                    count=count, tombstones=rng.choice((0, 0, 0, count // 2, count)),
                    stale_bytes=rng.choice((0, 0, size // 9, size // 2)),
                    expiring=rng.choice((0, 0, count)), created=rng.choice((0.0, 5e8, 1e9)),
                )
            )  # fmt: skip
            next_id += 1
        if level == 0:
            made.reverse()
        version = replace(
            version, levels=(*version.levels[:level], tuple(made), *version.levels[level + 1 :])
        )
    drops = tuple(
        Drop((rng.choice((b"", b"0", b"05", b"1")),), rng.randrange(50, 600))
        for _ in range(rng.choice((0, 0, 1, 2)))
    )
    return replace(version, drops=drops)


def check_plan(plan: Plan, version: Version, in_flight: InFlight) -> None:
    assert plan.top
    assert not any(in_flight.busy(table) for table in plan.inputs)
    on_level = version.levels[plan.from_level]
    assert all(table in on_level for table in plan.top)
    assert all(table.max_key <= plan.high for table in plan.inputs)
    assert all(table.min_key >= plan.low for table in plan.inputs)
    if plan.kind == "move":
        assert not plan.bottom
    if plan.from_level == plan.to_level:
        assert not plan.bottom
        assert plan.kind in ("l0_to_l0", "rewrite", "last_level")
        if plan.kind == "l0_to_l0":
            places = [on_level.index(table) for table in plan.top]
            assert places == list(range(places[0], places[0] + len(places))), "not neighbours"
            assert len(places) >= 4
        return
    assert plan.to_level == plan.from_level + 1 or plan.from_level == 0
    # everything it meets goes along, and it skips nothing on its way
    assert plan.bottom == version.overlapping(plan.to_level, plan.low, plan.high)
    for between in range(plan.from_level + 1, plan.to_level):
        assert not version.levels[between]
        assert not in_flight.blocks(between, plan.low, plan.high)
    if plan.from_level == 0:
        for at, table in enumerate(on_level):
            if table in plan.top:
                for older in on_level[at + 1 :]:
                    assert older in plan.top or not table.overlaps(older.min_key, older.max_key)


@given(
    seed=st.integers(0, 1 << 40),
    levels=st.integers(2, 6),
    discard=st.sampled_from([0, 150, 300, 1000]),
    choices=st.lists(st.integers(0, 9), max_size=40),
)
def test_plans_keep_the_order_and_exclude_each_other(
    tools: Any, seed: int, levels: int, discard: int, choices: list[int]
) -> None:
    version = random_version(tools, seed, levels)
    options = tools.options(max_levels=levels)
    in_flight = InFlight()
    running: list[Plan] = []
    for choice in choices:
        if choice == 0 and running:
            in_flight.release(running.pop(seed % len(running)))
            continue
        if choice == 1:
            plan = pick_flatten(version, options, in_flight)
        elif choice == 2:
            plan = pick_level_zero(version, options, in_flight)
        else:
            plan = pick(
                version, options, in_flight, l0_only=choice == 3, now=1e9, discard_ts=discard
            )
        if plan is None:
            continue
        check_plan(plan, version, in_flight)
        in_flight.claim(plan)
        running.append(plan)


@given(seed=st.integers(0, 1 << 40), levels=st.integers(2, 6))
def test_the_base_level_is_never_below_data(tools: Any, seed: int, levels: int) -> None:
    version = random_version(tools, seed, levels)
    base = level_targets(version, tools.options(max_levels=levels)).base_level
    assert 1 <= base < levels
    assert not any(version.levels[1:base])


@given(seed=st.integers(0, 1 << 40), numbers=st.lists(st.integers(0, 210), max_size=4))
def test_bytes_between_is_the_size_of_what_overlaps(
    tools: Any, seed: int, numbers: list[int]
) -> None:
    version = random_version(tools, seed, 4)
    for level, tables in enumerate(version.levels[1:], 1):
        places = {key(number) for number in numbers}
        for table in tables[:5]:  # where a table begins and ends is where one is easily off by one
            places |= {table.min_key, table.max_key}
        for low in places:
            for high in places:
                if low <= high:
                    met = version.overlapping(level, low, high)
                    counted = tables.bytes_between(low, high)
                    assert counted == sum(table.size for table in met)


@given(seed=st.integers(0, 1 << 40))
def test_picking_changes_nothing_and_repeats_itself(tools: Any, seed: int) -> None:
    version = random_version(tools, seed, 5)
    options, in_flight = tools.options(), InFlight()
    first = pick(version, options, in_flight, now=1e9, discard_ts=300)
    assert first == pick(version, options, in_flight, now=1e9, discard_ts=300)
    assert not in_flight.plans


def test_what_a_reader_still_sees_is_not_rewritten(tools: Any) -> None:
    """All garbage is newer than the discard timestamp: nothing to gain."""
    options = tools.options()
    for seed in range(200):
        version = random_version(tools, seed, 5)
        plan = pick(version, options, InFlight(), now=1e9, discard_ts=0)
        assert plan is None or plan.kind not in ("last_level", "rewrite")


def test_a_thousand_tables_on_level_zero_are_taken_in_parts(tools: Any) -> None:
    """As after a time without compactors; the oldest go first."""
    tables = tuple(
        tools.meta(n, key(n % 50), key(n % 50 + 100), versions=(n, n)) for n in range(1000, 0, -1)
    )
    version = replace(Version.empty(5), levels=(tables, (), (), (), ()))
    plan = pick(version, tools.options(), InFlight(), now=1e9, discard_ts=2000)
    assert plan is not None
    assert plan.kind == "l0_to_base"
    assert plan.top == tables[-len(plan.top) :]
    assert 4 <= len(plan.top) <= 64


def test_what_overlap_forces_into_one_merge_is_bounded(tools: Any) -> None:
    """The table with tombstones overlaps all older ones: the oldest of them go first."""
    tables = tuple(
        tools.meta(n, key(1), key(90), versions=(n, n), count=100, tombstones=90 * (n == 3000))
        for n in range(3000, 0, -1)
    )
    version = replace(Version.empty(5), levels=(tables, (), (), (), ()))
    options = tools.options(num_level_zero_tables=1000, num_level_zero_tables_stall=9000)
    few = replace(version, levels=(tables[:999], *version.levels[1:]))
    plan = level_zero_plan(_look(few, options, InFlight(), 1e9, 5000), tables[:1])
    assert plan is not None
    assert len(plan.top) == 999  # below the bound, overlap decides
    plan = level_zero_plan(_look(version, options, InFlight(), 1e9, 5000), tables[:1])
    assert plan is not None
    assert plan.top == tables[-len(plan.top) :]
    assert len(plan.top) <= MAX_FORCED


def one_table_plan(tools: Any, from_level: int, table_id: int) -> Plan:
    table = tools.meta(table_id, key(table_id), key(table_id))
    return Plan("level", from_level, from_level + 1, (table,), (), 1, table.min_key, table.max_key)


def test_a_worker_is_kept_for_level_zero_until_one_is_at_work_there(tools: Any) -> None:
    options, in_flight = tools.options(num_compactors=3), InFlight()
    deep, zero = one_table_plan(tools, 1, 1), one_table_plan(tools, 0, 2)
    assert not keeps_for_level_zero(3, options, in_flight)
    assert most_jobs(deep, 3, options, in_flight) == 2  # not all of them to one deep plan
    in_flight.claim(deep)
    assert keeps_for_level_zero(1, options, in_flight)
    assert most_jobs(zero, 3, options, in_flight) == 3
    in_flight.claim(zero)
    assert most_jobs(zero, 3, options, in_flight) == 3
    assert not keeps_for_level_zero(1, options, in_flight)
    assert most_jobs(deep, 2, options, in_flight) == 2
    in_flight.release(zero)
    assert keeps_for_level_zero(1, options, in_flight)


def test_a_single_compactor_does_everything(tools: Any) -> None:
    options = tools.options(num_compactors=1)
    assert not keeps_for_level_zero(1, options, InFlight())
    assert most_jobs(one_table_plan(tools, 1, 1), 1, options, InFlight()) == 1
