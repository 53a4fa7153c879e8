"""File names: exactly those made here are parsed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meles.engine.errors import InvariantError
from meles.engine.fs.names import Kind, file_name, ids_of, parse_name
from meles.engine.ids import MAX_FILE_ID

kinds = st.sampled_from(list(Kind))
ids = st.integers(1, MAX_FILE_ID) | st.integers(1, 2_000_000)


@given(kinds, ids)
def test_a_name_is_parsed_to_what_it_was_made_of(kind: Kind, file_id: int) -> None:
    assert parse_name(file_name(kind, file_id)) == (kind, file_id)


def test_names_look_as_documented() -> None:
    assert file_name(Kind.TABLE, 7) == "000007.sst"
    assert file_name(Kind.WAL, 7) == "00007.mem"
    assert file_name(Kind.VLOG, 7) == "000007.vlog"
    assert file_name(Kind.WAL, MAX_FILE_ID) == "999999999999.mem"


@pytest.mark.parametrize("file_id", [0, -1, MAX_FILE_ID + 1])
def test_ids_out_of_range_have_no_name(file_id: int) -> None:
    with pytest.raises(InvariantError):
        file_name(Kind.TABLE, file_id)


@pytest.mark.parametrize(
    "name",
    [
        "", "MANIFEST", "LOCK", "000007", ".sst", "7.sst", "00007.sst", "0000007.sst",
        "000000.sst", "000007.SST", "000007.sst.aside", "000007.sst\n", " 000007.sst",
        "000007.log", "-00007.sst", "+00007.sst", "0x0007.sst", "00_007.sst", "../000007.sst",
        "a/000007.sst", "000007.sst\0", "\u0660\u0660\u0660\u0660\u0660\u0667.sst",
        "1000000000000.sst", "000007.mem",
    ],
)  # fmt: skip
def test_what_was_not_made_here_is_not_ours(name: str) -> None:
    assert parse_name(name) is None


@given(st.text(max_size=20) | st.from_regex(r"\d{4,14}\.(sst|mem|vlog)\n?", fullmatch=True))
def test_what_parses_is_what_is_made(name: str) -> None:
    found = parse_name(name)
    assert found is None or file_name(*found) == name


def test_ids_of_a_kind_ascend() -> None:
    names = ["000010.sst", "000009.vlog", "000002.sst", "00003.mem", "LOCK", "x.sst", "1000000.sst"]
    assert ids_of(Kind.TABLE, names) == [2, 10, 1_000_000]
    assert ids_of(Kind.VLOG, iter(names)) == [9]
    assert ids_of(Kind.WAL, []) == []
