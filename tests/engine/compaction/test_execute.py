"""The job itself: what it writes, where it cuts, and that a failure leaves nothing behind."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fault_fs import FailNth, FaultDisk
from meles.engine.codec.columns import Columns
from meles.engine.compaction.execute import run_compaction
from meles.engine.errors import CorruptionError, InvariantError, JobCancelledError
from meles.engine.fs.files import Directory
from meles.engine.jobs import BuildOptions, CompactJob, JobResult
from meles.engine.table.builder import TableBuilder
from meles.engine.table.reader import Table
from twins import KERNELS

BUILD = BuildOptions(block_size=512)


def key(number: int) -> bytes:
    return b"key%06d" % number


def run_of(numbers: range, version: int, value: bytes = b"v" * 50) -> Columns:
    keys = [key(number) for number in numbers]
    zeros = [0] * len(keys)
    return Columns(keys, [version] * len(keys), zeros, zeros.copy(), [value] * len(keys))


def build(directory: Directory, table_id: int, columns: Columns) -> int:
    builder = TableBuilder(directory, table_id, BUILD, created_ms=0)
    builder.add(columns)
    builder.finish()
    return table_id


def job(*inputs: tuple[int, ...], **changes: Any) -> CompactJob:
    base = CompactJob(
        inputs=inputs, from_level=1, level=2, start=None, stop=None, first_table_id=100,
        max_tables=50, target_size=16 << 10, discard_ts=1000, versions_to_keep=1, now_ms=0,
        below=(), build=BUILD, created_ms=0,
    )  # fmt: skip
    return replace(base, **changes)


def contents(directory: Directory, result: JobResult) -> list[Columns]:
    found = []
    for file in result.files:
        with Table(directory, file.id, crc=file.crc) as table:
            table.verify()
            assert table.meta.size == file.size
            columns = Columns()
            for batch in table.scan():
                columns.extend(batch)
            found.append(columns)
    return found


def names(directory: Directory) -> set[str]:
    return set(directory.names())


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def inputs(directory: Directory) -> list[tuple[int, ...]]:
    """A newer table over every third key, two older ones over all 2000."""
    newer = build(directory, 1, run_of(range(0, 2000, 3), 2, b"new"))
    older = (
        build(directory, 2, run_of(range(1000), 1)),
        build(directory, 3, run_of(range(1000, 2000), 1)),
    )
    return [(newer,), older]


def test_newer_versions_replace_older_ones(
    directory: Directory, inputs: Any, tools: Any, kernel: Any
) -> None:
    result = run_compaction(job(*inputs), directory, tools.quiet(), kernel)
    tables = contents(directory, result)
    keys = [k for table in tables for k in table.keys]
    assert keys == [key(n) for n in range(2000)]
    values = [v for table in tables for v in table.values]
    assert values == [b"v" * 50 if n % 3 else b"new" for n in range(2000)]
    counters = result.counters
    assert counters["read_entries"] == 2667
    assert counters["written_entries"] == 2000
    assert counters["dropped_entries"] == 667
    assert counters["dropped_tombstones"] == 0
    assert counters["written_bytes"] == sum(file.size for file in result.files)
    sizes = [directory.size_of(f"00000{table_id}.sst") for table_id in (1, 2, 3)]
    assert abs(counters["read_bytes"] - sum(sizes)) <= 1


def test_outputs_are_near_the_target_size(
    directory: Directory, inputs: Any, tools: Any, kernel: Any
) -> None:
    result = run_compaction(job(*inputs), directory, tools.quiet(), kernel)
    assert len(result.files) > 5
    for file in result.files[:-1]:
        assert 0.9 * (16 << 10) <= file.size <= 1.3 * (16 << 10)
    assert [file.id for file in result.files] == list(range(100, 100 + len(result.files)))


def test_the_versions_of_a_key_stay_in_one_table(
    directory: Directory, tools: Any, kernel: Any
) -> None:
    columns = Columns()
    for number in range(20):
        for version in range(200, 0, -1):
            columns.append(key(number), version, 0, 0, b"v" * 40)
    build(directory, 1, columns)
    result = run_compaction(job((1,), versions_to_keep=1000), directory, tools.quiet(), kernel)
    tables = contents(directory, result)
    assert sum(map(len, tables)) == len(columns)
    assert len(tables) > 3
    assert all(left.keys[-1] < right.keys[0] for left, right in pairwise(tables))


def test_outputs_end_at_splits(directory: Directory, inputs: Any, tools: Any, kernel: Any) -> None:
    splits = (b"a", key(10), key(11), key(1500) + b"x", b"z")
    asked = job(*inputs, splits=splits, target_size=1 << 20)
    tables = contents(directory, run_compaction(asked, directory, tools.quiet(), kernel))
    assert [table.keys[0] for table in tables] == [key(0), key(10), key(11), key(1501)]
    assert sum(map(len, tables)) == 2000


def test_the_last_table_takes_what_is_left(
    directory: Directory, inputs: Any, tools: Any, kernel: Any
) -> None:
    asked = job(*inputs, max_tables=2, splits=(key(1900),))
    result = run_compaction(asked, directory, tools.quiet(), kernel)
    assert [file.id for file in result.files] == [100, 101]
    assert sum(map(len, contents(directory, result))) == 2000


@pytest.mark.parametrize("edges", [(700,), (0,), (1,), (999, 1000), (5, 500, 1999), (3000,)])
def test_sub_ranges_together_are_the_whole(
    directory: Directory, inputs: Any, tools: Any, kernel: Any, edges: tuple[int, ...]
) -> None:
    whole = contents(directory, run_compaction(job(*inputs), directory, tools.quiet(), kernel))
    borders = [None, *map(key, edges), None]
    parts: list[Columns] = []
    for number, (start, stop) in enumerate(pairwise(borders)):
        asked = job(*inputs, start=start, stop=stop, first_table_id=1000 * (number + 1))
        parts += contents(directory, run_compaction(asked, directory, tools.quiet(), kernel))
    assert [k for t in parts for k in t.keys] == [k for t in whole for k in t.keys]
    assert [v for t in parts for v in t.values] == [v for t in whole for v in t.values]


def test_nothing_to_keep_makes_no_table(directory: Directory, tools: Any, kernel: Any) -> None:
    columns = run_of(range(10), 5, b"")
    columns.metas = [1] * 10
    build(directory, 1, columns)
    before = names(directory)
    result = run_compaction(job((1,)), directory, tools.quiet(), kernel)
    assert result.files == ()
    assert result.counters["dropped_tombstones"] == 10
    assert names(directory) == before


def test_no_inputs_make_no_table(directory: Directory, tools: Any, kernel: Any) -> None:
    result = run_compaction(job(), directory, tools.quiet(), kernel)
    assert result.files == ()


def test_unordered_inputs_give_unordered_outputs_in_order(
    directory: Directory, tools: Any, kernel: Any
) -> None:
    build(directory, 1, run_of(range(10), 3, b"old version in the newer table"))
    build(directory, 2, run_of(range(10), 7, b"new version in the older table"))
    asked = job((1,), (2,), ordered=False, versions_to_keep=5)
    result = run_compaction(asked, directory, tools.quiet(), kernel)
    (columns,) = contents(directory, result)
    columns.check()
    assert columns.versions == [7, 3] * 10
    with Table(directory, result.files[0].id) as table:
        assert not table.meta.ordered


# -- failures ------------------------------------------------------------------------------------


class Cancelling:
    """Cancels at the n-th report."""

    def __init__(self, at: int) -> None:
        self.left = at

    def progress(self, done_bytes: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise JobCancelledError


def test_a_cancelled_job_leaves_nothing(directory: Directory, tools: Any, kernel: Any) -> None:
    build(directory, 1, run_of(range(40_000), 1, b"v" * 100))
    before = names(directory)
    quiet = tools.quiet()
    run_compaction(job((1,), target_size=1 << 20, first_table_id=500), directory, quiet, kernel)
    assert len(quiet.reports) >= 4, "at least one sign of life a MiB"
    assert quiet.reports == sorted(quiet.reports)
    for name in names(directory) - before:
        directory.unlink(name)
    for at in (1, 2, len(quiet.reports)):
        with pytest.raises(JobCancelledError):
            run_compaction(job((1,), target_size=1 << 20), directory, Cancelling(at), kernel)
        assert names(directory) == before


def damage(directory: Directory, name: str, at: float) -> None:
    with directory.open(name, write=True) as file:
        offset = int(file.size() * at)
        byte = file.pread(1, offset)
        file.pwrite(bytes([byte[0] ^ 1]), offset)


@pytest.mark.parametrize("at", [0.0, 0.3, 0.6, 0.85, 0.97, 0.9999])
@pytest.mark.parametrize("name", ["000001.sst", "000003.sst"])
def test_a_damaged_input_is_an_error_and_no_output(
    directory: Directory, inputs: Any, tools: Any, kernel: Any, at: float, name: str
) -> None:
    before = names(directory)
    damage(directory, name, at)
    with pytest.raises(CorruptionError) as raised:
        run_compaction(job(*inputs), directory, tools.quiet(), kernel)
    assert name in raised.value.path
    assert names(directory) == before


def test_an_input_that_ends_early_is_an_error_and_no_output(
    directory: Directory, tools: Any, kernel: Any
) -> None:
    """Every block checks out, but there are fewer entries than the properties promise."""
    builder = TableBuilder(directory, 1, BUILD, created_ms=0)
    builder.add(run_of(range(900), 1))
    builder.blocks.count += 1
    builder.finish()
    before = names(directory)
    with pytest.raises(CorruptionError):
        run_compaction(job((1,)), directory, tools.quiet(), kernel)
    assert names(directory) == before


def test_a_missing_input_is_an_error_and_no_output(
    directory: Directory, inputs: Any, tools: Any, kernel: Any
) -> None:
    directory.unlink("000003.sst")
    before = names(directory)
    with pytest.raises(FileNotFoundError):
        run_compaction(job(*inputs), directory, tools.quiet(), kernel)
    assert names(directory) == before


def test_a_file_that_is_there_is_not_overwritten(
    directory: Directory, inputs: Any, tools: Any, kernel: Any
) -> None:
    build(directory, 103, run_of(range(5), 9))
    before = names(directory)
    content = directory.read("000103.sst")
    with pytest.raises(FileExistsError):
        run_compaction(job(*inputs), directory, tools.quiet(), kernel)
    assert names(directory) == before
    assert directory.read("000103.sst") == content


def test_an_input_out_of_order_is_an_error_and_no_output(
    directory: Directory, tools: Any, kernel: Any
) -> None:
    """Two tables of a group in the wrong order: our own contradiction, found by the builder."""
    build(directory, 1, run_of(range(500), 1))
    build(directory, 2, run_of(range(500, 900), 1))
    before = names(directory)
    with pytest.raises(InvariantError):
        run_compaction(job((2, 1)), directory, tools.quiet(), kernel)
    assert names(directory) == before


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_whatever_operation_fails_nothing_is_left(
    tmp_path: Path, fault_disk: FaultDisk, tools: Any, kernel: Any, code: int
) -> None:
    """Fail the first, second, third ... operation until the job succeeds."""
    with fault_disk.open(str(tmp_path)) as directory:
        build(directory, 1, run_of(range(0, 600, 2), 2))
        build(directory, 2, run_of(range(600), 1))
        before = names(directory)
        failures = 0
        for n in range(1, 1000):
            plan = FailNth(n, code, kinds=frozenset({"create", "write", "sync", "sync_dir"}))
            fault_disk.plan = plan
            try:
                run_compaction(job((1,), (2,)), directory, tools.quiet(), kernel)
            except OSError:
                failures += 1
            else:
                break
            finally:
                fault_disk.plan = None
            assert plan.fired == 1
            assert names(directory) == before
        assert failures >= 10


def test_outputs_and_their_names_survive_a_power_loss(
    tmp_path: Path, fault_disk: FaultDisk, tools: Any, kernel: Any
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    with fault_disk.open(str(here)) as directory:
        build(directory, 1, run_of(range(600), 1))
        result = run_compaction(job((1,)), directory, tools.quiet(), kernel)
    fault_disk.power_loss(str(here), str(there))
    with Directory(str(there)) as directory:
        assert sum(map(len, contents(directory, result))) == 600


def test_the_directory_is_synced_once(
    tmp_path: Path, fault_disk: FaultDisk, tools: Any, kernel: Any
) -> None:
    with fault_disk.open(str(tmp_path)) as directory:
        build(directory, 1, run_of(range(2000), 1))
        fault_disk.log.clear()
        result = run_compaction(job((1,)), directory, tools.quiet(), kernel)
        kinds = [operation.kind for operation in fault_disk.log]
    assert len(result.files) > 3
    assert kinds.count("sync") == len(result.files)
    assert kinds.count("sync_dir") == 1
    assert kinds[-1] == "sync_dir" or "sync_dir" in kinds[kinds.index("sync") :]


def test_inputs_are_unmapped_when_the_job_is_over(
    directory: Directory, inputs: Any, tools: Any, kernel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after an error in the middle: a worker that fails often must not run out of memory."""
    opened: list[Table] = []
    original: Callable[..., None] = Table.__init__

    def remembering(self: Table, *args: Any, **keywords: Any) -> None:
        original(self, *args, **keywords)
        opened.append(self)

    monkeypatch.setattr(Table, "__init__", remembering)
    with pytest.raises(JobCancelledError) as raised:
        run_compaction(job(*inputs), directory, Cancelling(1), kernel)
    assert len(opened) >= 2
    assert all(table._map.closed for table in opened), raised
    run_compaction(job(*inputs), directory, tools.quiet(), kernel)
    assert len(opened) >= 5
    assert all(table._map.closed for table in opened)
