"""The flush job: a sealed write-ahead log becomes one L0 table.

Runs in: flusher (or wherever jobs run).
Invariants: (1) the job maps the log itself, no data crosses a pipe; (2) every version is kept, in
key order, newest first; (3) on any error the output is gone and the log untouched.
Fails with: `CorruptionError` when the log does not hold what the job says, `OSError`.
"""

from __future__ import annotations

from typing import Final

from meles.engine.codec.columns import Columns
from meles.engine.compaction.retention import Policy, retain
from meles.engine.errors import CorruptionError
from meles.engine.fs.files import Directory
from meles.engine.fs.names import Kind, file_name
from meles.engine.ids import MAX_KEY_BYTES
from meles.engine.jobs import FlushJob, JobContext, JobResult, NewFile
from meles.engine.log.reader import LogReader
from meles.engine.table.builder import TableBuilder

_EVERYTHING: Final = ((b"", b"\xff" * (MAX_KEY_BYTES + 1)),)  # any key may lie below a memtable
_CHUNK: Final = 8192  # entries handed to the builder at a time, between two signs of life


def read_log(job: FlushJob, directory: Directory, context: JobContext) -> tuple[Columns, bool]:
    """All entries of the log in table order, and whether commit order was version order."""
    name = file_name(Kind.WAL, job.mem_id)
    out = Columns()
    ordered, newest, report_at = True, 0, 1 << 20
    with directory.map(name) as mapping:
        reader = LogReader(mapping, directory.join(name), end=job.end)
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
                report_at = frame.stop + (1 << 20)
        tail = reader.tail
        if tail is None or tail.end < job.end:
            raise CorruptionError(
                f"log ends before byte {job.end}", path=reader.path,
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


def run_flush(job: FlushJob, directory: Directory, context: JobContext) -> JobResult:
    """Build the table of a flush job and make its name durable."""
    columns, ordered = read_log(job, directory, context)
    ordered = ordered and job.ordered
    read = len(columns)
    if ordered and read:
        policy = Policy(job.discard_ts, job.versions_to_keep, job.created_ms, _EVERYTHING)
        columns, _ = retain(columns, policy)
    if not len(columns):
        return JobResult((), {"read_bytes": job.end, "written_bytes": 0})
    builder = TableBuilder(
        directory, job.table_id, job.build, created_ms=job.created_ms, ordered=ordered
    )
    try:
        for start in range(0, len(columns), _CHUNK):
            builder.add(columns.slice(start, start + _CHUNK))
            context.progress(builder.size)
        built = builder.finish()
        directory.sync()
    except BaseException:
        builder.abandon()
        raise
    counters = {"read_bytes": job.end, "written_bytes": built.size, "entries": built.meta.count}
    counters["dropped_entries"] = read - built.meta.count
    return JobResult((NewFile(built.id, built.size, built.crc),), counters)
