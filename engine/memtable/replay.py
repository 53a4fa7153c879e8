"""A write-ahead log read back into a memtable after a crash.

Runs in: supervisor.
Invariants: (1) the result holds a prefix of the log's transactions; (2) a transaction whose
value-log pointer leads behind the recovered end of that file, or a link from a record to anything
but the one before it of its key, counts as damage and ends the prefix.
Fails with: `CorruptionError` only for a header that cannot be trusted.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass

from meles.engine.codec.entry import META_POINTER, POINTER_BYTES, ValuePointer
from meles.engine.codec.header import HEADER_BYTES
from meles.engine.errors import CorruptionError
from meles.engine.log.reader import Frame, LogReader, Record, Tail
from meles.engine.memtable.memtable import Memtable

_VALUE_HEADER_BYTES = 16  # header of a value-log entry, see vlog/FORMAT.md


@dataclass(frozen=True, slots=True)
class Replayed:
    """A replayed log. `problem` says why replay stopped before a clean end, None if it did not.

    `inside` is set when the damage lies before whole transactions: no torn tail explains it.
    """

    memtable: Memtable
    tail: Tail
    problem: str | None
    inside: bool


def replay(
    mapping: mmap.mmap | bytes, mem_id: int, path: str, value_ends: Mapping[int, int]
) -> Replayed:
    """Index the whole transactions of a log.

    `value_ends` gives, for value-log files that were open at the crash, the end of what was
    recovered of them; pointers into other files are checked when they are followed.
    """
    reader = LogReader(mapping, path)
    if reader.header.file_id != mem_id:
        raise CorruptionError(
            f"log says it is {reader.header.file_id}", path=path, offset=0, kind="wal header"
        )
    table = Memtable(mem_id, mapping, None, gap=reader.gap)
    problem, end, frames = None, HEADER_BYTES, 0  # `end`: of what is indexed
    try:
        for frame in reader.frames():
            records = list(reader.records(frame))
            problem = _lost_value(mapping, records, value_ends) or _wrong_link(table, records)
            if problem is not None:
                break
            _index(table, frame, records)
            end, frames = reader.after(frame), frames + 1
    except CorruptionError as error:
        problem = error.message
    tail = reader.tail
    if problem is not None or tail is None:
        tail = Tail(end, False, reader.written_after(end), table.last_ts, frames)
    inside = False
    if not tail.sealed and tail.cut:
        inside = reader.whole_frame_after(tail.end) is not None
        problem = problem or f"{tail.cut} bytes of an unfinished transaction"
    table.index.seal(tail.end)
    return Replayed(table, tail, problem, inside)


def _lost_value(
    mapping: mmap.mmap | bytes, records: list[Record], value_ends: Mapping[int, int]
) -> str | None:
    for record in records:
        if record.meta & META_POINTER:
            if record.stop - record.value_at != POINTER_BYTES:
                return "a value pointer of the wrong length"
            pointer = ValuePointer.decode(bytes(mapping[record.value_at : record.stop]))
            end = value_ends.get(pointer.file_id)
            if end is not None and pointer.offset + _VALUE_HEADER_BYTES + pointer.length > end:
                return f"a value in value-log file {pointer.file_id} was not recovered"
    return None


def _wrong_link(table: Memtable, records: list[Record]) -> str | None:
    """Readers follow a record's link to the one before it without another look at it."""
    newest: dict[bytes, int] = {}
    for record in records:
        before = newest.get(record.key) or table.index.offset_of(record.key)
        if record.previous != before:
            return f"the record at {record.offset} links to {record.previous} and not to {before}"
        newest[record.key] = record.offset
    return None


def _index(table: Memtable, frame: Frame, records: list[Record]) -> None:
    for record in records:
        newest = table.newest_version(record.key)
        if table.index.add(record.key, record.offset) and record.version <= newest:
            table.ordered = False
        if record.meta & META_POINTER:
            at = record.value_at
            table.vlog_ids.add(ValuePointer.decode(bytes(table.map[at : record.stop])).file_id)
        table.last_ts = max(table.last_ts, record.version)
    table.last_ts = max(table.last_ts, frame.ts)
    table.first_ts = min(table.first_ts or frame.ts, frame.ts)
