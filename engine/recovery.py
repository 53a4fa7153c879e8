"""Opening the files of a directory: MANIFEST, tables, value log, write-ahead logs.

Runs in: supervisor.
Owns: what it opened, until the store takes it over; everything unwinds on failure.
Invariants: (1) what is recovered is a prefix of commit order: replay stops at the first damage, and
logs behind it are set aside, never replayed; (2) nothing is deleted that the MANIFEST could still
need: only files of ours with ids it has handed out and no longer names; (3) nothing at all is
changed before everything was found to be there and opened (`settle`), and never by a read-only
opening; (4) every step can be run again after a crash in the middle of it.
Fails with: `CorruptionError`, `FormatVersionError`, `DirectoryMissingError`, `ConfigError`.
"""

from __future__ import annotations

import logging
import mmap
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from meles.engine.codec.header import HEADER_BYTES
from meles.engine.errors import (
    CorruptionError,
    DirectoryMissingError,
    EncryptionKeyError,
    FormatVersionError,
)
from meles.engine.fs.files import Directory
from meles.engine.fs.names import ASIDE_SUFFIX, MANIFEST, Kind, file_name, ids_of
from meles.engine.fs.pages import Pages
from meles.engine.log.frame import aligned
from meles.engine.log.reader import LogReader
from meles.engine.log.sealed import end_frame, map_log
from meles.engine.manifest.edit import Edit
from meles.engine.manifest.manifest_file import ManifestFile, Replay
from meles.engine.manifest.version import TableMeta, Version, VlogMeta
from meles.engine.memtable.memtable import Memtable
from meles.engine.memtable.replay import Replayed, replay
from meles.engine.options import Options
from meles.engine.reports import Recovery
from meles.engine.run_job import JobDirs
from meles.engine.table.cache import BlockCache
from meles.engine.table.index_cache import IndexCache
from meles.engine.table.reader import Table
from meles.engine.vlog.reader import ValueLogFile
from meles.engine.vlog.recover import recover_tail, seal_recovered

log = logging.getLogger("meles.recovery")
_END_BYTES: Final = 16 << 10  # of a table are read to open it: the header, properties and footer
_HEAD_BYTES = 4096  # of a log: no frame is there means that none was ever written


@dataclass(slots=True)
class Recovering:
    """State handed from one step of opening to the next."""

    dirs: JobDirs
    options: Options
    read_only: bool
    cache: BlockCache
    unwind: ExitStack  # runs only if opening fails
    indexes: IndexCache | None = None
    pages: Pages | None = None
    manifest: ManifestFile | None = None
    version: Version = field(default_factory=lambda: Version.empty(1))
    sealed: list[Memtable] = field(default_factory=list)  # newest first
    tables: list[Table] = field(default_factory=list)
    values: list[ValueLogFile] = field(default_factory=list)
    next_mem: int = 1
    report: Recovery = field(default_factory=Recovery)
    value_ends: dict[int, int] = field(default_factory=dict)
    recovered_values: dict[int, VlogMeta] = field(default_factory=dict)
    lost_values: dict[int, int] = field(default_factory=dict)  # bytes of damage in them
    repairs: list[Callable[[], None]] = field(default_factory=list)  # what `settle` does

    def repair(self, action: Callable[[], None]) -> None:
        """Do this once everything else has been opened. A read-only opening never does."""
        if not self.read_only:
            self.repairs.append(action)


def open_manifest(state: Recovering) -> None:
    """Replay the MANIFEST, or make the first one in an empty directory."""
    directory, options = state.dirs.tables, state.options
    names = directory.names()
    if MANIFEST not in names:
        ours = [name for kind in Kind for i in ids_of(kind, names) for name in [file_name(kind, i)]]
        if ours:
            raise CorruptionError(
                f"no MANIFEST beside {len(ours)} files such as {ours[0]}; nothing was touched",
                path=directory.join(MANIFEST), offset=0, kind="manifest missing",
                hint="bring the MANIFEST back from a copy; without it the files have no meaning",
            )  # fmt: skip
        if state.read_only:
            raise DirectoryMissingError(f"no database in {directory.path}")
        version = Version.empty(options.max_levels)
        state.manifest = ManifestFile.create(directory, version, options.external_magic_version)
        state.unwind.callback(state.manifest.close)
        state.version = version
        return
    found = ManifestFile.read(directory, options.external_magic_version)
    state.version = found.version.with_levels(options.max_levels)
    state.report.manifest_cut_bytes = found.cut
    state.repair(partial(_go_on_with, state, found))


def _go_on_with(state: Recovering, found: Replay) -> None:
    state.manifest = ManifestFile.open(state.dirs.tables, found)
    state.unwind.callback(state.manifest.close)


def recover_values(state: Recovering) -> None:
    """Find the end of value-log files that were open at the crash; the owner seals them there.

    Values behind damage stay where they are, but no transaction that needs one of them is replayed.
    """
    for vlog in state.version.vlogs:
        if vlog.sealed:
            continue
        needed = max(vlog.size, HEADER_BYTES)  # durable, because tables point into it
        found = recover_tail(state.dirs.values, vlog.id, needed, vlog)
        if found.clean_end < needed:
            raise CorruptionError(
                f"values up to byte {needed} were durable, {found.clean_end} are left",
                path=state.dirs.values.join(file_name(Kind.VLOG, vlog.id)),
                offset=found.clean_end,
                kind="value log",
            )
        state.value_ends[vlog.id] = found.clean_end
        state.report.value_log_cut_bytes += found.cut_bytes + found.end - found.clean_end
        entries = vlog.entries + found.entries
        state.recovered_values[vlog.id] = replace(vlog, size=found.end, entries=entries)
        state.lost_values[vlog.id] = found.lost


def replay_logs(state: Recovering) -> None:
    """Index every log still needed; cut a torn tail, set aside what lies behind damage.

    A log that never held a transaction goes, and its id is free again: ids of the logs that stay
    must be consecutive, whenever the next crash comes.
    """
    directory = state.dirs.tables
    found = ids_of(Kind.WAL, directory.names())
    needed = [mem_id for mem_id in found if mem_id >= state.version.min_mem]
    blank = []  # newest first, so that a crash in between leaves no gap
    while needed and _is_blank(directory, file_name(Kind.WAL, needed[-1])):
        blank.append(needed.pop())
    _expect_consecutive(directory, needed, state.version.min_mem)
    for mem_id in [*blank, *(i for i in found if i < state.version.min_mem)]:
        _discard_log(state, file_name(Kind.WAL, mem_id))
    stopped = False
    kept: list[Replayed] = []
    aside: list[int] = []
    for mem_id in needed:
        stopped = stopped or _lacks_its_header(directory, file_name(Kind.WAL, mem_id))
        if stopped:
            aside.append(mem_id)
            continue
        result = _replay_one(state, mem_id)
        report = state.report
        report.logs += 1
        report.transactions += result.tail.frames
        report.entries += result.memtable.records
        if result.problem is not None:
            report.cut_bytes += result.tail.cut
            report.problems.append(f"{file_name(Kind.WAL, mem_id)}: {result.problem}")
        stopped = not result.tail.sealed and mem_id != needed[-1]  # the last one is not blank
        if result.memtable.records:
            kept.append(result)
            state.sealed.insert(0, result.memtable)
        elif stopped or result.inside:
            aside.append(mem_id)
        elif not result.tail.sealed:
            _discard_log(state, file_name(Kind.WAL, needed.pop()))
    for mem_id in reversed(aside):  # each is gone for good before the reason for it is
        _set_aside(state, mem_id)
    for result in kept:
        _settle(state, result)
    state.next_mem = max([state.version.min_mem, *(mem_id + 1 for mem_id in needed)])
    _compare_ages(state)


def _compare_ages(state: Recovering) -> None:
    """In managed mode a log may hold versions older than what came before it."""
    newest = max((meta.max_version for _, meta in state.version.walk()), default=0)
    for memtable in reversed(state.sealed):
        memtable.ordered = memtable.ordered and memtable.first_ts > newest
        newest = max(newest, memtable.last_ts)


def _expect_consecutive(directory: Directory, needed: list[int], first: int) -> None:
    """A log that is missing between others is a hole; one set aside earlier is known about."""
    names = directory.names()
    aside = {n.removesuffix(ASIDE_SUFFIX) for n in names if n.endswith(ASIDE_SUFFIX)}
    for wanted in range(first, needed[-1] if needed else first):
        name = file_name(Kind.WAL, wanted)
        if wanted not in needed and name not in aside:
            raise CorruptionError(
                f"{name} is missing before {file_name(Kind.WAL, needed[-1])}; nothing was touched",
                path=directory.join(name), offset=0, kind="wal missing",
            )  # fmt: skip


def _is_blank(directory: Directory, name: str) -> bool:
    """Whether nothing behind a log's header ever reached the medium, perhaps not even that."""
    with directory.open(name) as file:
        head = file.pread(_HEAD_BYTES, 0)
    return not any(head[HEADER_BYTES:]) and (len(head) >= HEADER_BYTES or not any(head))


def _lacks_its_header(directory: Directory, name: str) -> bool:
    """Whether a power cut kept something of a log and lost its beginning."""
    with directory.open(name) as file:
        return not any(file.pread(HEADER_BYTES, 0))


def _replay_one(state: Recovering, mem_id: int) -> Replayed:
    directory, name = state.dirs.tables, file_name(Kind.WAL, mem_id)
    mapping = map_log(directory, name)
    state.unwind.callback(_close_mapping, mapping)
    replayed = replay(mapping, mem_id, directory.join(name), state.value_ends)
    state.unwind.callback(replayed.memtable.index.release)
    return replayed


def _close_mapping(mapping: mmap.mmap) -> None:
    try:
        mapping.close()
    except BufferError:  # a half-made index still looks at it, and goes with the error
        pass


def _discard_log(state: Recovering, name: str) -> None:
    state.report.removed_files += not state.read_only
    state.repair(partial(state.dirs.tables.unlink, name))


def _settle(state: Recovering, result: Replayed) -> None:
    """Make the recovered prefix the whole log, so that another crash finds the same."""
    name, end = file_name(Kind.WAL, result.memtable.id), result.tail.end
    if result.tail.sealed:
        state.repair(partial(_sync_log, state, name))
        return
    if result.inside and not state.read_only:
        state.report.set_aside.append(_copy_name(name, end))
        state.repair(partial(_keep_copy, state, name, end))
    state.repair(partial(_end_log, state, name, result))


def _sync_log(state: Recovering, name: str) -> None:
    """A log may have been sealed and not synced: what is recovered from it must last."""
    with state.dirs.tables.open(name, write=True) as file:
        file.sync()


def _end_log(state: Recovering, name: str, result: Replayed) -> None:
    directory = state.dirs.tables
    end = aligned(result.tail.end)
    with directory.open(name, write=True) as file:
        file.truncate(result.tail.end)
        header, records = file.pread(HEADER_BYTES, 0), result.memtable.records
        file.pwrite(end_frame(directory, header, end, result.tail.last_ts, records), end)
        file.sync()


def _keep_copy(state: Recovering, name: str, end: int) -> None:
    """Damage inside a log: what is cut off is kept for a human."""
    directory = state.dirs.tables
    data = directory.read(name)[end:]
    copy = _copy_name(name, end)
    directory.unlink(copy)
    with directory.create(copy) as file:
        file.pwrite(data, 0)
        file.sync()
    directory.sync()


def _copy_name(name: str, end: int) -> str:
    return f"{name}.{end}{ASIDE_SUFFIX}"


def _set_aside(state: Recovering, mem_id: int) -> None:
    """A log behind a hole: its transactions would not be a prefix. Kept, not replayed."""
    name = file_name(Kind.WAL, mem_id)
    state.report.set_aside.append(name + ASIDE_SUFFIX)
    state.report.problems.append(f"{name}: set aside, it or an earlier log lost a part")
    state.repair(partial(state.dirs.tables.rename, name, name + ASIDE_SUFFIX))
    state.repair(state.dirs.tables.sync)


def open_tables(state: Recovering) -> None:
    """Open every table the MANIFEST names; then remove what it no longer names.

    What is read of them is asked for before: one after the other, a device would be waited for
    each time. Threads do not help, most of it is done holding the interpreter.
    """
    directory, version = state.dirs.tables, state.version
    present = set(ids_of(Kind.TABLE, directory.names()))
    for _, meta in version.walk():
        if meta.id not in present:
            name = file_name(Kind.TABLE, meta.id)
            raise CorruptionError(
                f"table {name} is named in the MANIFEST and missing; nothing was touched",
                path=directory.join(name), offset=0, kind="table missing",
            )  # fmt: skip
    _refuse_newer(state, directory, Kind.TABLE, present, version.next_table)
    metas = [meta for _, meta in version.walk()]

    def open_one(meta: TableMeta) -> Table:
        table = Table(
            directory, meta.id, known=meta, cache=state.cache, indexes=state.indexes,
            pages=state.pages,
        )  # fmt: skip
        state.unwind.callback(table.close)
        return table

    for meta in metas:
        directory.expect_ends(file_name(Kind.TABLE, meta.id), meta.size, _END_BYTES)
    state.tables = [open_one(meta) for meta in metas]
    for table, meta in zip(state.tables, metas, strict=True):
        if table.meta != meta:
            raise CorruptionError(
                "the table is not the one the MANIFEST describes",
                path=table.path, offset=0, kind="table properties",
            )  # fmt: skip
    version.check()
    unnamed = present - set(version.tables)
    _refuse_newer_data(state, unnamed)
    _remove_unnamed(state, directory, Kind.TABLE, unnamed)


def _refuse_newer(
    state: Recovering, directory: Directory, kind: Kind, present: set[int], limit: int
) -> None:
    """Files with ids the MANIFEST has not handed out: then it is an older copy of itself."""
    newer = [file_id for file_id in present if file_id >= limit]
    foreign = kind is Kind.VLOG and limit == 1  # another database's value directory
    if newer and (limit > 1 or foreign) and not state.report.manifest_cut_bytes:
        raise _too_old(directory, file_name(kind, min(newer)), "has a newer number than")


def _refuse_newer_data(state: Recovering, unnamed: set[int]) -> None:
    """After a crash there are logs, and a table nobody names is what is left of a job. Without logs
    the database was closed, everything in tables that were named then: one with commits that
    nothing else knows of says that the MANIFEST is an older copy of itself.
    """
    directory = state.dirs.tables
    logs = ids_of(Kind.WAL, directory.names())
    if any(mem_id >= state.version.min_mem for mem_id in logs):
        return
    for table_id in sorted(unnamed):
        try:
            table = Table(directory, table_id)
        except (CorruptionError, FormatVersionError, EncryptionKeyError):
            continue
        table.close()
        if table.meta.max_version > last_timestamp(state):
            raise _too_old(directory, file_name(Kind.TABLE, table_id), "holds newer commits than")


def _refuse_unnamed_values(state: Recovering, unnamed: set[int]) -> None:
    """A value-log file is named before a log points into it, and until no log does any more."""
    for memtable in state.sealed:
        for file_id in sorted(memtable.vlog_ids & unnamed):
            name = file_name(Kind.VLOG, file_id)
            raise _too_old(state.dirs.values, name, "is needed by a log and unknown to")


def _too_old(directory: Directory, name: str, how: str) -> CorruptionError:
    return CorruptionError(
        f"{name} {how} the MANIFEST, which is an older copy of itself; nothing was touched",
        path=directory.join(name), offset=0, kind="manifest too old",
        hint="bring back the MANIFEST that belongs to these files",
    )  # fmt: skip


def _remove_unnamed(state: Recovering, directory: Directory, kind: Kind, ids: set[int]) -> None:
    """Outputs of jobs that never ended, and inputs of jobs that did."""
    for file_id in sorted(ids):
        state.report.removed_files += not state.read_only
        state.repair(partial(directory.unlink, file_name(kind, file_id)))
    if ids:
        state.repair(directory.sync)


def open_values(state: Recovering) -> None:
    """Open every value-log file the MANIFEST names, but for those that `settle` seals first."""
    directory = state.dirs.values
    present = set(ids_of(Kind.VLOG, directory.names()))
    _refuse_newer(state, directory, Kind.VLOG, present, state.version.next_vlog)
    for meta in state.version.vlogs:
        if meta.id not in present:
            name = file_name(Kind.VLOG, meta.id)
            raise CorruptionError(
                f"value-log file {name} is named in the MANIFEST and missing; nothing was touched",
                path=directory.join(name), offset=0, kind="value log missing",
            )  # fmt: skip
        recovered = state.recovered_values.get(meta.id)
        if recovered is None or state.read_only:
            _open_value_file(state, recovered or meta)
    logical = {number for meta in state.version.vlogs for number in meta.logical}
    unnamed = present - {meta.id for meta in state.version.vlogs}
    _refuse_unnamed_values(state, unnamed - logical)
    _remove_unnamed(state, directory, Kind.VLOG, unnamed)


def _open_value_file(state: Recovering, meta: VlogMeta) -> None:
    file = ValueLogFile(state.dirs.values, meta, pages=state.pages)
    state.unwind.callback(file.close)
    state.values.append(file)


def settle(state: Recovering) -> None:
    """Everything is there and was opened: now leave the directory as the next crash may find it."""
    for action in state.repairs:
        action()
    state.repairs.clear()
    if not state.read_only:
        for meta in _seal_recovered_values(state):
            _open_value_file(state, meta)


def _seal_recovered_values(state: Recovering) -> list[VlogMeta]:
    """Seal what was open, drop what is empty."""
    put, remove = [], []
    for meta in state.recovered_values.values():
        if meta.size > HEADER_BYTES:
            found = (meta.size, meta.entries, state.lost_values[meta.id])
            put.append(seal_recovered(state.dirs.values, meta.id, *found, known=meta))
        else:
            remove.append(meta.id)
    if (put or remove) and state.manifest is not None:
        edit = Edit(put_vlogs=tuple(put), remove_vlogs=tuple(remove))
        after = edit.apply(state.version)
        state.manifest.append(edit, after)
        state.version = after
    for file_id in remove:
        state.report.removed_files += 1
        state.dirs.values.unlink(file_name(Kind.VLOG, file_id))
    return put


def all_encrypted(state: Recovering) -> bool:
    """Whether no file is left from before the directory was encrypted."""
    return (
        all(table.key_id for table in state.version.tables.values())
        and all(vlog.key_id for vlog in state.version.vlogs)
        and all(LogReader(memtable.map, "").header.key_id for memtable in state.sealed)
    )


def last_timestamp(state: Recovering) -> int:
    """The newest timestamp anything recovered carries."""
    tables = (meta.max_version for _, meta in state.version.walk())
    logs = (memtable.last_ts for memtable in state.sealed)
    return max([state.version.max_ts, *tables, *logs])
