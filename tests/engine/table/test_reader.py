"""The reader: lookups and scans agree with a walk over the entries, from any thread."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator

import pytest
from meles.engine.codec.columns import Columns
from meles.engine.codec.header import MAGIC_TABLE, FileHeader
from meles.engine.errors import (
    ClosedError,
    CorruptionError,
    EncryptionKeyError,
    FormatVersionError,
)
from meles.engine.fs.files import Directory
from meles.engine.table.builder import BuiltTable
from meles.engine.table.cache import BlockCache
from meles.engine.table.layout import FLAG_POINTER
from meles.engine.table.reader import Table

Build = Callable[..., BuiltTable]
Open = Callable[..., Table]
Row = tuple[int, int, int, bytes]


def newest(columns: Columns, key: bytes, ts: int) -> Row | None:
    rows = zip(columns.versions, columns.metas, columns.expiries, columns.values, strict=True)
    for found, row in zip(columns.keys, rows, strict=True):
        if found == key and row[0] <= ts:
            return row
    return None


def joined(batches: Iterator[Columns]) -> Columns:
    out = Columns()
    for batch in batches:
        assert batch.keys
        out.extend(batch)
    return out


def between(columns: Columns, start: bytes | None, stop: bytes | None) -> Columns:
    picked = [
        nth
        for nth, key in enumerate(columns.keys)
        if (start is None or key >= start) and (stop is None or key < stop)
    ]
    return columns.take(picked)


@pytest.mark.parametrize("cache_size", [None, 0, 3000, 1 << 20])
@pytest.mark.parametrize("options", [{}, {"bloom_false_positive": 0.0}, {"compression": "lz4"}])
def test_get_agrees_with_a_walk(
    build: Build,
    open_table: Open,
    sample: Columns,
    cache_size: int | None,
    options: dict[str, object],
) -> None:
    build(sample, block_size=512, **options)
    table = open_table(cache=None if cache_size is None else BlockCache(cache_size))
    rng = random.Random(1)
    keys = rng.sample(sample.keys, 300)
    keys += [key[:-1] for key in keys[:40]] + [key + b"0" for key in keys[:40]]
    keys += [b"", b"a", b"zzz", sample.keys[0], sample.keys[-1]]
    for key in keys * 2:
        for ts in (0, rng.randrange(1, 120), 1 << 62):
            assert table.get(key, ts) == newest(sample, key, ts), (key, ts)


def test_whole_scan(build: Build, open_table: Open, sample: Columns) -> None:
    build(sample, block_size=700)
    table = open_table()
    batches = list(table.scan())
    assert joined(iter(batches)) == sample
    assert [len(batch) for batch in batches] == table.index.entries
    assert list(table.scan_reverse()) == batches[::-1]


def test_scans_of_ranges(build: Build, open_table: Open, sample: Columns) -> None:
    build(sample, block_size=700)
    table = open_table(cache=BlockCache(1 << 20))
    rng = random.Random(2)
    edges: list[bytes | None] = [None, b"", b"a", b"zzz", sample.keys[0], sample.keys[-1]]
    edges += table.index.last_keys[:5]
    edges += [key + b"\0" for key in table.index.last_keys[:5]]
    edges += rng.sample(sample.keys, 10)
    for start in edges:
        for stop in edges:
            expected = between(sample, start, stop)
            assert joined(table.scan(start, stop)) == expected, (start, stop)
            backwards = list(table.scan_reverse(start, stop))
            assert joined(iter(backwards[::-1])) == expected, (start, stop)


def test_batches_belong_to_the_caller(build: Build, open_table: Open, sample: Columns) -> None:
    build(sample)
    cache = BlockCache(1 << 20)
    table = open_table(cache=cache)
    key = sample.keys[0]
    for _ in range(3):
        table.get(key, 1 << 62)
    batch = next(table.scan())
    batch.keys[:] = [b"changed"] * len(batch.keys)
    assert table.get(key, 1 << 62) == newest(sample, key, 1 << 62)
    assert next(table.scan()).keys[0] == key


def test_a_scan_reads_only_the_blocks_of_its_range(
    directory: Directory, build: Build, open_table: Open, sample: Columns
) -> None:
    """First and last block are damaged; scans between them do not notice."""
    build(sample, block_size=700)
    table = open_table()
    offsets, keys = table.index.offsets, table.index.last_keys
    with directory.open("000001.sst", write=True) as file:
        for offset in (offsets[0], offsets[-1]):
            file.pwrite(b"\xff" * 8, offset)
    start, stop = keys[0] + b"\0", keys[-2]
    expected = between(sample, start, stop)
    assert joined(table.scan(start, stop)) == expected
    assert joined(iter(list(table.scan_reverse(start, stop))[::-1])) == expected
    for scan in (table.scan(None, stop), table.scan_reverse(start, None)):
        with pytest.raises(CorruptionError):
            next(scan)


def test_a_block_in_use_stays_in_a_small_cache(
    build: Build, open_table: Open, plain: Callable[..., Columns]
) -> None:
    columns = plain(5000)
    build(columns, block_size=512)
    cache = BlockCache(20_000)
    table = open_table(cache=cache)
    table.get(columns.keys[0], 1)
    for key in columns.keys[100::20]:
        before = cache.stats().misses
        table.get(columns.keys[0], 1)
        assert cache.stats().misses == before, "the first block was evicted"
        table.get(key, 1)


def test_pointers(build: Build, open_table: Open, sample: Columns) -> None:
    build(sample, block_size=700)
    table = open_table()
    found = list(table.pointers())
    expected = [v for v, meta in zip(sample.values, sample.metas, strict=True) if meta & 2]
    assert b"".join(found) == b"".join(expected)
    assert len(found) == sum(1 for flags in table.index.flags if flags & FLAG_POINTER)


def test_no_pointers(build: Build, open_table: Open, plain: Callable[..., Columns]) -> None:
    build(plain(100))
    assert list(open_table().pointers()) == []


def test_scans_do_not_fill_the_cache_and_gets_do(
    build: Build, open_table: Open, sample: Columns
) -> None:
    build(sample, block_size=700)
    cache = BlockCache(1 << 20)
    table = open_table(cache=cache)
    for _ in table.scan():
        pass
    assert cache.stats().blocks == 0
    for _ in range(2):
        table.get(sample.keys[0], 1 << 62)
    stats = cache.stats()
    assert (stats.blocks, stats.hits, stats.misses) == (1, 1, 1)


def test_a_key_the_filter_denies_reads_no_block(
    build: Build, open_table: Open, sample: Columns
) -> None:
    build(sample, bloom_false_positive=0.0001)
    cache = BlockCache(1 << 20)
    table = open_table(cache=cache)
    for number in range(500):
        assert table.get(b"key%05d absent" % number, 1 << 62) is None
    assert cache.stats().misses < 5


def test_closing_gives_the_cache_back(build: Build, open_table: Open, sample: Columns) -> None:
    build(sample, block_size=512)
    cache = BlockCache(1 << 20)
    first, second = open_table(cache=cache), open_table(cache=cache)
    for key in sample.keys[:200]:
        first.get(key, 1 << 62)
    assert cache.stats().size > 0
    first.close()
    assert cache.stats().size > 0, "the second reader of the table still uses them"
    second.close()
    second.close()
    assert cache.stats().size == 0


def test_use_after_close(build: Build, open_table: Open, sample: Columns) -> None:
    build(sample, block_size=512)
    table = open_table(cache=BlockCache(1 << 20))
    key = sample.keys[0]
    table.get(key, 1 << 62)
    running = table.scan()
    next(running)
    table.close()
    for use in (
        lambda: table.get(key, 1 << 62),
        lambda: table.get(b"absent", 1),
        lambda: next(running),
        lambda: next(table.scan()),
        lambda: next(table.pointers()),
        table.verify,
    ):
        with pytest.raises(ClosedError):
            use()


def test_from_several_threads(build: Build, open_table: Open, sample: Columns) -> None:
    """First uses of index, filter and blocks race; every answer is still right."""
    build(sample, block_size=300)
    expected = {key: newest(sample, key, 60) for key in set(sample.keys)}
    tables = [open_table(cache=BlockCache(20_000)) for _ in range(5)]
    wrong: list[bytes] = []
    start = threading.Barrier(4)

    def read(seed: int) -> None:
        keys = list(expected)
        random.Random(seed).shuffle(keys)
        for table in tables:
            start.wait()
            wrong.extend(key for key in keys if table.get(key, 60) != expected[key])
            if joined(table.scan()) != sample:
                wrong.append(b"scan")

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_missing_file(open_table: Open) -> None:
    with pytest.raises(FileNotFoundError):
        open_table(5)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 100, 127])
def test_a_short_file(directory: Directory, build: Build, open_table: Open, size: int) -> None:
    build(Columns([b"a"], [1], [0], [0], [b"v"]))
    data = directory.read("000001.sst")[:size]
    with directory.create("000002.sst") as file:
        file.pwrite(FileHeader(MAGIC_TABLE, 2).encode()[:size] + data[64:], 0)
    with pytest.raises(CorruptionError) as caught:
        open_table(2)
    assert caught.value.path == directory.join("000002.sst")


def test_every_truncation(
    directory: Directory, build: Build, open_table: Open, sample: Columns
) -> None:
    build(sample.slice(0, 20))
    whole = directory.read("000001.sst")
    directory.unlink("000001.sst")
    for size in range(1, len(whole), 13):
        with directory.create("000001.sst") as file:
            file.pwrite(whole[:size], 0)
        with pytest.raises(CorruptionError):
            open_table()
        directory.unlink("000001.sst")


def test_a_table_under_another_name(directory: Directory, build: Build, open_table: Open) -> None:
    build(Columns([b"a"], [1], [0], [0], [b"v"]))
    directory.rename("000001.sst", "000002.sst")
    with pytest.raises(CorruptionError, match="is table 1"):
        open_table(2)


def test_an_encrypted_table_is_refused(
    directory: Directory, build: Build, open_table: Open
) -> None:
    build(Columns([b"a"], [1], [0], [0], [b"v"]))
    data = directory.read("000001.sst")
    with directory.create("000002.sst") as file:
        file.pwrite(FileHeader(MAGIC_TABLE, 2, key_id=3).encode() + data[64:], 0)
    with pytest.raises(EncryptionKeyError, match="key 3"):
        open_table(2)


def test_a_newer_format_is_refused(directory: Directory, build: Build, open_table: Open) -> None:
    build(Columns([b"a"], [1], [0], [0], [b"v"]))
    data = directory.read("000001.sst")
    with directory.create("000002.sst") as file:
        file.pwrite(FileHeader(MAGIC_TABLE, 2, version=2).encode() + data[64:], 0)
    with pytest.raises(FormatVersionError):
        open_table(2)
