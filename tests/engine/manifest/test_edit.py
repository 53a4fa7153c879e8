"""An edit: applied whole or not at all, read back as written, believed only when it makes sense."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from meles.engine.errors import InvariantError
from meles.engine.ids import MAX_LEVELS
from meles.engine.manifest.edit import Edit
from meles.engine.manifest.version import Drop, TableMeta, Version, VlogMeta

Table = Callable[..., TableMeta]


@pytest.fixture(scope="module")
def full(table: Table) -> Version:
    return Version(
        levels=(
            (table(5, "a-z"),),
            (table(1, "a-c", value_log=((2, 10, 1),)), table(2, "e-g")),
            (),
        ),
        vlogs=(VlogMeta(2, (2,), True, 100, 3), VlogMeta(4, (3, 1), True, 7, 1)),
        min_mem=3,
        next_table=6,
        next_vlog=5,
        max_ts=40,
        drops=(Drop((b"a",), 7), Drop((b"b", b"c"), 9)),
        banned=(3,),
    )


def through_msgpack(edit: Edit) -> Edit:
    return Edit.from_plain(msgpack.unpackb(msgpack.packb(edit.to_plain()), strict_map_key=True))


def test_the_edit_of_a_version_makes_it_out_of_nothing(full: Version) -> None:
    edit = through_msgpack(Edit.of_version(full))
    assert edit == Edit.of_version(full)
    assert edit.apply(Version.empty(7)) == full
    assert edit.apply(full) == full


def test_an_empty_edit_changes_nothing_and_takes_one_byte(full: Version) -> None:
    assert Edit().apply(full) == full
    assert msgpack.packb(Edit().to_plain()) == b"\x80"
    assert through_msgpack(Edit()) == Edit()


def test_tables_are_added_moved_and_removed_at_once(full: Version, table: Table) -> None:
    one = full.tables[1]
    edit = Edit(
        add=((0, table(7, "b")), (2, one), (1, table(6, "a-d"))), remove=((1, 1), (0, 5), (1, 2))
    )
    after = through_msgpack(edit).apply(full)
    assert [[t.id for t in level] for level in after.levels] == [[7], [6], [1]]
    assert after.tables[1] == one


def test_value_log_files_are_put_replaced_and_removed(full: Version) -> None:
    edit = Edit(put_vlogs=(VlogMeta(9, (2, 8)), VlogMeta(4, (1,))), remove_vlogs=(2,))
    assert through_msgpack(edit).apply(full).vlogs == (VlogMeta(4, (1,)), VlogMeta(9, (2, 8)))


def test_counters_only_grow(full: Version) -> None:
    names = ("min_mem", "next_table", "next_vlog", "max_ts")
    counters: dict[str, Any] = dict.fromkeys(names, 99)
    higher = Edit(**counters).apply(full)
    assert [getattr(higher, name) for name in names] == [99] * 4
    counters = dict.fromkeys(names, 1)
    assert Edit(**counters).apply(full) == full


def test_drops_come_and_go_and_bans_stay(full: Version) -> None:
    edit = Edit(add_drops=(Drop((b"",), 8),), remove_drops=(7,), ban=(1, 3))
    after = through_msgpack(edit).apply(full)
    assert after.drops == (Drop((b"",), 8), Drop((b"b", b"c"), 9))
    assert after.banned == (1, 3)


def test_a_table_on_a_deeper_level_adds_levels(full: Version, table: Table) -> None:
    deep = table(9, "a")
    after = through_msgpack(Edit(add=((15, deep),))).apply(full)
    assert (len(after.levels), after.level_of(9)) == (16, 15)
    assert after.levels[: len(full.levels)] == full.levels
    assert Edit(remove=((15, 9),)).apply(after) == full.with_levels(16)


def test_what_does_not_fit_changes_nothing(full: Version, table: Table) -> None:
    before = dataclasses.replace(full)
    for edit, why in (
        (Edit(remove=((1, 9),)), "lacks a table"),
        (Edit(remove=((0, 1),)), "lacks a table"),
        (Edit(add=((16, table(9, "a")),)), "no level 16"),
        (Edit(remove=((-1, 1),)), "no level -1"),
        (Edit(add=((1, table(9, "c-d")),)), "overlap"),
        (Edit(add=((2, table(1, "z")),)), "two levels"),
        (Edit(add=((2, table(9, "z", value_log=((77, 1, 1),))),)), "are gone"),
        (Edit(remove_vlogs=(9,)), "no value-log file 9"),
        (Edit(remove_vlogs=(2,)), "are gone"),
        (Edit(put_vlogs=(VlogMeta(9, (1,)),)), "two physical files"),
    ):
        with pytest.raises(InvariantError, match=why):
            edit.apply(full)
    assert full == before


# -- hostile data --------------------------------------------------------------------------------

FIELDS = sorted(Edit.__dataclass_fields__)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(1 << 70), 1 << 70), st.floats(), st.text(max_size=3),
    st.binary(max_size=3),
)  # fmt: skip
hostile = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=6)
        | st.dictionaries(st.text(max_size=2) | st.integers(), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(FIELDS), hostile, max_size=4) | hostile)
def test_anything_is_an_edit_or_a_value_error(plain: object) -> None:
    try:
        edit = Edit.from_plain(plain)
    except ValueError:
        return
    assert Edit.from_plain(edit.to_plain()) == edit


@given(data=st.data())
def test_a_spoilt_edit_is_an_edit_or_a_value_error(full: Version, data: st.DataObject) -> None:
    plain = Edit.of_version(full).to_plain()
    name = data.draw(st.sampled_from(sorted(plain)))
    if isinstance(plain[name], list) and data.draw(st.booleans()):
        plain[name] = [*plain[name], data.draw(hostile)]
    else:
        plain[name] = data.draw(hostile)
    try:
        edit = Edit.from_plain(plain)
    except ValueError:
        return
    assert Edit.from_plain(edit.to_plain()) == edit


@pytest.mark.parametrize(
    "plain",
    [
        {"unknown": 1},
        {"snapshot": MAX_LEVELS + 1},
        {"snapshot": 1 << 40},  # so many levels would be made
        {"max_ts": -1},
        {"max_ts": float("inf")},
        {"max_ts": "7"},
        {"ban": [float("nan")]},
        {"add_drops": [[[1 << 40], 7]]},  # bytes(n) would allocate so much
        {"add": [[0]]},
        {"add": [[0, None]]},
        {"remove": [1]},
        {"remove": 1},
        {b"ban": [1]},
    ],
)
def test_each_of_these_is_refused(plain: object) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Edit.from_plain(plain)


# -- one step is checked as the whole would be -----------------------------------------------------


def drawn_edit(data: st.DataObject, version: Version, number: int) -> Edit:
    """One that fits more often than not: a table, of which some may go, and so may a file."""
    there = sorted(version.walk(), key=lambda placed: placed[1].id)
    files = [vlog.id for vlog in version.vlogs]
    low = data.draw(st.integers(0, 20))
    span = b"%02d" % low, b"%02d" % (low + data.draw(st.integers(-1, 3)))
    refs = data.draw(st.lists(st.sampled_from([*files, 99]), max_size=1)) if files else []
    again = data.draw(st.integers(0, 9)) == 0 and bool(there)
    table = TableMeta(
        there[0][1].id if again else number, 9, 9, 9, *span, number, number,
        value_log=tuple((file, 9, 1) for file in refs),
    )  # fmt: skip
    gone = data.draw(st.lists(st.sampled_from(there), max_size=2, unique=True)) if there else []
    return Edit(
        add=((data.draw(st.sampled_from([0, 1, 1, 1, 2])), table),),
        remove=tuple((level, meta.id) for level, meta in gone),
        put_vlogs=(VlogMeta(number, (number,)),) if number % 3 == 1 else (),
        remove_vlogs=tuple(data.draw(st.lists(st.sampled_from(files), max_size=1)))
        if files and number % 4 == 0
        else (),
    )


@settings(max_examples=100)
@given(st.data())
def test_a_step_is_refused_if_and_only_if_the_whole_would_be(data: st.DataObject) -> None:
    version = Version.empty(3)
    for number in range(1, 15):
        edit = drawn_edit(data, version, number)
        after = edit.apply(version, check=False)
        try:
            after.check()
        except InvariantError:
            with pytest.raises(InvariantError):
                edit.apply(version)
        else:
            version = edit.apply(version)
            assert version == after
