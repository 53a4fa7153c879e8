"""What a dropped prefix covers, in keys and in tables."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meles.engine.compaction.drops import due_drops, is_dead, may_hold, prefix_end, spent_drops
from meles.engine.manifest.version import Drop, Version

BYTES = st.binary(max_size=3).map(lambda data: bytes(b"\x00a\xfe\xff"[byte % 4] for byte in data))


@given(prefix=BYTES, key=BYTES)
def test_a_prefix_is_a_range_of_keys(prefix: bytes, key: bytes) -> None:
    end = prefix_end(prefix)
    assert key.startswith(prefix) == (prefix <= key and (end is None or key < end))


@given(prefix=BYTES, keys=st.lists(BYTES, min_size=1), version=st.integers(1, 3))
def test_a_table_that_holds_a_dropped_key_may_hold_it(
    tools: Any, prefix: bytes, keys: list[bytes], version: int
) -> None:
    table = tools.meta(1, min(keys), max(keys), versions=(version, 3))
    if any(key.startswith(prefix) for key in keys):
        assert may_hold(table, (prefix, 2)) == (version <= 2)


@pytest.mark.parametrize(
    ("low", "high", "versions", "dead"),
    [
        (b"b1", b"b9", (1, 5), True),
        (b"b1", b"b9", (1, 6), False),
        (b"a", b"b9", (1, 5), False),
        (b"b1", b"c", (1, 5), False),
    ],
)
def test_dead_tables(
    tools: Any, low: bytes, high: bytes, versions: tuple[int, int], dead: bool
) -> None:
    assert is_dead(tools.meta(1, low, high, versions=versions), [(b"b", 5)]) is dead


def test_a_drop_of_everything_kills_any_old_table(tools: Any) -> None:
    assert is_dead(tools.meta(1, b"a", b"\xff\xff", versions=(1, 5)), [(b"", 5)])


def test_a_drop_is_due_when_no_reader_is_before_it() -> None:
    version = replace(Version.empty(3), drops=(Drop((b"a", b"b"), 5), Drop((b"c",), 8)))
    assert due_drops(version, 4) == ()
    assert due_drops(version, 5) == ((b"a", 5), (b"b", 5))
    assert due_drops(version, 8) == ((b"a", 5), (b"b", 5), (b"c", 8))


def test_a_drop_is_spent_when_nothing_can_hold_what_it_hides(tools: Any) -> None:
    version = replace(Version.empty(3), drops=(Drop((b"a", b"b"), 5),))
    assert spent_drops(version, 6) == (5,)
    assert spent_drops(version, 5) == ()
    holding = version.with_tables(2, [tools.meta(1, b"b1", b"c", versions=(5, 9))], [])
    assert spent_drops(holding, 6) == ()
    newer = version.with_tables(2, [tools.meta(1, b"b1", b"c", versions=(6, 9))], [])
    assert spent_drops(newer, 6) == (5,)
