"""Checking an open database from end to end: logs, tables, levels, and where every pointer leads.

Runs in: supervisor, on the caller's thread. Reads only, one view, while everything else goes on.
Invariants: (1) damage becomes a problem of the report, never an error; (2) damage in one place does
not keep the rest from being checked; (3) a file gives at most `MOST_PROBLEMS` problems.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from meles.engine.codec.columns import Columns
from meles.engine.codec.entry import META_POINTER
from meles.engine.codec.header import HEADER_BYTES
from meles.engine.errors import CorruptionError, InvariantError
from meles.engine.fs.files import Directory
from meles.engine.fs.names import Kind, file_name
from meles.engine.ids import MAX_VERSION
from meles.engine.log.reader import LogReader, WalBuffer
from meles.engine.log.sealed import SealedLogWriter, map_log
from meles.engine.memtable.memtable import Memtable
from meles.engine.read_view import ReadView
from meles.engine.reports import VerifyReport
from meles.engine.store import Store
from meles.engine.table.reader import Table
from meles.engine.vlog.reader import ValueLogFile
from meles.engine.vlog.value_log import UnreadableFile

MOST_PROBLEMS: Final = 100


@dataclass(slots=True)
class _Found:
    problems: list[str] = field(default_factory=list)
    tables: int = 0
    blocks: int = 0
    values: int = 0


def verify(store: Store, *, values: bool) -> VerifyReport:
    """Every checksum and invariant of the current view; with `values`, every pointer and value."""
    view = store.view
    found = _Found()
    try:
        view.version.check()
    except InvariantError as error:
        found.problems.append(str(error))
    for memtable in (view.active, *view.sealed):
        _check_log(memtable, store.dirs.tables, found)
        if values:
            batches = memtable.scan(None, None, MAX_VERSION, all_versions=True)
            _follow_pointers(view, batches, found)
    for table in [*view.level_zero, *(t for _, level in view.levels for t in level)]:
        _check_table(view, table, found, values=values)
    if values:
        _check_value_files(view, found)
    return VerifyReport(
        not found.problems, found.problems, found.tables, found.blocks, found.values
    )


def _check_log(memtable: Memtable, directory: Directory, found: _Found) -> None:
    """Whether every frame that the memtable stands on is whole, also as it was sealed."""
    end, data = memtable.size, memtable.map  # commits go on behind the end
    name = file_name(Kind.WAL, memtable.id)
    path = directory.join(name)
    if not len(data):
        return  # the active memtable of a read-only handle has no log
    try:
        reader = LogReader(data, path, end=end)
        deque(reader.frames(), maxlen=0)
        if isinstance(memtable.log, SealedLogWriter):
            end = min(end, memtable.log.published)  # the last commit may be on its way there
        if reader.gap and _stored_differs(directory, name, data, end):
            found.problems.append(f"{path}: what is stored is not what was committed")
    except CorruptionError as error:
        found.problems.append(str(error))
        return
    if reader.tail is not None and reader.tail.end < end:
        found.problems.append(f"{path} at byte {reader.tail.end}: frame checksum does not match")


def _stored_differs(directory: Directory, name: str, data: WalBuffer, end: int) -> bool:
    """Whether a sealed log, opened again, is another one than the plain log in memory."""
    try:
        with map_log(directory, name) as stored:
            return stored[HEADER_BYTES:end] != data[HEADER_BYTES:end]
    except FileNotFoundError:
        return False  # it was flushed meanwhile


def _check_table(view: ReadView, table: Table, found: _Found, *, values: bool) -> None:
    found.tables += 1
    try:
        found.blocks += table.verify()[0]
        if values:
            _follow_pointers(view, table.scan(), found)
    except CorruptionError as error:
        found.problems.append(str(error))


def _follow_pointers(view: ReadView, batches: Iterable[Columns], found: _Found) -> None:
    """Read every value the entries point to."""
    read = view.values.read
    bad = 0
    for batch in batches:
        if not any(meta & META_POINTER for meta in set(batch.metas)):
            continue
        for value, version, meta in zip(batch.values, batch.versions, batch.metas, strict=True):
            if not meta & META_POINTER:
                continue
            found.values += 1
            try:
                read(value, version)
            except CorruptionError as error:
                bad += 1
                if bad <= MOST_PROBLEMS:
                    found.problems.append(str(error))


def _check_value_files(view: ReadView, found: _Found) -> None:
    """Frame and checksums of the sealed files themselves, whether or not anything points there."""
    for file in view.values.files.values():
        try:
            if isinstance(file, ValueLogFile):
                file.verify()
            elif isinstance(file, UnreadableFile):
                raise file.error
        except CorruptionError as error:
            found.problems.append(str(error))
