"""Damage anywhere in a table is a CorruptionError: never a wrong answer, never another error."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

import msgpack
import pytest
from meles.engine.codec.checksum import crc32c
from meles.engine.codec.columns import Columns
from meles.engine.codec.header import MAGIC_TABLE, FileHeader
from meles.engine.errors import CorruptionError, FormatVersionError
from meles.engine.fs.files import Directory
from meles.engine.table.builder import BuiltTable
from meles.engine.table.layout import (
    BLOCK_HEAD,
    FOOTER_BYTES,
    Footer,
    Section,
    decode_footer,
    encode_footer,
    place_seed,
    section,
)
from meles.engine.table.reader import Table

Build = Callable[..., BuiltTable]
SEED = FileHeader(MAGIC_TABLE, 1).seed


def rewrite(directory: Directory, data: bytes) -> None:
    directory.unlink("000001.sst")
    with directory.create("000001.sst") as file:
        file.pwrite(data, 0)


def read_all(directory: Directory, columns: Columns) -> None:
    """Read everything there is; what is read must be right."""
    with Table(directory, 1) as table:
        out = Columns()
        for batch in table.scan():
            out.extend(batch)
        assert out == columns
        for key in columns.keys:
            assert table.get(key, 1 << 62) is not None
        b"".join(table.pointers())


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_any_flipped_bit(
    directory: Directory, build: Build, sample: Columns, compression: str
) -> None:
    columns = sample.slice(0, 30)
    build(columns, block_size=256, compression=compression)
    whole = directory.read("000001.sst")
    rng = random.Random(3)
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.randrange(8)
        rewrite(directory, bytes(damaged))
        with pytest.raises((CorruptionError, FormatVersionError)):
            read_all(directory, columns)


def footer_of(data: bytes) -> Footer:
    return decode_footer(data[-FOOTER_BYTES:], SEED, 1, len(data), "")


def with_footer(data: bytes, **changes: object) -> bytes:
    footer = dataclasses.replace(footer_of(data), **changes)  # type: ignore[arg-type]
    return data[:-FOOTER_BYTES] + encode_footer(footer, SEED)


def with_section(data: bytes, name: str, content: bytes) -> bytes:
    """The file with one section replaced, all checksums and places right."""
    footer = footer_of(data)
    parts = {
        part: data[getattr(footer, part).offset : getattr(footer, part).end]
        for part in ("bloom", "index", "properties")
    }
    parts[name] = content
    out = data[: footer.bloom.offset]
    places: dict[str, Section] = {}
    for part, part_data in parts.items():
        places[part] = section(part_data, len(out), SEED)
        out += part_data
    return out + encode_footer(dataclasses.replace(footer, **places), SEED)


@pytest.fixture
def whole(directory: Directory, build: Build, sample: Columns) -> bytes:
    build(sample.slice(0, 30), block_size=256)
    return directory.read("000001.sst")


def refuses(directory: Directory, data: bytes, columns: Columns, kind: str) -> None:
    rewrite(directory, data)
    with pytest.raises(CorruptionError) as caught:
        read_all(directory, columns)
    assert caught.value.kind == kind


def test_swapped_blocks(directory: Directory, build: Build, plain: Callable[..., Columns]) -> None:
    """Two blocks of one size: each is whole, and neither is where it belongs."""
    columns = plain(100)
    build(columns, block_size=256)
    data = bytearray(directory.read("000001.sst"))
    with Table(directory, 1) as table:
        first, second = table.index.offsets[:2]
        size = table.index.sizes[0]
        assert table.index.sizes[1] == size
    data[first : first + size], data[second : second + size] = (
        data[second : second + size],
        data[first : first + size],
    )
    refuses(directory, bytes(data), columns, "table block")


def test_a_block_of_another_table(
    directory: Directory, build: Build, plain: Callable[..., Columns]
) -> None:
    columns = plain(100)
    build(columns, block_size=256)
    build(plain(100, b"other"), block_size=256, table_id=2)
    data = bytearray(directory.read("000001.sst"))
    other = directory.read("000002.sst")
    with Table(directory, 1) as table:
        first, end = table.index.offsets[0], table.index.offsets[1]
    data[first:end] = other[first:end]
    refuses(directory, bytes(data), columns, "table block")


@pytest.mark.parametrize(
    "properties",
    [
        b"",
        b"\xc1",
        b"\x81",
        msgpack.packb([1, 2]),
        msgpack.packb({}),
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 2000,
        msgpack.packb({"i": 1}),
    ],
)
def test_hostile_properties(
    directory: Directory, whole: bytes, sample: Columns, properties: bytes
) -> None:
    data = with_section(whole, "properties", properties)
    refuses(directory, data, sample.slice(0, 30), "table properties")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("k", 10**12),
        ("k", "text"),
        ("k", b""),
        ("k", b"\xff"),
        ("n", 0),
        ("n", "3"),
        ("a", 5),
        ("l", [1]),
        ("l", [[1, 2]]),
        ("l", [[1, 2, float("inf")]]),
        ("l", {}),
        ("i", 2),
        ("z", None),
    ],
)
def test_hostile_property(
    directory: Directory, whole: bytes, sample: Columns, name: str, value: object
) -> None:
    place = footer_of(whole).properties
    plain = msgpack.unpackb(whole[place.offset : place.end])
    data = with_section(whole, "properties", msgpack.packb({**plain, name: value}))
    refuses(directory, data, sample.slice(0, 30), "table properties")


def test_properties_may_gain_a_key(directory: Directory, whole: bytes, sample: Columns) -> None:
    place = footer_of(whole).properties
    plain = msgpack.unpackb(whole[place.offset : place.end])
    rewrite(directory, with_section(whole, "properties", msgpack.packb({**plain, "new": 1})))
    read_all(directory, sample.slice(0, 30))


def test_hostile_sections(directory: Directory, whole: bytes, sample: Columns) -> None:
    """Words of index and filter overwritten, checksums made to fit."""
    rng = random.Random(4)
    footer = footer_of(whole)
    columns = sample.slice(0, 30)
    for name in ("index", "bloom"):
        place = getattr(footer, name)
        content = whole[place.offset : place.end]
        fields = len(content) if name == "index" else 17
        for at in range(fields):
            changed = bytearray(content)
            changed[at : at + 2] = rng.choice((b"\xff\xff", b"\0\0", b"\x80\x01", b"\x01\0"))
            rewrite(directory, with_section(whole, name, bytes(changed[: len(content)])))
            try:
                read_all(directory, columns)
            except (CorruptionError, AssertionError):
                pass  # hostile content may answer wrongly; it may not raise anything else
        for cut in (0, 1, 7, 8, 15, 40, len(content) - 1):
            if name == "index" or cut:
                refuses(
                    directory,
                    with_section(whole, name, content[:cut]),
                    columns,
                    "table index" if name == "index" else "table filter",
                )


@pytest.mark.parametrize(
    "changes",
    [
        {"blocks": 0},
        {"file_id": 2},
        {"bloom": Section(64, 0, 0)},
        {"index": Section(0, 0, 0)},
        {"properties": Section(0xFFFFFFFF, 0xFFFFFFFF, 0)},
    ],
)
def test_hostile_footer(
    directory: Directory, whole: bytes, sample: Columns, changes: dict[str, object]
) -> None:
    refuses(directory, with_footer(whole, **changes), sample.slice(0, 30), "table footer")


@pytest.mark.parametrize("at", [48, 51])
def test_reserved_bytes_of_the_footer(
    directory: Directory, whole: bytes, sample: Columns, at: int
) -> None:
    fixed = bytearray(whole[-FOOTER_BYTES:][:52])
    fixed[at] = 1
    data = whole[:-FOOTER_BYTES] + fixed + crc32c(fixed, SEED).to_bytes(4, "little") + b"MELESEND"
    refuses(directory, data, sample.slice(0, 30), "table footer")


@pytest.mark.parametrize("at", [4, 5, 7, 8, 15, 16])
def test_header_and_padding_of_the_filter(
    directory: Directory, whole: bytes, sample: Columns, at: int
) -> None:
    place = footer_of(whole).bloom
    filtered = bytearray(whole[place.offset : place.end])
    filtered[at] = 9
    data = with_section(whole, "bloom", bytes(filtered))
    refuses(directory, data, sample.slice(0, 30), "table filter")


@pytest.mark.parametrize("blocks", [1, 2, 1 << 20, 0xFFFFFFFF])
def test_wrong_number_of_blocks(
    directory: Directory, whole: bytes, sample: Columns, blocks: int
) -> None:
    data = with_footer(whole, blocks=blocks)
    refuses(directory, data, sample.slice(0, 30), "table index")


def first_block(directory: Directory) -> tuple[int, int]:
    with Table(directory, 1) as table:
        return table.index.offsets[0], table.index.sizes[0]


def test_stored_length_against_the_index(
    directory: Directory, whole: bytes, sample: Columns
) -> None:
    data = bytearray(whole)
    offset, size = first_block(directory)
    wrong = size - BLOCK_HEAD.size + 5
    data[offset : offset + 4] = wrong.to_bytes(4, "little")
    crc = crc32c(bytes(data[offset + 8 : offset + size]), place_seed(SEED, offset, wrong))
    data[offset + 4 : offset + 8] = crc.to_bytes(4, "little")
    refuses(directory, bytes(data), sample.slice(0, 30), "table block")


def reseal(data: bytearray, offset: int, size: int) -> None:
    """Make a changed block's checksum fit."""
    stored_len = size - BLOCK_HEAD.size
    crc = crc32c(bytes(data[offset + 8 : offset + size]), place_seed(SEED, offset, stored_len))
    data[offset + 4 : offset + 8] = crc.to_bytes(4, "little")


@pytest.mark.parametrize(
    ("raw_len", "codec"),
    [(None, 1), (None, 2), (None, 3), (None, 9), (5, 0), (0xFFFFFFFF, 3), (0xFFFFFFFF, 2), (0, 1)],
)
def test_hostile_block_header(
    directory: Directory, whole: bytes, sample: Columns, raw_len: int | None, codec: int
) -> None:
    data = bytearray(whole)
    offset, size = first_block(directory)
    if raw_len is not None:
        data[offset + 8 : offset + 12] = raw_len.to_bytes(4, "little")
    data[offset + 12] = codec
    reseal(data, offset, size)
    refuses(directory, bytes(data), sample.slice(0, 30), "table block")
