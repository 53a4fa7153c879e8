"""Columns: parallel lists stay parallel, and `check` finds what is not in order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meles.engine.codec.columns import Columns
from meles.engine.errors import InvariantError

Row = tuple[bytes, int, int, int, bytes]

rows = st.lists(
    st.tuples(
        st.binary(min_size=1, max_size=3),
        st.integers(1, 9),
        st.integers(0, 0xFFFF),
        st.integers(0, 1 << 40),
        st.binary(max_size=3),
    ),
    max_size=12,
    unique_by=lambda row: row[:2],
)


def columns(entries: list[Row]) -> Columns:
    made = Columns()
    for entry in entries:
        made.append(*entry)
    return made


def entries_of(made: Columns) -> list[Row]:
    return list(zip(made.keys, made.versions, made.metas, made.expiries, made.values, strict=True))


def in_order(entries: list[Row]) -> list[Row]:
    return sorted(entries, key=lambda entry: (entry[0], -entry[1]))


@given(rows)
def test_append_keeps_entries_whole(entries: list[Row]) -> None:
    made = columns(entries)
    assert entries_of(made) == entries
    assert len(made) == len(entries)


@given(rows, st.integers(-3, 15), st.integers(-3, 15))
def test_slice_is_that_of_the_entries(entries: list[Row], start: int, stop: int) -> None:
    assert entries_of(columns(entries).slice(start, stop)) == entries[start:stop]


@given(rows, st.data())
def test_take_picks_and_orders(entries: list[Row], data: st.DataObject) -> None:
    order = data.draw(st.lists(st.integers(0, len(entries) - 1)) if entries else st.just([]))
    assert entries_of(columns(entries).take(order)) == [entries[at] for at in order]


@given(rows, rows)
def test_extend_appends_and_leaves_the_other_alone(first: list[Row], second: list[Row]) -> None:
    made, other = columns(first), columns(second)
    made.extend(other)
    assert entries_of(made) == first + second
    made.append(b"k", 1, 0, 0, b"")
    assert entries_of(other) == second


@given(rows)
def test_check_accepts_exactly_the_order(entries: list[Row]) -> None:
    columns(in_order(entries)).check()
    if entries != in_order(entries):
        with pytest.raises(InvariantError, match="not in order"):
            columns(entries).check()


def test_check_refuses_the_same_version_twice() -> None:
    made = columns([(b"k", 1, 0, 0, b"a"), (b"k", 1, 0, 0, b"b")])
    with pytest.raises(InvariantError, match="not in order"):
        made.check()


@pytest.mark.parametrize("column", ["keys", "versions", "metas", "expiries", "values"])
def test_check_refuses_columns_of_different_lengths(column: str) -> None:
    made = columns([(b"a", 1, 0, 0, b""), (b"b", 1, 0, 0, b"")])
    getattr(made, column).pop()
    with pytest.raises(InvariantError, match="different lengths"):
        made.check()


def test_an_empty_run_is_in_order() -> None:
    Columns().check()
    assert len(Columns()) == 0
