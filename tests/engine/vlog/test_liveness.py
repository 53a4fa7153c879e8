"""Live bytes follow from the tables alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from meles.engine.manifest.version import TableMeta, Version, VlogMeta
from meles.engine.vlog.liveness import live_bytes, space


def table(table_id: int, *refs: tuple[int, int, int]) -> TableMeta:
    key = b"%04d" % table_id
    return TableMeta(table_id, 1000, 0, 10, key, key, 1, 9, value_log=refs)


def version(*vlogs: VlogMeta, tables: tuple[TableMeta, ...] = ()) -> Version:
    empty = Version.empty(3)
    return replace(empty, levels=(tables[:1], tables[1:], ()), vlogs=vlogs)


def test_references_add_up_over_tables_and_logical_files() -> None:
    state = version(
        VlogMeta(4, (4,), True, 1128, 10),
        VlogMeta(7, (2, 3), True, 2000, 10),
        VlogMeta(8, (8,)),
        tables=(table(1, (4, 100, 1), (2, 50, 2)), table(2, (4, 200, 2), (3, 30, 1))),
    )
    state.check()
    assert live_bytes(state) == {4: (300, 3), 7: (80, 3), 8: (0, 0)}


def test_the_garbage_share_is_of_the_entries_alone() -> None:
    overhead = 64 + 64
    maps = 2 * 8 + 10 * 8
    state = version(
        VlogMeta(7, (2, 3), True, overhead + maps + 1000, 10),
        VlogMeta(4, (4,), True, overhead + 1000, 10),
        VlogMeta(5, (5,), True, overhead, 0),
        VlogMeta(8, (8,)),
        tables=(table(1, (4, 250, 3), (2, 1000, 10), (8, 500, 1)),),
    )
    found = space(state)
    assert [file.id for file in found] == [4, 5, 7, 8]
    assert [file.garbage_ratio for file in found] == [0.75, 0.0, 0.0, 0.0]
    assert (found[0].live, found[0].live_entries, found[0].sealed) == (250, 3, True)
    assert (found[3].live, found[3].size, found[3].sealed) == (500, 0, False)


@pytest.mark.parametrize("live", [0, 1, 999, 1000])
def test_the_garbage_share_is_exact(live: int) -> None:
    state = version(VlogMeta(4, (4,), True, 1128, 10), tables=(table(1, (4, live, 1)),))
    assert space(state)[0].garbage_ratio == (1000 - live) / 1000
