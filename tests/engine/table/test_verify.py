"""`verify` finds each contradiction that checksums alone cannot show."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import msgpack
import pytest
from meles.engine.codec.checksum import crc32c
from meles.engine.codec.columns import Columns
from meles.engine.codec.header import MAGIC_TABLE, FileHeader
from meles.engine.errors import CorruptionError
from meles.engine.fs.files import Directory
from meles.engine.kernel import bloom_build
from meles.engine.table.block import encode_columns
from meles.engine.table.bloom import encode_bloom, key_hash, shape
from meles.engine.table.builder import BuiltTable
from meles.engine.table.index import Index, decode_index
from meles.engine.table.layout import (
    BLOCK_HEAD,
    FOOTER_BYTES,
    decode_footer,
    encode_footer,
    place_seed,
    section,
)
from meles.engine.table.reader import Table

Build = Callable[..., BuiltTable]
Open = Callable[..., Table]
SEED = FileHeader(MAGIC_TABLE, 1).seed


@pytest.mark.parametrize("options", [{}, {"block_size": 300}, {"bloom_false_positive": 0.0}])
def test_a_sound_table(
    build: Build, open_table: Open, sample: Columns, options: dict[str, object]
) -> None:
    built = build(sample, **options)
    table = open_table(crc=built.crc)
    assert table.verify() == (len(table.index), len(sample))


def test_wrong_crc_of_the_whole_file(build: Build, open_table: Open, sample: Columns) -> None:
    built = build(sample)
    with pytest.raises(CorruptionError, match="whole file"):
        open_table(crc=built.crc ^ 1).verify()


class Parts:
    """A table taken apart; `put_together` makes a file whose checksums all fit."""

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        data = directory.read("000001.sst")
        self.footer = decode_footer(data[-FOOTER_BYTES:], SEED, 1, len(data), "")
        self.blocks = data[64 : self.footer.bloom.offset]
        bloom, index = self.footer.bloom, self.footer.index
        self.filtered = COLUMNS.keys
        self.index: Index = decode_index(
            data[index.offset : index.end], self.footer.blocks, bloom.offset, 0, ""
        )
        place = self.footer.properties
        self.properties = msgpack.unpackb(data[place.offset : place.end])

    def put_together(self) -> None:
        out = FileHeader(MAGIC_TABLE, 1).encode() + self.blocks
        places = []
        hashes = [key_hash(key) for key in self.filtered]
        lines, bits = shape(len(hashes), 0.01)
        bloom = encode_bloom(bloom_build(hashes, lines, bits), bits, len(out))
        for data in (bloom, self.index.encode(), msgpack.packb(self.properties)):
            places.append(section(data, len(out), SEED))
            out += data
        footer = dataclasses.replace(
            self.footer,
            bloom=places[0], index=places[1], properties=places[2], blocks=len(self.index),
        )  # fmt: skip
        self.directory.unlink("000001.sst")
        with self.directory.create("000001.sst") as file:
            file.pwrite(out + encode_footer(footer, SEED), 0)

    def set_block(self, payload: bytes) -> None:
        """Make the table of one block with this payload."""
        head = BLOCK_HEAD.pack(len(payload), 0, len(payload), 0, bytes(3))
        crc = crc32c(head[8:] + payload, place_seed(SEED, 64, len(payload)))
        head = BLOCK_HEAD.pack(len(payload), crc, len(payload), 0, bytes(3))
        self.blocks = head + payload
        self.index.sizes = [len(self.blocks)]


COLUMNS = Columns(
    [b"a", b"b", b"b", b"c"],
    [5, 9, 4, 7],
    [0, 2, 0, 1],
    [0, 0, 99, 0],
    [b"x", b"\x03\0\0\0\x40\0\0\0\x09\0\0\0", b"y", b""],
)


@pytest.fixture
def parts(directory: Directory, build: Build) -> Parts:
    build(COLUMNS)
    return Parts(directory)


def payload(columns: Columns, *, multi: bool = True) -> bytes:
    return encode_columns(
        columns.keys, columns.versions, columns.metas, columns.expiries, columns.values, multi=multi
    )


def refused(parts: Parts, match: str) -> None:
    parts.put_together()
    with Table(parts.directory, 1) as table, pytest.raises(CorruptionError, match=match):
        table.verify()


def test_taken_apart_and_put_together(parts: Parts) -> None:
    parts.set_block(payload(COLUMNS))
    parts.put_together()
    with Table(parts.directory, 1) as table:
        assert table.verify() == (1, 4)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("n", 5, "count"), ("k", b"A", "min_key"), ("K", b"d", "max_key"), ("v", 1, "min_version"),
        ("V", 10, "max_version"), ("t", 0, "tombstones"), ("e", 2, "expiring"),
        ("x", [3], "expiries"),
        ("r", 1, "raw_bytes"), ("l", [], "value_log"), ("l", [[3, 24, 1]], "value_log"),
    ],
)  # fmt: skip
def test_properties_that_disagree(parts: Parts, name: str, value: object, says: str) -> None:
    parts.properties[name] = value
    refused(parts, f"properties and entries disagree on {says}")


@pytest.mark.parametrize(
    ("column", "value"),
    [("entries", [3]), ("flags", [0]), ("max_versions", [8]), ("last_keys", [b"d"])],
)
def test_index_that_disagrees(parts: Parts, column: str, value: list[object]) -> None:
    setattr(parts.index, column, value)
    refused(parts, "block and index disagree")


def test_filter_that_denies_a_key(parts: Parts) -> None:
    parts.filtered = [b"a", b"b"]
    refused(parts, "filter denies")


@pytest.mark.parametrize(
    ("keys", "versions"),
    [
        ([b"b", b"a", b"b", b"c"], [5, 9, 4, 7]),
        ([b"a", b"b", b"b", b"c"], [5, 4, 9, 7]),
        ([b"a", b"b", b"b", b"c"], [5, 9, 9, 4]),
    ],
)
def test_entries_out_of_order(parts: Parts, keys: list[bytes], versions: list[int]) -> None:
    changed = Columns(keys, versions, COLUMNS.metas, COLUMNS.expiries, COLUMNS.values)
    parts.set_block(payload(changed))
    refused(parts, "out of order")


def test_flags_that_lie(parts: Parts) -> None:
    parts.set_block(payload(COLUMNS, multi=False))
    parts.index.flags = [parts.index.flags[0] & ~0x08]
    refused(parts, "flags do not describe")


def test_block_header_that_lies_about_versions(parts: Parts) -> None:
    changed = bytearray(payload(COLUMNS))
    changed[16:24] = (3).to_bytes(8, "little")
    parts.set_block(bytes(changed))
    refused(parts, "versions and block header")


def test_malformed_pointer(parts: Parts) -> None:
    values = [COLUMNS.values[0], b"short", *COLUMNS.values[2:]]
    changed = Columns(COLUMNS.keys, COLUMNS.versions, COLUMNS.metas, COLUMNS.expiries, values)
    parts.set_block(payload(changed))
    refused(parts, "12 bytes")
