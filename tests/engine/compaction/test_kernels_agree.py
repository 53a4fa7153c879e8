"""Both kernels do a compaction alike: the same tables byte for byte, the same counters."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meles.engine.codec.columns import Columns
from meles.engine.compaction.execute import run_compaction
from meles.engine.errors import CorruptionError, FormatVersionError, InvariantError
from meles.engine.fs.files import Directory
from meles.engine.jobs import BuildOptions, CompactJob, JobResult
from meles.engine.table.builder import TableBuilder
from twins import NATIVE, needs_native

pytestmark = needs_native
NOW = 1_000_000


class Random:
    """A random job and its inputs. Small keys, so that sources share many of them."""

    def __init__(self, seed: int, directory: Directory, *, tables: int = 5, entries: int = 60):
        self.rng = random.Random(seed)
        self.directory = directory
        self.alphabet = self.rng.choice((b"ab", b"abcdefgh", b"\x00\xff", b"abcdefghijkl"))
        self.prefix = self.rng.choice((b"", b"", b"longer than 8 bytes "))
        self.entries = entries
        self.ordered = self.rng.random() < 0.6
        self.codec = self.rng.choice(("none", "none", "zstd", "snappy"))
        self.next_id = 1
        groups = [self.group(age, tables) for age in range(self.rng.randrange(1, 5))]
        self.job = self.make_job(tuple(groups))

    def key(self) -> bytes:
        letters = self.rng.choices(self.alphabet, k=self.rng.randrange(1, 7))
        return self.prefix + bytes(letters)

    def entry(self) -> tuple[int, int, bytes]:
        """Meta, expiry, value."""
        rng = self.rng
        meta = rng.choice((0, 0, 0, 0, 1, 1, 2, 4, 8, 5 << 8, 8 | 1, 4 | 3 << 8))
        expiry = rng.choice((0, 0, 0, NOW - 1, NOW, NOW + 1))
        if meta & 2:
            return (
                meta,
                expiry,
                b"".join(rng.randrange(1, 4).to_bytes(4, "little") for _ in range(3)),
            )
        size = rng.choice((0, 3, 50, 400, 3000))
        return meta, expiry, b"" if meta & 1 else rng.choice((bytes(size), rng.randbytes(size)))

    def group(self, age: int, tables: int) -> tuple[int, ...]:
        """Disjoint tables. Older groups hold older versions, unless the job is not ordered."""
        rng = self.rng
        low, high = (900 - 100 * age, 1000 - 100 * age) if self.ordered else (0, 40)
        rows: dict[tuple[bytes, int], tuple[int, int, bytes]] = {}
        for _ in range(rng.randrange(1, self.entries)):
            key = self.key()
            for _ in range(rng.choice((1, 1, 2, 12))):
                rows[key, rng.randrange(low, high)] = self.entry()
        keys = sorted({key for key, _ in rows})
        cuts = sorted(rng.sample(keys, min(len(keys), rng.randrange(1, tables + 1))))
        ids = []
        for start, stop in zip([b"", *cuts], [*cuts, None], strict=True):
            columns = Columns()
            for key, version in sorted(rows, key=lambda row: (row[0], -row[1])):
                if start <= key and (stop is None or key < stop):
                    columns.append(key, version, *rows[key, version])
            if len(columns):
                ids.append(self.build(columns))
        return tuple(ids)

    def build(self, columns: Columns) -> int:
        options = BuildOptions(block_size=512, compression=self.codec)
        builder = TableBuilder(self.directory, self.next_id, options, created_ms=0)
        builder.add(columns)
        builder.finish()
        self.next_id += 1
        return self.next_id - 1

    def keys(self, most: int) -> list[bytes]:
        return sorted({self.key() for _ in range(self.rng.randrange(most))})

    def make_job(self, groups: tuple[tuple[int, ...], ...]) -> CompactJob:
        rng = self.rng
        edges = self.keys(6)
        below = tuple(zip(edges[0::2], edges[1::2], strict=False))
        bounds = sorted((self.key(), self.key()))
        return CompactJob(
            inputs=groups,
            from_level=1,
            level=2,
            start=bounds[0] if rng.random() < 0.3 else None,
            stop=bounds[1] if rng.random() < 0.3 else None,
            first_table_id=100,
            max_tables=rng.choice((1, 2, 5, 1000)),
            target_size=rng.choice((100, 1000, 5000, 1 << 20)),
            discard_ts=rng.choice((0, 20, 750, 850, 2000)),
            versions_to_keep=rng.choice((1, 1, 2, 3, 100)),
            now_ms=NOW,
            below=below,
            build=BuildOptions(
                block_size=rng.choice((256, 1024, 4096)),
                compression=rng.choice(("none", "none", "none", "zstd", "lz4")),
            ),
            created_ms=NOW,
            drops=tuple(
                (rng.choice((b"", self.key()[: rng.randrange(30)])), rng.randrange(1000))
                for _ in range(rng.choice((0, 0, 1, 3)))
            ),
            splits=tuple(self.keys(5)),
            ordered=self.ordered,
        )


def outcome(
    job: CompactJob, directory: Directory, context: Any, kernel: Any
) -> tuple[JobResult, list[bytes]]:
    """The answer, and the files, which are removed again."""
    result = run_compaction(job, directory, context, kernel)
    files = []
    for file in result.files:
        name = f"{file.id:06}.sst"
        files.append(directory.read(name))
        directory.unlink(name)
    return result, files


@given(seed=st.integers(0, 1 << 40))
def test_any_job(tmp_path_factory: pytest.TempPathFactory, tools: Any, seed: int) -> None:
    with Directory(str(tmp_path_factory.mktemp("agree"))) as directory:
        job = Random(seed, directory).job
        python = outcome(job, directory, tools.quiet(), None)
        native = outcome(job, directory, tools.quiet(), NATIVE)
        assert python[0] == native[0]
        assert python[1] == native[1]


@pytest.mark.long
def test_many_jobs(tmp_path: Path, tools: Any) -> None:
    for seed in range(3000):
        path = tmp_path / str(seed)
        path.mkdir()
        with Directory(str(path)) as directory:
            job = Random(seed, directory, entries=random.Random(seed).choice((5, 60, 400))).job
            assert outcome(job, directory, tools.quiet(), None) == outcome(
                job, directory, tools.quiet(), NATIVE
            ), seed
            for name in os.listdir(path):
                directory.unlink(name)


@pytest.mark.parametrize("value_bytes", [10, 1000, 300_000])
@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_a_job_of_several_megabytes(
    directory: Directory, tools: Any, value_bytes: int, codec: str
) -> None:
    """Longer than a step, a batch of blocks and a write; tables cut by measured size."""
    rng = random.Random(value_bytes)
    count = min(20_000, 12_000_000 // value_bytes)
    groups = []
    for age in range(3):
        picked = sorted(rng.sample(range(2 * count), count // 2))
        keys = [b"key%08d" % number for number in picked]
        values = [(b"%d" % n * value_bytes)[:value_bytes] for n in picked]
        zeros = [0] * len(keys)
        columns = Columns(keys, [9 - age] * len(keys), zeros, zeros, values)
        builder = TableBuilder(directory, age + 1, BuildOptions(), created_ms=0)
        builder.add(columns)
        builder.finish()
        groups.append((age + 1,))
    job = CompactJob(
        inputs=tuple(groups), from_level=0, level=1, start=None, stop=None, first_table_id=100,
        max_tables=100, target_size=1 << 20, discard_ts=100, versions_to_keep=1, now_ms=0,
        below=(), build=BuildOptions(compression=codec), created_ms=0,
    )  # fmt: skip
    reports = tools.quiet()
    python = outcome(job, directory, tools.quiet(), None)
    native = outcome(job, directory, reports, NATIVE)
    assert python == native
    assert reports.reports == sorted(reports.reports)
    assert reports.reports[-1] == python[0].counters["read_bytes"]


def damaged(directory: Directory, name: str, step: int, rng: random.Random) -> Iterator[int]:
    """One byte of the file is another, everywhere in turn."""
    whole = directory.read(name)
    for at in range(0, len(whole), step):
        changed = bytearray(whole)
        changed[at] ^= 1 << rng.randrange(8)
        directory.unlink(name)
        with directory.create(name) as file:
            file.pwrite(bytes(changed), 0)
        yield at
    directory.unlink(name)
    with directory.create(name) as file:
        file.pwrite(whole, 0)


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_any_damage_is_an_error_or_harmless(directory: Directory, tools: Any, codec: str) -> None:
    """Harmless: in the filter, which a compaction does not read. As with the Python kernel."""
    rng = random.Random(6)
    for table_id, version in ((1, 7), (2, 3)):
        columns = Columns()
        for number in range(40):
            columns.append(b"k%03d" % (number * table_id), version, 0, number % 3, b"v" * 20)
        builder = TableBuilder(
            directory, table_id, BuildOptions(block_size=256, compression=codec), created_ms=0
        )
        builder.add(columns)
        builder.finish()
    job = CompactJob(
        inputs=((1,), (2,)), from_level=0, level=1, start=None, stop=None, first_table_id=100,
        max_tables=100, target_size=1000, discard_ts=100, versions_to_keep=1, now_ms=0,
        below=(), build=BuildOptions(), created_ms=0,
    )  # fmt: skip
    whole = outcome(job, directory, tools.quiet(), NATIVE)
    before = directory.names()
    found = set()
    for at in damaged(directory, "000002.sst", 9, rng):
        messages = []
        for kernel in (None, NATIVE):
            try:
                assert outcome(job, directory, tools.quiet(), kernel) == whole
                messages.append("none")
            except (CorruptionError, FormatVersionError) as error:
                messages.append(str(error))
            assert directory.names() == before
        assert messages[0] == messages[1], at
        found.add(messages[0].split(":")[0])
    assert len(found) > 5


@pytest.mark.parametrize("groups", [((2, 1),), ((2, 1), (3,))])
def test_tables_in_the_wrong_order_are_refused(
    directory: Directory, tools: Any, groups: tuple[tuple[int, ...], ...]
) -> None:
    for table_id in (1, 2, 3):
        columns = Columns()
        for number in range(30):
            columns.append(b"k%d%03d" % (table_id, number), 1, 1, 0, b"")
        builder = TableBuilder(directory, table_id, BuildOptions(), created_ms=0)
        builder.add(columns)
        builder.finish()
    job = CompactJob(
        inputs=groups, from_level=0, level=1, start=None, stop=None, first_table_id=100,
        max_tables=100, target_size=1000, discard_ts=100, versions_to_keep=1, now_ms=0,
        below=(), build=BuildOptions(), created_ms=0,
    )  # fmt: skip
    with pytest.raises(InvariantError):
        run_compaction(job, directory, tools.quiet(), NATIVE)
    assert len(directory.names()) == 3
