"""FORMAT.md: its example is a real table, byte for byte, and its sizes are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import meles.engine.table.layout as layout
import pytest
from meles.engine.codec.columns import Columns
from meles.engine.codec.header import HEADER_BYTES
from meles.engine.fs.files import Directory
from meles.engine.jobs import BuildOptions
from meles.engine.table.builder import TableBuilder
from meles.engine.table.reader import Table

TEXT = Path(layout.__file__).with_name("FORMAT.md").read_text()


def example() -> bytes:
    block = re.search(r"```hex\n(.*?)```", TEXT, re.DOTALL)
    assert block is not None
    lines = [line for line in block[1].splitlines() if not line.startswith("#")]
    return bytes.fromhex("".join(lines))


def example_columns() -> Columns:
    return Columns(
        [b"bee", b"bee", b"ivy"],
        [9, 4, 6],
        [0, 1, 1 << 8],
        [1_800_000_000_000, 0, 0],
        [b"hum", b"", b"green"],
    )


def test_example_reads_as_described(directory: Directory) -> None:
    with directory.create("000007.sst") as file:
        file.pwrite(example(), 0)
    with Table(directory, 7) as table:
        assert table.verify() == (1, 3)
        assert list(table.scan()) == [example_columns()]
        assert table.get(b"bee", 100) == (9, 0, 1_800_000_000_000, b"hum")
        assert table.get(b"bee", 8) == (4, 1, 0, b"")
        assert table.get(b"ivy", 6) == (6, 1 << 8, 0, b"green")


def test_builder_writes_the_example(directory: Directory) -> None:
    builder = TableBuilder(directory, 7, BuildOptions(), created_ms=1_700_000_000_000)
    builder.add(example_columns())
    builder.finish()
    assert directory.read("000007.sst") == example()


@pytest.mark.parametrize(
    ("heading", "size"),
    [("Header", HEADER_BYTES), ("Footer", layout.FOOTER_BYTES)],
)
def test_sizes_in_headings(heading: str, size: int) -> None:
    assert f"## {heading}, {size} bytes" in TEXT


@pytest.mark.parametrize(
    ("name", "bit"),
    [
        (name.removeprefix("FLAG_"), value)
        for name, value in vars(layout).items()
        if name.startswith("FLAG_") and name != "FLAG_MASK"
    ],
)
def test_flags_are_those_of_the_code(name: str, bit: int) -> None:
    assert f"| {name} | 0x{bit:02x} |" in TEXT
    assert layout.FLAG_MASK & bit


def test_comments_in_the_example_name_the_true_places() -> None:
    sizes = [int(size) for size in re.findall(r"^# .*, (\d+) bytes$", TEXT, re.MULTILINE)]
    starts = [int(at) for at in re.findall(r"^# .*, byte (\d+),", TEXT, re.MULTILINE)]
    assert starts == [sum(sizes[:nth]) for nth in range(len(sizes))]
    assert sum(sizes) == len(example())
