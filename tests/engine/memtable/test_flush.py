"""The flush job: a sealed log becomes one table that answers as the memtable did."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from meles.engine.codec.columns import Columns
from meles.engine.codec.entry import META_DELETE
from meles.engine.errors import CorruptionError, JobCancelledError
from meles.engine.fs.files import Directory
from meles.engine.ids import MAX_VERSION
from meles.engine.jobs import BuildOptions, FlushJob, NewFile
from meles.engine.log.writer import LogWriter
from meles.engine.memtable.flush import run_flush
from meles.engine.memtable.memtable import Memtable
from meles.engine.table.reader import Table
from twins import KERNELS

NOW_MS = 1_700_000_000_000
Row = tuple[bytes, int, int, int, bytes]


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> Any:
    return request.param


class Calm:
    def progress(self, done_bytes: int) -> None:
        pass


class Impatient:
    def __init__(self, steps: int) -> None:
        self.left = steps

    def progress(self, done_bytes: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise JobCancelledError("enough")


def job(table: Memtable, **fields: int) -> FlushJob:
    return FlushJob(table.id, table.end, 9, BuildOptions(block_size=512), NOW_MS, **fields)


def rows(batches: list[Columns]) -> list[Row]:
    return [
        row
        for b in batches
        for row in zip(b.keys, b.versions, b.metas, b.expiries, b.values, strict=True)
    ]


def built(directory: Directory) -> list[Row]:
    with Table(directory, 9) as table:
        return rows(list(table.scan()))


frames = st.lists(
    st.lists(
        st.tuples(st.binary(min_size=1, max_size=2), st.binary(max_size=40), st.integers(0, 255)),
        min_size=1, max_size=5, unique_by=lambda e: e[0],
    ),
    min_size=1, max_size=20,
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frames=frames)
def test_the_table_holds_what_the_memtable_held(
    tmp_path_factory: pytest.TempPathFactory,
    kernel: Any,
    frames: list[list[tuple[bytes, bytes, int]]],
) -> None:
    with Directory(str(tmp_path_factory.mktemp("flush"))) as directory:
        log = LogWriter(directory, 4)
        table = Memtable.create(log)
        for ts, frame in enumerate(frames, 1):
            names, values, users = zip(*frame, strict=True)
            table.put_many(names, values, [u << 8 for u in users], [0] * len(frame), ts)
            table.last_ts = ts
        table.seal()
        log.close()
        result = run_flush(job(table), directory, Calm(), kernel)
        expected = rows(list(table.scan(None, None, MAX_VERSION, all_versions=True)))
        assert built(directory) == expected
        with Table(directory, 9) as made:
            assert made.meta.ordered
            assert result.files == (NewFile(9, made.meta.size, made.file_crc()),)
        assert result.counters["entries"] == len(expected)


def test_superseded_versions_nobody_can_read_are_left_out(
    directory: Directory, kernel: Any
) -> None:
    log = LogWriter(directory, 4)
    table = Memtable.create(log)
    for ts in range(1, 7):
        table.put(b"k", b"%d" % ts, 0, 0, 0, ts)
    table.put(b"gone", b"x", 0, 0, 0, 7)
    table.put(b"gone", b"", META_DELETE, 0, 0, 8)
    table.seal()
    log.close()
    result = run_flush(job(table, discard_ts=4), directory, Calm(), kernel)
    kept = [(key, version) for key, version, *_ in built(directory)]
    assert kept == [(b"gone", 8), (b"gone", 7), (b"k", 6), (b"k", 5), (b"k", 4)]
    assert result.counters["dropped_entries"] == 3


def test_a_tombstone_stays_for_what_lies_below(directory: Directory, kernel: Any) -> None:
    log = LogWriter(directory, 4)
    table = Memtable.create(log)
    table.put(b"k", b"x", 0, 0, 0, 1)
    table.put(b"k", b"", META_DELETE, 0, 0, 2)
    table.seal()
    log.close()
    run_flush(job(table, discard_ts=100), directory, Calm(), kernel)
    assert [(key, version) for key, version, *_ in built(directory)] == [(b"k", 2)]


def test_versions_set_by_the_caller_are_sorted_and_the_last_copy_counts(
    directory: Directory,
    kernel: Any,
) -> None:
    log = LogWriter(directory, 4)
    table = Memtable.create(log)
    table.put_many([b"k", b"j"], [b"5", b"1"], [0, 0], [0, 0], 5)
    table.put_many([b"k", b"k"], [b"3", b"old 4"], [0, 0], [0, 0], 4, [3, 4])
    table.put_many([b"k"], [b"4"], [0], [0], 4)
    table.seal()
    log.close()
    run_flush(job(table), directory, Calm(), kernel)
    assert [(key, v, value) for key, v, _, _, value in built(directory)] == [
        (b"j", 5, b"1"), (b"k", 5, b"5"), (b"k", 4, b"4"), (b"k", 3, b"3"),
    ]  # fmt: skip
    with Table(directory, 9) as made:
        assert made.meta.ordered is False


def test_a_log_that_is_shorter_than_the_job_says_is_damage(
    directory: Directory, kernel: Any
) -> None:
    log = LogWriter(directory, 4)
    table = Memtable.create(log)
    for ts in range(1, 10):
        table.put(b"k%d" % ts, b"v", 0, 0, 0, ts)
    table.seal()
    log.close()
    with directory.open("00004.mem", write=True) as file:
        file.pwrite(b"\xff", table.end // 2)
    with pytest.raises(CorruptionError, match=f"log ends before byte {table.end}"):
        run_flush(job(table), directory, Calm(), kernel)
    assert directory.names() == ["00004.mem"]


@pytest.mark.parametrize("steps", [0, 1])
def test_a_flush_that_is_stopped_leaves_nothing(
    directory: Directory, kernel: Any, steps: int
) -> None:
    log = LogWriter(directory, 4)
    table = Memtable.create(log)
    for ts in range(1, 40):
        table.put(b"%02d" % ts, bytes(60_000), 0, 0, 0, ts)
    table.seal()
    log.close()
    with pytest.raises(JobCancelledError):
        run_flush(job(table), directory, Impatient(steps), kernel)
    assert directory.names() == ["00004.mem"]


def test_an_empty_log_makes_no_table(directory: Directory, kernel: Any) -> None:
    log = LogWriter(directory, 4)
    table = Memtable.create(log)
    table.seal()
    log.close()
    assert run_flush(job(table), directory, Calm(), kernel).files == ()
    assert directory.names() == ["00004.mem"]
