"""Getting out of damaged files what still checks out, into new ones.

Runs in: supervisor.
Invariants: (1) what goes into a new file was checked under its own checksum; (2) of a key that lost
a newer version no older one is kept; (3) the damaged file is left as it is.
Fails with: `CorruptionError` when there is nothing to be had, `OSError`.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Final

from meles.engine.clock import now_ms
from meles.engine.codec.columns import Columns
from meles.engine.codec.header import HEADER_BYTES, MAGIC_VLOG
from meles.engine.crypt.keys import new_header
from meles.engine.doctor.examine import header_of
from meles.engine.errors import CorruptionError
from meles.engine.fs.files import Directory
from meles.engine.fs.names import Kind, file_name
from meles.engine.jobs import BuildOptions
from meles.engine.manifest.version import TableMeta, VlogMeta
from meles.engine.table.builder import TableBuilder
from meles.engine.table.reader import Table
from meles.engine.vlog.recover import recover_tail, seal_recovered

_TABLE_BYTES: Final = 8 << 20  # size of the tables a merge writes
_BATCH: Final = 4096  # entries handed to a builder at a time
_COPY_BYTES: Final = 1 << 20

Row = tuple[bytes, int, int, int, bytes]  # key, -version, meta, expiry, value


def readable(table: Table) -> Iterator[Columns]:
    """The blocks that check out, without keys of which a newer version is lost."""
    lost_key = None
    last_keys = table.index.last_keys
    for number, last in enumerate(last_keys):
        try:
            columns = table.load(number).columns()
        except CorruptionError:
            lost_key = last
            continue
        kept = [at for at, key in enumerate(columns.keys) if key != lost_key]
        if len(kept) < len(columns.keys):
            columns = columns.take(kept)
        if columns.keys:
            lost_key = None if columns.keys[-1] != lost_key else lost_key
            yield columns


def salvage_table(directory: Directory, table_id: int, into: int) -> TableMeta | None:
    """A new table with all that can be read of an old one; None if that is nothing."""
    with Table(directory, table_id) as table:
        build = BuildOptions(compression=table.meta.compression)
        builder = TableBuilder(
            directory, into, build, created_ms=now_ms(), ordered=table.meta.ordered
        )
        try:
            for columns in readable(table):
                builder.add(columns)
            built = builder.finish() if builder.count else None
        finally:
            builder.abandon()
    directory.sync()
    return None if built is None else built.meta


def _rows(table: Table) -> Iterator[Row]:
    for columns in readable(table):
        for key, version, meta, expiry, value in zip(
            columns.keys, columns.versions, columns.metas, columns.expiries, columns.values,
            strict=True,
        ):  # fmt: skip
            yield key, -version, meta, expiry, value


def merge_tables(
    directory: Directory, table_ids: list[int], first: int, compression: str
) -> list[TableMeta]:
    """All versions of all tables, in new tables that do not overlap.

    Which level a table was on does not matter then: every key lies in one table.
    """
    tables = [Table(directory, table_id) for table_id in table_ids]
    made: list[TableMeta] = []
    build = BuildOptions(compression=compression)
    builder: TableBuilder | None = None
    batch, before = Columns(), (b"", 0)
    try:
        for key, older, meta, expiry, value in heapq.merge(*map(_rows, tables)):
            if (key, older) == before:
                continue
            if len(batch) >= _BATCH and key != before[0]:
                builder = builder or TableBuilder(
                    directory, first + len(made), build, created_ms=now_ms()
                )
                builder.add(batch)
                batch = Columns()
                if builder.size >= _TABLE_BYTES:
                    made.append(builder.finish().meta)
                    builder = None
            before = (key, older)
            batch.append(key, -older, meta, expiry, value)
        if len(batch):
            builder = builder or TableBuilder(
                directory, first + len(made), build, created_ms=now_ms()
            )
            builder.add(batch)
        if builder is not None:
            made.append(builder.finish().meta)
            builder = None
    finally:
        if builder is not None:
            builder.abandon()
        for table in tables:
            table.close()
    directory.sync()
    return made


def salvage_values(
    directory: Directory, file_id: int, source: str, known: VlogMeta | None
) -> VlogMeta:
    """The value-log file `file_id`, made again from what checks out in the file `source`."""
    name = file_name(Kind.VLOG, file_id)
    copy_file(directory, source, name, header_of(Kind.VLOG, file_id, known))
    found = recover_tail(directory, file_id)
    meta = seal_recovered(directory, file_id, found.end, found.entries, found.lost)
    directory.sync()
    return meta


def blank_values(directory: Directory, file_id: int) -> VlogMeta:
    """A sealed value-log file with nothing in it."""
    with directory.create(file_name(Kind.VLOG, file_id)) as file:
        header, _ = new_header(directory.keys, MAGIC_VLOG, file_id)
        file.pwrite(header.encode(), 0)
        file.sync()
    meta = seal_recovered(directory, file_id, HEADER_BYTES, 0)
    directory.sync()
    return meta


def copy_file(directory: Directory, source: str, target: str, head: bytes = b"") -> None:
    """Copy a file under a new name, its first bytes replaced by `head`."""
    with directory.open(source) as old, directory.create(target) as new:
        new.pwrite(head, 0)
        at = len(head)
        while data := old.pread(_COPY_BYTES, at):
            new.pwrite(data, at)
            at += len(data)
        new.sync()
    directory.sync()
