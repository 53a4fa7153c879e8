"""The merge of a compaction in Python: columns in bulk. `merge_native.py` is its compiled twin.

Runs in: compactors (or wherever jobs run).
Owns: the input tables it has open.
Invariants: (1) an output ends only where the key changes: at a split, or where its size as the
builder measures it has reached the limit; (2) a group's tables are open one after the other, so
that only as many are mapped as there are groups; (3) an input that ends early is an error.
Fails with: `CorruptionError` (an input is damaged), what `progress` raises, as the builder.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Generator
from dataclasses import dataclass
from itertools import accumulate
from operator import add
from typing import Final

from meles.engine.codec.columns import Columns
from meles.engine.compaction.outputs import Outputs
from meles.engine.compaction.retention import Policy, retain
from meles.engine.errors import CorruptionError
from meles.engine.fs.files import Directory
from meles.engine.iterators.merge import merge
from meles.engine.jobs import CompactJob, JobContext
from meles.engine.table.block import ENTRY_BYTES
from meles.engine.table.block_maker import BlockMakerPy
from meles.engine.table.reader import Table

REPORT_BYTES: Final = 1 << 20  # input between two signs of life


@dataclass(slots=True)
class Counts:
    """What a merge has read and left out so far. `bytes` are of the files."""

    bytes: int = 0
    entries: int = 0
    dropped: int = 0
    tombstones: int = 0


def merge_columns(
    job: CompactJob, directory: Directory, outputs: Outputs, context: JobContext
) -> Counts:
    """Write what is to stay of the job's inputs to `outputs`."""
    counts = Counts()
    sources = [_scan(job, directory, group, counts) for group in job.inputs]
    policy = Policy(job.discard_ts, job.versions_to_keep, job.now_ms, job.below, job.drops)
    cutter = _Cutter(outputs, job.splits)
    report_at = merged = 0
    try:
        for batch in merge([*sources], ordered=job.ordered):
            if counts.bytes >= report_at:
                context.progress(counts.bytes)
                report_at = counts.bytes + REPORT_BYTES
            merged += len(batch.keys)
            kept, gone = retain(batch, policy)
            counts.dropped += gone.entries
            counts.tombstones += gone.tombstones
            if kept.keys:
                cutter.add(kept)
        counts.dropped += counts.entries - merged  # copies of one version
    finally:
        for source in sources:  # unmaps what an interrupted merge has left open
            source.close()
    return counts


def _scan(
    job: CompactJob, directory: Directory, group: tuple[int, ...], counts: Counts
) -> Generator[Columns]:
    for table_id in group:
        with Table(directory, table_id, once=True) as table:
            found = 0
            for columns in table.scan(job.start, job.stop):
                counts.bytes -= bytes_of(table, found)
                found += len(columns.keys)
                counts.bytes += bytes_of(table, found)
                counts.entries += len(columns.keys)
                yield columns
            check_whole(table, job, found)


def bytes_of(table: Table, entries: int) -> int:
    """The part of the file that so many of its entries take."""
    return table.meta.size * entries // table.meta.count


def check_whole(table: Table, job: CompactJob, found: int) -> None:
    """`CorruptionError` unless a table wholly within the job's range gave all its entries."""
    meta = table.meta
    whole = (job.start is None or job.start <= meta.min_key) and (
        job.stop is None or meta.max_key < job.stop
    )
    if whole and found != meta.count:
        raise CorruptionError(
            f"{found} entries where properties say {meta.count}",
            path=table.path,
            offset=0,
            kind="table",
        )


class _Cutter:
    """Cuts a stream of entries into tables."""

    def __init__(self, outputs: Outputs, splits: tuple[bytes, ...]) -> None:
        self._outputs = outputs
        self._splits = splits
        self._next_split = 0

    def add(self, columns: Columns) -> None:
        """Append entries, which begin with a key not seen before."""
        keys = columns.keys
        total = len(keys)
        start = 0
        while start < total:
            key = keys[start]
            builder = self._outputs.builder
            fresh = start == 0 or keys[start - 1] != key
            if builder is None or (fresh and self._is_full(builder.size, key)):
                builder = self._outputs.open()
                self._next_split = bisect_right(self._splits, key, self._next_split)
            stop = self._reach(columns, start)
            builder.add(columns if stop - start == total else columns.slice(start, stop))
            start = stop

    def _is_full(self, size: int, key: bytes) -> bool:
        if self._outputs.last:
            return False
        return size >= self._outputs.limit or (
            self._next_split < len(self._splits) and self._splits[self._next_split] <= key
        )

    def _reach(self, columns: Columns, start: int) -> int:
        """Up to where the entries from `start` on surely go into the open table."""
        keys = columns.keys
        stop = len(keys)
        builder = self._outputs.builder
        if self._outputs.last or builder is None:
            return stop
        if self._next_split < len(self._splits):
            stop = bisect_left(keys, self._splits[self._next_split], start, stop)
        blocks = builder.blocks
        until_cut = blocks.until_cut if isinstance(blocks, BlockMakerPy) else 0
        room = self._outputs.limit - builder.size
        sizes = list(map(add, map(len, keys[start:stop]), map(len, columns.values[start:stop])))
        if sum(sizes) + ENTRY_BYTES * len(sizes) >= min(room, until_cut):
            filled = list(accumulate(size + ENTRY_BYTES for size in sizes))
            full = start + bisect_left(filled, room)
            stop = min(stop, start + bisect_left(filled, until_cut) + 1)  # measured anew there
            if full < stop:  # the entry that fills the table still belongs to it, as does its key
                stop = bisect_right(keys, keys[full], full, stop)
        return stop
