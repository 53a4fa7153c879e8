"""The compaction job: merge the inputs, keep what is to stay, write it as new tables.

Runs in: compactors (or wherever jobs run).
Owns: the tables it makes, until it has answered.
Invariants: (1) inputs are only read; (2) an answer names every entry that stays: damage or an input
that ends early is an error, never a shorter output; (3) on any error, a cancel included, every
output is gone; (4) the outputs and their names are durable when the answer is given; (5) an output
ends only where the key changes.
Fails with: `CorruptionError` (an input is damaged), `JobCancelledError`, `DiskFullError`,
`OSError`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Generator, Iterator
from itertools import accumulate
from operator import add
from typing import Final

from meles.engine.codec.columns import Columns
from meles.engine.compaction.retention import Policy, retain
from meles.engine.errors import CorruptionError
from meles.engine.fs.files import Directory
from meles.engine.fs.names import Kind, file_name
from meles.engine.iterators.merge import merge
from meles.engine.jobs import CompactJob, JobContext, JobResult, NewFile
from meles.engine.table.builder import BuiltTable, TableBuilder
from meles.engine.table.reader import Table

_FILL: Final = 0.95  # of the target size: the rest is index and filter
_ENTRY_BYTES: Final = 16  # what a block needs for an entry beside key and value
_REPORT_BYTES: Final = 1 << 20  # input between two signs of life


def run_compaction(job: CompactJob, directory: Directory, context: JobContext) -> JobResult:
    """Do the job; `JobResult.counters` are bytes and entries read, written and dropped."""
    reading = _Inputs(job, directory)
    outputs = _Outputs(job, directory)
    policy = Policy(job.discard_ts, job.versions_to_keep, job.now_ms, job.below, job.drops)
    dropped = tombstones = 0
    report_at = 0.0
    try:
        for batch in merge(reading.sources(), ordered=job.ordered):
            if reading.bytes >= report_at:
                context.progress(int(reading.bytes))
                report_at = reading.bytes + _REPORT_BYTES
            kept, gone = retain(batch, policy)
            dropped += gone.entries
            tombstones += gone.tombstones
            if kept.keys:
                outputs.add(kept)
        context.progress(int(reading.bytes))
        built = outputs.finish()
    except BaseException:
        outputs.abandon()
        raise
    finally:
        reading.close()
    return JobResult(
        tuple(NewFile(table.id, table.size, table.crc) for table in built),
        {
            "read_bytes": int(reading.bytes),
            "read_entries": reading.entries,
            "written_bytes": sum(table.size for table in built),
            "written_entries": sum(table.meta.count for table in built),
            "dropped_entries": dropped,
            "dropped_tombstones": tombstones,
        },
    )


class _Inputs:
    """The sources of the merge, one per group; counts what passes.

    A group's tables are opened one after the other, so that only as many are mapped as there are
    groups.
    """

    def __init__(self, job: CompactJob, directory: Directory) -> None:
        self._job = job
        self._directory = directory
        self._sources: list[Generator[Columns]] = []
        self.bytes = 0.0  # of the files, for what was read of them
        self.entries = 0

    def sources(self) -> list[Iterator[Columns]]:
        """Newest first."""
        self._sources = [self._scan(group) for group in self._job.inputs]
        return [*self._sources]

    def _scan(self, group: tuple[int, ...]) -> Generator[Columns]:
        start, stop = self._job.start, self._job.stop
        for table_id in group:
            with Table(self._directory, table_id) as table:
                meta = table.meta
                entry_bytes = meta.size / meta.count
                found = 0
                for columns in table.scan(start, stop):
                    size = len(columns.keys)
                    found += size
                    self.entries += size
                    self.bytes += size * entry_bytes
                    yield columns
                whole = (start is None or start <= meta.min_key) and (
                    stop is None or meta.max_key < stop
                )
                if whole and found != meta.count:
                    raise CorruptionError(
                        f"{found} entries where properties say {meta.count}",
                        path=table.path,
                        offset=0,
                        kind="table",
                    )

    def close(self) -> None:
        """Unmap what an interrupted merge has left open."""
        for source in self._sources:
            source.close()


class _Outputs:
    """Cuts a stream of entries into tables with the ids reserved for the job."""

    def __init__(self, job: CompactJob, directory: Directory) -> None:
        self._job = job
        self._directory = directory
        self._next_id = job.first_table_id
        self._end_id = job.first_table_id + job.max_tables
        self._limit = int(job.target_size * _FILL)
        self._splits = job.splits
        self._next_split = 0
        self._builder: TableBuilder | None = None
        self._built: list[BuiltTable] = []

    def add(self, columns: Columns) -> None:
        """Append entries, which begin with a key not seen before."""
        keys = columns.keys
        total = len(keys)
        start = 0
        while start < total:
            builder = self._builder
            if builder is not None and (builder.size >= self._limit or self._at_split(keys[start])):
                builder = self._cut()
            if builder is None:
                self._pass_splits(keys[start])
                builder = self._open()
            stop = self._reach(columns, start, self._limit - builder.size)
            builder.add(columns if stop - start == total else columns.slice(start, stop))
            start = stop

    def _at_split(self, key: bytes) -> bool:
        splits = self._splits
        return self._next_split < len(splits) and splits[self._next_split] <= key

    def _pass_splits(self, key: bytes) -> None:
        """A table begins at `key`: the next split that matters lies after it."""
        self._next_split = bisect_right(self._splits, key, self._next_split)

    def _reach(self, columns: Columns, start: int, room: int) -> int:
        """Up to where the entries from `start` on go into one table with `room` bytes left."""
        keys = columns.keys
        stop = len(keys)
        if self._next_id == self._end_id:
            return stop
        if self._next_split < len(self._splits):
            stop = bisect_left(keys, self._splits[self._next_split], start, stop)
        sizes = list(map(add, map(len, keys[start:stop]), map(len, columns.values[start:stop])))
        if sum(sizes) + _ENTRY_BYTES * len(sizes) > room:
            filled = list(accumulate(size + _ENTRY_BYTES for size in sizes))
            cut = start + bisect_left(filled, room)
            if cut < stop:  # the entry that fills the table still belongs to it, as does its key
                stop = bisect_right(keys, keys[cut], cut, stop)
        return stop

    def _open(self) -> TableBuilder:
        job = self._job
        self._builder = TableBuilder(
            self._directory,
            self._next_id,
            job.build,
            created_ms=job.created_ms,
            ordered=job.ordered,
        )
        self._next_id += 1
        return self._builder

    def _cut(self) -> TableBuilder | None:
        """End the table, unless no further id is left: then it takes the rest."""
        builder = self._builder
        if builder is None or self._next_id == self._end_id:
            return builder
        self._built.append(builder.finish())
        self._builder = None
        return None

    def finish(self) -> list[BuiltTable]:
        """All tables, durable."""
        if self._builder is not None:
            self._built.append(self._builder.finish())
            self._builder = None
        if self._built:
            self._directory.sync()
        return self._built

    def abandon(self) -> None:
        """Remove everything made."""
        if self._builder is not None:
            self._builder.abandon()
        for table in self._built:
            self._directory.unlink(file_name(Kind.TABLE, table.id))
