"""Judging what a worker made before the MANIFEST names it.

Runs in: supervisor.
Invariants: (1) nothing a worker says is believed: size and checksum are read from the file,
metadata from its own checked properties, range and count against the job; (2) a refused output is
removed by the caller and its job has failed.
Fails with: `CorruptionError` (the worker's fault or the disk's), `OSError`.
"""

from __future__ import annotations

from itertools import pairwise

from meles.engine.errors import CorruptionError
from meles.engine.jobs import CompactJob, FlushJob, JobResult, NewFile
from meles.engine.manifest.version import TableMeta
from meles.engine.store import Store
from meles.engine.table.reader import Table

_KIND = "worker output"


def _refuse(table: Table, what: str) -> CorruptionError:
    return CorruptionError(
        what, path=table.path, offset=0, kind=_KIND, hint="the job is run again on its inputs"
    )


def open_output(store: Store, file: NewFile) -> Table:
    """A table just built, its size and whole-file checksum as the worker reported them."""
    try:
        table = store.open_table(file.id, file.crc)
    except OSError as error:
        raise CorruptionError(
            f"table {file.id} cannot be opened: {error}",
            path=store.dirs.tables.path, offset=0, kind=_KIND,
        ) from error  # fmt: skip
    try:
        if table.meta.size != file.size or table.file_crc() != file.crc:
            raise _refuse(table, "file is not what the worker reported")
        if table.index.last_keys[-1] != table.meta.max_key:  # that they ascend was checked
            raise _refuse(table, "blocks and properties end at different keys")
        if sum(table.index.entries) != table.meta.count:
            raise _refuse(table, "blocks and properties count differently")
    except BaseException:
        table.close()
        raise
    return table


def open_flushed(store: Store, job: FlushJob, result: JobResult, records: int) -> list[Table]:
    """The table of a flush job."""
    _expect_ids(store, result, range(job.table_id, job.table_id + 1))
    tables = [open_output(store, file) for file in result.files]
    count = sum(table.meta.count for table in tables)
    if not 0 < count <= records:
        for table in tables:
            table.close()
        raise CorruptionError(
            f"a flush of {records} records gave {count} entries",
            path=store.dirs.tables.path, offset=0, kind=_KIND,
        )  # fmt: skip
    return tables


def open_compacted(store: Store, job: CompactJob, result: JobResult) -> list[Table]:
    """The tables of a compaction job: in its range, in order, and no more than went in."""
    _expect_ids(store, result, range(job.first_table_id, job.first_table_id + job.max_tables))
    tables: list[Table] = []
    try:
        for file in result.files:
            table = open_output(store, file)
            tables.append(table)
            _check_range(table, job)
        for left, right in pairwise(tables):
            if left.meta.max_key >= right.meta.min_key:
                raise _refuse(right, "outputs overlap")
        entries_in = sum(
            store.live_table(table_id).meta.count for group in job.inputs for table_id in group
        )
        if sum(table.meta.count for table in tables) > entries_in:
            raise _refuse(tables[-1], "more entries came out than went in")
    except BaseException:
        for table in tables:
            table.close()
        raise
    return tables


def _check_range(table: Table, job: CompactJob) -> None:
    meta: TableMeta = table.meta
    below = job.start is not None and meta.min_key < job.start
    above = job.stop is not None and meta.max_key >= job.stop
    if below or above:
        raise _refuse(table, "keys lie outside the job's range")


def _expect_ids(store: Store, result: JobResult, allowed: range) -> None:
    ids = [file.id for file in result.files]
    if len(set(ids)) != len(ids) or any(i not in allowed for i in ids):
        raise CorruptionError(
            "a worker reported files that were not reserved for it",
            path=store.dirs.tables.path, offset=0, kind=_KIND,
        )  # fmt: skip
