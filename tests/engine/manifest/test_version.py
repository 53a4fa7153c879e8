"""The Version: levels in order, overlaps found, invariants checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meles.engine.errors import InvariantError
from meles.engine.ids import MAX_FILE_ID
from meles.engine.manifest.version import Drop, TableMeta, Version, VlogMeta

Table = Callable[..., TableMeta]

ids = st.integers(1, MAX_FILE_ID)
u64 = st.integers(0, (1 << 64) - 1)
keys = st.binary(min_size=1, max_size=8)
table_metas = st.builds(
    TableMeta, id=ids, size=u64, crc=u64, count=u64, min_key=keys, max_key=keys, min_version=u64,
    max_version=u64, tombstones=u64, expiring=u64, stale_bytes=u64, raw_bytes=u64,
    value_log=st.lists(st.tuples(ids, u64, u64), max_size=3).map(tuple),
    compression=st.text(max_size=5), key_id=u64, created=st.floats(0, 1e12), ordered=st.booleans(),
    expiries=st.lists(u64, max_size=8).map(sorted).map(tuple),
)  # fmt: skip
vlog_metas = st.builds(
    VlogMeta, id=ids, logical=st.lists(ids, max_size=4).map(tuple), sealed=st.booleans(), size=u64,
    entries=u64,
)  # fmt: skip
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=5)
)
hostile = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(max_size=2) | st.integers(), inner, max_size=5)
    ),
    max_leaves=10,
)
PARSE_ERRORS = (KeyError, TypeError, ValueError)


# -- plain data ----------------------------------------------------------------------------------


@given(table_metas)
def test_a_table_is_what_its_plain_data_says(meta: TableMeta) -> None:
    assert TableMeta.from_plain(meta.to_plain()) == meta


@given(vlog_metas)
def test_a_value_log_file_is_what_its_plain_data_says(meta: VlogMeta) -> None:
    assert VlogMeta.from_plain(meta.to_plain()) == meta


@given(table_metas, st.data())
def test_a_table_with_a_strange_field_is_refused_or_is_the_same_kind(
    meta: TableMeta, data: st.DataObject
) -> None:
    plain = meta.to_plain()
    plain[data.draw(st.sampled_from(sorted(plain)))] = data.draw(hostile)
    try:
        found = TableMeta.from_plain(plain)
    except PARSE_ERRORS:
        return
    for field in dataclasses.fields(TableMeta):
        assert type(getattr(found, field.name)) is type(getattr(meta, field.name))
    assert TableMeta.from_plain(found.to_plain()).to_plain() == found.to_plain()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("k", 1 << 40),  # bytes(n) would allocate so much
        ("i", 0), ("i", -1), ("i", MAX_FILE_ID + 1), ("i", True), ("i", "7"), ("i", 7.0),
        ("s", -1), ("s", 1 << 64), ("n", None), ("K", "text"), ("K", [1]), ("a", "x"),
        ("a", None), ("l", 7), ("l", [[1, 2]]), ("l", [[0, 1, 1]]), ("l", [[1, -1, 1]]), ("l", [7]),
    ],
)  # fmt: skip
def test_each_of_these_is_refused(table: Table, name: str, value: object) -> None:
    with pytest.raises(PARSE_ERRORS):
        TableMeta.from_plain({**table(1, "a").to_plain(), name: value})


@pytest.mark.parametrize("name", sorted(TableMeta(1, 0, 0, 0, b"", b"", 0, 0).to_plain()))
def test_no_field_may_be_missing(table: Table, name: str) -> None:
    plain = table(1, "a").to_plain()
    del plain[name]
    with pytest.raises(KeyError):
        TableMeta.from_plain(plain)


@pytest.mark.parametrize(
    "plain",
    [[], None, 7, [1, [1], True, 0], [1, [1], True, 0, 0, 0], [0, [1], True, 0, 0],
     [1, 1, True, 0, 0], [1, [0], True, 0, 0], [1, ["1"], True, 0, 0], [1, [1], True, -1, 0],
     [1, [1], True, 0, "x"],
     {1: 1, 2: 2, 3: 3, 4: 4, 5: 5}],
)  # fmt: skip
def test_no_value_log_file_is_made_of(plain: object) -> None:
    with pytest.raises(PARSE_ERRORS):
        VlogMeta.from_plain(plain)  # type: ignore[arg-type]


# -- overlaps ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (b"c", b"f", True), (b"a", b"c", True), (b"f", b"z", True), (b"d", b"e", True),
        (b"a", b"z", True), (None, b"c", True), (b"f", None, True), (None, None, True),
        (b"a", b"b", False), (b"g", b"z", False), (None, b"bz", False), (b"f\0", None, False),
    ],
)  # fmt: skip
def test_a_table_overlaps_a_range_with_both_ends(
    table: Table, low: bytes | None, high: bytes | None, expected: bool
) -> None:
    assert table(1, "c-f").overlaps(low, high) is expected


bounds = st.none() | st.binary(max_size=2)


@given(st.lists(st.binary(min_size=1, max_size=2), unique=True, max_size=12), bounds, bounds)
def test_overlapping_finds_what_a_scan_of_all_finds(
    ends: list[bytes], low: bytes | None, high: bytes | None
) -> None:
    ends = sorted(ends)[: len(ends) // 2 * 2]
    level = tuple(
        TableMeta(number, 1, 0, 1, first, last, 1, 1)
        for number, (first, last) in enumerate(zip(ends[::2], ends[1::2], strict=True), 1)
    )
    version = Version((tuple(reversed(level)), level))
    version = dataclasses.replace(version, levels=(version.levels[0], level))
    for number in (0, 1):
        expected = tuple(t for t in version.levels[number] if t.overlaps(low, high))
        assert version.overlapping(number, low, high) == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (b"c", b"c", [1]), (b"d", b"f", []), (b"d", b"g", [2]), (b"c", b"g", [1, 2]),
        (b"i", b"i", [2]), (b"j", None, [3]), (None, b"a", [1]), (None, b"0", []),
        (b"z", None, []), (None, None, [1, 2, 3]),
    ],
)  # fmt: skip
def test_both_ends_of_a_range_belong_to_it(
    table: Table, low: bytes | None, high: bytes | None, expected: list[int]
) -> None:
    level = (table(1, "a-c"), table(2, "g-i"), table(3, "k-m"))
    assert [t.id for t in Version(((), level)).overlapping(1, low, high)] == expected


# -- changing ------------------------------------------------------------------------------------


def test_tables_enter_l0_newest_first_and_deeper_levels_by_key(table: Table) -> None:
    version = Version.empty(3).with_tables(0, [table(2, "a-z"), table(5, "b")], [])
    version = version.with_tables(0, [table(3, "c-d")], [])
    version = version.with_tables(1, [table(9, "m-p"), table(7, "t")], [])
    version = version.with_tables(1, [table(8, "a-c")], [])
    assert [t.id for t in version.levels[0]] == [5, 3, 2]
    merged = table(9, "a-z", min_version=1, max_version=1)  # of old data, under a new id
    newer = [table(4, "a", max_version=7), table(6, "a", min_version=8, max_version=9)]
    other = Version.empty(1).with_tables(0, [merged, *newer], [])
    assert [t.id for t in other.levels[0]] == [6, 4, 9]
    other.check()
    assert [t.id for t in version.levels[1]] == [8, 9, 7]
    version.check()


def test_tables_leave(table: Table) -> None:
    full = Version.empty(2).with_tables(1, [table(1, "a"), table(2, "b"), table(3, "c")], [])
    less = full.with_tables(1, [table(4, "bb")], [2, 3])
    assert [t.id for t in less.levels[1]] == [1, 4]
    assert [t.id for t in full.levels[1]] == [1, 2, 3]
    for absent in ([4], [1, 9]):
        with pytest.raises(InvariantError, match="level 1 lacks a table"):
            full.with_tables(1, [], absent)


def test_what_is_asked_of_a_version(table: Table) -> None:
    version = Version.empty(3).with_tables(0, [table(4, "a")], [])
    version = version.with_tables(2, [table(2, "c-f", size=30), table(1, "k", size=12)], [])
    version = dataclasses.replace(version, vlogs=(VlogMeta(7, (7,)), VlogMeta(9, (2, 5))))
    assert [level.max_keys for level in version.levels] == [[b"a"], [], [b"f", b"k"]]
    assert sorted(version.tables) == [1, 2, 4]
    assert {logical: vlog.id for logical, vlog in version.physical.items()} == {7: 7, 2: 9, 5: 9}
    assert [version.level_size(level) for level in range(3)] == [100, 0, 42]
    assert [version.level_of(table_id) for table_id in (4, 2, 1)] == [0, 2, 2]
    assert [(level, t.id) for level, t in version.walk()] == [(0, 4), (2, 2), (2, 1)]
    with pytest.raises(KeyError):
        version.level_of(3)


def test_a_version_is_a_value(table: Table) -> None:
    first = Version.empty(2).with_tables(0, [table(1, "a")], [])
    second = Version.empty(2).with_tables(0, [table(1, "a")], [])
    assert first == second
    assert hash(first) == hash(second)
    assert first.tables is first.tables  # worked out once
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.max_ts = 1  # type: ignore[misc]


# -- invariants ----------------------------------------------------------------------------------


def test_the_empty_version_is_sound() -> None:
    version = Version.empty(7)
    version.check()
    assert version.levels == ((),) * 7


def test_a_sound_version_is_accepted(table: Table) -> None:
    version = Version(
        levels=(
            (table(9, "a-z"), table(4, "a-z")),
            (table(1, "a-c"), table(2, "d"), table(3, "e-g", value_log=((5, 10, 1),))),
        ),
        vlogs=(VlogMeta(6, (5, 4), sealed=True), VlogMeta(7, (7,))),
        drops=(Drop((b"a",), 7),),
    )
    version.check()


@pytest.mark.parametrize("spans", ["a-c c-d", "a-d b-c", "a-c b", "d-e a-b", "a a"])
def test_overlaps_below_l0_are_refused(table: Table, spans: str) -> None:
    level = tuple(table(number, span) for number, span in enumerate(spans.split(), 1))
    with pytest.raises(InvariantError, match="tables 1 and 2 overlap on level 2"):
        Version(((), (), level)).check()


@pytest.mark.parametrize("ages", [((1, 5), (2, 5)), ((3, 5), (3, 5)), ((9, 5), (1, 6))])
def test_l0_out_of_order_is_refused(table: Table, ages: tuple[tuple[int, int], ...]) -> None:
    level = tuple(table(table_id, "a", max_version=version) for table_id, version in ages)
    with pytest.raises(InvariantError, match="L0 is not newest first"):
        Version((level,)).check()


def test_a_table_on_two_levels_is_refused(table: Table) -> None:
    with pytest.raises(InvariantError, match="two levels"):
        Version(((table(1, "a"),), (table(1, "a"),))).check()


@pytest.mark.parametrize("fields", [{"span": "b-a"}, {"min_version": 2, "max_version": 1}])
def test_a_table_inside_out_is_refused(table: Table, fields: dict[str, object]) -> None:
    with pytest.raises(InvariantError, match="table 1 on level 1 is inside out"):
        Version(((), (table(1, **{"span": "a-b", **fields}),))).check()


def test_a_logical_file_in_two_places_is_refused() -> None:
    for vlogs in ((VlogMeta(1, (1, 2)), VlogMeta(2, (2,))), (VlogMeta(1, (1, 1)),)):
        with pytest.raises(InvariantError, match="two physical files"):
            Version(((),), vlogs=vlogs).check()


def test_a_reference_to_no_file_is_refused(table: Table) -> None:
    pointing = table(1, "a", value_log=((5, 10, 1), (6, 10, 1)))
    with pytest.raises(InvariantError, match=r"value-log files \[6\] that are gone"):
        Version(((pointing,),), vlogs=(VlogMeta(9, (5,)),)).check()
