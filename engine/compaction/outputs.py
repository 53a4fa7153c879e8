"""The tables a compaction makes, one after the other, with the ids reserved for the job.

Runs in: compactors (or wherever jobs run).
Owns: the tables, until the job has answered.
Invariants: (1) the last id's table takes whatever is left; (2) after `abandon` every table is gone;
(3) after `finish` tables and names are durable.
Fails with: as the builder.
"""

from __future__ import annotations

from typing import Any, Final

from meles.engine.fs.files import Directory
from meles.engine.fs.names import Kind, file_name
from meles.engine.jobs import CompactJob
from meles.engine.table.builder import BuiltTable, TableBuilder

_FILL: Final = 0.95  # of the target size: the rest is index and filter
# Tables are synced some at a time: the device writes them meanwhile, and the file system's journal
# takes one commit for all. Each has a descriptor open until then.
_UNSETTLED: Final = 64


class Outputs:
    """Opens and ends tables. Where a table ends is the merge's business, by `limit` and `last`."""

    def __init__(self, job: CompactJob, directory: Directory, kernel: Any) -> None:
        self._job = job
        self._directory = directory
        self._kernel = kernel
        self._next_id = job.first_table_id
        self._end_id = job.first_table_id + job.max_tables
        self._built: list[BuiltTable] = []
        self._complete: list[TableBuilder] = []  # of those built, the ones not synced yet
        self.builder: TableBuilder | None = None
        self.limit = int(job.target_size * _FILL)

    @property
    def last(self) -> bool:
        """Whether no further table can be opened."""
        return self._next_id == self._end_id

    def open(self) -> TableBuilder:
        """End the table under construction, if there is one, and begin another."""
        job = self._job
        self._end()
        self.builder = TableBuilder(
            self._directory,
            self._next_id,
            job.build,
            created_ms=job.created_ms,
            ordered=job.ordered,
            kernel=self._kernel,
        )
        self._next_id += 1
        return self.builder

    def _end(self) -> None:
        if self.builder is not None:
            self._built.append(self.builder.complete())
            self._complete.append(self.builder)
            self.builder = None
        if len(self._complete) >= _UNSETTLED:
            self._settle()

    def _settle(self) -> None:
        while self._complete:
            self._complete[0].settle()
            del self._complete[0]

    def finish(self) -> list[BuiltTable]:
        """All tables, durable."""
        self._end()
        self._settle()
        if self._built:
            self._directory.sync()
        return self._built

    def abandon(self) -> None:
        """Remove everything made."""
        for builder in (self.builder, *self._complete):
            if builder is not None:
                builder.abandon()
        for table in self._built:
            self._directory.unlink(file_name(Kind.TABLE, table.id))
