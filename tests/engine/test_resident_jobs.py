"""What a job has read for the last time does not stay resident, whoever ran the job."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from meles.engine.codec.columns import Columns
from meles.engine.compaction.execute import run_compaction
from meles.engine.fs.files import Directory, forget_pages
from meles.engine.jobs import BuildOptions, CompactJob, FlushJob, RelocateJob
from meles.engine.log.writer import LogWriter
from meles.engine.memtable.flush import run_flush
from meles.engine.memtable.memtable import Memtable
from meles.engine.table.builder import TableBuilder
from meles.engine.table.reader import Table
from meles.engine.vlog.layout import ENTRY_BYTES
from meles.engine.vlog.reader import ValueLogFile, load_meta
from meles.engine.vlog.relocate import live_entries, relocate
from meles.engine.vlog.writer import ValueLogWriter
from resident import Watching, resident_of
from twins import KERNELS

MIB = 1 << 20
RNG = random.Random(5)
VALUE = RNG.randbytes(1000)


def build(directory: Directory, table_id: int, entries: int) -> int:
    """A table; its size."""
    builder = TableBuilder(directory, table_id, BuildOptions(), created_ms=0)
    keys = [b"%08d-%d" % (nth, table_id) for nth in range(entries)]
    zeros = [0] * entries
    builder.add(Columns(keys, [9 - table_id] * entries, zeros, zeros, [VALUE] * entries))
    return builder.finish().size


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_compaction_forgets_what_it_has_passed(directory: Directory, kernel: Any) -> None:
    size = sum(build(directory, table_id, 8000) for table_id in (1, 2))
    assert size > 15 * MIB
    job = CompactJob(
        inputs=((1,), (2,)), from_level=0, level=1, start=None, stop=None, first_table_id=100,
        max_tables=100, target_size=2 * MIB, discard_ts=100, versions_to_keep=1, now_ms=0,
        below=(), build=BuildOptions(), created_ms=0,
    )  # fmt: skip
    watching = Watching(directory.path, ".sst")
    run_compaction(job, directory, watching, kernel)
    assert len(watching.looks) > 10
    assert max(watching.looks) < 10 * MIB  # up to 2 MiB are mapped at once


def test_a_flush_in_python_forgets_what_it_has_copied(directory: Directory) -> None:
    table = Memtable.create(LogWriter(directory, 1))
    for nth in range(8000):
        table.put(b"%08d" % nth, VALUE, 0, 0, 0, nth + 1)
    table.seal()
    job = FlushJob(table.id, table.end, 9, BuildOptions(), 0)
    before = resident_of(directory.path, ".mem")
    watching = Watching(directory.path, ".mem")
    run_flush(job, directory, watching, None)
    assert len(watching.looks) > 5
    assert max(watching.looks) < before + 4 * MIB


def test_a_relocation_forgets_what_it_has_copied(directory: Directory) -> None:
    writer = ValueLogWriter(directory, 1)
    pointers = b"".join(writer.append(VALUE * 16, nth + 1).encode() for nth in range(2500))
    writer.seal()
    writer.close()
    watching = Watching(directory.path, ".vlog")
    for source, output in ((1, 2), (2, 3)):  # as it was appended, and as it was relocated
        job = RelocateJob(((source, (1,)),), (), output, 0, 0)
        result = relocate(job, live_entries([1], [pointers]), directory, watching)
        assert result.counters["live_bytes"] == 2500 * (ENTRY_BYTES + len(VALUE) * 16) > 36 * MIB
    assert len(watching.looks) > 15
    assert max(watching.looks) < 10 * MIB


def test_an_output_that_was_checked_is_not_resident(directory: Directory) -> None:
    build(directory, 1, 8000)
    writer = ValueLogWriter(directory, 1)
    for nth in range(500):
        writer.append(VALUE * 16, nth + 1)
    writer.seal()
    writer.close()
    values = ValueLogFile(directory, load_meta(directory, 1))
    with Table(directory, 1) as table:
        assert resident_of(directory.path) < MIB  # opened
        table.file_crc()
        values.file_crc()
        assert table.get(b"%08d-1" % 4000, 100)  # this reads index, filter and one block
        assert resident_of(directory.path) <= 2 * MIB  # the block read, in a huge page
        held = [columns.keys[0] for columns in table.scan()]
        assert resident_of(directory.path) > 7 * MIB, "a scan of a reader forgets nothing"
        assert len(held) > 100
    values.close()


def test_who_reads_meanwhile_has_the_same_bytes(tmp_path: Path) -> None:
    data = RNG.randbytes(3 * MIB + 17)
    (tmp_path / "a").write_bytes(data)
    with Directory(str(tmp_path)) as opened:
        mapping = opened.map("a")
    view = memoryview(mapping)
    assert view == data
    assert resident_of(tmp_path / "a") >= 3 * MIB
    forget_pages(mapping, 5000, MIB)  # whole pages, also in the middle
    assert MIB < resident_of(tmp_path / "a") < 2.5 * MIB
    assert view == data
    forget_pages(mapping, 0, 1 << 40)  # beyond the end
    assert resident_of(tmp_path / "a") == 0
    assert view == data
    forget_pages(mapping, 10 * MIB, 11 * MIB)  # nothing is there
    forget_pages(mapping, 7, 7)
    view.release()
    mapping.close()
    forget_pages(mapping, 0, MIB)  # closed: nothing to forget
