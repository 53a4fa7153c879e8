"""Choosing what to collect: every file is dropped, relocated or kept with its reason."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from meles.engine.ids import MAX_FILE_BYTES, MAX_FILE_ID
from meles.engine.manifest.version import TableMeta, Version, VlogMeta
from meles.engine.vlog.gc_pick import (
    ACTIVE,
    BELOW_RATIO,
    BUSY,
    MAX_NAMED,
    MAX_OUTPUT_ENTRIES,
    NEXT_RUN,
    NO_GAIN,
    SCATTERED,
    UNFLUSHED,
    GCPlan,
    pick_gc,
    relocation,
)
from meles.workers.wire.messages import JobRequest, encode

MIB = 1 << 20


def state(*files: tuple[VlogMeta, int, int]) -> Version:
    """Files with the (bytes, entries) that live of their first logical file, one table each."""
    tables = tuple(
        TableMeta(
            n, 1, 0, 1, b"%04d" % n, b"%04d" % n, 1, 1, value_log=((f.logical[0], size, count),)
        )
        for n, (f, size, count) in enumerate(files, 1)
        if count
    )
    return replace(Version.empty(2), levels=((), tables), vlogs=tuple(f for f, *_ in files))


def file(
    file_id: int, data: int = MIB, logical: tuple[int, ...] = (), entries: int = 100
) -> VlogMeta:
    return VlogMeta(file_id, logical or (file_id,), True, data + 128, entries)


def pick(version: Version, **changes: object) -> GCPlan:
    choice: dict[str, object] = {
        "ratio": 0.5,
        "active": 99,
        "unflushed": frozenset(),
        "busy": frozenset(),
        "max_output_bytes": 4 * MIB,
    }
    return pick_gc(version, **{**choice, **changes})  # type: ignore[arg-type]


def test_every_reason() -> None:
    version = state(
        (file(1), 0, 0),
        (file(2), MIB // 4, 10),
        (file(3), MIB * 3 // 4, 10),
        (file(4), MIB // 4, 10),
        (file(5), MIB // 4, 10),
        (file(6, logical=(16, 26)), MIB // 4, 10),
        (file(7), 0, 0),
        (file(8), 0, 0),
        (file(99), 0, 0),
        (VlogMeta(9, (9,)), 0, 0),
    )
    plan = pick(version, unflushed=frozenset({5, 26, 8}), busy=frozenset({4, 7}))
    assert plan.drop == (1,)
    assert plan.relocate == (2,)
    assert dict(plan.kept) == {
        3: BELOW_RATIO,
        4: BUSY,
        5: UNFLUSHED,
        6: UNFLUSHED,
        7: BUSY,
        8: UNFLUSHED,
        9: ACTIVE,
        99: ACTIVE,
    }
    assert not plan.idle


def test_nothing_to_do_is_a_plan_with_reasons() -> None:
    plan = pick(state((file(1), MIB, 10)))
    assert plan == GCPlan((), (), ((1, BELOW_RATIO),))
    assert plan.idle
    assert pick(state()) == GCPlan((), (), ())


def test_an_active_file_does_not_stand_in_the_way_of_others() -> None:
    version = state((file(1), 1000, 1), (file(2), 0, 0))
    plan = pick(version, active=2)
    assert (plan.relocate, plan.kept) == ((1,), ((2, ACTIVE),))


def test_the_ratio_is_inclusive() -> None:
    version = state((file(1), MIB // 2, 10))
    assert pick(version).relocate == (1,)
    assert pick(version, ratio=0.500001).relocate == ()


def test_an_output_stays_under_the_limit_most_garbage_first() -> None:
    version = state(
        (file(1, 4 * MIB), 2 * MIB, 10),
        (file(2, 4 * MIB), MIB, 10),
        (file(3, 4 * MIB), MIB, 10),
        (file(4, 4 * MIB), MIB // 2, 10),
    )
    plan = pick(version, max_output_bytes=3 * MIB)
    assert plan.relocate == (2, 3, 4)
    assert plan.kept == ((1, NEXT_RUN),)
    assert pick(version, max_output_bytes=1).relocate == (4,)


def test_entries_are_bounded_too() -> None:
    many = MAX_OUTPUT_ENTRIES // 2 + 1
    version = state((file(1, 200 * MIB), many * 16, many), (file(2, 200 * MIB), many * 16, many))
    plan = pick(version, max_output_bytes=1 << 30)
    assert plan == GCPlan((), (1,), ((2, NEXT_RUN),))


def test_a_copy_that_would_not_be_smaller_is_not_made() -> None:
    data, live = 100 * 24, 80 * 24
    version = state((file(1, data), live, 80))
    assert pick(version, ratio=0.1).kept == ((1, NO_GAIN),)
    vast = state((file(1, MAX_FILE_BYTES), MAX_FILE_BYTES - MIB, MIB))
    assert pick(vast, ratio=0.0001).kept == ((1, NO_GAIN),)


@given(
    st.lists(
        st.tuples(st.integers(0, MIB), st.booleans(), st.booleans(), st.booleans()), max_size=9
    ),
    st.integers(1, 4 * MIB),
)
def test_each_file_is_in_exactly_one_part(
    files: list[tuple[int, bool, bool, bool]], limit: int
) -> None:
    version = state(*((file(n), live, 5 if live else 0) for n, (live, *_) in enumerate(files, 1)))
    busy = frozenset(n for n, item in enumerate(files, 1) if item[1])
    unflushed = frozenset(n for n, item in enumerate(files, 1) if item[2])
    plan = pick(version, busy=busy, unflushed=unflushed, active=3, max_output_bytes=limit)
    parts = [*plan.drop, *plan.relocate, *(file_id for file_id, _ in plan.kept)]
    assert sorted(parts) == list(range(1, len(files) + 1))
    touched = {*plan.drop, *plan.relocate}
    assert touched.isdisjoint(busy | unflushed | {3})
    assert all(files[file_id - 1][0] == 0 for file_id in plan.drop)
    assert all(0 < files[file_id - 1][0] <= MIB // 2 for file_id in plan.relocate)


def test_the_job_names_every_table_that_refers_to_its_files() -> None:
    version = state((file(1), 10, 1), (file(2), 10, 1), (file(3, logical=(13, 14)), 10, 1))
    job = relocation(version, (1, 3), output=50, rate=7, created_ms=8)
    assert job.sources == ((1, (1,)), (3, (13, 14)))
    assert job.tables == (1, 3)
    assert (job.output, job.rate, job.created_ms) == (50, 7, 8)


def scattered(files: int, tables: int, first_id: int = MAX_FILE_ID - 200_000) -> Version:
    """Files to each of which all tables refer, with a quarter of them alive."""
    refs = tuple((n, MIB // 4 // tables, 1) for n in range(1, files + 1))
    level = tuple(
        TableMeta(first_id + n, 1, 0, 1, b"%08d" % n, b"%08d" % n, 1, 1, value_log=refs)
        for n in range(tables)
    )
    vlogs = tuple(file(n, entries=tables) for n in range(1, files + 1))
    return replace(Version.empty(2), levels=((), level), vlogs=vlogs)


def test_the_job_fits_a_message() -> None:
    """Tables are named once, however many of the files they refer to."""
    version = scattered(3, MAX_NAMED - 2 * 3)
    plan = pick(version)
    assert plan.relocate == (1, 2, 3)
    job = relocation(version, plan.relocate, output=MAX_FILE_ID, rate=1 << 40, created_ms=1 << 50)
    assert len(job.tables) == MAX_NAMED - 6
    encode(JobRequest(1 << 60, 1 << 60, job))


def test_what_would_not_fit_waits_for_the_next_run_or_is_kept() -> None:
    plan = pick(scattered(3, MAX_NAMED - 5))
    assert (plan.relocate, plan.kept) == ((1, 2), ((3, NEXT_RUN),))
    plan = pick(scattered(1, MAX_NAMED - 1))
    assert (plan.relocate, plan.kept) == ((), ((1, SCATTERED),))


def test_many_logical_files_in_one_fit_a_message_too() -> None:
    logical = tuple(range(MAX_FILE_ID - MAX_NAMED + 3, MAX_FILE_ID + 1))
    table = TableMeta(7, 1, 0, 1, b"a", b"a", 1, 1, value_log=((logical[0], 10, 1),))
    vlog = VlogMeta(9, logical, True, 64 * MIB, 100)
    version = replace(Version.empty(2), levels=((), (table,)), vlogs=(vlog,))
    plan = pick(version, max_output_bytes=1 << 30)
    assert plan.relocate == (9,)
    job = relocation(version, plan.relocate, output=1, rate=0, created_ms=1)
    encode(JobRequest(1, 1, job))
