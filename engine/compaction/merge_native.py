"""The merge of a compaction by the compiled kernel: this side opens tables and begins outputs.

Runs in: compactors (or wherever jobs run).
Owns: the input tables it has open.
Invariants: as `merge_columns.py`, its readable twin.
Fails with: `CorruptionError` (an input is damaged), what `progress` raises, as the builder.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Final

from meles.engine.compaction.merge_columns import Counts, bytes_of, check_whole
from meles.engine.compaction.outputs import Outputs
from meles.engine.errors import InvariantError
from meles.engine.fs.files import Directory
from meles.engine.jobs import CompactJob, JobContext
from meles.engine.table.in_place import open_in_place
from meles.engine.table.reader import FORGET_BYTES, Table

_DONE: Final = 0  # what the kernel's `step` returns, see kernel/merge.pxi
_TABLE: Final = 1
_OUTPUT: Final = 2


def merge_native(
    job: CompactJob, directory: Directory, outputs: Outputs, context: JobContext, kernel: Any
) -> Counts:
    """Write what is to stay of the job's inputs to `outputs`."""
    due = [drop for drop in job.drops if drop[1] <= job.discard_ts]
    retention = kernel.Retention(
        job.discard_ts, job.versions_to_keep, job.now_ms, list(job.below), due
    )
    merger = kernel.Merger(
        len(job.inputs), job.start, job.stop, retention, list(job.splits), outputs.limit,
        InvariantError,
    )  # fmt: skip
    with ExitStack() as stack:
        sources = [
            stack.enter_context(_Source(job, directory, merger, nth, kernel))
            for nth in range(len(job.inputs))
        ]
        stack.callback(merger.close)
        for source in sources:
            source.advance()
        context.progress(0)
        while (what := merger.step()) != _DONE:
            if what == _TABLE:
                source = sources[merger.source]
                if not source.advance():
                    merger.end(source.nth)
            elif what == _OUTPUT:
                merger.write_to(outputs.open().blocks, outputs.last)
            else:
                if outputs.builder is not None:
                    outputs.builder.drain()
                for source in sources:
                    source.forget_passed()
                context.progress(sum(source.bytes for source in sources))
    return Counts(
        sum(source.bytes for source in sources),
        sum(source.entries for source in sources),
        retention.dropped + retention.copies,
        retention.tombstones,
    )


class _Source:
    """One group of tables, open one after the other."""

    def __init__(
        self, job: CompactJob, directory: Directory, merger: Any, nth: int, kernel: Any
    ) -> None:
        self._job = job
        self._directory = directory
        self._merger = merger
        self._kernel = kernel
        self._left = iter(job.inputs[nth])
        self._table: Table | None = None
        self._bytes = 0
        self._entries = 0
        self._behind = 0  # bytes of the open table that were passed and forgotten
        self.nth = nth

    def advance(self) -> bool:
        """Give the next table; False when there is none."""
        if self._table is not None:
            check_whole(self._table, self._job, self._merger.found(self.nth))
        self._bytes, self._entries = self.bytes, self.entries
        self._close()
        table_id = next(self._left, None)
        if table_id is None:
            return False
        self._table = Table(self._directory, table_id, once=True)
        self._behind = 0
        self._merger.feed(self.nth, open_in_place(self._table, self._kernel))
        return True

    def forget_passed(self) -> None:
        """What the merge has passed of the open table need not stay resident."""
        if self._table is not None:
            passed = self._merger.passed(self.nth)
            if passed - self._behind >= FORGET_BYTES:
                self._table.forget_between(self._behind, passed)
                self._behind = passed

    @property
    def bytes(self) -> int:
        """What was read, of the files."""
        open_table = self._table
        found = self._merger.found(self.nth)
        return self._bytes + (0 if open_table is None else bytes_of(open_table, found))

    @property
    def entries(self) -> int:
        found: int = self._merger.found(self.nth)
        return self._entries + (0 if self._table is None else found)

    def _close(self) -> None:
        if self._table is not None:
            self._merger.let_go(self.nth)
            self._table.close()
            self._table = None

    def __enter__(self) -> _Source:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
