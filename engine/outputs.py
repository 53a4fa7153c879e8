"""Judging what a worker made before the MANIFEST names it.

Runs in: supervisor.
Invariants: (1) nothing a worker says is believed: size and checksum are read from the file,
metadata from its own checked properties, range and count against the job; (2) a refused output is
removed by the caller and its job has failed.
Fails with: `CorruptionError` (the worker's fault or the disk's), `OSError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise

from meles.engine.errors import CorruptionError, EncryptionKeyError, FormatVersionError
from meles.engine.fs.files import is_shortage
from meles.engine.fs.names import Kind, file_name
from meles.engine.giving_way import give_way
from meles.engine.jobs import CompactJob, FlushJob, JobResult, NewFile
from meles.engine.memtable.memtable import Memtable
from meles.engine.store import Store
from meles.engine.table.reader import Table

_KIND = "worker output"


def _refuse(table: Table, what: str) -> CorruptionError:
    return CorruptionError(
        what, path=table.path, offset=0, kind=_KIND, hint="the job is run again on its inputs"
    )


@contextmanager
def blamed_on_worker(path: str) -> Iterator[None]:
    """Damage in a file that was only just made is its maker's: the job may run again."""
    try:
        yield
    except OSError as error:
        if is_shortage(error):
            raise
        raise CorruptionError(
            f"the output cannot be opened: {error}", path=path, offset=0, kind=_KIND
        ) from error
    except (CorruptionError, FormatVersionError, EncryptionKeyError) as error:
        raise CorruptionError(
            f"the output is refused: {error.message}", path=path, offset=0, kind=_KIND,
            hint="the job is run again on its inputs",
        ) from error  # fmt: skip


def open_output(store: Store, file: NewFile) -> Table:
    """A table just built, its size and whole-file checksum as the worker reported them."""
    with blamed_on_worker(store.dirs.tables.join(file_name(Kind.TABLE, file.id))):
        return _open_checked(store, file)


def _open_checked(store: Store, file: NewFile) -> Table:
    table = store.open_table(file.id, file.crc)
    try:
        if table.meta.size != file.size or table.file_crc() != file.crc:
            raise _refuse(table, "file is not what the worker reported")
        give_way()
        entries, last_key = table.extent()  # that keys ascend was checked
        if last_key != table.meta.max_key:
            raise _refuse(table, "blocks and properties end at different keys")
        if entries != table.meta.count:
            raise _refuse(table, "blocks and properties count differently")
    except BaseException:
        table.close()
        raise
    give_way()
    return table


def open_flushed(store: Store, job: FlushJob, result: JobResult, memtable: Memtable) -> list[Table]:
    """The table of a flush job: every key of the memtable, and nothing that is not in it."""
    _expect_ids(store, result, range(job.table_id, job.table_id + 1))
    tables = [open_output(store, file) for file in result.files]
    try:
        count = sum(table.meta.count for table in tables)
        if not len(memtable.index) <= count <= memtable.records:
            raise CorruptionError(
                f"a flush of {len(memtable.index)} keys in {memtable.records} records gave "
                f"{count} entries",
                path=store.dirs.tables.path, offset=0, kind=_KIND,
            )  # fmt: skip
        for table in tables:
            meta = table.meta
            if meta.max_version > memtable.last_ts:
                raise _refuse(table, "a version is newer than any in the memtable")
            if not all(map(memtable.newest_version, (meta.min_key, meta.max_key))):
                raise _refuse(table, "keys are not those of the memtable")
    except BaseException:
        for table in tables:
            table.close()
        raise
    return tables


def open_compacted(store: Store, job: CompactJob, result: JobResult) -> list[Table]:
    """The tables of a compaction job: in its range, in order, and no more than went in."""
    _expect_ids(store, result, range(job.first_table_id, job.first_table_id + job.max_tables))
    if not result.files:
        return []
    inputs = [store.live_table(i).meta for group in job.inputs for i in group]
    newest = max(meta.max_version for meta in inputs)
    lowest, highest = min(i.min_key for i in inputs), max(i.max_key for i in inputs)
    if job.start is not None:
        lowest = max(job.start, lowest)
    tables: list[Table] = []
    try:
        for file in result.files:
            table = open_output(store, file)
            tables.append(table)
            _check_range(table, lowest, highest, job.stop)
        for left, right in pairwise(tables):
            if left.meta.max_key >= right.meta.min_key:
                raise _refuse(right, "outputs overlap")
        if sum(table.meta.count for table in tables) > sum(meta.count for meta in inputs):
            raise _refuse(tables[-1], "more entries came out than went in")
        for table in tables:
            if table.meta.max_version > newest:
                raise _refuse(table, "a version is newer than any that went in")
    except BaseException:
        for table in tables:
            table.close()
        raise
    return tables


def check_counts(
    store: Store, answers: Iterable[tuple[CompactJob, JobResult]], made: list[Table]
) -> None:
    """Every entry that went into a compaction came out or was dropped on purpose.

    What was dropped only the worker knows: this finds its defects, not its malice.
    """
    inputs: set[int] = set()
    dropped = 0
    for job, result in answers:
        inputs.update(table_id for group in job.inputs for table_id in group)
        dropped += result.counters.get("dropped_entries", 0)
    expected = sum(store.live_table(table_id).meta.count for table_id in inputs)
    there = sum(table.meta.count for table in made)
    if there + dropped != expected:
        raise CorruptionError(
            f"{expected} entries went in, {there} came out and {dropped} were dropped",
            path=store.dirs.tables.path, offset=0, kind=_KIND,
            hint="the job is run again on its inputs",
        )  # fmt: skip


def _check_range(table: Table, lowest: bytes, highest: bytes, stop: bytes | None) -> None:
    """Its keys are from `lowest` to `highest`, and before `stop`."""
    meta = table.meta
    above = meta.max_key > highest or (stop is not None and meta.max_key >= stop)
    if meta.min_key < lowest or above:
        raise _refuse(table, "keys lie outside the job's range")


def _expect_ids(store: Store, result: JobResult, allowed: range) -> None:
    ids = [file.id for file in result.files]
    if len(set(ids)) != len(ids) or any(i not in allowed for i in ids):
        raise CorruptionError(
            "a worker reported files that were not reserved for it",
            path=store.dirs.tables.path, offset=0, kind=_KIND,
        )  # fmt: skip
