"""FORMAT.md says what the code does: tables and examples are read from it."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import meles.engine.codec
import pytest
from meles.engine.codec import entry, header
from meles.engine.codec.entry import META_MASK, POINTER_BYTES, ValuePointer
from meles.engine.codec.header import (
    FORMAT_VERSION,
    HEADER_BYTES,
    MAGIC_MANIFEST,
    MAGIC_TABLE,
    FileHeader,
    decode_header,
)

TEXT = Path(meles.engine.codec.__path__[0], "FORMAT.md").read_text()
SIZES = {"u16": 2, "u32": 4, "u64": 8}


def section(title: str) -> str:
    return TEXT.split(f"## {title}")[1].split("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    """The cells of each table row that begins with a number or a quoted word."""
    lines = [line for line in text.splitlines() if re.match(r"\| (\d|`)", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def example(name: str) -> bytes:
    match = re.search(rf"```hex {name}\n(.*?)```", TEXT, re.DOTALL)
    assert match is not None
    return bytes.fromhex(match[1])


@pytest.mark.parametrize(
    ("title", "size"), [("File header", HEADER_BYTES), ("Value pointer", POINTER_BYTES)]
)
def test_fields_follow_each_other_without_a_gap(title: str, size: int) -> None:
    at = 0
    for offset, width, *_ in rows(section(title)):
        if not offset.startswith("`"):
            assert int(offset) == at
            at += SIZES.get(width) or int(width)
    assert at == size


def test_the_header_has_the_fields_of_the_table() -> None:
    """A header with a different byte in each field has them where the table says."""
    made = FileHeader(b"MMMMMMMM", 0x66, external=0x45, key_id=0x4B, salt=b"S" * 16, version=0x56)
    found = made.encode()
    places = {name: int(offset) for offset, _, name, *_ in rows(section("File header"))[:10]}
    assert found[places["magic"]] == ord("M")
    assert found[places["version"]] == 0x56
    assert found[places["external"]] == 0x45
    assert found[places["file id"]] == 0x66
    assert found[places["key id"]] == 0x4B
    assert found[places["salt"]] == ord("S")
    assert found[places["crc"] :] == struct.pack("<I", made.seed)
    assert found[12:16] + found[48:60] == bytes(16)


def test_the_table_of_magics_is_complete() -> None:
    listed = {row[0].strip("`").encode() for row in rows(section("File header")) if "`" in row[0]}
    assert listed == {getattr(header, name) for name in dir(header) if name.startswith("MAGIC_")}


def test_the_headers_of_the_examples() -> None:
    table = FileHeader(MAGIC_TABLE, 7)
    assert table.encode() == example("table header")
    assert decode_header(example("table header"), MAGIC_TABLE, "x") == table
    manifest = FileHeader(MAGIC_MANIFEST, 0, external=513, key_id=3, salt=bytes(range(16)))
    assert manifest.encode() == example("manifest header")
    assert decode_header(example("manifest header"), MAGIC_MANIFEST, "x") == manifest


def test_the_pointer_of_the_example() -> None:
    assert ValuePointer(7, 84, 5).encode() == example("value pointer")
    assert ValuePointer.decode(example("value pointer")) == ValuePointer(7, 84, 5)


def test_the_meta_bits() -> None:
    listed = {name.upper().replace(" ", "_"): int(bit, 16) for bit, name, _ in META_ROWS}
    bits = {name: value for name, value in vars(entry).items() if name.startswith("META_")}
    assert bits.pop("META_MASK") == META_MASK == sum(listed.values())
    assert {name.removeprefix("META_"): value for name, value in bits.items()} == listed


META_ROWS = rows(section("Meta bits"))


def test_the_newest_version_is_listed() -> None:
    assert int(rows(section("Versions"))[-1][0]) == FORMAT_VERSION
