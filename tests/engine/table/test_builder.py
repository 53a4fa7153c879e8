"""The builder over both kernels: properties, cutting, refusals, what an abandoned table leaves."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from meles.engine.codec.checksum import crc32c
from meles.engine.codec.columns import Columns
from meles.engine.codec.entry import ValuePointer
from meles.engine.errors import ConfigError, InvariantError
from meles.engine.fs.files import Directory
from meles.engine.jobs import BuildOptions
from meles.engine.table.builder import BuiltTable, TableBuilder
from meles.engine.table.layout import FLAG_MULTI
from meles.engine.table.reader import Table
from twins import KERNELS

Build = Callable[..., BuiltTable]
Open = Callable[..., Table]


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> Any:
    return request.param


def row(
    key: bytes, version: int = 1, meta: int = 0, expiry: int = 0, value: bytes = b""
) -> Columns:
    return Columns([key], [version], [meta], [expiry], [value])


def test_result_describes_the_file(
    directory: Directory, build: Build, open_table: Open, sample: Columns
) -> None:
    built = build(sample)
    data = directory.read("000001.sst")
    assert (built.id, built.size, built.crc) == (1, len(data), crc32c(data))
    assert open_table(crc=built.crc).meta == built.meta
    assert open_table().meta.crc == 0


def test_properties(build: Build, sample: Columns) -> None:
    meta = build(sample).meta
    now = 1_700_000_000_000
    stale = 0
    pointers: dict[int, tuple[int, int]] = {}
    for nth, key in enumerate(sample.keys):
        value, expiry = sample.values[nth], sample.expiries[nth]
        older = nth > 0 and sample.keys[nth - 1] == key
        if older or sample.metas[nth] & 1 or 0 < expiry <= now:
            stale += len(key) + len(value) + 16
        if sample.metas[nth] & 2:
            pointer = ValuePointer.decode(value)
            size, count = pointers.get(pointer.file_id, (0, 0))
            pointers[pointer.file_id] = (size + pointer.length + 16, count + 1)
    assert meta.count == len(sample)
    assert (meta.min_key, meta.max_key) == (sample.keys[0], sample.keys[-1])
    assert (meta.min_version, meta.max_version) == (min(sample.versions), max(sample.versions))
    assert meta.tombstones == sum(m & 1 for m in sample.metas) > 0
    assert meta.expiring == sum(map(bool, sample.expiries)) > 0
    assert meta.stale_bytes == stale > 0
    assert meta.raw_bytes == sum(map(len, sample.keys + sample.values))
    assert meta.value_log == tuple((file, *pointers[file]) for file in sorted(pointers))
    assert len(meta.value_log) == 3
    assert meta.created == 1_700_000_000.0


def with_expiries(expiries: list[int]) -> Columns:
    count = len(expiries)
    keys = [b"%04d" % n for n in range(count)]
    return Columns(keys, [1] * count, [0] * count, expiries, [b""] * count)


def test_properties_say_when_entries_expire(build: Build) -> None:
    """By each mark a further eighth of those to come has expired; what had already is left out."""
    created = 1_700_000_000_000
    shuffled = [created + 1 + (n * 7919) % 1000 for n in range(1000)]
    past = [created, created - 5, 1]
    meta = build(with_expiries([*shuffled, 0, *past])).meta
    assert meta.expiries == tuple(created + 125 * n for n in range(1, 9))
    assert meta.expiring == 1003
    assert build(with_expiries([created + 9, 0, created + 3]), table_id=2).meta.expiries == (
        created + 3, created + 9,
    )  # fmt: skip
    assert build(with_expiries([0, *past]), table_id=3).meta.expiries == ()


@pytest.mark.parametrize("batch", [1, 7, 100_000])
def test_batching_does_not_change_the_file(
    directory: Directory, build: Build, sample: Columns, batch: int
) -> None:
    build(sample, table_id=1, block_size=1024)
    one = directory.read("000001.sst")
    os.unlink(directory.join("000001.sst"))
    build(sample, table_id=1, block_size=1024, batch=batch)
    assert directory.read("000001.sst") == one


def test_pending_entries_survive_many_cuts(
    build: Build, open_table: Open, plain: Callable[..., Columns]
) -> None:
    """More data than one batch of blocks and one write, in adds that end anywhere."""
    columns = plain(20_000, b"x" * 90)
    built = build(columns, batch=777)
    assert open_table(crc=built.crc).verify()[1] == 20_000
    got = Columns()
    for part in open_table().scan():
        got.extend(part)
    assert got == columns


def test_versions_of_a_key_over_cuts_are_stale(build: Build, open_table: Open) -> None:
    """One key's versions fill several batches: only the newest is not stale."""
    count = 9000
    columns = Columns(
        [b"key"] * count, list(range(count, 0, -1)), [0] * count, [0] * count, [b"v" * 80] * count
    )
    meta = build(columns, batch=500).meta
    assert meta.stale_bytes == (count - 1) * (3 + 80 + 16)
    assert open_table().verify()[1] == count


def test_cut_between_versions_of_a_key(build: Build, open_table: Open) -> None:
    """A batch that begins with an older version of the key the last block ended with."""
    columns = Columns()
    for number in range(4000):
        for version in (2, 1):
            columns.append(b"key%06d" % number, version, 0, 0, b"v" * 300)
    meta = build(columns, block_size=256, batch=1).meta
    assert meta.stale_bytes == 4000 * (9 + 300 + 16)
    assert open_table().verify() == (8000, 8000)


def test_older_version_as_first_of_a_batch(build: Build) -> None:
    """Large values: each add but the first cuts, and what is left over is one entry."""
    columns = Columns()
    for key, version in ((b"a", 2), (b"a", 1), (b"b", 1), (b"c", 1)):
        columns.append(key, version, 0, 0, b"v" * 300_000)
    assert build(columns, batch=1).meta.stale_bytes == 1 + 300_000 + 16


def test_filter_has_room_for_keys_not_versions(build: Build) -> None:
    count = 5000
    zeros = [0] * count
    columns = Columns([b"k"] * count, list(range(count, 0, -1)), zeros, zeros, [b""] * count)
    with_filter = build(columns, table_id=1)
    without = build(columns, table_id=2, bloom_false_positive=0.0)
    assert 0 < with_filter.size - without.size < 256


@pytest.mark.parametrize("block_size", [256, 4096, 65536])
def test_blocks_end_with_the_entry_that_fills_them(
    build: Build, open_table: Open, plain: Callable[..., Columns], block_size: int
) -> None:
    build(plain(5000, b"four"), block_size=block_size)
    table = open_table()
    each = 12 + 4 + 16
    assert set(table.index.entries[:-1]) == {block_size // each}
    assert sum(table.index.entries) == 5000


def test_an_entry_larger_than_a_block_has_its_own(build: Build, open_table: Open) -> None:
    columns = Columns()
    for number in range(5):
        columns.append(b"k%d" % number, 1, 0, 0, b"v" * 10_000)
    build(columns)
    assert open_table().index.entries == [1] * 5


def test_block_that_shares_its_last_key_says_so(build: Build, open_table: Open) -> None:
    columns = Columns()
    for version in range(60, 0, -1):
        columns.append(b"key", version, 0, 0, b"v" * 100)
    columns.append(b"other", 1, 0, 0, b"v")
    build(columns, block_size=256)
    table = open_table()
    assert len(table.index) > 10
    assert all(flags & FLAG_MULTI for flags in table.index.flags[:-1])
    for version in range(60, 0, -1):
        assert table.get(b"key", version) == (version, 0, 0, b"v" * 100)
    assert table.get(b"key", 0) is None


def test_two_blocks_of_two_versions(build: Build, open_table: Open) -> None:
    """Each block holds one version: the flag can only come from the neighbour."""
    columns = Columns()
    columns.append(b"key", 2, 0, 0, b"v" * 300)
    columns.append(b"key", 1, 0, 0, b"v" * 300)
    build(columns, block_size=256)
    table = open_table()
    assert table.index.flags == [FLAG_MULTI, 0]
    assert table.get(b"key", 1) == (1, 0, 0, b"v" * 300)


def test_size_and_count_while_building(
    directory: Directory, kernel: Any, plain: Callable[..., Columns]
) -> None:
    builder = TableBuilder(directory, 1, BuildOptions(), created_ms=0, kernel=kernel)
    assert builder.count == 0
    columns = plain(3000, b"x" * 100)
    for start in range(0, 3000, 100):
        builder.add(columns.slice(start, start + 100))
        data_bytes = (12 + 100) * (start + 100)
        assert builder.count == start + 100
        assert data_bytes < builder.size < data_bytes * 1.25
    assert builder.size < builder.finish().size


@pytest.mark.parametrize(
    "rows",
    [
        [row(b"b"), row(b"a")],
        [row(b"a", 1), row(b"a", 1)],
        [row(b"a", 1), row(b"a", 2)],
        [row(b""), row(b"a")],
    ],
    ids=["keys", "same version", "versions", "empty key"],
)
def test_entries_out_of_order_are_refused(
    directory: Directory, kernel: Any, rows: list[Columns]
) -> None:
    builder = TableBuilder(directory, 1, BuildOptions(), created_ms=0, kernel=kernel)
    with pytest.raises(InvariantError):  # noqa: PT012 - whichever of the calls finds it
        for columns in rows:
            builder.add(columns)
        builder.finish()
    builder.abandon()


def test_order_is_checked_across_cuts(directory: Directory, kernel: Any) -> None:
    builder = TableBuilder(directory, 1, BuildOptions(), created_ms=0, kernel=kernel)
    for key in (b"b", b"c"):
        builder.add(row(key, value=b"v" * 300_000))
    with pytest.raises(InvariantError):
        builder.add(row(b"a", value=b"v" * 300_000))
    builder.abandon()


def test_a_table_is_never_empty(directory: Directory, kernel: Any) -> None:
    builder = TableBuilder(directory, 1, BuildOptions(), created_ms=0, kernel=kernel)
    builder.add(Columns())
    with pytest.raises(InvariantError):
        builder.finish()
    builder.abandon()
    assert directory.names() == []


def test_abandon_removes_the_file_and_is_idempotent(directory: Directory, kernel: Any) -> None:
    builder = TableBuilder(directory, 1, BuildOptions(), created_ms=0, kernel=kernel)
    builder.add(row(b"a"))
    assert directory.names() == ["000001.sst"]
    builder.abandon()
    builder.abandon()
    assert directory.names() == []


def test_abandon_after_finish_keeps_the_table(directory: Directory, kernel: Any) -> None:
    builder = TableBuilder(directory, 1, BuildOptions(), created_ms=0, kernel=kernel)
    builder.add(row(b"a"))
    builder.finish()
    builder.abandon()
    assert directory.names() == ["000001.sst"]


def test_an_existing_file_is_never_touched(directory: Directory, kernel: Any, build: Build) -> None:
    build(row(b"a"))
    before = directory.read("000001.sst")
    with pytest.raises(FileExistsError):
        TableBuilder(directory, 1, BuildOptions(), created_ms=0, kernel=kernel)
    assert directory.read("000001.sst") == before


def test_unknown_codec_creates_nothing(directory: Directory, kernel: Any) -> None:
    with pytest.raises(ConfigError, match="'lzma'"):
        TableBuilder(directory, 1, BuildOptions(compression="lzma"), created_ms=0, kernel=kernel)
    assert directory.names() == []


def test_a_malformed_pointer_is_refused(directory: Directory, kernel: Any) -> None:
    builder = TableBuilder(directory, 1, BuildOptions(), created_ms=0, kernel=kernel)
    with pytest.raises(InvariantError, match="12 bytes"):  # noqa: PT012
        builder.add(row(b"a", meta=2, value=b"short"))
        builder.finish()
    builder.abandon()


@pytest.mark.parametrize("codec", ["none", "snappy", "lz4", "zstd"])
def test_compression(
    build: Build, open_table: Open, plain: Callable[..., Columns], codec: str
) -> None:
    columns = plain(2000, b"abcdefgh" * 16)
    built = build(columns, compression=codec)
    assert built.meta.compression == codec
    assert (built.size < built.meta.raw_bytes / 2) == (codec != "none")
    table = open_table(crc=built.crc)
    assert table.verify() == (len(table.index), 2000)
    assert table.get(columns.keys[1234], 5) == (1, 0, 0, columns.values[0])


def test_incompressible_blocks_are_stored_as_they_are(
    directory: Directory, build: Build, open_table: Open
) -> None:
    columns = Columns()
    for number in range(50):
        columns.append(b"%016d" % number, 1, 0, 0, os.urandom(3000))
    packed = build(columns, table_id=1, compression="zstd")
    plain = build(columns, table_id=2)
    assert abs(packed.size - plain.size) < 8  # the codec's name in the properties
    assert open_table(1).verify()[1] == 50


def test_same_entries_make_the_same_bytes(
    directory: Directory, build: Build, sample: Columns
) -> None:
    build(sample)
    first = directory.read("000001.sst")
    directory.unlink("000001.sst")
    build(sample)
    assert directory.read("000001.sst") == first


def test_columns_handed_in_stay_the_callers(
    directory: Directory, kernel: Any, build: Build
) -> None:
    columns = row(b"a", value=b"1")
    builder = TableBuilder(directory, 1, BuildOptions(), created_ms=0, kernel=kernel)
    builder.add(columns)
    columns.keys[0] = b"changed"
    columns.append(b"more", 1, 0, 0, b"")
    assert builder.finish().meta.max_key == b"a"
