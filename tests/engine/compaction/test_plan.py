"""Sub-ranges and jobs of a plan: together they cover everything once, and each fits a message."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import count, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meles.engine.compaction.plan import (
    BOUND_BYTES,
    MAX_BELOW,
    MAX_JOB_TABLES,
    MAX_SPLITS,
    Plan,
    bound_ranges,
    hull,
    jobs_for,
    subranges,
)
from meles.engine.ids import MAX_FILE_ID
from meles.engine.jobs import CompactJob, Job
from meles.engine.manifest.version import TableMeta, Version
from meles.workers.wire.messages import JobRequest, encode

MIB = 1 << 20


def key(number: int) -> bytes:
    return b"%06d" % number


def row(tools: Any, first_id: int, rng: random.Random, tables: int, **more: Any) -> list[TableMeta]:
    """Disjoint tables of one level at random places."""
    ends = sorted(rng.sample(range(1000), 2 * tables))
    edges = zip(ends[::2], ends[1::2], strict=True)
    return [
        tools.meta(first_id + n, key(low), key(high), size=rng.randrange(1, 9) * MIB, **more)
        for n, (low, high) in enumerate(edges)
    ]


def version_of(*levels: list[TableMeta], drops: Any = ()) -> Version:
    return Version(levels=tuple(map(tuple, levels)), drops=drops)


def plan_of(
    version: Version, top: list[TableMeta], from_level: int, to_level: int, **more: Any
) -> Plan:
    bottom = () if from_level == to_level else version.overlapping(to_level, *hull(top))
    kind = more.pop("kind", "l0_to_base" if from_level == 0 else "level")
    return Plan(
        kind, from_level, to_level, tuple(top), bottom, more.pop("target", 2 * MIB),
        *hull([*top, *bottom]),
    )  # fmt: skip


def jobs(
    tools: Any,
    plan: Plan,
    version: Version,
    *,
    parallel: int = 1,
    drops: Any = (),
    discard: int = 100,
    **options: Any,
) -> list[CompactJob]:
    ids = count(1000)

    def reserve(wanted: int) -> int:
        first = next(ids)
        for _ in range(wanted - 1):
            next(ids)
        return first

    return jobs_for(
        plan, version, tools.options(**options), reserve=reserve, discard_ts=discard, now_ms=5,
        drops=drops, parallel=parallel,
    )  # fmt: skip


@given(seed=st.integers(0, 1 << 30), parallel=st.integers(0, 9), from_zero=st.booleans())
def test_the_jobs_cover_everything_exactly_once(
    tools: Any, seed: int, parallel: int, from_zero: bool
) -> None:
    rng = random.Random(seed)
    top = row(tools, 1, rng, rng.randrange(1, 6))
    bottom = row(tools, 50, rng, rng.randrange(0, 20))
    version = version_of(top, bottom, []) if from_zero else version_of([], top, bottom)
    plan = plan_of(version, top, int(not from_zero), 1 + int(not from_zero))
    ranges = subranges(plan, version, parallel)
    assert ranges[0][0] is None
    assert ranges[-1][1] is None
    assert all(left[1] is not None and left[1] == right[0] for left, right in pairwise(ranges))
    edges = [stop for _, stop in ranges[:-1]]
    assert all(a < b for a, b in pairwise(edges))  # type: ignore[operator]
    assert len(ranges) <= max(1, parallel)
    made = jobs(tools, plan, version, parallel=parallel)
    assert [(job.start, job.stop) for job in made] == ranges
    for job in made:
        inside = {
            table.id
            for table in plan.inputs
            if (job.stop is None or table.min_key < job.stop)
            and (job.start is None or table.max_key >= job.start)
        }
        assert {table_id for group in job.inputs for table_id in group} == inside
        assert sum(map(len, job.inputs)) == len(inside)
    ids = [range(job.first_table_id, job.first_table_id + job.max_tables) for job in made]
    assert sum(map(len, ids)) == len(set().union(*ids)), "ids are shared"


def test_a_plan_is_split_into_even_parts_where_lower_tables_begin(tools: Any) -> None:
    bottom = [tools.meta(10 + n, key(10 * n), key(10 * n + 9), size=4 * MIB) for n in range(12)]
    top = [tools.meta(1, key(0), key(119), size=8 * MIB)]
    version = version_of([], top, bottom)
    plan = plan_of(version, top, 1, 2)
    ranges = subranges(plan, version, 4)
    assert [start for start, _ in ranges] == [None, key(30), key(60), key(90)]


def test_a_small_plan_is_one_job(tools: Any) -> None:
    bottom = [tools.meta(10 + n, key(10 * n), key(10 * n + 9), size=MIB // 2) for n in range(6)]
    top = [tools.meta(1, key(0), key(119), size=MIB // 2)]
    version = version_of([], top, bottom)
    assert subranges(plan_of(version, top, 1, 2), version, 4) == [(None, None)]


def test_groups_are_newest_first(tools: Any) -> None:
    zero = [tools.meta(n, key(0), key(9), versions=(n, n)) for n in (9, 7, 5)]
    bottom = [tools.meta(2, key(0), key(3)), tools.meta(1, key(5), key(9))]
    version = version_of(zero, bottom)
    (job,) = jobs(tools, plan_of(version, zero, 0, 1), version)
    assert job.inputs == ((9,), (7,), (5,), (2, 1))
    upper = [tools.meta(4, key(0), key(3)), tools.meta(3, key(5), key(9))]
    version = version_of([], upper, bottom)
    (job,) = jobs(tools, plan_of(version, upper, 1, 2), version)
    assert job.inputs == ((4, 3), (2, 1))


def test_below_is_what_deeper_levels_hold_in_the_range(tools: Any) -> None:
    top = [tools.meta(1, key(10), key(30), versions=(50, 60))]
    bottom = [tools.meta(2, key(20), key(40), versions=(40, 49))]
    deep = [
        tools.meta(3, key(0), key(9), versions=(1, 2)),
        tools.meta(4, key(35), key(36), versions=(1, 2)),
        tools.meta(5, key(50), key(60), versions=(1, 2)),
    ]
    deeper = [tools.meta(6, key(36), key(70), versions=(1, 2))]
    newer = [tools.meta(7, key(0), key(99), versions=(10, 70))]
    version = version_of(newer, top, bottom, deep, deeper)
    (job,) = jobs(tools, plan_of(version, top, 1, 2), version)
    assert job.below == ((key(35), key(70)),)


def test_below_leaves_out_what_is_newer_than_any_tombstone_that_may_go(tools: Any) -> None:
    top = [tools.meta(1, key(10), key(30), versions=(5, 60))]
    deep = [tools.meta(3, key(10), key(19), versions=(8, 9))]
    version = version_of([], top, [], deep)
    plan = plan_of(version, top, 1, 2)
    assert jobs(tools, plan, version, discard=8)[0].below == ((key(10), key(19)),)
    assert jobs(tools, plan, version, discard=7)[0].below == ()


def test_below_within_level_zero_is_what_is_older_there_and_all_deeper(tools: Any) -> None:
    zero = [
        tools.meta(9, key(0), key(9), versions=(90, 99)),
        tools.meta(8, key(2), key(3), versions=(80, 89)),
        tools.meta(7, key(2), key(4), versions=(70, 79)),
        tools.meta(6, key(4), key(5), versions=(60, 69)),
    ]
    one = [tools.meta(5, key(0), key(1)), tools.meta(4, key(2), key(2))]
    version = version_of(zero, one)
    plan = plan_of(version, zero[1:3], 0, 0, kind="l0_to_l0")
    (job,) = jobs(tools, plan, version, parallel=4)
    assert job.below == ((key(2), key(2)), (key(4), key(5)))


@pytest.mark.parametrize("how", ["managed", "unordered input", "unordered elsewhere"])
def test_below_has_newer_sources_too_where_callers_choose_versions(tools: Any, how: str) -> None:
    """There, a tombstone may have an older version of its key above it."""
    newer = tools.meta(7, key(10), key(20), versions=(10, 70), ordered=how != "unordered elsewhere")
    newest = tools.meta(8, key(10), key(30), versions=(61, 70))
    top = [tools.meta(1, key(10), key(30), versions=(50, 60), ordered=how != "unordered input")]
    version = version_of([newest, newer], top, [])
    plan = plan_of(version, top, 1, 2)
    (job,) = jobs(tools, plan, version, managed=how == "managed")
    assert job.below == ((key(10), key(20)),)
    assert job.ordered == (how != "unordered input")


@given(
    pairs=st.lists(st.tuples(st.integers(0, 99), st.integers(0, 9)), max_size=30),
    probe=st.integers(0, 120),
)
def test_bounded_ranges_are_disjoint_and_cover(pairs: list[tuple[int, int]], probe: int) -> None:
    ranges = [(key(low), key(low + length)) for low, length in pairs]
    bounded = bound_ranges(ranges)
    assert all(left[1] < right[0] for left, right in pairwise(bounded))
    within = any(low <= key(probe) <= high for low, high in ranges)
    assert within == any(low <= key(probe) <= high for low, high in bounded)


@pytest.mark.parametrize(("number", "length"), [(5000, 6), (20, 60_000), (3000, 1000)])
def test_ranges_are_joined_until_they_fit(number: int, length: int) -> None:
    ranges = [
        (key(2 * n).ljust(length, b"a"), key(2 * n).ljust(length, b"b")) for n in range(number)
    ]
    bounded = bound_ranges(ranges)
    assert 0 < len(bounded) <= MAX_BELOW
    assert sum(len(low) + len(high) for low, high in bounded) <= BOUND_BYTES
    assert all(any(a <= low and high <= b for a, b in bounded) for low, high in ranges)


def frame_of(job: Job) -> bytes:
    """The job as the pool sends it. Raises if it is too long."""
    return encode(JobRequest(1 << 60, 1 << 60, job))


@pytest.mark.parametrize("length", [10, 65_000])
@pytest.mark.parametrize("first_id", [1, MAX_FILE_ID - 30_000])
def test_a_job_fits_a_message(tools: Any, length: int, first_id: int) -> None:
    """Everything at its longest: keys, ids, ranges below, splits, drops, sources."""

    def wide(number: int) -> bytes:
        return key(number).ljust(length, b"-")

    ids = count(first_id)
    top = [
        tools.meta(next(ids), wide(0), wide(99_999), size=64 * MIB, versions=(9, 9))
        for n in range(1000)
    ]
    bottom = [
        tools.meta(next(ids), wide(100 * n + 3), wide(100 * n + 4), size=2 * MIB)
        for n in range(900)
    ]
    deep = [tools.meta(next(ids), wide(20 * n), wide(20 * n + 1)) for n in range(4999)]
    version = version_of(top, bottom, deep)
    for size in (length - 3, length // 64, 3):
        drops = tuple((wide(n)[:size], 5) for n in range(3000))
        for job in jobs(tools, plan_of(version, top, 0, 1), version, parallel=4, drops=drops):
            assert len(frame_of(job)) > length
            assert list(job.splits) == sorted(set(job.splits))
            assert len(job.splits) <= 2 * MAX_SPLITS


@pytest.mark.parametrize("from_level", [0, 1])
def test_a_plan_of_very_many_tables_is_cut_into_jobs_that_fit(tools: Any, from_level: int) -> None:
    ids = count(MAX_FILE_ID - 100_000)
    top = [tools.meta(next(ids), key(0), key(899_999), versions=(9, 9), size=64 * MIB)]
    bottom = [tools.meta(next(ids), key(10 * n), key(10 * n + 9)) for n in range(70_000)]
    version = version_of(*([top, bottom] if from_level == 0 else [[], top, bottom]))
    made = jobs(tools, plan_of(version, top, from_level, from_level + 1), version)
    assert len(made) == 4
    assert [job.start for job in made] == [None, *(job.stop for job in made[:-1])]
    named: list[int] = []
    for job in made:
        frame_of(job)
        assert sum(map(len, job.inputs)) <= MAX_JOB_TABLES
        named += job.inputs[-1]
    assert sorted(named) == [table.id for table in bottom]


def test_outputs_are_cut_where_they_would_meet_too_much(tools: Any) -> None:
    top = [tools.meta(1, key(0), key(99), size=20 * MIB)]
    after = [tools.meta(10 + n, key(2 * n), key(2 * n + 1)) for n in range(50)]
    version = version_of([], top, [], after)
    plan = plan_of(version, top, 1, 2)
    assert jobs(tools, plan, version)[0].splits == (key(20), key(40), key(60), key(80))
    small = replace(plan, target_size=80 * MIB)
    assert jobs(tools, small, version)[0].splits == (key(80),), "no crumbs"


def test_a_drop_touches_only_jobs_that_hold_its_keys(tools: Any) -> None:
    top = [tools.meta(1, b"a", b"b5"), tools.meta(2, b"x", b"z")]
    version = version_of([], top, [])
    (job,) = jobs(
        tools, plan_of(version, top[:1], 1, 2), version, drops=((b"b", 5), (b"y", 5), (b"a", 0))
    )
    assert job.drops == ((b"b", 5),)
    assert job.splits == (b"b", b"c")
    (job,) = jobs(tools, plan_of(version, top[:1], 1, 2), version, drops=((b"b", 5),), discard=4)
    assert (job.drops, job.splits) == ((), ())


def test_what_a_drop_kills_whole_is_not_read(tools: Any) -> None:
    top = [tools.meta(1, b"a", b"a9"), tools.meta(2, b"b", b"c")]
    version = version_of([], top, [])
    plan = plan_of(version, top, 1, 2)
    (job,) = jobs(tools, plan, version, drops=((b"a", 5),))
    assert job.inputs == ((2,),)
    (job,) = jobs(tools, plan, version, drops=((b"", 5),), parallel=3)
    assert job.inputs == ()
    assert job.max_tables >= 1


def test_ids_suffice_for_data_that_is_no_longer_compressed(tools: Any) -> None:
    top = [tools.meta(1, b"a", b"z", size=MIB, raw_bytes=40 * MIB, count=1000)]
    version = version_of([], top, [])
    (job,) = jobs(tools, plan_of(version, top, 1, 2), version)
    assert job.max_tables >= 40 / (2 * 0.95)
