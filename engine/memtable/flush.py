"""The flush job: a sealed write-ahead log becomes one L0 table.

Runs in: flusher (or wherever jobs run).
Invariants: (1) the job maps the log itself (a sealed one it opens), no data crosses a pipe; (2)
entries come in key order, newest first; versions leave only where log and job are ordered, and as a
compaction would have it; (3) on any error the output is gone and the log untouched; (4) both
kernels make the same table.
Fails with: `CorruptionError` when the log does not hold what the job says, `OSError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from mmap import mmap
from typing import Any, Final

from meles.engine.codec.columns import Columns
from meles.engine.codec.header import HEADER_BYTES
from meles.engine.compaction.retention import Policy, retain
from meles.engine.errors import CorruptionError, InvariantError
from meles.engine.fs.files import Directory, forget_pages
from meles.engine.fs.names import Kind, file_name
from meles.engine.ids import MAX_KEY_BYTES
from meles.engine.jobs import FlushJob, JobContext, JobResult, NewFile
from meles.engine.kernel import NATIVE
from meles.engine.log.reader import LogReader
from meles.engine.log.sealed import map_log
from meles.engine.table.builder import TableBuilder

_EVERYTHING: Final = ((b"", b"\xff" * (MAX_KEY_BYTES + 1)),)  # any key may lie below a memtable
_CHUNK: Final = 8192  # entries handed to the builder at a time, between two signs of life


def run_flush(
    job: FlushJob, directory: Directory, context: JobContext, kernel: Any = NATIVE
) -> JobResult:
    """Build the table of a flush job and make its name durable."""
    name = file_name(Kind.WAL, job.mem_id)
    with map_log(directory, name) as mapping:
        reader = LogReader(mapping, directory.join(name), end=job.end)
        if kernel is not None:
            with _sorted_log(reader, mapping, job.end, context, kernel) as log:
                if log is not None:
                    return _write_natively(job, directory, context, kernel, log)
        columns, ordered = read_log(reader, mapping, job.end, context)
    return _write_columns(job, directory, context, columns, ordered)


def read_log(
    reader: LogReader, mapping: mmap, end: int, context: JobContext
) -> tuple[Columns, bool]:
    """All entries of the log in table order, and whether commit order was version order."""
    out = Columns()
    ordered, newest, report_at = True, 0, 1 << 20
    for frame in reader.frames():
        ordered = ordered and frame.ts > newest
        newest = frame.ts
        for record in reader.records(frame):
            out.keys.append(record.key)
            out.versions.append(record.version)
            out.metas.append(record.user << 8 | record.meta)
            out.expiries.append(record.expiry)
            out.values.append(mapping[record.value_at : record.stop])
            ordered = ordered and record.version == newest
        if frame.stop > report_at:
            context.progress(frame.stop)
            forget_pages(mapping, 0, frame.stop)  # what was read is a copy
            report_at = frame.stop + (1 << 20)
    tail = reader.tail
    if tail is None or tail.end < end:
        raise CorruptionError(
            f"log ends before byte {end}", path=reader.path,
            offset=tail.end if tail else 0, kind="wal frame",
        )  # fmt: skip
    count = len(out)
    if ordered:  # stable: equal keys stay newest first
        order = sorted(range(count - 1, -1, -1), key=out.keys.__getitem__)
    else:
        latest = {(key, version): i for i, (key, version) in
                  enumerate(zip(out.keys, out.versions, strict=True))}  # fmt: skip
        order = sorted(latest.values(), key=lambda i: (out.keys[i], -out.versions[i]))
    return out.take(order), ordered


def _write_columns(
    job: FlushJob, directory: Directory, context: JobContext, columns: Columns, ordered: bool
) -> JobResult:
    ordered = ordered and job.ordered
    read = len(columns)
    if not read:
        return _nothing(job)
    if ordered:
        policy = Policy(job.discard_ts, job.versions_to_keep, job.created_ms, _EVERYTHING)
        columns, _ = retain(columns, policy)
    builder = _builder(job, directory, ordered, None)
    try:
        for start in range(0, len(columns), _CHUNK):
            builder.add(columns.slice(start, start + _CHUNK))
            context.progress(builder.size)
        return _finish(job, directory, builder, read)
    except BaseException:
        builder.abandon()
        raise


@contextmanager
def _sorted_log(
    reader: LogReader, mapping: mmap, end: int, context: JobContext, kernel: Any
) -> Iterator[Any]:
    """The log's entries in table order; None when Python must see what is wrong with the log."""
    log = kernel.LogSorter(
        mapping, reader.seed, HEADER_BYTES, reader.size, InvariantError, reader.gap
    )
    try:
        while more := log.walk():
            context.progress(log.at)
        whole = more is not None and min(log.at, reader.size) >= end
        if whole:
            log.sort()
        yield log if whole else None
    finally:
        log.release()


def _write_natively(
    job: FlushJob, directory: Directory, context: JobContext, kernel: Any, log: Any
) -> JobResult:
    ordered = job.ordered and log.ordered
    if not log.count:
        return _nothing(job)
    retention = (
        kernel.Retention(
            job.discard_ts, job.versions_to_keep, job.created_ms, list(_EVERYTHING), []
        )
        if ordered
        else None
    )
    builder = _builder(job, directory, ordered, kernel)
    try:
        while log.step(builder.blocks, retention):
            builder.drain()
            context.progress(builder.size)
        return _finish(job, directory, builder, log.read)
    except BaseException:
        builder.abandon()
        raise


def _builder(job: FlushJob, directory: Directory, ordered: bool, kernel: Any) -> TableBuilder:
    return TableBuilder(
        directory,
        job.table_id,
        job.build,
        created_ms=job.created_ms,
        ordered=ordered,
        kernel=kernel,
    )


def _finish(job: FlushJob, directory: Directory, builder: TableBuilder, read: int) -> JobResult:
    built = builder.finish()
    directory.sync()
    counters = {"read_bytes": job.end, "written_bytes": built.size, "entries": built.meta.count}
    counters["dropped_entries"] = read - built.meta.count
    return JobResult((NewFile(built.id, built.size, built.crc),), counters)


def _nothing(job: FlushJob) -> JobResult:
    return JobResult((), {"read_bytes": job.end, "written_bytes": 0})
