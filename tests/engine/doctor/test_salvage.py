"""What is salvaged checks out, and no version shows again of which a newer one was lost."""

from __future__ import annotations

import pytest
from meles.engine.codec.columns import Columns
from meles.engine.doctor.salvage import merge_tables, salvage_table
from meles.engine.errors import CorruptionError
from meles.engine.fs.files import Directory
from meles.engine.jobs import BuildOptions
from meles.engine.table.builder import TableBuilder
from meles.engine.table.reader import Table

Row = tuple[bytes, int, bytes]


def build(directory: Directory, number: int, rows: list[Row]) -> list[int]:
    """A table of small blocks; where each begins."""
    builder = TableBuilder(directory, number, BuildOptions(block_size=256), created_ms=1)
    columns = Columns()
    for key, version, value in rows:
        columns.append(key, version, 0, 0, value)
    builder.add(columns)
    builder.finish()
    with Table(directory, number) as table:
        return list(table.index.offsets)


def rows_of(directory: Directory, number: int) -> list[Row]:
    with Table(directory, number) as table:
        table.verify()
        return [
            row
            for batch in table.scan()
            for row in zip(batch.keys, batch.versions, batch.values, strict=True)
        ]


def flip(directory: Directory, number: int, at: int) -> None:
    with directory.open(f"{number:06d}.sst", write=True) as file:
        file.pwrite(bytes([file.pread(1, at)[0] ^ 1]), at)


def versions(count: int) -> list[Row]:
    """A key before, one key of many versions over several blocks, a key after."""
    middle = [(b"m", version, b"%d" % version * 20) for version in range(count, 0, -1)]
    return [(b"a", 900, b"first" * 8), *middle, (b"z", 901, b"last" * 8)]


@pytest.mark.parametrize("block", range(6))
def test_no_version_older_than_a_lost_one_is_kept(directory: Directory, block: int) -> None:
    rows = versions(60)
    offsets = build(directory, 1, rows)
    assert len(offsets) > 6
    flip(directory, 1, offsets[block] + 40)
    with Table(directory, 1) as table, pytest.raises(CorruptionError):
        table.verify()
    meta = salvage_table(directory, 1, 2)
    assert meta is not None
    kept = rows_of(directory, 2)
    assert set(kept) < set(rows)
    left = [version for key, version, _ in kept if key == b"m"]
    assert left == list(range(60, 60 - len(left), -1))  # the newest, without a gap
    assert (b"z", 901, b"last" * 8) in kept


def test_of_nothing_readable_there_is_no_table(directory: Directory) -> None:
    (offset,) = build(directory, 1, [(b"k", 1, b"v")])
    flip(directory, 1, offset + 30)
    assert salvage_table(directory, 1, 2) is None
    assert "000002.sst" not in directory.names()


def test_tables_are_merged_in_one_order(directory: Directory) -> None:
    """Whatever level they were on; what two of them hold is there once."""
    first = [(b"%03d" % n, 100 + n, b"x" * 30) for n in range(0, 100, 2)]
    second = [(b"%03d" % n, 50 + n, b"y" * 30) for n in range(100)]
    build(directory, 1, first)
    build(directory, 2, sorted([*second, *first[:5]], key=lambda row: (row[0], -row[1])))
    made = merge_tables(directory, [1, 2], 10, "none")
    assert [meta.id for meta in made] == [10]
    expected = sorted({*first, *second}, key=lambda row: (row[0], -row[1]))
    assert rows_of(directory, 10) == expected
